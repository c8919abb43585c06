"""ComfyUI layer: schemas and thin execute methods, no maths."""


def all_nodes():
    """Every node class of the pack, in menu order."""
    from .apply import ApplyMask
    from .attackcheck import AttackCheck
    from .cleanlora import CleanLora
    from .combine import CombineMasks
    from .compact import CompactModel
    from .compare import Compare
    from .demo import DemoModel
    from .drawguard import MemorizationGuard
    from .embedded import EmbeddedMask
    from .find import FindMemorized
    from .guard import guarded
    from .learn import LearnMask
    from .maskio import LoadMask, SaveMask
    from .maskmap import MaskMapNode
    from .picturecheck import PictureCheck
    from .preview import PreviewComparison
    from .promptcheck import PromptCheck
    from .recover import RecoverQuality
    from .report import Report
    from .sanitize import LoadCompact, SaveSanitized
    from .score import DemoScore
    from .sweep import StrengthSweep
    from .threshold import SetThreshold
    from .variety import SeedVariety

    learning = [LearnMask, FindMemorized, RecoverQuality]
    using = [
        ApplyMask,
        MemorizationGuard,
        PreviewComparison,
        StrengthSweep,
        SeedVariety,
        Compare,
        MaskMapNode,
        PictureCheck,
        PromptCheck,
        AttackCheck,
        Report,
    ]
    masks = [LoadMask, SaveMask, EmbeddedMask, CombineMasks, SetThreshold]
    models = [SaveSanitized, CleanLora, CompactModel, LoadCompact, DemoModel, DemoScore]
    return [guarded(node) for node in (*learning, *using, *masks, *models)]
