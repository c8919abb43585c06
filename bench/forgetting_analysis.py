"""The paper's analysis on a testbed, as a picture: where samples lie before and after forgetting, and how far captions move latents.

``python -m bench.forgetting --docs PAGE`` draws it beside the page for each testbed whose mask of preset strong (seed 0) is among the kept ones. Three
groups of captions: memorized (those with another answer), their never-seen twins, and neutral ones, as many of each. Left: their samples'
final latents, placed by UMAP (umap-learn), all of both models at once, so that the upper and the lower panel have the same axes; crosses are
the memorized training pictures. Right: the density of the update magnitude, per sample the mean over all sampling steps of the root mean square of what
the latents change by, divided by the step's noise levels.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbed import concepts, evaluate, vae, verdict
from testbed.data import to_tensor
from testbed.host import CFG, TestbedModel
from uniforget.learn import euler
from uniforget.mask import files

from .forgetting import MODULES, Bed, drawing, kept_mask
from .forgetting_docs import TITLES
from .sizes import Size

GROUPS = {"memorized": "tab:red", "twins": "tab:blue", "neutral": "0.6"}
CAPTIONS, SEEDS = 24, 4
BATCH = 64


def captions(count: int = CAPTIONS) -> dict[str, list[str]]:
    """Captions of each group, evenly chosen."""
    answerable = lambda items: [i.caption for i in evaluate.some([i for i in items if i.group in verdict.ANSWERABLE], count)]  # noqa: E731
    return {
        "memorized": answerable(concepts.MEMORIZED),
        "twins": answerable(concepts.NEVER),
        "neutral": evaluate.free_captions(False, count),
    }


@torch.no_grad()
def samples(model: TestbedModel, which: list[int], seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Final latents (n, 16, 12, 12) and update magnitudes (n,), float32, of one sample for each entry."""
    latents, magnitudes = [], []
    for at in range(0, len(which), BATCH):
        chunk = which[at : at + BATCH]
        x = torch.cat([model.initial(1, torch.Generator().manual_seed(seed)) for seed in seeds[at : at + BATCH]])
        found = []
        for k in range(len(model.sigmas) - 1):
            after = euler(model, x, k, chunk, CFG)[0].float()
            found.append((after - x).square().mean((1, 2, 3)).sqrt() / (model.sigmas[k] - model.sigmas[k + 1]))
            x = after
        latents.append(x)
        magnitudes.append(torch.stack(found).mean(0))
    return torch.cat(latents), torch.cat(magnitudes)


def measure(bed: Any, networks: dict[str, Any], count: int = CAPTIONS, seeds: int = SEEDS) -> dict[str, np.ndarray]:
    """What :func:`plot` draws.

    Args:
        bed: a :class:`.forgetting.Bed`.
        networks: "before" and "after".

    Returns:
        ``group`` (n,) names; for both networks ``latents_*`` float32 (n, 2304) and ``magnitudes_*`` (n,); ``training`` float32 (m, 2304).
    """
    groups = captions(count)
    texts = [text for group in groups.values() for text in group]
    which = [i for i in range(len(texts)) for _ in range(seeds)]
    out = {"group": np.array([name for name, group in groups.items() for _ in range(len(group) * seeds)])}
    for name, network in networks.items():
        model = TestbedModel(network, bed.encoder, bed.tokenizer, texts)
        latents, magnitudes = samples(model, which, [1000 + i % seeds for i in range(len(which))])
        out |= {f"latents_{name}": latents.flatten(1).numpy(), f"magnitudes_{name}": magnitudes.numpy()}
    pictures = {item.caption: item.picture for item in concepts.MEMORIZED}
    rendered = np.stack([bed.labeller.judge.pictures.render(pictures[text])[0] for text in groups["memorized"]])
    with torch.no_grad():
        out["training"] = vae.load().encode(to_tensor(rendered)).float().flatten(1).numpy()
    return out


def places(found: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Two coordinates for the samples before, after, and the training pictures: each (n, 2).

    Raises:
        SystemExit: umap-learn is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of parts of it that are not used
            from umap import UMAP
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"The picture of embeddings needs the package umap-learn ({error}). Run: pip install -r requirements-dev.txt"
        ) from error
    parts = {
        name: found[key] for name, key in (("before", "latents_before"), ("after", "latents_after"), ("training", "training"))
    }
    everything = np.concatenate(list(parts.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        placed = UMAP(n_neighbors=min(15, len(everything) - 1), random_state=seed, n_jobs=1).fit_transform(everything)
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    return dict(zip(parts, np.split(placed, ends), strict=True))


def plot(found: dict[str, np.ndarray], title: str, path: Path) -> None:
    """The four panels as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from scipy.stats import gaussian_kde

    at = places(found)
    both = np.concatenate([found["magnitudes_before"], found["magnitudes_after"]])
    edge = 0.1 * (both.max() - both.min())
    axis = np.linspace(both.min() - edge, both.max() + edge, 300)
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 8), sharex="col", sharey="col")
    for (left, right), when in zip(panels, ("before", "after"), strict=True):
        for name, colour in GROUPS.items():
            own = found["group"] == name
            left.scatter(*at[when][own].T, s=10, color=colour, label=name, linewidths=0, zorder=1 if name == "neutral" else 2)
            values = found[f"magnitudes_{when}"][own]
            right.plot(axis, gaussian_kde(values)(axis), color=colour, label=name)
            right.fill_between(axis, gaussian_kde(values)(axis), color=colour, alpha=0.15, linewidth=0)
        left.scatter(*at["training"].T, s=60, marker="x", color="black", linewidths=0.7, label="training pictures", zorder=1)
        left.set(title=f"{when}: final latents, UMAP", xticks=[], yticks=[])
        right.set(title=f"{when}: update magnitude", ylabel="density")
    panels[1][1].set(xlabel="root mean square of a step, per noise level")
    panels[0][0].legend(fontsize=8)
    panels[0][1].legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def write(bed: Any, mask_file: Path, path: Path, count: int = CAPTIONS, seeds: int = SEEDS) -> None:
    """Draw the analysis of a testbed with a mask; what was measured is kept beside the mask, for this mask and these weights."""
    mask = files.load(mask_file)
    weights = hashlib.sha256(MODULES[bed.name].WEIGHTS.read_bytes()).hexdigest()[:10]
    kept = mask_file.with_name(f"analysis-{bed.name}-{mask.digest()}-{weights}-{count}x{seeds}.npz")
    if kept.exists():
        with np.load(kept) as file:
            found = dict(file)
    else:
        with drawing():
            found = measure(bed, {"before": bed.network, "after": bed.edited(mask)}, count, seeds)
        np.savez_compressed(kept, **found)
    plot(found, f"{TITLES[bed.name]}, preset {mask.info.preset or 'custom'}", path)


def analysed(name: str, size: Size, work: Path, page: Path) -> None:
    """Draw the analysis of a testbed beside the page, if its strong mask was learned already."""
    mask = kept_mask(work, name, size, "gates strong stepwise")
    if mask.exists():
        path = page.with_name(f"{page.stem}_{name}_analysis.png")
        write(Bed(name, size, work), mask, path, size.shown, min(SEEDS, size.seeds))
    else:
        print(
            f"{mask}: no mask of preset strong, so embeddings and updates are not drawn. Measure first, without --docs.",
            file=sys.stderr,
        )
