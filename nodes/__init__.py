"""ComfyUI layer: schemas and thin execute methods, no maths."""


def all_nodes():
    """Every node class of the pack, in menu order."""
    from .apply import ApplyMask
    from .combine import CombineMasks
    from .compact import CompactModel
    from .compare import Compare
    from .demo import DemoModel
    from .embedded import EmbeddedMask
    from .learn import LearnMask
    from .maskio import LoadMask, SaveMask
    from .maskmap import MaskMapNode
    from .recover import RecoverQuality
    from .report import Report
    from .sanitize import LoadCompact, SaveSanitized
    from .score import DemoScore
    from .threshold import SetThreshold

    masks = [
        LearnMask,
        RecoverQuality,
        ApplyMask,
        Compare,
        Report,
        LoadMask,
        SaveMask,
        CombineMasks,
        SetThreshold,
        EmbeddedMask,
        MaskMapNode,
    ]
    return [*masks, SaveSanitized, CompactModel, LoadCompact, DemoModel, DemoScore]
