"""Clean LoRA: channels by hand, every naming, only what is meant changes, and what cannot be cleaned is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.unit.test_cli import here
from tests.unit.tiny import tiny_transformer
from uniforget.checkpoint import safefile
from uniforget.checkpoint.channels import alignment, channels, principal
from uniforget.checkpoint.cleanlora import NOTE, choose, clean, open_base
from uniforget.checkpoint.loralayers import matched, pairs, weight
from uniforget.errors import MismatchError, ModelFileError, SettingError
from uniforget.model.detect import canonical, detect
from uniforget.model.families.unet import SD1

FF, QUERY, KEY, VALUE = (f"transformer_blocks.0.{name}" for name in ("ff.net.2", "attn.to_q", "attn.to_k", "attn.to_v"))
MODULATION = "transformer_blocks.1.norm1_context.linear"


def comfy_names(state):
    """A diffusers transformer's weights as ComfyUI has them."""
    naming = detect({n: tuple(t.shape) for n, t in state.items()})[1]
    out = {}
    for name, pieces in canonical({n: tuple(t.shape) for n, t in state.items()}, naming)[1].items():
        parts = [state[f"{p.path}.weight"] for p in pieces]
        out[f"{name}.weight"] = torch.cat([torch.cat(x.chunk(2)[::-1]) if p.swapped else x for p, x in zip(pieces, parts)])
    return out


@pytest.fixture(scope="module")
def state():
    return {k: v.contiguous() for k, v in tiny_transformer().state_dict().items()}


@pytest.fixture
def bases(tmp_path, state):
    """The same model in diffusers' and in ComfyUI's naming."""
    save_file(state, tmp_path / "diffusers.safetensors")
    save_file({f"model.diffusion_model.{k}": v for k, v in comfy_names(state).items()}, tmp_path / "comfy.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in ("diffusers", "comfy")}


def factors(state, path, rank=4, seed=0):
    """``(up, down)`` of random directions."""
    generator = torch.Generator().manual_seed(seed)
    out, into = state[f"{path}.weight"].shape
    return torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)


def in_kohya(state, paths, **more):
    out = {}
    for i, path in enumerate(paths):
        up, down = factors(state, path, seed=i)
        key = f"lora_unet_{path.replace('.', '_')}"
        out |= {f"{key}.lora_up.weight": up.half(), f"{key}.lora_down.weight": down.half(), f"{key}.alpha": torch.tensor(2.0)}
    return out | more


def change(state, key, kohya=True):
    names = (".lora_up.weight", ".lora_down.weight") if kohya else (".lora_B.weight", ".lora_A.weight")
    up, down = (state[key + name].float() for name in names)
    return up @ down


def test_channels_of_a_change_written_by_hand():
    up = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    down = torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = channels(up, down)
    assert torch.allclose(found.size, torch.tensor([6.0, 5.0]))
    assert torch.allclose(found.written.abs(), torch.tensor([[1.0, 0], [0, 0], [0, 1]]), atol=1e-6)
    assert torch.allclose(found.read.abs(), torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 1]]), atol=1e-6)
    left = found.without(up, torch.tensor([0.0, 1.0])) @ down
    assert torch.allclose(left, torch.tensor([[0.0] * 4, [0.0] * 4, [0.0, 0, 0, 5]]), atol=1e-5)
    half = found.without(up, torch.tensor([0.5, 1.0])) @ down
    assert torch.allclose(half, torch.tensor([[0.0, 3, 0, 0], [0.0] * 4, [0.0, 0, 0, 5]]), atol=1e-5)


def test_factors_that_repeat_themselves_are_one_channel():
    """A LoRA of rank 3 need not have three channels; what is not there cannot be divided by."""
    up, down = torch.ones(5, 3), torch.ones(3, 4)
    found = channels(up, down)
    assert torch.allclose(found.size, torch.tensor([3 * 20**0.5, 0, 0]), atol=1e-4)
    assert torch.allclose(found.without(up, torch.tensor([0.0, 1, 1])) @ down, torch.zeros(5, 4), atol=1e-4)
    assert torch.allclose(found.without(up, torch.tensor([1.0, 0, 0])) @ down, up @ down, atol=1e-4)


