"""A real Forge: FORGE_PATH names its folder, FORGE_PYTHON its interpreter (else its own venv's). Without them all of this is skipped."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.forge.server import ForgeServer

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def forge_path():
    """Forge's folder."""
    named = os.environ.get("FORGE_PATH")
    if not named:
        pytest.skip("FORGE_PATH names no Forge: see CONTRIBUTING.md")
    path = Path(named).expanduser().resolve()
    if not (path / "modules_forge").is_dir():
        pytest.fail(f"FORGE_PATH={named}: expected a folder of Stable Diffusion WebUI Forge, with modules_forge/ in it.")
    return path


@pytest.fixture(scope="session")
def forge_python(forge_path):
    """The interpreter that runs Forge."""
    found = [os.environ.get("FORGE_PYTHON"), forge_path / "venv/bin/python", forge_path / "venv/Scripts/python.exe"]
    for candidate in found:
        if candidate and Path(candidate).exists():
            return str(candidate)
    pytest.fail("There is no FORGE_PYTHON, and no venv in Forge's folder: set FORGE_PYTHON to the interpreter that runs Forge.")


@pytest.fixture(scope="session")
def run_in_forge(forge_path, forge_python):
    """``run_in_forge(script, *arguments)``: a file of this folder run by Forge's interpreter in its folder; what it printed."""

    def run(script, *arguments):
        command = [forge_python, "-W", "ignore", str(HERE / script), *map(str, arguments)]
        done = subprocess.run(command, cwd=forge_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory, run_in_forge):
    """A data folder for Forge with a tiny random checkpoint; about 600 MB, most of which is CLIP and VAE."""
    folder = tmp_path_factory.mktemp("forge")
    (folder / "models" / "Stable-diffusion").mkdir(parents=True)
    run_in_forge("make_checkpoint.py", folder / "models" / "Stable-diffusion" / "tiny.safetensors")
    return folder


@pytest.fixture(scope="session")
def server(forge_path, forge_python, data):
    """A running Forge with our extension."""
    with ForgeServer(forge_path, forge_python, data) as started:
        yield started
