"""Where *gone* and *recognizable* begin: ``python -m bench.likeness --json FILE``.

The likenesses of pairs of different training pictures of the demo model. A picture that is more alike than a share s of other prompts' pictures is
picked out among ten of them with a chance of s to the power of ten: one in eleven is guessing, every second time is recognizable.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from testbed.captions import ITEMS
from testbed.data import Pictures
from uniforget.checks.likeness import OTHERS, likeness

from .common import machine, write_json

PAIRS = 400


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.likeness", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    references = Pictures()
    pictures = (
        torch.from_numpy(np.stack([references.render(item.picture)[0] for item in ITEMS if item.group == "scene"])).float() / 255
    )
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(len(pictures), (PAIRS,), generator=generator)
    second = (first + 1 + torch.randint(len(pictures) - 1, (PAIRS,), generator=generator)) % len(pictures)
    found = torch.tensor(likeness(pictures[first], pictures[second]))
    limits = {
        name: float(found.quantile(chance ** (1 / OTHERS)))
        for name, chance in (("gone", 1 / (OTHERS + 1)), ("recognizable", 0.5))
    }
    print(f"median {float(found.median()):.2f}; " + "; ".join(f"{name} {value:.2f}" for name, value in limits.items()))
    if options.json:
        write_json(options.json, {"machine": machine(), "pictures": len(pictures), "median": float(found.median()), **limits})
    return 0


if __name__ == "__main__":
    sys.exit(main())
