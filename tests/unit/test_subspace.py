"""Subspace forgetting: moments add up, the projection is exact, files come back, and what is wrong is told."""

import copy
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from testbed import evaluate, host
from testbed import model as testbed
from uniforget.errors import BadContentsError, LearnError, MaskError, MismatchError, NewerFormatError, NotAMaskError, SettingError
from uniforget.hosts.diffusers.apply import layers_of, project_
from uniforget.learn import Session, Settings, learn
from uniforget.learn import subspace as learning
from uniforget.learn.subspace import basis_of, moments, passes, subspace_of
from uniforget.learn.sums import Sums
from uniforget.mask import files, subspacefile
from uniforget.mask.edit import Project
from uniforget.mask.info import MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask

INFO = MaskInfo(family="sd3", base="", method="subspace", preset="medium")


@pytest.fixture(scope="module")
def loaded():
    return testbed.load()


@pytest.fixture(scope="module")
def model(loaded):
    return host.TestbedModel(*loaded, evaluate.learning_prompts()[::60], steps=2)


@pytest.fixture(scope="module")
def found(model):
    return moments(model, model.layers, Settings(batch=4))


@pytest.fixture(scope="module")
def subspace(model, found):
    return subspace_of(found, model.layers, 0.01, INFO)


def test_every_linear_of_the_blocks_is_looked_at(loaded, model):
    names = {layer.name for layer in model.layers}
    per_stream = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    expected = {f"joint_blocks.{i}.{s}_block.{part}" for i in range(4) for s in ("x", "context") for part in per_stream}
    # nothing reads what the last block makes of the text
    assert names == expected - {f"joint_blocks.3.context_block.{part}" for part in per_stream - {"attn.qkv"}}
    comfy = {name: tuple(t.shape) for name, t in testbed.read()[0].items()}
    from uniforget.model.layers import find_layers

    assert {(layer.name, layer.kind, layer.width) for layer in find_layers(comfy)[1]} == {
        (layer.name, layer.kind, layer.width) for layer in model.layers
    }


def test_moments_are_the_inputs_second_moments(model, found):
    layer = next(x for x in model.layers if x.name == "joint_blocks.1.x_block.mlp.fc2")
    seen = []
    hook = model.modules[layer.paths[0]].register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten(0, -2).double()))
    moments(model, [], Settings(batch=4))
    hook.remove()
    values = torch.cat(seen)
    expected = values.T @ values
    assert found.counts[layer.name] == len(values)
    torch.testing.assert_close(found.sums[layer.name], expected, rtol=1e-4, atol=1e-6 * float(expected.max()))
    assert found.traces[layer.name] == pytest.approx(float(values.square().sum()), rel=1e-5)


def test_shards_and_interrupted_runs_add_up(model, found, tmp_path):
    settings = Settings(batch=4)
    rows = list(range(model.prompts))
    parts = [moments(model, model.layers, settings, rows=rows[:4]), moments(model, model.layers, settings, rows=rows[4:])]
    both = parts[0] + parts[1]
    assert both.done == found.done and both.counts == found.counts
    for name, sums in found.sums.items():
        torch.testing.assert_close(both.sums[name], sums, rtol=1e-12, atol=1e-12 * float(sums.abs().max()))

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 4:
            raise Stop

    file = tmp_path / "part.safetensors"
    with pytest.raises(Stop):
        moments(model, model.layers, settings, stop, file=file)
    assert Sums.load(file).done == 4
    again = moments(model, model.layers, settings, file=file)
    assert all(torch.equal(again.sums[name], sums) for name, sums in found.sums.items())
    with pytest.raises(LearnError, match="cannot be added"):
        found + moments(model, model.layers[:2], settings)
    file.write_bytes(b"nothing")
    with pytest.raises(LearnError, match="cannot be resumed"):
        Sums.load(file)


def test_groups_of_layers_change_nothing(model, subspace, tmp_path):
    settings = Settings(batch=4)
    told = []
    whole = learning.run(model, settings, INFO, Session(), room=1 << 40).mask
    result = learning.run(model, settings, INFO, Session(folder=tmp_path, log=told.append), room=4_000_000)
    parts = result.mask
    assert len(list(tmp_path.iterdir())) == len(passes(model.layers, 4_000_000))
    assert whole.digest() == parts.digest()
    assert all(torch.equal(b.vectors, parts.bases[n].vectors) for n, b in whole.bases.items())
    assert int(told[0].split()[0]) == len(passes(model.layers, 4_000_000)) > 1
    assert whole.low == 0.002 and whole.high == 0.03 and whole.threshold == 0.01
    # moved later, it is what it would have been
    assert whole.at(0.02).sparsity() == pytest.approx(subspace.at(0.02).sparsity())


