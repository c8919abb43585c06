"""Who judges the pictures of bench.paper: what the user gives by path. Nothing is fetched, no pickle is opened, no foreign code runs."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from uniforget.errors import LearnError, SettingError
from uniforget.hosts.diffusers import modelindex

SCALES = ("bytes", "unit", "signed", "imagenet", "clip")
_MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
BATCH = 16
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
YES, NO = (("Yes", "yes", " Yes", " yes", "YES"), ("No", "no", " No", " no", "NO"))


def needed(module: str, option: str) -> Any:
    """An imported package that only some options need.

    Raises:
        SettingError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise SettingError(
            f"{option} needs the package {package}, which is not installed. Run: pip install -r requirements-dev.txt"
        ) from error


def scaled(pictures: Sequence[Image.Image], side: int, scale: str, whole: bool = False) -> np.ndarray:
    """RGB pictures as float32 (n, 3, side, side).

    Args:
        scale: "bytes" 0 to 255, "unit" 0 to 1, "signed" -1 to 1; "imagenet" and "clip": less their mean, over their deviation.
        whole: squeeze a picture that is no square, rather than crop it.
    """
    way = Image.Resampling.BICUBIC
    fitted = [p.resize((side, side), way) if whole else ImageOps.fit(p, (side, side), way) for p in pictures]
    x = np.stack([np.asarray(p, dtype=np.float32) for p in fitted]).transpose(0, 3, 1, 2)
    if scale == "bytes":
        return x
    x = x / 255
    if scale == "signed":
        return 2 * x - 1
    if scale in _MEAN_STD:
        mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in _MEAN_STD[scale])
        x = (x - mean) / std
    return x


