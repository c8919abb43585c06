"""Load and Save Memorization Mask: masks in ComfyUI's models/uniforget/."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..uniforget import outputs
from ..uniforget.errors import MaskFileError, MaskFileMissingError, SettingError
from ..uniforget.mask import file as maskfile
from ..uniforget.mask import files, subspacefile
from .inputs import CATEGORY, MaskType, search, show, valid, valid_aside

FOLDER = "uniforget"
SHIPPED = Path(__file__).parent.parent / "masks"  # of the demo model, for the example workflows
EXTENSION = ".safetensors"
NO_MASKS = "(no masks yet: use Save Memorization Mask)"
_PART = re.compile(r"[^\x00-\x1f<>:\"/\\|?*]+")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def register_folder():
    """Tell ComfyUI about models/uniforget/, and last about what ships. Folders that extra_model_paths.yaml added stay, and stay first."""
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    default = os.path.join(folder_paths.models_dir, FOLDER)
    paths = [*paths, *(folder for folder in (default, str(SHIPPED)) if folder not in paths)]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, *files.ENDINGS})


def find_mask(name):
    """Path of the mask called `name`, as the dropdown lists it.

    Raises:
        SettingError: the name leads out of the folder, or has another ending.
        MaskFileMissingError: there is no such file.
    """
    if not isinstance(name, str) or not name or name == NO_MASKS:
        raise MaskFileMissingError(
            f"No mask is chosen. Put a mask into {_folder()}, or make one with Learn and Save Memorization Mask, then press R."
        )
    parts = _parts(name, "mask_name", _stays_inside)
    if not name.lower().endswith(files.ENDINGS):
        raise SettingError(
            f"Setting 'mask_name': expected a name that ends in {' or '.join(files.ENDINGS)}; found {name!r}. Choose one from the list."
        )
    for folder in folder_paths.get_folder_paths(FOLDER):
        path = Path(folder, *parts)
        if path.exists():
            return path
    raise MaskFileMissingError(f"There is no mask {name!r} in {_folder()}. Put the file there and press R, or choose another.")


@contextlib.contextmanager
def saving_as(filename_prefix, overwrite=False, inside=None, extension=EXTENSION):
    """Where a mask (or, `inside` another folder, something else) called `filename_prefix` is to be saved; makes the folders on the way.

    ``name.safetensors`` (or another `extension`) with `overwrite`, else ``name_00001.safetensors`` or the next free number, which nobody else
    gets as long as this lasts. See :mod:`uniforget.outputs` for what is overwritten.

    Raises:
        SettingError: the name leads out of the folder, cannot be a file name, or is of a file that UniForget did not write.
        MaskFileError: the folder cannot be made or read.
    """
    folder, name = _target(filename_prefix, inside, extension)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}{extension}"
            if not overwrite:
                path = stack.enter_context(outputs.numbered(folder, name, extension))
        except OSError as error:
            raise MaskFileError(
                f"{folder}: nothing was saved, its folder cannot be made or read ({error.strerror}). "
                "Free space, allow writing there, or choose another name."
            ) from error
        outputs.check(path, overwrite, ending=extension)
        yield path


def check_name(filename_prefix, inside=None, overwrite=False, extension=EXTENSION):
    """Refuse what :func:`saving_as` would refuse, before anything runs.

    Raises:
        SettingError: the name leads out of the folder, cannot be a file name, or is of a file that UniForget did not write.
    """
    folder, name = _target(filename_prefix, inside, extension)
    path = folder / f"{name}{extension}"
    if overwrite and os.path.lexists(path):
        outputs.check(path, True, ending=extension)


def _target(filename_prefix, inside, extension):
    """Folder and name, without ending, that `filename_prefix` stands for."""
    name, inside = str(filename_prefix).strip(), inside or _folder()
    _parts(name, "filename_prefix", _is_plain, inside)  # as it was written, for the message
    name = name[: -len(extension)] if name.lower().endswith(extension) else name
    parts = _parts(name, "filename_prefix", _is_plain, inside)
    return Path(inside, *parts[:-1]), parts[-1]


def _folder():
    return folder_paths.get_folder_paths(FOLDER)[0]


def _parts(name, setting, allowed, inside=None):
    """Folders and file of a relative name; either slash separates them, on every system."""
    parts = re.split(r"[/\\]", name)
    if not all(_fits(part) and allowed(part) for part in parts):
        raise SettingError(
            f"Setting {setting!r}: expected a plain name inside {inside or _folder()}, such as 'portraits' or 'client/portraits'; "
            f"found {name!r}. Change the name."
        )
    return parts


def _fits(part):
    """Whether file systems can have such a name: at most 255 bytes, and no half of a character."""
    return len(part.encode("utf-8", "replace")) <= 255 and part.encode("utf-8", "replace").decode() == part


def _stays_inside(part):
    """Whether `part` of a path neither leads up nor to another drive."""
    return bool(part.strip(" .")) and not set(part) & {":", "\0"}


def _is_plain(part):
    """Whether `part` can name a file or folder on every system, and not a hidden one; "None" is what ComfyUI makes of no name."""
    return part != "None" and bool(_PART.fullmatch(part)) and part.strip(" .") == part and not _DEVICES.fullmatch(part)


def _fingerprint(path):
    """What changes with a file: a mask's bytes; of a subspace, which can have gigabytes, size and time."""
    if subspacefile.is_subspace(path):
        status = os.stat(path)
        return f"{path} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(maskfile.read_bytes(path)).hexdigest()


