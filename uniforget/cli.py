"""The command line: thin commands over the engine.

Exit codes: 0 done; 1 something was wrong with the input (a message says what); 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import __version__
from .archs import KINDS
from .config import LEARN, Param
from .errors import UniForgetError
from .families import FAMILIES, sizes

app = typer.Typer(
    name="uniforget",
    help="Make a text-to-image model forget what it memorized, without naming it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def _commands() -> None:
    """Keeps commands as commands even while there is only one."""


def main() -> None:
    """Run the command line; our errors become one line on stderr and exit code 1."""
    try:
        app()
    except UniForgetError as error:
        print(f"uniforget: {error}", file=sys.stderr)
        raise SystemExit(1) from None


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    print(json.dumps({"version": __version__}) if as_json else __version__)


@app.command()
def families(as_json: Json = False) -> None:
    """List the model families that can be masked, with the size of published models and what is tested."""
    entries: list[dict[str, Any]] = [
        {
            "name": family.name,
            "title": family.title,
            "kinds": list(dict.fromkeys(rule.kind for rule in family.rules if rule.kind)),
            "hosts": ["comfyui", "diffusers"],
            "variants": [{"name": name, **entry} for name, entry in sizes().items() if entry["family"] == family.name],
        }
        for family in FAMILIES
    ]
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    table = Table(
        "family", "model", *(f"{kind} gates" for kind in KINDS), "tests", caption="--json tells sites and tests by name"
    )
    for entry in entries:
        for variant in entry["variants"]:
            gates = (f"{variant[kind]['gates']:,}" for kind in KINDS)
            table.add_row(entry["name"], variant["title"], *gates, str(len(variant["tested"])))
    Console().print(table)


def _option(param: Param, *flags: str) -> Any:
    """The command line option of a setting, with its default, range and help."""
    choices = f" One of: {', '.join(param.choices)}." if param.choices else ""
    return typer.Option(
        f"--{param.name.replace('_', '-')}", *flags, help=param.tooltip + choices, min=param.minimum, max=param.maximum
    )


@app.command()
def estimate(
    model: Annotated[str, typer.Argument(help="sd1, sdxl, flux, or all of them.")] = "all",
    vram: Annotated[str, typer.Option(help="Of the cards, in GB, with commas: 8,12,16,24.")] = "8,12,16,24",
    tflops: Annotated[
        float | None, typer.Option(help="Your card's peak for bf16, instead of the listed card's.", min=0.1)
    ] = None,
    objective: Annotated[str, _option(LEARN["objective"])] = LEARN["objective"].default,
    width: Annotated[int, _option(LEARN["width"])] = LEARN["width"].default,
    height: Annotated[int, _option(LEARN["height"])] = LEARN["height"].default,
    batch: Annotated[int, _option(LEARN["batch"])] = LEARN["batch"].default,
    steps: Annotated[int, _option(LEARN["steps"])] = LEARN["steps"].default,
    sampling_steps: Annotated[int, _option(LEARN["sampling_steps"])] = LEARN["sampling_steps"].default,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Say what learning needs in VRAM and minutes, from shapes alone. Nothing is loaded or run."""
    from . import estimate as engine

    values = {"width": width, "height": height, "batch": batch, "steps": steps, "sampling_steps": sampling_steps}
    values = {name: LEARN[name].check(value) for name, value in values.items()}
    names = list(engine.MODELS) if model == "all" else [model]
    cards = engine.cards(vram, tflops)
    found = engine.estimate(names, cards, objective=LEARN["objective"].check(objective), **values)
    if as_json:
        print(json.dumps(engine.as_json(found), indent=2))
        return
    if markdown:
        print(engine.markdown(found))
        return
    head, *body = engine.rows(found)
    table = Table(*head, caption=engine.ASSUMED)
    for line in body:
        table.add_row(*line)
    Console().print(table)


@app.command()
def learn(
    model: Annotated[str, typer.Argument(help="A diffusers folder, or a single-file checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the mask (.safetensors).")],
    prompts: Annotated[
        Path | None, typer.Option(help="Neutral prompts, one a line or JSONL; left out: the bundled list.")
    ] = None,
    preset: Annotated[str, _option(LEARN["preset"])] = LEARN["preset"].default,
    beta: Annotated[float, _option(LEARN["beta"])] = LEARN["beta"].default,
    targets: Annotated[str, _option(LEARN["targets"])] = LEARN["targets"].default,
    steps: Annotated[int, _option(LEARN["steps"])] = LEARN["steps"].default,
    learning_rate: Annotated[float, _option(LEARN["learning_rate"])] = LEARN["learning_rate"].default,
    batch: Annotated[int, _option(LEARN["batch"])] = LEARN["batch"].default,
    sampling_steps: Annotated[int, _option(LEARN["sampling_steps"])] = LEARN["sampling_steps"].default,
    cfg: Annotated[float, _option(LEARN["cfg"])] = LEARN["cfg"].default,
    width: Annotated[int, _option(LEARN["width"])] = LEARN["width"].default,
    height: Annotated[int, _option(LEARN["height"])] = LEARN["height"].default,
    seed: Annotated[int, _option(LEARN["seed"])] = LEARN["seed"].default,
    objective: Annotated[str, _option(LEARN["objective"])] = LEARN["objective"].default,
    along: Annotated[str, _option(LEARN["along"])] = LEARN["along"].default,
    target_sparsity: Annotated[float, _option(LEARN["target_sparsity"])] = LEARN["target_sparsity"].default,
    max_neutral_loss: Annotated[float, _option(LEARN["max_neutral_loss"])] = LEARN["max_neutral_loss"].default,
    memory: Annotated[str, _option(LEARN["memory"])] = LEARN["memory"].default,
    threshold: Annotated[float, _option(LEARN["threshold"])] = LEARN["threshold"].default,
    dtype: Annotated[str, typer.Option(help="Of the model's weights: fp32, bf16 or fp16.")] = "bf16",
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; left out: a GPU if there is one.")] = None,
    config: Annotated[str | None, typer.Option(help="For a single file: a diffusers folder of the same kind of model.")] = None,
    curve: Annotated[Path | None, typer.Option(help="Save the learning curve as CSV.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write TensorBoard logs here, if tensorboard is installed.")] = None,
    as_json: Json = False,
) -> None:
    """Learn a mask from neutral prompts. Stopped? The same command goes on where it was.

    Several GPUs: accelerate launch -m uniforget learn ...
    """
    from .learncli import run

    values = dict(locals())
    del values["run"]
    result = run(**values)
    if result is not None:
        print(json.dumps(result, indent=2) if as_json else result["summary"])
