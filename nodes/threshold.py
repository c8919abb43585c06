"""Set Subspace Threshold."""

from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.errors import MaskError, SettingError
from ..uniforget.mask.files import subspace_of
from .inputs import CATEGORY, MaskType, search, show, to_input


class SetThreshold(io.ComfyNode):
    """The same subspace, giving up more or less."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetThreshold",
            display_name="Set Subspace Threshold",
            category=CATEGORY,
            description=(
                "Moves how much a subspace gives up, without learning again: more forgets more and costs more quality. "
                "Only for what was learned with the objective 'subspace'."
            ),
            inputs=[
                MaskType.Input("mask", tooltip="A subspace, from Learn (objective: subspace) or Load Memorization Mask."),
                to_input(config.THRESHOLD),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[MaskType.Output(id="moved", display_name="mask", tooltip="The subspace with this threshold.")],
            **search("forget", "unlearn", "subspace"),
        )

    @classmethod
    def execute(cls, mask, threshold):
        threshold = config.THRESHOLD.check(threshold)
        try:
            moved = subspace_of(mask, "Set Subspace Threshold").at(threshold)
        except MaskError as error:
            raise SettingError(f"Setting 'threshold': {error}") from error
        return io.NodeOutput(moved, ui=show(cls, moved.summary()))
