"""Where things lie. Everything that the launcher makes is in ``.venv``, ``.cache`` and ``output``, all ignored by git."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
COMFYUI = CACHE / "comfyui"
PACK_NAME = "uniforget"
PACK_PARENT = CACHE / "custom_nodes"
LOG = CACHE / "comfyui.log"
OUTPUT = ROOT / "output"
DEMO_WORKFLOW = ROOT / "example_workflows" / "9 The whole story with the demo model.json"


def venv_python(venv: Path = VENV) -> Path:
    """The interpreter of a virtual environment, on this system."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"
