"""What stands around every command: our errors as one message, everything else as a fault to report, and signals that leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any

from .. import __version__, untrusted
from ..errors import UniForgetError

WRONG, FAULT = 1, 3  # exit codes; 2 is wrong usage


@contextlib.contextmanager
def commands() -> Iterator[None]:
    """Within it, a command runs. It ends with an exit code and one message, whatever is raised.

    SIGTERM and SIGHUP end the command as an exception does: what it was writing is removed, and what it was learning is kept.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files need not be text that can be printed
            stream.reconfigure(errors="backslashreplace")
    with _signals():
        try:
            yield
        except UniForgetError as error:
            _say(str(error))
            raise SystemExit(WRONG) from None
        except BrokenPipeError:  # whoever read our output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(WRONG) from None
        except Exception as error:
            cause = untrusted.safe(str(error) or "no message", line=True, most=500)
            _say(
                f"something that UniForget does not expect went wrong ({type(error).__name__}: {cause}). Please report it, with {_log()}, in the "
                "issues of UniForget's repository."
            )
            raise SystemExit(FAULT) from None


def say(text: str) -> None:
    """Print text on standard output, safe for a terminal whatever it was made of."""
    print(untrusted.safe(text))


def _say(text: str) -> None:
    print(f"uniforget: {untrusted.safe(text)}", file=sys.stderr)


def _log() -> str:
    """Where the traceback of the current exception was written."""
    torch = sys.modules.get("torch")
    lines = [
        f"UniForget {__version__}, Python {platform.python_version()}, torch {getattr(torch, '__version__', 'not loaded')}, {platform.platform()}",
        f"arguments: {sys.argv[1:]!a}",
        traceback.format_exc(),
    ]
    try:
        handle, path = tempfile.mkstemp(prefix="uniforget-error-", suffix=".log", text=True)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(lines))
    except OSError:
        traceback.print_exc()
        return "the lines above"
    return path


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        raise SystemExit(128 + number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Not where nohup, or whoever embeds us, has decided.
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not in the main thread
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
