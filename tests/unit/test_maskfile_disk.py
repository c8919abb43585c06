"""Mask files and disks: missing, odd and unreadable files, and saving that fails."""

import errno
import os
import stat
import sys

import pytest
import torch

from tests.unit.masks import FFN, INFO, hard_mask, soft_mask
from uniforget import atomic, errors, untrusted
from uniforget.mask import file as maskfile
from uniforget.mask.info import GateMask, MaskInfo


def test_missing_folder_and_oversized(tmp_path):
    with pytest.raises(errors.MaskFileMissingError, match=r"nothing\.safetensors: there is no such mask file"):
        maskfile.load(tmp_path / "nothing.safetensors")
    with pytest.raises(errors.NotAMaskError, match="found a folder"):
        maskfile.load(tmp_path)
    with pytest.raises(errors.MaskFileError, match="cannot be read"):
        maskfile.load("a\0b.safetensors")
    big = tmp_path / "big.safetensors"
    with open(big, "wb") as file:
        file.truncate(maskfile.MAX_BYTES + 1)
    with pytest.raises(errors.TooLargeError, match=r"big\.safetensors: expected at most 32 MB.*probably a model"):
        maskfile.load(big)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(errors.NotAMaskError, match="no regular file"):
        maskfile.load(tmp_path / "pipe.safetensors")


def test_too_many_sites_gates_or_words_are_not_written(tmp_path):
    path = tmp_path / "mask.safetensors"
    many = {f"s.{i}": torch.ones(1) for i in range(maskfile.MAX_SITES + 1)}
    wordy = GateMask(
        {"a": torch.ones(1)},
        {"a": "ffn"},
        MaskInfo("sd3", "", extra={str(i): "x" * untrusted.TEXT for i in range(untrusted.EXTRAS)}),
    )
    large = GateMask({"a": torch.ones(maskfile.MAX_GATES + 1)}, {"a": "ffn"}, INFO)
    for mask, word in (
        (GateMask(many, dict.fromkeys(many, "ffn"), INFO), "8192 sites"),
        (wordy, "extra texts"),
        (large, "16777216 gates"),
    ):
        with pytest.raises(errors.TooLargeError, match=word):
            maskfile.save(mask, path)
    assert not os.listdir(tmp_path)


def test_saving_elsewhere(tmp_path):
    with pytest.raises(errors.MaskWriteError, match="ends in .safetensors"):
        maskfile.save(hard_mask(), tmp_path / "mask.bin")
    with pytest.raises(errors.MaskWriteError, match="Check that the folder exists"):
        maskfile.save(hard_mask(), tmp_path / "nowhere" / "mask.safetensors")
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(errors.MaskWriteError, match=r"taken\.safetensors: the mask was not saved"):
        maskfile.save(hard_mask(), tmp_path / "taken.safetensors")
    assert os.listdir(tmp_path) == ["taken.safetensors"]


class FailingFile:
    """A file that is being written when the disk fails at `step`."""

    def __init__(self, file, step, error):
        self.file, self.step, self.error = file, step, error

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()
        self.fail_at("close")

    def fail_at(self, step):
        if step == self.step:
            raise self.error

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.fail_at("write")
        return len(data)

    def flush(self):
        self.fail_at("flush")

    def fileno(self):
        return self.file.fileno()


@pytest.fixture
def failing_disk(monkeypatch, tmp_path):
    """``failing_disk(step, number)``: from now on saving fails there. Returns the list of what lay in the folder then."""

    def make(step, number):
        seen = []
        error = OSError(number, os.strerror(number))

        def fail(*args, **kwargs):
            seen.extend(os.listdir(tmp_path))
            raise error

        def failing_open(path, mode):
            file = FailingFile(open(path, mode), step, error)  # noqa: SIM115 (it closes the file)
            seen.extend(os.listdir(tmp_path))
            return file

        if step in ("fsync", "replace"):
            monkeypatch.setattr(os, step, fail)
        else:
            monkeypatch.setattr(atomic, "open", fail if step == "open" else failing_open, raising=False)
        return seen

    return make


ADVICE = {
    "ENOSPC": "The disk is full: free some space",
    "EDQUOT": "The disk is full: free some space",
    "EROFS": "read-only, or open in another program",
    "EACCES": "read-only, or open in another program",
    "EIO": "Check that the folder exists and can be written to",
}


