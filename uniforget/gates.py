"""Gates: the relaxation they are learned with, and how they act inside a running model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from .sites import Site

# Hard concrete, UniForget supplement eq. 10-11 (values from EcoDiff).
DELTA, ZETA, GAMMA, ALPHA = 0.5, 1.1, -0.1, 0.83
INITIAL_LOGIT = 3.0


def sample_noise(size: int, generator: torch.Generator) -> torch.Tensor:
    """Logistic-type noise of the hard concrete, float32 (size,), bounded by +-ln 3."""
    u = torch.rand(size, generator=generator)
    return torch.log(u + DELTA) - torch.log(1 - u + DELTA)


def soft_gates(logits: torch.Tensor, noise: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Relaxed gates in [0, 1] for `logits` (UniForget supplement eq. 10-11). Without noise: the expected gate."""
    return (torch.sigmoid((logits + noise) / ALPHA) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def hard_gates(logits: torch.Tensor) -> torch.Tensor:
    """Binary gates with a straight-through gradient: forward 1 where the logit is positive, backward as the sigmoid's."""
    soft = torch.sigmoid(logits / ALPHA)
    return (logits > 0).float() + (soft - soft.detach())


def sparsity_loss(logits: torch.Tensor) -> torch.Tensor:
    """``||s(M)||_1 / |M|`` with ``s(M) = sigmoid(0.4 M + 1)``, over all gates of all sites together (UniForget eq. 4)."""
    return torch.sigmoid(0.4 * logits + 1).mean()


def strength_factor(gates: torch.Tensor, strength: float) -> torch.Tensor:
    """What a unit is multiplied by: ``1 - strength * (1 - gate)``; exactly 1 at strength 0."""
    return 1 - strength * (1 - gates)


@contextmanager
def gated(modules: Mapping[str, nn.Module], sites: list[Site], factors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within the context, each site's Linear acts as if folded with ``factors[site.path]``.

    `factors` maps site paths to (units,) tensors and is read at every forward pass: replace its values to change the
    gates, empty it to run the untouched model. Hooks are gone when the context ends, however it ends.
    """

    def before(site: Site):
        def hook(module, args):
            factor = factors.get(site.path)
            if factor is None:
                return None
            return (args[0] * site.spread(factor).to(args[0]), *args[1:])

        return hook

    def after(site: Site):
        def hook(module, args, output):
            factor = factors.get(site.path)
            return None if factor is None else output * site.spread(factor).to(output)

        return hook

    handles = []
    try:
        for site in sites:
            module = modules[site.path]
            if site.axis == "in":
                handles.append(module.register_forward_pre_hook(before(site)))
            else:
                handles.append(module.register_forward_hook(after(site)))
        yield
    finally:
        for handle in handles:
            handle.remove()
