"""What ``run.py`` does: environment, ComfyUI, demo and tests. Standard library only, but for progress (aiohttp, in the venv)."""
