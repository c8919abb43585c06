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
    from .preview import PreviewComparison
    from .recover import RecoverQuality
    from .sanitize import LoadCompact, SaveSanitized
    from .score import DemoScore
    from .sweep import StrengthSweep
    from .threshold import SetThreshold

    masks = [LearnMask, RecoverQuality, ApplyMask, Compare, LoadMask, SaveMask, CombineMasks, SetThreshold]
    looks = [PreviewComparison, StrengthSweep]
    return [*masks, *looks, SaveSanitized, CompactModel, LoadCompact, DemoModel, DemoScore]
