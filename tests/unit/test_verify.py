"""Verify proves, or says that it cannot: notes that strangers wrote, and bytes that nobody looked at before."""

import base64
import json
import re
import shutil
import struct

import pytest
import torch
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import load_file, save_file

from tests.unit.test_cli import folder, here
from tests.unit.test_sanitize import PREFIX, checkpoint, subspace
from tests.unit.tiny import TinyModel, random_mask
from uniforget.checkpoint import safefile
from uniforget.checkpoint.fileplan import Use
from uniforget.checkpoint.folder import parts
from uniforget.checkpoint.sanitize import NOTE, notes, sanitize
from uniforget.checkpoint.verify import verify
from uniforget.errors import ModelFileError
from uniforget.hosts.diffusers.apply import find_modules
from uniforget.mask import file as maskfile
from uniforget.mask.info import GateMask, MaskInfo

__all__ = ["folder"]


@pytest.fixture
def mask():
    return random_mask(TinyModel(("ffn", "norm", "attn")))


@pytest.fixture
def source(tmp_path):
    checkpoint(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def claimed(source, target, *uses, **changes):
    """An untouched copy of a model whose note says that `uses` were applied, with digests that fit."""
    header = safefile.read_header(source)
    note = {
        "version": "0.1.0", "source": source.name, "applied": [use.note() for use in uses], "tensors": "0",
        "before": safefile.digest(header, ()), "after": safefile.digest(header, ()), **changes,
    }  # fmt: skip
    with safe_open(source, "pt") as file:
        save_file(load_file(source), target, {**file.metadata(), NOTE: json.dumps([note])})
    return target


def marks_of(source, tmp_path, mask):
    """What a true note says about tensors and digests, for a note that lies about the rest."""
    true = tmp_path / "true.safetensors"
    sanitize(source, true, [Use(mask)])
    found = safefile.read_header(true)
    note = notes(found)[-1]
    whole = safefile.digest(
        safefile.read_header(source), {e.name for i, e in enumerate(found.ordered()) if int(note["tensors"], 16) >> i & 1}
    )
    return {"tensors": note["tensors"], "before": whole, "after": whole}


@pytest.mark.parametrize("lie", ["0.999", "kinds", "subspace", "nothing", "strength 0"])
def test_an_untouched_model_is_never_said_to_be_proved(tmp_path, mask, source, lie):
    marks = marks_of(source, tmp_path, mask)
    uses = {
        "0.999": [Use(mask, 0.999)],
        "kinds": [Use(mask, 1.0, {"ffn": 0.0, "norm": 0.0, "attn": 0.0})],
        "subspace": [Use(subspace(), 1.0)],
        "nothing": [Use(mask)],
        "strength 0": [Use(mask, 0.0)],
    }[lie]
    file = claimed(source, tmp_path / "liar.safetensors", *uses, **(marks if lie in ("0.999", "subspace") else {}))
    found = verify(file)
    assert found.ok is (False if lie == "nothing" else None), found.checks
    if lie == "nothing":  # "tensors": "0", at full strength
        assert {c.name for c in found.checks if c.ok is False} == {"tensors", "zeros"}
    told = here("verify", str(file), "--json")
    assert told.returncode == 1 and json.loads(told.stdout)["verified"] is False
    assert json.loads(told.stdout)["verdict"] == ("wrong" if lie == "nothing" else "unknown")
    if lie != "subspace":
        assert verify(file, source).ok is (None if lie in ("kinds", "strength 0") else False)


def test_a_strength_that_changes_no_bit_is_not_proved(tmp_path, mask, source):
    target = tmp_path / "out.safetensors"
    sanitize(source, target, [Use(mask, 1e-7)])
    found = verify(target, source)
    assert found.ok is None and any("change no weight" in c.detail for c in found.checks)
    sanitize(source, target, [Use(mask, 0.9)], overwrite=True)
    assert verify(target).ok is None and verify(target, source).ok is True


def test_a_mask_that_changes_nothing_is_not_proved_along_with_one_that_does(tmp_path, mask, source):
    other, target = random_mask(TinyModel(("ffn", "norm", "attn")), seed=4), tmp_path / "out.safetensors"
    sanitize(source, target, [Use(mask), Use(other, 1.0, {"ffn": 0.0, "norm": 0.0, "attn": 0.0})])
    for found in (verify(target), verify(target, source)):
        assert found.ok is None and next(c.detail for c in found.checks if c.name == "strength").startswith(other.digest())
    assert f"{other.digest()} (test) at strength 1, times 0 for ffn, times 0 for norm" in here("verify", str(target)).stdout


def test_what_is_said_to_have_been_applied_before_is_proved_too(tmp_path, mask, source):
    other = random_mask(TinyModel(("ffn", "norm", "attn")), seed=4)
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    sanitize(source, once, [Use(other)])
    sanitize(once, twice, [Use(mask)])
    assert verify(twice).ok is True and verify(twice, once).ok is True
    forged = claimed(source, tmp_path / "forged.safetensors", Use(other, 0.5))
    sanitize(forged, twice, [Use(mask)], overwrite=True)
    assert verify(twice).ok is None and verify(twice, forged).ok is None
    assert verify(twice, source).ok is False, "the source says nothing about it"


def test_rows_that_are_off_must_be_zero_as_columns_must(tmp_path, mask, source):
    norms = {n: g for n, g in mask.gates.items() if mask.kinds[n] == "norm"}
    only = GateMask(norms, dict.fromkeys(norms, "norm"), mask.info)
    target = tmp_path / "out.safetensors"
    sanitize(source, target, [Use(only)])
    assert verify(target).ok is True
    assert verify(claimed(source, tmp_path / "liar.safetensors", Use(only))).ok is False


def test_texts_of_the_file_count_as_changes(tmp_path, mask, source):
    target = tmp_path / "out.safetensors"
    sanitize(source, target, [Use(mask)])
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(target), target, {**metadata, "made": "by somebody else"})
    assert [c.name for c in verify(target, source).checks if c.ok is False] == ["metadata"]