def test_projection_gives_up_the_threshold_and_no_more(model, found, subspace):
    for name, basis in subspace.bases.items():
        gone = basis.edit(0.01)
        if gone is None:
            continue
        identity = torch.eye(basis.width)
        projector = gone.weight(identity).double()
        torch.testing.assert_close(projector @ projector, projector, atol=1e-4, rtol=0)
        moment = found.sums[name]
        lost = float(((identity.double() - projector) @ moment @ (identity.double() - projector).T).trace() / moment.trace())
        assert 0 < lost <= 0.0101
        # one more direction would be too much
        kept = basis.kept(0.01)
        assert float(basis.energy[kept - 1 :].double().sum()) > 0.01


def test_both_bases_give_the_same_weight():
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(12, 12))[0]
    weight = torch.randn(5, 12)
    for strength in (0.3, 1.0):
        a = Project(vectors[:, 7:], False, strength).weight(weight)
        b = Project(vectors[:, :7], True, strength).weight(weight)
        torch.testing.assert_close(a, b)
    assert torch.equal(Project(vectors[:, 7:], False, 0.0).weight(weight), weight)
    assert Project(vectors[:, 7:]).weight(weight.half()).dtype == torch.float16


def test_what_q_k_and_v_share_is_counted_once():
    from testbed import unet

    torch.manual_seed(0)
    network, encoder, tokenizer = unet.build()
    small = host.TestbedModel(network.eval(), encoder, tokenizer, evaluate.learning_prompts()[:2], steps=1)
    found = moments(small, small.layers, Settings(batch=2))
    block = "middle_block.1.transformer_blocks.0"
    assert found.shared[f"{block}.attn1.to_v"] == found.shared[f"{block}.attn1.to_k"] == f"{block}.attn1.to_q"
    assert found.shared[f"{block}.attn2.to_v"] == f"{block}.attn2.to_k" != found.shared[f"{block}.attn2.to_q"]
    spanned = subspace_of(found, small.layers, 0.05, MaskInfo(family="sd1", base=""))
    before = copy.deepcopy(network)
    project_(network, spanned)
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed and all("transformer_blocks" in n and n.endswith(".weight") for n in changed)


def test_a_sketch_says_what_it_misses(monkeypatch):
    torch.manual_seed(0)
    scale = torch.logspace(0, -3, 96)
    values = torch.randn(4000, 96) * scale
    exact = values.double().T @ values.double()
    monkeypatch.setattr(learning, "SKETCH", 48)
    learning.probe.cache_clear()
    basis = basis_of(exact @ learning.probe(96).double(), float(exact.trace()))
    full = basis_of(exact, float(exact.trace()))
    assert 0 < basis.missed < 0.01 and full.missed == 0
    assert float(basis.energy.sum()) == pytest.approx(1 - basis.missed, abs=1e-6)
    # never more than the moments hold, hence never too many directions removed
    assert bool((basis.energy[:48] <= full.energy[:48] + 1e-7).all())
    assert basis.kept(0.02) >= full.kept(0.02) - 1
    assert basis.kept(basis.missed / 2) == 96 and basis.edit(basis.missed / 2) is None
    overlap = (basis.vectors[:, :5].T @ full.vectors[:, :5]).abs()
    assert torch.linalg.matrix_norm(overlap, 2) > 0.99


def test_strength_and_kinds(loaded, subspace):
    network = copy.deepcopy(loaded[0])
    project_(network, subspace, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded[0].parameters(), strict=True))
    project_(network, subspace, 1.0, {"ffn": 0.0})
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, loaded[0].get_parameter(n))}
    assert changed and all(".attn." in n for n in changed)
    half, whole = copy.deepcopy(loaded[0]), copy.deepcopy(loaded[0])
    project_(half, subspace, 0.5)
    project_(whole, subspace)
    for n, p in loaded[0].named_parameters():
        torch.testing.assert_close(half.get_parameter(n), (p + whole.get_parameter(n)) / 2, atol=1e-5, rtol=1e-5)


def test_only_some_blocks_and_kinds(subspace):
    part = subspace.select(("attn",), "1")
    assert set(part.shared) == {f"joint_blocks.1.{s}_block.attn.{p}" for s in ("x", "context") for p in ("qkv", "proj")}
    assert subspace.select() is subspace
    with pytest.raises(SettingError, match="there is no block 9"):
        subspace.select(blocks="9")
    with pytest.raises(SettingError, match="this mask has nothing of norm; it has ffn, attn"):
        subspace.select(("norm",))


def test_saved_and_loaded(loaded, subspace, tmp_path):
    path = tmp_path / "s.safetensors"
    files.save(subspace.trimmed(0.003, 0.03), path)
    again = files.load(path)
    assert isinstance(again, SubspaceMask) and again.digest() == subspace.digest() and again.info == subspace.info
    assert again.sparsity() == subspace.sparsity()
    with safe_open(path, "pt") as file:
        assert file.get_slice("joint_blocks.0.x_block.mlp.fc2.vectors").get_dtype() == "BF16"
    a, b = copy.deepcopy(loaded[0]), copy.deepcopy(loaded[0])
    project_(a, subspace)
    project_(b, again)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert float((x - y).norm()) <= 0.01 * float(x.norm())
    with pytest.raises(MaskError, match=r"expected 0\.003 to 0\.03"):
        again.at(0.1)


