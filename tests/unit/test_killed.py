"""Killed at any moment: the real command line in a process of its own, killed outright before every step it takes on the disk.

There is the old result or the new one, never half of one; the next run removes what was left, and nothing that was learned is lost.
"""

import os
import shutil
import signal
import sys
from functools import partial

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from bench.kills import digest
from tests.unit.test_cli import folder, here, learning
from tests.unit.test_compact import hard_mask
from tests.unit.test_verify import whole_mask
from tests.unit.tiny_pipelines import pipeline, single_file
from uniforget import outputs
from uniforget.checkpoint.fileplan import Use
from uniforget.checkpoint.sanitize import sanitize
from uniforget.checkpoint.verify import verify
from uniforget.cli.app import main
from uniforget.learn import Session, resume
from uniforget.mask import files

__all__ = ["folder"]
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
# Steps on the disk, as Python's audit hooks tell them; ctypes is the swap of two folders.
STEPS = ("os.", "shutil.", "fcntl.", "ctypes.call_function", "ctypes.dlsym", "open")
LIMIT = 120  # seconds that a command may take


def killed(arguments, at, inside):
    """Run a command in a process that kills itself before step `at` on files of the folder `inside`; whether it came that far."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL, "took too long"
        return os.WIFSIGNALED(status)
    signal.alarm(LIMIT)
    seen, folder_of = [], str(inside)

    def step(event, given):
        if event.startswith(STEPS) and (event.startswith(("ctypes.", "fcntl.")) or folder_of in repr(given)):
            seen.append(event)
            if len(seen) > at:
                os.kill(os.getpid(), signal.SIGKILL)

    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    sys.argv = ["uniforget", *map(str, arguments)]
    sys.addaudithook(step)
    code = 70
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def moments(arguments, inside, stride):
    """Each `stride`-th moment of a command, the first ones too, until it gets to its end."""
    at = 0
    while killed(arguments, at, inside):
        yield at
        at += stride


def tree(at):
    return {p.relative_to(at).as_posix(): p.read_bytes() for p in at.rglob("*") if p.is_file()}


def test_a_folder_is_the_old_one_or_the_new_one(folder, tmp_path):
    """`apply FOLDER MASK -o DIR --overwrite`."""
    mask, place, file = whole_mask(folder), tmp_path / "place", tmp_path / "mask.safetensors"
    place.mkdir()
    out = place / "out"
    files.save(mask, file)
    sanitize(folder, out, [Use(files.load(file), 0.5)])
    old = tree(out)
    arguments = ("apply", folder, file, "-o", out, "--overwrite")
    seen = set()
    for at in moments(arguments, place, 5):
        found = tree(out)
        seen.add(found == old)
        assert found == old or verify(out, folder).ok, f"half written at step {at}"
        assert all(name == "out" or name.startswith(".uniforget-") for name in os.listdir(place))
        if found != old:
            shutil.rmtree(out)
            sanitize(folder, out, [Use(files.load(file), 0.5)])
    assert True in seen and tree(out) != old and verify(out, folder).ok and os.listdir(place) == ["out"]
    outputs.check(out, True, ending=None)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path, overwrite, folder):
    mask, place = whole_mask(folder), tmp_path / "place"
    place.mkdir()
    out, file = place / "out.safetensors", tmp_path / "mask.safetensors"
    files.save(mask, file)
    other = mask.__class__({n: 1 - g for n, g in mask.gates.items()}, mask.kinds, mask.info)
    if overwrite:
        files.save(other, out)
    digests = {None, other.digest()} if overwrite else {None}
    count = 0
    for _ in moments(("combine", file, "-o", out, *overwrite), place, 1):
        count += 1
        if out.exists():
            digest = files.load(out).digest()
            assert digest in {mask.digest(), *digests}
            if digest == mask.digest():  # killed afterwards
                out.unlink()
                if overwrite:
                    files.save(other, out)
        else:
            assert not overwrite
    assert count > 5 and files.load(out).digest() == mask.digest() and os.listdir(place) == ["out.safetensors"]


def test_a_compact_model_is_the_old_one_or_the_new_one(tmp_path):
    place, pipe = tmp_path / "place", pipeline("sd1")
    place.mkdir()
    model, file, out = tmp_path / "model.safetensors", tmp_path / "mask.safetensors", place / "out.safetensors"
    save_file({name: tensor.half() for name, tensor in single_file(pipe).items() if name.startswith("model.")}, model)
    files.save(hard_mask(pipe.unet), file)
    arguments = ("compact", model, file, "-o", out, "--overwrite", "--multiple")
    assert here(*map(str, arguments), "8").returncode == 0
    new = digest(out)
    assert here(*map(str, arguments), "64").returncode == 0
    old, content, seen = digest(out), out.read_bytes(), []
    for at in moments((*arguments, "8"), place, 2):
        seen.append(digest(out))
        assert seen[-1] in (old, new), f"half written at step {at}"
        out.write_bytes(content)
    assert seen.count(old) > 2 and digest(out) == new != old and os.listdir(place) == ["out.safetensors"]


def recovering(folder, output):
    """`recover`, with what :func:`learning` sets."""
    mask = output.parent.parent / "given.safetensors"
    files.save(whole_mask(folder), mask)
    words = [*learning(folder, output, "--rank", "2")]
    for name in ("--preset", "--beta"):
        del words[words.index(name) : words.index(name) + 2]
    words[words.index("--learning-rate") + 1] = "0.001"
    return ("recover", words[1], str(mask), *words[2:])


@pytest.mark.parametrize("command", [learning, recovering])
def test_learning_goes_on_wherever_it_was_killed(folder, tmp_path, monkeypatch, command):
    """Saved after every update: each run goes on, none learns an update twice, and the end is what a run gives that was never killed."""
    monkeypatch.setattr("uniforget.cli.learn.Session", partial(Session, every=1))
    whole, place = tmp_path / "first" / "whole.safetensors", tmp_path / "place"
    place.mkdir()
    whole.parent.mkdir()
    assert here(*command(folder, whole)).returncode == 0
    command = command(folder, place / "mask.safetensors")
    kept, runs = [], 0
    at = 12
    while killed(command, at, place):
        runs += 1
        found = list(place.glob(".uniforget-unfinished/*.unfinished.safetensors"))
        if (place / "mask.safetensors").exists():
            break
        if found:
            with safe_open(found[0], "pt") as file:
                size = file.get_slice("params").get_shape()[0]
            kept.append(resume.State.load(found[0], size).step)
        at += 9
    assert runs > 2 and kept == sorted(kept) and kept[-1] > 0
    if not (place / "mask.safetensors").exists() or here(*command).returncode:
        here(*command)
    assert digest(place / "mask.safetensors") == digest(whole)