def test_lines_cannot_be_forged(tmp_path, mask, source):
    entry = Use(mask).note() | {"method": "x\nok       weights: all is well\x1b[2J"}
    file = claimed(source, tmp_path / "liar.safetensors", applied=[entry])
    for command in ("verify", "inspect"):
        told = here(command, str(file)).stdout
        assert "all is well" in told and "\x1b" not in told
        assert not any(line.startswith("ok       weights: all") for line in told.splitlines())


GOOD = {"tensors": "0", "before": "0" * 64, "after": "0" * 64}
HOSTILE = {
    "no list": "{}",
    "deep": "[" * 100_000,
    "huge number": [{**GOOD, "applied": [{"mask": "ab", "strength": 10**400, "gates": ""}]}],
    "huge digits": '[{"applied": [{"mask": "ab", "strength": 1' + "0" * 5000 + "}]}]",
    "not a number": '[{"tensors":"0","before":"","after":"","applied":[{"mask":"ab","strength":NaN}]}]',
    "truth": [{**GOOD, "applied": [{"mask": "ab", "strength": True}]}],
    "negative": [{**GOOD, "applied": [{"mask": "ab", "strength": -1}]}],
    "text": [{**GOOD, "applied": "masks"}],
    "none": [{**GOOD, "applied": [None]}],
    "kinds": [{**GOOD, "applied": [{"mask": "ab", "strength": 1, "per_kind": [1]}]}],
    "unknown kind": [{**GOOD, "applied": [{"mask": "ab", "strength": 1, "per_kind": {"x": 1}}]}],
    "number for text": [{**GOOD, "applied": [{"mask": 5, "strength": 1}]}],
    "many marks": [{**GOOD, "tensors": "f" * 4000, "applied": []}],
    "marks beyond": [{**GOOD, "tensors": "f" * 60, "applied": []}],
    "no marks": [{**GOOD, "tensors": "xyz", "applied": []}],
    "no base64": [{**GOOD, "applied": [{"mask": "ab", "strength": 1, "gates": "\ud800"}]}],
    "no mask": [{**GOOD, "applied": [{"mask": "ab", "strength": 1, "gates": base64.b64encode(b"{}").decode()}]}],
    "method": [{**GOOD, "applied": [{"mask": "ab", "strength": 1, "method": ["x"]}]}],
}


@pytest.mark.parametrize("note", HOSTILE.values(), ids=HOSTILE)
def test_hostile_notes_are_our_own_errors(tmp_path, source, mask, note):
    text = note if isinstance(note, str) else json.dumps(note)
    file = tmp_path / "hostile.safetensors"
    save_file(load_file(source), file, {NOTE: text})
    maskfile.save(mask, tmp_path / "mask.safetensors")
    for arguments in (
        ("verify", str(file)),
        ("inspect", str(file)),
        ("apply", str(file), str(tmp_path / "mask.safetensors"), "-o", str(tmp_path / "out.safetensors")),
    ):
        done = here(*arguments)
        fine = arguments[0] != "verify" and note is HOSTILE["no mask"]  # which only verify unpacks
        assert done.returncode == (0 if fine else 1), done.stderr
        assert fine or ("hostile.safetensors" in done.stderr and "report" not in done.stderr)


