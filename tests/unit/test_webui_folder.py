"""The web UIs' list of masks."""

import os
import shutil

import pytest

from tests.unit.tiny import TinyModel, random_mask
from uniforget.errors import SettingError
from uniforget.hosts.webui import folder
from uniforget.mask import files


@pytest.fixture
def place(tmp_path):
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "UniForget"
    for at in (elsewhere / "client", here / "own"):
        at.mkdir(parents=True)
    mask = random_mask(TinyModel(("ffn",)))
    files.save(mask, here / "plain.safetensors")
    for name in ("own/B.SAFETENSORS", "own/c.sft", ".hidden.safetensors", "notes.txt"):
        shutil.copy(here / "plain.safetensors", here / name)
    shutil.copy(here / "plain.safetensors", elsewhere / "client" / "d.safetensors")
    os.symlink(elsewhere, here / "linked")
    os.symlink(elsewhere / "client" / "d.safetensors", here / "e.safetensors")
    os.symlink(here, elsewhere / "client" / "around")
    os.symlink(elsewhere / "gone", here / "gone.safetensors")
    return here, mask


def test_links_are_followed_and_all_that_is_listed_loads(place):
    here, mask = place
    names = folder.masks(here)
    assert names == [
        "e.safetensors", "linked/client/d.safetensors", "own/B.SAFETENSORS", "own/c.sft", "plain.safetensors",
    ]  # fmt: skip
    for name in names:
        assert folder.load(folder.find(here, name)).digest() == mask.digest()
        assert mask.digest() in folder.describe(here, name)
    assert folder.masks(here / "nowhere") == []


def test_a_name_that_no_file_can_have_is_said_to_be_none(place):
    for name in ("x" * 300 + ".safetensors", "own/" + "y/" * 100 + "z" * 255 + ".safetensors"):
        assert "There is no mask" in folder.describe(place[0], name)


def test_a_pickle_by_another_name_is_refused_by_what_is_in_it(place):
    here, _ = place
    (here / "odd.sft").write_bytes(b"PK\x03\x04" + b"\0" * 50)
    assert "odd.sft" in folder.masks(here) and "odd.sft" in folder.describe(here, "odd.sft")
    with pytest.raises(SettingError, match=r"\.safetensors or \.sft file inside"):
        folder.find(here, "notes.txt")