def check_mask(name):
    """See that a mask of models/uniforget/ can be loaded.

    Raises:
        MaskFileError: it cannot.
    """
    path = find_mask(name)
    if not subspacefile.is_subspace(path):  # which can have gigabytes: execute checks it
        maskfile.load(path)


class LoadMask(io.ComfyNode):
    """Loads a mask from models/uniforget/."""

    @classmethod
    def define_schema(cls):
        names = folder_paths.get_filename_list(FOLDER) or [NO_MASKS]
        return io.Schema(
            node_id="UniForgetLoadMask",
            display_name="Load Memorization Mask",
            category=CATEGORY,
            description="Loads a mask that was saved before, from models/uniforget/.",
            inputs=[
                io.Combo.Input(
                    "mask_name", options=names, tooltip="A mask in models/uniforget/. Press R after adding files there."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[MaskType.Output(id="mask", display_name="mask", tooltip="Connect it to Apply Memorization Mask.")],
            **search("forget", "unlearn"),
        )

    @classmethod
    async def validate_inputs(cls, mask_name):
        return await valid_aside(check_mask, mask_name)

    @classmethod
    def fingerprint_inputs(cls, mask_name):
        return _fingerprint(find_mask(mask_name))

    @classmethod
    def execute(cls, mask_name):
        mask = files.load(find_mask(mask_name))
        return io.NodeOutput(mask, ui=show(cls, mask.summary()))


class SaveMask(io.ComfyNode):
    """Saves a mask into models/uniforget/."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetSaveMask",
            display_name="Save Memorization Mask",
            category=CATEGORY,
            description=(
                "Saves a mask into models/uniforget/, where Load Memorization Mask finds it. The file is small and safe to share."
            ),
            inputs=[
                MaskType.Input("mask", tooltip="From Learn Memorization Mask."),
                io.String.Input(
                    "filename_prefix",
                    default="my_mask",
                    tooltip="Name of the mask. A slash makes a folder: client/portraits.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Off: each save gets a new number (my_mask_00001). On: my_mask is replaced every time, if UniForget made it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[MaskType.Output(id="saved", display_name="mask", tooltip="The same mask, to go on with.")],
            is_output_node=True,
            **search("forget", "unlearn"),
        )

    @classmethod
    def validate_inputs(cls, filename_prefix, overwrite=False):
        return valid(check_name, filename_prefix, None, overwrite)

    @classmethod
    def execute(cls, mask, filename_prefix, overwrite):
        with saving_as(filename_prefix, overwrite) as path:
            files.save(mask, path, overwrite)
        return io.NodeOutput(mask, ui=show(cls, f"saved as {path}\n{mask.summary()}"))
