"""Sanitized checkpoints: exactly what is meant changes, everything else stays byte for byte, and it can be proved."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.unit.test_cli import ROOT, folder, here
from tests.unit.tiny import TinyModel, random_mask, tiny_transformer
from uniforget.checkpoint import safefile
from uniforget.checkpoint.fileplan import Use
from uniforget.checkpoint.sanitize import marked, sanitize
from uniforget.checkpoint.verify import verify
from uniforget.errors import FamilyError, MismatchError, ModelFileError, SettingError
from uniforget.hosts.diffusers.apply import find_modules, layers_of, project_
from uniforget.mask import files
from uniforget.mask.edit import merge
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask

__all__ = ["folder"]
PREFIX = "model.diffusion_model."
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
FFN = "transformer_blocks.0.ff.net.2"


def checkpoint(path, dtype=torch.float16, ema=True):
    """A full checkpoint as ComfyUI has them (within it the denoiser in diffusers' naming): denoiser, its moving average, a VAE and a text encoder, and metadata."""
    inner = {k: v.to(dtype) for k, v in tiny_transformer().state_dict().items()}
    state = {
        "first_stage_model.encoder.conv_in.weight": torch.randn(4, 3, 3, 3),
        "cond_stage_model.logit_scale": torch.tensor(2.0),
    }
    state |= {PREFIX + k: v for k, v in inner.items()}
    if ema:
        state |= {"model_ema." + f"diffusion_model.{k}".replace(".", ""): (v.float() / 2).to(dtype) for k, v in inner.items()}
        state["model_ema.decay"] = torch.tensor(0.5)
    state["alphas"] = torch.arange(5)
    state["empty"] = torch.zeros(0, 4)
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"made": "for tests"})
    return state


@pytest.fixture
def mask():
    return random_mask(TinyModel(("ffn", "norm", "attn")))


