"""Report: what forgetting changed, as one HTML file to show to somebody."""

import hashlib
import os
import platform
from datetime import datetime

import comfy.model_management
import comfy.utils
import comfyui_version
import folder_paths
import torch
from comfy_api.latest import io

from ..testbed import model as tb
from ..uniforget import __version__, atomic
from ..uniforget.checks.likeness import likeness, sentence, word
from ..uniforget.errors import ReportFileError, SettingError
from ..uniforget.hosts.comfy import apply as host
from ..uniforget.mask import file as maskfile
from ..uniforget.report import graph as apiprompt
from ..uniforget.report import report
from .compare import need_pictures, notes, pairs
from .demo import BUNDLED, DemoModel
from .inputs import CATEGORY, MaskType, search, show, valid
from .mappicture import mask_picture
from .maskio import check_name, saving_as
from .sidebyside import to_pil

EXTENSION = ".html"
MAP_WIDTH = 1600
# Loaders of stock ComfyUI (and our own): which of their inputs names a file, in which of ComfyUI's folders.
LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints"),
    "CheckpointLoader": ("ckpt_name", "checkpoints"),
    "UNETLoader": ("unet_name", "diffusion_models"),
    "UnetLoaderGGUF": ("unet_name", "diffusion_models"),
    "UniForgetDemoModel": ("checkpoint", "checkpoints"),
}
CHUNK = 8 << 20
# SHA-256 of model files by (path, size, time): hashing one takes as long as reading it.
_hashes: dict[tuple, str] = {}


