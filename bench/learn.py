"""How fast learning is and what it keeps in memory, beside a straightforward scheme with two backward passes.

    python -m bench.learn --json FILE [--repeats 3] [--batch 2] [--steps 8] [--scale 1] [--only flux] [--smallest]

Runs on the CPU, on one thread. **The models** are diffusers' own classes, narrow but shaped like the real ones, with random weights: an
SDXL-type UNet (three levels, transformer depths 0, 1 and 2, cross-attention to 77 tokens, GEGLU) at 32 x 32 latents, and a FLUX-type
transformer (2 double and 4 single blocks, heads of 64) at 256 picture and 64 text tokens. N = 8 sampling steps; guidance 1, as for FLUX.1-schnell.

**The rows** are one update each: the loss of a batch, its gradient, and the optimizer's step, with gates on ffn and norm.

* ``two_backward``: the scheme of earlier code, written out plainly. The student's chain runs without a gradient; then, step by step
  from the end, the step runs again, one backward pass collects the gates' gradients and a second one the latent's. The teacher's pictures
  are known before, as they are in ours.
* ``ecodiff``: the same with the attention of EcoDiff's hooks, which is computed twice.
* ``trajectory`` and ``stepwise``: ours, in their memory modes; ``micro`` takes one row at a time.

``seconds_per_step`` is the median of CPU seconds over the updates, in turns with the others so that all see the same machine, and whatever
else runs beside it; ``updates_per_forward`` divides it by a forward pass of the same batch without a gradient, and by the model evaluations
of the chain; ``arithmetic_per_forward`` is the same of floating point operations: what nothing can beat by much. ``peak_bytes`` is the peak
of torch's CPU allocator over one update beyond what was there before, in a run of its own.
The weights are not in it. The C library is told to keep freed memory, as CUDA's caching allocator does, else fresh pages from the system are
part of every figure.
"""

import argparse
import ctypes
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uniforget.learn import Session, Settings
from uniforget.learn.gates import BETA_UNIT, Learner
from uniforget.learn.objectives import OBJECTIVES
from uniforget.learn.relax import ALPHA, DELTA, GAMMA, INITIAL_LOGIT, ZETA, sparsity_loss, split
from uniforget.learn.trajectories import record_teacher
from uniforget.mask.gates import gated

from . import networks
from .common import Flops, allocated, machine, seconds, write_json
from .networks import RandomModel

N, BATCH, PROMPTS, REPEATS = 8, 2, 4, 3
SCHEMES = (
    *(("trajectory", mode) for mode in ("keep", "micro", "step", "block")),
    *(("stepwise", mode) for mode in ("keep", "micro", "block")),
)


def _randomize(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1 / weight[0].numel() ** 0.5)
    return network


def sdxl(scale: float = 1.0, steps: int = N) -> RandomModel:
    """SDXL's shape: levels of 128, 256 and 512 channels."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(128, 256, 512), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 8), cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=32, projection_class_embeddings_input_dim=128 + 6 * 32,
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    conditions = {
        "encoder_hidden_states": torch.randn(PROMPTS + 1, 77, 2048, generator=g),
        "text_embeds": torch.randn(PROMPTS + 1, 128, generator=g),
        "time_ids": torch.tensor([[256.0, 256, 0, 0, 256, 256]]).repeat(PROMPTS + 1, 1),
    }
    size = round(32 * scale)
    return RandomModel(_randomize(network), networks.unet, (4, size, size), conditions, steps)


def flux(scale: float = 1.0, steps: int = N) -> RandomModel:
    """FLUX.1's shape: 512 wide, 8 heads of 64."""
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=64, num_attention_heads=8, joint_attention_dim=512,
        pooled_projection_dim=128, guidance_embeds=False, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    conditions = {
        "encoder_hidden_states": torch.randn(PROMPTS + 1, 64, 512, generator=g),
        "pooled_projections": torch.randn(PROMPTS + 1, 128, generator=g),
    }
    side = round(16 * scale)
    return RandomModel(_randomize(network), networks.flux(side, 64), (side**2, 64), conditions, steps)


