"""The texts of the nodes in other languages: ``python -m launcher.locales`` writes the English ones from the nodes' schemas.

ComfyUI serves ``locales/<language>/nodeDefs.json``, and its page replaces what the nodes say by what it finds there. The
English file is what translators work from; ``tests/comfyui/test_locales.py`` keeps it equal to the nodes, and the others complete.
"""

import json
from pathlib import Path
from typing import Any

from . import pack
from .paths import CACHE, ROOT

FOLDER = ROOT / "locales"
ENGLISH = "en"
AFTER_GENERATE = "control_after_generate"


def file_of(language: str) -> Path:
    """Where the texts of the nodes in a language are."""
    return FOLDER / language / "nodeDefs.json"


def read(language: str) -> dict[str, Any]:
    """The texts of the nodes in a language."""
    return json.loads(file_of(language).read_text(encoding="utf-8"))


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """What the pack's nodes say, in the shape of ``nodeDefs.json``, from an answer of ``/object_info``."""
    return {name: _texts(object_info[name]) for name in pack.nodes(object_info)}


def flat(texts: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"Node.inputs.strength.tooltip": text}``."""
    found: dict[str, str] = {}
    for name, value in texts.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _texts(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            inputs[name] = _named(options.get("display_name") or name, options.get("tooltip"))
            if options.get(AFTER_GENERATE):
                inputs[AFTER_GENERATE] = {"name": AFTER_GENERATE.replace("_", " ")}
    tooltips = info.get("output_tooltips") or [None] * len(info["output_name"])
    outputs = {str(i): _named(name, tip) for i, (name, tip) in enumerate(zip(info["output_name"], tooltips, strict=True))}
    found = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs, "outputs": outputs}
    return {key: value for key, value in found.items() if value}


def _named(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip} if tooltip else {"name": name}


def write(language: str, texts: dict[str, Any]) -> None:
    """Writes the texts of a language as people edit them."""
    file = file_of(language)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Loads the pack into a ComfyUI in this process and writes the English file."""
    from . import inside

    loaded = inside.load(CACHE / "locales")
    write(ENGLISH, english({node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in loaded.all_nodes()}))


if __name__ == "__main__":
    main()
