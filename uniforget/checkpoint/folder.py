"""diffusers folders: where their weights are, whether all of them are there, and what else in them may be a copy of the denoiser."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .. import outputs, untrusted
from ..errors import FamilyError, MismatchError, ModelFileError
from . import safefile
from .denoiser import SHARD, find_denoisers
from .safefile import Header

# Where diffusers' pipelines keep the denoiser.
FOLDERS = ("transformer", "unet")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Weights in formats that are not read: pickles, ONNX, flax, TensorFlow, GGUF, OpenVINO, TensorRT, Core ML, ...
_CLOSED = (
    *_PICKLES,
    *(
        ".onnx",
        ".onnx_data",
        ".pb",
        ".msgpack",
        ".h5",
        ".tflite",
        ".gguf",
        ".xml",
        ".engine",
        ".plan",
        ".trt",
        ".mlmodel",
        ".npz",
    ),
)
# Components that hold no denoiser, by the names of their folders; ONNX calls the VAE's halves apart.
_OTHERS = re.compile(r"(?:text_encoder|tokenizer|vae|image_encoder|safety_checker|feature_extractor|scheduler)(?:_\w+)?")
# What belongs to a picture or a document.
_HARMLESS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".pdf", ".svg", ".ico", ".zip", ".model")
_LARGEST_INDEX = 64 << 20


def parts(folder: Path) -> list[Path]:
    """All files of a model's folder, its note left out, sorted.

    Raises:
        ModelFileError: a link leads out of the folder (a copy would hold what it leads to, and it can be anything of the user's), to a folder, or nowhere.
    """
    real = Path(os.path.realpath(folder))
    homes = [real]
    # Hugging Face's cache links each snapshot of a model to files in its folder blobs.
    if real.parent.name == "snapshots" and not (blobs := real.parent.parent / "blobs").is_symlink():
        homes.append(blobs)
    found = []
    for at, folders, files in os.walk(folder):
        for path in (Path(at, name) for name in [*folders, *files]):
            leads = Path(os.path.realpath(path))
            if path.is_symlink() and not (leads.is_file() and any(leads.is_relative_to(home) for home in homes)):
                raise ModelFileError(
                    f"{path}: this is a link to {leads}; expected files of {folder} itself, because links in a stranger's folder can lead to "
                    "anything of yours. Replace the link by the file, or remove it."
                )
            if path.is_file() and path.relative_to(folder).as_posix() != outputs.FOLDER_NOTE:
                found.append(path)
    return sorted(found)


def denoiser_files(folder: Path) -> tuple[Path, list[list[Path]]]:
    """The folder of the denoiser inside a diffusers folder, and its weight files: a list for each variant (fp16, ...) that is there.

    Raises:
        ModelFileError: there is none, it is pickled, or some of its files are missing.
    """
    inner = next((folder / name for name in FOLDERS if (folder / name).is_dir()), folder)
    files = sorted(path for path in inner.iterdir() if path.name.endswith(".safetensors"))
    pickled = [path.name for path in inner.iterdir() if path.suffix in _PICKLES]
    if pickled or not files:
        has = f"found {pickled[0]}, a pickle, which is never read" if pickled else "found none"
        raise ModelFileError(
            f"{inner}: expected the denoiser's weights as .safetensors files; {has}. Give a diffusers folder with safetensors files only, or "
            "a single .safetensors file."
        )
    return inner, variants(inner, files)


def variants(folder: Path, files: Iterable[Path]) -> list[list[Path]]:
    """Files of one folder, those together that are parts of one model: by their numbers, or by an index that names them.

    Raises:
        ModelFileError: parts that the others or an index name are missing.
    """
    found: dict[str, list[Path]] = {}
    for path in files:
        # diffusion_pytorch_model[.variant][-00001-of-00003].safetensors
        match = SHARD.match(path.name)
        found.setdefault(f"{match[1]} {match[3]}" if match else path.name, []).append(path)
    for name, group in found.items():
        if match := SHARD.match(group[0].name):
            whole = [f"{match[1]}-{n:05}-of-{match[3]}.safetensors" for n in range(1, int(match[3]) + 1)]
            _refuse_missing(folder, name.partition(" ")[0], [one for one in whole if folder / one not in group])
    check_indices(folder)
    return list(found.values())


def check_indices(folder: Path, names: str = "*.safetensors.index*.json") -> None:
    """See that all weights are there that indices in a folder name.

    Raises:
        ModelFileError: some are not.
    """
    for index in sorted(folder.glob(names)):
        named = _index(index)
        _refuse_missing(folder, index.name, sorted({file for file in named.values() if not os.path.isfile(folder / file)}))
        for file in sorted(set(named.values())):
            there = safefile.read_header(folder / file).entries
            gone = [tensor for tensor, at in named.items() if at == file and tensor not in there]
            if gone:
                raise ModelFileError(
                    f"{folder / file}: {index.name} says that {gone[0]} is in it, and it is not ({len(gone)} such weights). Download the model again."
                )


def _index(path: Path) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            named = untrusted.parse_json(file.read(_LARGEST_INDEX + 1), _LARGEST_INDEX)["weight_map"]
        if not all(isinstance(file, str) and Path(file).name == file for file in named.values()):
            raise ValueError("weight_map names something else than files beside it")
        return dict(named)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: this index of weights cannot be read ({error}). Download the model again.") from error


def _refuse_missing(folder: Path, by: str, missing: Sequence[str]) -> None:
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelFileError(
            f"{folder}: {', '.join(missing[:3])}{more} {'is' if len(missing) == 1 else 'are'} missing; {by} names them as parts of this model. Download the "
            "model again."
        )


def others(folder: Path, files: Iterable[Path], known: Iterable[Path]) -> Iterator[tuple[list[Header], Path]]:
    """What else than `known` among `files` may hold a denoiser: ``(headers, path)`` of what can be read, ``([], path)`` of what cannot.

    Args:
        folder: the whole folder; `files`: all in it.
    """
    seen = set(known)
    left = [path for path in files if path not in seen]
    readable: dict[Path, list[Path]] = {}
    for path in left:
        ending = path.suffix.lower()
        if ending in (".safetensors", ".sft") or _safetensors(path):
            readable.setdefault(path.parent, []).append(path)
        elif any(_OTHERS.fullmatch(part) for part in path.relative_to(folder).parts[:-1]) or ending in _HARMLESS:
            continue
        elif ending in _CLOSED or not _text(path):
            yield [], path
    for at, found in readable.items():
        try:
            groups = variants(at, found)
        except ModelFileError:
            groups = [[path] for path in found]
        for group in groups:
            try:
                yield [safefile.read_header(path) for path in group], group[0]
            except ModelFileError:
                yield [], group[0]


def fingerprint_of(headers: Sequence[Header]) -> str | None:
    """The fingerprint of the denoiser in these files; "": there is one that cannot be changed; None: there is none."""
    try:
        return find_denoisers(headers)[0].fingerprint()
    except FamilyError:
        return None
    except (MismatchError, ModelFileError):
        return ""


def called(folder: Path, inner: Path, path: Path) -> str:
    """What a part of a folder is called for people: a component by its folder, everything else by its file."""
    own = path.parent != folder and path.parent != inner and (path.parent / "config.json").is_file()
    return (path.parent if own else path).relative_to(folder).as_posix()


def _safetensors(path: Path) -> bool:
    """Whether a file of any name begins like a safetensors file."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= untrusted.HEADER


def _text(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4096)
    try:
        start[: 4096 - 3].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(start) - 8 and b"\0" not in start
    return b"\0" not in start
