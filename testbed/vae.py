"""The testbed's autoencoder: convolutional, small, and trained here.

96x96 pixels become 12x12 latents of 16 channels, of mean 0 and mean square 1 over the training pictures. Both halves work on patches of
8x8 pixels and begin as principal components of them; what convolutions over neighbouring patches add to that is learned.

``python -m testbed.vae`` trains it; about ten minutes on one core.
"""

import argparse
import functools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from .concepts import MEMORIZED
from .data import Pictures, Stream, to_tensor
from .optim import MuonAdamW

CHANNELS, SCALE, WIDTH, BLOCKS = 16, 8, 128, 3
PATCH_VALUES = 3 * SCALE**2
WEIGHTS = Path(__file__).with_name("vae.safetensors")
LATENT_NOISE = 0.1  # what the decoder learns to overlook: samples are never exactly what the encoder gives


def silent(convolution):
    """The convolution, giving zero until it is trained."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


class Block(nn.Sequential):
    """A residual block of two 3x3 convolutions, which changes nothing at first."""

    def __init__(self, width):
        super().__init__(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            silent(nn.Conv2d(width, width, 3, padding=1)),
        )

    def forward(self, x):
        return x + super().forward(x)


def body(inputs, outputs):
    """Convolutions (n, inputs, h, w) -> (n, outputs, h, w) that give zero at first."""
    last = silent(nn.Conv2d(WIDTH, outputs, 1))
    return nn.Sequential(nn.Conv2d(inputs, WIDTH, 3, padding=1), *(Block(WIDTH) for _ in range(BLOCKS)), last)


class Autoencoder(nn.Module):
    """Pictures (n, 3, 8 h, 8 w) in [-1, 1] to latents (n, 16, h, w) and back."""

    def __init__(self):
        super().__init__()
        self.encoder_linear = nn.Conv2d(PATCH_VALUES, CHANNELS, 1)
        self.encoder = body(PATCH_VALUES, CHANNELS)
        self.decoder_linear = nn.Conv2d(CHANNELS, PATCH_VALUES, 1)
        self.decoder = body(CHANNELS, PATCH_VALUES)
        # patches are drawn apart; this joins their edges
        self.seams = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.SiLU(),
            silent(nn.Conv2d(24, 3, 3, padding=1)),
        )

    def encode(self, x):
        """Pictures -> latents."""
        patches = rearrange(x, "n c (h p) (w q) -> n (c p q) h w", p=SCALE, q=SCALE)
        return self.encoder_linear(patches) + self.encoder(patches)

    def decode(self, z):
        """Latents -> pictures."""
        patches = self.decoder_linear(z) + self.decoder(z)
        x = rearrange(patches, "n (c p q) h w -> n c (h p) (w q)", p=SCALE, q=SCALE)
        return x + self.seams(x)

    @torch.no_grad()
    def start_from_components(self, x):
        """Make the linear parts the whitened principal components of the patches of pictures `x`, and their inverse."""
        patches = rearrange(x, "n c (h p) (w q) -> (n h w) (c p q)", p=SCALE, q=SCALE)
        mean = patches.mean(0)
        variance, basis = torch.linalg.eigh(torch.cov((patches - mean).T))
        variance, basis = variance[-CHANNELS:], basis[:, -CHANNELS:]
        inward, outward = (basis / variance.sqrt()).T, basis * variance.sqrt()
        for layer, weight, bias in ((self.encoder_linear, inward, -inward @ mean), (self.decoder_linear, outward, mean)):
            layer.load_state_dict({"weight": rearrange(weight, "o i -> o i 1 1"), "bias": bias})

    @torch.no_grad()
    def fold(self, norm):
        """Put the normalization `norm` of the latents into the encoder; then weigh channels by the root of what they do to pixels.

        Were all channels of deviation 1, noise would hide colours no later than the finest detail, and a denoiser had to decide on all at
        once. Weighed, it draws from coarse to fine as it does on pixels. The mean square over channels stays 1.
        """
        state = self.state_dict()  # shares its tensors with the network
        deviation = (norm.running_var + norm.eps).sqrt()
        weight = state["decoder_linear.weight"].flatten(1).norm(dim=0).sqrt()
        weight = weight / weight.square().mean().sqrt()
        state["encoder_linear.bias"].sub_(norm.running_mean)
        for last in ("encoder_linear", f"encoder.{BLOCKS + 1}"):
            state[f"{last}.weight"].mul_(rearrange(weight / deviation, "z -> z 1 1 1"))
            state[f"{last}.bias"].mul_(weight / deviation)
        for first in ("decoder_linear", "decoder.0"):
            state[f"{first}.weight"].div_(rearrange(weight, "z -> 1 z 1 1"))


def load(path=WEIGHTS):
    """The trained one, fp32, frozen."""
    vae = Autoencoder()
    vae.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return vae.eval().requires_grad_(False)


@functools.cache
def preview_factors():
    """``(16 rows of red, green and blue, the colour of latents that are 0)`` in [-1, 1]: the decoder's linear part, averaged over a patch."""
    layer = load().decoder_linear
    weight = rearrange(layer.weight, "(c p) z 1 1 -> z c p", c=3).mean(2)
    return weight.tolist(), rearrange(layer.bias, "(c p) -> c p", c=3).mean(1).tolist()


