"""A ComfyUI process: started, waited for, checked and stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import pack
from .client import ComfyClient
from .errors import ServerError

HOST = "127.0.0.1"
START_SECONDS = 600  # a crash is seen at once; a busy machine may take minutes
FOLDERS = ("output", "input", "temp", "user")


@dataclass(frozen=True)
class Install:
    """A ComfyUI folder and the interpreter that runs it."""

    folder: Path
    python: Path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def is_port_free(port: int) -> bool:
    """Whether a server could listen on ``port``."""
    with socket.socket() as probe:
        if os.name != "nt":  # on Windows this option would let two servers share the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def checked_port(port: int | None) -> int:
    """``port`` if it is free, a free one for None.

    Raises:
        ServerError: another program listens there.
    """
    if port is None:
        return free_port()
    if not is_port_free(port):
        raise ServerError(f"Port {port} is taken by another program. Choose another with --port, or leave it out.")
    return port


def command(install: Install, port: int, *extra: str) -> list[str]:
    """Command line of a ComfyUI on the CPU without a browser, with our pack in it; its page is that of COMFYUI_FRONTEND, if that is set."""
    page = os.environ.get("COMFYUI_FRONTEND")
    return [
        *(str(install.python), str(install.folder / "main.py"), "--cpu", "--disable-auto-launch"),
        *("--listen", HOST, "--port", str(port)),
        *pack.arguments(install.folder),
        *(("--front-end-root", page) if page else ()),
        *extra,
    ]


class ComfyServer:
    """A headless ComfyUI with only our pack loaded, and folders of its own for what it reads and writes.

    Args:
        install: which ComfyUI.
        work: folder for output, input, temp and user; made when missing. Models stay where ComfyUI has them.
        log: file that takes all that ComfyUI prints.
        port: None for any free one.
    """

    def __init__(self, install: Install, work: Path, log: Path, port: int | None = None):
        self.install = install
        self.log = log
        self.port = checked_port(port)
        self.folders = {name: work / name for name in FOLDERS}
        self.client = ComfyClient(f"http://{HOST}:{self.port}", self.check_alive)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = START_SECONDS) -> None:
        """Starts ComfyUI and returns once it answers and has our nodes.

        Raises:
            ServerError: it did not start, or the pack could not be imported; the message holds the lines of the log that say why.
        """
        for folder in (*self.folders.values(), self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        arguments = command(
            self.install,
            self.port,
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", pack.folder_name(self.install.folder)),
            "--disable-api-nodes",
            *(part for name, folder in self.folders.items() for part in (f"--{name}-directory", str(folder))),
            *("--database-url", "sqlite:///:memory:"),
        )
        with open(self.log, "wb") as out:
            self._process = subprocess.Popen(
                arguments,
                cwd=self.install.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
            )
        self._wait_ready(timeout)
        self._check_pack()

    def _wait_ready(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            self.check_alive()
            with contextlib.suppress(ServerError):
                self.client.get("/system_stats")
                return
            if time.monotonic() > end:
                raise ServerError(f"ComfyUI did not answer within {timeout:.0f} s.\n{self.log_tail()}")
            time.sleep(0.2)

    def _check_pack(self) -> None:
        info = self.client.object_info()
        if not pack.nodes(info):
            problem = pack.import_problem(self.log_text(), pack.folder_name(self.install.folder))
            raise ServerError(f"ComfyUI started, but not one UniForget node is there.\n{problem or self.log_tail()}")

    def check_alive(self) -> None:
        """Raises a ServerError with the end of the log when the process has ended."""
        if self._process is None:
            raise ServerError("ComfyUI has not been started.")
        if (code := self._process.poll()) is not None:
            raise ServerError(f"ComfyUI stopped (exit code {code}).\n{self.log_tail()}")

    def log_text(self) -> str:
        """All that ComfyUI printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the log, and where the whole of it is."""
        tail = "\n".join(self.log_text().splitlines()[-lines:])
        return f"{tail}\n(whole log: {self.log})"

    def stop(self) -> None:
        """Ends the process; waits until it has ended."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running(server: ComfyServer) -> Iterator[ComfyServer]:
    """Starts the server, and stops it however the block ends."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


def has_screen() -> bool:
    """Whether a browser could show its window here; else Python would open one that fills the terminal."""
    return os.name == "nt" or sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_when_ready(url: str, port: int, timeout: float = START_SECONDS) -> threading.Thread | None:
    """Opens `url` in the user's browser as soon as the server on `port` answers, beside what goes on; None where there is no screen."""
    if not has_screen():
        return None

    def wait() -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
                webbrowser.open(url)
                return
            time.sleep(0.5)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def run_in_foreground(install: Install, port: int, extra: list[str]) -> int:
    """ComfyUI with its own folders and all its packs, printing to this terminal, until it ends or Ctrl-C; its exit code."""
    process = subprocess.Popen(command(install, port, *extra), cwd=install.folder)
    try:
        return process.wait()
    except KeyboardInterrupt:
        if os.name != "nt":  # the terminal has sent it to the child as well; a kill of this process alone has not
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        return 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
