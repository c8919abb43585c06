"""A workflow in the editor's format, laid out in columns: what :mod:`launcher.templates` builds the examples of."""

from dataclasses import dataclass, field
from typing import Any

GAP, TOP, HEAD = 40, 60, 40
NOTE_WIDTH = 380
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")

Link = tuple[int, int]


@dataclass
class Template:
    """A workflow in columns, each in a group of its own, from left to right.

    Attributes:
        info: of every node type: what ``/object_info`` says of it.
    """

    info: dict[str, Any]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    left: float = 0
    low: float = 0

    def column(self, title: str, width: int) -> None:
        """Begins a new column; what is added goes into it."""
        self.left = self.left + self.groups[-1]["bounding"][2] + GAP if self.groups else 0
        self.low = TOP
        box = [self.left, 0, width + GAP, TOP]
        self.groups.append(
            {"id": len(self.groups) + 1, "title": title, "bounding": box, "color": "#3f5159", "font_size": 22, "flags": {}}
        )

    def add(
        self, kind: str, height: int, values: dict[str, Any] | None = None, mode: int = 0, title: str = "", **inputs: Link
    ) -> int:
        """A node below the last one: `values` of its widgets, the others as they come; `inputs` are links. Returns its id."""
        ident, spec = len(self.nodes) + 1, self.info[kind]
        box = self.groups[-1]["bounding"]
        position, size = [box[0] + GAP / 2, self.low + HEAD / 2], [box[2] - GAP, height]
        self.low += height + HEAD + GAP / 2
        box[3] = self.low
        slots: list[dict[str, Any]] = []
        for name, (target, slot) in inputs.items():
            link, given = len(self.links) + 1, self.nodes[target - 1]["outputs"][slot]
            self.links.append([link, target, slot, ident, len(slots), given["type"]])
            given["links"].append(link)
            slots.append({"name": name, "type": given["type"], "link": link})
            if given["type"] in WIDGETS:
                slots[-1]["widget"] = {"name": name}
        outputs = [
            {"name": name, "type": type_, "links": [], "slot_index": i}
            for i, (name, type_) in enumerate(zip(spec["output_name"], spec["output"], strict=True))
        ]
        node = {"id": ident, "type": kind, "pos": position, "size": size, "flags": {}, "order": ident - 1, "mode": mode}
        node |= {"title": title} if title else {}
        node |= {"inputs": slots, "outputs": outputs, "properties": {"Node name for S&R": kind}}
        self.nodes.append(node | {"widgets_values": widgets(spec, values or {})})
        return ident

    def note(self, title: str, text: str, height: int) -> None:
        """What to do, in a column of its own."""
        self.column("Read me", NOTE_WIDTH)
        self.info.setdefault("MarkdownNote", {"input": {}, "output": [], "output_name": []})
        self.add("MarkdownNote", height)
        self.nodes[-1]["widgets_values"] = [f"## {title}\n\n{text}"]

    def workflow(self) -> dict[str, Any]:
        """In the editor's format. It says nothing of the view: the page fits it."""
        counts = {"last_node_id": len(self.nodes), "last_link_id": len(self.links)}
        return {
            **counts,
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"uniforget_fit": True},  # web/fit.js
            "version": 0.4,
        }


def widgets(spec: dict[str, Any], values: dict[str, Any]) -> list[Any]:
    """Values of a node's widgets in their order; what is not in `values` is the default."""
    found: list[Any] = []
    names = []
    for group in ("required", "optional"):
        for name, (kind, *more) in spec["input"].get(group, {}).items():
            options = more[0] if more else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if choices is None and kind not in WIDGETS:
                continue
            if options.get("forceInput"):
                continue
            names.append(name)
            found.append(values.get(name, options.get("default", choices[0] if choices else "")))
            if options.get("control_after_generate"):
                found.append("fixed")
    unknown = set(values) - set(names)
    assert not unknown, f"no such widgets: {sorted(unknown)}"
    return found
