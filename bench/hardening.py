"""From soft gates to the mask that ships, and the strength slider, on the testbed.

    python -m bench.hardening --json FILE [--presets weak,medium,strong]

Learns a mask per preset, as the demo does, and measures twice: the relaxed gates that were trained, and the hard mask made of them;
then the hard mask at strengths 0.25, 0.5 and 0.75. ``loss`` is the reconstruction loss on a fixed batch of neutral states; ``copies``,
``neutral`` and ``heldout`` are shares as ``python -m testbed.evaluate`` counts them. About half an hour on two cores.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

from testbed import evaluate as yardstick
from testbed import model as testbed
from uniforget.hosts.diffusers.apply import fold_

from .common import machine, write_json

STRENGTHS = (0.25, 0.5, 0.75)
SHOWN = (
    "copies",
    "copies_interval",
    "copies_indomain",
    "copies_heldout",
    "neutral",
    "neutral_interval",
    "heldout",
    "heldout_interval",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.hardening", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, after every row")
    parser.add_argument("--presets", default="weak,medium,strong", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of learning")
    parser.add_argument("--seeds", type=int, default=16, help="samples per memorized caption")
    options = parser.parse_args(arguments)
    transformer, encoder, tokenizer = testbed.load()
    rows: list[dict[str, Any]] = []

    def measure(preset: str, gates: str, mask: Any, strength: float, loss: str | None) -> None:
        masked = copy.deepcopy(transformer)
        fold_(masked, mask, strength)
        figures = yardstick.evaluate(yardstick.sampler(masked, encoder, tokenizer), seeds=options.seeds)
        row = {"preset": preset, "gates": gates, "strength": strength, "loss": loss and float(loss), "off": mask.sparsity()}
        row |= {name: figures[name] for name in SHOWN}
        rows.append(row)
        print(
            f"{preset:7} {gates:5} {strength:4.2f}  loss {row['loss'] or '-':<7}  copies {row['copies']:6.1%}  neutral {row['neutral']:6.1%}  "
            f"held-out {row['heldout']:6.1%}",
            flush=True,
        )
        if options.json:
            write_json(options.json, {"rows": rows, "machine": machine()})

    for preset in options.presets.split(","):
        result = yardstick.learned(transformer, encoder, tokenizer, preset, options.seed)
        extra = result.mask.info.extra
        measure(preset, "soft", result.soft, 1.0, extra["loss_soft"])
        measure(preset, "hard", result.mask, 1.0, extra["loss_hard"])
        for strength in STRENGTHS:
            measure(preset, "hard", result.mask, strength, None)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