def test_the_trimmed_file_is_smaller(subspace, tmp_path):
    files.save(subspace, tmp_path / "all.safetensors")
    files.save(subspace.trimmed(0.01, 0.01), tmp_path / "one.safetensors")
    assert os.path.getsize(tmp_path / "one.safetensors") < 0.6 * os.path.getsize(tmp_path / "all.safetensors")


def _changed(path, out, **metadata):
    with safe_open(path, "pt") as file:
        tensors, note = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change = metadata.pop("tensors", lambda t: t)
    about = json.loads(note[subspacefile.MARK]) | metadata
    save_file(change(tensors), out, {subspacefile.MARK: json.dumps(about)})
    return out


FC2 = "joint_blocks.0.x_block.mlp.fc2"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"format": 2}, NewerFormatError, "Update UniForget"),
        ({"format": "x"}, BadContentsError, "format version"),
        ({"threshold": float("nan")}, BadContentsError, "Subspace threshold"),
        ({"threshold": "0.01"}, BadContentsError, "thresholds are no numbers"),
        ({"range": [0.003]}, BadContentsError, "damaged"),
        ({"seed": -1}, BadContentsError, "seed"),
        ({"threshold": 0.5}, BadContentsError, "Subspace threshold"),
        ({"layers": []}, BadContentsError, "no list of layers"),
        ({"layers": [["a b", "ffn", FC2]]}, BadContentsError, "a layer is described by"),
        ({"layers": [[FC2, "ffn", FC2], [FC2, "ffn", FC2]]}, BadContentsError, "stands twice"),
        ({"bases": {FC2: [-1, 0.0]}}, BadContentsError, "described by"),
        ({"bases": "[" * 100_000}, BadContentsError, "no list of layers"),
        ({"digest": "0"}, BadContentsError, "digest"),
        ({"tensors": lambda t: t | {f"{FC2}.vectors": t[f"{FC2}.vectors"].float()}}, BadContentsError, "BF16"),
        ({"tensors": lambda t: t | {f"{FC2}.vectors": t[f"{FC2}.vectors"][1:].clone()}}, BadContentsError, "do not fit"),
        ({"tensors": lambda t: t | {f"{FC2}.energy": t[f"{FC2}.energy"] * float("nan")}}, BadContentsError, "no numbers"),
        ({"tensors": lambda t: {k: v for k, v in t.items() if k != f"{FC2}.vectors"}}, BadContentsError, "damaged"),
    ],
)
def test_damaged_files_are_refused(subspace, tmp_path, change, error, words):
    path = tmp_path / "s.safetensors"
    subspacefile.save(subspace.trimmed(0.003, 0.03), path)
    with pytest.raises(error, match=words) as raised:
        files.load(_changed(path, tmp_path / "bad.safetensors", **change))
    assert "bad.safetensors" in str(raised.value)


def test_other_files_are_told_apart(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(NotAMaskError):
        files.load(tmp_path / "model.safetensors")
    with pytest.raises(NotAMaskError):
        subspacefile.load(tmp_path / "model.safetensors")
    with pytest.raises(MaskError, match="no layers"):
        SubspaceMask({}, {}, {}, 0.01, INFO)
    with pytest.raises(MaskError, match="do not fit 4 inputs"):
        SubspaceMask({"a": Basis(torch.eye(3), torch.ones(4))}, {"a": "a"}, {"a": "ffn"}, 0.01, INFO)


def test_another_model_is_refused(loaded, subspace):
    from testbed import unet

    with pytest.raises(MismatchError, match="family 'sd3'.*family 'sd1'"):
        project_(unet.build()[0], subspace)
    stranger = SubspaceMask(
        {"joint_blocks.9.x": subspace.bases[FC2]},
        {"joint_blocks.9.x": "joint_blocks.9.x"},
        {"joint_blocks.9.x": "ffn"},
        0.01,
        INFO,
    )
    with pytest.raises(MismatchError, match=r"1 of the subspace's 1 layers do not exist.*joint_blocks\.9\.x"):
        project_(loaded[0], stranger)
    wide = SubspaceMask({FC2: Basis(torch.eye(8), torch.ones(8) / 8)}, {FC2: FC2}, {FC2: "ffn"}, 0.01, INFO)
    with pytest.raises(MismatchError, match="has 8 inputs in the subspace and 1024 in the model"):
        project_(loaded[0], wide)


def test_learned_as_the_objective(model, tmp_path):
    result = learn(model, Settings(objective="subspace", batch=4), INFO, Session(folder=tmp_path))
    assert isinstance(result.mask, SubspaceMask) and result.mask.info.method == "subspace" and not result.curve
    assert result.mask.info.learn_seconds > 0 and not list(tmp_path.iterdir())
    assert layers_of(model.network)[0] == "sd3"
    other = learn(model, Settings(objective="subspace", batch=4, threshold=0.02), INFO)
    assert other.mask.threshold == 0.02 and other.mask.off_share() > result.mask.off_share()
