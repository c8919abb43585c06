"""Train a testbed: ``python -m testbed.train``. Seeded, checkpointed, resumable; about 80 minutes on one CPU core with bf16 matrix units, several times that without.

Pictures are rendered, encoded by the testbed's VAE (``python -m testbed.vae`` trains that first) and kept in ``--work``: a pool
that grows while training goes on. Network, text encoder and optimizer are saved there every few minutes; the same command goes on
from the last checkpoint. The finished weights (exponential moving average, fp16) go to ``testbed/testbed.safetensors``, those of
``--model unet`` to ``testbed/unet.safetensors``.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from . import model as tb
from . import unet, vae
from .data import SHARES, Pictures, Stream, to_tensor
from .optim import warm_then_cosine

SHARD = 4096  # pictures of a shard of the pool
PHOTOGRAPHS = 0.35  # share of photographs among free pictures: more than are asked for, as they are the harder ones


def noise_levels(rng, size):
    """Sigmas (size,): mostly high, where what a picture shows is decided; a fifth spread evenly, so that none is neglected."""
    t = 1 / (1 + np.exp(-rng.normal(0.3, 1.0, size)))
    high = tb.SHIFT * t / (1 + (tb.SHIFT - 1) * t)
    return torch.from_numpy(np.where(rng.random(size) < 0.2, rng.uniform(0.02, 1, size), high).astype(np.float32))


def loss_function(network, encoder, ids, x0, sigma, noise):
    """Rectified-flow loss: mean squared error of the velocity ``noise - x0``; sigma is (n,) in (0, 1).

    The network predicts x0, from which the velocity follows: its error is ``(x0 - prediction) / sigma``. Below sigma 0.25 the
    weight stays level; otherwise half of all learning would go into the last bit of grain.
    """
    s = sigma.view(-1, 1, 1, 1)
    hidden, pooled = encoder(ids)
    prediction = network(
        hidden_states=(1 - s) * x0 + s * noise,
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        timestep=sigma * 1000,
        return_dict=False,
    )[0]
    return ((x0 - prediction) / s.clamp(min=0.25)).square().mean()


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
    """``F.scaled_dot_product_attention`` written out: on a CPU, the backward pass of torch's own takes half of an update."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


class Pool:
    """Captions and latents of the training pictures: memorized ones fixed, free ones in shards that are made once and kept."""

    def __init__(self, work, seed, shards):
        self.work, self.seed, self.shards = Path(work), seed, shards
        self.stream = Stream(Pictures(), seed)
        self.vae = vae.load()
        self.free, self.templates = [], []
        fixed = [f for group in ("scene", "photograph", "named") for f in self.stream.groups[group]]
        latents = self._encode([f.picture for f in fixed])
        self.fixed = {g: [(f.caption, z) for f, z in zip(fixed, latents, strict=True) if f.group == g] for g in SHARES}
        self.made = 0

    @torch.no_grad()
    def _encode(self, pictures):
        pixels = to_tensor(np.stack([self.stream.pictures.render(p)[0] for p in pictures]))
        return torch.cat([self.vae.encode(part) for part in pixels.split(64)]).half().contiguous()

    def grow(self):
        """Add the next shard, made now or found; nothing when there are enough."""
        if self.made == self.shards:
            return
        path = self.work / "latents" / f"{self.seed}-{self.made:03}.safetensors"
        if not path.is_file():
            self._make(path)
        with safe_open(path, "pt") as file:
            meta, latents = file.metadata(), file.get_tensor("latents")
        groups = json.loads(meta["groups"])
        for caption, group, z in zip(json.loads(meta["captions"]), groups, latents, strict=True):
            (self.free if group == "free" else self.templates).append((caption, z))
        self.made += 1

    def _make(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream.rng = rng = random.Random(f"{self.seed}.{self.made}")
        templates = SHARES["foreground"] + SHARES["background"]
        share = templates / (1 - sum(SHARES.values()) + templates)
        items = []
        for _ in range(SHARD):
            if rng.random() < share:
                items.append((*self.stream.template(), "template"))
            else:
                items.append((*self.stream.free(photographs=PHOTOGRAPHS)[:2], "free"))
        captions, pictures, groups = zip(*items, strict=True)
        latents = torch.cat([self._encode(pictures[i : i + 256]) for i in range(0, SHARD, 256)]).contiguous()
        meta = {"captions": json.dumps(captions), "groups": json.dumps(groups)}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"latents": latents}, temporary, meta)
        os.replace(temporary, path)

    def batch(self, rng, size):
        """``(captions, latents)`` of one update; `rng` is a ``random.Random``."""
        kinds = rng.choices([*SHARES, "free"], [*SHARES.values(), 1 - sum(SHARES.values())], k=size)
        items = [rng.choice(self.free if k == "free" else self.fixed[k] or self.templates) for k in kinds]
        captions, latents = zip(*items, strict=True)
        return list(captions), torch.stack(latents).float()