class Onnx:
    """A model in an ONNX file: pictures (n, 3, side, side) in, float32 (n, d) out.

    Args:
        option: that named it, for messages.
        scale: one of :data:`SCALES`; a model that takes uint8 gets bytes.
        side: of the pictures, where the file leaves it open.
        whole: see :func:`scaled`.
        vectors: it may also take embeddings (n, d); then ``vectors`` says so.

    Raises:
        SettingError: onnxruntime is not installed, or cannot use the file.
    """

    def __init__(self, path: Path, option: str, scale: str, side: int, whole: bool = False, vectors: bool = False):
        if not path.is_file():
            raise SettingError(f"{option} {path}: expected an ONNX file; found no such file. Check the path.")
        runtime = needed("onnxruntime", option)
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        providers = [one for one in PROVIDERS if one in runtime.get_available_providers()]
        self.path, self.option, self.scale, self.whole = path, option, scale, whole
        try:  # by its path: only so does onnxruntime refuse weights that lie outside of the file's folder
            self.session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its errors have no base of their own
            raise SettingError(
                f"{option} {path}: expected an ONNX model; onnxruntime cannot load it ({_line(error)}). Export it again."
            ) from error
        inputs = self.session.get_inputs()
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
        shape = list(inputs[0].shape) if len(inputs) == 1 and inputs[0].type in kinds else []
        pictures = len(shape) == 4 and shape[1] == 3 and (shape[2] == shape[3] or not all(isinstance(n, int) for n in shape[2:]))
        if not pictures and not (vectors and len(shape) == 2):
            wanted = "pictures (n, 3, height, width), as high as wide" + (", or vectors (n, d)" if vectors else "")
            raise self._fault(f"expected one input, {wanted}", f"found {[(one.shape, one.type) for one in inputs]}")
        self.name, self.dtype, self.vectors = inputs[0].name, kinds[inputs[0].type], not pictures
        self.rows = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        self.side = next((n for n in shape[2:] if isinstance(n, int) and n > 0), side)

    def __call__(self, given: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
        """Float32 (n, d): embeddings, features or, with d = 1, scores.

        Raises:
            SettingError: the model does not take or give what it should.
        """
        out = []
        scale = "bytes" if self.dtype == np.uint8 else self.scale
        for part in batches(given, self.rows or BATCH):
            x = np.asarray(part) if self.vectors else scaled(part, self.side, scale, self.whole)
            if self.rows:  # the file fixes how many there are: fill up the last ones
                x = np.concatenate([x, np.repeat(x[-1:], self.rows - len(x), 0)])
            x = x.round().astype(self.dtype) if self.dtype == np.uint8 else x.astype(self.dtype)
            try:
                found = np.atleast_1d(self.session.run(None, {self.name: x})[0])
            except Exception as error:
                raise self._fault("it stops", _line(error)) from error
            if len(found) != len(x) or not np.isfinite(found).all():
                raise self._fault("expected a row of finite numbers for each picture", f"found {found.shape}")
            out.append(found.reshape(len(x), -1)[: len(part)].astype(np.float32))
        return np.concatenate(out)

    def _fault(self, expected: str, found: str) -> SettingError:
        return SettingError(f"{self.option} {self.path}: {expected}; {found}. Export it anew, see docs/paper.md.")


def transformers_folder(folder: Path, option: str, kind: str | None = None) -> dict[str, Any]:
    """Check a folder of transformers before anything in it is loaded; returns its settings.

    Raises:
        SettingError: it is no such folder, of another kind, holds no safetensors, or asks for code of its own.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise SettingError(
            f"{option} {folder}: expected a folder of transformers with a config.json; found none. Name the model's folder."
        )
    try:
        modelindex.check_part(folder, str(folder))
        found = json.loads(config.read_text(encoding="utf-8"))
    except (LearnError, OSError, ValueError) as error:
        raise SettingError(f"{option} {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise SettingError(
            f"{option} {folder}: expected its weights as .safetensors; found none. Pickles are not opened: convert them."
        )
    if kind and found.get("model_type") != kind:
        raise SettingError(
            f"{option} {folder}: expected a model of type {kind}; found {found.get('model_type')!r:.60}. Name such a folder."
        )
    return found


def _loaded(option: str, folder: Path, loader: Any, **more: Any) -> Any:
    """What a class of transformers makes of the folder.

    Raises:
        SettingError: it cannot be loaded.
    """
    try:
        return loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **more)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
        raise SettingError(
            f"{option} {folder}: transformers cannot load it ({_line(error)}). Download it again, or name another."
        ) from error


class Clip:
    """A CLIP of transformers: embeddings of pictures and texts, float32 (n, d), each of length 1. Texts that are too long are cut off."""

    def __init__(self, folder: Path, device: str, option: str = "--clip"):
        transformers = needed("transformers", option)
        transformers_folder(folder, option, "clip")
        self.processor = _loaded(option, folder, transformers.CLIPProcessor)
        model = _loaded(option, folder, transformers.CLIPModel, use_safetensors=True)
        self.model, self.device = model.to(device).eval(), device

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.concatenate([self._unit(self.model.get_image_features, images=list(part)) for part in batches(pictures)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        cut = {"padding": True, "truncation": True, "max_length": self.model.config.text_config.max_position_embeddings}
        return np.concatenate([self._unit(self.model.get_text_features, text=list(part), **cut) for part in batches(texts)])

    def _unit(self, features: Any, **given: Any) -> np.ndarray:
        found = features(**self.processor(return_tensors="pt", **given).to(self.device))
        found = found if torch.is_tensor(found) else found.pooler_output  # since transformers 5
        return torch.nn.functional.normalize(found.float(), dim=-1).cpu().numpy()


class Asker:
    """A vision-language model of transformers that is asked yes or no.

    Args:
        question: with ``{subject}`` where the subject of the prompt goes.
    """

    def __init__(self, folder: Path, device: str, question: str, option: str = "--ask"):
        transformers = needed("transformers", option)
        transformers_folder(folder, option)
        self.question, self.device, self.option, self.folder = question, device, option, folder
        self.template_error = needed("jinja2", option).TemplateError
        self.processor = _loaded(option, folder, transformers.AutoProcessor)
        model = _loaded(option, folder, transformers.AutoModelForImageTextToText, use_safetensors=True, dtype="auto")
        self.model = model.to(device).eval()
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None or not (getattr(self.processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
            raise SettingError(
                f"{option} {folder}: expected a model that answers questions about pictures, with a chat template; found none. Name such a folder."
            )
        first = [{ids[0] for word in words if (ids := tokenizer.encode(word, add_special_tokens=False))} for words in (YES, NO)]
        self.yes, self.no = (sorted(a - b) for a, b in (first, first[::-1]))
        if not self.yes or not self.no:
            raise SettingError(f"{option} {folder}: its tokenizer does not tell 'yes' from 'no'. Name another model.")

    @torch.no_grad()
    def __call__(self, picture: Image.Image, subject: str) -> tuple[bool, bool]:
        """``(yes rather than no, whether one of them is what it would say)``."""
        chat = [{"type": "image"}, {"type": "text", "text": self.question.replace("{subject}", subject)}]
        try:
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": chat}], add_generation_prompt=True, tokenize=False
            )
            given = self.processor(text=[text], images=[picture], return_tensors="pt").to(self.device, self.model.dtype)
            logits = self.model(**given).logits[0, -1].float()
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, self.template_error) as error:
            raise SettingError(
                f"{self.option} {self.folder}: it takes no question about a picture ({_line(error)}). Name another model."
            ) from error
        return bool(logits[self.yes].max() > logits[self.no].max()), int(logits.argmax()) in {*self.yes, *self.no}


def fid(real: np.ndarray, drawn: np.ndarray) -> float:
    """Fréchet distance of two sets of features (n, d), as torchmetrics has it."""
    metric_of = needed("torchmetrics.image.fid", "--fid").FrechetInceptionDistance
    same = torch.nn.Identity()
    same.num_features = real.shape[1]  # type: ignore[assignment]
    metric = metric_of(feature=same)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(drawn).double(), real=False)
    return float(metric.compute())


def batches(things: Any, count: int = BATCH) -> Iterator[Any]:
    """`count` at a time of a sequence or an array."""
    for at in range(0, len(things), count):
        yield things[at : at + count]


def stamp(path: Path | None) -> list[Any] | None:
    """What tells a file or folder from others: names, sizes and dates."""
    if path is None:
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[file.name, (about := os.stat(file)).st_size, about.st_mtime_ns] for file in files]


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"
