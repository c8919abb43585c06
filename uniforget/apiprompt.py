"""What a prompt of ComfyUI's API says: which nodes a node depends on, and what they were set to. Prompts come from strangers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def upstream(prompt: Mapping[str, Any], node_id: str) -> list[str]:
    """Ids of the nodes that `node_id` depends on, directly or not, itself left out: what others need comes before them."""
    found: list[str] = []
    seen = {node_id}
    # Not by recursion: chains can be longer than Python's stack.
    path = [(node_id, _sources(prompt, node_id))]
    while path:
        node, sources = path[-1]
        if source := next((one for one in sources if one not in seen), None):
            seen.add(source)
            path.append((source, _sources(prompt, source)))
        else:
            path.pop()
            found.append(node)
    return found[:-1]


def settings_of(prompt: Mapping[str, Any], node_id: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, settings) of each node that `node_id` depends on and that has settings, in the order of their work."""
    found = []
    for other in upstream(prompt, node_id):
        values = _inputs(prompt, other)
        rows = [(str(name), _setting(value)) for name, value in values.items() if isinstance(value, str | int | float | bool)]
        if rows:
            node = prompt[other]
            kind = str(node.get("class_type", "?"))
            meta = node.get("_meta")
            title = str(meta.get("title") or kind) if isinstance(meta, Mapping) else kind
            found.append((title if title == kind else f"{title} ({kind})", rows))
    return found


def strengths_of(prompt: Mapping[str, Any], node_id: str) -> list[float]:
    """The strengths that UniForget's nodes before `node_id` were given, in the order of their work, each once."""
    found: list[float] = []
    for other in upstream(prompt, node_id):
        value = _inputs(prompt, other).get("strength")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        if str(prompt[other].get("class_type", "")).startswith("UniForget") and value not in found:
            found.append(float(value))
    return found


def in_words(strengths: Iterable[float]) -> str:
    """Strengths as the report names them."""
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


def _sources(prompt: Mapping[str, Any], node_id: str) -> list[str]:
    links = [v for v in _inputs(prompt, node_id).values() if isinstance(v, list) and len(v) == 2 and isinstance(v[0], str)]
    return [link[0] for link in links if link[0] in prompt]


def _setting(value: Any) -> str:
    return str(value) if isinstance(value, bool | str | int) else f"{value:g}"