def edges(x):
    """Differences to the right and lower neighbours, as one flat row per picture."""
    return torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], 1)


def loss_function(prediction, x):
    """Mean absolute error of pixels, of a small copy, and of edges: sharp drawings, no colour casts."""
    small = F.l1_loss(F.avg_pool2d(prediction, 4), F.avg_pool2d(x, 4))
    return F.l1_loss(prediction, x) + small + 0.5 * F.l1_loss(edges(prediction), edges(x))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.vae", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".cache/testbed"))
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes-between-checkpoints", type=float, default=2)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    stream = Stream(Pictures(), args.seed)
    vae = Autoencoder()
    vae.start_from_components(_pictures(stream, 512))
    vae.to(args.device)
    norm = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.02).to(args.device)
    optimizer = MuonAdamW(vae.named_parameters(), args.lr, args.lr / 5, args.steps, adam_only=("linear", "seams"))
    parts: dict[str, Any] = {"vae": vae, "norm": norm, "optimizer": optimizer}
    checkpoint = args.work / "vae.pt"
    start = 0
    if checkpoint.exists():
        # Written by this program a moment ago; weights_only keeps it to tensors and plain containers.
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        start = saved["step"]
        stream.rng.seed(f"{args.seed}.{start}")
    began = saved_at = time.time()
    for step in range(start, args.steps):
        x = _pictures(stream, args.batch).to(args.device, memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            z = norm(vae.encode(x).float())
            prediction = vae.decode(z + LATENT_NOISE * torch.randn_like(z))
        loss = loss_function(prediction.float(), x)
        optimizer.step(loss, step)
        if step % 50 == 0:
            rate = (step - start + 1) / (time.time() - began)
            psnr = -10 * torch.log10(F.mse_loss(prediction.float(), x) / 4).item()
            print(f"step {step}  loss {loss.item():.4f}  psnr {psnr:.1f} dB  {rate:.2f} updates/s", flush=True)
        if time.time() - saved_at > 60 * args.minutes_between_checkpoints or step + 1 == args.steps:
            saved_at = time.time()
            temporary = checkpoint.with_suffix(".tmp")
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}, temporary)
            os.replace(temporary, checkpoint)
    vae.cpu().fold(norm.cpu())
    temporary = args.output.with_suffix(".tmp")
    save_file({k: v.detach().half().contiguous() for k, v in vae.state_dict().items()}, temporary)
    os.replace(temporary, args.output)


def _pictures(stream, count):
    drawn = [stream.rng.choice(MEMORIZED).picture if stream.rng.random() < 0.15 else stream.free()[1] for _ in range(count)]
    return to_tensor(np.stack([stream.pictures.render(p)[0] for p in drawn]))


if __name__ == "__main__":
    main()