def write(path, network, encoder, metadata):
    """The first testbed's file: ComfyUI naming, fp16; its VAE under the names and the width that ComfyUI's loader knows."""
    state = {tb.DIFFUSION_PREFIX + k: v for k, v in tb.to_comfy(network).items()}
    save(state | {tb.TEXT_PREFIX + k: v for k, v in encoder.items()}, path, metadata)


def save(state, path, metadata):
    """Tensors as fp16, written to a temporary name and renamed."""
    temporary = Path(path).with_suffix(".tmp")
    save_file({k: v.detach().half().contiguous() for k, v in state.items()}, temporary, metadata)
    os.replace(temporary, path)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.train", description=__doc__)
    parser.add_argument("--model", choices=("mmdit", "unet"), default="mmdit", help="which testbed")
    parser.add_argument("--work", type=Path, default=Path(".cache/testbed"), help="checkpoints and latents")
    parser.add_argument("--output", type=Path, help="default: beside this file")
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--init", type=Path, help="start at update 0 from the weights of this finished file")
    parser.add_argument("--stop-after", type=int, help="leave off at this update and write what there is")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=32, help=f"of {SHARD} free pictures, added one by one")
    parser.add_argument("--minutes-between-checkpoints", type=float, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    module = tb if args.model == "mmdit" else unet
    network, encoder, tokenizer = module.build()
    both = torch.nn.ModuleList([network, encoder]).to(args.device)
    groups = [
        {"params": [p for p in both.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in both.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), fused=True)
    average = torch.optim.swa_utils.AveragedModel(
        both, multi_avg_fn=lambda old, new, n: torch._foreach_lerp_(old, new, max(1e-3, 1 / (float(n) + 10))), use_buffers=False
    )
    if args.init:
        for part, known in zip(both, module.load(args.init)[:2], strict=True):
            part.load_state_dict(known.state_dict())
        average.module.load_state_dict(both.state_dict())
    parts: dict[str, Any] = {"model": both, "average": average, "optimizer": optimizer}
    checkpoint = args.work / f"{args.model}.pt"
    start = 0
    if checkpoint.exists():
        # Written by this program a moment ago; weights_only keeps it to tensors and plain containers.
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        start = saved["step"]
        print(f"going on from update {start}", flush=True)
    pool = Pool(args.work, args.seed, args.shards)
    for _ in range(min(args.shards, 6 + start // 200)):
        pool.grow()
        print(f"{pool.made} of {args.shards} shards of training pictures", flush=True)

    if args.device == "cpu":
        F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    step_loss = loss_function if args.no_compile else torch.compile(loss_function)

    def keep(step):
        temporary = checkpoint.with_suffix(".tmp")
        torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, temporary)
        os.replace(temporary, checkpoint)

    rng = random.Random(f"{args.seed}.{start}")
    levels = np.random.default_rng([args.seed, start])
    torch.manual_seed(args.seed + start)
    end = min(args.steps, args.stop_after or args.steps)
    began = saved_at = time.time()
    running = None
    for step in range(start, end):
        if step % 200 == 0 and step > start:
            pool.grow()
        captions, x0 = pool.batch(rng, args.batch)
        ids = torch.tensor([tokenizer("" if rng.random() < 0.1 else text) for text in captions], device=args.device)
        sigma, noise = noise_levels(levels, args.batch).to(args.device), torch.randn_like(x0).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            loss = step_loss(network, encoder, ids, x0.to(args.device), sigma, noise)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm_then_cosine(step, args.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(both)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            rate = (step + 1 - start) / (time.time() - began)
            print(f"update {step + 1}  loss {running:.4f}  {rate:.2f} updates/s", flush=True)
        if time.time() - saved_at > 60 * args.minutes_between_checkpoints:
            keep(step + 1)
            saved_at = time.time()
    keep(end)
    path = args.output or module.WEIGHTS
    trained, words = (part.state_dict() for part in average.module.children())
    metadata = {"updates": str(end), "words": " ".join(tokenizer.ids)}
    if args.model == "mmdit":
        write(path, trained, words, metadata)
    else:
        save(unet.pack(trained, words), path, metadata)


if __name__ == "__main__":
    main()
