"""From one parameter definition (:mod:`uniforget.config`) to ComfyUI's input of it."""

from comfy_api.latest import io

from ..uniforget.config import Param

MaskType = io.Custom("UNIFORGET_MASK")
CATEGORY = "UniForget"


def to_input(param: Param):
    """The widget input of `param`, with its default, range and tooltip."""
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
    return io.String.Input(param.name, multiline=True, **common)


def text_below(text: str) -> dict:
    """``ui`` entry that shows `text` inside the node."""
    return {"text": [text]}
