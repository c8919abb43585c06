"""safetensors files of any size, tensor by tensor: where each lies, and copying a file while some tensors change.

The library reads single tensors but writes only what is whole in memory; this writes what never is. It checks every header first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import mmap
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .. import atomic, untrusted
from ..errors import ModelFileError
from . import oddheader

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
# What the system says when it cannot copy between two files by itself.
_BY_HAND = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
# Pieces that are computed before they are needed.
AHEAD = 3

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
        odd: names of metadata that are no text in the file, against its format; ``metadata`` has them as JSON.
    """

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]
    begin: int
    odd: tuple[str, ...] = ()

    def cautions(self) -> tuple[str, ...]:
        """What to tell about the header."""
        if not self.odd:
            return ()
        some = ", ".join(f"{name!r} ({self.metadata.get(name, '')[:40]})" for name in self.odd[:3])
        return (
            f"Careful: {self.path.name}: metadata values are no text: {some}. Most programs refuse that; here it becomes text.",
        )

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
        # Before the library makes thousands of objects of it.
        length = untrusted.header_length(path)
        with open(path, "rb") as file:
            file.seek(8)
            found = untrusted.parse_json(file.read(length), untrusted.HEADER)
        if not isinstance(found, dict):
            raise ValueError("its header is no JSON object")
        untrusted.at_most(len(found), untrusted.TENSORS, "tensors")
        for name in found:
            if fault := untrusted.fault_of_text(name, untrusted.TENSOR_NAME):
                raise ValueError(f"as the name of a tensor, expected {fault}")
        metadata, odd = oddheader.texts(found.pop("__metadata__", None))
        if odd:  # the library would refuse it for these alone
            oddheader.check(found, os.stat(path).st_size - 8 - length)
        else:
            # The library checks lengths, dtypes, overlaps and holes.
            with safe_open(path, framework="pt"):
                pass
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: there is no such file. Give the path of a .safetensors model.") from error
    except (SafetensorError, ValueError) as error:
        raise ModelFileError(
            f"{path}: {oddheader.other_format(path) or f'expected a complete .safetensors file ({error}). Download or copy it again.'}"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{path}: the file cannot be read ({error.strerror or error}).") from error
    begin = 8 + length
    entries = {}
    for name, entry in found.items():
        first, last = entry["data_offsets"]
        entries[name] = Entry(name, entry["dtype"], tuple(entry["shape"]), begin + first, begin + last)
    return Header(path, entries, metadata, begin, odd)


def header_bytes(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file with the same tensors in the same places, and other metadata; as long for values of one length.

    Raises:
        ModelFileError: they would be more than :func:`read_header` reads.
    """
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, e in header.entries.items():
        content[name] = {
            "dtype": e.dtype,
            "shape": list(e.shape),
            "data_offsets": [e.start - header.begin, e.end - header.begin],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > untrusted.HEADER:
        raise ModelFileError(
            f"{header.path}: with what is noted in it, the new file's header would take {len(text):,} bytes, and {untrusted.HEADER:,} is the "
            "most that is read. Apply fewer soft masks to one file, or make them hard first."
        )
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
    """``(start, end, first row)`` of pieces of a tensor, which hold each of its bytes once; none of an empty one.

    Pieces are of whole rows for the dtypes that can be computed with. In the others a row need not be whole bytes: all are row 0.
    """
    if entry.end == entry.start:
        return
    if entry.dtype not in DTYPES:
        for start in range(entry.start, entry.end, CHUNK):
            yield start, min(start + CHUNK, entry.end), 0
        return
    rows = entry.shape[0] if entry.shape else 1
    length = (entry.end - entry.start) // rows
    step = max(1, CHUNK // length)
    for row in range(0, rows, step):
        yield entry.start + row * length, entry.start + min(row + step, rows) * length, row


def dtype(entry: Entry) -> torch.dtype:
    """What a tensor's numbers are; a ModelFileError if none that can be computed with."""
    if entry.dtype not in DTYPES:
        raise ModelFileError(
            f"{entry.name:.200}: expected numbers of one of {', '.join(DTYPES)}; found {entry.dtype}. Use the fp16, bf16 or fp8 version of this model."
        )
    return DTYPES[entry.dtype]


def tensor(view: memoryview | bytearray, entry: Entry) -> torch.Tensor:
    """Whole rows of a tensor from their bytes: (rows, ...)."""
    flat = torch.frombuffer(view if isinstance(view, bytearray) else bytearray(view), dtype=dtype(entry))
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
            return torch.frombuffer(bytearray(file.read(size)), dtype=dtype(entry))[0].float() * self.scale


def digest(header: Header, names: Collection[str], report: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 over some tensors: of each its name, dtype, shape and bytes, in the order of the file.

    Raises:
        ModelFileError: the file cannot be read.
    """
    sha = hashlib.sha256()
    try:
        with open(header.path, "rb", buffering=0) as file:
            for entry in header.ordered():
                if entry.name in names:
                    sha.update(_line(entry))
                    for start, end, _ in chunks(entry):
                        sha.update(_read(file, start, end))
                        report(end - start)
    except OSError as error:
        raise ModelFileError(f"{header.path}: the file cannot be read ({error.strerror or error}).") from error
    return sha.hexdigest()


def _line(entry: Entry) -> bytes:
    return f"{entry.name} {entry.dtype} {list(entry.shape)}\n".encode()


def _read(file: FileIO, start: int, end: int) -> bytearray:
    data = bytearray(end - start)
    view, at = memoryview(data), 0
    file.seek(start)
    while at < len(data):
        count = file.readinto(view[at:])
        if not count:
            raise OSError(errno.EIO, "the model's file became shorter while it was read")
        at += count
    return data


def _write(file: FileIO, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _copy(source: FileIO, target: FileIO, start: int, end: int, report: Callable[[int], None]) -> None:
    """Bytes from one file to the end of another, by the system alone where it can."""
    at = start
    while at < end:
        count = min(CHUNK, end - at)
        try:
            count = os.copy_file_range(source.fileno(), target.fileno(), count, at)
            if not count:
                raise OSError(errno.EIO, "the model's file became shorter while it was read")
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _BY_HAND:
                raise
            _write(target, _read(source, at, at + count))
        at += count
        report(count)


def rewrite(
    header: Header,
    target: Path,
    changes: Mapping[str, Change],
    metadata: Callable[[str, str], Mapping[str, str]],
    report: Callable[[int], None] = lambda count: None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    overwrite: bool = False,
) -> tuple[str, str]:
    """Copy a file while some of its tensors change; all others stay byte for byte what they are.

    At most a few pieces of 32 MB are in memory, whatever the size of the file. `target` is there when it is complete, or not at all.

    Args:
        changes: tensor name -> what is done to pieces of whole rows of it.
        metadata: what the new file's metadata are, given the :func:`digest` of the changed tensors before and after. Digests are
            known at the end, so the length of what it returns must not depend on them.
        report: is told how many bytes have been dealt with since the last call.
        shapes: new shapes of changed tensors that do not keep theirs.
        overwrite: `target` may exist (:func:`uniforget.outputs.check` was asked).

    Returns:
        the two digests.

    Raises:
        ModelFileError: it cannot be written, for lack of space or for another reason; or what changes is no number.
    """
    for name in changes:
        dtype(header.entries[name])
    new = _reshaped(header, shapes or {})
    blank = header_bytes(new, metadata("0" * 64, "0" * 64))
    _room(target, len(blank) + new.size)
    before, after = hashlib.sha256(), hashlib.sha256()

    def write(temporary: Path) -> None:
        with (
            open(temporary, "wb", buffering=0) as file,
            open(header.path, "rb", buffering=0) as source,
            open(header.path, "rb", buffering=0) as aside,
            ThreadPoolExecutor(1) as beside,
        ):

            def changed(entry: Entry, start: int, end: int, row: int) -> memoryview:
                old = _read(aside, start, end)
                made = _bytes(changes[entry.name](tensor(old, entry), row))
                for sha, data, of in ((before, old, entry), (after, made, new.entries[entry.name])):
                    if not row:
                        sha.update(_line(of))
                    sha.update(data)
                return made

            # What is computed is computed beside the copying, and a little ahead of it.
            todo = ((e, *piece) for e in header.ordered() if e.name in changes for piece in chunks(e))
            ahead = deque(beside.submit(changed, *one) for one in itertools.islice(todo, AHEAD))
            _write(file, blank)
            for entry in header.ordered():
                if entry.name not in changes:
                    _copy(source, file, entry.start, entry.end, report)
                    continue
                for start, end, _ in chunks(entry):
                    _write(file, ahead.popleft().result())
                    ahead.extend(beside.submit(changed, *one) for one in itertools.islice(todo, 1))
                    report(end - start)
            final = header_bytes(new, metadata(before.hexdigest(), after.hexdigest()))
            assert len(final) == len(blank), "digests must not change the header's length"
            file.seek(0)
            _write(file, final)

    try:
        atomic.replace_by(target, write, overwrite)
    except OSError as error:
        raise ModelFileError(
            f"{target}: the model could not be written ({error.strerror or error}); nothing is left of it. Free some space, or choose another "
            "place."
        ) from error
    return before.hexdigest(), after.hexdigest()


def _reshaped(header: Header, shapes: Mapping[str, tuple[int, ...]]) -> Header:
    """The header of a file with the same tensors in the same order, some of them of other shapes."""
    entries, at = {}, header.begin
    for e in header.ordered():
        size = (
            (e.end - e.start) // max(1, math.prod(e.shape)) * math.prod(shapes[e.name]) if e.name in shapes else e.end - e.start
        )
        entries[e.name] = Entry(e.name, e.dtype, shapes.get(e.name, e.shape), at, at + size)
        at += size
    return Header(header.path, {name: entries[name] for name in header.entries}, header.metadata, header.begin)


def _bytes(rows: torch.Tensor) -> memoryview:
    return rows.contiguous().view(torch.uint8).numpy().data.cast("B") if rows.numel() else memoryview(b"")


def _room(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise ModelFileError(
            f"{target}: the result has {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there. Free some space, or choose another place."
        )
