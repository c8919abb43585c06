"""This checkout as a custom node pack: how a ComfyUI finds it, and whether it got in."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from .paths import CACHE, PACK_NAME, PACK_PARENT, ROOT

NODE_PREFIX = "UniForget"
NOT_COPIED = shutil.ignore_patterns(".*", "output", "screenshots", "tests", "__pycache__", "*.tmp")


def folder_name(comfyui: Path) -> str:
    """Name of the pack's folder as this ComfyUI sees it: the one in its ``custom_nodes`` if the pack lies there, else ours."""
    found = installed_at(comfyui)
    return found.name if found else PACK_NAME


def installed_at(comfyui: Path) -> Path | None:
    """This very checkout inside ComfyUI's own ``custom_nodes`` (cloned there, or linked), if it is."""
    custom_nodes = comfyui / "custom_nodes"
    if not custom_nodes.is_dir():
        return None
    return next((entry for entry in sorted(custom_nodes.iterdir()) if entry.is_dir() and entry.resolve() == ROOT), None)


def arguments(comfyui: Path) -> list[str]:
    """What to add to ComfyUI's command line so that it loads this checkout.

    ComfyUI is pointed at a custom_nodes folder of our own, so that nothing is written into a ComfyUI that belongs to the user.
    """
    if installed_at(comfyui):
        return []
    link()
    config = CACHE / "pack_paths.yaml"
    temporary = config.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({PACK_NAME: {"custom_nodes": str(PACK_PARENT)}}), encoding="utf-8")  # JSON is YAML
    os.replace(temporary, config)
    return ["--extra-model-paths-config", str(config)]


def link() -> Path:
    """``.cache/custom_nodes/uniforget``: a link to this checkout, or a fresh copy where the system allows no links (Windows)."""
    target = PACK_PARENT / PACK_NAME
    PACK_PARENT.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() and target.resolve() == ROOT:
        return target
    if target.is_symlink():
        target.unlink()
    if target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(ROOT, target_is_directory=True)
    except FileExistsError:  # made by another run at the same moment
        return target
    except OSError:
        shutil.copytree(ROOT, target, ignore=NOT_COPIED)
    return target


def nodes(object_info: dict[str, Any]) -> list[str]:
    """Ids of this pack's nodes in an answer of ``/object_info``."""
    return sorted(name for name in object_info if name.startswith(NODE_PREFIX))


def import_problem(log: str, folder: str = PACK_NAME) -> str:
    """The lines of ComfyUI's log that say why the pack in ``custom_nodes/<folder>`` was not imported; empty when none does."""
    lines = log.splitlines()
    ours = rf"[/\\]{re.escape(folder)}"
    failed = re.compile(rf"Cannot import .*{ours} module for custom nodes|^Skip .*{ours} module|comfy_entrypoint in .*{ours}[: ]")
    for end, line in enumerate(lines):
        if failed.search(line):
            starts = [i for i in range(end) if lines[i].startswith("Traceback (most recent call last)")]
            start = starts[-1] if starts and line.startswith("Cannot import") else end
            return "\n".join(lines[start : end + 1])
    return ""