def test_the_principal_subspace_is_that_of_a_whole_decomposition():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (96, 64))
    sizes = torch.cat([torch.linspace(10, 5, 8), torch.linspace(0.5, 0.1, 56)])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    written, read = principal(left[:, :64] @ torch.diag(sizes) @ right.T)
    assert written.shape == (96, 8) and read.shape == (64, 8) and torch.equal(before, torch.get_rng_state())
    for found, wanted in ((written, left[:, :8]), (read, right[:, :8])):
        assert torch.allclose(found @ found.T, wanted @ wanted.T, atol=1e-3)


def test_alignment_tells_what_the_weight_does_from_what_it_does_not():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(128, 128, generator=generator))[0] for _ in range(2))
    weight = left @ torch.diag(torch.logspace(1, -2, 128)) @ right.T
    along, across = 3 * left[:, 2:3] @ right[:, 3:4].T, 2 * left[:, 100:101] @ right[:, 90:91].T
    up, size, down = torch.linalg.svd(along + across)
    found = alignment(channels(up[:, :2] * size[:2], down[:2]), weight)
    assert found[0] == pytest.approx(8, rel=0.05)  # an eighth of either side is principal: all energy inside is 8 times chance
    assert found[1] < 0.5


def test_what_is_aligned_most_stays_until_it_has_its_share():
    aligned, sizes = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5])], [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])]
    keeps = lambda keep: torch.cat(choose(aligned, sizes, keep)).tolist()  # noqa: E731
    assert keeps(0.0) == [0, 0, 0, 0] and keeps(0.1) == [1, 0, 0, 0] and keeps(0.2) == [1, 0, 1, 0]
    assert keeps(0.3) == [1, 1, 1, 0] and keeps(1.0) == [1, 1, 1, 1]


@pytest.mark.parametrize("naming", ["diffusers", "comfy"])
@pytest.mark.parametrize("written", ["transformer.{}.lora_{}.weight", "lora_unet_{}", "base_model.model.{}.lora_{}.weight"])
def test_the_rows_of_the_weight_are_found_in_every_naming(tmp_path, state, bases, naming, written):
    """The same weight, whichever program named it: thirds of a fused Linear, and halves of rows that diffusers exchanges."""
    lora = {}
    for path in (FF, QUERY, KEY, VALUE, MODULATION):
        up, down = factors(state, path)
        if "_unet_" in written:
            key = written.format(path.replace(".", "_"))
            lora |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        else:
            lora |= {written.format(path, "B"): up, written.format(path, "A"): down}
    save_file(lora, tmp_path / "lora.safetensors")
    header = safefile.read_header(tmp_path / "lora.safetensors")
    found, text = pairs(header)
    base = open_base(bases[naming])
    rows = matched(header, found, base)
    assert len(found) == 5 and not text
    for path, pair in (
        (p, next(x for x in found if x.layer.replace(".", "_").endswith(p.replace(".", "_"))))
        for p in (FF, QUERY, KEY, VALUE, MODULATION)
    ):
        assert torch.equal(weight(base, rows[pair.layer]), state[f"{path}.weight"]), path


def test_fused_layers_of_comfyui_are_found_in_diffusers_pieces(tmp_path, state, bases):
    fused = torch.cat([state[f"{path}.weight"] for path in (QUERY, KEY, VALUE)])
    name = "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    lora = {f"{name}.lora_B.weight": torch.ones(len(fused), 2), f"{name}.lora_A.weight": torch.ones(2, fused.shape[1])}
    save_file(lora, tmp_path / "lora.safetensors")
    header = safefile.read_header(tmp_path / "lora.safetensors")
    base = open_base(bases["diffusers"])
    rows = matched(header, pairs(header)[0], base)
    assert torch.equal(weight(base, rows[name]), fused)


