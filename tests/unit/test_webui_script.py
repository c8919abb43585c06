"""The script in doubles of Automatic1111 and Forge: one generation after another."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from tests.unit import webui_host
from tests.unit.webui_host import INPUT, PACKAGE, ROOT, SCRIPT, Host, Processing, execute, half, unet
from uniforget import GateMask, MaskInfo, config, save
from uniforget.hosts.webui.request import LABELS
from uniforget.mask.edit import merge

ON = (True, "half.safetensors")


@pytest.fixture(params=[False, True], ids=["a1111", "forge"])
def host(request, monkeypatch, tmp_path):
    made = Host(monkeypatch, tmp_path, request.param)
    save(half(made.network()), made.folder / "half.safetensors")
    yield made
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def picture(network, mask=None, strength=1.0, per_kind=None):
    weights = dict(network.named_parameters())
    weights = weights if mask is None else merge(weights, mask, strength, per_kind)
    return torch.func.functional_call(network, weights, INPUT).sum().item() + 7


def untouched(host):
    hooks = [m for m in host.network().modules() if m._forward_hooks or m._forward_pre_hooks]
    return not hooks and not (host.forge and host.shared.sd_model.original.unet.lora_patches)


def test_a_mask_lands_and_is_gone_afterwards(host):
    network, mask = host.network(), half(host.network())
    plain, masked = picture(network), picture(network, mask)
    assert plain != pytest.approx(masked, abs=0.01)
    processed = host.draw(*ON)
    assert processed.images == pytest.approx([masked], abs=1e-3)
    assert untouched(host) and not host.reports
    assert processed.infotexts[0] == {
        **{"UniForget mask": "half.safetensors", "UniForget strength": 1.0, "UniForget ffn": 1.0, "UniForget norm": 1.0},
        **{"UniForget attn": 1.0, "UniForget blocks": "all", "UniForget compare": False},
        **{"UniForget hash": mask.digest(), "UniForget sites": "12 of 12"},
    }
    processed = host.draw(False, "half.safetensors")
    assert processed.images == [plain] and processed.infotexts == [{}]


def test_strength_kinds_and_blocks(host):
    network, mask = host.network(), half(host.network())
    plain = picture(network)
    assert host.draw(*ON, 0.0).images == [plain]  # bit for bit
    assert host.draw(*ON, 1.0, 0.0, 0.0, 0.0).images == [plain]
    assert host.draw(*ON, 0.5, 1.0, 0.5, 0.0).images == pytest.approx(
        [picture(network, mask, 0.5, {"norm": 0.5, "attn": 0.0})], abs=1e-3
    )
    only = GateMask({n: g if n.startswith("input") else torch.ones_like(g) for n, g in mask.gates.items()}, mask.kinds, mask.info)
    assert host.draw(*ON, 1.0, 1.0, 1.0, 1.0, "IN").images == pytest.approx([picture(network, only)], abs=1e-3)
    assert host.draw({"mask": "half.safetensors", "blocks": "IN"}).images == pytest.approx([picture(network, only)], abs=1e-3)


@pytest.mark.parametrize(
    "values, error, words",
    [
        ((True, "None"), "MaskFileMissingError", "no mask is chosen"),
        ((True, "nope.safetensors"), "MaskFileMissingError", "There is no mask 'nope.safetensors'"),
        ((True, "../half.safetensors"), "SettingError", "inside"),
        ((*ON, 1.5), "SettingError", "'strength': expected a number from 0 to 1; found 1.5"),
        ((*ON, 1.0, 1.0, 1.0, 1.0, "IN77"), "SettingError", "there is no IN 77"),
        (({"mask": "half.safetensors", "power": 1},), "SettingError", "unknown setting 'power'"),
        (("yes",), "SettingError", "'enabled'"),
        ((*ON, *[None] * 7), "SettingError", "expected up to 8 values"),
        ((True, "wide.safetensors"), "MismatchError", "another size or kind"),
        ((True, "flux.safetensors"), "MismatchError", "'flux'"),
        ((True, "broken.safetensors"), "NotAMaskError", "broken.safetensors"),
    ],
)
def test_what_cannot_be_masked_fails_and_is_not_drawn_unmasked(host, values, error, words):
    mask = half(host.network())
    save(half(unet(width=32)), host.folder / "wide.safetensors")
    save(GateMask(mask.gates, mask.kinds, MaskInfo("flux", "")), host.folder / "flux.safetensors")
    (host.folder / "broken.safetensors").write_bytes(b"no mask at all")
    with pytest.raises(Exception, match=words) as caught:
        host.draw(*values)
    assert type(caught.value).__name__ == error
    assert untouched(host)
    assert host.draw(False).images == [picture(host.network())]


def test_an_interrupted_or_failed_sampling_leaves_nothing(host):
    host.fail_in_sampling = True
    with pytest.raises(RuntimeError, match="out of memory"):
        host.draw(*ON)
    assert untouched(host)
    host.fail_in_sampling = False
    assert host.draw().images == [picture(host.network())]


def test_comparison_puts_the_original_of_the_same_seed_into_the_gallery(host):
    network = host.network()
    processed = host.draw(*ON, 1.0, 1.0, 1.0, 1.0, "", True)
    assert processed.images == pytest.approx([picture(network, half(network)), picture(network)], abs=1e-3)
    first, second = processed.infotexts
    assert first["UniForget compare"] is True
    assert second == {"UniForget original of": "half.safetensors"}
    assert processed.all_seeds == [7, 7] and processed.all_prompts == ["a cat, photo"] * 2  # styles are not applied twice
    assert host.p.extra_generation_params == first and untouched(host)


def test_no_comparison_after_an_interrupt(host):
    host.shared.state.interrupted = True
    assert len(host.draw(*ON, 1.0, 1.0, 1.0, 1.0, "", True).images) == 1


def test_a_comparison_that_fails_is_told(host):
    def fail(p):
        raise RuntimeError("no memory")

    host.processing.process_images = fail
    processed = host.draw(*ON, 1.0, 1.0, 1.0, 1.0, "", True)
    assert len(processed.images) == 1 and "could not be made for comparison (no memory)" in processed.comments


def test_a_second_model_is_masked_too_where_the_mask_fits(host):
    other = host.model(unet(seed=9))
    first = host.shared.sd_model
    processed = host.draw(*ON, switch_to=other)
    assert processed.images == pytest.approx([picture(host.network(), half(unet()))], abs=1e-3)
    assert host.shared.sd_model is other and untouched(host) and not host.p.comments
    if host.forge:
        assert webui_host.sampling_prepare.prepared == [other.forge_objects.unet]
    host.shared.sd_model = first
    assert untouched(host)


def test_a_second_model_of_another_kind_is_told_of(host, monkeypatch):
    small = half(host.network())
    gone = {n: g for n, g in small.gates.items()} | {"output_blocks.9.1.transformer_blocks.0.ff.net.2": torch.zeros(64)}
    save(
        GateMask(gone, small.kinds | {"output_blocks.9.1.transformer_blocks.0.ff.net.2": "ffn"}, small.info),
        host.folder / "odd.safetensors",
    )
    with pytest.raises(Exception, match="do not exist in this model"):
        host.draw(True, "odd.safetensors")
    # the first model takes the mask, and the second has a site less
    lesser = unet(seed=4)
    del lesser.input_blocks[1][1].transformer_blocks[0].norm3
    lesser.input_blocks[1][1].transformer_blocks[0].norm3 = torch.nn.Identity()
    processed = host.draw(*ON, switch_to=host.model(lesser))
    [comment] = host.p.comments
    assert "second model of this picture is not masked" in comment and "norm3" in comment
    assert processed.images == pytest.approx([picture(lesser)], abs=1e-3)


def test_models_are_not_kept_alive(host):
    host.draw(*ON)
    gone = weakref.ref(host.shared.sd_model)
    host.shared.sd_model = None
    gc.collect()
    assert gone() is None


def test_a_mask_of_another_base_model_is_told_of(host):
    mask = half(host.network(), base="AAAA")
    save(mask, host.folder / "other.safetensors")
    host.draw(True, "other.safetensors")
    [comment] = host.p.comments
    assert "learned on another model (a tiny one)" in comment


@pytest.mark.parametrize("host", [False], indirect=True, ids=["a1111"])  # Forge has none
def test_an_optimized_engine_is_refused(host):
    host.sd_unet.current_unet = object()
    with pytest.raises(Exception, match="SD Unet to None"):
        host.draw(*ON)


# --- controls, settings, plot


def test_controls_come_from_the_settings_table_and_paste_both_ways(host):
    for is_img2img in (False, True):
        controls = host.script.ui(is_img2img)
        assert [c.value for c in controls] == [p.default for p in config.WEBUI.values()]
        assert controls[1].choices == ["None", "half.safetensors"]
        assert [c.more["tooltip"] for c in controls[1:]] == [p.tooltip for p in list(config.WEBUI.values())[1:]]
        assert (controls[2].more["minimum"], controls[2].more["maximum"]) == (0.0, 1.0)
    values = (True, "half.safetensors", 0.25, 0.5, 0.75, 0.0, "IN, not OUT", True)
    written = {key: str(value) for key, value in host.draw(*values).infotexts[0].items()}  # infotext is text
    assert tuple(read(written) for _, read in host.script.infotext_fields) == values
    assert [read({}) for _, read in host.script.infotext_fields] == [False, *[None] * 7]
    assert set(host.script.paste_field_names) == set(LABELS.values()) <= set(written)
    [tell] = controls[1].changes
    assert "family sd1" in tell("half.safetensors")["value"] and "blocks: IN1, OUT1" in tell("half.safetensors")["value"]
    assert tell("None") == {"value": "", "visible": False}
    assert "There is no mask" in tell("gone.safetensors")["value"]


def test_infotext_of_strangers_breaks_nothing(host):
    host.script.ui(False)
    odd = {label: "nonsense" for label in LABELS.values()} | {"UniForget strength": "inf", "UniForget ffn": "7"}
    assert [read(odd) for _, read in host.script.infotext_fields] == [True, "nonsense", None, None, None, None, "nonsense", None]


SCRIPT_TAG = '<img src=x onerror="alert(1)">'


def inert(text):
    """Whether no page can make markup of a text, and no console a command."""
    return not set(text) & set("<>&\x1b") and "alert(1)" in text


def test_what_strangers_masks_say_is_inert_in_the_page(host, monkeypatch):
    texts = dict.fromkeys(("base_name", "method", "preset", "version"), SCRIPT_TAG)
    mask = half(host.network(), base="AAAA " + SCRIPT_TAG)
    info = MaskInfo("sd1", mask.info.base, extra={"combined_a": SCRIPT_TAG}, **texts)
    save(GateMask(mask.gates, mask.kinds, info), host.folder / "evil.safetensors")
    save(GateMask(mask.gates, mask.kinds, MaskInfo(SCRIPT_TAG, "")), host.folder / "family.safetensors")
    controls = host.script.ui(False)
    [tell] = controls[1].changes
    for name in ("evil", "family"):
        assert inert(tell(f"{name}.safetensors")["value"]), name
    monkeypatch.setattr(sys.modules[f"{PACKAGE}.mask.info"], "same_base", lambda *bases: False)
    processed = host.draw(True, "evil.safetensors")
    [comment] = host.p.comments
    assert inert(comment) and "learned on another model" in comment
    assert not [v for text in processed.infotexts for v in map(str, text.values()) if "<" in v]
    with pytest.raises(Exception, match="alert") as caught:
        host.draw(True, "family.safetensors")
    assert inert(str(caught.value)) and type(caught.value).__name__ in ("MismatchError", "FamilyError")


@pytest.mark.parametrize(
    "name", [f"{SCRIPT_TAG}.safetensors", "a\nb.safetensors", "a\x1b[2Jb.safetensors", "a\u202eb.safetensors"]
)
def test_names_that_could_be_markup_are_not_offered_and_not_taken(host, name):
    save(half(host.network()), host.folder / name)
    assert host.script.ui(False)[1].choices == ["None", "half.safetensors"]
    with pytest.raises(Exception, match="Rename the file") as caught:
        host.draw(True, name)
    assert not set(str(caught.value)) & set("<\n\x1b\u202e")
    # nor from a stranger's infotext, into the controls
    readers = dict(zip(config.WEBUI, (read for _, read in host.script.infotext_fields), strict=True))
    assert readers["mask"]({"UniForget mask": name}) is None
    assert readers["blocks"]({"UniForget mask": "x", "UniForget blocks": name}) is None


def test_what_nobody_foresaw_is_said_in_safe_words(host, monkeypatch, caplog):
    def broken(*args):
        raise KeyError(SCRIPT_TAG)

    monkeypatch.setattr(sys.modules[f"{PACKAGE}.hosts.webui.folder"].files, "load", broken)
    with pytest.raises(Exception, match="please report it") as caught:
        host.draw(True, "half.safetensors")
    assert inert(str(caught.value)) and "Traceback" in caplog.text
    assert untouched(host)


def test_mask_and_strength_are_axes_of_the_plot(host):
    assert len(host.plot.axis_options) == 3  # as soon as scripts are loaded
    for callback in host.callbacks["on_before_ui"]:
        callback()
    nothing, masks, strengths = host.plot.axis_options
    assert masks.choices() == ["None", "half.safetensors"] and (masks.type, strengths.type) == (str, float)
    network = host.network()
    expected = {1.0: picture(network, half(network)), 0.25: picture(network, half(network), 0.25), 0.0: picture(network)}
    for value, wanted in expected.items():
        p = Processing(host, (False, "half.safetensors"))
        strengths.apply(p, value, list(expected))
        assert host.process_images(p).images == pytest.approx([wanted], abs=1e-3)
    p = Processing(host, (True, "half.safetensors", 1.0, 1.0, 1.0, 1.0, "", True))
    masks.apply(p, "None", [])
    strengths.apply(p, 0.5, [])
    assert host.process_images(p).images == [picture(network)]
    with pytest.raises(Exception, match="There is no mask"):
        masks.confirm(None, ["None", "gone.safetensors"])
    with pytest.raises(Exception, match="found 2"):
        strengths.confirm(None, [0.5, 2.0])
    [unload] = host.callbacks["on_script_unloaded"]
    unload()
    assert host.plot.axis_options == [nothing]


def test_the_folder_is_a_setting(host, tmp_path):
    [add] = host.callbacks["on_ui_settings"]
    add()
    assert host.options["uniforget_folder"].default == "" and host.options["uniforget_folder"].section[0] == "uniforget"
    save(half(host.network()), tmp_path / "elsewhere.safetensors")
    host.shared.opts.uniforget_folder = str(tmp_path)
    assert "elsewhere.safetensors" in host.script.ui(False)[1].choices
    host.draw(True, "elsewhere.safetensors")


# --- what is imported where


def test_the_extension_does_not_stay_on_the_path_and_shadows_nothing(host):
    assert str(ROOT) in sys.path
    for callback in host.callbacks["on_before_ui"]:
        callback()
    assert str(ROOT) not in sys.path
    ours = sorted(name for name in sys.modules if name.split(".")[0] == PACKAGE)
    assert f"{PACKAGE}.hosts.webui.script" in ours
    assert not [name for name in ours if name.startswith((f"{PACKAGE}.hosts.comfy", f"{PACKAGE}.hosts.diffusers"))]


def test_reloading_scripts_loads_anew(host):
    before = type(host.script)
    host.callbacks.clear()
    assert type(host.load()) is not before
    assert len(host.callbacks["on_cfg_denoiser"]) == 1


def test_each_entry_point_does_nothing_in_another_host(tmp_path):
    code = (
        "import importlib.util, sys\n"
        "before = set(sys.modules)\n"
        "for path in sys.argv[1:]:\n"
        "    spec = importlib.util.spec_from_file_location('entry', path)\n"
        "    module = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "    assert not [n for n in vars(module) if n.startswith(('UniForget', 'WEB', 'comfy_'))], vars(module).keys()\n"
        "assert not [n for n in set(sys.modules) - before if 'uniforget' in n or n in ('torch', 'gradio', 'nodes')]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(SCRIPT), str(ROOT / "__init__.py")], check=True, cwd=tmp_path)


def test_only_one_file_is_in_scripts():
    # the host executes every one
    assert [path.name for path in (ROOT / "scripts").iterdir() if path.suffix == ".py"] == [SCRIPT.name]
    assert not hasattr(execute(SCRIPT), "UniForgetScript")
