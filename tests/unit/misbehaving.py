"""Readers for tests/unit/test_attack.py, each with a fault that must be counted."""

import os
from pathlib import Path

from bench.feed import Reader


class Ours(Exception):
    """What readers may raise."""


def refuses(given, folder):
    raise Ours


def fails(given, folder):
    raise KeyError("a fault")


def eats(given, folder):
    return len(bytearray(b"x" * (400 << 20)))


def dies(given, folder):
    os._exit(3)


def group(folder: Path, outside: Path):
    """One input each."""

    def leaves(given, own):
        (outside.parent.parent / "left").write_text("")

    readers = (refuses, fails, eats, dies, leaves)
    return [Reader(read.__name__, 1, lambda rng: b"", read) for read in readers], Ours
