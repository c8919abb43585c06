"""Listening to a diffusers pipeline: its own call is run, and what passes between its parts is noted.

No pipeline is known by name here; what it does not say is told by :class:`~uniforget.errors.LearnError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

from ...errors import LearnError
from ...learn.model import fetch

# What pipelines call the network that masks act on.
DENOISERS = ("transformer", "unet")
# What their schedulers say it predicts; "flow" stands for all that flow matching schedulers call it.
PREDICTIONS = ("flow", "epsilon", "v_prediction", "sample")
# Arguments of pipelines that would change prompts, or make something else than a picture of the wished size.
_PLAIN = {"num_frames": 1, "use_resolution_binning": False, "clean_caption": False}


def denoiser(pipe: diffusers.DiffusionPipeline) -> tuple[str, nn.Module]:
    """Name and module of the network in `pipe` that masks act on: masks are folded into that module.

    Raises:
        LearnError: there is none, or there are two that take turns.
    """
    found = [(name, part) for name in DENOISERS if isinstance(part := getattr(pipe, name, None), nn.Module)]
    second = [f"{name}_2" for name in DENOISERS if isinstance(getattr(pipe, f"{name}_2", None), nn.Module)]
    if not found or second:
        what = f"two networks that take turns ({found[0][0]}, {second[0]})" if found else "none"
        raise LearnError(
            f"{type(pipe).__name__}: expected one network called {' or '.join(DENOISERS)}, found {what}. Use a text-to-image "
            "pipeline of a supported model."
        )
    return found[0]


def euler_scheduler(pipe: diffusers.DiffusionPipeline) -> tuple[Any, str]:
    """An Euler scheduler with the noise levels of the pipeline's own scheduler, and which of PREDICTIONS the model makes.

    Raises:
        LearnError: the pipeline's scheduler has no such counterpart.
    """
    own = pipe.scheduler
    config = own.config
    prediction = config.get("prediction_type", "epsilon")
    if "FlowMatch" in type(own).__name__ or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        return _converted(diffusers.FlowMatchEulerDiscreteScheduler, config, shift=shift, stochastic_sampling=False), "flow"
    kind = "sample" if prediction == "original_sample" else prediction
    if "beta_schedule" in config and kind in PREDICTIONS:
        return _converted(diffusers.EulerDiscreteScheduler, config), kind
    raise LearnError(
        f"{type(pipe).__name__} samples with {type(own).__name__} (prediction_type {prediction!r}), which UniForget cannot take "
        "steps with. Give the pipeline a flow matching or a DDPM-type scheduler."
    )


def _converted(kind: type, config: Mapping[str, Any], **settings: Any) -> Any:
    """A scheduler of `kind` with what it understands of another one's settings (names with _ say which of those are defaults)."""
    known = inspect.signature(kind).parameters
    understood = {name: value for name, value in config.items() if name in known or name.startswith("_")}
    return kind.from_config(understood, **settings)  # type: ignore[attr-defined]


class _Heard(Exception):
    """Ends a pipeline's call: all there is to hear has been heard."""


@dataclass
class Step:
    """One sampling step: what the denoiser was given and answered, and what the scheduler was given and made of it."""

    arguments: dict[str, Any]
    answer: Any
    prediction: torch.Tensor
    x: torch.Tensor
    after: torch.Tensor


