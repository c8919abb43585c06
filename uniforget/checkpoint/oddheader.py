"""What is no ordinary safetensors file: other formats, and headers that the library refuses for their metadata alone.

Metadata must be text, and some programs write numbers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

# Bits of one value, by what safetensors calls its dtype.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


def texts(metadata: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Metadata as text, and the names of those that were none in the file."""
    if metadata is not None and not isinstance(metadata, dict):
        return {}, ("all of them",)
    odd = tuple(name for name, value in (metadata or {}).items() if not isinstance(value, str))
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}, odd


def check(entries: dict[str, Any], size: int) -> None:
    """What the library would have checked: dtypes, lengths, overlaps and holes of tensors that fill `size` bytes.

    Raises:
        ValueError: they do not.
    """
    at, places = 0, []
    try:
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (start, end, *entry["shape"])):
                raise ValueError(f"{name} is described by what is no number")
            places.append((start, end, _BITS[entry["dtype"]] * math.prod(entry["shape"]), name))
        for start, end, bits, name in sorted(places):
            if start != at or end - start != -(-bits // 8):
                raise ValueError(f"{name} does not lie where it must")
            at = end
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"an entry cannot be read ({error})") from error
    if at != size:
        raise ValueError(f"{at:,} bytes of tensors are named, and {size:,} are there")


def other_format(path: Path) -> str:
    """What is said about files of other formats; "" for those that are damaged."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except (OSError, ValueError):  # a folder, or a name that no file can have
        return ""
    if start == b"GGUF":
        return (
            "this is a GGUF model, whose packed weights cannot be rewritten. Sanitize the original .safetensors file and convert the result, or "
            "use Apply Memorization Mask in ComfyUI, which works on GGUF models as they are loaded."
        )
    if start[:2] == b"PK" or (len(start) > 1 and start[:1] == b"\x80" and 2 <= start[1] <= 5):
        return "this is a pickle (.ckpt, .pt, .bin), which could run code when opened, so it is never read. Convert it to .safetensors."
    return ""
