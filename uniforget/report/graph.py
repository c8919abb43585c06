"""What a prompt of ComfyUI's API says: which nodes a node depends on, and what they were set to. Prompts come from strangers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..untrusted import is_number

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


def source(prompt: Mapping[str, Any], node: str, name: str) -> list[str]:
    """The node that input `name` of `node` is linked to, as a list of none or one."""
    return [other for found, other in _sources(prompt, node) if found == name]


def upstream(prompt: Mapping[str, Any], nodes: Iterable[str], leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    """Ids of `nodes` and of all that they depend on, each once, the nearest first; not through inputs named in `leave_out`."""
    waiting = [node for node in nodes if node in prompt]
    seen = set(waiting)
    for node in waiting:
        yield node
        for name, other in _sources(prompt, node):
            if name not in leave_out and other not in seen:
                seen.add(other)
                waiting.append(other)


def in_order(prompt: Mapping[str, Any], node_id: str) -> list[str]:
    """Ids of the nodes that `node_id` depends on, itself left out, in the order of their work: what others need comes before them."""
    found: list[str] = []
    seen = {node_id}
    # Not by recursion: chains can be longer than Python's stack. Each node's inputs are gone through once, however many there are.
    path = [(node_id, iter(_sources(prompt, node_id)))]
    while path:
        node, sources = path[-1]
        if (other := next((one for _, one in sources if one not in seen), None)) is not None:
            seen.add(other)
            path.append((other, iter(_sources(prompt, other))))
        else:
            path.pop()
            found.append(node)
    return found[:-1]


def strengths(prompt: Mapping[str, Any], nodes: Iterable[str]) -> list[float]:
    """The strengths of the masks that were applied on the way to `nodes`, the nearest first; [] if one's is not known here."""
    found = []
    # how a mask was made says nothing about how strongly it is applied
    for node in upstream(prompt, nodes, leave_out=("mask",)):
        if _kind(prompt, node) == APPLY:
            value = _inputs(prompt, node).get("strength")
            if not is_number(value):
                return []
            found.append(float(value))
    return found


def made_by(prompt: Mapping[str, Any], nodes: Iterable[str]) -> list[str]:
    """A line per node that `nodes` depend on, they included, the nearest first: ``"KSampler: seed 7, steps 12, cfg 3.5"``.

    Prompts' texts are left out; so are values that come from other nodes. At most LINES lines.

    Args:
        prompt: what ComfyUI runs, by node id (a node's hidden input).
        nodes: ids to start from; see :func:`source`.
    """
    lines = []
    for node in upstream(prompt, nodes):
        inputs = _inputs(prompt, node)
        values = [f"{name} {_short(inputs[name])}" for name in TELLING if isinstance(inputs.get(name), str | int | float)]
        if values:
            lines.append(f"{_kind(prompt, node)}: {', '.join(values)}")
    return lines[:LINES]


def prompt_of(prompt: Mapping[str, Any], nodes: Iterable[str]) -> str:
    """The text of the nearest positive prompt on the way to `nodes`; "" if none is written in the workflow."""
    for node in upstream(prompt, nodes):
        for other in source(prompt, node, "positive"):
            for found in upstream(prompt, [other]):
                text = _inputs(prompt, found).get("text")
                if isinstance(text, str) and text.strip():
                    return text.strip()
    return ""


def settings_of(prompt: Mapping[str, Any], node_id: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, settings) of each node that `node_id` depends on and that has settings, in the order of their work."""
    found = []
    for other in in_order(prompt, node_id):
        values = _inputs(prompt, other)
        rows = [(str(name), _setting(value)) for name, value in values.items() if isinstance(value, str | int | float | bool)]
        if rows:
            kind, meta = _kind(prompt, other), prompt[other].get("_meta")
            title = str(meta.get("title") or kind) if isinstance(meta, Mapping) else kind
            found.append((title if title == kind else f"{title} ({kind})", rows))
    return found


def in_words(strengths: Iterable[float]) -> str:
    """Strengths as people read them: "1, 0.8"."""
    return ", ".join(f"{value:g}" for value in strengths)


def workflow_text(extra: Any, prompt: Any) -> str:
    """The editor's workflow, else the API's prompt, as JSON; "" when there is neither."""
    found = extra.get("workflow") if isinstance(extra, Mapping) else None
    if not found and isinstance(prompt, Mapping):
        # ComfyUI adds notes of its own ("is_changed") while it works.
        kept = ("class_type", "inputs", "_meta")
        found = {i: {k: n[k] for k in kept if k in n} for i, n in prompt.items() if isinstance(n, Mapping)}
    return json.dumps(found, ensure_ascii=False) if found else ""


def _inputs(prompt: Mapping[str, Any], node_id: str) -> Mapping[str, Any]:
    node = prompt.get(node_id)
    values = node.get("inputs") if isinstance(node, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _kind(prompt: Mapping[str, Any], node_id: str) -> str:
    return str(prompt[node_id].get("class_type", "?")) if isinstance(prompt[node_id], Mapping) else "?"


def _sources(prompt: Mapping[str, Any], node_id: str) -> list[tuple[str, str]]:
    """(input, the node that it comes from) of all inputs that have no value of their own."""
    links = [(n, v) for n, v in _inputs(prompt, node_id).items() if isinstance(v, list) and len(v) == 2 and isinstance(v[0], str)]
    return [(name, link[0]) for name, link in links if link[0] in prompt]


def _setting(value: Any) -> str:
    return str(value) if isinstance(value, bool | str | int) else f"{value:g}"


def _short(value: str | int | float) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
