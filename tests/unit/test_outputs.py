"""The one rule for outputs, and writing in one step: what may be replaced, what is never touched, and what a killed run leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.masks import hard_mask
from uniforget import atomic, outputs
from uniforget.errors import SettingError
from uniforget.mask import file as maskfile

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="links and locks of POSIX")


def ours(path):
    maskfile.save(hard_mask(), path)
    return path


def foreign(path):
    save_file({"a": torch.zeros(2)}, path, {"format": "pt"})
    return path


def filled(path, *names):
    """A folder with our note and these files."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode())
    outputs.note_folder(path)
    return path


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_file_may_be_written_and_an_old_one_only_with_overwrite_and_our_note(tmp_path):
    outputs.check(tmp_path / "new.safetensors")
    path = ours(tmp_path / "mask.safetensors")
    with pytest.raises(SettingError, match=r"mask\.safetensors: this exists already"):
        outputs.check(path)
    outputs.check(path, overwrite=True)
    for other in (foreign(tmp_path / "merge.safetensors"), tmp_path / "text.safetensors"):
        if not other.exists():
            other.write_text("not even safetensors")
        with pytest.raises(SettingError, match=rf"{other.name}: UniForget left no note.*not overwritten"):
            outputs.check(other, overwrite=True)


def test_other_files_carry_their_note_at_the_beginning(tmp_path):
    path = tmp_path / "curve.csv"
    for content, good in ((b"step,loss\n1,2\n", True), (b"name,wage\n", False), (b"", False)):
        path.write_bytes(content)
        if good:
            outputs.check(path, True, ending=".csv", begins=b"step,loss")
        else:
            with pytest.raises(SettingError, match="left no note"):
                outputs.check(path, True, ending=".csv", begins=b"step,loss")


@posix
def test_an_input_is_never_an_output_whatever_leads_to_it(tmp_path):
    model = ours(tmp_path / "model.safetensors")
    (tmp_path / "hard.safetensors").hardlink_to(model)
    (tmp_path / "soft.safetensors").symlink_to(model)
    (tmp_path / "room").symlink_to(tmp_path)
    for target in (model, tmp_path / "hard.safetensors", tmp_path / "soft.safetensors", tmp_path / "room" / "model.safetensors"):
        with pytest.raises(SettingError, match=r"itself, which is read"):
            outputs.check(target, True, [tmp_path / "nothing", model])
    for target in (tmp_path / "soft.safetensors", tmp_path / "dangling.safetensors"):
        if not target.is_symlink():
            target.symlink_to(tmp_path / "nowhere")
        with pytest.raises(SettingError, match="this is a link"):
            outputs.check(target, True)


@posix
def test_a_folder_around_or_inside_an_input_is_never_an_output(tmp_path):
    out = filled(tmp_path / "out", "unet/a", "model/b")
    (tmp_path / "link").symlink_to(out / "model")
    for source in (out / "model", tmp_path / "link", out / "unet" / "a"):
        with pytest.raises(SettingError, match="which is read"):
            outputs.check(out, True, [source], ending=None)
    with pytest.raises(SettingError, match="itself"):
        outputs.check(out, True, [out], ending=None)
    for target, ending in ((out / "model" / "new", None), (out / "model" / "m.safetensors", ".safetensors")):
        with pytest.raises(SettingError, match=r"is inside .*, which is read"):
            outputs.check(target, True, [tmp_path / "link"], ending)
    outputs.check(out, True, [tmp_path / "elsewhere"], ending=None)


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root can mount")
def test_a_mount_leads_to_an_input_under_another_name(tmp_path):
    out = filled(tmp_path / "out", "unet/a", "unet/b")
    seen = tmp_path / "seen"
    seen.mkdir()
    if subprocess.run(["mount", "--bind", out / "unet", seen], capture_output=True).returncode:
        pytest.skip("this system allows no mounts")
    try:
        for source in (seen, seen / "a"):
            with pytest.raises(SettingError, match="which is read"):
                outputs.check(out, True, [source], ending=None)
            with pytest.raises(SettingError, match="which is read"):
                outputs.check(seen, True, [out / "unet"], ending=None)
    finally:
        subprocess.run(["umount", seen], check=True)


def test_a_folder_is_overwritten_only_if_everything_in_it_is_ours(tmp_path):
    out = filled(tmp_path / "out", "unet/a", "model_index.json")
    outputs.check(out, True, ending=None)
    with pytest.raises(SettingError, match="exists already"):
        outputs.check(out, False, ending=None)
    (out / "unet" / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingError, match=r"holds unet/thesis\.txt, which UniForget did not write"):
        outputs.check(out, True, ending=None)
    (out / "unet" / "thesis.txt").unlink()
    for note in ("[]", '{"files": 3}', "{" * 100_000, "nothing", '{"files": [1, null]}'):
        (out / outputs.FOLDER_NOTE).write_text(note)
        with pytest.raises(SettingError, match=r"damaged|did not write"):
            outputs.check(out, True, ending=None)
    (out / outputs.FOLDER_NOTE).unlink()
    with pytest.raises(SettingError, match="left no note"):
        outputs.check(out, True, ending=None)


@pytest.mark.parametrize("ending", [None, ".safetensors"])
@pytest.mark.parametrize("name", [".", "..", "/", "a/..", "x\0.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors"])
def test_names_that_cannot_be_are_said(tmp_path, monkeypatch, name, ending):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="Choose") as caught:
        outputs.check(name, True, ending=ending)
    str(caught.value).encode("utf-8")


