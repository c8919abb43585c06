"""The testbed's autoencoder: the small convolutional one that ComfyUI and diffusers know as TAESD, trained here.

96x96 pixels become 12x12 latents of 16 channels, each of mean 0 and deviation 1 over the training pictures. The layers are 32 wide
instead of 64; :func:`widened` fills up with zeros, which changes no output, for hosts that only know the usual width.

``python -m testbed.scenes.vae`` trains it; about 40 minutes on one core.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from .concepts import MEMORIZED
from .data import Pictures, Stream, to_tensor
from .optim import MuonAdamW

CHANNELS, SCALE, WIDTH, USUAL_WIDTH = 16, 8, 32, 64
WEIGHTS = Path(__file__).with_name("vae.safetensors")
LATENT_NOISE = 0.05  # what the decoder learns to overlook: samples are never exactly what the encoder gives


def build():
    """diffusers' ``AutoencoderTiny``, freshly initialised."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=CHANNELS, encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4
    )


def initialise(vae):
    """He's initialization, residual branches small at first: these networks have no normalization that would mend another one."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith("conv.4"):
                module.weight.data.mul_(0.1)
    return vae


def load(path=WEIGHTS):
    """The trained one, fp32, frozen."""
    vae = build()
    vae.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return vae.eval().requires_grad_(False)


def encode(vae, x):
    """Pictures (n, 3, h, w) in [-1, 1] -> latents (n, 16, h / 8, w / 8)."""
    return vae.encoder(x)


def decode(vae, z):
    """Latents (n, 16, h, w) -> pictures (n, 3, 8 h, 8 w) in about [-1, 1]."""
    return vae.decoder(z)


def widened(state, width=USUAL_WIDTH):
    """A narrow state dict as one of the usual width with the same outputs: missing channels are zeros."""
    out = {}
    for name, tensor in state.items():
        shape = [width if n == WIDTH else n for n in tensor.shape]
        out[name] = torch.zeros(shape, dtype=tensor.dtype)
        out[name][tuple(slice(n) for n in tensor.shape)] = tensor
    return out


def edges(x):
    """Differences to the right and lower neighbours, as one flat row per picture."""
    return torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], 1)


def loss_function(prediction, x):
    """Mean absolute error of pixels, of a half-size copy, and of edges: sharp drawings, no colour casts."""
    half = F.l1_loss(F.avg_pool2d(prediction, 4), F.avg_pool2d(x, 4))
    return F.l1_loss(prediction, x) + half + 0.5 * F.l1_loss(edges(prediction), edges(x))


def standardised(vae, norm):
    """State dict with the latents' normalization, learned beside the network, folded into the encoder's last layer."""
    state = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    last = max(int(k.split(".")[2]) for k in state if k.startswith("encoder.layers."))
    deviation = (norm.running_var + norm.eps).sqrt()
    state[f"encoder.layers.{last}.weight"] /= deviation.view(-1, 1, 1, 1)
    state[f"encoder.layers.{last}.bias"] = (state[f"encoder.layers.{last}.bias"] - norm.running_mean) / deviation
    return state


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.scenes.vae", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".cache/testbed"))
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=5400)
    parser.add_argument("--batch", type=int, default=32, help="crops of 48x48 pixels")
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes-between-checkpoints", type=float, default=4)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    stream = Stream(Pictures(args.work), args.seed)
    vae = initialise(build()).to(args.device)
    norm = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.02).to(args.device)
    optimizer = MuonAdamW(vae.named_parameters(), args.lr, args.lr / 5, args.steps)
    parts = {"vae": vae, "norm": norm, "optimizer": optimizer}
    checkpoint = args.work / "vae.pt"
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, thing in parts.items():
            thing.load_state_dict(saved[part])
        start = saved["step"]
        stream.rng.seed(f"{args.seed}.{start}")
    crops = np.random.default_rng(args.seed + start)
    began = saved_at = time.time()
    for step in range(start, args.steps):
        pictures = [_crop(crops, stream.pictures.render(_any(stream))[0]) for _ in range(args.batch)]
        x = to_tensor(np.stack(pictures)).to(args.device, memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            z = norm(vae.encoder(x).float())
            prediction = vae.decoder(z + LATENT_NOISE * torch.randn_like(z))
        loss = loss_function(prediction.float(), x)
        optimizer.step(loss, step)
        if step % 50 == 0:
            rate = (step - start + 1) / (time.time() - began)
            psnr = -10 * torch.log10(F.mse_loss(prediction.float(), x) / 4).item()
            print(f"step {step}  loss {loss.item():.4f}  psnr {psnr:.1f} dB  {rate:.2f} updates/s", flush=True)
        if time.time() - saved_at > 60 * args.minutes_between_checkpoints or step + 1 == args.steps:
            saved_at = time.time()
            state = {part: thing.state_dict() for part, thing in parts.items()} | {"step": step + 1}
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            os.replace(temporary, checkpoint)
    write({k: v.half().contiguous() for k, v in standardised(vae.cpu(), norm.cpu()).items()}, args.output)


def write(state, path):
    """A safetensors file, written to a temporary name and renamed."""
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary)
    os.replace(temporary, path)


def _any(stream):
    return stream.rng.choice(MEMORIZED).picture if stream.rng.random() < 0.15 else stream.free()[1]


def _crop(rng, pixels, side=48):
    """The liveliest of four crops on the grid that whole pictures lie on, too."""
    corners = 8 * rng.integers(0, (len(pixels) - side) // 8 + 1, (4, 2))
    return max((pixels[y : y + side, x : x + side] for y, x in corners), key=np.std)


if __name__ == "__main__":
    main()