class TwoBackward:
    """Earlier code's scheme: logits per module in a list, relaxed gates inside the hooks, two backward passes per sampling step."""

    def __init__(self, model: RandomModel, settings: Settings):
        self.model, self.settings = model, settings
        self.cache = record_teacher(model, settings)
        self.steps = len(model.sigmas) - 1
        self.logits = [torch.full((s.units,), INITIAL_LOGIT, requires_grad=True) for s in model.sites]
        self.optimizer = torch.optim.Adam(self.logits, lr=settings.learning_rate)
        self.noise: list[torch.Tensor] = []
        self.generator = torch.Generator().manual_seed(0)
        self.handles: list[Any] = []

    def __enter__(self) -> "TwoBackward":
        for i, site in enumerate(self.model.sites):
            for place in site.places:
                module = self.model.modules[place.path]
                if place.axis == "in":
                    self.handles.append(module.register_forward_pre_hook(self._before(i, place)))
                else:
                    self.handles.append(module.register_forward_hook(self._after(i, place)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _gate(self, i, place, values):
        gate = (torch.sigmoid((self.noise[i] + self.logits[i]) / ALPHA) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        own = place.spread(gate)
        rest = place.size - place.start - own.shape[0]
        return values * torch.cat([own.new_ones(place.start), own, own.new_ones(rest)])

    def _before(self, i, place):
        return lambda module, args: (self._gate(i, place, args[0]), *args[1:])

    def _after(self, i, place):
        return lambda module, args, output: self._gate(i, place, output)

    def _step(self, x, k, which):
        sigma, after = self.model.sigmas[k], self.model.sigmas[k + 1]
        return x + (x - self.model.denoise(x, sigma.expand(len(x)), which)) / sigma * (after - sigma)

    def update(self) -> None:
        rows = torch.randperm(len(self.cache.which), generator=self.generator)[: self.settings.batch].tolist()
        which = [self.cache.which[r] for r in rows]
        u = [torch.rand(logit.shape, generator=self.generator) for logit in self.logits]
        self.noise = [torch.log(v + DELTA) - torch.log(1 - v + DELTA) for v in u]
        states = [self.cache.states[rows, 0].float()]
        with torch.no_grad():
            for k in range(self.steps):
                states.append(self._step(states[-1], k, which))
        final = states.pop().requires_grad_()
        loss = (final - self.cache.states[rows, self.steps].float()).square().mean() / self.cache.final_scale
        (gradient_x,) = torch.autograd.grad(loss, final)
        totals = [torch.zeros_like(logit) for logit in self.logits]
        for k in reversed(range(self.steps)):
            x = states.pop().requires_grad_()
            after = self._step(x, k, which)
            found = torch.autograd.grad(after, self.logits, grad_outputs=gradient_x, retain_graph=True)
            for total, gradient in zip(totals, found, strict=True):
                total += gradient
            (gradient_x,) = torch.autograd.grad(after, x, grad_outputs=gradient_x)
        (push,) = torch.autograd.grad(sparsity_loss(flat := torch.cat(self.logits).detach().requires_grad_()), flat)
        pushes = push.split([logit.numel() for logit in self.logits])
        for logit, total, own in zip(self.logits, totals, pushes, strict=True):
            logit.grad = total + self.settings.beta * BETA_UNIT * own
        self.optimizer.step()


class EcoDiff(TwoBackward):
    """The same with EcoDiff's hooks on attention (arXiv 2412.02852), which compute it again and drop what the module has answered."""

    def __enter__(self) -> "EcoDiff":
        super().__enter__()
        for module in self.model.modules.values():
            if hasattr(module, "processor"):
                self.handles.append(module.register_forward_hook(self._again, with_kwargs=True))
        return self

    @staticmethod
    def _again(module, args, kwargs, output):
        return module.processor(module, *args, **kwargs)


class Ours:
    """One update of the product's own learning run."""

    def __init__(self, model: RandomModel, settings: Settings):
        self.model, self.step = model, 0
        cache, generator = record_teacher(model, settings), torch.Generator().manual_seed(0)
        self.install: Callable[[dict[str, torch.Tensor]], None] = lambda gates: None
        gates = lambda flat: self.install({} if flat is None else split(flat, model.sites))  # noqa: E731
        self.objective = OBJECTIVES[settings.objective](model, cache, settings, generator, gates)
        if settings.memory == "micro":
            self.objective.rows = 1
        self.learner = Learner(model, settings, self.objective, "bench", Session())

    def __enter__(self) -> "Ours":
        self.context = gated(self.model.modules, self.model.sites)
        self.install = self.context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(None, None, None)

    def update(self) -> None:
        loss, gradient = self.learner.update(self.step)
        self.learner.optimizer.move(loss.item(), gradient, self.step)
        self.learner.progress(self.step + 1, loss.item())
        self.step += 1


def keep_freed_memory() -> None:
    """Let glibc hold freed memory for the next allocation (mallopt: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD); elsewhere nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**30)
        mallopt(-1, 2**31 - 1)


def measure(name: str, model: RandomModel, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row per scheme for one model."""
    settings = Settings(batch=batch, noises=1, cfg=1.0, steps=1000, learning_rate=0.01)
    schemes: list[tuple[str, str, Any]] = [
        ("two_backward", "", TwoBackward(model, settings)),
        ("ecodiff", "", EcoDiff(model, settings)),
    ]
    schemes += [
        (objective, mode, Ours(model, replace(settings, objective=objective, memory=mode))) for objective, mode in SCHEMES
    ]
    peaks, flops = [], []
    for _, _, scheme in schemes:
        with scheme:
            with Flops() as counter:
                scheme.update()
            flops.append(counter.total)
            peaks.append(allocated(scheme.update)[0])
    x, which = model.initial(batch, torch.Generator().manual_seed(0)), list(range(batch))
    forward = torch.no_grad()(lambda: model.denoise(x, model.sigmas[:1].expand(batch), which))
    with Flops() as counter:
        forward()
    once: list[float] = []
    times: dict[int, list[float]] = {i: [] for i in range(len(schemes))}
    for _ in range(repeats):
        once.append(seconds(forward))
        for i, (_, _, scheme) in enumerate(schemes):
            with scheme:
                times[i].append(seconds(scheme.update))
    evaluations = lambda objective: 1 if objective == "stepwise" else len(model.sigmas) - 1  # noqa: E731
    return [
        {
            "family": name,
            "objective": objective,
            "memory": mode,
            "batch": batch,
            "steps": len(model.sigmas) - 1,
            "seconds_per_step": statistics.median(times[i]),
            "peak_bytes": peaks[i],
            "updates_per_forward": statistics.median(times[i]) / statistics.median(once) / evaluations(objective),
            "arithmetic_per_forward": flops[i] / counter.total / evaluations(objective),
        }
        for i, (objective, mode, _) in enumerate(schemes)
    ]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What is compared, by name, from the rows of one family: how many times as fast, and how much of the memory."""
    at = {(r["objective"], r["memory"]): r for r in rows}
    base = at["two_backward", ""]
    out = {}
    for (objective, mode), row in at.items():
        if row is not base:
            name = f"{objective}_{mode}".rstrip("_")
            out[f"{name}_speedup"] = base["seconds_per_step"] / row["seconds_per_step"]
            out[f"{name}_bytes"] = row["peak_bytes"] / base["peak_bytes"]
    out["stepwise_over_trajectory"] = at["trajectory", "keep"]["seconds_per_step"] / at["stepwise", "keep"]["seconds_per_step"]
    for objective in ("trajectory", "stepwise"):
        micro, block = at[objective, "micro"], at[objective, "block"]
        out[f"{objective}_micro_over_block_speedup"] = block["seconds_per_step"] / micro["seconds_per_step"]
        out[f"{objective}_micro_over_block_bytes"] = micro["peak_bytes"] / block["peak_bytes"]
    return out


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="updates timed per row (default %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of an update (default %(default)s)")
    parser.add_argument("--only", choices=("sdxl", "flux"), help="one of the two models")
    parser.add_argument("--steps", type=int, default=N, help="sampling steps (default %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of width and height (default %(default)s)")
    parser.add_argument("--smallest", action="store_true", help="--steps 2 --scale 0.5: to see that it runs")
    options = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks about devices
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.smallest:
        options.steps, options.scale = 2, 0.5
    rows, summary = [], {}
    for name, make in (("sdxl", sdxl), ("flux", flux)):
        if options.only not in (None, name):
            continue
        found = measure(name, make(options.scale, options.steps), options.batch, options.repeats)
        rows += found
        summary[name] = ratios(found)
        for row in found:
            label = f"{row['objective']} {row['memory']}"
            print(
                f"{name:5} {label:18} {row['seconds_per_step']:7.2f} s  {row['peak_bytes'] / 2**20:8.1f} MiB  "
                f"{row['updates_per_forward']:.2f} forward passes, {row['arithmetic_per_forward']:.2f} by arithmetic"
            )
        print("     ", ", ".join(f"{key} {value:.2f}" for key, value in summary[name].items()))
    if options.json:
        write_json(
            options.json,
            {"scale": options.scale, "repeats": options.repeats, "rows": rows, "ratios": summary, "machine": machine()},
        )
    torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
