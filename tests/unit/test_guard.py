"""Around every command: what nobody expects becomes a message with a log, signals clean up, and one rule holds for outputs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.masks import hard_mask
from tests.unit.test_cli import ROOT, folder, here, learning
from tests.unit.test_sanitize import checkpoint
from tests.unit.test_verify import whole_mask
from tests.unit.tiny import TinyModel, random_mask
from uniforget.cli import files as filecli
from uniforget.cli import guard
from uniforget.learn.optimize import Optimizer
from uniforget.mask import files

__all__ = ["folder"]


@pytest.fixture
def model(tmp_path):
    """A checkpoint, and a mask that fits it."""
    checkpoint(tmp_path / "model.safetensors")
    files.save(random_mask(TinyModel(("ffn", "norm", "attn"))), tmp_path / "mask.safetensors")
    return tmp_path / "model.safetensors"


def test_what_nobody_expects_is_said_with_a_log_to_report(tmp_path, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("a \x1b[2J secret\nuniforget: saved")

    monkeypatch.setattr(filecli, "inspect", broken)
    monkeypatch.setattr(guard.tempfile, "tempdir", str(tmp_path))
    done = here("inspect", "file.safetensors")
    assert done.returncode == 3 and "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "ZeroDivisionError" in done.stderr and "Please report it" in done.stderr
    log = Path(re.search(r"with (\S+\.log)", done.stderr)[1]).read_text()
    assert "Traceback" in log and "in broken" in log and "'inspect', 'file.safetensors'" in log


def test_a_reader_that_has_enough_is_no_fault(monkeypatch):
    done = subprocess.run(
        f"{sys.executable} -m uniforget families --json | head -c 5", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[\n  {"[:5] and done.stderr == ""


LONG = "x" * 300
DEEP = "[" * 200_000


@pytest.mark.parametrize("command", ["apply", "compact", "learn", "recover", "combine"])
@pytest.mark.parametrize(
    "name", [".", "..", "/", LONG, f"{LONG}.safetensors", "\ud800.safetensors", "\udcff", "a\0b", "no/where.safetensors"]
)
def test_outputs_that_cannot_be_are_said_before_anything_starts(model, tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    inputs = ["mask.safetensors"] if command == "combine" else ["model.safetensors"]
    inputs += ["mask.safetensors"] if command in ("apply", "compact", "recover") else []
    done = here(command, *inputs, "-o", name, *(["--overwrite"] if name in (".", "..") else []))
    # Not even the system hands over the first two: they are wrong usage.
    assert done.returncode == (2 if "\ud800" in name or "\0" in name else 1)
    assert done.returncode == 2 or re.search(r"Choose|Change it|Make it", done.stderr), done.stderr
    assert "report" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["mask.safetensors", "model.safetensors"]


@pytest.mark.parametrize("name", [LONG, "\ud800", "\udcff.safetensors", ".", "", "a\0b"])
@pytest.mark.parametrize("command", ["inspect", "verify", "apply", "compact", "combine", "recover", "learn"])
def test_inputs_that_cannot_be_are_said(tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    more = [] if command in ("inspect", "verify") else ["-o", "out.safetensors"]
    second = [name] if command in ("apply", "compact", "recover") else []
    done = here(command, name, *second, *more)
    assert done.returncode == (2 if name in ("\ud800", "a\0b") and command != "learn" else 1), done.stderr
    assert "report" not in done.stderr and ("uniforget: " in done.stderr or done.returncode == 2)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "text", [DEEP, '{"steps": 1' + "0" * 5000 + "}", '{"steps": 1' + "0" * 400 + "}", '{"steps": NaN}', "[1]", '{"steps": {}}']
)
def test_hostile_settings_are_said(model, tmp_path, text):
    settings = tmp_path / "settings.json"
    settings.write_text(text)
    done = here("learn", str(model), "-o", str(tmp_path / "out.safetensors"), "--settings", str(settings))
    assert done.returncode == 1 and "report" not in done.stderr and re.search(r"steps|settings\.json", done.stderr)


@pytest.mark.parametrize("command", ["learn", "recover", "combine", "compact", "apply"])
def test_no_command_replaces_what_is_not_ours_or_what_it_reads(model, tmp_path, command):
    """`learn MODEL -o MODEL --overwrite` once replaced the model that was learned from."""
    mask, merge = tmp_path / "mask.safetensors", tmp_path / "merge.safetensors"
    save_file({"a": torch.zeros(1)}, merge, {"format": "pt"})
    (tmp_path / "link.safetensors").symlink_to(mask if command == "combine" else model)
    inputs = [str(mask)] if command == "combine" else [str(model)]
    inputs += [str(mask)] if command in ("apply", "compact", "recover") else []
    before = {path: path.read_bytes() for path in (model, mask, merge)}
    for target, words in (
        (merge, "left no note"),
        (Path(inputs[0]), "itself, which is read"),
        (tmp_path / "link.safetensors", "itself, which is read"),
    ):
        for more in ([], ["--overwrite"]):
            done = here(command, *inputs, "-o", str(target), *more)
            said = words if more or "itself" in words else "exists already"
            assert done.returncode == 1 and said in done.stderr, done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_apply_deletes_no_folder_that_is_not_its_own(folder, tmp_path):
    """`apply FOLDER MASK -o DIR --overwrite` once deleted whatever DIR was: the folder around the model, the model, a folder of documents."""
    model, documents, mask = tmp_path / "models" / "tiny", tmp_path / "documents", tmp_path / "mask.safetensors"
    shutil.copytree(folder, model)
    documents.mkdir()
    (documents / "thesis.txt").write_text("years of work")
    files.save(whole_mask(folder), mask)
    (tmp_path / "link").symlink_to(tmp_path / "models")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for target, words in (
        (model.parent, "is inside this folder"),
        (tmp_path / "link", "is inside this folder"),
        (model, "itself, which is read"),
        (tmp_path / "link" / "tiny", "itself, which is read"),
        (model / "unet", "is inside"),
        (model / "new", "is inside"),
        (documents, "left no note"),
        (Path(), "expected the name"),
    ):
        done = here("apply", str(model), str(mask), "-o", str(target), "--overwrite")
        assert done.returncode == 1 and words in done.stderr, done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_curve_is_an_output_too(model, tmp_path):
    diary = tmp_path / "diary.csv"
    diary.write_text("name,wage\n")
    for more, words in (([], "exists already"), (["--overwrite"], "left no note")):
        done = here("learn", str(model), "-o", str(tmp_path / "m.safetensors"), "--curve", str(diary), *more)
        assert done.returncode == 1 and words in done.stderr
    same = here("learn", str(model), "-o", str(tmp_path / "m.safetensors"), "--curve", str(tmp_path / "m.safetensors"))
    assert "two outputs" in same.stderr and diary.read_text() == "name,wage\n"
    for objective in ("stepwise", "scores", "subspace"):
        lost = here(
            "learn",
            str(model),
            "-o",
            str(tmp_path / "m.safetensors"),
            "--objective",
            objective,
            "--curve",
            str(tmp_path / "no" / "c.csv"),
        )
        assert lost.returncode == 1 and "its folder does not exist" in lost.stderr


def test_nothing_finished_is_lost_when_saving_fails(folder, tmp_path, monkeypatch):
    """The disk is full at the end: the same command saves without learning again. A curve that cannot be saved costs nothing."""
    out, curve, steps, real = tmp_path / "mask.safetensors", tmp_path / "curve.csv", [], Optimizer.move
    monkeypatch.setattr(Optimizer, "move", lambda self, *given: steps.append(1) or real(self, *given))
    command = learning(folder, out, "--json", "--curve", str(curve))

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("uniforget.mask.file.atomic.replace", full)
        done = here(*command)
    assert done.returncode == 1 and "No space left" in done.stderr and not out.exists()
    # Nothing could be kept, either: a disk that is full for everything loses what a later run learns again.
    steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr("uniforget.cli.learn.files.save", full)
        assert here(*command).returncode == 3
    assert len(steps) == 4 and not out.exists() and list(tmp_path.glob(".uniforget-unfinished/*.unfinished.safetensors"))
    steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr("uniforget.cli.learn.curve_csv", full)
        done = here(*command)
    told = json.loads(done.stdout)
    assert done.returncode == 0 and not steps and files.load(out).digest() == told["digest"]
    assert "curve was not saved" in told["cautions"][0] and not curve.exists()
    assert not list(tmp_path.glob(".uniforget-unfinished/*"))


SLOW = """
import sys, time
from uniforget.checkpoint import safefile
from uniforget.cli.app import main
old = safefile.chunks
def slow(entry):
    print("going", flush=True); time.sleep(0.1)
    yield from old(entry)
safefile.chunks = slow
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_leave_nothing_behind(model, tmp_path, name):
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, "apply", model, tmp_path / "mask.safetensors", "-o", tmp_path / "out.safetensors"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(3):
        assert child.stdout.readline() == "going\n"
    assert [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]
    child.send_signal(getattr(signal, name))
    _, errors = child.communicate()
    assert child.returncode == 128 + getattr(signal, name) and "Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == ["mask.safetensors", "model.safetensors"]


def test_names_that_are_no_text_can_be_printed(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.safetensors"))
    files.save(hard_mask(), path)
    done = subprocess.run(
        [sys.executable, "-m", "uniforget", "combine", path, "-o", bytes(tmp_path) + b"/\xfe.safetensors"],
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == 0 and b"saved as" in done.stdout, done.stderr
