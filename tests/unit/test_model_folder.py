"""diffusers folders that hold the network in more than one way, or not all of it: nothing is left without a word."""

import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.unit.test_cli import here
from tests.unit.tiny_pipelines import pipeline, single_file
from uniforget.checkpoint.fileplan import Use
from uniforget.checkpoint.sanitize import sanitize
from uniforget.checkpoint.verify import verify
from uniforget.errors import ModelFileError
from uniforget.hosts.diffusers.apply import base_fingerprint, find_modules
from uniforget.hosts.diffusers.load import load_pipeline
from uniforget.mask import files
from uniforget.mask.info import GateMask, MaskInfo

FFN = "input_blocks.1.1.transformer_blocks.0.ff.net.2"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline's folder, and a mask of its UNet."""
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    pipe = pipeline("sd1")
    pipe.save_pretrained(folder)
    _, sites, _ = find_modules(pipe.unet)
    generator = torch.Generator().manual_seed(0)
    gates = {s.name: (torch.rand(s.units, generator=generator) > 0.4).float() for s in sites}
    info = MaskInfo(family="sd1", base=base_fingerprint(pipe.unet))
    return folder, pipe, GateMask(gates, {s.name: s.kind for s in sites}, info)


@pytest.fixture
def source(model, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(model[0], folder)
    return folder


def shards(folder, count=300):
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(folder / "sharded", max_shard_size=f"{count}KB")
    shutil.rmtree(folder / "unet")
    (folder / "sharded").rename(folder / "unet")
    return sorted((folder / "unet").glob("*.safetensors"))


def test_a_plain_folder_has_nothing_left(model, source, tmp_path):
    done = sanitize(source, tmp_path / "out", [Use(model[2])])
    assert done.left == () and verify(tmp_path / "out").ok is not False and verify(tmp_path / "out", source).ok


def test_other_copies_that_can_be_read_are_masked(model, source, tmp_path):
    """The whole checkpoint at the root, in ComfyUI's naming and half precision, and the same in a folder of its own."""
    _, pipe, mask = model
    whole = {k: v.half() for k, v in single_file(pipe).items()}
    save_file(whole, source / "v1-5-pruned.safetensors")
    (source / "comfy").mkdir()
    save_file(whole, source / "comfy" / "model.sft")
    done = sanitize(source, tmp_path / "out", [Use(mask)])
    assert done.left == ()
    gates = mask.gates[FFN]
    for name in ("v1-5-pruned.safetensors", "comfy/model.sft"):
        found = load_file(tmp_path / "out" / name)[f"model.diffusion_model.{FFN}.weight"]
        assert (found[:, gates == 0] == 0).all() and (found[:, gates == 1] != 0).any()
        assert name in done.after
    checked = verify(tmp_path / "out", source)
    assert checked.ok and any(check.name.startswith("v1-5-pruned.safetensors") for check in checked.checks)
    # somebody puts an unmasked copy back
    shutil.copy(source / "v1-5-pruned.safetensors", tmp_path / "out" / "v1-5-pruned.safetensors")
    checked = verify(tmp_path / "out")
    assert checked.ok is False
    assert [c.detail for c in checked.checks if c.name == "left" and c.ok is False and "v1-5-pruned.safetensors" in c.detail]


def unreadable(source):
    (source / "unet" / "model.onnx").write_bytes(b"onnx, in words")
    (source / "unet" / "weights.pb").write_bytes(b"\x08\x07\0")
    (source / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"\x81\xa6params")
    (source / "v1-5-pruned.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 50)
    (source / "gguf").mkdir()
    (source / "gguf" / "model-Q4.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    (source / "onnx__MatMul_8134").write_bytes(b"\x01\0\x02\0" * 1000)
    # what holds no denoiser is not named
    (source / "text_encoder" / "model.onnx").write_bytes(b"\x08\x07\0")
    (source / "vae_decoder").mkdir()
    (source / "vae_decoder" / "model.onnx").write_bytes(b"\x08\x07\0")
    (source / "README.md").write_text("# Ein Modell, größer als die anderen\n", encoding="utf-8")
    (source / "sample.png").write_bytes(b"\x89PNG\0\0")
    (source / "LICENSE").write_text("free")
    return {
        "unet/model.onnx", "unet/weights.pb", "unet/diffusion_flax_model.msgpack", "v1-5-pruned.ckpt", "gguf/model-Q4.gguf",
        "onnx__MatMul_8134",
    }  # fmt: skip


def test_copies_that_cannot_be_read_are_named_by_apply_and_verify(model, source, tmp_path):
    names = unreadable(source)
    files.save(model[2], tmp_path / "mask.safetensors")
    done = here("apply", str(source), str(tmp_path / "mask.safetensors"), "-o", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["left"]) == names
    checked = verify(tmp_path / "out")
    assert checked.ok is False
    [left] = [check.detail for check in checked.checks if check.name == "left"]
    assert left.startswith("copied as they were, and may still remember: ")
    for name in names:
        (tmp_path / "out" / name).unlink()
    assert verify(tmp_path / "out").ok is not False


def test_another_network_of_the_family_is_named_and_not_masked(model, source, tmp_path):
    """The second model of Wan 2.2 has the same sizes, and another mask."""
    shutil.copytree(source / "unet", source / "unet_2")
    for path in (source / "unet_2").glob("*.safetensors"):
        save_file({k: torch.randn_like(v) for k, v in load_file(path).items()}, path)
    done = sanitize(source, tmp_path / "out", [Use(model[2])])
    assert done.left == ("unet_2",)
    for path in (source / "unet_2").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "unet_2" / path.name).read_bytes()
    assert [c.ok for c in verify(tmp_path / "out").checks if c.name == "left" and "unet_2" in c.detail] == [False]


def test_a_packed_copy_is_named(model, source, tmp_path):
    state = {k: v for k, v in single_file(model[1]).items() if k.startswith("model.")}
    state[f"model.diffusion_model.{FFN}.weight"] = state[f"model.diffusion_model.{FFN}.weight"].to(torch.int8)
    save_file(state, source / "int8.safetensors")
    assert sanitize(source, tmp_path / "out", [Use(model[2])]).left == ("int8.safetensors",)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named_before_anything_starts(model, source, tmp_path, index):
    found = shards(source)
    assert len(found) > 2
    if not index:
        next((source / "unet").glob("*.index.json")).unlink()
    gone = found[1]
    gone.unlink()
    files.save(model[2], tmp_path / "mask.safetensors")
    told = here("apply", str(source), str(tmp_path / "mask.safetensors"), "-o", str(tmp_path / "out"))
    assert told.returncode == 1 and gone.name in told.stderr and "missing" in told.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelFileError, match=rf"{gone.name} is missing"):
        verify(source)
    if index:
        with pytest.raises(ModelFileError, match=rf"{gone.name} is missing"):
            load_pipeline(str(source))


def test_an_index_must_tell_the_truth(model, source, tmp_path):
    first = shards(source)[0]
    state = load_file(first)
    lost = next(iter(state))
    del state[lost]
    save_file(state, first)
    with pytest.raises(ModelFileError, match=rf"says that {lost} is in it, and it is not"):
        sanitize(source, tmp_path / "out", [Use(model[2])])
    index = next((source / "unet").glob("*.index.json"))
    long = json.dumps({"weight_map": {"a": "x" * 300 + ".safetensors"}})
    for text in ("{", "[]", '{"weight_map": {"a": "../other/x.safetensors"}}', long):
        index.write_text(text)
        with pytest.raises(ModelFileError, match="is missing" if text == long else "this index of weights cannot be read"):
            sanitize(source, tmp_path / "out", [Use(model[2])])


def test_one_of_several_files_is_no_model(model, source, tmp_path):
    first = shards(source)[0]
    for work in (lambda: sanitize(first, tmp_path / "out.safetensors", [Use(model[2])]), lambda: verify(first)):
        with pytest.raises(ModelFileError, match=r"part 1 of \d+|left no note"):
            work()
    told = here("inspect", str(first))
    assert told.returncode == 1 and "by its name this is part 1 of" in told.stderr