class Listener:
    """Runs a pipeline's own call with an Euler scheduler and notes what passes between its parts.

    Args:
        guidance: for distilled models, which read it as a number; None: the pipeline's default.
        call: further arguments of every call.
    """

    def __init__(self, pipe: diffusers.DiffusionPipeline, guidance: float | None, call: Mapping[str, Any]):
        self.pipe = pipe
        self.name, self.denoiser = denoiser(pipe)
        self.scheduler, self.predicts = euler_scheduler(pipe)
        self.signature = inspect.signature(self.denoiser.forward)
        # The first argument of every denoiser; checked against what the scheduler sees by whoever relies on it.
        self.latents = next(iter(self.signature.parameters))
        self.known = inspect.signature(pipe.__call__).parameters
        config: Any = self.denoiser.config
        embedded = bool(config.get("guidance_embeds")) or config.get("time_cond_proj_dim") is not None
        # The argument that switches guidance by a second prediction on and off.
        self.switch = next((n for n in ("true_cfg_scale", "guidance_scale") if n in self.known), "")
        if embedded and self.switch == "guidance_scale":
            self.switch = ""
        self.call = {name: value for name, value in _PLAIN.items() if name in self.known} | dict(call)
        if embedded and guidance is not None:
            self.call["guidance_scale"] = guidance

    def fault(self, what: str) -> LearnError:
        """The error that says what makes this pipeline unfit."""
        return LearnError(
            f"{type(self.pipe).__name__}: {what}. Its sampling cannot be repeated exactly, and a mask learned on it could be wrong: "
            "learn in ComfyUI instead, or with another pipeline of this model."
        )

    def plain(self, prompt: str | list[str]) -> dict[str, Any]:
        """What the denoiser is given for a prompt (or for several at once) without guidance."""
        return self._first(prompt, False)[0]

    def guided(self, prompt: str, negative: str | None) -> list[dict[str, Any]]:
        """What the denoiser is given in one step with guidance, call by call; [] where a pipeline has no negative prompts.

        Args:
            negative: None: what the pipeline takes when it is given none.
        """
        if not self.switch or "negative_prompt" not in self.known:
            return []
        return self._first(prompt, True, **({} if negative is None else {"negative_prompt": negative}))

    def steps(self, prompt: str, before: Callable[[], None]) -> list[Step]:
        """A whole sampling without guidance. `before` runs when prompts are encoded and the denoiser is needed.

        Raises:
            LearnError: a step is something else than one prediction for one picture.
        """
        forward = self.denoiser.forward
        heard: list[tuple[dict[str, Any], Any]] = []
        steps: list[Step] = []

        def answer(*args, **kwargs):
            if not heard and not steps:
                before()
            out = forward(*args, **kwargs)
            heard.append((self._named(args, kwargs), out))
            return out

        def step(take, prediction, time, x, *args, **kwargs):
            if len(heard) != 1 or len(x) != 1:
                raise self.fault(
                    f"without guidance it makes {len(heard)} predictions for {len(x)} pictures in a step; expected 1"
                )
            out = take(prediction, time, x, *args, **kwargs)
            steps.append(Step(*heard.pop(), prediction, x, out[0] if isinstance(out, tuple) else out.prev_sample))
            return out

        with self._replaced(answer, step):
            self._run(prompt, False)
        return steps

    def _first(self, prompt: str | list[str], guided: bool, **more) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def answer(*args, **kwargs):
            calls.append(self._named(args, kwargs))
            if not guided:
                raise _Heard
            # Goes nowhere: the call ends where the scheduler would be asked.
            latents = calls[-1][self.latents]
            return ([torch.zeros_like(x) for x in latents] if isinstance(latents, list) else torch.zeros_like(latents),)

        def step(*args, **kwargs):
            raise _Heard

        with self._replaced(answer, step):
            try:
                self._run(prompt, guided, **more)
            except _Heard:
                return calls
        raise self.fault(f"it never asks its {self.name} for a prediction")

    def _named(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        named = dict(self.signature.bind(*args, **kwargs).arguments)
        if named.get("return_dict", True):
            raise self.fault(f"it does not ask its {self.name} for a tuple (return_dict=False)")
        return named

    @contextmanager
    def _replaced(self, answer: Callable, step: Callable) -> Iterator[None]:
        """Within it, the denoiser answers by `answer`, and an Euler scheduler takes steps by ``step(its own step, ...)``."""
        own, bars = self.pipe.scheduler, getattr(self.pipe, "_progress_bar_config", {})
        hidden = self.denoiser.__dict__.get("forward")
        take = self.scheduler.step

        def asked(*args, **kwargs):
            return step(take, *args, **kwargs)

        # Pipelines look at its parameters to see what it takes.
        asked.__signature__ = inspect.signature(take)  # type: ignore[attr-defined]
        self.denoiser.forward = answer
        self.scheduler.step = asked
        self.pipe.scheduler = self.scheduler
        self.pipe.set_progress_bar_config(disable=True)
        try:
            yield
        finally:
            del self.denoiser.forward, self.scheduler.step
            if hidden is not None:
                self.denoiser.forward = hidden
            self.pipe.scheduler = own
            self.pipe.set_progress_bar_config(**bars)

    def _run(self, prompt: str | list[str], guided: bool, **more) -> None:
        if self.switch:
            # 1 is off for most pipelines, 0 for those that count from 0; 0 is off for both.
            more[self.switch] = 2.0 if guided else 0.0
        generator = torch.Generator().manual_seed(0)
        try:
            self.pipe(prompt=prompt, generator=generator, output_type="latent", return_dict=False, **self.call | more)
        except (TypeError, ValueError) as error:
            raise LearnError(
                f"{type(self.pipe).__name__} does not take the call ({type(error).__name__}: {error}). Expected a pipeline that makes "
                f"pictures of {self.call.get('width')} x {self.call.get('height')} pixels from prompts alone."
            ) from error


# --- arguments of a denoiser: tensors, nested in dictionaries and lists, some of them with a row per picture


def growth(one: Any, two: Any) -> Any:
    """Which parts of a call for one picture have a row per picture, told by a call for two: True or False, nested like them.

    Raises:
        ValueError: they differ in another way.
    """
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return {name: growth(value, two[name]) for name, value in one.items()}
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) == 1 and len(two) == 2:
            return True
        if len(one) == len(two):
            return [growth(a, b) for a, b in zip(one, two, strict=True)]
    elif torch.is_tensor(one) and torch.is_tensor(two):
        if one.shape == two.shape:
            return False
        if one.ndim and one.shape[0] == 1 and two.shape == (2, *one.shape[1:]):
            return True
    elif type(one) is type(two):
        return False
    raise ValueError(f"{_short(one)} for one picture is {_short(two)} for two")