class Report(io.ComfyNode):
    """Writes a self-contained HTML report."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetReport",
            display_name="Memorization Report (Copyright)",
            category=CATEGORY,
            description=(
                "Writes one HTML file that shows what forgetting changed: pictures before and after, what was switched off, figures, and how to "
                "do it again. It opens in every browser, needs no network, and can be printed or sent to a client."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that forgot (after Apply Memorization Mask), or the original: the report says which it is.",
                ),
                MaskType.Input("mask", tooltip="The mask that was applied: what it switches off goes into the report."),
                io.Image.Input("original", tooltip="Pictures made without the mask."),
                io.Image.Input("forgotten", tooltip="Pictures made with the mask, with the same seeds and settings."),
                io.String.Input("title", default="What the model forgot", tooltip="Heading of the report: a project, a client."),
                io.String.Input("notes", multiline=True, default="", tooltip="Your own words for the reader. May stay empty."),
                io.String.Input(
                    "filename_prefix",
                    default="uniforget/report",
                    tooltip="Where to save, inside ComfyUI's output folder. A slash makes a folder. Nothing is ever overwritten.",
                ),
                io.Boolean.Input(
                    "include_workflow",
                    default=True,
                    tooltip="On: the workflow and all its settings, prompts included, are in the file. Off: neither is.",
                ),
                io.Boolean.Input(
                    "hash_model",
                    default=True,
                    tooltip="On: the checkpoint's SHA-256 is in the report, which proves which file it was. Reads the whole file once.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    optional=True,
                    force_input=True,
                    tooltip="The strength that the mask was applied at. Not connected: found in the model or in the workflow.",
                ),
                *(
                    io.String.Input(
                        name,
                        optional=True,
                        force_input=True,
                        tooltip="Text from another node for the report, such as the figures of a check. May stay unconnected.",
                    )
                    for name in ("figures_a", "figures_b", "figures_c")
                ),
                *(
                    io.Image.Input(
                        f"everyday_{name}",
                        optional=True,
                        tooltip=f"Pictures of an everyday prompt {how} the mask, to show what stays. May stay unconnected.",
                    )
                    for name, how in (("original", "without"), ("forgotten", "with"))
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[io.String.Output(id="path", display_name="path", tooltip="Where the report is.")],
            is_output_node=True,
            **search("report", "copyright", "proof", "client", "export", "html", "document"),
        )

    @classmethod
    def validate_inputs(cls, filename_prefix):
        return valid(check_name, filename_prefix, folder_paths.get_output_directory(), False, EXTENSION)

    @classmethod
    def execute(
        cls,
        model,
        mask,
        original,
        forgotten,
        title,
        notes,
        filename_prefix,
        include_workflow,
        hash_model,
        strength=None,
        figures_a=None,
        figures_b=None,
        figures_c=None,
        everyday_original=None,
        everyday_forgotten=None,
    ):
        check_name(filename_prefix, folder_paths.get_output_directory())
        need_pictures("Report", original, forgotten)
        everyday = everyday_original, everyday_forgotten
        if (everyday_original is None) != (everyday_forgotten is None):
            raise SettingError(
                "Report: expected both 'everyday_original' and 'everyday_forgotten', or neither; found one. Connect the other, too."
            )
        if everyday_original is not None:
            need_pictures("Report", *everyday)
        hidden = getattr(cls, "hidden", None)
        prompt, extra, node = (
            getattr(hidden, "prompt", None) or {},
            getattr(hidden, "extra_pnginfo", None),
            str(getattr(hidden, "unique_id", "")),
        )
        words, caution = strength_of(model, mask, strength, prompt, node)
        rows, cautions = model_rows(model, mask, prompt, node, hash_model)
        texts = (("Notes", notes), *(("Figures", text) for text in (figures_a, figures_b, figures_c)))
        made = report.Report(
            title=title,
            made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            strength=words,
            cautions=[*filter(None, [caution]), *cautions, *differences(original, forgotten)],
            prompt=apiprompt.prompt_of(prompt, apiprompt.source(prompt, node, "original")) if include_workflow else "",
            pairs=embedded(original, forgotten),
            everyday=embedded(*everyday, judged=False) if everyday_original is not None else (),
            texts=[(heading, text) for heading, text in texts if text],
            shares=mask.sparsity(),
            picture_of_mask=report.embed(mask_picture(mask, "light"), MAP_WIDTH),
            model=rows,
            mask=report.mask_rows(mask, "" if mask.what == "subspace" else hashlib.sha256(maskfile.dumps(mask)).hexdigest()),
            versions=versions(),
            settings=apiprompt.settings_of(prompt, node) if include_workflow else (),
            workflow=apiprompt.workflow_text(extra, prompt) if include_workflow else "",
        )
        path = save(report.page(made), filename_prefix)
        inside = path.relative_to(folder_paths.get_output_directory())
        saved = {"filename": path.name, "subfolder": inside.parent.as_posix().removeprefix("."), "type": "output"}
        text = show(cls, "\n".join([f"saved as {path}", *made.cautions]))
        return io.NodeOutput(str(path), ui={**text.as_dict(), "uniforget_report": [saved]})


def save(text, filename_prefix):
    """Writes the page under the next free number; returns its path.

    Raises:
        SettingError: the name leads out of the output folder.
        ReportFileError: it could not be written. Nothing half-written is left.
    """
    with saving_as(filename_prefix, inside=folder_paths.get_output_directory(), extension=EXTENSION) as path:
        try:
            atomic.replace(path, text.encode("utf-8"), overwrite=False)
        except OSError as error:
            raise ReportFileError(
                f"{path}: the report was not saved ({error.strerror or error}). Free space, allow writing there, or choose another name."
            ) from error
    return path


def strength_of(model, mask, given, prompt, node):
    """The strength in words, and a caution if nobody can tell whether `mask` was applied at all."""
    if given is not None:
        return f"{given:g}", ""
    masks = host.applied(model)
    if own := [entry["strength"] for entry in masks if entry["mask"] == mask.digest()]:
        return apiprompt.in_words(own), ""
    if masks:
        return "", "Careful: other masks than this one were applied to the model."
    return apiprompt.in_words(apiprompt.strengths(prompt, apiprompt.source(prompt, node, "forgotten"))), ""


def model_rows(model, mask, prompt, node, hash_model):
    """What identifies the model, and cautions."""
    family, _ = host.sites_of(model)
    base = host.base_fingerprint(model)
    rows, cautions = [("family", family.title)], []
    for name, path in model_files(prompt, node):
        rows.append(("file", name))
        if hash_model:
            rows.append(("SHA-256 of the file", file_hash(path)))
    rows.append(("fingerprint of the weights", base or "these weights are in a format that has none"))
    masks = ", ".join(f"{entry['mask']} at strength {entry['strength']:g}" for entry in host.applied(model))
    rows.append(("masks applied to it", masks or "none: this is the original model"))
    if mask.info.family != family.name:
        cautions.append(
            f"Careful: the mask is for models of family {mask.info.family}, and this model is of family {family.name}."
        )
    else:
        cautions += mask.cautions(base)
    return rows, cautions


def model_files(prompt, node):
    """``(name, path)`` of each model file that the pictures come from, as far as the workflow says; names are not trusted."""
    found = {}
    for other in apiprompt.in_order(prompt, node):
        entry = prompt[other]
        field, folder = LOADERS.get(entry.get("class_type"), ("", ""))
        name = (entry.get("inputs") or {}).get(field)
        if not isinstance(name, str):
            continue
        if name == BUNDLED and entry["class_type"] == DemoModel.GET_SCHEMA().node_id:
            found[name] = tb.WEIGHTS
        elif name in folder_paths.get_filename_list(folder) and (path := folder_paths.get_full_path(folder, name)):
            found[name] = path
    return list(found.items())


def file_hash(path):
    """SHA-256 of a file, with progress; can be cancelled."""
    status = os.stat(path)
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _hashes:
        sha, bar = hashlib.sha256(), comfy.utils.ProgressBar(max(1, status.st_size))
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                comfy.model_management.throw_exception_if_processing_interrupted()
                sha.update(data)
                bar.update(len(data))
        _hashes[key] = sha.hexdigest()
    return _hashes[key]


def embedded(original, forgotten, judged=True):
    """The pairs of two batches as they stand in the file, with what is left of each original."""
    found = []
    for left, right in pairs(original, forgotten)[: report.PAIRS]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        [alike] = likeness(right[None], left[None])
        said = f"The original's picture: {sentence([alike])}" if judged else f"alike {alike:.2f}"
        found.append(report.Pair(report.embed(to_pil(left)), report.embed(to_pil(right)), said, word(alike) if judged else ""))
    return found


def differences(original, forgotten):
    """What the batches do not have in common, and how many pairs are not in the report."""
    count = len(pairs(original, forgotten))
    more = [f"Of {count} pairs of pictures, the first {report.PAIRS} are in this report."] if count > report.PAIRS else []
    return [*notes(original, forgotten), *more]


def versions():
    """What it was made with; nothing that names a person or a computer."""
    device = comfy.model_management.get_torch_device()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [
        ("UniForget", __version__),
        ("ComfyUI", comfyui_version.__version__),
        ("PyTorch", torch.__version__),
        ("Python", platform.python_version()),
        ("computed on", f"{card}, {platform.system()}"),
    ]
