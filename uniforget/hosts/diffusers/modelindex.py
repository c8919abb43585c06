"""``model_index.json`` of a stranger, checked before diffusers reads it: it says which classes are loaded, and can ask for code.

Older versions of diffusers import what it names, such as a ``.py`` file beside it or a module in the current folder. So only classes of
diffusers and transformers pass, by their plain names, out of folders without program files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import pipelines
from huggingface_hub import hf_hub_download

from ... import untrusted
from ...checkpoint.folder import check_indices, parts
from ...errors import LearnError

NAME = "model_index.json"
# The oldest diffusers that the tests run with.
OLDEST = (0, 35, 2)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_LARGEST = 1 << 20
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def check_version() -> None:
    """See that diffusers is one that was tested.

    Raises:
        LearnError: it is older.
    """
    found = tuple(int(part) for part in re.findall(r"[0-9]+", diffusers.__version__)[:3])
    if found < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise LearnError(
            f"Expected diffusers {oldest} or newer; found {diffusers.__version__}, with which nothing here was tested. Run: pip install "
            f"'diffusers>={oldest}'"
        )


def fetched(identifier: str) -> str:
    """The commit of a model on the Hub whose index passes :func:`check_index`, so that exactly that one is downloaded.

    Raises:
        LearnError: its index does not pass.
        OSError, ValueError: the Hub cannot be reached, or has no such model.
    """
    # of the newest commit: it is what was asked for, and what is loaded then is the commit that passed
    path = Path(hf_hub_download(identifier, NAME))  # nosec B615
    check_index(path, identifier)
    # The Hub's cache keeps a folder per commit.
    return path.parent.name


def check_folder(folder: Path) -> None:
    """See that loading a diffusers folder can only load classes of diffusers and transformers, and finds all weights.

    Raises:
        LearnError: its index asks for something else, or code lies where it could be imported from.
        ModelFileError: a link leads out of it, or weights are missing that an index names.
    """
    parts(folder)
    named = check_index(folder / NAME, str(folder))
    for place in (folder, *(folder / part for part in named)):
        check_part(place, str(folder))
        check_indices(place, "*.safetensors.index.json")  # those of other variants are not loaded


def check_part(place: Path, name: str) -> None:
    """See that loading one folder, such as a component's or one of transformers, runs no code of its own. `name` is the model's, for messages.

    Raises:
        LearnError: program files lie in it, or its settings ask for code.
    """
    for file in sorted(place.iterdir()) if place.is_dir() else ():
        if file.suffix.lower() in (".py", ".pyc", ".so", ".pyd"):
            found = file.name if str(place) == name else f"{place.name}/{file.name}"
            raise _refused(name, f"it holds the program file {found}", "no programs beside weights")
        if "config" in file.name.lower() and file.suffix.lower() == ".json":
            _check_config(file, name)


def check_index(path: Path, name: str) -> list[str]:
    """The components that an index names, each of a class that is known. `name` is the model's, for messages.

    Raises:
        LearnError: it cannot be read, or asks for anything else than known classes.
    """
    index = _read(path, name)
    if not isinstance(index, dict):
        raise _refused(name, f"its {NAME} is no JSON object", "an object with a class for each component")
    found = index.get("_class_name")
    if not _class(diffusers, found, diffusers.DiffusionPipeline):
        raise _refused(name, f"_class_name is {_short(found)}", "the name of a pipeline of diffusers")
    components = []
    for part, value in index.items():
        if part.startswith("_") or value is None or isinstance(value, bool | int | float):
            continue
        wanted = "components like [library, class], and true, false, a number or null for everything else"
        if not _PLAIN.fullmatch(part) or not isinstance(value, list) or len(value) != 2:
            raise _refused(name, f"{_short(part)} is {_short(value)}", wanted)
        if value != [None, None]:
            library, kind = value
            _check_class(part, library, kind, name)
            components.append(part)
    return components


def _check_class(part: str, library: Any, kind: Any, name: str) -> None:
    """See that a component's class is one of diffusers or transformers, and no pipeline with an index of its own."""
    module = _LIBRARIES.get(library) if isinstance(library, str) else None
    # Indices of the first versions call diffusers' own module by the name of a pipeline: ["stable_diffusion", "..."].
    if module is None and isinstance(library, str) and _PLAIN.fullmatch(library):
        module = getattr(pipelines, library, None)
    if module is None or not _class(module, kind) or _class(module, kind, diffusers.DiffusionPipeline):
        raise _refused(name, f"{part} is [{_short(library)}, {_short(kind)}]", "a class of diffusers or transformers")


def _class(module: Any, kind: Any, base: type = object) -> bool:
    """Whether `kind` is the plain name of a class in `module` that can be loaded from files, defined by diffusers or transformers."""
    if not isinstance(kind, str) or not _PLAIN.fullmatch(kind):
        return False
    try:
        found = getattr(module, kind, None)
    except (ImportError, RuntimeError):  # it needs a package that is not installed
        return False
    if not isinstance(found, type) or not issubclass(found, base) or not hasattr(found, "from_pretrained"):
        return False
    return found.__module__.partition(".")[0] in _LIBRARIES


def _check_config(path: Path, name: str) -> None:
    """See that a component's settings ask for no code of their own."""
    waiting = [_read(path, name)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "auto_map" in value:
                raise _refused(name, f"{path.name} of {path.parent.name} asks for code of its own (auto_map)", "settings only")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _read(path: Path, name: str) -> Any:
    try:
        with path.open("rb") as file:
            return untrusted.parse_json(file.read(_LARGEST + 1), _LARGEST)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LearnError(f"{name}: its {path.name} cannot be read ({reason}). Download the model again.") from error


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refused(name: str, found: str, expected: str) -> LearnError:
    return LearnError(
        f"{name}: refused, because loading it could run code of whoever made it: {found}. Expected {expected}. Use a model as diffusers "
        "itself saves it, from somebody whom you trust."
    )
