"""Commands that are killed, and what is found afterwards. See :mod:`bench.attack`.

Each command is run once undisturbed. Then it is killed several times in a row, with SIGKILL, SIGTERM and SIGHUP in turn, at moments that
are spread over all that it does to files, or over its time; after every kill its output must be the old one or the new one, and the last
run, which nobody kills, must give what the undisturbed one gave and leave nothing else behind.

Started as a program (by :class:`Commands`) this module runs commands, one per line of JSON on its input: each in a process of its own that
is forked from one that has imported everything; beside the imports it is what ``python -m uniforget`` is. It is sent its signal right before
it does its ``moment``-th thing to files in a folder (opening one for writing, removing, renaming, making a folder, ...), counted from 0; below
zero it is left alone. SIGKILL works at once, other signals as Python and UniForget take them.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.unit.tiny_pipelines import pipeline, single_file
from uniforget import load
from uniforget.hosts.diffusers.apply import find_modules
from uniforget.mask import files
from uniforget.mask.info import GateMask, MaskInfo

from . import seeds

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
PREFIX = "model.diffusion_model."
LONGEST = 600  # seconds that a run may take on a busy machine
# How many kills each command gets (about a third come too late), and how many in a row.
COMMANDS = {"learn": 18, "recover": 16, "apply": 20, "compact": 16, "folder": 22, "lora": 12}
IN_A_ROW = 4
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Commands:
    """Runs commands; ``cold`` as ``python -m uniforget``, else forked from a process that has imported everything."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder.parent / "log.txt"
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.warm = subprocess.Popen(
            [sys.executable, "-m", "bench.kills"], cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *problem: object) -> None:
        assert self.warm.stdin is not None and self.warm.stdout is not None
        self.warm.stdin.close()
        self.warm.wait(60)
        self.warm.stdout.close()

    def run(
        self,
        arguments: list[str],
        moment: int = -1,
        which: int = 0,
        cold: bool = False,
        meanwhile: Callable[[int], None] | None = None,
    ) -> int:
        """The exit code, negative for a signal. `meanwhile` is called with the process id of the run, beside it."""
        if cold:
            with open(self.log, "wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "uniforget", *arguments], cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT
                )  # fmt: skip
                if meanwhile:
                    meanwhile(child.pid)
                return child.wait(LONGEST)
        assert self.warm.stdin is not None and self.warm.stdout is not None
        asked = {"arguments": arguments, "moment": moment, "signal": int(which), "folder": str(self.folder), "log": str(self.log)}
        print(json.dumps(asked), file=self.warm.stdin, flush=True)
        child_id = json.loads(self.warm.stdout.readline())["pid"]
        beside = threading.Thread(target=meanwhile, args=(child_id,)) if meanwhile else None
        if beside:
            beside.start()
        answer = self.warm.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that commands are forked from ended with {self.warm.wait(60)}")
        code = json.loads(answer)["code"]
        if beside:
            beside.join()
        return code

    def said(self) -> str:
        """What the last run printed."""
        return self.log.read_text(errors="replace")

    def things(self) -> int:
        """How many things the last run did to files."""
        return int(re.findall(r"did (\d+) things", self.said())[-1])


class Scene:
    """A folder with what commands read, one that they write to, and what is the user's in both."""

    def __init__(self, folder: Path):
        self.given, self.out = folder / "given", folder / "out"
        self.given.mkdir(parents=True)
        pipe = pipeline("sd1")
        pipe.save_pretrained(self.given / "model")
        unet = {name: tensor.half() for name, tensor in single_file(pipe).items() if name.startswith(PREFIX)}
        save_file(unet, self.given / "model.safetensors")
        family, sites, _ = find_modules(pipe.unet)
        generator = torch.Generator().manual_seed(0)
        gates = {site.name: (torch.rand(site.units, generator=generator) > 0.4).float() for site in sites}
        files.save(
            GateMask(gates, {site.name: site.kind for site in sites}, MaskInfo(family.name, "")), self.given / "mask.safetensors"
        )
        seeds.checkpoint(self.given / "base.safetensors")
        (self.given / "lora.safetensors").write_bytes(seeds.lora(fits=True))
        (self.given / "prompts.txt").write_text("a cat on a chair\na red house\na bowl of fruit\nan empty street\n")
        self.before = tree(self.given)

    def arguments(self, command: str) -> list[str]:
        """The command line; its output is :meth:`target`."""
        given, small = self.given, ["--dtype", "fp32", "--batch", "2", "--sampling-steps", "2", "--width", "64", "--height", "64"]
        small += ["--prompts", str(given / "prompts.txt"), "--learning-rate", "3"]
        masked = [str(given / "mask.safetensors"), "-o", str(self.target(command))]
        return {
            "learn": ["learn", str(given / "model"), *masked[1:], *small, "--steps", "4", "--preset", "custom", "--beta", "50"],
            "recover": ["recover", str(given / "model"), *masked, *small[:-1], "0.001", "--steps", "4", "--rank", "2"],
            "apply": ["apply", str(given / "model.safetensors"), *masked, "--overwrite"],
            "compact": ["compact", str(given / "model.safetensors"), *masked, "--multiple", "8", "--overwrite"],
            "folder": ["apply", str(given / "model"), *masked, "--overwrite"],
            "lora": ["lora", str(given / "lora.safetensors"), str(given / "base.safetensors"), *masked[1:], "--overwrite"],
        }[command]

    def target(self, command: str) -> Path:
        """What a command writes."""
        return self.out / {"folder": "result"}.get(command, "result.safetensors")

    def set_out(self, old: Path | None, target: Path) -> None:
        """The folder for outputs anew: the user's things, and an older result if there is one."""
        shutil.rmtree(self.out, ignore_errors=True)
        (self.out / "documents").mkdir(parents=True)
        (self.out / "documents" / "thesis.txt").write_text("years of work")
        (self.out / "other.safetensors").write_bytes(b"somebody's model")
        if old:
            shutil.copytree(old, target) if old.is_dir() else shutil.copy(old, target)


