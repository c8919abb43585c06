"""Compaction: the masked model's very outputs, from smaller weights."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit import diffusers_zoo as zoo
from tests.unit.test_cli import here
from tests.unit.test_foreign_files import rewritten
from tests.unit.tiny import tiny_transformer
from uniforget.checkpoint import compact, compactfile, safefile
from uniforget.checkpoint.compact import Cut, plan
from uniforget.errors import MismatchError, ModelFileError, SettingError
from uniforget.hosts.diffusers.apply import find_modules, fold_
from uniforget.hosts.diffusers.compact import compact_
from uniforget.mask import files
from uniforget.mask.edit import merge
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.model.detect import canonical, detect


def shapes_of(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def hard_mask(model, seed=0, extremes=True):
    """60 % of everything off; of the first FFN nothing is left, of the second one unit."""
    family, sites, _ = find_modules(model)
    generator = torch.Generator().manual_seed(seed)
    gates = {s.name: (torch.rand(s.units, generator=generator) > 0.6).float() for s in sites}
    neurons = [s.name for s in sites if s.kind == "ffn"]
    if extremes:
        gates[neurons[0]][:] = 0
        gates[neurons[1]][:] = 0
        gates[neurons[1]][3] = 1
    return GateMask(gates, {s.name: s.kind for s in sites}, MaskInfo(family=family.name, base=""))


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_the_output_is_the_masked_models(name, multiple):
    model = zoo.small(name)
    mask = hard_mask(model)
    masked, small = copy.deepcopy(model), copy.deepcopy(model)
    fold_(masked, mask)
    found = compact_(small, mask, multiple)
    wanted, before = zoo.predict(name, masked), zoo.predict(name, model)
    assert (wanted - before).abs().max() > 1e-3 * before.abs().max()
    torch.testing.assert_close(zoo.predict(name, small), wanted, atol=1e-5, rtol=1e-5)
    family = zoo.VARIANTS[name].family
    assert found.hidden and "ffn" not in found.whole
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(hidden % multiple == 0 for hidden in found.hidden.values()) or family.startswith("sd")
    assert bool(found.heads) == (family in ("sd1", "sd2", "sdxl"))
    assert set(found.hidden.values()) >= {multiple}


def test_soft_gates_are_folded_and_not_cut():
    model = zoo.small("sd1")
    mask = hard_mask(model, extremes=False)
    soft = GateMask({n: g.clamp(min=0.25) for n, g in mask.gates.items()}, mask.kinds, mask.info)
    masked, small = copy.deepcopy(model), copy.deepcopy(model)
    fold_(masked, soft)
    found = compact_(small, soft)
    assert not found.cuts and "nothing is switched off completely" in compact.report(found)[0]
    assert torch.equal(zoo.predict("sd1", small), zoo.predict("sd1", masked))


def test_a_cut_gathers_and_scatters():
    cut = Cut("layer", (4, 3), torch.tensor([0, 2]), torch.tensor([1]))
    weight = torch.arange(12.0).view(4, 3)
    part = cut.gather(weight)
    assert part.tolist() == [[1], [7]] and cut.kept == (2, 1)
    assert cut.scatter(part).tolist() == [[0, 1, 0], [0, 0, 0], [0, 7, 0], [0, 0, 0]]
    assert cut.scatter_bias(cut.gather_bias(torch.arange(4.0))).tolist() == [0, 0, 2, 0]
    assert Cut("layer", (4, 3), rows=torch.tensor([3])).scatter(torch.ones(1, 3)).sum(1).tolist() == [0, 0, 0, 3]
    columns = Cut("layer", (4, 3), columns=torch.tensor([0, 2]))
    assert torch.equal(columns.scatter(columns.gather(weight)), weight * torch.tensor([1, 0, 1]))


def test_widths_are_rounded_up():
    gates = torch.zeros(32)
    gates[[5, 9, 30]] = 1
    assert compact._keep(gates, 1).tolist() == [5, 9, 30]
    assert compact._keep(gates, 8).tolist() == [0, 1, 2, 3, 4, 5, 9, 30]
    assert len(compact._keep(gates, 64)) == 32 and compact._keep(torch.zeros(4), 1).tolist() == [0]


def test_errors_say_what_to_do():
    model = zoo.small("sd1")
    mask = hard_mask(model)
    with pytest.raises(SettingError, match="expected one of 1, 8"):
        plan(shapes_of(model), mask, 7)
    with pytest.raises(MismatchError):
        plan(shapes_of(zoo.small("sdxl")), mask)


@pytest.fixture
def cut_file(tmp_path):
    """A small SD3 in ComfyUI's naming, and a compact copy of it made by the command line."""
    model = tiny_transformer()
    state = comfy_state(model)
    source, target, file = (tmp_path / f"{n}.safetensors" for n in ("model", "cut", "mask"))
    save_file(state, source, {"made": "for tests"})
    mask = hard_mask(model)
    files.save(mask, file)
    done = here("compact", str(source), str(file), "-o", str(target), "--multiple", "8", "--json")
    assert done.returncode == 0, done.stderr
    return source, target, mask, json.loads(done.stdout)


