"""No model folder runs code: whatever it names or holds, a stranger's program file leaves no mark.

Newer versions of diffusers refuse most of these by themselves. With the oldest one that we support the last test shows that they are real:
``pip install --target FOLDER --no-deps diffusers==0.35.2``, and run these tests with ``PYTHONPATH=FOLDER``.
"""

import contextlib
import json
import shutil
import sys

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from uniforget.errors import LearnError, ModelFileError
from uniforget.hosts.diffusers import modelindex
from uniforget.hosts.diffusers.load import load_pipeline

CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
import diffusers
class X(diffusers.DiffusionPipeline):
    pass
class UNet2DModel(diffusers.UNet2DModel):
    pass
class Scheduler(diffusers.DDPMScheduler):
    pass
"""
# what is changed in the index, and where the program file lies
HOSTILE = {
    "pipeline of its own": ({"_class_name": ["x", "X"]}, "x.py"),
    "component from a module beside it": ({"unet": ["local_unet", "UNet2DModel"]}, "unet/local_unet.py"),
    "scheduler from a module beside it": ({"scheduler": ["local_scheduler", "Scheduler"]}, "scheduler/local_scheduler.py"),
    "module that is called like a library": ({}, "unet/diffusers.py"),
    "pipeline that nobody asked for": ({}, "None.py"),
    "module of the current folder": ({"unet": ["in_current_folder", "UNet2DModel"]}, "../in_current_folder.py"),
    "two letters": ({"unet": "ab"}, "../a.py"),
    "mapping instead of a pair": ({"unet": {"in_current_folder": 0, "UNet2DModel": 1}}, "../in_current_folder.py"),
    "pipeline of the Hub": ({"_class_name": ["somebody/something", "X"]}, "something.py"),
    "dotted library": ({"unet": ["diffusers.models", "UNet2DModel"]}, "unet/diffusers.models.py"),
    "inner module": ({"unet": ["diffusers", "os.system"]}, "unet/x.py"),
    "component outside": ({"../outside": ["diffusers", "UNet2DModel"]}, "../outside/x.py"),
    "pipeline as a component": ({"unet": ["diffusers", "DiffusionPipeline"]}, "unet/x.py"),
    "function of a library": ({"unet": ["diffusers", "is_torch_available"]}, "unet/x.py"),
    "no class name": ({"_class_name": None}, "x.py"),
    "class that is not there": ({"unet": ["diffusers", "NoSuchModel"]}, "unet/x.py"),
    "module of a library": ({"unet": ["transformers", "utils"]}, "unet/x.py"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline of nothing but a network and a scheduler, which every diffusers has."""
    out = tmp_path_factory.mktemp("pipelines") / "ddpm"
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    unet = diffusers.UNet2DModel(**blocks, norm_num_groups=2, layers_per_block=1, attention_head_dim=2, sample_size=8)
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(out)
    return out


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # as the current folder is with python -m
    return shutil.copytree(whole, tmp_path / "model")


def hostile(folder, changes, file):
    """Changes the folder's index, and puts a program file there; returns what the program would leave."""
    marker = folder.parent / "marker"
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
    program = (folder / file).resolve()
    program.parent.mkdir(exist_ok=True)
    program.write_text(CODE.format(marker=str(marker)))
    return marker


@pytest.mark.parametrize("changes, file", HOSTILE.values(), ids=HOSTILE)
def test_a_model_folder_runs_no_code(folder, changes, file):
    marker = hostile(folder, changes, file)
    with pytest.raises(LearnError, match="refused, because loading it could run code") as caught:
        load_pipeline(str(folder), torch.float32)
    assert str(folder) in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("changes, file", [HOSTILE["module of the current folder"], HOSTILE["component from a module beside it"]])
