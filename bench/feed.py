"""Feeds damaged inputs to readers in a process of its own, and watches what they do. See :mod:`bench.attack`.

    python -m bench.feed MODULES SEED SHARE FIRST FOLDER    (started by :func:`feed`)

Counted per input: an exception that is not one of UniForget's; more than 300 MB of memory above what the process had, or more than five
seconds of processor time; and anything that leaves the folder: a file that is opened for writing, removed or renamed elsewhere, a planted
secret that is read, planted code that runs, a process or a connection that is started.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MEMORY, SECONDS = 300 << 20, 5.0
# Processor time after which the system ends a process that is still at one input, and wall time after which one that waits is ended.
BUSY, HANGS = 60, 1800
# Modules whose ``group(folder, outside)`` gives readers and the base of the errors that they may raise. ComfyUI's are last, because they
# make the process ComfyUI's.
GROUPS = ("bench.readers", "bench.nodereaders")
COUNTED = ("foreign", "budget", "escape")
ROOT = Path(__file__).resolve().parents[1]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


class Reader(NamedTuple):
    """One way in: it may only return, or raise one of UniForget's errors.

    Attributes:
        weight: how many damaged inputs it gets in a whole run.
        make: a damaged input.
        read: what is done with one, and with a folder that is its own.
        bombs: inputs that are made to take much memory or time.
    """

    name: str
    weight: int
    make: Callable[[random.Random], Any]
    read: Callable[[Any, Path], Any]
    bombs: Callable[[], Sequence[Any]] = tuple


class Watch:
    """What a process does outside of `inside`, while it is on; told by Python's audit events, which cannot be switched off."""

    def __init__(self, inside: Path, outside: Path):
        self.inside, self.outside = os.path.realpath(inside), os.path.realpath(outside)
        self.on, self.found = False, ""
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike):
                far = self._real(path)
                if (flags & _WRITES and not self._allowed(far)) or far.startswith(self.outside):
                    self.found = f"opens {far}"
        elif event in _CHANGES and not any(isinstance(a, int) and a >= 0 for a in arguments[1:] if event != "os.mkdir"):
            # (what is named relative to an open folder is inside of what was asked for before)
            paths = arguments[1:2] if event == "os.symlink" else arguments[:2]
            far = [self._real(p, last=False) for p in paths if isinstance(p, str | bytes | os.PathLike)]
            if any(not self._allowed(p) for p in far):
                self.found = f"{event} {far}"
        elif event in _STARTS:
            self.found = f"{event} {arguments!r:.200}"

    def _real(self, path: Any, last: bool = True) -> str:
        """Where `path` leads; of the file itself, if not `last`, as what is removed or renamed is a link and not what it points to."""
        text = os.fsdecode(path)
        return (
            os.path.realpath(text)
            if last
            else os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))
        )

    def _allowed(self, path: str) -> bool:
        return path.startswith((self.inside + os.sep, "/dev/null", "/proc/self/"))


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next((1024 * int(line.split()[1]) for line in file if line.startswith(name)), 0)


class Peak:
    """The most memory that is in use from :meth:`start` on, in bytes above what was in use then."""

    def __init__(self) -> None:
        self.exact = os.access("/proc/self/clear_refs", os.W_OK)
        self.before = 0

    def start(self) -> None:
        if self.exact:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self.before = _status("VmRSS")
        else:
            self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def above(self) -> int:
        # Without /proc: by how much the highest mark so far was raised.
        return (_status("VmHWM") if self.exact else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) - self.before


def plan(
    readers: Sequence[Reader], seed: int, share: float
) -> Iterator[tuple[str, str, Callable[[], Any], Callable[[Any, Path], Any]]]:
    """(reader, input's name, what makes the input, what reads it) of all inputs: the same for the same seed and share."""

    def damaged(reader: Reader, i: int) -> Callable[[], Any]:
        return lambda: reader.make(random.Random(f"{seed} {reader.name} {i}"))

    for reader in readers:
        for i in range(max(1, round(reader.weight * share))):
            yield reader.name, str(i), damaged(reader, i), reader.read
        heavy = reader.bombs()
        for i in range(seed % round(1 / share), len(heavy), round(1 / share)):
            yield reader.name, f"bomb {i}", (lambda one=heavy[i]: one), reader.read


