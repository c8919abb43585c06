"""Lossless coding of on/off gates, close to their entropy (docs/mask_format.md has the format).

Interleaved rANS: `lanes` coders advance together, so that numpy codes millions of gates in a second. Each lane's state
stays in [2**32, 2**48) and is refilled by 16-bit words; probabilities have 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PACKED, RATE_PER_KIND, RATE_PER_SITE = 0, 1, 2
GATES_PER_LANE = 32768
_LOW = 1 << 32
_STATE_BYTES = 6


class CodeError(ValueError):
    """Bytes that no encoder wrote. The message is a clause, such as "the gates end too early"."""


def encode(bits: np.ndarray, units: Sequence[int], kinds: Sequence[str]) -> bytes:
    """Gates as bytes, in the smallest of the three codings (the first of equals).

    Args:
        bits: bool (sum(units),), True = on, all sites in order.
        units: gates of each site, at least one site and one gate each.
        kinds: kind of each site.
    """
    codings = [bytes([PACKED]) + np.packbits(bits, bitorder="little").tobytes()]
    for coding in (RATE_PER_KIND, RATE_PER_SITE):
        groups = _groups(coding, kinds)
        rates = _measure(bits, units, groups)
        codings.append(bytes([coding]) + rates.astype("<u2").tobytes() + _encode_lanes(bits, np.repeat(rates[groups], units)))
    return min(codings, key=len)


def decode(data: bytes, units: Sequence[int], kinds: Sequence[str]) -> np.ndarray:
    """Inverse of :func:`encode`: bool (sum(units),).

    Raises:
        CodeError: `data` is not exactly what so many gates are coded as.
    """
    count = sum(units)
    if not data:
        raise CodeError("the gates are missing")
    coding, body = data[0], data[1:]
    if coding == PACKED:
        if len(body) != (count + 7) // 8:
            raise CodeError(f"{count} packed gates take {(count + 7) // 8} bytes, not {len(body)}")
        bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")
        if bits[count:].any():
            raise CodeError("the bits after the last packed gate are not 0")
        return bits[:count].astype(bool)
    if coding not in (RATE_PER_KIND, RATE_PER_SITE):
        raise CodeError(f"the gates' coding is {coding}, not 0 to 3")
    groups = _groups(coding, kinds)
    size = 2 * (int(groups.max()) + 1)
    # Before anything of the size that is claimed is allocated.
    if len(body) < size + _STATE_BYTES * _lanes(count):
        raise CodeError("the gates end too early")
    rates = np.frombuffer(body[:size], "<u2")
    if not rates.all():
        raise CodeError("a rate is 0, not 1 to 65535")
    return _decode_lanes(body[size:], np.repeat(rates[groups], units))


def _groups(coding: int, kinds: Sequence[str]) -> np.ndarray:
    """Which rate each site uses; kinds are numbered in the order in which they first appear."""
    order = list(dict.fromkeys(kinds))
    return np.array([order.index(kind) for kind in kinds]) if coding == RATE_PER_KIND else np.arange(len(kinds))


def _measure(bits: np.ndarray, units: Sequence[int], groups: np.ndarray) -> np.ndarray:
    """How often gates are off in each group, in 1/65536, never 0 or 65536."""
    starts = np.concatenate([[0], np.cumsum(units)[:-1]]).astype(np.int64)
    off = np.zeros(groups.max() + 1, np.int64)
    size = np.zeros_like(off)
    np.add.at(off, groups, np.add.reduceat((~bits).astype(np.int64), starts))
    np.add.at(size, groups, np.asarray(units, np.int64))
    return np.clip((off * 65536 + size // 2) // size, 1, 65535)


def _lanes(count: int) -> int:
    return (count + GATES_PER_LANE - 1) // GATES_PER_LANE


def _encode_lanes(bits: np.ndarray, rates: np.ndarray) -> bytes:
    count, lanes = len(bits), _lanes(len(bits))
    rates = rates.astype(np.uint64)
    freqs = np.where(bits, 65536 - rates, rates)
    bases = np.where(bits, rates, 0).astype(np.uint64)
    state = np.full(lanes, _LOW, np.uint64)
    pieces = []
    # An ANS decoder retraces the encoder backwards, so the last gate is coded first.
    for start in range((count - 1) // lanes * lanes, -1, -lanes):
        freq, base = freqs[start : start + lanes], bases[start : start + lanes]
        x = state[: len(freq)]
        full = x >> 32 >= freq
        if full.any():
            pieces.append(x[full].astype("<u2")[::-1])
            x = np.where(full, x >> 16, x)
        quotient, rest = np.divmod(x, freq)
        state[: len(freq)] = (quotient << 16) + rest + base
    words = np.concatenate(pieces)[::-1].tobytes() if pieces else b""
    return state.astype("<u8").view(np.uint8).reshape(lanes, 8)[:, :_STATE_BYTES].tobytes() + words


def _decode_lanes(data: bytes, rates: np.ndarray) -> np.ndarray:
    count, lanes = len(rates), _lanes(len(rates))
    head = _STATE_BYTES * lanes
    if (len(data) - head) % 2:
        raise CodeError("the gates end too early")
    raw = np.zeros((lanes, 8), np.uint8)
    raw[:, :_STATE_BYTES] = np.frombuffer(data, np.uint8, head).reshape(lanes, _STATE_BYTES)
    state = raw.view("<u8").reshape(lanes).astype(np.uint64)
    if (state < _LOW).any():
        raise CodeError("a coder's first state is below 2**32")
    words = np.frombuffer(data, "<u2", offset=head).astype(np.uint64)
    rates = rates.astype(np.uint64)
    bits = np.empty(count, bool)
    used = 0
    for start in range(0, count, lanes):
        rate = rates[start : start + lanes]
        x = state[: len(rate)]
        slot = x & 0xFFFF
        on = slot >= rate
        bits[start : start + lanes] = on
        x = np.where(on, (65536 - rate) * (x >> 16) + slot - rate, rate * (x >> 16) + slot)
        empty = x < _LOW
        need = int(np.count_nonzero(empty))
        if need:
            if used + need > len(words):
                raise CodeError("the gates end too early")
            x[empty] = x[empty] << 16 | words[used : used + need]
            used += need
        state[: len(rate)] = x
    if used != len(words):
        raise CodeError(f"{2 * (len(words) - used)} bytes follow the last gate")
    if (state != _LOW).any():
        raise CodeError("the gates do not end where they must")
    return bits
