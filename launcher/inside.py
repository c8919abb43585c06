"""Real ComfyUI in this very process, with the pack loaded as ComfyUI loads it: for tests and benchmarks."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from .errors import LauncherError
from .paths import COMFYUI, ROOT

PACK = "uniforget_pack"
FOLDERS = ("models/checkpoints", "models/loras", "output", "input", "temp", "custom_nodes", "user")


def comfyui() -> Path:
    """The tree that COMFYUI_PATH names, else the one that run.py fetched.

    Raises:
        LauncherError: there is none.
    """
    tree = Path(os.environ.get("COMFYUI_PATH") or COMFYUI).expanduser()
    if not (tree / "main.py").exists():
        raise LauncherError(f"no ComfyUI at {tree}: run 'python run.py test', or set COMFYUI_PATH")
    return tree


def load(base: Path) -> ModuleType:
    """The pack as a package called PACK, beside ComfyUI's modules; ComfyUI's own folders are under `base`.

    A process that has done this is ComfyUI's: it parses sys.argv, owns the name ``nodes`` and keeps a lot of state.

    Raises:
        LauncherError: there is no ComfyUI.
    """
    tree = comfyui()
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(tree))
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("nodes")  # ComfyUI's, before anything of ours
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    module.nodes.maskio.register_folder()
    return module
