"""The command line: thin commands over the engine.

Exit codes: 0 done; 1 something was wrong with the input (a message says what); 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import __version__
from .archs import KINDS
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
