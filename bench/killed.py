"""The command line, in processes that are killed at moments that can be named. See :mod:`bench.kills`.

    python -m bench.killed    (started by :class:`bench.kills.Commands`; a run per line of JSON on its input)

Each run is a process of its own, forked from one that has imported everything; beside the imports it is what ``python -m uniforget`` is.
A run is sent its signal right before it does its ``moment``-th thing to files in a folder (opening one for writing, removing, renaming,
making a folder, ...), counted from 0; below zero it is left alone. SIGKILL works at once, other signals as Python and UniForget take them.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from typing import Any

_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


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


def main() -> int:
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
    raise SystemExit(main())