def test_kohyas_names_of_a_unet():
    """Blocks are counted otherwise there, and dots are underscores."""
    from uniforget.model.detect import translations

    found = [t.path for t in translations(SD1.diffusers, "up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_q")]
    assert found == ["output_blocks.5.1.transformer_blocks_0_attn1_to_q"]
    found = [t.path for t in translations(SD1.diffusers, "down_blocks_2_attentions_0_proj_in")]
    assert found == ["input_blocks.7.1.proj_in"]


@pytest.mark.parametrize("naming", ["diffusers", "comfy"])
def test_only_what_the_lora_writes_changes(tmp_path, state, bases, naming):
    lora = in_kohya(
        state,
        [FF, QUERY],
        **{"lora_te1_text_model.lora_up.weight": torch.ones(4, 2), "lora_te1_text_model.lora_down.weight": torch.ones(2, 4)},
    )
    source, target = tmp_path / "lora.safetensors", tmp_path / "new.safetensors"
    save_file(lora, source, {"ss_tag": "mine"})
    before = source.read_bytes()
    done = clean(source, bases[naming], target, keep=0.5)
    new = load_file(target)
    assert source.read_bytes() == before and new.keys() == lora.keys()
    changed = {name for name in lora if not torch.equal(new[name], lora[name])}
    assert changed and all(name.endswith("lora_up.weight") and "_unet_" in name for name in changed)
    assert all(new[name].dtype == lora[name].dtype and new[name].shape == lora[name].shape for name in lora)
    with safe_open(target, "pt") as file:
        meta = file.metadata()
    note = json.loads(meta[NOTE])
    assert meta["ss_tag"] == "mine" and (note["method"], note["keep"], note["strength"]) == ("spectral", 0.5, 1.0)
    assert (
        done.layers == 2 and done.text == 1 and done.channels == 8 and 0 < done.removed < 8 and "text encoders" in done.summary()
    )
    energy = {
        k: sum(float(change(s, f"lora_unet_{p.replace('.', '_')}").square().sum()) for p in (FF, QUERY))
        for k, s in (("old", lora), ("new", new))
    }
    assert energy["new"] / energy["old"] == pytest.approx(done.left, abs=0.01) and 0.5 <= done.left < 1


def test_what_the_model_does_not_know_goes_and_what_it_knows_stays(tmp_path, state, bases):
    """A change along the weight's largest direction beside one along its smallest, the latter larger."""
    u, _, v = torch.linalg.svd(state[f"{FF}.weight"], full_matrices=False)
    known, strange = torch.outer(u[:, 0], v[0]), torch.outer(u[:, -1], v[-1])
    up, down = torch.stack([u[:, 0], 2 * u[:, -1]], 1), torch.stack([v[0], v[-1]])
    mix = torch.tensor([[1.0, 2.0], [-1.0, 1.0]])  # factors say nothing of channels by themselves
    key = f"transformer.{FF}"
    lora = {f"{key}.lora_B.weight": (up @ mix).contiguous(), f"{key}.lora_A.weight": (torch.linalg.inv(mix) @ down).contiguous()}
    save_file(lora, tmp_path / "lora.safetensors")
    clean(tmp_path / "lora.safetensors", bases["comfy"], tmp_path / "new.safetensors", keep=0.1)
    assert torch.allclose(change(lora, key, False), known + 2 * strange, atol=1e-4)
    assert torch.allclose(change(load_file(tmp_path / "new.safetensors"), key, False), known, atol=1e-4)
    clean(tmp_path / "lora.safetensors", bases["comfy"], tmp_path / "half.safetensors", keep=0.1, strength=0.5)
    assert torch.allclose(change(load_file(tmp_path / "half.safetensors"), key, False), known + strange, atol=1e-4)


@pytest.mark.parametrize(("keep", "strength"), [(1.0, 1.0), (0.5, 0.0)])
def test_keeping_all_and_strength_0_leave_every_byte(tmp_path, state, bases, keep, strength):
    save_file(in_kohya(state, [FF]), tmp_path / "lora.safetensors")
    done = clean(tmp_path / "lora.safetensors", bases["comfy"], tmp_path / "new.safetensors", keep, strength)
    old, new = (load_file(tmp_path / f"{name}.safetensors") for name in ("lora", "new"))
    assert all(torch.equal(old[name], new[name]) for name in old) and "nothing was changed" in done.summary() and done.left == 1