def test_kinds_that_do_not_fit_are_said(tmp_path):
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(SettingError, match="expected a file; found a folder"):
        outputs.check(tmp_path / "d.safetensors", True)
    with pytest.raises(SettingError, match="expected a folder; found a file"):
        outputs.check(ours(tmp_path / "m.safetensors"), True, ending=None)
    with pytest.raises(SettingError, match=r"expected a name that ends in \.safetensors"):
        outputs.check(tmp_path / "m.bin")
    with pytest.raises(SettingError, match="folder does not exist"):
        outputs.check(tmp_path / "no" / "m.safetensors")
    with pytest.raises(SettingError, match="two outputs"):
        outputs.distinct(tmp_path / "a", None, tmp_path / "b" / ".." / "a")


def test_what_must_be_new_does_not_replace_what_appeared_meanwhile(tmp_path):
    path = tmp_path / "x"

    def write(temporary):
        temporary.write_bytes(b"mine")
        path.write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        atomic.replace_by(path, write, overwrite=False)
    assert tree(tmp_path) == {"x": b"theirs"}
    atomic.replace(path, b"mine")
    atomic.replace(tmp_path / "y", b"new", overwrite=False)
    assert tree(tmp_path) == {"x": b"mine", "y": b"new"}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_swapped_when_the_new_one_is_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "_rename", lambda *given: False)
    out = tmp_path / "out"
    atomic.replace_folder(out, lambda at: (at / "a").write_bytes(b"1"))
    assert tree(tmp_path) == {"out/a": b"1"}

    def broken(at):
        (at / "b").write_bytes(b"2")
        assert tree(tmp_path)["out/a"] == b"1"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        atomic.replace_folder(out, broken)
    assert tree(tmp_path) == {"out/a": b"1"}
    atomic.replace_folder(out, lambda at: (at / "c").write_bytes(b"3"))
    assert tree(tmp_path) == {"out/c": b"3"} and os.listdir(tmp_path) == ["out"]


@posix
def test_what_was_moved_aside_by_a_killed_run_comes_back(tmp_path):
    aside = filled(tmp_path / f"{atomic.START}out{atomic.ASIDE}", "a")
    before = tree(aside)
    atomic.sweep(tmp_path)
    assert tree(tmp_path / "out") == before and os.listdir(tmp_path) == ["out"]
    filled(aside, "b")
    atomic.sweep(tmp_path)
    assert tree(tmp_path / "out") == before and os.listdir(tmp_path) == ["out"]


WRITER = """
import sys, time
from pathlib import Path
from uniforget import atomic
def slow(at):
    (at / "part" if at.is_dir() else at).write_bytes(b"half")
    print("going", flush=True)
    time.sleep(60)
target = Path(sys.argv[1])
(atomic.replace_folder if sys.argv[2] == "folder" else atomic.replace_by)(target, slow)
"""


@posix
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_dead_run_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, kind):
    child = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "x", kind], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline()
        [temporary] = os.listdir(tmp_path)
        atomic.replace(tmp_path / "other", b"1")
        assert sorted(os.listdir(tmp_path)) == sorted([temporary, "other"])
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    assert temporary in os.listdir(tmp_path)
    atomic.replace(tmp_path / "other", b"2")
    assert os.listdir(tmp_path) == ["other"]


def test_a_lock_is_one_runs_alone(tmp_path):
    path = tmp_path / "x.lock"
    with atomic.held(path):
        with pytest.raises(BlockingIOError), atomic.held(path):
            pass
        assert path.exists()
    assert not path.exists()
    path.write_bytes(b"")  # of a run that was killed
    with atomic.held(path):
        pass
    assert not path.exists()


def _number(folder, count, found):
    for _ in range(count):
        with outputs.numbered(folder, "m") as path:
            atomic.replace(path, b"x", overwrite=False)
            found.append(path.name)


def test_numbers_do_not_race_between_threads(tmp_path):
    found = []
    threads = [threading.Thread(target=_number, args=(tmp_path, 20, found)) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(found)) == 60 and sorted(os.listdir(tmp_path)) == sorted(found)
    assert sorted(found)[0] == "m_00001.safetensors"


def test_numbers_do_not_race_between_processes(tmp_path):
    """60 saves in each of two processes give 120 files."""
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_outputs import _number\n"
        "print('ready', flush=True); sys.stdin.readline(); found = []; _number(Path(sys.argv[1]), 60, found); print(len(found))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate()[0] for child in children] == ["60\n", "60\n"]
    assert len(os.listdir(tmp_path)) == 120


def test_numbers_go_on_behind_the_highest(tmp_path):
    (tmp_path / "M_00007.SAFETENSORS").write_bytes(b"")
    with outputs.numbered(tmp_path, "m") as path:
        assert path.name == "m_00008.safetensors"
    assert os.listdir(tmp_path) == ["M_00007.SAFETENSORS"]


def test_the_note_of_a_folder_lists_what_is_in_it(tmp_path):
    out = filled(tmp_path / "out", "b/c", "a")
    assert json.loads((out / outputs.FOLDER_NOTE).read_text())["files"] == ["a", "b/c", outputs.FOLDER_NOTE]