def tree(path: Path) -> dict[str, str]:
    """Digests of all files in a folder, or of a file, by name. Masks are told by what they are: they say how long learning took."""
    if not path.is_dir():
        return {"": digest(path)} if path.exists() else {}
    return {str(p.relative_to(path)): digest(p) for p in sorted(path.rglob("*")) if p.is_file()}


def digest(path: Path) -> str:
    """SHA-256 of a file; of safetensors files whatever order the library has put their information in, and of a mask without its times."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{" or length > len(content):
        return hashlib.sha256(content).hexdigest()
    sorted_header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True)
    if "learn_seconds" in sorted_header:
        mask = load(path)
        info = {name: value for name, value in vars(mask.info).items() if name != "learn_seconds"}
        return hashlib.sha256(repr((mask.digest(), sorted(info.items(), key=str))).encode()).hexdigest()
    return hashlib.sha256(sorted_header.encode() + content[8 + length :]).hexdigest()


def attack(seed: int, share: float, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Kill every command; returns counts, and details of what went wrong."""
    counts: Counter[str] = Counter(
        {n: 0 for n in ("kills", "cold_kills", "different_after_resume", "half_written", "left_over", "lost")}
    )
    by_command: dict[str, int] = {}
    faults: list[str] = []

    def fault(kind: str, detail: str) -> None:
        counts[kind] += 1
        faults.append(f"{kind}: {detail}")
        tell(faults[-1])

    shutil.rmtree(folder, ignore_errors=True)
    scene = Scene(folder / "scene")
    with Commands(folder / "scene") as commands:
        for number, (command, whole) in enumerate(COMMANDS.items()):
            chain = Chain(scene, commands, command, folder / f"old {command}", fault)
            wanted = max(1, round(whole * share))
            rng = random.Random(f"{seed} {command}")
            done = 0
            while done < wanted:
                row = min(IN_A_ROW, wanted - done)
                # Of a whole run, one in each first row is the command as users start it, imports and all.
                moments = [(done + i + 0.5) / wanted for i in range(row)]
                got, cold = chain.attack(rng, moments, number + done, share == 1 and done < IN_A_ROW)
                done += max(1, got)
                counts["kills"] += got
                counts["cold_kills"] += cold
                by_command[command] = by_command.get(command, 0) + got
                tell(f"{command}: killed {by_command[command]} times")
    shutil.rmtree(folder, ignore_errors=True)
    return {"counts": counts, "commands": by_command, "faults": faults}


