"""diffusers pipelines: learn masks on one without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from ...errors import LearnError
from ...learn.found import lesson
from ...learn.model import by_group, fetch, grouped
from ...learn.spill import Spill
from .apply import find_modules, layers_of
from .listener import Listener, Step, denoiser, distance, growth, join, joinable, moved, row

# Arguments of a denoiser that carry the noise level.
_TIMES = ("timestep", "t")
# Arguments that a text encoder made.
_TEXT = ("encoder_hidden_states", "pooled_projections")
# Relative difference up to which two computations of the same thing count as the same.
_ALIKE = 1e-3
# The clean latent that a prediction stands for at sigma: factors of x and of the prediction.
_CLEAN: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "flow": lambda s: (torch.ones_like(s), -s),
    "epsilon": lambda s: (torch.ones_like(s), -s),
    "v_prediction": lambda s: (1 / (s**2 + 1), -s / (s**2 + 1).sqrt()),
    "sample": lambda s: (torch.zeros_like(s), torch.ones_like(s)),
}


class PipelineModel:
    """A text-to-image pipeline of diffusers as :class:`uniforget.learn.Model`.

    Latents are float32 and shaped as the pipeline's scheduler sees them: packed ones stay packed. Only the denoiser is left on
    the device; its weights are frozen, text encoders and VAE wait on the CPU. Prompts are encoded here and never again.

    Args:
        pipe: loaded, without offloading; its scheduler gives the noise levels, and stays as it is.
        prompts: what may be asked for by number; some may have answers (:class:`uniforget.prompts.Prompt`).
        negative: what -1 asks for; None: what the pipeline takes when it is given no negative prompt.
        width, height: of the pictures, in pixels.
        cfg: guidance that distilled models (FLUX.1-dev) read as a number; None: the pipeline's default. Guidance by a second
            prediction is up to the learning settings.
        device: where to learn; None: where the pipeline is.
        report: called after each prompt that was encoded, with how many are done and how many there are; may raise to cancel.
        folder: where encodings go that are too many for memory; None: all stay in memory.
        call: further arguments of the pipeline's own call, such as ``max_sequence_length``.

    Raises:
        FamilyError: the denoiser is of no family that UniForget knows.
        LearnError: the pipeline's sampling cannot be repeated exactly, or it is offloaded.
    """

    def __init__(
        self,
        pipe: diffusers.DiffusionPipeline,
        prompts: Sequence[str],
        negative: str | None = "",
        steps: int = 8,
        width: int = 512,
        height: int = 512,
        kinds: Iterable[str] = ("ffn", "norm"),
        cfg: float | None = None,
        device: torch.device | str | None = None,
        report: Callable[[int, int], None] = lambda done, count: None,
        folder: Path | None = None,
        **call: Any,
    ):
        if not prompts:
            raise LearnError("Expected at least one prompt to learn on, found none.")
        prompts, self.pairs = lesson(prompts)
        _, self.denoiser = denoiser(pipe)
        others = [part for part in pipe.components.values() if isinstance(part, nn.Module) and part is not self.denoiser]
        _refuse_offloading(pipe, [self.denoiser, *others])
        self.family, sites, self.modules = find_modules(self.denoiser)
        wanted = set(kinds)
        self.sites = [s for s in sites if s.kind in wanted]
        self.layers = layers_of(self.denoiser)[1]
        size = {"num_inference_steps": steps, "width": width, "height": height}
        listener = Listener(pipe, cfg, size | call)
        self._fault, self._latents = listener.fault, listener.latents
        self.prompts = len(prompts)
        self._store = Spill(folder)
        self.device = torch.device(device) if device is not None else pipe.device
        self.denoiser.eval().requires_grad_(False)
        for module in self.denoiser.modules():
            if hasattr(module, "moe_infer"):
                module.training = True  # outside of training, diffusers' experts pass no gradients on

        def make_room() -> None:
            _place(others, torch.device("cpu"))
            _place([self.denoiser], self.device)

        _place(others, self.device)
        self._encode(listener, list(prompts), negative, report)
        heard = listener.steps(prompts[0], make_room)
        self._learn_conventions(listener, heard)
        self._check(heard)

    def _encode(self, listener: Listener, prompts: list[str], negative: str | None, report: Callable[[int, int], None]) -> None:
        """Note what the denoiser is given for each prompt, and for the negative one last."""
        first, two = listener.plain(prompts[0]), listener.plain([prompts[0]] * 2)
        times = [name for name in _TIMES if torch.is_tensor(first.get(name))]
        if len(times) != 1:
            raise self._fault(f"expected one tensor {' or '.join(_TIMES)} for its {listener.name}, found {len(times)}")
        self._time = times[0]
        try:
            grows = growth(first, two)
        except ValueError as error:
            raise self._fault(
                f"what it hands to its {listener.name} does not just get one more row per picture ({error})"
            ) from None
        if grows[self._latents] is not True:
            raise self._fault(f"expected latents as argument {self._latents} of its {listener.name}")
        self._grows = {name: part for name, part in grows.items() if name not in (self._latents, self._time)}
        self._calls: list[dict[str, Any]] = []
        # One at a time: a call for several pads their texts to one length, and some models see the padding.
        for i, prompt in enumerate(prompts):
            self._calls.append(self._kept(listener.plain(prompt) if i else first))
            report(i + 1, len(prompts))
        self._calls.append(self._negative(listener, prompts[0], negative))
        self.groups = grouped(self._calls, lambda a, b: joinable(a, b, self._grows))

    def _kept(self, call: dict[str, Any]) -> dict[str, Any]:
        """The part of a call that stays the same for all latents and noise levels, on the CPU."""
        if call.keys() - {self._latents, self._time} != self._grows.keys():
            raise self._fault("other prompts make it hand over other arguments")
        return self._store.keep(moved({name: call[name] for name in self._grows}, "cpu"))

    def _negative(self, listener: Listener, prompt: str, negative: str | None) -> dict[str, Any]:
        """What a guided step asks for beside the prompt itself."""
        found = []
        for call in listener.guided(prompt, negative):
            kept = self._kept(call)
            found += [row(kept, self._grows, i) for i in range(len(call[self._latents]))]
        if len(found) < 2:
            return self._kept(listener.plain(negative or ""))
        apart = [distance(self._calls[0], call) for call in found]
        if len(found) != 2 or min(apart) > _ALIKE:
            raise self._fault(
                f"a guided step makes {len(found)} predictions; expected one for the prompt and one for the negative one"
            )
        return found[apart.index(max(apart))]

    def _learn_conventions(self, listener: Listener, steps: list[Step]) -> None:
        """How latents, noise levels and predictions are handed over, from a whole sampling."""
        x, given = steps[0].x, steps[0].arguments[self._latents]
        self._listed = isinstance(given, list)
        leaf = given[0][None] if self._listed else given
        self._shape, self._given, self._dtype = x.shape[1:], leaf.shape[1:], leaf.dtype
        self._predicts = listener.predicts
        self.sigmas = listener.scheduler.sigmas.detach().clone().to(self.device, torch.float32)
        self._start = float(getattr(listener.scheduler, "init_noise_sigma", 1.0))
        times = [step.arguments[self._time] for step in steps]
        self._times = torch.stack([time.flatten()[0] for time in times]).to(self.device)
        self._time_shape = times[0].shape[1:]
        raw = self._raw(steps[0].answer)
        # Some models predict a variance too, in the second half of their channels.
        self._halved = raw.numel() == 2 * x.numel()
        self._sign = 1.0
        if raw.numel() != x.numel() * (1 + self._halved):
            raise self._fault(f"its {listener.name} answers with {raw.numel()} values for {x.numel()}")
        if (self._prediction(steps[0].answer) * steps[0].prediction.float()).sum() < 0:
            self._sign = -1.0

    def _check(self, steps: list[Step]) -> None:
        """Compare every step that was heard with what would be done here."""
        if len(steps) != len(self.sigmas) - 1 or not bool((self.sigmas[:-1] > self.sigmas[1:]).all()):
            raise self._fault(f"its {len(steps)} steps do not lead down the {len(self.sigmas)} noise levels of its scheduler")
        spread = steps[0].x.float().std().item() / self._start
        if abs(spread - 1) > 0.05 + 6 / steps[0].x.numel() ** 0.5:
            raise self._fault(f"it starts from latents that spread {spread:.2f} times as much as expected")
        for k, step in enumerate(steps):
            x, sigma = step.x.float(), self.sigmas[k]
            if distance(self._calls[0], self._kept(step.arguments)) > _ALIKE:
                raise self._fault(f"it hands over other arguments in step {k + 1}")
            time = step.arguments[self._time]
            if not bool((time == time.flatten()[0]).all()):
                raise self._fault("it hands over several noise levels at once")
            self._same("latents", self._latent_arguments(x, sigma), step.arguments[self._latents])
            self._same("predictions", self._prediction(step.answer), step.prediction)
            change = (x - self._clean(x, sigma, step.prediction.float())) / sigma * (self.sigmas[k + 1] - sigma)
            self._same("steps", x + change, step.after, change.norm().item())
            if k + 1 < len(steps) and distance(step.after, steps[k + 1].x) > _ALIKE:
                raise self._fault(f"it changes its latents between steps {k + 1} and {k + 2}")
        clean = self._clean(steps[0].x.float(), self.sigmas[0], steps[0].prediction.float())
        with torch.no_grad():
            self._same("results", self.denoise(steps[0].x.float(), self.sigmas[:1], [0]), clean)

    def _same(self, what: str, found: Any, heard: Any, size: float | None = None) -> None:
        """Raise unless two tensors are the same up to rounding, relative to `size`."""
        a, b = (torch.stack(v).float() if isinstance(v, list) else v.float() for v in (found, heard))
        size = b.norm().item() if size is None else size
        rounding = 4 * torch.finfo(self._dtype).eps * b.norm().item()
        if a.shape != b.shape or not (a - b).norm().item() <= _ALIKE * size + rounding:
            raise self._fault(f"its {what} are not what its scheduler's noise levels lead to")

    def _latent_arguments(self, x: torch.Tensor, sigma: torch.Tensor) -> Any:
        """Latents (n, ...) at `sigma` (broadcasting) as the denoiser takes them."""
        if self._predicts != "flow":
            x = x / (sigma**2 + 1).sqrt()
        x = x.reshape(len(x), *self._given).to(self._dtype)
        return list(x) if self._listed else x

    @staticmethod
    def _raw(answer: Any) -> torch.Tensor:
        return torch.stack(answer[0]) if isinstance(answer[0], list) else answer[0]

    def _prediction(self, answer: Any) -> torch.Tensor:
        """The denoiser's answer as the scheduler takes it, float32 (n, ...)."""
        raw = self._raw(answer)
        if self._halved:
            raw = raw.chunk(2, dim=1)[0]
        return self._sign * raw.float().reshape(len(raw), *self._shape)

    def _clean(self, x: torch.Tensor, sigma: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        keep, add = _CLEAN[self._predicts](sigma)
        return keep * x + add * prediction

    def initial(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Noise (count, ...) as strong as the pipeline starts from."""
        return fetch(torch.randn((count, *self._shape), generator=generator), self.device) * self._start

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        """Predicted clean latents (n, ...); `sigma` (n,) must be among ``sigmas``."""
        return by_group(self.groups, self._denoise, x, sigma, which)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`uniforget.checks.attack.Victim`."""
        at = sigma.view(-1, *[1] * (latents.ndim - 1))
        if self._predicts == "flow":
            return (1 - at) * latents + at * noise, sigma
        return latents + at * noise, sigma / (1 + sigma)

    def embedding(self, prompt: int) -> dict[str, torch.Tensor]:
        """See :class:`uniforget.checks.attack.Victim`."""
        return {
            name: self._calls[prompt][name].to(self.device) for name in _TEXT if torch.is_tensor(self._calls[prompt].get(name))
        }

    def put(self, prompt: int, embedding: dict[str, torch.Tensor]) -> None:
        """See :class:`uniforget.checks.attack.Victim`."""
        self._calls[prompt] = {**self._calls[prompt], **{name: part.to(self._dtype) for name, part in embedding.items()}}

    def _denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        k = (self.sigmas[:-1] - sigma[:, None]).abs().argmin(1)
        # A GPU would have to be waited for in every forward pass, and learning asks for nothing but `sigmas`.
        if sigma.device.type == "cpu" and not torch.equal(self.sigmas[k], sigma):
            raise LearnError("This model only knows its own noise levels: expected sigma out of its sigmas.")
        arguments = moved(join([self._calls[i] for i in which], self._grows), self.device)
        at = sigma.view(-1, *[1] * (x.ndim - 1))
        arguments[self._latents] = self._latent_arguments(x, at)
        arguments[self._time] = self._times[k].view(-1, *[1] * len(self._time_shape)).expand(len(x), *self._time_shape)
        return self._clean(x, at, self._prediction(self.denoiser(**arguments)))


def _place(parts: Iterable[nn.Module], device: torch.device) -> None:
    """Move what is not there yet, and let go of the memory it was in."""
    for part in parts:
        if any(tensor.device != device for tensor in (*part.parameters(), *part.buffers())):
            part.to(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _refuse_offloading(pipe: diffusers.DiffusionPipeline, parts: Iterable[nn.Module]) -> None:
    modules = (module for part in parts for module in part.modules())
    if getattr(pipe, "hf_device_map", None) or any(hasattr(m, "_hf_hook") or _grouped(m) for m in modules):
        raise LearnError(
            f"{type(pipe).__name__} is offloaded or spread over devices, which moves weights away that learning needs. Expected a "
            "pipeline as it was loaded: load it again without enable_..._offload() and device_map."
        )


def _grouped(module: nn.Module) -> bool:
    """Whether diffusers' group offloading is on."""
    return any("group_offload" in name for name in getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))
