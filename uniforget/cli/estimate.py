"""``uniforget estimate``: what learning needs on a card, from shapes alone. No model is loaded and nothing is run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import SettingError
from ..hosts.diffusers.published import MODELS, empty
from ..learn.footprint import footprint
from ..learn.memory import SLACK
from ..learn.model import Settings
from ..learn.moments import distinct
from ..learn.moments import size as numbers
from ..learn.subspace import plan
from ..learn.teacher import trajectories
from ..model.sites import target_kinds
from ..prompts import neutral_prompts

GIB = 2**30
# What the card's driver, CUDA's context and the desktop hold.
RESERVED = 1.0
# Share of the peak rate that whole models reach, and what weights from main memory arrive with (bytes per second).
UTILIZATION, STREAM = 0.4, 12e9
# Of the computer around the card: bytes of main memory free for a subspace's sums, and bytes a second that it reads and writes.
HOST, MEMORY = 24 << 30, 20e9


@dataclass(frozen=True)
class Card:
    """A graphics card: GiB of memory, and peak TFLOPS of bf16 matrix products with fp32 sums, without sparsity (NVIDIA's papers)."""

    name: str
    memory: float
    tflops: float


CARDS = (
    Card("RTX 4060", 8, 30.2),
    Card("RTX 3060", 12, 25.4),
    Card("RTX 4060 Ti", 16, 44.1),
    Card("RTX 3090", 24, 71.2),
)


@dataclass(frozen=True)
class Estimate:
    """What learning with some settings needs on a card. Sizes in GiB.

    Attributes:
        fits: whether it can run at all; else the other figures are those of the smallest try.
        weights: "bf16", "fp8", or "streamed": fp8 in main memory, block by block to the card (ComfyUI only).
        memory, batch: the memory mode and the batch that fit, the largest batch first.
        vram: weights on the card + activations, without what is reserved.
        minutes: of the whole learning; ``teacher_minutes``: of watching the model, which is part of it.
        passes: over the neutral prompts; vectors_bytes: what a subspace takes at most, in memory and as a file.
    """

    model: str
    objective: str
    card: str
    card_memory: float
    fits: bool
    weights: str
    memory: str
    batch: int
    vram: float
    weights_bytes: int
    activation_bytes: int
    tflop: float
    teacher_minutes: float
    minutes: float
    passes: int = 1
    vectors_bytes: int = 0


class Estimator:
    """Counts a model's passes once per batch, and then asks any card.

    Raises:
        SettingError: no such model.
        LearnError: diffusers is not installed.
    """

    def __init__(self, name: str, width: int, height: int, targets: str = "ffn + norm"):
        if name not in MODELS:
            raise SettingError(f"Model {name!r}: expected one of {', '.join(MODELS)}.")
        self.name, self.model = name, MODELS[name]
        self.network = self.model.build()
        # here, because diffusers may be missing, which build() says
        from ..hosts.diffusers.apply import find_modules, layers_of

        _, sites, self.modules = find_modules(self.network)
        self.layers = layers_of(self.network)[1]
        self.sites = [s for s in sites if s.kind in target_kinds(targets)]
        self.shape = self.model.latent(width, height)
        self.weights = sum(p.numel() for p in self.network.parameters())
        self.prompts = len(neutral_prompts())
        run = lambda x: self.model.call(self.network, x)  # noqa: E731
        self.one = footprint(self.network, self.modules, self.sites, empty(1, *self.shape), run)

    def ask(self, card: Card, settings: Settings, sampling_steps: int) -> Estimate:
        """The largest batch, up to the settings', and the fastest way of spending memory that fits on `card`."""
        room = (card.memory - RESERVED) * GIB
        modes = {
            "scores": ("keep",),
            "subspace": ("keep",),
            "stepwise": ("keep", "block"),
            "trajectory": ("keep", "step", "block"),
        }[settings.objective]
        formats = {"bf16": 2 * self.weights, "fp8": self.weights, "streamed": self.weights // 10}
        batch, found = settings.batch, None
        while found is None:
            for weights, size in formats.items():
                # Weights that are fetched anew for every pass would all be kept for the backward pass, but for a block at a time.
                for mode in modes[-1:] if weights == "streamed" else modes:
                    if found is None and size + self.activations(settings.objective, mode, batch, sampling_steps) < room:
                        found = weights, mode
            if found or batch == 1:
                break
            batch //= 2
        weights, mode = found or ("streamed", modes[-1])
        activations = self.activations(settings.objective, mode, batch, sampling_steps)
        more = {}
        if settings.objective == "subspace":
            told = plan(self.layers, HOST // 2)[0]
            activations += max(4 * numbers(layer) for layer in self.layers)  # one product at a time
            more = {"passes": told.passes, "vectors_bytes": told.vectors}
        teacher, learning, passes = self.work(replace(settings, batch=batch), mode, sampling_steps)
        sums = 0.0
        if more:
            # Every look sends each product to main memory, where it is read, added to its sum and written.
            sums = passes[1] * sum(map(numbers, distinct(self.layers))) * (4 / STREAM + 20 / MEMORY)
            learning, passes = learning * more["passes"], (0, passes[1] * more["passes"])
        rate = card.tflops * 1e12 * UTILIZATION
        stream = self.weights / STREAM if weights == "streamed" else 0.0
        teacher_seconds = teacher / rate + passes[0] * stream
        seconds = teacher_seconds + learning / rate + passes[1] * stream + sums
        return Estimate(
            self.name, settings.objective, card.name, card.memory, found is not None, weights, mode, batch,
            (formats[weights] + activations) / GIB, formats[weights], activations, (teacher + learning) / 1e12,
            teacher_seconds / 60, seconds / 60, **more,
        )  # fmt: skip

    def activations(self, objective: str, mode: str, batch: int, sampling_steps: int) -> int:
        """Bytes beside the weights while learning, with room for what an allocator wastes."""
        one, rows = self.one, batch * (1 if self.model.cfg == 1 else 2)
        if objective in ("scores", "subspace"):
            each = one.forward_bytes
        elif mode == "block":
            each = one.block_bytes
        else:
            chain = sampling_steps if objective == "trajectory" and mode == "keep" else 1
            each = one.peak_bytes + (chain - 1) * one.saved_bytes
        return round(each * rows * SLACK)

    def work(self, settings: Settings, mode: str, sampling_steps: int) -> tuple[int, int, tuple[int, int]]:
        """FLOPs of watching the teacher and of learning, and how often the weights are passed through in both."""
        branches = 1 if self.model.cfg == 1 else 2
        forward, backward = self.one.forward_flops * branches, self.one.backward_flops * branches
        again = forward if mode == "block" else 0
        if settings.objective == "scores":
            looks = self.prompts * sampling_steps
            return 0, looks * forward, (0, math.ceil(looks / settings.batch))
        if settings.objective == "subspace":
            # A Linear's moments cost as much beside its product as its width beside its outputs.
            outputs = sum(self.modules[path].get_parameter("weight").numel() for layer in self.layers for path in layer.paths)
            moments = sum(map(numbers, distinct(self.layers))) / outputs
            looks = self.prompts * sampling_steps
            return 0, round(looks * forward * (1 + moments)), (0, math.ceil(looks / settings.batch))
        recorded = trajectories(settings, self.prompts) * sampling_steps
        teacher_passes = math.ceil(recorded / settings.batch)
        chain = sampling_steps if settings.objective == "trajectory" else 1
        if settings.objective == "trajectory" and mode != "keep":
            again += forward * (sampling_steps - 1) // sampling_steps
        updates = settings.steps * chain
        learning = updates * settings.batch * (forward + backward + again)
        return recorded * forward, learning, (teacher_passes, updates * (3 if again else 2))


def estimate(
    names: list[str], cards: list[Card], objective: str, width: int, height: int, batch: int, steps: int, sampling_steps: int
) -> list[Estimate]:
    """Estimates for every model and card; each model's guidance is the one that it is used with."""
    found = []
    for name in names:
        model = Estimator(name, width, height)
        settings = Settings(objective=objective, batch=batch, steps=steps, cfg=model.model.cfg)
        found += [model.ask(card, settings, sampling_steps) for card in cards]
    return found


def rows(found: list[Estimate]) -> list[list[str]]:
    """Title row and one row of words per estimate."""
    table = [["model", "card", "weights", "memory", "batch", "VRAM", "learning takes"]]
    for e in found:
        if not e.fits:
            words = [f"does not fit: {e.vram:.1f} GiB at batch 1", "", "", "", ""]
        else:
            minutes = f"{e.minutes:.0f} min" if e.minutes < 100 else f"{e.minutes / 60:.1f} h"
            words = [e.weights, e.memory, str(e.batch), f"{e.vram:.1f} GiB", minutes]
        table.append([MODELS[e.model].title, f"{e.card} {e.card_memory:g} GB", *words])
    return table


def markdown(found: list[Estimate]) -> str:
    """The table as it stands in docs/learning.md."""
    head, *body = rows(found)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(found: list[Estimate]) -> list[dict[str, Any]]:
    """One object per estimate."""
    return [asdict(e) for e in found]


def cards(memory: str, tflops: float | None) -> list[Card]:
    """The cards that a list such as "8,12" names, as fast as the listed card of that size or the next smaller one.

    Raises:
        SettingError: it is not a list of sizes.
    """
    found = []
    for word in memory.split(","):
        try:
            size = float(word)
        except ValueError:
            size = 0.0
        if not 1 <= size <= 1024:
            raise SettingError(f"--vram: expected sizes in GB with commas, such as 8,12,16,24; found {memory!r}.")
        like = max((c for c in CARDS if c.memory <= size), key=lambda c: c.memory, default=CARDS[0])
        name = like.name if like.memory == size and tflops is None else "a card of"
        found.append(Card(name, size, tflops or like.tflops))
    return found


ASSUMED = (
    f"From shapes; no GPU was measured. {RESERVED:g} GiB kept free, {SLACK:g} times the counted activations, {UTILIZATION:.0%} of the "
    f"card's peak, {STREAM / 1e9:g} GB/s between card and main memory, {HOST >> 30} GB of that free. Text encoders run before, not counted."
)
