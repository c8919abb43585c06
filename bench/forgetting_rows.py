"""The rows of bench.forgetting: what is measured, the most telling first."""

from __future__ import annotations

from typing import Any

from testbed import concepts
from uniforget.config import METHODS, RECOVER
from uniforget.hosts.diffusers.apply import lora_
from uniforget.learn.recover import recover
from uniforget.mask.info import GateMask
from uniforget.mask.subspace import SubspaceMask

from . import beyond, controls
from .forgetting import STRENGTHS, TOGETHER, Bed, Row, drawing

SEEDS = (0, 1, 2)
SCALES = (0.5, 0.75, 1.0)
EVERYTHING = "ancfi"
# Sampling seeds of rows beside the main ones.
FEW = 6
# Updates of the ablation and the sweep, fewer than usual, to be compared among each other.
SHORT = 120


def samples(strength: float, attack: str) -> int:
    """Sampling seeds of one of our own rows."""
    return 16 if strength == 1 and attack else FEW


def original(attack: str = EVERYTHING) -> Row:
    """The model as it is."""
    return Row("original", lambda bed: (bed.network, None), attack=attack)


def gates(preset: str, seed: int = 0, strength: float = 1.0, objective: str = "stepwise", attack: str = "") -> Row:
    """The paper's method: gates on neurons and norm channels."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask = mask_of(bed, preset, seed, objective)
        return bed.edited(mask, strength), mask

    return Row("gates", build, objective, preset, strength, seed, attack=attack, samples=samples(strength, attack))


def mask_of(bed: Bed, preset: str, seed: int = 0, objective: str = "stepwise") -> GateMask:
    """The learned gates of a preset."""
    return bed.learned(f"gates {preset} {objective}", seed, preset=preset, objective=objective)


def space_of(bed: Bed, threshold: float, seed: int = 0) -> SubspaceMask:
    """The learned subspace at a threshold."""
    return bed.learned("subspace", seed, preset="strong", objective="subspace").at(threshold)


def subspace(preset: str, seed: int = 0, strength: float = 1.0, threshold: float = 0.0, attack: str = "") -> Row:
    """Subspace forgetting alone."""

    def build(bed: Bed) -> tuple[Any, Any]:
        found = space_of(bed, threshold or METHODS["subspace"].amount(preset), seed)
        return bed.edited(found, strength), found

    note = f"threshold {threshold:g}" if threshold else ""
    return Row("subspace", build, "subspace", preset, strength, seed, note=note, attack=attack, samples=samples(strength, attack))


def both_space(bed: Bed, preset: str, threshold: float, seed: int = 0) -> SubspaceMask:
    """The subspace that is learned on the model with the gates of a preset."""
    base = bed.edited(mask_of(bed, preset, seed))
    return bed.learned(f"subspace on gates {preset}", seed, preset="weak", objective="subspace", base=base).at(threshold)


def both(preset: str, seed: int = 0, strength: float = 1.0, threshold: float = TOGETHER, attack: str = "") -> Row:
    """Gates, then a subspace that was learned on the model with these gates."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask, found = mask_of(bed, preset, seed), both_space(bed, preset, threshold, seed)
        return bed.edited(found, strength, bed.edited(mask, strength)), mask

    note = "" if threshold == TOGETHER else f"threshold {threshold:g}"
    return Row(
        "gates + subspace",
        build,
        "stepwise + subspace",
        preset,
        strength,
        seed,
        note=note,
        attack=attack,
        samples=samples(strength, attack),
    )


