"""safetensors files of any size, tensor by tensor: where each lies, and copying a file while some tensors change.

The library reads single tensors but writes only what is whole in memory; this writes what never is. It checks every header first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from . import atomic
from .errors import ModelFileError

# What can be computed with; weights of other dtypes are copied.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
CHUNK = 32 << 20

# Rows from `start` on, in the stored dtype -> the same rows, changed.
Change = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """One tensor: its dtype as safetensors calls it, its shape, and the bytes of the file that hold it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands before the tensors.

    Attributes:
        path: the file.
        entries: tensors by name, in the header's order.
        metadata: text by name.
        begin: where the tensors' bytes begin; they reach to the end of the file.
    """

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]
    begin: int

    def ordered(self) -> list[Entry]:
        """Tensors as they lie in the file."""
        return sorted(self.entries.values(), key=lambda e: (e.start, e.end))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(e.end - e.start for e in self.entries.values())


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check a file's header.

    Raises:
        ModelFileError: there is no such file, or it is no safetensors file.
    """
    path = Path(path)
    try:
        # The library checks lengths, dtypes, overlaps and holes.
        with safe_open(path, framework="pt") as checked:
            metadata = dict(checked.metadata() or {})
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            found = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: there is no such file. Give the path of a .safetensors model.") from error
    except (SafetensorError, struct.error, ValueError) as error:
        raise ModelFileError(
            f"{path}: {_other(path) or f'expected a complete .safetensors file ({error}). Download or copy it again.'}"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{path}: the file cannot be read ({error.strerror or error}).") from error
    found.pop("__metadata__", None)
    begin = 8 + length
    entries = {}
    for name, entry in found.items():
        first, last = entry["data_offsets"]
        entries[name] = Entry(name, entry["dtype"], tuple(entry["shape"]), begin + first, begin + last)
    return Header(path, entries, metadata, begin)


def _other(path: Path) -> str:
    """What is said about files of other formats; "" for those that are damaged."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return (
            "this is a GGUF model, whose packed weights cannot be rewritten. Sanitize the original .safetensors file and convert the result, or "
            "use Apply Memorization Mask in ComfyUI, which works on GGUF models as they are loaded."
        )
    if start[:2] == b"PK" or (len(start) > 1 and start[:1] == b"\x80" and 2 <= start[1] <= 5):
        return "this is a pickle (.ckpt, .pt, .bin), which could run code when opened, so it is never read. Convert it to .safetensors."
    return ""


def header_bytes(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file with the same tensors in the same places, and other metadata; as long for values of one length."""
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, e in header.entries.items():
        content[name] = {
            "dtype": e.dtype,
            "shape": list(e.shape),
            "data_offsets": [e.start - header.begin, e.end - header.begin],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@contextlib.contextmanager
def mapped(header: Header) -> Iterator[Callable[[int, int], memoryview]]:
    """Read-only views of a file's bytes: ``view(start, end)``. Each is to be released before the context ends."""
    with open(header.path, "rb") as file:
        if not header.size:
            yield lambda start, end: memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            whole, seen = memoryview(data), 0

            def view(start: int, end: int) -> memoryview:
                # What was seen before is not needed again: without this the system counts the whole file as this process's memory.
                nonlocal seen
                behind = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
                if behind > seen and hasattr(mmap, "MADV_DONTNEED"):
                    data.madvise(mmap.MADV_DONTNEED, seen, behind - seen)
                seen = max(seen, behind)
                return whole[start:end]

            try:
                yield view
            finally:
                whole.release()


def chunks(entry: Entry) -> Iterator[tuple[int, int, int]]:
    """``(start, end, first row)`` of pieces of a tensor, each of whole rows."""
    rows = entry.shape[0] if entry.shape else 1
    length = (entry.end - entry.start) // max(rows, 1)
    step = max(1, CHUNK // max(length, 1))
    for row in range(0, rows, step):
        yield entry.start + row * length, entry.start + min(row + step, rows) * length, row


def tensor(view: memoryview | bytes, entry: Entry) -> torch.Tensor:
    """Whole rows of a tensor from their bytes, as a copy: (rows, ...)."""
    flat = torch.frombuffer(bytearray(view), dtype=DTYPES[entry.dtype])
    return flat.reshape(-1, *entry.shape[1:])


class Values:
    """Single values of a matrix, read from the file when they are asked for: what a fingerprint needs."""

    def __init__(self, header: Header, entry: Entry, scale: float = 1.0):
        self.path, self.entry, self.scale = header.path, entry, scale
        self.shape, self.ndim = entry.shape, len(entry.shape)

    def __getitem__(self, at: tuple[int, int]) -> torch.Tensor:
        entry = self.entry
        size = (entry.end - entry.start) // max(1, entry.shape[0] * entry.shape[1])
        with open(self.path, "rb") as file:
            file.seek(entry.start + size * (at[0] * entry.shape[1] + at[1]))
            return torch.frombuffer(bytearray(file.read(size)), dtype=DTYPES[entry.dtype])[0].float() * self.scale


class Weights:
    """The fingerprint of a file's weights: SHA-256 over name, dtype, shape and SHA-256 of each tensor, sorted by name.

    Files with other metadata or another order of the same tensors have the same one.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, entry: Entry, digest: str) -> None:
        """Note one tensor's SHA-256."""
        self.found[entry.name] = f"{entry.name} {entry.dtype} {list(entry.shape)} {digest}\n"

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        sha = hashlib.sha256()
        for _, line in sorted(self.found.items()):
            sha.update(line.encode())
        return sha.hexdigest()


def weights_digest(header: Header, report: Callable[[int], None] = lambda count: None) -> str:
    """See :class:`Weights`; reads the whole file."""
    out = Weights()
    with mapped(header) as view:
        for entry in header.ordered():
            sha = hashlib.sha256()
            for start, end, _ in _pieces(entry):
                with view(start, end) as piece:
                    sha.update(piece)
                report(end - start)
            out.add(entry, sha.hexdigest())
    return out.hexdigest()


def _pieces(entry: Entry) -> Iterator[tuple[int, int, int]]:
    if entry.end == entry.start:
        return
    yield from chunks(entry)


def rewrite(
    header: Header,
    target: Path,
    changes: Mapping[str, Change],
    metadata: Callable[[str, str], Mapping[str, str]],
    report: Callable[[int], None] = lambda count: None,
) -> tuple[str, str]:
    """Copy a file while some of its tensors change; all others stay byte for byte what they are.

    At most a few pieces of 32 MB are in memory, whatever the size of the file. `target` is there when it is complete, or not at all.

    Args:
        changes: tensor name -> what is done to pieces of whole rows of it.
        metadata: what the new file's metadata are, given the fingerprints (:class:`Weights`) of the old and the new weights.
            Fingerprints are known at the end, so the length of what it returns must not depend on them.
        report: is told how many bytes have been dealt with since the last call.

    Returns:
        the fingerprints of the old and the new weights.

    Raises:
        ModelFileError: it cannot be written, for lack of space or for another reason.
    """
    blank = header_bytes(header, metadata("0" * 64, "0" * 64))
    before, after = Weights(), Weights()
    _room(target, len(blank) + header.size)

    def write(temporary: Path) -> None:
        with open(temporary, "xb") as file, mapped(header) as view, ThreadPoolExecutor(1) as beside:
            file.write(blank)
            for entry in header.ordered():
                change = changes.get(entry.name)
                old, new = hashlib.sha256(), hashlib.sha256()
                for start, end, row in _pieces(entry):
                    with view(start, end) as piece:
                        # Hashing and writing both leave Python's lock: they run side by side.
                        hashed = beside.submit(old.update, piece)
                        try:
                            if change is None:
                                file.write(piece)
                            else:
                                changed = _bytes(change(tensor(piece, entry), row))
                                file.write(changed)
                                new.update(changed)
                        finally:
                            hashed.result()
                    report(end - start)
                digest = old.hexdigest()
                before.add(entry, digest)
                after.add(entry, digest if change is None else new.hexdigest())
            file.seek(0)
            final = header_bytes(header, metadata(before.hexdigest(), after.hexdigest()))
            assert len(final) == len(blank), "fingerprints must not change the header's length"
            file.write(final)

    try:
        atomic.replace_by(target, write)
    except OSError as error:
        raise ModelFileError(
            f"{target}: the model could not be written ({error.strerror or error}); nothing is left of it. Free some space, or choose another "
            "place."
        ) from error
    return before.hexdigest(), after.hexdigest()


def _bytes(rows: torch.Tensor) -> memoryview:
    return memoryview(rows.contiguous().view(torch.uint8).numpy()).cast("B")


def _room(target: Path, size: int) -> None:
    if not target.parent.is_dir():
        raise ModelFileError(f"{target}: its folder does not exist. Make it, or choose another place.")
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise ModelFileError(
            f"{target}: the result has {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there. Free some space, or choose another place."
        )
