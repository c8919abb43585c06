"""What benchmarks share: clocks, memory, the machine, JSON."""

import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def seconds(run: Callable[[], Any]) -> float:
    """Processor seconds of a call, so that other programs do not count; the result is dropped within it, as freeing belongs to the work."""
    start = time.process_time()
    run()
    return time.process_time() - start


def allocated(run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a call takes from torch's CPU allocator: ``(at its peak, still held by its result)``.

    Every allocation and release is counted, also those inside of operators, but not what a library such as MKL takes for
    itself: see :func:`resident`. Recording slows the call down: do not time it.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(e["ts"], e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    now = peak = 0
    for *_, change in sorted(changes):
        now += change
        peak = max(peak, now)
    del result
    return peak, now


class Flops(TorchDispatchMode):
    """Counts the floating point operations of what runs within it, in ``total``.

    torch's own FlopCounterMode hooks into modules, which gradients for inputs that are leaves do not bear, and leaves out a CPU's attention.
    """

    FORMULAS: ClassVar = {
        **flop_registry,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *more, **named: sdpa_flop_count(
            q.shape, k.shape, v.shape
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda out, q, k, v, *more, **named: (
            sdpa_backward_flop_count(out.shape, q.shape, k.shape, v.shape)
        ),
    }

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self.FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def resident(run: Callable[[], Any]) -> int | None:
    """Bytes by which a call raises the memory of this process at its peak, as the system sees it; None where it cannot tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    gc.collect()
    try:
        reset.write_text("5")  # forgets the peak so far
    except OSError:
        return None
    before = _kilobytes(status, "VmRSS")
    run()
    return 1024 * max(0, _kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def machine() -> dict[str, Any]:
    """When and on which machine figures are made, and how busy it is just now (``load``, this process included)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = {"gpu": torch.cuda.get_device_name(), "gpu_bytes": torch.cuda.mem_get_info()[1]} if torch.cuda.is_available() else {}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu() or platform.processor() or platform.machine(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **gpu,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Figures into a file, with its folder; whoever reads it meanwhile finds the old or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