def recovered(preset: str, seed: int = 0, attack: str = "") -> Row:
    """Gates, then a LoRA that brings quality back from neutral prompts alone."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask = mask_of(bed, preset, seed)
        model = bed.model()
        with drawing():
            lora = recover(
                model, mask, bed.settings(seed, learning_rate=RECOVER["learning_rate"].default), RECOVER["rank"].default
            )
        network = bed.edited(mask)
        lora_(network, lora)
        return network, mask

    return Row("gates + recovery", build, "stepwise", preset, 1.0, seed, attack=attack)


def both_recovered(preset: str, seed: int = 0, threshold: float = TOGETHER) -> Row:
    """Gates and subspace, then a LoRA that brings quality back."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask, found = mask_of(bed, preset, seed), both_space(bed, preset, threshold, seed)
        with drawing():
            settings = bed.settings(seed, learning_rate=RECOVER["learning_rate"].default)
            lora = recover(bed.model(), mask, settings, RECOVER["rank"].default, subspace=found)
        network = bed.edited(found, base=bed.edited(mask))
        lora_(network, lora)
        return network, mask

    note = "" if threshold == TOGETHER else f"threshold {threshold:g}"
    return Row("gates + subspace + recovery", build, "stepwise + subspace", preset, 1.0, seed, note=note, attack="a")


def control(name: str, preset: str = "strong", scale: float = 1.0, seed: int = 0, attack: str = "") -> Row:
    """Another way of choosing, at the sparsity of each kind that the gates of a preset have (times `scale`)."""

    def build(bed: Bed) -> tuple[Any, Any]:
        model, settings = bed.model(), bed.settings(seed)
        wanted = controls.shares(mask_of(bed, preset), scale)
        moments = lambda: bed.once(f"neurons {seed}", lambda: controls.neurons(model, settings))  # noqa: E731
        energy = lambda: bed.once(f"energy {seed}", lambda: controls.energy(model, settings))  # noqa: E731
        scored = {
            "random": lambda: controls.random(model, seed),
            "magnitude": lambda: controls.magnitude(model),
            "activation energy": energy,
            "OBS": lambda: energy() | controls.obs(model, moments()),
            "OBS, compensated": lambda: energy() | controls.obs(model, moments()),
            "Fisher": lambda: bed.once(f"fisher {seed}", lambda: controls.fisher(model, settings)),
            "contrastive": lambda: controls.contrastive(model, bed.model(prompts=list(concepts.MEMORIZED)), settings),
        }
        mask = controls.ranked(model, scored[name](), wanted, name, seed)
        network = bed.edited(mask)
        if name == "OBS, compensated":
            # The rows of norms have no other columns to make up for them.
            network = bed.edited(mask, base=controls.compensated(bed.network, model, mask, moments()))
        return network, mask

    note = f"sparsity x {scale:g}" if scale != 1 else ""
    return Row(f"control: {name}", build, "", preset, 1.0, seed, name == "contrastive", note, attack, FEW)


def rank_control(name: str, preset: str = "strong", seed: int = 0, attack: str = "") -> Row:
    """Another subspace with as many directions."""

    def build(bed: Bed) -> tuple[Any, Any]:
        like, model = space_of(bed, METHODS["subspace"].amount(preset)), bed.model()
        found = controls.random_subspace(model, like, seed) if name == "random subspace" else controls.svd_subspace(model, like)
        return bed.edited(found), found

    return Row(f"control: {name}", build, "", preset, 1.0, seed, attack=attack, samples=FEW)


def ablation(kinds: tuple[str, ...], preset: str = "medium", stream: str = "", attack: str = "") -> Row:
    """Gates on other kinds, or on one stream only."""

    def build(bed: Bed) -> tuple[Any, Any]:
        name = f"ablation {'+'.join(kinds)} {stream} {preset}"
        mask = bed.learned(name, 0, kinds=kinds, stream=stream, preset=preset, steps=SHORT)
        return bed.edited(mask), mask

    where = {"": "", "context_block": ", text stream", "x_block": ", image stream"}[stream]
    return Row(
        "gates", build, "stepwise", preset, note=f"only {' + '.join(kinds)}{where}, {SHORT} updates", attack=attack, samples=FEW
    )


