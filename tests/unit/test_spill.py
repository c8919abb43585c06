"""Encodings beyond a size live in a file, and are read back as they were."""

import pytest
import torch

from uniforget.learn.spill import Spill


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_contents_are_kept(tmp_path, dtype):
    store = Spill(tmp_path / "new", limit=100)
    made = [(torch.randn(n, 7) * 3).to(dtype) for n in (1, 5, 9, 3)]
    value = [[made[0], {"pooled": made[1].T}], {"more": (made[2], "text", None)}, made[3].clone()]
    kept = store.keep(value)
    assert kept[1]["more"][1:] == ("text", None) and store.written > 0
    for one, other in zip(
        (kept[0][0], kept[0][1]["pooled"], kept[1]["more"][0], kept[2]), (made[0], made[1].T, *made[2:]), strict=True
    ):
        assert one.dtype == dtype and one.shape == other.shape and torch.equal(one, other)
    assert not list((tmp_path / "new").iterdir()), "the file has no name"


def test_small_things_and_no_folder_stay_in_memory(tmp_path):
    tensor = torch.randn(8)
    assert Spill(tmp_path).keep(tensor) is tensor and not list(tmp_path.iterdir())
    assert Spill(None, limit=0).keep(tensor) is tensor


def test_tensors_outlive_the_store(tmp_path):
    store = Spill(tmp_path, limit=0)
    first, second = store.keep(torch.arange(5)), store.keep(torch.arange(5, 10))
    del store
    assert first.tolist() == [0, 1, 2, 3, 4] and second.tolist() == [5, 6, 7, 8, 9]


def test_nothing_has_to_be_cloned_to_be_learned_on(tmp_path):
    """Nodes run in inference mode; what is kept there can be used where gradients are recorded, where it lies."""
    with torch.inference_mode():
        store = Spill(tmp_path, limit=100)
        kept = store.keep([torch.arange(10.0), torch.arange(90.0)])
        assert store.written == 360
    assert not any(tensor.is_inference() for tensor in kept)
    scale = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad((kept[1] * scale).sum(), scale)
    assert gradient == 89 * 90 / 2
