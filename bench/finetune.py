"""Does a brief fine-tuning on neutral pictures bring memorized ones back?"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from testbed import vae
from testbed.data import to_tensor
from testbed.host import sampler
from testbed.train import loss_function, noise_levels

# Brief enough that the original still copies afterwards: at 1e-4 these steps alone make it forget.
STEPS, BATCH, RATE = 100, 32, 3e-5


def finetuned(network: Any, bed: Any, steps: int = STEPS) -> Any:
    """A copy of the network, trained on pictures that the original drew of neutral prompts; the text encoder stays as it is."""
    prompts = bed.prompts[::4]
    if "finetuning" not in bed.cache:
        drawn = sampler(bed.network, bed.encoder, bed.tokenizer)(prompts, [9000 + i for i in range(len(prompts))])
        with torch.no_grad():
            bed.cache["finetuning"] = vae.load().encode(to_tensor(drawn)).float()
    latents = bed.cache["finetuning"]
    ids = torch.tensor([bed.tokenizer(p) for p in prompts])
    out = copy.deepcopy(network).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(out.parameters(), lr=RATE)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(prompts), BATCH))
        x0 = latents[rows]
        noise = torch.randn(x0.shape, generator=generator)
        loss = loss_function(out, bed.encoder, ids[rows], x0, noise_levels(rng, BATCH), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return out.eval().requires_grad_(False)