def test_nor_does_the_folder_whose_settings_a_single_file_takes(folder, changes, file):
    names = ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "cond_stage_model.x")
    save_file({name: torch.zeros(4, 768) for name in names}, folder.parent / "model.safetensors")
    marker = hostile(folder, changes, file)
    with pytest.raises(LearnError, match="could run code"):
        load_pipeline(str(folder.parent / "model.safetensors"), torch.float32, config=str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", "unet/more", "notes.txt"])
def test_what_links_lead_to_elsewhere_is_not_read(folder, name):
    (folder.parent / "secret.txt").write_text("a private key")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "secret.txt")
    with pytest.raises(ModelFileError, match=rf"{name}: this is a link to .*secret\.txt"):
        load_pipeline(str(folder))


def test_settings_that_ask_for_code_are_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inner": [{"auto_map": {"AutoModel": "x.X"}}]}))
    with pytest.raises(LearnError, match=r"scheduler_config\.json of scheduler asks for code of its own \(auto_map\)"):
        load_pipeline(str(folder))


@pytest.mark.parametrize(
    "text, told", [(b"[]", "no JSON object"), (b"{", "cannot be read"), (b'{"a":' * 99_999, "cannot be read"), (b"[" + b" " * (1 << 20), "JSON")]
)  # fmt: skip
def test_an_index_that_is_none_is_named(folder, text, told):
    (folder / "model_index.json").write_bytes(text)
    with pytest.raises(LearnError, match=told):
        load_pipeline(str(folder))


def test_the_folder_itself_is_loaded(folder):
    found = load_pipeline(str(folder), torch.float32)
    assert type(found) is diffusers.DDPMPipeline and type(found.unet) is diffusers.UNet2DModel


def test_indices_of_published_models_pass(tmp_path):
    path = tmp_path / "model_index.json"
    legacy = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    more = {
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "_name_or_path": "x/y",
        "boundary_ratio": 0.9,
    }
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    path.write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **parts, **legacy, **more}))
    assert modelindex.check_index(path, "x") == [*parts, "safety_checker"]


def test_a_model_of_the_hub_is_checked_before_it_is_downloaded_and_after(folder, monkeypatch):
    asked = []
    snapshot = folder.rename(folder.with_name("0123abcd"))

    def download(path, **options):
        asked.append((path, options))
        return str(snapshot)

    monkeypatch.setattr(modelindex, "hf_hub_download", lambda identifier, name: str(snapshot / name))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert type(load_pipeline("owner/name", torch.float32)) is diffusers.DDPMPipeline
    assert asked == [("owner/name", {"revision": "0123abcd", "use_safetensors": True, "trust_remote_code": False})]
    (snapshot / "unet" / "diffusers.py").write_text("")
    with pytest.raises(LearnError, match="program file"):
        load_pipeline("owner/name")
    hostile(snapshot, *HOSTILE["pipeline of its own"])
    asked.clear()
    with pytest.raises(LearnError, match="_class_name"):
        load_pipeline("owner/name")
    assert not asked


def test_a_diffusers_that_was_never_tested_is_refused(folder, monkeypatch):
    monkeypatch.setattr(diffusers, "__version__", "0.34.0")
    with pytest.raises(LearnError, match=r"diffusers 0\.35\.2 or newer; found 0\.34\.0"):
        load_pipeline(str(folder))


REAL = [
    *("pipeline of its own", "component from a module beside it", "scheduler from a module beside it"),
    *("module that is called like a library", "pipeline that nobody asked for", "module of the current folder"),
]


@pytest.mark.skipif(not diffusers.__version__.startswith("0.35"), reason="this diffusers refuses them by itself")
@pytest.mark.parametrize("name", REAL)
def test_without_our_check_the_oldest_diffusers_runs_them(folder, monkeypatch, name):
    marker = hostile(folder, *HOSTILE[name])
    monkeypatch.setattr(modelindex, "check_folder", lambda folder: None)
    with contextlib.suppress(Exception):
        load_pipeline(str(folder), torch.float32)
    sys.modules.pop("in_current_folder", None)
    assert marker.exists()