def comfy_state(model):
    """diffusers' weights of a SD3 under ComfyUI's names, fused as there; what has no name there is left out."""
    state = model.state_dict()
    known, origin = canonical({k: v.shape for k, v in state.items()}, detect({k: v.shape for k, v in state.items()})[1])
    out = {n: torch.cat([state[f"{p.path}.{n.rpartition('.')[2]}"] for p in origin[n.rpartition(".")[0]]]) for n in known}
    out |= {"x_embedder.proj.weight": torch.zeros(2, 2, 2, 2), "context_embedder.weight": torch.zeros(128, 32)}
    return {k: v.contiguous() for k, v in out.items()}


def test_the_command_line_writes_a_smaller_file(cut_file):
    source, target, mask, told = cut_file
    assert (
        told["bytes_after"] == target.stat().st_size < 0.9 * told["bytes_before"]
        and told["weights_after"] < told["weights_before"]
    )
    prefix, found = compactfile.read(safefile.read_header(target))
    spread = compactfile.whole(load_file(target), prefix, found)
    wanted = merge(load_file(source), mask)
    for name, value in wanted.items():
        cut = found.cuts.get(name.rpartition(".")[0])
        if cut is None:
            assert torch.equal(spread[name], value), name
        else:
            whole = cut.scatter(cut.gather(value)) if value.ndim == 2 else cut.scatter_bias(cut.gather_bias(value))
            assert torch.equal(spread[name], whole), name
    assert safefile.read_header(target).metadata["made"] == "for tests"


def test_notes_of_strangers_are_checked(cut_file, tmp_path):
    source, target, mask, _ = cut_file
    state, metadata = load_file(target), safefile.read_header(target).metadata
    note = json.loads(metadata["uniforget_compact"])
    path = next(p for p, entry in note["cuts"].items() if "columns" in entry)

    def changed(change):
        other = copy.deepcopy(note)
        change(other)
        file = tmp_path / "bad.safetensors"
        save_file(state, file, {"uniforget_compact": other if isinstance(other, str) else json.dumps(other)})
        return safefile.read_header(file)

    for change, words in (
        (lambda n: n.pop("cuts"), "cannot be read"),
        (lambda n: n["cuts"].update(nowhere=note["cuts"][path]), "cannot be read"),
        (lambda n: n["cuts"][path].update(size=[10**9, 10**9]), "has a size of"),
        (lambda n: n["cuts"][path].update(size=[-1, 4]), "has a size of"),
        (lambda n: n["cuts"][path].update(columns="AAAA"), "bytes for"),
        (lambda n: n["cuts"][path].update(columns="%%"), "cannot be read"),
        (lambda n: n["cuts"][path].pop("columns"), "in its note"),
        (lambda n: n.update(heads=[1]), "cannot be read"),
        (lambda n: n.update(heads={"x": 0}), "out of range"),
        (lambda n: n.update(hidden={"x": 10**9}), "out of range"),
    ):
        with pytest.raises(ModelFileError, match=words):
            compactfile.read(changed(change))
    bias = next(f"{note['prefix']}{p}.bias" for p in note["cuts"] if f"{note['prefix']}{p}.bias" in state)
    save_file({**state, bias: torch.zeros(3)}, tmp_path / "bias.safetensors", metadata)
    with pytest.raises(ModelFileError, match=r"is \[3\] in the file"):
        compactfile.read(safefile.read_header(tmp_path / "bias.safetensors"))
    odd = tmp_path / "odd.safetensors"
    save_file(state, odd, metadata)
    rewritten(odd, lambda head: head["__metadata__"].update(step=1))
    with pytest.raises(ModelFileError, match="metadata values are no text"):
        compactfile.read(safefile.read_header(odd))
    with pytest.raises(ModelFileError, match="no compact model"):
        compactfile.read(safefile.read_header(source))
    with pytest.raises(MismatchError, match="compact already"):
        compactfile.save(target, tmp_path / "again.safetensors", mask)
    huge = copy.deepcopy(note)
    big = Cut("x", (1 << 18, 1 << 18), torch.arange(1), torch.arange(1))
    huge["cuts"] = {"x": compactfile._packed(big)}
    save_file({"x.weight": torch.zeros(1, 1)}, tmp_path / "huge.safetensors", {"uniforget_compact": json.dumps(huge)})
    with pytest.raises(ModelFileError, match="more than such a file can stand for"):
        compactfile.read(safefile.read_header(tmp_path / "huge.safetensors"))


def test_compacting_in_small_pieces_gives_the_same_file(cut_file, tmp_path, monkeypatch):
    source, target, mask, _ = cut_file
    monkeypatch.setattr(safefile, "CHUNK", 3000)
    compactfile.save(source, tmp_path / "pieces.safetensors", mask, 8)
    assert (tmp_path / "pieces.safetensors").read_bytes() == target.read_bytes()
