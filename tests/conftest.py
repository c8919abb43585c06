"""Markers by folder, one real ComfyUI for the whole run, and Chromium."""

import os
import shutil
from pathlib import Path

import pytest

from launcher.convert import to_prompt
from launcher.errors import LauncherError
from launcher.paths import COMFYUI, VENV, venv_python
from launcher.server import ComfyServer, Install, running
from launcher.setup import users_install

HERE = Path(__file__).parent
TIERS = ("unit", "comfyui", "browser", "forge")


def pytest_collection_modifyitems(items):
    for item in items:
        tier = Path(item.path).relative_to(HERE).parts[0]
        if tier in TIERS:
            item.add_marker(tier)


@pytest.fixture(scope="session")
def install():
    """ComfyUI and its interpreter: COMFYUI_PATH, else what ``run.py`` has prepared."""
    own = os.environ.get("COMFYUI_PATH")
    if own:
        try:
            return users_install(Path(own).expanduser())
        except LauncherError as error:
            pytest.fail(str(error))
    python = venv_python()
    if not COMFYUI.is_dir() or not python.exists():
        pytest.fail(
            f"There is no ComfyUI in {COMFYUI} or no environment in {VENV} yet: start the tests with 'python run.py test'."
        )
    return Install(COMFYUI, python)


@pytest.fixture(scope="session")
def server(install, tmp_path_factory):
    """A running :class:`launcher.server.ComfyServer` with the pack; its folders (``server.folders``) are temporary ones."""
    work = tmp_path_factory.mktemp("comfyui")
    with running(ComfyServer(install, work, work / "comfyui.log")) as started:
        yield started


@pytest.fixture(scope="session")
def client(server):
    """The :class:`launcher.client.ComfyClient` of the running server."""
    return server.client


@pytest.fixture(scope="session")
def object_info(client):
    """All nodes of the running server."""
    return client.object_info()


@pytest.fixture(scope="session")
def graph(object_info):
    """``graph(kind, **inputs)``: a node for the API, with the defaults of all widgets that are not given."""

    def make(kind, **inputs):
        specs = object_info[kind]["input"]["required"]
        defaults = {n: s[1]["default"] for n, s in specs.items() if len(s) > 1 and "default" in s[1]}
        return {"class_type": kind, "inputs": {**defaults, **inputs}}

    return make


@pytest.fixture(scope="session")
def as_prompt(object_info):
    """``as_prompt(workflow)``: a saved workflow as a prompt for the API."""
    return lambda workflow: to_prompt(workflow, object_info)


@pytest.fixture(scope="session")
def chromium():
    """Path of a Chromium: CHROMIUM, or where systems put it. Without one: a failure in CI, a skip elsewhere."""
    named = os.environ.get("CHROMIUM")
    candidates = [named] if named else ["/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome"]
    for candidate in candidates:
        if found := shutil.which(candidate):
            return found
    problem = f"no Chromium ({', '.join(candidates)}): install the package chromium, or set CHROMIUM to its path"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(problem)
    pytest.skip(problem)