def subspace():
    """Random directions for every layer, a third of them kept."""
    family, layers = layers_of(tiny_transformer())
    generator = torch.Generator().manual_seed(2)
    bases = {}
    for layer in layers:
        vectors = torch.linalg.qr(torch.randn(layer.width, layer.width, generator=generator))[0]
        energy = torch.zeros(layer.width)
        energy[: layer.width // 3] = 3 / layer.width
        bases[layer.name] = Basis(vectors.contiguous(), energy)
    info = MaskInfo(family=family, base="", method="subspace")
    return SubspaceMask(bases, {n: n for n in bases}, {x.name: x.kind for x in layers}, 1e-6, info)


def raw(path):
    header = safefile.read_header(path)
    data = path.read_bytes()
    return {name: data[e.start : e.end] for name, e in header.entries.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_what_the_mask_acts_on_changes_and_nothing_else(tmp_path, mask, dtype, strength):
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    state = checkpoint(source, dtype)
    done = sanitize(source, target, [Use(mask, strength)])
    found, before, after = load_file(target), raw(source), raw(target)
    exact = merge({k: v.float() for k, v in state.items()}, mask, strength, prefix=PREFIX)
    changed = {k for k, v in exact.items() if k.startswith(PREFIX) and not torch.equal(v, state[k].float())}
    averages = {"model_ema." + k.removeprefix("model.").replace(".", "") for k in changed}
    assert {k for k in before if before[k] != after[k]} == changed | averages and changed
    for name in changed:
        # Once to float32, once back: exactly what is expected, also where 0.8 has no exact half-precision number.
        assert torch.equal(found[name].view(torch.uint8), exact[name].to(dtype).view(torch.uint8)), name
    for name in averages & found.keys():
        assert (found[name] == 0).float().mean() > 0.1 or strength < 1
    assert done.kept == len(before) - done.changed and done.changed >= len(changed | averages)


def test_order_dtypes_and_metadata_stay(tmp_path, mask):
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    checkpoint(source)
    sanitize(source, target, [Use(mask)])
    with safe_open(source, "pt") as a, safe_open(target, "pt") as b:
        assert list(a.keys()) == list(b.keys()) and b.metadata()["made"] == "for tests"
        note = json.loads(b.metadata()["uniforget_applied"])[0]
    assert note["applied"][0]["mask"] == mask.digest() and note["source"] == "model.safetensors"
    old, new = safefile.read_header(source), safefile.read_header(target)
    shift = new.begin - old.begin
    assert [(e.name, e.dtype, e.start + shift, e.end + shift) for e in old.entries.values()] == [
        (e.name, e.dtype, e.start, e.end) for e in new.entries.values()
    ]
    a, b = raw(source), raw(target)
    changed = {name for name in a if a[name] != b[name]}
    assert marked(new, note) == marked(old, note) >= changed
    assert note["after"] == safefile.digest(new, marked(new, note)) != note["before"] == safefile.digest(old, marked(old, note))
    assert new.begin % 8 == 0


def test_small_pieces_give_the_same_file(tmp_path, mask, monkeypatch):
    source = tmp_path / "model.safetensors"
    checkpoint(source)
    uses = [Use(mask, 0.8, {"norm": 0.5}), Use(subspace(), 0.7)]
    sanitize(source, tmp_path / "one.safetensors", uses[:1])
    sanitize(source, tmp_path / "two.safetensors", uses)
    monkeypatch.setattr(safefile, "CHUNK", 3000)
    sanitize(source, tmp_path / "small.safetensors", uses[:1])
    assert (tmp_path / "small.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    sanitize(source, tmp_path / "pieces.safetensors", uses)
    a, b = load_file(tmp_path / "two.safetensors"), load_file(tmp_path / "pieces.safetensors")
    for name in a:
        torch.testing.assert_close(a[name].float(), b[name].float(), atol=1e-3, rtol=2e-3)


def test_a_subspace_projects_like_diffusers(tmp_path):
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    model = tiny_transformer()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, source)
    sanitize(source, target, [Use(subspace(), 0.6, {"ffn": 0.5})])
    project_(model, subspace(), 0.6, {"ffn": 0.5})
    found = load_file(target)
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


def test_strength_zero_changes_nothing(tmp_path, mask):
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    checkpoint(source)
    assert sanitize(source, target, [Use(mask, 0.0)]).changed == 0
    assert raw(source) == raw(target)


def test_a_diffusers_folder_keeps_its_other_parts(tmp_path, folder):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    sharded = tmp_path / "sharded"
    import shutil

    shutil.copytree(folder, sharded)
    shutil.rmtree(sharded / "unet")
    unet.save_pretrained(sharded / "unet", max_shard_size="300KB")
    _, sites, _ = find_modules(unet)
    generator = torch.Generator().manual_seed(0)
    gates = {s.name: (torch.rand(s.units, generator=generator) > 0.4).float() for s in sites}
    mask = GateMask(gates, {s.name: s.kind for s in sites}, MaskInfo(family="sd1", base=""))
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 2
    done = sanitize(sharded, tmp_path / "out", [Use(mask)])
    assert done.changed and not list(tmp_path.glob(".*.tmp"))
    wanted = merge(unet.state_dict(), mask)
    found = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").state_dict()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    for path in sharded.rglob("*"):
        copy = tmp_path / "out" / path.relative_to(sharded)
        if path.is_file() and not (path.parent.name == "unet" and path.suffix == ".safetensors"):
            assert copy.read_bytes() == path.read_bytes()
    assert all(c.ok for c in verify(tmp_path / "out", sharded).checks if not c.name.endswith("zeros"))
    assert len([c for c in verify(tmp_path / "out").checks if c.name.endswith("weights")]) == len(
        list((sharded / "unet").glob("*.safetensors"))
    )
    with pytest.raises(ModelFileError, match="as in"):
        verify(tmp_path / "out", folder)
    single = sanitize(folder, tmp_path / "single", [Use(mask)])
    assert single.changed == done.changed
    with pytest.raises(SettingError, match="exists already"):
        sanitize(sharded, tmp_path / "out", [Use(mask)])
    assert sanitize(sharded, tmp_path / "out", [Use(mask)], overwrite=True).changed == done.changed


def test_verify_proves_it_from_the_file_and_from_the_source(tmp_path, mask):
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    checkpoint(source)
    sanitize(source, target, [Use(mask)])
    alone = verify(target)
    assert alone.ok and {c.name: c.ok for c in alone.checks} == {
        "weights": True, f"mask {mask.digest()}": True, "zeros": True, "source": None,
    }  # fmt: skip
    assert alone.applied[0]["strength"] == 1 and "gates" not in alone.applied[0]
    whole = verify(target, source)
    assert whole.ok and all(c.ok for c in whole.checks)
    other = tmp_path / "other.safetensors"
    state = load_file(source)
    state["alphas"] += 1
    save_file(state, other, {"made": "for tests"})
    assert [c.name for c in verify(target, other).checks if c.ok is False] == ["changes"]
    state[f"{PREFIX}{FFN}.weight"] += 1
    save_file(state, other, {"made": "for tests"})
    assert [c.name for c in verify(target, other).checks if c.ok is False] == ["source", "changes"]


@pytest.mark.parametrize("what", ["restored", "touched"])
def test_verify_finds_what_was_changed_since(tmp_path, mask, what):
    """Someone puts a memorized weight back, or changes another tensor, and leaves the note."""
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    state = checkpoint(source)
    sanitize(source, target, [Use(mask)])
    with safe_open(target, "pt") as file:
        note, found = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    name = f"{PREFIX}{FFN}.weight" if what == "restored" else "alphas"
    found[name] = state[name] + (what == "touched")
    save_file(found, target, note)
    wrong = {c.name for c in verify(target, source).checks if c.ok is False}
    assert wrong == {"changes"} | ({"zeros", "weights"} if what == "restored" else set())
    told = here("verify", str(target), "--source", str(source), "--json")
    assert told.returncode == 1 and json.loads(told.stdout)["verified"] is False


def test_verify_with_a_subspace(tmp_path, mask):
    source, target, file = (tmp_path / f"{n}.safetensors" for n in ("model", "out", "sub"))
    checkpoint(source)
    files.save(subspace().trimmed(1e-6, 0.03), file)
    learned = files.load(file)
    sanitize(source, target, [Use(mask), Use(learned, 0.5)])
    without = verify(target, source)
    assert without.ok is None and {c.name for c in without.checks if c.ok is None} == {f"subspace {learned.digest()}", "changes"}
    whole = verify(target, source, [learned])
    assert whole.ok and all(c.ok for c in whole.checks if c.name != "zeros")
    again = tmp_path / "again.safetensors"
    sanitize(target, again, [Use(mask, 0.3)])
    assert [e["strength"] for e in verify(again, target).applied] == [1, 0.5, 0.3]


def test_errors_name_the_file_and_what_to_do(tmp_path, mask):
    source = tmp_path / "model.safetensors"
    checkpoint(source)
    out = tmp_path / "out.safetensors"
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 50)
    (tmp_path / "m.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 50)
    (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:-10])
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "odd.safetensors")
    for name, words in (
        ("nowhere.safetensors", "no such file"),
        ("m.gguf", "GGUF model, whose packed weights"),
        ("m.ckpt", "pickle"),
        ("cut.safetensors", "copy it again"),
    ):
        with pytest.raises(ModelFileError, match=words) as error:
            sanitize(tmp_path / name, out, [Use(mask)])
        assert name in str(error.value)
    with pytest.raises(FamilyError, match=r"odd\.safetensors"):
        sanitize(tmp_path / "odd.safetensors", out, [Use(mask)])
    with pytest.raises(MismatchError):
        sanitize(source, out, [Use(random_mask(TinyModel()).__class__({"x.y": torch.ones(3)}, {"x.y": "ffn"}, mask.info))])
    with pytest.raises(SettingError, match="itself, which is read"):
        sanitize(source, source, [Use(mask)], overwrite=True)
    with pytest.raises(SettingError, match=r"ends in \.safetensors"):
        sanitize(source, tmp_path / "out.ckpt", [Use(mask)])
    with pytest.raises(ModelFileError, match="left no note"):
        verify(source)
    with pytest.raises(SettingError, match="folder does not exist"):
        sanitize(source, tmp_path / "no" / "out.safetensors", [Use(mask)])
    (tmp_path / "d" / "unet").mkdir(parents=True)
    (tmp_path / "d" / "unet" / "w.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"w\.bin, a pickle"):
        sanitize(tmp_path / "d", tmp_path / "e", [Use(mask)])
    assert not out.exists() and not list(tmp_path.glob(".*.tmp"))


def test_packed_weights_are_refused(tmp_path, mask):
    source = tmp_path / "model.safetensors"
    state = checkpoint(source)
    state[f"{PREFIX}{FFN}.weight"] = state[f"{PREFIX}{FFN}.weight"].to(torch.int8)
    save_file({k: v.contiguous() for k, v in state.items()}, source)
    with pytest.raises(ModelFileError, match=r"packed \(I8\)"):
        sanitize(source, tmp_path / "out.safetensors", [Use(mask)])


def test_a_full_disk_leaves_nothing(tmp_path, mask, monkeypatch):
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    checkpoint(source)
    monkeypatch.setattr(safefile.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(ModelFileError, match=r"GB are free there"):
        sanitize(source, target, [Use(mask)])
    monkeypatch.undo()

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safefile, "_bytes", full)
    with pytest.raises(ModelFileError, match="No space left on device"):
        sanitize(source, target, [Use(mask)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


KILLED = """
import sys, time
from pathlib import Path
from uniforget.checkpoint import safefile
from uniforget.mask import files
from uniforget.checkpoint.fileplan import Use
from uniforget.checkpoint.sanitize import marked, sanitize
old = safefile.chunks
def slow(entry):
    print("going", flush=True); time.sleep(0.2)
    yield from old(entry)
safefile.chunks = slow
sanitize(Path(sys.argv[1]), Path(sys.argv[2]), [Use(files.load(sys.argv[3]))])
"""


def test_killed_in_the_middle_there_is_no_result(tmp_path, mask):
    source, target, file = (tmp_path / f"{n}.safetensors" for n in ("model", "out", "mask"))
    checkpoint(source)
    files.save(mask, file)
    child = subprocess.Popen([sys.executable, "-c", KILLED, source, target, file], cwd=ROOT, stdout=subprocess.PIPE)
    for _ in range(5):
        assert child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    child.wait()
    child.stdout.close()
    assert not target.exists()
    left = [p for p in tmp_path.iterdir() if p not in (source, file)]
    assert all(p.name.startswith(".") and p.suffix == ".tmp" for p in left)
    for path in left:
        with pytest.raises((ModelFileError, FamilyError)):
            verify(path)


def test_the_command_line(tmp_path, mask):
    source, target, file = (tmp_path / f"{n}.safetensors" for n in ("model", "out", "mask"))
    checkpoint(source)
    files.save(mask, file)
    done = here("apply", str(source), str(file), "--strength", "0.8", "-o", str(target), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["applied"][0]["strength"] == 0.8 and told["changed"] and told["after"]["out.safetensors"]
    assert here("apply", str(source), str(file), "-o", str(target)).returncode == 1
    assert here("apply", str(source), str(file), "-o", str(target), "--overwrite", "--strength", "1").returncode == 0
    shown = here("verify", str(target), "--source", str(source))
    assert (
        shown.returncode == 0 and "columns and rows that must be zero are zero" in shown.stdout and mask.digest() in shown.stdout
    )
    looked = json.loads(here("inspect", str(target), "--json").stdout)
    assert looked["what"] == "model" and looked["family"] == "sd3" and looked["applied"][0]["mask"] == mask.digest()
    seen = json.loads(here("inspect", str(file), "--json").stdout)
    assert seen["what"] == "mask" and seen["digest"] == mask.digest() and seen["sparsity"] == mask.sparsity()
    assert "there is no such" in here("inspect", str(tmp_path / "nowhere.safetensors")).stderr
    wrong = here("apply", str(source), str(file), "-o", str(tmp_path / "x.safetensors"), "--threshold", "0.01")
    assert wrong.returncode == 1 and "none of these files is one" in wrong.stderr
    assert here("apply", str(source), str(file), "-o", str(target), "--strength", "3").returncode == 2


def test_combining_on_the_command_line(tmp_path, mask):
    other = random_mask(TinyModel(("ffn", "norm", "attn")), seed=1)
    a, b, out = (tmp_path / f"{n}.safetensors" for n in "abc")
    files.save(mask, a)
    files.save(other, b)
    done = here("combine", str(a), str(b), "--mode", "union", "-o", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == files.load(out).digest() != mask.digest()
    assert "exists already" in here("combine", str(a), "-o", str(out)).stderr
    assert "itself, which is read" in here("combine", str(a), "-o", str(a), "--overwrite").stderr
    part = here("combine", str(a), "--kinds", "ffn", "--blocks", "0", "-o", str(out), "--overwrite")
    assert part.returncode == 0 and files.load(out).sparsity()["norm"] == 0 < files.load(out).sparsity()["ffn"]
    files.save(subspace().trimmed(1e-6, 0.03), b)
    refused = here("combine", str(a), str(b), "-o", str(out), "--overwrite")
    assert refused.returncode == 1 and "needs a mask of gates; found a subspace" in refused.stderr


def test_headers_of_any_order_and_length(tmp_path):
    """Names in the file's order or not, text beyond ASCII: read as the library reads them."""
    path = tmp_path / "x.safetensors"
    save_file({"b é": torch.arange(6.0).view(2, 3), "a": torch.zeros(4, dtype=torch.bool)}, path, {"ä": "ö"})
    header = safefile.read_header(path)
    with safe_open(path, "pt") as file:
        assert header.entries.keys() == set(file.keys()) and header.metadata == file.metadata()
    again = tmp_path / "again.safetensors"
    digests = safefile.rewrite(header, again, {}, lambda a, b: header.metadata)
    assert digests[0] == digests[1] and again.read_bytes()[-28:] == path.read_bytes()[-28:]
    assert all(torch.equal(v, load_file(path)[k]) for k, v in load_file(again).items())
    assert time.time() - again.stat().st_mtime < 60
