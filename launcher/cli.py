"""The commands of ``run.py``."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from .errors import LauncherError
from .paths import ROOT
from .server import Install, checked_port, is_port_free, open_when_ready, run_in_foreground
from .setup import has_package, prepared, say

USUAL_PORT = 8188
INSIDE = "UNIFORGET_RUN_INSIDE"
DESCRIPTION = "UniForget: make a model forget what it memorized, without naming it."
EPILOG = (
    "COMFYUI_PATH=/path/to/ComfyUI uses your own ComfyUI and its Python for demo and comfyui (COMFYUI_PYTHON names it "
    "if it is not found). Nothing is installed into it; the demo's mask is saved in its models/uniforget."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="run.py", description=DESCRIPTION, epilog=EPILOG)
    commands = top.add_subparsers(dest="command", required=True, metavar="demo | test | comfyui")
    demo = commands.add_parser(
        "demo", help="the whole story on this machine: learn a mask, apply it, count copies before and after"
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    demo.add_argument("--preset", help="weak, medium or strong; left out: what the workflow says")
    demo.add_argument("--port", type=int, help="left out: any free one")
    commands.add_parser("test", help="lint, types and all tests; what follows goes to pytest, alone", add_help=False)
    comfyui = commands.add_parser(
        "comfyui", help="ComfyUI with the pack, to play with in a browser; what follows goes to ComfyUI"
    )
    comfyui.add_argument("--port", type=int, help=f"left out: {USUAL_PORT}, or any free one")
    return top


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parsed command line; ``rest`` is what goes on to pytest or ComfyUI."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and options.command == "demo":
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest[1:] if rest[:1] == ["--"] else rest
    return options


def main(arguments: list[str]) -> int:
    """Runs a command; its exit code: 0 good, 1 the checks or the demo say no, 2 it could not be done."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        if options.command == "demo" and options.port is not None:
            checked_port(options.port)  # before minutes of installing
        install = prepared(dev=options.command == "test")
        if options.command == "demo":
            return _demo(install, options, arguments)
        if options.command == "test":
            from .checks import check

            return check(install, options.rest)
        return _comfyui(install, options)
    except LauncherError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrun.py: stopped", file=sys.stderr)
        return 130


def _demo(install: Install, options: argparse.Namespace, arguments: list[str]) -> int:
    # Progress comes over a websocket, and aiohttp is where ComfyUI is: the rest runs with ComfyUI's interpreter.
    if os.environ.get(INSIDE) != str(install.python):
        child = subprocess.Popen(
            [str(install.python), str(ROOT / "run.py"), *arguments], env={**os.environ, INSIDE: str(install.python)}
        )
        try:
            return child.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
            return child.wait()
    from .demo import demo

    return demo(install, options.port, options.preset, options.json)


def _comfyui(install: Install, options: argparse.Namespace) -> int:
    port = options.port if options.port is not None or not is_port_free(USUAL_PORT) else USUAL_PORT
    port = checked_port(port)
    url = f"http://127.0.0.1:{port}/?uniforget=play"
    say(f"ComfyUI will be at {url} soon, with something to play with; more is under Workflow > Browse Templates. Ctrl-C stops it")
    if not has_package(install.python, "torchaudio"):
        say("What it prints about torchaudio is expected and does no harm: only sound needs that, and it is not installed")
    if "--disable-auto-launch" not in options.rest:
        open_when_ready(url, port)
    return run_in_foreground(install, port, options.rest)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