def _short(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"


def joinable(a: Any, b: Any, grows: Any) -> bool:
    """Whether :func:`join` can put two calls for one picture each into one."""
    if type(a) is not type(b):
        return False
    if grows is True:
        return not torch.is_tensor(a) or a.shape == b.shape
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(joinable(value, b[name], grows[name]) for name, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(joinable(x, y, g) for x, y, g in zip(a, b, grows, strict=True))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def join(calls: Sequence[Any], grows: Any) -> Any:
    """One call for several pictures, from calls for one picture each."""
    first = calls[0]
    if grows is True:
        return torch.cat(list(calls)) if torch.is_tensor(first) else [entry for call in calls for entry in call]
    if isinstance(first, dict):
        return {name: join([call[name] for call in calls], grows[name]) for name in first}
    if isinstance(first, list | tuple):
        return type(first)(join([call[i] for call in calls], g) for i, g in enumerate(grows))
    return first


def row(call: Any, grows: Any, i: int) -> Any:
    """The i-th picture's part of a call."""
    if grows is True:
        return call[i : i + 1]
    if isinstance(call, dict):
        return {name: row(value, grows[name], i) for name, value in call.items()}
    if isinstance(call, list | tuple):
        return type(call)(row(value, g, i) for value, g in zip(call, grows, strict=True))
    return call


def moved(value: Any, device: torch.device | str) -> Any:
    """`value` with all its tensors on `device`; those that wait in main memory get there without a wait, see :func:`fetch`."""
    if torch.is_tensor(value):
        device = torch.device(device)
        return fetch(value, device) if value.device.type == "cpu" else value.to(device)
    if isinstance(value, dict):
        return {name: moved(v, device) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device) for v in value)
    return value


def distance(a: Any, b: Any) -> float:
    """Largest difference of any two tensors, relative to the first one's norm; infinite where shapes or other values differ."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        if a.shape != b.shape:
            return float("inf")
        return ((a.float() - b.float()).norm() / a.float().norm().clamp_min(1e-12)).item()
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((distance(value, b[name]) for name, value in a.items()), default=0.0)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return max((distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return 0.0 if type(a) is type(b) and a == b else float("inf")