def dtypes():
    """What the installed safetensors knows, from its own complaint."""
    header = json.dumps({"a": {"dtype": "NONE", "shape": [1], "data_offsets": [0, 1]}}).encode()
    try:
        deserialize(struct.pack("<Q", len(header)) + header + b"0")
    except SafetensorError as error:
        return re.findall(r"`([A-Z0-9_]+)`", str(error))[1:]
    return []


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize("shape", [(8, 1), (2, 3, 4), (3, 8), (16,), (1, 8), (40, 24), (8, 0)])
def test_pieces_hold_each_byte_of_a_file_once(tmp_path, monkeypatch, dtype, shape):
    """Whatever the library takes for a tensor of this dtype and shape; in F4 and F6 a row need not be whole bytes."""
    monkeypatch.setattr(safefile, "CHUNK", 7)
    numbers, path = 1, tmp_path / "x.safetensors"
    for side in shape:
        numbers *= side
    for size in {numbers * bits // 8 for bits in (4, 6, 8, 16, 32, 64)}:
        content = bytes(i % 251 + 1 for i in range(size))
        header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content)
        try:
            entry = safefile.read_header(path).entries["a"]
        except ModelFileError:
            continue
        covered = [at for start, end, _ in safefile.chunks(entry) for at in range(start, end)]
        assert covered == list(range(entry.start, entry.end)) and entry.end == path.stat().st_size
        return
    pytest.fail("no size fits this dtype")


def test_there_are_dtypes_to_test():
    assert {"F4", "F6_E2M3", "F8_E4M3", "BOOL", "U64"} <= set(dtypes()) and set(safefile.DTYPES) <= set(dtypes())


def test_a_bit_in_a_packed_tensor_is_noticed(tmp_path, mask, source):
    """F4 of shape (8, 1): half a byte a row."""
    state = {k: v for k, v in load_file(source).items() if k.startswith(PREFIX)}
    save_file(state, source)
    data = source.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    end = len(data) - 8 - length
    header["packed"] = {"dtype": "F4", "shape": [8, 1], "data_offsets": [end, end + 4]}
    text = json.dumps(header).encode()
    source.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + b"\1\2\3\4")
    target = tmp_path / "out.safetensors"
    sanitize(source, target, [Use(mask)])
    assert verify(target, source).ok is True
    target.write_bytes(target.read_bytes()[:-1] + b"\5")
    assert [c.detail for c in verify(target, source).checks if c.ok is False] == [
        "1 tensors are not as they must be, such as packed"
    ]


def whole_mask(folder):
    from diffusers import UNet2DConditionModel

    _, sites, _ = find_modules(UNet2DConditionModel.from_pretrained(folder, subfolder="unet"))
    generator = torch.Generator().manual_seed(0)
    gates = {s.name: (torch.rand(s.units, generator=generator) > 0.4).float() for s in sites}
    return GateMask(gates, {s.name: s.kind for s in sites}, MaskInfo(family="sd1", base=""))


def test_the_other_files_of_a_folder_count_as_changes(tmp_path, folder):
    out, mask = tmp_path / "out", whole_mask(folder)
    sanitize(folder, out, [Use(mask)])
    assert verify(out, folder).ok is True and verify(out).ok is True
    (out / "model_index.json").write_text("{}")
    (out / "extra.py").write_text("print()")
    found = [c for c in verify(out, folder).checks if c.ok is False]
    assert [c.name for c in found] == ["other files"] and "extra.py" in found[0].detail
    (out / "extra.py").unlink()
    assert "model_index.json" in next(c for c in verify(out, folder).checks if c.ok is False).detail


def test_links_that_leave_a_folder_are_refused_by_name(tmp_path, folder):
    """A link to a private key would end up in the output that is to be shared."""
    key = tmp_path / "private.key"
    key.write_text("secret")
    mask = whole_mask(folder)
    model = tmp_path / "model"
    for name, leads in (
        ("scheduler/key.json", key),
        ("unet/more.safetensors", key),
        ("nowhere.json", tmp_path / "nothing"),
        ("loop", model),
        ("scheduler/out", tmp_path),
    ):
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(folder, model)
        (model / name).symlink_to(leads)
        with pytest.raises(ModelFileError, match=rf"{name}: this is a link to .*Replace the link"):
            sanitize(model, tmp_path / "out", [Use(mask)])
        assert not (tmp_path / "out").exists()
    (model / "scheduler" / "out").unlink()
    (model / "copy.json").symlink_to("model_index.json")
    assert model / "copy.json" in parts(model)


def test_links_of_hugging_faces_cache_stay_within_it(tmp_path, folder):
    cache = tmp_path / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / str(number))
        link.symlink_to(blobs / str(number))
    sanitize(snapshot, tmp_path / "out", [Use(whole_mask(folder))])
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_symlink()]
    (snapshot / "up.json").symlink_to(tmp_path / "private.key")
    (tmp_path / "private.key").write_text("secret")
    with pytest.raises(ModelFileError, match=r"up\.json: this is a link"):
        sanitize(snapshot, tmp_path / "again", [Use(whole_mask(folder))])
