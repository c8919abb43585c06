"""The command line: thin commands over the engine.

Exit codes: 0 done; 1 something was wrong with the input, or could not be proved (a message says what); 2 wrong usage; 3 a fault of ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..config import APPLY, COMBINE, LEARN, MULTIPLE, RECOVER
from ..errors import SettingError
from ..model.families import FAMILIES, sizes
from ..model.families.schema import KINDS
from ..param import Param
from . import guard

REPOSITORY = "the repository of UniForget for ComfyUI"
app = typer.Typer(
    name="uniforget",
    help="Make a text-to-image model forget what it memorized, without naming it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, if UniForget made it.")]


@app.callback()
def _commands() -> None:
    """Keeps commands as commands even while there is only one."""


def main() -> None:
    """Run the command line; whatever is raised becomes one message on stderr and an exit code."""
    with guard.commands():
        app()


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
    context: typer.Context,
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
    settings: Annotated[
        Path | None, typer.Option(help="A JSON file with values for these options; options that are given count more.")
    ] = None,
    curve: Annotated[Path | None, typer.Option(help="Save the learning curve as CSV.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write TensorBoard logs here, if tensorboard is installed.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn a mask from neutral prompts. Stopped? The same command goes on where it was.

    Several GPUs: accelerate launch -m uniforget learn ...
    """
    from .learn import read_settings, run

    values = dict(locals())
    for name in ("context", "read_settings", "run", "as_json"):
        del values[name]
    if settings:
        given = {name for name in values if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
        values |= {name: value for name, value in read_settings(settings).items() if name not in given}
    result = run(**values)
    if result is not None:
        _print(result, as_json)


@app.command()
def recover(
    model: Annotated[str, typer.Argument(help="The original: a diffusers folder, or a single-file checkpoint.")],
    masks: Annotated[list[Path], typer.Argument(help="A mask, a subspace, or one of each: what its cost is to be made up for.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the LoRA (.safetensors).")],
    prompts: Annotated[
        Path | None, typer.Option(help="Neutral prompts, one a line or JSONL; left out: the bundled list.")
    ] = None,
    rank: Annotated[int, _option(RECOVER["rank"])] = RECOVER["rank"].default,
    steps: Annotated[int, _option(RECOVER["steps"])] = RECOVER["steps"].default,
    learning_rate: Annotated[float, _option(RECOVER["learning_rate"])] = RECOVER["learning_rate"].default,
    batch: Annotated[int, _option(RECOVER["batch"])] = RECOVER["batch"].default,
    sampling_steps: Annotated[int, _option(RECOVER["sampling_steps"])] = RECOVER["sampling_steps"].default,
    cfg: Annotated[float, _option(RECOVER["cfg"])] = RECOVER["cfg"].default,
    width: Annotated[int, _option(RECOVER["width"])] = RECOVER["width"].default,
    height: Annotated[int, _option(RECOVER["height"])] = RECOVER["height"].default,
    seed: Annotated[int, _option(RECOVER["seed"])] = RECOVER["seed"].default,
    memory: Annotated[str, _option(RECOVER["memory"])] = RECOVER["memory"].default,
    dtype: Annotated[str, typer.Option(help="Of the model's weights: fp32, bf16 or fp16.")] = "bf16",
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; left out: a GPU if there is one.")] = None,
    config: Annotated[str | None, typer.Option(help="For a single file: a diffusers folder of the same kind of model.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a LoRA that brings back quality which a mask costs, from neutral prompts alone. Stopped? The same command goes on."""
    from .learn import recover_run

    values = dict(locals())
    for name in ("recover_run", "as_json"):
        del values[name]
    result = recover_run(**values)
    if result is not None:
        _print(result, as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({k: v for k, v in result.items() if k != "summary"}, indent=2))
    else:
        guard.say(result["summary"])


@app.command()
def apply(
    model: Annotated[Path, typer.Argument(help="A .safetensors checkpoint, or a diffusers folder.")],
    masks: Annotated[list[Path], typer.Argument(help="Masks and subspaces, applied in this order.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the sanitized model.")],
    strength: Annotated[float, _option(APPLY["strength"])] = APPLY["strength"].default,
    strength_ffn: Annotated[float, _option(APPLY["strength_ffn"])] = APPLY["strength_ffn"].default,
    strength_norm: Annotated[float, _option(APPLY["strength_norm"])] = APPLY["strength_norm"].default,
    strength_attn: Annotated[float, _option(APPLY["strength_attn"])] = APPLY["strength_attn"].default,
    threshold: Annotated[float, _option(LEARN["threshold"])] = LEARN["threshold"].default,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a sanitized copy of a model: masks folded into its weights, everything else byte for byte as it was."""
    from . import files as filecli

    strengths = {"ffn": strength_ffn, "norm": strength_norm, "attn": strength_attn}
    _print(filecli.apply(model, masks, output, overwrite, strength, threshold, **strengths), as_json)


@app.command()
def compact(
    model: Annotated[Path, typer.Argument(help="A .safetensors checkpoint in ComfyUI's naming.")],
    mask: Annotated[Path, typer.Argument(help="A mask of gates.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the compact model.")],
    multiple: Annotated[str, _option(MULTIPLE)] = MULTIPLE.default,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a smaller, faster copy: the mask folded in, and what it switches off cut out. Load Compact Model loads it in ComfyUI."""
    from . import files as filecli

    _print(filecli.compact(model, mask, output, multiple, overwrite), as_json)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A sanitized .safetensors file, or diffusers folder.")],
    source: Annotated[Path | None, typer.Option(help="The file or folder that it was made from.")] = None,
    mask: Annotated[list[Path] | None, typer.Option(help="Subspaces that were applied; masks are inside the file.")] = None,
    as_json: Json = False,
) -> None:
    """Check which masks were applied to a file, at which strength, and that nothing else was changed. Exit code 1: it does not hold, or cannot be proved."""
    from . import files as filecli

    result = filecli.check(file, source, mask or [])
    _print(result, as_json)
    if not result["verified"]:
        raise typer.Exit(1)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A mask, a subspace, a checkpoint or a diffusers folder.")],
    as_json: Json = False,
) -> None:
    """Say what a file is: a mask's kinds, blocks and origin, or a model's family and what was applied to it."""
    from . import files as filecli

    _print(filecli.inspect(file), as_json)


@app.command()
def combine(
    mask_a: Annotated[Path, typer.Argument(help="A mask.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the result (.safetensors).")],
    mask_b: Annotated[
        Path | None, typer.Argument(help="A second mask; left out: kinds and blocks of the first are chosen.")
    ] = None,
    mode: Annotated[str, _option(COMBINE["mode"])] = COMBINE["mode"].default,
    weight: Annotated[float, _option(COMBINE["weight"])] = COMBINE["weight"].default,
    kinds: Annotated[str, _option(COMBINE["kinds"])] = COMBINE["kinds"].default,
    blocks: Annotated[str, _option(COMBINE["blocks"])] = COMBINE["blocks"].default,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make one mask out of two, or keep a part of one."""
    from . import files as filecli

    _print(filecli.combine(mask_a, mask_b, output, mode, weight, kinds, blocks, overwrite), as_json)


@app.command()
def demo(as_json: Json = False) -> None:
    """Show the whole story on a small bundled model: learn, apply, count copies before and after."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "launcher" / "demo.py").exists():
        raise SettingError(
            f"uniforget demo: its model is not part of the package. Clone {REPOSITORY} and run: python run.py demo"
        )
    command = [sys.executable, str(root / "run.py"), "demo"]
    if not as_json:
        raise typer.Exit(subprocess.call(command))
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "demo.json")
        code = subprocess.call([*command, "--json", str(figures)], stdout=sys.stderr)
        print(figures.read_text(encoding="utf-8") if figures.exists() else "{}")
    raise typer.Exit(code)
