"""Who says what a picture is: a copy criterion for memorized items and a classifier for neutral ones.

Copies: Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023), section 5.1: a sample is an
extraction of training image x when its l2 distance to x, divided by ``ALPHA`` times the mean distance from x to its
``NEIGHBOURS`` nearest other training images, is at most 1 (their alpha 0.5, n 50). The criterion adapts to each image: a
low-contrast one has near neighbours and so a tight threshold.

Neutral pictures: a small convolutional network that has only ever seen rendered neutral pictures (and empty or noisy ones, to
know nothing when it sees it), none of the memorized items and nothing the diffusion model made. A sample counts when emoji and
background (or the texture) are both right.

``python -m testbed.judge`` makes ``judge.safetensors`` and ``references.safetensors`` anew.
"""

import argparse
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from . import concepts as c
from .data import Pictures, fetch_emoji, to_tensor

ALPHA, NEIGHBOURS, TRAINING_SAMPLE = 0.5, 50, 4000
JUDGE = Path(__file__).with_name("judge.safetensors")
REFERENCES = Path(__file__).with_name("references.safetensors")
SUBJECTS = [*c.EMOJI, *c.TEXTURES, ""]  # the last: none of them
BACKGROUNDS = ["", *c.BACKGROUNDS]


class Classifier(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] -> logits (n, subjects) and (n, backgrounds)."""

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.subject = nn.Linear(2 * widths[-1], len(SUBJECTS))
        self.background = nn.Linear(2 * widths[-1], len(BACKGROUNDS))

    def forward(self, x):
        x = self.features(x)
        x = torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)
        return self.subject(x), self.background(x)


class Judge:
    """Loads both files once and answers for batches of pictures, uint8 (n, 64, 64, 3). It knows the memorized pictures and the
    never-seen ones by their captions."""

    def __init__(self):
        self.classifier = Classifier()
        self.classifier.load_state_dict({k: v.float() for k, v in load_file(JUDGE).items()})
        self.classifier.eval().requires_grad_(False)
        with safe_open(REFERENCES, "pt") as file:
            self.captions = json.loads(file.metadata()["captions"])
            self.pictures, self.thresholds = file.get_tensor("pictures"), file.get_tensor("thresholds")
        self.references = to_tensor(self.pictures.numpy()).flatten(1)

    def distance_ratio(self, pictures, captions):
        """Carlini's ratio of each picture to the memorized item of its caption, float32 (n,); a copy has at most 1."""
        rows = [self.captions.index(caption) for caption in captions]
        distance = (to_tensor(pictures).flatten(1) - self.references[rows]).norm(dim=1)
        return distance / self.thresholds[rows]

    def copies(self, pictures, captions):
        """Bool (n,): the picture is a copy of the memorized item whose caption it was made from."""
        return self.distance_ratio(pictures, captions) <= 1

    @torch.autocast("cpu", enabled=False)
    def right(self, pictures, subjects, backgrounds):
        """Bool (n,): the picture shows the subject on the background (textures: background ``""``). Always judged in float32."""
        subject, background = self.classifier(to_tensor(pictures))
        want = torch.tensor([SUBJECTS.index(s) for s in subjects])
        behind = torch.tensor([BACKGROUNDS.index(b) for b in backgrounds])
        return (subject.argmax(1) == want) & (background.argmax(1) == behind)


def _save(tensors, path, metadata=None):
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def make_references(pictures, seed=0):
    """Write the memorized and the never-seen pictures and their copy thresholds (l2 in [-1, 1] pixels)."""
    rng = np.random.default_rng(seed)
    memorized = np.stack(list(pictures.memorized.values()))
    never = np.stack(list(pictures.never.values()))
    neutral = np.stack([pictures.neutral(rng)[1] for _ in range(TRAINING_SAMPLE)])
    x, y, z = (to_tensor(p).flatten(1) for p in (memorized, neutral, never))
    distances = torch.cdist(torch.cat([x, z]), torch.cat([x, y]))
    distances[: len(x), : len(x)].fill_diagonal_(torch.inf)
    thresholds = ALPHA * distances.sort(1).values[:, :NEIGHBOURS].mean(1)
    tensors = {"pictures": torch.from_numpy(np.concatenate([memorized, never])), "thresholds": thresholds}
    _save(tensors, REFERENCES, {"captions": json.dumps([*pictures.memorized, *pictures.never])})


def _nothing(rng):
    """A picture of nothing: flat, noisy or patchy; as :meth:`Pictures.neutral` returns one."""
    colour = rng.uniform(0, 255, 3)
    patches = np.kron(rng.normal(0, rng.choice((0, 60)), (8, 8, 3)), np.ones((8, 8, 1)))
    noise = rng.normal(0, rng.uniform(0, 70), (64, 64, 1 if rng.random() < 0.5 else 3))
    return (
        "",
        np.clip(colour + patches * (rng.random((64, 64, 1)) < rng.uniform(0.3, 1)) + noise, 0, 255).astype(np.uint8),
        "",
        "",
    )


def train(pictures, seconds, seed=0):
    """Train the classifier on rendered neutral pictures only; returns it and its accuracy on fresh renders."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Classifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)

    def batch(size):
        items = [_nothing(rng) if rng.random() < 0.08 else pictures.neutral(rng) for _ in range(size)]
        x = to_tensor(np.stack([i[1] for i in items]))
        return x, torch.tensor([SUBJECTS.index(i[2]) for i in items]), torch.tensor([BACKGROUNDS.index(i[3]) for i in items])

    began, step = time.time(), 0
    while (share := (time.time() - began) / seconds) < 1:
        x, subject, background = batch(128)
        if rng.random() < 0.5:  # samples are softer and noisier than renders
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = x + float(rng.uniform(0, 0.12)) * torch.randn_like(x)
        a, b = net.train()(x)
        loss = F.cross_entropy(a, subject) + F.cross_entropy(b, background)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.3f}  {100 * share:.0f} %", flush=True)
    x, subject, background = batch(2000)
    with torch.no_grad():
        a, b = net.eval()(x)
    return net, ((a.argmax(1) == subject) & (b.argmax(1) == background)).float().mean().item()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.judge", description="Train the judge and write the references.")
    parser.add_argument("--work", type=Path, default=Path(".cache/testbed"))
    parser.add_argument("--seconds", type=float, default=300, help="of training; 0 only writes the references")
    args = parser.parse_args(argv)
    pictures = Pictures(fetch_emoji(args.work / "emoji"))
    make_references(pictures)
    if not args.seconds:
        return
    net, accuracy = train(pictures, args.seconds)
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    _save(state, JUDGE, {"accuracy_on_fresh_renders": f"{accuracy:.4f}"})
    print(f"accuracy on 2,000 fresh renders: {accuracy:.4f}")


if __name__ == "__main__":
    main()
