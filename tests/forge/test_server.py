"""A real Forge, driven through its HTTP API: with and without a mask."""

import base64

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.forge.server import Refused
from uniforget import GateMask, MaskInfo, save
from uniforget.model.sites import find_sites

PREFIX = "model.diffusion_model."
MASK = "half.safetensors"


@pytest.fixture(scope="session")
def mask(data):
    """A mask with half of the tiny model's gates off, in the folder of masks."""
    with safe_open(data / "models" / "Stable-diffusion" / "tiny.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
        shapes = {name.removeprefix(PREFIX): tuple(file.get_slice(name).get_shape()) for name in names}
    _, sites = find_sites(shapes)
    generator = torch.Generator().manual_seed(1)
    gates = {site.name: (torch.rand(site.units, generator=generator) > 0.5).float() for site in sites}
    made = GateMask(gates, {site.name: site.kind for site in sites}, MaskInfo("sd1", ""))
    (data / "models" / "UniForget").mkdir()
    save(made, data / "models" / "UniForget" / MASK)
    return made


@pytest.fixture(scope="session")
def plain(server, mask):
    """The picture without a mask."""
    [picture], [text] = server.draw()
    assert "UniForget" not in text
    assert len(set(picture)) > 1, "Forge drew a plain surface, which no mask can change"
    return picture


@pytest.fixture(scope="session")
def masked(server, plain):
    [picture], [text] = server.draw(True, MASK)
    return picture, text


def test_a_mask_changes_the_picture_and_lands_on_all_sites(mask, plain, masked):
    picture, text = masked
    assert picture != plain
    assert f"UniForget sites: {len(mask.gates)} of {len(mask.gates)}" in text
    assert f"UniForget mask: {MASK}, UniForget strength: 1.0" in text and f"UniForget hash: {mask.digest()}" in text


def test_strength_zero_and_off_are_the_original(server, plain, masked):
    assert server.draw(True, MASK, 0.0)[0] == [plain]
    assert server.draw(False, MASK)[0] == [plain]
    assert server.draw()[0] == [plain]
    assert server.draw(True, MASK)[0] == [masked[0]]


def test_by_name_and_from_infotext(server, plain, masked):
    [half], [text] = server.draw({"mask": MASK, "strength": 0.5, "blocks": "MID"})
    assert half not in (plain, masked[0])
    assert "UniForget strength: 0.5" in text and "UniForget blocks: MID" in text
    # fields of lists, which this Forge cannot read from infotext
    said = {"styles": [], "hr_additional_modules": []}
    assert server.draw(infotext=text, **said)[0] == [half]
    assert server.draw(infotext=masked[1], **said)[0] == [masked[0]]


def test_comparison(server, plain, masked):
    pictures, texts = server.draw(True, MASK, 1.0, 1.0, 1.0, 1.0, "", True)
    assert pictures == [masked[0], plain]
    assert "UniForget compare: True" in texts[0] and f"UniForget original of: {MASK}" in texts[1]
    both, _ = server.draw({"mask": MASK, "compare": True}, n_iter=2)
    assert len(both) == 4 and both[0] == masked[0] and both[2] == plain


def test_what_cannot_be_masked_fails(server, data, mask, plain):
    odd = GateMask({**mask.gates, "middle_block.9.ff": torch.zeros(4)}, {**mask.kinds, "middle_block.9.ff": "ffn"}, mask.info)
    save(odd, data / "models" / "UniForget" / "odd.safetensors")
    for values, error, words in [
        ((True, "none.safetensors"), "MaskFileMissingError", "There is no mask"),
        ((True, MASK, 3.0), "SettingError", "from 0 to 1"),
        ((True, "odd.safetensors"), "MismatchError", "1 of the mask's"),
    ]:
        with pytest.raises(Refused) as caught:
            server.draw(*values)
        assert caught.value.args[0] == error and words in caught.value.args[1]
    assert server.draw()[0] == [plain]


def test_hires_fix_and_img2img(server, plain):
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7, "hr_additional_modules": []}
    (with_mask,), (text,) = server.draw(True, MASK, **hires)
    assert "42 of 42" in text and server.draw(**hires)[0] != [with_mask]
    picture = base64.b64encode(_png(plain)).decode()
    image = {"init_images": [picture], "denoising_strength": 0.7}
    assert server.draw(True, MASK, **image)[0] != server.draw(**image)[0] == server.draw(True, MASK, 0.0, **image)[0]


def test_a_lora_before_it_is_masked(server, data, mask, plain):
    """A LoRA that acts only on neurons that the mask switches off changes nothing under the mask."""
    name = "middle_block.1.transformer_blocks.0.ff.net.2"
    gates = mask.gates[name]
    down = torch.randn(4, len(gates), generator=torch.Generator().manual_seed(0)) * (gates == 0)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"
    lora = {
        f"{key}.lora_up.weight": torch.ones(640, 4),
        f"{key}.lora_down.weight": down.contiguous(),
        f"{key}.alpha": torch.tensor(4.0),
    }
    (data / "models" / "Lora").mkdir(exist_ok=True)
    save_file(lora, data / "models" / "Lora" / "style.safetensors")
    [with_lora], _ = server.draw(prompt="a cat <lora:style:1>")
    [both], _ = server.draw(True, MASK, prompt="a cat <lora:style:1>")
    assert with_lora != plain
    assert both == server.draw(True, MASK)[0][0] != with_lora


def test_a_refiner_is_masked_too(server, data, plain, masked):
    """The same checkpoint under another name: with both masked, or none, the switch changes nothing."""
    folder = data / "models" / "Stable-diffusion"
    (folder / "refiner.safetensors").symlink_to(folder / "tiny.safetensors")
    server.call("refresh-checkpoints", {})
    refiner = {"refiner_checkpoint": "refiner.safetensors", "refiner_switch_at": 0.5}
    pictures, [text] = server.draw(**refiner)
    assert pictures == [plain] and "Refiner switch at: 0.5" in text
    pictures, [text] = server.draw(True, MASK, **refiner)
    assert pictures == [masked[0]] and "Refiner switch at: 0.5" in text and "42 of 42" in text
    assert server.draw()[0] == [plain]


def test_axes_of_the_plot(server, plain, masked):
    axes = next(s for s in server.call("script-info") if s["name"] == "x/y/z plot" and not s["is_img2img"])["args"][0]["choices"]
    nothing = [axes.index("Nothing"), "", []]
    values = [axes.index("UniForget mask"), "", ["None", MASK], axes.index("UniForget strength"), "0.0, 1.0", [], *nothing]
    plot = {"script_name": "x/y/z plot", "script_args": [*values, False, True, False, False, False, False, False, 0, False]}
    pictures, _ = server.draw(**plot)
    assert pictures[1:] == [plain, plain, plain, masked[0]]


def test_the_api_lists_the_script_with_its_controls(server, mask):
    info = [s for s in server.call("script-info") if s["name"] == "uniforget"]
    assert {s["is_img2img"] for s in info} == {False, True} and all(s["is_alwayson"] for s in info)
    assert len(info[0]["args"]) == 8


def _png(pixels):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.frombytes("RGB", (64, 64), pixels).save(out, "PNG")
    return out.getvalue()
