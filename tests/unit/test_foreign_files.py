"""Files as other programs write them: packed weights, wrapped names, several copies in one file."""

import json
import math
import struct

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.unit.test_cli import here
from tests.unit.tiny import TinyModel, random_mask, tiny_transformer
from uniforget.checkpoint import compactfile, safefile
from uniforget.checkpoint.denoiser import find_denoisers
from uniforget.checkpoint.fileplan import Use, base_fingerprint
from uniforget.checkpoint.sanitize import sanitize
from uniforget.checkpoint.verify import verify
from uniforget.errors import FamilyError, MismatchError, ModelFileError
from uniforget.mask import files
from uniforget.mask.edit import merge

FFN = "transformer_blocks.0.ff.net.2"
LINEARS = [n for n, p in tiny_transformer().named_parameters() if p.ndim == 2 and n.startswith("transformer_blocks")]


@pytest.fixture(scope="module")
def state():
    return {k: v.half().contiguous() for k, v in tiny_transformer().state_dict().items()}


@pytest.fixture(scope="module")
def mask():
    return random_mask(TinyModel(("ffn", "norm", "attn")))


def text(value):
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def packed(state, kind):
    """The blocks' Linears as a format keeps them, everything else as it is."""
    out = dict(state)
    for name in LINEARS:
        path, weight = name.removesuffix(".weight"), out.pop(name)
        rows, columns = weight.shape
        if kind == "nf4":
            out[name] = torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
            out[f"{name}.absmax"] = torch.zeros(weight.numel() // 64, dtype=torch.uint8)
            out[f"{name}.quant_map"] = torch.zeros(16)
            out[f"{name}.quant_state.bitsandbytes__nf4"] = text({"shape": [rows, columns]})
        elif kind == "nvfp4":
            out[name] = torch.zeros(rows, columns // 2, dtype=torch.uint8)
            out[f"{path}.weight_scale"] = torch.zeros(rows, columns // 16).to(torch.float8_e4m3fn)
            out[f"{path}.weight_scale_2"] = torch.tensor(1.0)
            out[f"{path}.comfy_quant"] = text({"format": "nvfp4"})
        elif kind == "mxfp8":
            out[name] = weight.to(torch.float8_e4m3fn)
            out[f"{path}.weight_scale"] = torch.zeros(rows, columns // 32, dtype=torch.uint8)
            out[f"{path}.comfy_quant"] = text({"format": "mxfp8"})
        elif kind == "rotated int8":
            out[name] = weight.to(torch.int8)
            out[f"{path}.weight_scale"] = torch.ones(rows)
            out[f"{path}.comfy_quant"] = text({"format": "int8_tensorwise", "convrot": True})
        elif kind == "gptq":
            out[f"{path}.qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
            out[f"{path}.scales"] = torch.zeros(columns // 32, rows)
        elif kind == "unreadable":
            out[name] = weight.to(torch.float8_e4m3fn)
            out[f"{path}.comfy_quant"] = torch.tensor([123, 0, 1], dtype=torch.uint8)
        elif kind == "fp8 mixed":
            out[name] = weight.to(torch.float8_e4m3fn)
            out[f"{path}.weight_scale"] = torch.tensor(0.5)
            out[f"{path}.comfy_quant"] = text({"format": "float8_e4m3fn"})
    return out


@pytest.mark.parametrize("kind", ["nf4", "nvfp4", "mxfp8", "rotated int8", "gptq", "unreadable"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_packed_weights_are_named_before_their_shapes_are_looked_at(tmp_path, state, mask, kind, prefix):
    source = tmp_path / "model.safetensors"
    save_file({prefix + k: v for k, v in packed(state, kind).items()}, source)
    for work in (
        lambda: sanitize(source, tmp_path / "out.safetensors", [Use(mask)]),
        lambda: compactfile.save(source, tmp_path / "out.safetensors", mask),
        lambda: base_fingerprint([safefile.read_header(source)]),
        lambda: find_denoisers([safefile.read_header(source)]),
    ):
        with pytest.raises(
            ModelFileError, match=rf"of the weights are packed \(.*such as {prefix}transformer_blocks.*fp16, bf16"
        ):
            work()
    assert not (tmp_path / "out.safetensors").exists()


def test_inspect_says_packed_and_counts_nothing(tmp_path, state):
    save_file(packed(state, "nvfp4"), tmp_path / "model.safetensors")
    told = here("inspect", str(tmp_path / "model.safetensors"), "--json")
    assert told.returncode == 1 and "packed" in told.stderr and not told.stdout


def test_fp8_with_a_scale_for_each_matrix_is_not_packed_nor_is_a_packed_text_encoder_in_the_way(tmp_path, state, mask):
    prefix = "model.diffusion_model."
    whole = {prefix + k: v for k, v in packed(state, "fp8 mixed").items()}
    whole["text_encoders.t5.encoder.block.0.layer.0.SelfAttention.k.weight"] = torch.zeros(4, 4, dtype=torch.int8)
    save_file(whole, tmp_path / "model.safetensors")
    sanitize(tmp_path / "model.safetensors", tmp_path / "out.safetensors", [Use(mask)])
    gates = mask.gates["joint_blocks.0.x_block.mlp.fc2"]
    found = load_file(tmp_path / "out.safetensors")[f"{prefix}{FFN}.weight"].float()
    assert (found[:, gates == 0] == 0).all() and (found[:, gates == 1] != 0).any()


def wrapped(name, how):
    if how == "compiled blocks":
        return name.replace("transformer_blocks.0.", "transformer_blocks.0._orig_mod.")
    return f"{how}{name}"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("_orig_mod.", ["'_orig_mod.'"]),
        ("module.", ["'module.'"]),
        ("unet.", ["'unet.'"]),
        ("transformer.", ["'transformer.'"]),
        ("module._orig_mod.", ["'module.'", "'_orig_mod.'"]),
        ("model.diffusion_model._orig_mod.", ["'_orig_mod.'"]),
        ("trainer.student.", ["'trainer.student.'"]),
        ("compiled blocks", ["'_orig_mod.'"]),
        ("net.", []),
    ],
)
def test_what_other_programs_wrap_around_names_is_taken_away_and_said(tmp_path, state, mask, how, said):
    source, target, file = (tmp_path / f"{n}.safetensors" for n in ("model", "out", "mask"))
    save_file({wrapped(k, how): v for k, v in state.items()}, source)
    files.save(mask, file)
    done = sanitize(source, target, [Use(mask)])
    exact = merge({k: v.float() for k, v in state.items()}, mask)
    found = load_file(target)
    for name, value in exact.items():
        assert torch.equal(found[wrapped(name, how)], value.half()), name
    assert verify(target, source).ok
    assert base_fingerprint([safefile.read_header(source)]) != ""
    told = " ".join(done.cautions)
    for word in said:
        assert word in told, told
    assert ("around them" in told) == bool(said)
    looked = here("inspect", str(source))
    assert looked.returncode == 0 and all(word in looked.stdout for word in said)


def test_compact_refuses_names_that_comfyui_does_not_know(tmp_path, state, mask):
    save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=r"begin with 'module\.'"):
        compactfile.save(tmp_path / "model.safetensors", tmp_path / "out.safetensors", mask)


def test_a_second_copy_in_the_same_file_is_masked_as_well(tmp_path, state, mask):
    """Training programs keep the moving average beside the weights."""
    source, target = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    prefixes = ("model.diffusion_model.", "ema_model.")
    save_file({prefix + k: v + i / 64 for i, prefix in enumerate(prefixes) for k, v in state.items()}, source)
    sanitize(source, target, [Use(mask)])
    gates = mask.gates["joint_blocks.0.x_block.mlp.fc2"]
    found = load_file(target)
    for prefix in prefixes:
        weight = found[f"{prefix}{FFN}.weight"]
        assert (weight[:, gates == 0] == 0).all() and (weight[:, gates == 1] != 0).any(), prefix
    looked = here("inspect", str(source))
    assert "another copy of it, under 'ema_model.'" in looked.stdout


def test_names_that_cannot_be_unwrapped_are_refused_with_what_they_are(tmp_path):
    save_file({"trainer.student.a.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(FamilyError, match=r"model\.safetensors.*student|model\.safetensors.*a\.weight"):
        find_denoisers([safefile.read_header(tmp_path / "model.safetensors")])


def rewritten(path, change):
    """The file with another header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    change(head)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_a_bias_that_is_no_number_is_named_before_anything_is_written(tmp_path, state, dtype):
    """Whole weights are told by :func:`refuse_packed`; a mask acts on biases too."""
    mask = random_mask(TinyModel(("norm",)))
    name = next(n for n in merge({k: v.float() for k, v in state.items()}, mask) if n.endswith("norm1.linear.bias"))
    source, file = tmp_path / "model.safetensors", tmp_path / "mask.safetensors"
    save_file({**state, name: state[name].to(dtype)}, source)
    files.save(mask, file)
    told = here("apply", str(source), str(file), "-o", str(tmp_path / "out.safetensors"))
    assert told.returncode == 1 and name in told.stderr and "expected numbers of one of F64" in told.stderr
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"step": 1234, "made": "for tests"}, "'step' (1234)"),
        ({"tags": ["a"], "made": "for tests"}, "'tags' ([\"a\"])"),
        ([1], ""),
    ],
)
def test_metadata_that_is_no_text_is_said_and_the_file_is_read(tmp_path, state, mask, metadata, said):
    source, target, file = (tmp_path / f"{n}.safetensors" for n in ("model", "out", "mask"))
    save_file(state, source)
    rewritten(source, lambda head: head.update(__metadata__=metadata))
    with pytest.raises(SafetensorError):
        load_file(source)
    files.save(mask, file)
    looked = here("inspect", str(source))
    assert looked.returncode == 0 and "metadata values are no text: " in looked.stdout and said in looked.stdout
    done = sanitize(source, target, [Use(mask)])
    assert any("no text" in caution and said in caution for caution in done.cautions)
    found = load_file(target)
    for name, value in merge({k: v.float() for k, v in state.items()}, mask).items():
        assert torch.equal(found[name], value.half())
    assert (
        safefile.read_header(target).odd == () and safefile.read_header(target).metadata.get("made", "for tests") == "for tests"
    )
    assert verify(target).ok is not False


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F99"},
        {"shape": [3]},
        {"data_offsets": [0, 2]},
        {"data_offsets": None},
        {"data_offsets": [0]},
        {"data_offsets": [0, math.inf]},
        {"data_offsets": ["0", "4"]},
        {"dtype": []},
        {"shape": [-1, -1]},
    ],
)
def test_such_a_file_is_still_checked(tmp_path, state, change):
    def wrong(head):
        head["__metadata__"] = {"step": 1}
        head["pos_embed.pos_embed"] |= change

    path = tmp_path / "model.safetensors"
    save_file(state, path)
    rewritten(path, wrong)
    with pytest.raises(ModelFileError, match="complete .safetensors file"):
        safefile.read_header(path)
    save_file(state, path)
    rewritten(path, lambda head: head.update(__metadata__={"step": 1}))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ModelFileError, match="complete .safetensors file"):
        safefile.read_header(path)
