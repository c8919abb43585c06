"""A workflow as ComfyUI's editor saves it -> a prompt as ComfyUI's HTTP API takes it.

The editor does this in the browser; here it is done from ``/object_info``, so that a workflow can be queued without a page.
"""

from typing import Any

from .errors import WorkflowError

Link = tuple[str, int]
MUTED, BYPASSED = 2, 4
NOT_EXECUTED = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
SEED_NAMES = {"seed", "noise_seed"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
PYTHON_TYPES: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}


def is_prompt(data: Any) -> bool:
    """Whether ``data`` is already in the API's format."""
    return isinstance(data, dict) and bool(data) and all(isinstance(n, dict) and "class_type" in n for n in data.values())


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Prompt of a workflow.

    Args:
        workflow: a saved workflow (``nodes``, ``links``), or a prompt, which is returned unchanged.
        object_info: answer of ``/object_info``.

    Returns:
        ``{node id: {"class_type", "inputs", "_meta"}}``. Muted nodes, notes and reroutes are gone,
        bypassed nodes are wired through.

    Raises:
        WorkflowError: unknown node types, subgraphs, or widget values that do not fit the node.
    """
    if is_prompt(workflow):
        return workflow
    if not isinstance(workflow, dict) or "nodes" not in workflow:
        raise WorkflowError("This is not a ComfyUI workflow: expected a JSON object with a list of 'nodes'.")
    return _Converter(workflow, object_info).convert()


class _Converter:
    def __init__(self, workflow: dict[str, Any], object_info: dict[str, Any]):
        self.info = object_info
        self.nodes = {str(node["id"]): node for node in workflow["nodes"]}
        self.links = dict(_read_link(link) for link in workflow.get("links") or [])
        subgraphs = {graph["id"] for graph in (workflow.get("definitions") or {}).get("subgraphs") or []}
        for node in self.nodes.values():
            if node["type"] in subgraphs:
                raise WorkflowError(f"{_name(node)} is a subgraph. Unpack it in the editor and save the workflow again.")

    def convert(self) -> dict[str, Any]:
        executed = {i: n for i, n in self.nodes.items() if self._is_executed(n)}
        unknown = sorted({n["type"] for n in executed.values() if n["type"] not in self.info})
        if unknown:
            raise WorkflowError(f"This ComfyUI does not have the nodes {', '.join(unknown)}. Install the packs they come from.")
        prompt = {}
        for node_id, node in executed.items():
            inputs = self._widget_inputs(node)
            for slot in node.get("inputs") or []:
                if slot.get("link") is None:
                    continue
                found = self._resolve(slot["link"])
                if isinstance(found, _Value):
                    inputs[slot["name"]] = found.value
                elif found is not None and found[0] in executed:
                    inputs[slot["name"]] = [found[0], found[1]]
                else:
                    inputs.pop(slot["name"], None)
            prompt[node_id] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title(node, self.info)}}
        return prompt

    @staticmethod
    def _is_executed(node: dict[str, Any]) -> bool:
        virtual = NOT_EXECUTED | {"Reroute", "PrimitiveNode"}
        return node["type"] not in virtual and node.get("mode", 0) not in (MUTED, BYPASSED)

    def _resolve(self, link_id: Any) -> "Link | _Value | None":
        """Follows a link back through reroutes and bypassed nodes to an output, a primitive's value, or nothing."""
        seen = set()
        while link_id is not None and link_id in self.links and link_id not in seen:
            seen.add(link_id)
            source_id, slot, kind = self.links[link_id]
            node = self.nodes.get(source_id)
            if node is None or node.get("mode", 0) == MUTED:
                return None
            if node["type"] == "PrimitiveNode":
                return _Value((node.get("widgets_values") or [None])[0])
            if node["type"] == "Reroute":
                link_id = (node.get("inputs") or [{}])[0].get("link")
            elif node.get("mode", 0) == BYPASSED:
                link_id = _bypass_link(node, slot, kind)
            else:
                return source_id, slot
        return None

    def _widget_inputs(self, node: dict[str, Any]) -> dict[str, Any]:
        """Values of the node's widgets by input name, in the order in which the editor draws and saves them."""
        widgets = _widgets(self.info[node["type"]], node)
        saved = node.get("widgets_values")
        if isinstance(saved, dict):
            return {name: _checked(node, name, kind, saved[name]) for name, kind, _ in widgets if name in saved}
        values = list(saved or [])
        result: dict[str, Any] = {}
        for name, kind, options in widgets:
            if values:
                result[name] = _checked(node, name, kind, values.pop(0))
            elif "default" in options:
                result[name] = options["default"]
            elif kind == "COMBO" and options.get("options"):
                result[name] = options["options"][0]
            else:
                raise WorkflowError(
                    f"{_name(node)} has no saved value for '{name}'. Load and save the workflow in the editor again."
                )
            seed = kind == "INT" and name in SEED_NAMES
            if (seed or options.get("control_after_generate")) and values and values[0] in AFTER_GENERATE:
                values.pop(0)
            if options.get("image_upload") and values and values[0] == "image":
                values.pop(0)
        return result


class _Value:
    """A literal that arrives over a link (from a primitive)."""

    def __init__(self, value: Any):
        self.value = value


def title(node: dict[str, Any], object_info: dict[str, Any]) -> str:
    """What the user sees on the node."""
    return node.get("title") or object_info.get(node["type"], {}).get("display_name") or node["type"]


def _name(node: dict[str, Any]) -> str:
    return f"Node {node['id']} ({node['type']})"


def _read_link(link: Any) -> tuple[Any, tuple[str, int, str]]:
    """``(link id, (source node, source slot, type))`` of either saved form, list or object."""
    if isinstance(link, dict):
        return link["id"], (str(link["origin_id"]), link["origin_slot"], link.get("type", "*"))
    return link[0], (str(link[1]), link[2], link[5] if len(link) > 5 else "*")


def _bypass_link(node: dict[str, Any], slot: int, kind: str) -> Any:
    """Link of the input that a bypassed node hands through: the one at the same place if its type fits, else the first."""
    inputs = node.get("inputs") or []
    for candidate in [*inputs[slot : slot + 1], *inputs]:
        if candidate.get("type") == kind:
            return candidate.get("link")
    return None


def _widgets(info: dict[str, Any], node: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """``(name, type, options)`` of each input that the editor draws as a widget."""
    result = []
    order = info.get("input_order") or {group: list(names) for group, names in info["input"].items()}
    for group in ("required", "optional"):
        for name in order.get(group, []):
            spec = info["input"][group][name]
            kind, options = spec[0], (spec[1] if len(spec) > 1 else None) or {}
            if isinstance(kind, list):
                kind, options = "COMBO", {"options": kind, **options}
            if kind.startswith("COMFY_DYNAMIC") or kind.startswith("COMFY_AUTOGROW"):
                raise WorkflowError(f"{_name(node)}: its input '{name}' has the type {kind}, which only the editor can convert.")
            if (kind in WIDGET_TYPES or "widgetType" in options) and not options.get("forceInput"):
                result.append((name, kind, options))
    return result


def _checked(node: dict[str, Any], name: str, kind: str, value: Any) -> Any:
    """``value`` as the API wants it, or an error that names the widget: a shifted list of values must not go unnoticed."""
    wanted = PYTHON_TYPES.get(kind)
    if kind == "INT" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and kind != "BOOLEAN")):
        raise WorkflowError(
            f"{_name(node)}: the saved value of '{name}' should be {kind}, found {value!r}. "
            "The workflow was saved with another version of the node: load it in the editor, set the value and save it again."
        )
    return {"__value__": value} if isinstance(value, list) else value