def sweep(beta: float, attack: str = "") -> Row:
    """Gates with another beta than the presets'."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask = bed.learned(f"beta {beta:g}", 0, beta=beta, steps=SHORT)
        return bed.edited(mask), mask

    return Row("gates", build, "stepwise", "custom", note=f"beta {beta:g}, {SHORT} updates", attack=attack, samples=FEW)


def tried(name: str, how: Any, preset: str = "custom") -> Row:
    """A way that the product does not go."""
    return Row(f"tried: {name}", how, "", preset, attack="a", samples=FEW)


def quick() -> list[Row]:
    """A look in under ten minutes."""
    return [
        original("ac"),
        subspace("medium", attack="a"),
        subspace("strong", attack="ac"),
        rank_control("random subspace"),
        rank_control("weight SVD"),
        gates("strong", attack="a"),
        both("strong", attack="a"),
        control("random"),
        control("activation energy"),
    ]


def full(testbed: str) -> list[Row]:
    """Everything; on the second testbed the same, smaller."""
    rows = [original()]
    for seed in SEEDS:
        attack = "a" if seed else EVERYTHING
        rows += [
            gates("strong", seed, attack=attack),
            both("strong", seed, attack=attack),
            subspace("strong", seed, attack=attack),
        ]
    rows += [recovered("strong", attack="a")]
    rows += [both_recovered("strong", seed) for seed in (SEEDS if testbed == "mmdit" else SEEDS[:1])]
    rows += [control(name) for name in ("random", "activation energy", "OBS, compensated", "Fisher", "magnitude", "OBS")]
    rows += [control("contrastive"), rank_control("random subspace"), rank_control("weight SVD")]
    rows += [subspace("medium", attack="a"), gates("medium", attack="a"), both("medium", attack="a")]
    for s in STRENGTHS if testbed == "mmdit" else STRENGTHS[1:2]:
        rows += [gates("strong", strength=s), subspace("strong", strength=s), both("strong", strength=s)]
    for name in ("random", "activation energy", "Fisher", "magnitude")[: 4 if testbed == "mmdit" else 2]:
        rows += [control(name, scale=s) for s in SCALES[: -1 if testbed == "mmdit" else 1]]
    if testbed == "unet":
        return [*rows, gates("weak", attack="a"), both("weak", attack="a")]
    rows += [
        ablation(kinds)
        for kinds in (("ffn", "norm"), ("ffn",), ("norm",), ("attn",), ("ffn", "attn"), ("norm", "attn"), ("ffn", "norm", "attn"))
    ]
    rows += [ablation(("ffn", "norm"), stream=stream) for stream in ("context_block", "x_block")]
    rows += [sweep(beta) for beta in (0.1, 0.5, 2.0, 10.0)]
    rows += [tried("gates on directions", lambda bed: beyond.eigen_gates(bed, "strong"), "strong")]
    rows += [tried("wider prompts, threshold 0.015", lambda bed: beyond.wider(bed, 0.015))]
    rows += [tried("output side, threshold 0.005", lambda bed: beyond.output_side(bed, 0.005))]
    rows += [tried("shrinkage, threshold 0.005", lambda bed: beyond.shrinkage(bed, 0.005))]
    rows += [both("strong", threshold=0.004, attack="a")]
    rows += [subspace("custom", threshold=t, attack="a") for t in (0.005, 0.02)]
    rows += [gates(preset, objective="scores", attack="a") for preset in ("medium", "strong")]
    rows += [both("strong", attack="lk")]
    rows += [control(name, seed=seed) for name in ("random", "activation energy") for seed in SEEDS[1:]]
    rows += [rank_control("random subspace", seed=seed) for seed in SEEDS[1:]]
    rows += [gates("medium", seed, attack="a") for seed in SEEDS[1:]] + [
        subspace("medium", seed, attack="a") for seed in SEEDS[1:]
    ]
    rows += [gates("weak", attack="a"), subspace("weak", attack="a"), gates("strong", objective="trajectory", attack="a")]
    return rows
