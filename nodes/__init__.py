"""ComfyUI layer: schemas and thin execute methods, no maths."""


def all_nodes():
    """Every node class of the pack, in menu order."""
    from .apply import ApplyMask
    from .combine import CombineMasks
    from .compact import CompactModel
    from .compare import Compare
    from .demo import DemoModel
    from .learn import LearnMask
    from .maskio import LoadMask, SaveMask
    from .picturecheck import PictureCheck
    from .promptcheck import PromptCheck
    from .recover import RecoverQuality
    from .sanitize import LoadCompact, SaveSanitized
    from .score import DemoScore
    from .threshold import SetThreshold

    masks = [LearnMask, RecoverQuality, ApplyMask, Compare, LoadMask, SaveMask, CombineMasks, SetThreshold]
    return [*masks, SaveSanitized, CompactModel, LoadCompact, PictureCheck, PromptCheck, DemoModel, DemoScore]
