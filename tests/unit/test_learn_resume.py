"""Cancelled, killed or failed: what was learned stays, and going on gives the result of a run that was never stopped."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.unit.tiny import TinyModel, info
from uniforget.errors import LearnError
from uniforget.hosts.diffusers.apply import layers_of
from uniforget.learn import Session, Settings, resume, trajectories
from uniforget.learn import learn as engine

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(beta=300.0, steps=10, batch=4, noises=1, cfg=2.0, learning_rate=0.5)


def learn(model, settings, info, report=lambda p: None, folder=None, every=25, save=lambda result: None):
    return engine(model, settings, info, Session(report, folder, every, save=save))


def with_layers():
    model = small()
    model.layers = layers_of(model.transformer)[1]
    return model


def small():
    return TinyModel(prompts=4, steps=2)


class Cancelled(Exception):
    pass


def cancel_at(step):
    def report(progress):
        if progress.stage == "learning" and progress.step == step:
            raise Cancelled

    return report


def same(a, b):
    return a.mask.digest() == b.mask.digest() and all(torch.equal(a.soft.gates[n], g) for n, g in b.soft.gates.items())


@pytest.mark.parametrize("objective", ["stepwise", "trajectory"])
@pytest.mark.parametrize("step", [1, 5, 8])  # 8: in the hard phase
def test_going_on_gives_the_very_same_result(tmp_path, objective, step):
    settings = Settings(**{**vars(SETTINGS), "objective": objective, "target_sparsity": 0.3 if step == 5 else 0.0})
    expected = learn(small(), settings, info())
    with pytest.raises(Cancelled):
        learn(small(), settings, info(), cancel_at(step), tmp_path)
    [kept] = tmp_path.iterdir()
    seen = []
    found = learn(small(), settings, info(), lambda p: seen.append(p.step) if p.stage == "learning" else None, tmp_path)
    assert seen[0] == step + 1 and same(found, expected)
    assert repr(found.curve) == repr(expected.curve)
    assert not list(tmp_path.iterdir()), "a finished run leaves nothing"
    assert kept.name.endswith(".unfinished.safetensors")


@pytest.mark.parametrize("at", [6, 22])  # while the gap is measured after the first update, and in a later update
def test_cancelled_in_the_middle_of_an_update(tmp_path, at):
    """ComfyUI interrupts inside a forward pass."""
    expected = learn(small(), SETTINGS, info())
    model = small()
    calls = 0
    real = model.denoise

    def denoise(*args):
        nonlocal calls
        calls += 1
        if calls == at:
            raise Cancelled
        return real(*args)

    model.denoise = denoise
    with pytest.raises(Cancelled):
        learn(model, SETTINGS, info(), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert same(learn(small(), SETTINGS, info(), folder=tmp_path), expected)


def test_other_settings_or_another_model_start_anew(tmp_path):
    with pytest.raises(Cancelled):
        learn(small(), SETTINGS, info(), cancel_at(4), tmp_path)
    first = []
    report = lambda p: first.append(p.step) if p.stage == "learning" else None  # noqa: E731
    learn(small(), Settings(**{**vars(SETTINGS), "seed": 1}), info(), report, tmp_path)
    assert first[0] == 1
    first.clear()
    learn(small(), SETTINGS, info(base="another"), report, tmp_path)
    assert first[0] == 1 and len(list(tmp_path.iterdir())) == 1


def test_killed_at_any_moment_leaves_a_checkpoint_that_reads(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_learn_resume import small, info; from uniforget.learn import Session, Settings, learn\n"
        f"learn(small(), Settings(**{ {**vars(SETTINGS), 'steps': 100000}!r}), info(), Session(folder=Path(sys.argv[1]), every=1))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
    steps = []
    try:
        deadline = time.monotonic() + 900  # of a machine that may be busy
        while len(steps) < 6 and time.monotonic() < deadline:
            assert child.poll() is None, child.stderr.read().decode()
            for path in tmp_path.glob("*.unfinished.safetensors"):
                steps.append(resume.State.load(path, sum(s.units for s in small().sites)).step)
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    [path] = tmp_path.glob("*.unfinished.safetensors")
    assert resume.State.load(path, sum(s.units for s in small().sites)).step >= steps[-1] > 0
    assert steps == sorted(steps)


def test_a_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(Cancelled):
        learn(small(), SETTINGS, info(), cancel_at(4), tmp_path)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LearnError, match=rf"{path.name}.*Delete it to start over"):
        learn(small(), SETTINGS, info(), folder=tmp_path)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LearnError, match="No space left"):
        learn(small(), SETTINGS, info(), folder=tmp_path, every=2)
    assert not list(tmp_path.iterdir())


def test_nan_and_out_of_memory_say_what_to_lower_and_keep_what_there_is(tmp_path):
    def failing(after, what):
        model, calls, real = small(), [], None
        real = model.denoise

        def denoise(x, sigma, which):
            calls.append(1)
            if len(calls) < after:
                return real(x, sigma, which)
            if what == "nan":
                return real(x, sigma, which) * float("nan")
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

        model.denoise = denoise
        return model

    with pytest.raises(LearnError, match=r"not a number at step.*learning rate"):
        learn(failing(22, "nan"), SETTINGS, info(), folder=tmp_path)
    with pytest.raises(LearnError, match=r"20.00 GiB.*batch \(now 4\).*go on"):
        learn(failing(4, "memory"), SETTINGS, info(), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert same(learn(small(), SETTINGS, info(), folder=tmp_path), learn(small(), SETTINGS, info()))


def test_large_recordings_live_in_files_and_are_used_again(tmp_path, monkeypatch):
    expected = learn(small(), SETTINGS, info())
    monkeypatch.setattr(trajectories, "MAPPED_ABOVE", 0)
    with pytest.raises(Cancelled):
        learn(small(), SETTINGS, info(), cancel_at(4), tmp_path)
    assert {p.name.split(".", 1)[1] for p in tmp_path.iterdir()} == {*("teacher.json", "teacher.f16", "unfinished.safetensors")}
    stages = []
    found = learn(small(), SETTINGS, info(), lambda p: stages.append(p.stage), tmp_path)
    assert "teacher" not in stages and same(found, expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("above", [0, 1 << 30], ids=["in a file", "in memory"])
def test_cancelled_while_the_model_is_watched_goes_on_where_it_was(tmp_path, monkeypatch, above):
    settings = Settings(**{**vars(SETTINGS), "batch": 1})
    expected = learn(small(), settings, info())
    monkeypatch.setattr(trajectories, "MAPPED_ABOVE", above)

    def cancel(progress):
        if progress.stage == "teacher" and progress.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        learn(small(), settings, info(), cancel, tmp_path)
    watched = []
    found = learn(small(), settings, info(), lambda p: watched.append(p.step) if p.stage == "teacher" else None, tmp_path)
    assert watched == [3, 4] and same(found, expected)
    assert not list(tmp_path.iterdir())


def test_a_result_that_could_not_be_saved_is_not_learned_again(tmp_path):
    expected = learn(small(), SETTINGS, info())

    def full(result):
        assert same(result, expected)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        learn(small(), SETTINGS, info(), folder=tmp_path, save=full)
    seen, saved = [], []

    def save(result):
        saved.append(result)
        assert list(tmp_path.glob("*.unfinished.safetensors")), "what was kept is removed after the result is saved"

    report = lambda p: seen.append(p.step) if p.stage == "learning" else None  # noqa: E731
    found = learn(small(), SETTINGS, info(), report, tmp_path, save=save)
    assert not seen and same(found, expected) and saved == [found]
    assert not list(tmp_path.iterdir())


def test_a_subspace_that_could_not_be_saved_is_not_watched_again(tmp_path):
    settings = Settings(**{**vars(SETTINGS), "objective": "subspace"})

    def full(result):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        learn(with_layers(), settings, info(), folder=tmp_path, save=full)
    seen = []
    found = learn(with_layers(), settings, info(), lambda p: seen.append(p.step), tmp_path).mask
    wanted = learn(with_layers(), settings, info()).mask
    assert not seen and found.shared == wanted.shared and found.digest() == wanted.digest()
    for name, basis in wanted.bases.items():
        assert torch.equal(found.bases[name].vectors, basis.vectors), name
    assert not list(tmp_path.iterdir())


def test_a_subspace_that_was_cancelled_is_the_same_one_in_the_end(tmp_path):
    settings = Settings(**{**vars(SETTINGS), "objective": "subspace", "batch": 1})
    wanted = learn(with_layers(), settings, info()).mask

    def cancel(progress):
        if progress.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        learn(with_layers(), settings, info(), cancel, tmp_path)
    seen = []
    found = learn(with_layers(), settings, info(), lambda p: seen.append(p.step), tmp_path).mask
    assert seen[0] == 3 and found.digest() == wanted.digest()
    assert all(torch.equal(found.bases[name].vectors, basis.vectors) for name, basis in wanted.bases.items())


@pytest.mark.parametrize("objective", ["stepwise", "subspace"])
def test_what_was_kept_must_be_what_was_written(tmp_path, objective):
    """Other types, other names, and other numbers in the note or the tensors: an error of ours, before anything is computed with them."""
    settings = Settings(**{**vars(SETTINGS), "objective": objective, "batch": 1})

    def cancel(progress):
        if progress.stage == ("teacher" if objective == "subspace" else "learning") and progress.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        learn(with_layers(), settings, info(), cancel, tmp_path)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["note"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = []
    for name, value in note.items():
        for other in (None, "1", -1, [value], {"a": value}, 1e400, True):
            changed.append((tensors, {**note, name: other}))
        changed.append((tensors, {n: v for n, v in note.items() if n != name}))
        changed.append((tensors, {**note, f"{name}2": value}))
        if isinstance(value, dict):
            changed += [(tensors, {**note, name: {n: other for n in value}}) for other in ("x", None, math.nan)]
            changed.append((tensors, {**note, name: {**value, "b": 1.0}}))
    for name, value in tensors.items():
        for other in (value.half(), value.to(torch.int64), value[:1], value.new_zeros(0)):
            if other.dtype != value.dtype or other.shape != value.shape:
                changed.append(({**tensors, name: other.contiguous()}, note))
        changed.append(({n: t for n, t in tensors.items() if n != name}, note))
    for some, about in changed:
        save_file(some, path, {"format": resume.FORMAT, "note": json.dumps(about)})
        with pytest.raises(LearnError):
            learn(with_layers(), settings, info(), folder=tmp_path)
    path.write_bytes(whole)
    learn(with_layers(), settings, info(), folder=tmp_path)


@pytest.mark.parametrize("objective", ["stepwise", "subspace"])
def test_the_same_learning_twice_at_once_is_refused(tmp_path, objective):
    settings = Settings(**{**vars(SETTINGS), "objective": objective})
    asked = []

    def report(progress):
        if not asked:
            asked.append(1)
            with pytest.raises(LearnError, match="the same learning is going on in another process"):
                learn(with_layers(), settings, info(), folder=tmp_path)

    expected = learn(with_layers(), settings, info())
    assert learn(with_layers(), settings, info(), report, tmp_path).mask.digest() == expected.mask.digest() and asked
    assert not list(tmp_path.iterdir())