@pytest.mark.parametrize("code", [code for code in ADVICE if hasattr(errno, code)])
@pytest.mark.parametrize("step", ["open", "write", "flush", "fsync", "close", "replace"])
def test_a_failure_while_saving_leaves_the_old_file_and_nothing_else(step, code, tmp_path, failing_disk):
    path = tmp_path / "mask.safetensors"
    maskfile.save(hard_mask(), path)
    before = path.read_bytes()
    number = getattr(errno, code)
    seen = failing_disk(step, number)
    with pytest.raises(errors.MaskWriteError) as caught:
        maskfile.save(soft_mask(), path)
    # The new contents stood beside it under another name, or this would test nothing.
    assert len(seen) == 2
    assert str(caught.value) == f"{path}: the mask was not saved ({os.strerror(number)}). {sentence(caught.value, code)}"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mask.safetensors"]


def sentence(error, code):
    """The error's last sentence, which must give the advice for `code`."""
    last = str(error).rpartition("). ")[2]
    assert ADVICE[code] in last and last.endswith(".")
    return last


@pytest.mark.parametrize("step", ["write", "flush", "fsync", "close", "replace"])
def test_a_disk_that_is_full_at_the_first_save_leaves_an_empty_folder(step, tmp_path, failing_disk):
    seen = failing_disk(step, errno.ENOSPC)
    with pytest.raises(errors.MaskWriteError, match="The disk is full"):
        maskfile.save(hard_mask(), tmp_path / "mask.safetensors")
    assert len(seen) == 1 and not os.listdir(tmp_path)


def test_a_real_write_that_stops_halfway_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    path = tmp_path / "mask.safetensors"
    maskfile.save(hard_mask(), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(errors.MaskWriteError, match=r"mask\.safetensors: the mask was not saved \(File too large\)"):
            maskfile.save(soft_mask(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mask.safetensors"]


def test_stopping_while_saving_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        maskfile.save(hard_mask(), tmp_path / "mask.safetensors")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5])
def test_gates_that_were_changed_to_something_else_are_not_written(value, tmp_path):
    path = tmp_path / "mask.safetensors"
    maskfile.save(hard_mask(), path)
    before = path.read_bytes()
    mask = soft_mask()
    mask.gates[FFN][2] = value
    with pytest.raises(errors.MaskError, match=rf"Site {FFN}: expected gates from 0 to 1; found .*{value:g}"):
        maskfile.save(mask, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["mask.safetensors"]


@pytest.mark.skipif(not hasattr(os, "pathconf"), reason="the longest name is not known on this system")
def test_every_name_that_the_disk_allows_can_be_saved(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".safetensors")
    path = tmp_path / f"{'x' * longest}.safetensors"
    maskfile.save(hard_mask(), path)
    assert maskfile.load(path).digest() == hard_mask().digest()
    with pytest.raises(errors.MaskWriteError, match="Choose a shorter name"):
        maskfile.save(hard_mask(), tmp_path / f"x{path.name}")


@pytest.mark.parametrize("call", ["stat", "open"])
@pytest.mark.parametrize("code", ["EACCES", "EIO"])
def test_a_file_that_cannot_be_read_is_named(call, code, tmp_path, monkeypatch):
    path = tmp_path / "mask.safetensors"
    maskfile.save(hard_mask(), path)
    number = getattr(errno, code)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    if call == "stat":
        monkeypatch.setattr(os, "stat", fail)
    else:
        monkeypatch.setattr(maskfile, "open", fail, raising=False)
    with pytest.raises(errors.MaskFileError) as caught:
        maskfile.load(path)
    monkeypatch.undo()
    assert str(caught.value) == (
        f"{path}: the mask file cannot be read ({os.strerror(number)}). Check the name and the file's permissions."
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no folder that nobody can write to on this system")
def test_a_folder_that_not_even_root_can_write_to():
    with pytest.raises(errors.MaskWriteError, match=r"/sys/mask\.safetensors: the mask was not saved.*is read-only"):
        maskfile.save(hard_mask(), "/sys/mask.safetensors")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_without_permission_to_read(tmp_path):
    path = tmp_path / "mask.safetensors"
    maskfile.save(hard_mask(), path)
    path.chmod(0)
    with pytest.raises(errors.MaskFileError, match=r"cannot be read \(Permission denied\)"):
        maskfile.load(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(errors.MaskWriteError, match="read-only"):
            maskfile.save(hard_mask(), tmp_path / "mask.safetensors")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="no permission bits on this system")
def test_saved_files_have_the_permissions_of_any_new_file(tmp_path):
    maskfile.save(hard_mask(), tmp_path / "mask.safetensors")
    (tmp_path / "other").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "mask.safetensors").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