class Chain:
    """A command, what it gives when nobody disturbs it, and rows of kills."""

    def __init__(self, scene: Scene, commands: Commands, command: str, kept: Path, fault: Callable[[str, str], None]):
        self.scene, self.commands, self.command, self.fault = scene, commands, command, fault
        self.target, arguments = scene.target(command), scene.arguments(command)
        self.arguments, self.old = arguments, None
        if "--overwrite" in arguments:
            # An older result of another strength, or another rounding, that carries our note.
            scene.set_out(None, self.target)
            other = ["--multiple", "64"] if command == "compact" else ["--strength", "0.5"]
            self._undisturbed([*arguments, *other])
            self.target.rename(kept)
            self.old = kept
        scene.set_out(self.old, self.target)
        began = time.monotonic()
        self._undisturbed(arguments)
        self.seconds = time.monotonic() - began
        self.things = commands.things()
        self.around, self.new = self._around(), tree(self.target)
        self.older = tree(self.old) if self.old else {}
        if self.new == self.older or not self.new:
            raise RuntimeError(f"{command}: the older result must be another one")

    def _undisturbed(self, arguments: list[str]) -> None:
        code = self.commands.run(arguments)
        if code:
            raise RuntimeError(f"{arguments[0]} does not run, code {code}: {self.commands.said()[-2000:]}")

    def _around(self) -> dict[str, str]:
        """What is in the folder for outputs beside the result; an empty folder for unfinished work may stay."""
        found = tree(self.scene.out)
        inside = f"{self.target.name}/" if self.target.is_dir() else self.target.name
        return {name: sha for name, sha in found.items() if not name.startswith(inside)}

    def attack(self, rng: random.Random, moments: list[float], number: int, cold: bool) -> tuple[int, int]:
        """One row; returns how many kills hit, and how many of these were cold."""
        self.scene.set_out(self.old, self.target)
        hit = frozen = 0
        for i, part in enumerate(moments):
            which = SIGNALS[(number + i) % len(SIGNALS)]
            by_clock = i == 1
            if by_clock:
                seconds = part * self.seconds
                code = self.commands.run(
                    self._again(), cold=cold, meanwhile=lambda pid, s=seconds, w=which: self._kill_later(pid, s, w)
                )  # fmt: skip
            else:
                code = self.commands.run(self._again(), int(part * self.things), which)
            if code in (-which, 128 + which):
                hit += 1
                frozen += by_clock and cold
            elif code:
                self.fault("different_after_resume", f"{self.command}: ended with {code}: {self.commands.said()[-600:]}")
            self._check(f"{self.command}, {which.name} at {part:.0%}{' of its time' if by_clock else ''}", finished=code == 0)
            if code == 0:
                break
        else:
            code = self.commands.run(self._again())
            if code:
                self.fault("different_after_resume", f"{self.command}: cannot go on, {code}: {self.commands.said()[-600:]}")
                return hit, frozen
            self._check(f"{self.command} in the end", finished=True)
        return hit, frozen

    def _again(self) -> list[str]:
        """The command, as whoever started it would say it now: a result that was complete before the kill is in the way."""
        return [*self.arguments, *(["--overwrite"] if self.target.exists() and not self.old else [])]

    def _kill_later(self, pid: int, seconds: float, which: int) -> None:
        """Send a signal some time after the process began to write."""
        before, until = set(os.listdir(self.scene.out)), time.monotonic() + LONGEST
        while set(os.listdir(self.scene.out)) == before and time.monotonic() < until:
            if not Path(f"/proc/{pid}/exe").exists() and Path("/proc/self/exe").exists():
                return
            time.sleep(0.002)
        time.sleep(seconds * 0.5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, which)

    def _check(self, when: str, finished: bool) -> None:
        found = tree(self.target) if self.target.exists() else {}
        if finished and found != self.new:
            self.fault("different_after_resume", f"{when}: {_differences(found, self.new)}")
        if not finished and found and found not in (self.older, self.new):
            self.fault("half_written", f"{when}: {_differences(found, self.new)}")
        if not finished and not found and self.older:
            self.fault("lost", f"{when}: the older result is gone")
        if tree(self.scene.given) != self.scene.before:
            self.fault("lost", f"{when}: what was given was changed")
        around = self._around()
        if any(around.get(name) != sha for name, sha in self.around.items()):
            self.fault("lost", f"{when}: the user's files were changed")
        left = sorted(around.keys() - self.around.keys())
        folders = [
            p.name
            for p in self.scene.out.iterdir()
            if p.is_dir() and p.name not in ("documents", "result", ".uniforget-unfinished")
        ]
        if finished and (left or folders):
            self.fault("left_over", f"{when}: {left or folders}")


def _differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    names = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
    return f"{len(names)} of {len(wanted)} files differ, such as {sorted(names)[:3]}"


def count(moment: int, which: int, folder: str) -> list[int]:
    """Sees to the killing from now on; what it returns holds how many things were done."""
    done = [0]

    def event(name: str, arguments: tuple) -> None:
        if name == "open":
            path, _, flags = arguments
            counts = isinstance(flags, int) and flags & _WRITES and isinstance(path, str | os.PathLike)
            counts = counts and os.path.abspath(os.fspath(path)).startswith(folder)
        else:
            # The last one stands for what has no event of its own: swapping two folders by a call of the system.
            counts = name in _CHANGES or (name == "ctypes.dlopen" and arguments[0] is None)
        if counts:
            done[0] += 1
            if done[0] == moment + 1:
                os.kill(os.getpid(), which)

    sys.addaudithook(event)
    return done


def run(asked: dict[str, Any]) -> int:
    """One run, in the process that was forked for it. Says last how many things it did."""
    from uniforget.cli.app import main

    output = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.argv = ["uniforget", *asked["arguments"]]
    done, code = count(asked["moment"], asked["signal"], asked["folder"]), 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    print(f"\ndid {done[0]} things", flush=True)
    return code


def serve() -> int:
    """Runs what its input asks for, one after the other; answers with the process, and with what became of it."""
    import diffusers
    import transformers

    import uniforget.cli.app
    import uniforget.cli.files
    import uniforget.cli.learn
    import uniforget.hosts.diffusers.pipeline
    import uniforget.learn.recover  # noqa: F401

    # Both packages import the classes of a pipeline when they are first asked for.
    for package, names in (
        (diffusers, ("StableDiffusionPipeline", "AutoencoderKL", "UNet2DConditionModel", "EulerDiscreteScheduler")),
        (transformers, ("CLIPTextModel", "PreTrainedTokenizerFast", "AutoTokenizer")),
    ):
        for name in names:
            getattr(package, name)
    for line in sys.stdin:
        asked = json.loads(line)
        if not (child := os.fork()):
            os._exit(run(asked))
        print(json.dumps({"pid": child}), flush=True)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(serve())
