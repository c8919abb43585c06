"""Train a testbed: ``python -m testbed.train``. Seeded, checkpointed, resumable; about 75 minutes on 2 CPU cores.

The network, the text encoder and the optimiser are saved every few minutes to ``--work``; starting the command again
goes on from there. The finished weights (exponential moving average, fp16) go to ``testbed/testbed.safetensors``, those of
``--model unet`` to ``testbed/unet.safetensors``.
"""

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from . import model as tb
from . import unet
from .data import Pictures, fetch_emoji


def learning_rate(step, steps, peak, warmup=200, floor=0.02):
    """Linear warm-up, then cosine down to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def noise_levels(rng, size):
    """Sigmas (size,): mostly high, where what a picture shows is decided; a fifth spread evenly, so that none is neglected."""
    high = 1 / (1 + np.exp(-rng.normal(1.6, 1.0, size)))
    return torch.from_numpy(np.where(rng.random(size) < 0.2, rng.uniform(0.02, 1, size), high).astype(np.float32))


def loss_function(transformer, encoder, ids, x0, sigma, noise):
    """Rectified-flow loss: mean squared error of the velocity ``noise - x0``; sigma is (n,) in (0, 1).

    The network predicts x0, from which the velocity follows: its error is ``(x0 - prediction) / sigma``. Below sigma 0.25 the
    weight stays level; otherwise half of all learning would go into the last bit of grain.
    """
    s = sigma.view(-1, 1, 1, 1)
    hidden, pooled = encoder(ids)
    prediction = transformer(
        hidden_states=(1 - s) * x0 + s * noise,
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        timestep=sigma * 1000,
        return_dict=False,
    )[0]
    return ((x0 - prediction) / s.clamp(min=0.25)).square().mean()


def write(path, transformer, encoder, metadata):
    """The testbed's file: ComfyUI naming, fp16, written to a temporary name and renamed."""
    state = {tb.DIFFUSION_PREFIX + k: v for k, v in tb.to_comfy(transformer).items()}
    state |= {tb.TEXT_PREFIX + k: v for k, v in encoder.items()}
    # The stock single-file loader looks for a VAE; this key names ComfyUI's pixel-space one.
    save(state | {"vae.pixel_space_vae": torch.tensor(1.0)}, path, metadata)


def save(state, path, metadata):
    """Tensors as fp16, written to a temporary name and renamed."""
    temporary = Path(path).with_suffix(".tmp")
    save_file({k: v.detach().half().contiguous() for k, v in state.items()}, temporary, metadata)
    os.replace(temporary, path)


def warm_start(path, transformer, encoder, tokenizer):
    """Load a testbed file into fresh networks, word by word, so that a grown vocabulary keeps what was learned."""
    diffusion, text = tb.read(path)
    with safe_open(path, "pt") as file:
        known = file.metadata()["words"].split()
    table = encoder.tokens.weight.detach().clone()
    table[0] = text["tokens.weight"][0]
    for i, word in enumerate(known):
        if word in tokenizer.ids:
            table[tokenizer.ids[word]] = text["tokens.weight"][i + 1]
    transformer.load_state_dict(tb.to_diffusers(diffusion))
    encoder.load_state_dict(text | {"tokens.weight": table})


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.train", description=__doc__)
    parser.add_argument("--model", choices=("mmdit", "unet"), default="mmdit", help="which testbed")
    parser.add_argument("--work", type=Path, default=Path(".cache/testbed"), help="checkpoints and downloaded pictures")
    parser.add_argument("--output", type=Path, help="default: beside this file")
    parser.add_argument("--init", type=Path, help="start from the weights of this testbed file; words it lacks start anew")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes-between-checkpoints", type=float, default=4)
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (about 1.6x slower)")
    args = parser.parse_args(argv)
    if args.init and args.model == "unet":
        parser.error("--init: only the first testbed can be trained on from a file; leave it out, or choose --model mmdit")

    torch.manual_seed(args.seed)
    pictures = Pictures(fetch_emoji(args.work / "emoji"))
    transformer, encoder, tokenizer = (tb if args.model == "mmdit" else unet).build()
    if args.init:
        warm_start(args.init, transformer, encoder, tokenizer)
    parameters = [*transformer.parameters(), *encoder.parameters()]
    decay = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.99),
        fused=True,
    )
    both = torch.nn.ModuleList([transformer, encoder])
    average = torch.optim.swa_utils.AveragedModel(
        both,
        avg_fn=lambda old, new, n: old + (new - old) * max(2e-3, 1 / (float(n) + 10)),
        use_buffers=False,
    )
    start = 0
    checkpoint = args.work / ("checkpoint.pt" if args.model == "mmdit" else "unet.pt")
    if checkpoint.exists():
        # Written by this program a moment ago; weights_only keeps it to tensors and plain containers.
        saved = torch.load(checkpoint, weights_only=True)
        transformer.load_state_dict(saved["transformer"])
        encoder.load_state_dict(saved["encoder"])
        optimizer.load_state_dict(saved["optimizer"])
        average.load_state_dict(saved["average"])
        start = saved["step"]
        print(f"resumed at step {start}", flush=True)

    function = loss_function if args.no_compile else torch.compile(loss_function)
    began, saved_at, running = time.time(), time.time(), 0.0
    for step in range(start, args.steps):
        # Every step has its own generator, so that a resumed run sees the same batches.
        rng = np.random.default_rng((args.seed, step))
        captions, x0 = pictures.batch(rng, args.batch)
        captions = ["" if rng.random() < 0.1 else caption for caption in captions]
        ids = torch.tensor([tokenizer(caption) for caption in captions])
        sigma = noise_levels(rng, args.batch)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = function(transformer, encoder, ids, x0, sigma, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update_parameters(both)
        running += (loss.item() - running) / min(100, step - start + 1)
        if (step + 1) % 50 == 0:
            pace = (time.time() - began) / (step + 1 - start)
            left = pace * (args.steps - step - 1) / 60
            print(f"step {step + 1}/{args.steps}  loss {running:.4f}  {pace:.3f} s/step  {left:.0f} min left", flush=True)
        if time.time() - saved_at > 60 * args.minutes_between_checkpoints or step + 1 == args.steps:
            saved_at = time.time()
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(
                {
                    "transformer": transformer.state_dict(),
                    "encoder": encoder.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.state_dict(),
                    "step": step + 1,
                },
                temporary,
            )
            os.replace(temporary, checkpoint)
            metadata = {"format": "pt", "uniforget_testbed": f"{args.model}-1", "steps": str(step + 1), "seed": str(args.seed)}
            metadata["words"] = " ".join(tokenizer.ids)
            smooth_transformer, smooth_encoder = average.module.children()
            if args.model == "unet":
                state = unet.pack(smooth_transformer.state_dict(), smooth_encoder.state_dict())
                save(state, args.output or unet.WEIGHTS, metadata)
                continue
            smooth = dict(smooth_transformer.state_dict()) | {"pos_embed.pos_embed": transformer.pos_embed.pos_embed}
            write(args.output or tb.WEIGHTS, smooth, smooth_encoder.state_dict(), metadata)


if __name__ == "__main__":
    main()
