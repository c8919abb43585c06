"""What Automatic1111 and Forge have in common, apart from their windows: the request, the folder of masks, one generation.

Nothing here imports a host; :mod:`uniforget.hosts.webui.script` does.
"""

from .folder import NO_MASK, describe, find, masks
from .request import Request, from_infotext
from .run import Landed, Run, comparison, merge, note, original_of, overridden, refusal, refuse

__all__ = [
    "NO_MASK",
    "Landed",
    "Request",
    "Run",
    "comparison",
    "describe",
    "find",
    "from_infotext",
    "masks",
    "merge",
    "note",
    "original_of",
    "overridden",
    "refusal",
    "refuse",
]
