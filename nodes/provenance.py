"""How pictures were made, read from the prompt that ComfyUI is running: the nodes upstream of them, and their settings."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

APPLY = "UniForgetApply"
# What it takes to make a picture again, apart from its text: widgets of samplers, loaders and our nodes, by the field's names.
TELLING = (
    *("ckpt_name", "unet_name", "model_name", "lora_name", "strength_model", "control_net_name"),
    *("mask_name", "preset", "objective", "strength", "strength_ffn", "strength_norm", "strength_attn"),
    *("seed", "noise_seed", "steps", "cfg", "guidance", "sampler_name", "scheduler", "denoise", "shift"),
    *("width", "height", "batch_size"),
)
LONGEST = 80
LINES = 32


def source(prompt: dict[str, Any], node: str, name: str) -> list[str]:
    """The node that input `name` of `node` is linked to, as a list of none or one."""
    linked = _linked(_inputs(prompt, node).get(name), prompt)
    return [] if linked is None else [linked]


def made_by(prompt: dict[str, Any], nodes: Iterable[str]) -> list[str]:
    """A line per node that `nodes` depend on, they included, the nearest first: ``"KSampler: seed 7, steps 12, cfg 3.5"``.

    Prompts' texts are left out; so are values that come from other nodes. At most LINES lines.

    Args:
        prompt: what ComfyUI runs, by node id (``cls.hidden.prompt``).
        nodes: ids to start from; see :func:`source`.
    """
    lines = []
    for node in upstream(prompt, nodes):
        inputs = _inputs(prompt, node)
        values = [f"{name} {_text(inputs[name])}" for name in TELLING if isinstance(inputs.get(name), str | int | float)]
        if values:
            lines.append(f"{prompt[node].get('class_type', '?')}: {', '.join(values)}")
    return lines[:LINES]


def strength(prompt: dict[str, Any], nodes: Iterable[str]) -> str:
    """``"strength 0.8"`` if masks were applied on the way to `nodes`, the nearest first; "" if none, or if one's strength is not known here."""
    found = []
    # how a mask was made says nothing about how strongly it is applied
    for node in upstream(prompt, nodes, leave_out=("mask",)):
        if prompt[node].get("class_type") == APPLY:
            value = _inputs(prompt, node).get("strength")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return ""
            found.append(f"{value:g}")
    return f"strength {', '.join(found)}" if found else ""


def upstream(prompt: dict[str, Any], nodes: Iterable[str], leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    """Ids of `nodes` and of all that they depend on, each once, the nearest first; not through inputs named in `leave_out`."""
    waiting = [node for node in nodes if node in prompt]
    seen = set(waiting)
    for node in waiting:
        yield node
        for name, value in _inputs(prompt, node).items():
            linked = _linked(value, prompt)
            if linked is not None and name not in leave_out and linked not in seen:
                seen.add(linked)
                waiting.append(linked)


def _inputs(prompt: dict[str, Any], node: str) -> dict[str, Any]:
    return prompt.get(node, {}).get("inputs", {})


def _linked(value: Any, prompt: dict[str, Any]) -> str | None:
    """The node that an input's value comes from; None for a value of its own."""
    link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt
    return value[0] if link else None


def _text(value: str | int | float) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
