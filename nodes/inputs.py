"""From one parameter definition (:mod:`uniforget.config`) to ComfyUI's input of it."""

import dataclasses

from comfy_api.latest import io, ui

from ..uniforget.param import Param
from ..uniforget.untrusted import safe
from .guard import aside, told

MaskType = io.Custom("UNIFORGET_MASK")
CATEGORY = "UniForget"


def to_input(param: Param):
    """The widget input of `param`, with its default, range and tooltip."""
    made = _widget(param)
    if param.advanced:
        # Not given to the constructor, where versions of ComfyUI differ; the page has known it long.
        made.extra_dict = {**(made.extra_dict or {}), "advanced": True}
    return made


def _widget(param):
    common = {"default": param.default, "tooltip": param.tooltip}
    if param.kind == "float":
        return io.Float.Input(param.name, min=param.minimum, max=param.maximum, step=param.step, **common)
    if param.kind == "int":
        seed = {"control_after_generate": True} if param.name == "seed" else {}
        return io.Int.Input(param.name, min=param.minimum, max=param.maximum, step=param.step, **common, **seed)
    if param.kind == "bool":
        return io.Boolean.Input(param.name, **common)
    if param.kind == "choice":
        return io.Combo.Input(param.name, options=list(param.choices), **common)
    return io.String.Input(param.name, multiline=param.kind == "text", **common)


def search(*words):
    """Keywords of ``io.Schema`` that let the search find a node by these words, where ComfyUI knows such a field."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}


def valid(check, value, *more):
    """What ``validate_inputs`` returns: True, or what ``check(value, *more)`` says is wrong.

    None is a value that another node makes; execute checks it.
    """
    try:
        if value is not None:
            check(value, *more)
    except Exception as error:
        return told(error)
    return True


async def valid_aside(check, value):
    """The same for a check that takes its time: ComfyUI asks while its server can answer nobody else."""
    return await aside(valid, check, value)


def say(node, text):
    """Shows `text` inside the running node: web/text.js has a panel for it.

    The node's schema has to ask for ``io.Hidden.unique_id``. Names and information in the text come from strangers: no node sends text
    to the page by another way, least of all as ComfyUI's own progress text, which is HTML. Returns the text as it was shown.
    """
    text = safe(text, page=True)
    unique_id = getattr(getattr(node, "hidden", None), "unique_id", None)
    if unique_id is not None:
        from server import PromptServer  # ComfyUI's; only there while it serves

        PromptServer.instance.send_sync("uniforget.text", {"node": unique_id, "text": text}, PromptServer.instance.client_id)
    return text


def show(node, text):
    """:func:`say`, and the text for API users as ``ui.text``."""
    return ui.PreviewText(say(node, text))