OTHER = {
    "LoHa": "lora_unet_x.hada_w1_a",
    "LoKr": "lora_unet_x.lokr_w1",
    "DoRA": f"transformer.{FF}.lora_magnitude_vector",
    "whole weights": "diffusion_model.x.diff",
}


@pytest.mark.parametrize("kind", OTHER)
def test_kinds_that_could_not_stay_what_they_are_are_refused(tmp_path, state, bases, kind):
    save_file(in_kohya(state, [FF], **{OTHER[kind]: torch.ones(2, 2)}), tmp_path / "lora.safetensors")
    with pytest.raises(ModelFileError, match=f"this is {kind} .*Convert it to a LoRA first"):
        clean(tmp_path / "lora.safetensors", bases["comfy"], tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def wrong_files(state):
    whole = in_kohya(state, [FF])
    key = next(iter(whole)).partition(".")[0]
    yield {"a": torch.ones(2)}, ModelFileError, "expected a LoRA of a diffusion model"
    yield {k: v for k, v in whole.items() if "up" not in k}, ModelFileError, "alone; expected both factors"
    yield {**whole, f"{key}.lora_up.weight": torch.ones(128, 3)}, ModelFileError, r"expected factors \(r, in\) and \(out, r\)"
    yield (
        {**whole, f"{key}.lora_up.weight": torch.ones(64, 4)},
        MismatchError,
        "1 of the 1 layers that this LoRA changes are not in",
    )
    yield {k.replace("_0_", "_7_"): v for k, v in whole.items()}, MismatchError, "Give the model that the LoRA was made for"
    yield {**whole, f"{key}.lora_up.weight": torch.full((128, 4), torch.nan)}, ModelFileError, "not finite"
    yield {**whole, f"{key}.alpha": torch.tensor(torch.inf)}, ModelFileError, "too large"
    yield {**whole, f"{key}.lora_up.weight": torch.full((128, 4), 3e38)}, ModelFileError, "too large"


@pytest.mark.parametrize("which", range(8))
def test_wrong_files_get_clear_errors(tmp_path, state, bases, which):
    lora, error, says = list(wrong_files(state))[which]
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(error, match=says):
        clean(tmp_path / "lora.safetensors", bases["comfy"], tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_outputs_follow_the_one_rule(tmp_path, state, bases):
    source, target = tmp_path / "lora.safetensors", tmp_path / "new.safetensors"
    save_file(in_kohya(state, [FF]), source)
    for path, says in ((source, "itself, which is read"), (bases["comfy"], "itself, which is read")):
        with pytest.raises(SettingError, match=says):
            clean(source, bases["comfy"], path, overwrite=True)
    clean(source, bases["comfy"], target)
    with pytest.raises(SettingError, match="exists already"):
        clean(source, bases["comfy"], target)
    clean(source, bases["comfy"], target, overwrite=True)
    again = clean(target, bases["comfy"], tmp_path / "again.safetensors")
    assert "was cleaned before" in again.summary()
    with pytest.raises(SettingError, match="'keep': expected a number from 0 to 1"):
        clean(source, bases["comfy"], tmp_path / "other.safetensors", keep=2)


def test_the_command(tmp_path, state, bases):
    save_file(in_kohya(state, [FF, QUERY]), tmp_path / "lora.safetensors")
    done = here(
        "lora",
        str(tmp_path / "lora.safetensors"),
        str(bases["diffusers"]),
        "-o",
        str(tmp_path / "new.safetensors"),
        "--keep",
        "0.4",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["layers"] == 2 and found["removed"] > 0 and (tmp_path / "new.safetensors").exists()
    wrong = here("lora", str(tmp_path / "none.safetensors"), str(bases["comfy"]), "-o", str(tmp_path / "x.safetensors"))
    assert wrong.returncode == 1 and "there is no such file" in wrong.stderr
