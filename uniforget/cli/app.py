"""The command line: thin commands over the engine.

Exit codes: 0 done; 1 something was wrong with the input, or could not be proved (a message says what); 2 wrong usage; 3 a fault of ours.
"""

from __future__ import annotations

import inspect as python
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..config import APPLY, COMBINE, FIND, LEARN, MULTIPLE, RECOVER
from ..config.copies import ATTACK, CLEAN_LORA
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
Prompts = Annotated[Path | None, typer.Option(help="Neutral prompts, one a line or JSONL; left out: the bundled list.")]
Dtype = Annotated[str, typer.Option(help="Of the model's weights: fp32, bf16 or fp16.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda or cpu; left out: a GPU if there is one.")]
Config = Annotated[str | None, typer.Option(help="For a single file: a diffusers folder of the same kind of model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, if UniForget made it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
            "hosts": family.hosts,
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


def _options(settings: Mapping[str, Param]) -> Callable[[Callable], Callable]:
    """Gives a command an option for each of `settings`; the command's ``**values`` gets them."""

    def give(command: Callable) -> Callable:
        own = python.signature(command, eval_str=True)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [
            python.Parameter(
                param.name,
                python.Parameter.KEYWORD_ONLY,
                default=param.default,
                annotation=Annotated[type(param.default), _option(param)],
            )
            for param in settings.values()
        ]
        command.__signature__ = own.replace(parameters=[*(p.replace(kind=p.KEYWORD_ONLY) for p in named), *made])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*named, *made)}
        return command

    return give


def _without_prompts(settings: Mapping[str, Param]) -> dict[str, Param]:
    """Prompts come from a file here."""
    return {name: param for name, param in settings.items() if name != "prompts"}


@app.command()
@_options(_without_prompts(LEARN))
def learn(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A diffusers folder, or a single-file checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the mask (.safetensors).")],
    prompts: Prompts = None,
    dtype: Dtype = "bf16",
    device: Device = None,
    config: Config = None,
    settings: Annotated[
        Path | None, typer.Option(help="A JSON file with values for these options; options that are given count more.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run two updates, say what memory and time the whole will take, and learn nothing.")
    ] = False,
    curve: Annotated[Path | None, typer.Option(help="Save the learning curve as CSV.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write TensorBoard logs here, if tensorboard is installed.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Learn a mask from neutral prompts. Stopped? The same command goes on where it was.

    Several GPUs: accelerate launch -m uniforget learn ...
    """
    from .learn import Host, Outputs, learn_run, read_settings

    host = {"dtype": dtype, "device": device}
    if settings:
        given = {name for name in (*values, *host) if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
        found = {name: value for name, value in read_settings(settings).items() if name not in given}
        host |= {name: found.pop(name) for name in host if name in found}
        values |= found
    out = Outputs(output, curve, tensorboard, overwrite)
    result = learn_run(Host(model, prompts, config=config, **host), out, settings, dry_run, values)  # type: ignore[arg-type]
    if result is not None:
        _print(result, as_json)


@app.command()
@_options(FIND)
def find(
    model: Annotated[str, typer.Argument(help="A diffusers folder, or a single-file checkpoint.")],
    pool: Annotated[Path, typer.Option(help="Prompts or captions to look through, one a line or JSONL: the more, the better.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save what to learn from (.jsonl).")],
    prompts: Prompts = None,
    dtype: Dtype = "bf16",
    device: Device = None,
    config: Config = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Find the memorized ones in a list of prompts. Learning from what it writes answers them as the model answers their rewordings."""
    from .learn import Host, find_run

    _print(find_run(Host(model, prompts, dtype, device, config), pool, output, overwrite, values), as_json)


@app.command()
@_options(_without_prompts(RECOVER))
def recover(
    model: Annotated[str, typer.Argument(help="The original: a diffusers folder, or a single-file checkpoint.")],
    masks: Annotated[list[Path], typer.Argument(help="A mask, a subspace, or one of each: what its cost is to be made up for.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the LoRA (.safetensors).")],
    prompts: Prompts = None,
    dtype: Dtype = "bf16",
    device: Device = None,
    config: Config = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Train a LoRA that brings back quality which a mask costs, from neutral prompts alone. Stopped? The same command goes on."""
    from .learn import Host, recover_run

    result = recover_run(Host(model, prompts, dtype, device, config), masks, output, overwrite, values)
    if result is not None:
        _print(result, as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({k: v for k, v in result.items() if k != "summary"}, indent=2))
    else:
        guard.say(result["summary"])


@app.command()
@_options({**APPLY, "threshold": LEARN["threshold"]})
def apply(
    model: Annotated[Path, typer.Argument(help="A .safetensors checkpoint, or a diffusers folder.")],
    masks: Annotated[list[Path], typer.Argument(help="Masks and subspaces, applied in this order.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the sanitized model.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Write a sanitized copy of a model: masks folded into its weights, everything else byte for byte as it was."""
    from . import files as filecli

    per_kind = {kind: values[f"strength_{kind}"] for kind in KINDS}
    _print(filecli.apply(model, masks, output, overwrite, values["strength"], values["threshold"], **per_kind), as_json)


@app.command()
@_options({"multiple": MULTIPLE})
def compact(
    model: Annotated[Path, typer.Argument(help="A .safetensors checkpoint in ComfyUI's naming.")],
    mask: Annotated[Path, typer.Argument(help="A mask of gates.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the compact model.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Write a smaller, faster copy: the mask folded in, and what it switches off cut out. Load Compact Model loads it in ComfyUI."""
    from . import files as filecli

    _print(filecli.compact(model, mask, output, values["multiple"], overwrite), as_json)


@app.command()
@_options(CLEAN_LORA)
def lora(
    lora: Annotated[Path, typer.Argument(help="A LoRA that draws its training pictures (.safetensors).")],
    base: Annotated[Path, typer.Argument(help="The model that it is for: a .safetensors checkpoint, or a diffusers folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the cleaned LoRA.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Write a LoRA of the same kind that keeps its style or subject and gives up what it learned by heart. No pictures, no prompts, no GPU."""
    from . import files as filecli

    _print(filecli.clean_lora(lora, base, output, overwrite, values), as_json)


@app.command()
@_options({"strength": APPLY["strength"], **ATTACK})
def attack(
    model: Annotated[str, typer.Argument(help="The original: a diffusers folder, or a single-file checkpoint.")],
    picture: Annotated[Path, typer.Option(help="Your picture.")],
    control: Annotated[Path, typer.Option(help="A picture of the same kind that the model cannot know.")],
    mask: Annotated[
        list[Path] | None, typer.Option(help="A mask or subspace: attacked before and after. Can be repeated.")
    ] = None,
    dtype: Dtype = "bf16",
    device: Device = None,
    config: Config = None,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Try to dig a picture out of a model, before and after a mask, beside a picture that the model never saw."""
    from .attack import attack_run

    strength = values.pop("strength")
    _print(attack_run(model, picture, control, mask or [], strength, dtype, device, config, values), as_json)


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
@_options(COMBINE)
def combine(
    mask_a: Annotated[Path, typer.Argument(help="A mask.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the result (.safetensors).")],
    mask_b: Annotated[
        Path | None, typer.Argument(help="A second mask; left out: kinds and blocks of the first are chosen.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Make one mask out of two, or keep a part of one."""
    from . import files as filecli

    _print(filecli.combine(mask_a, mask_b, output, overwrite=overwrite, **values), as_json)


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