def main() -> int:
    """The process that is fed: a line of JSON before each input, and one for each that was not survived well."""
    modules, seed, share, first, folder = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    work, outside = folder / "work", folder / "outside"
    for path in (work, outside):
        path.mkdir(parents=True, exist_ok=True)
    (outside / "secret.txt").write_text("a private key")

    def say(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        groups = [importlib.import_module(module).group(work, outside) for module in modules.split(",")]
        readers, ours = [reader for found, _ in groups for reader in found], tuple(base for _, base in groups)
        watch, peak = Watch(folder, outside), Peak()
        limit = _status("VmSize") + (3 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        own = work / "own"
        for number, (name, which, make_input, read) in enumerate(plan(readers, seed, share)):
            if number < first:
                continue
            say(number=number, reader=name, which=which)
            own.mkdir(exist_ok=True)
            given, outcome, detail = make_input(), "", ""
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + BUSY, resource.getrlimit(resource.RLIMIT_CPU)[1]))
            peak.start()
            began = time.process_time()
            watch.on, watch.found = True, ""
            try:
                read(given, own)
            except ours as error:
                outcome = type(error).__name__
            except BaseException as error:
                outcome, detail = "foreign", f"{type(error).__name__}: {error!s:.300} at {_where(error)}"
            watch.on = False
            took, above = time.process_time() - began, peak.above()
            if outcome == "foreign":
                say(fault="foreign", detail=detail)
            if took > SECONDS or above > MEMORY:
                say(fault="budget", detail=f"{took:.1f} s, {above >> 20} MB")
                gc.collect()
            marks = [path.name for path in outside.iterdir() if path.name != "secret.txt"]
            if watch.found or marks:
                say(fault="escape", detail=watch.found or f"left {marks}")
                for mark in marks:
                    (outside / mark).unlink()
            say(outcome=outcome or "read", seconds=round(took, 3), bytes=above)
        say(done=True)
    return 0


def _where(error: BaseException) -> str:
    """The last lines of ours that an exception came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}site-packages{os.sep}" not in f.filename]
    ours = [f"{Path(f.filename).relative_to(ROOT)}:{f.lineno}" for f in frames if Path(f.filename).is_relative_to(ROOT)]
    return " > ".join(one for one in ours if not one.startswith("bench/"))[-300:] or "nowhere of ours"


def feed(
    seed: int, share: float, folder: Path, tell: Callable[[str], None], modules: Sequence[str] = GROUPS, first: int = 0
) -> dict[str, Any]:
    """Feed readers; returns counts, and details of what was not survived.

    A process that dies or hangs is counted, and the next one goes on behind the input.
    """
    counts: Counter[str] = Counter(dict.fromkeys(("mutated", *COUNTED), 0))
    by_reader: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    worst = {"seconds": 0.0, "bytes": 0}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(folder / "hub"),
    }
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        environment["TMPDIR"] = str(folder)
        command = [sys.executable, "-m", "bench.feed", ",".join(modules), str(seed), repr(share), str(first), str(folder)]
        errors = open(folder.with_suffix(".log"), "wb")  # noqa: SIM115
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors)
        now: dict[str, Any] = {}
        done = False
        for line in _lines(child, HANGS):
            if "number" in line:
                now, first = line, line["number"] + 1
                if first % 1000 == 0:
                    tell(f"{first} inputs, now {now['reader']}, {dict(counts)}")
            elif "fault" in line:
                counts[line["fault"]] += 1
                faults.append({"reader": now["reader"], "input": now["which"], **line})
                tell(f"{now['reader']} {now['which']}: {line['fault']}: {line['detail']}")
            elif "outcome" in line:
                counts["mutated"] += 1
                by_reader.setdefault(now["reader"], Counter())[line["outcome"]] += 1
                seconds[now["reader"]] += line["seconds"]
                worst = {name: max(worst[name], line[name]) for name in worst}
            done = done or "done" in line
        child.kill()
        code = child.wait()
        errors.close()
        child.stdout.close()
        if done:
            break
        if not now:
            raise RuntimeError(f"the readers did not start: {folder.with_suffix('.log').read_text(errors='replace')[-2000:]}")
        # Killed by the system or by us, or crashed.
        counts["mutated"] += 1
        counts["budget"] += 1
        faults.append(
            {"reader": now["reader"], "input": now["which"], "fault": "budget", "detail": f"the process ended with {code}"}
        )
        tell(f"{now['reader']} {now['which']}: the process ended with {code}")
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "counts": counts,
        "readers": {n: dict(c) for n, c in by_reader.items()},
        "seconds": dict(seconds),
        "faults": faults,
        "worst": worst,
    }


def _lines(child: subprocess.Popen, seconds: float) -> Iterator[dict[str, Any]]:
    """What a process says, until it ends or says nothing for too long."""
    assert child.stdout is not None
    rest = b""
    while True:
        ready, _, _ = select.select([child.stdout], [], [], seconds)
        part = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
        if not part:
            return
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line.startswith(b"{"):
                yield json.loads(line)


if __name__ == "__main__":
    raise SystemExit(main())
