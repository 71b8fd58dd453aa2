"""What a fuzz target is, and the helpers that turn bytes into what it feeds to a decoder.

Rule: `check` is a pure function of its bytes. It raises AssertionError where a property does not hold, and lets pass
whatever else is raised: both are crashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
CRASHES = HERE / "crashes"

Check = Callable[[bytes], None]
Seeds = Callable[[], Mapping[str, bytes]]


class Target(NamedTuple):
    """`covers` are the decoders it feeds, as "module:name"; `words` go into the engine's dictionary."""

    name: str
    check: Check
    seeds: Seeds
    covers: tuple[str, ...]
    words: tuple[bytes, ...]
    longest: int  # bytes of an input

    def files(self) -> Iterator[Path]:
        """Committed inputs: seeds, and what once crashed it."""
        for folder in (CORPUS / self.name, CRASHES / self.name):
            if folder.is_dir():
                yield from sorted(path for path in folder.iterdir() if path.is_file())


TARGETS: dict[str, Target] = {}


def target(
    name: str, *, covers: tuple[str, ...], seeds: Seeds, words: tuple[bytes, ...] = (), longest: int = 4096
) -> Callable[[Check], Check]:
    """Register the decorated check."""

    def register(check: Check) -> Check:
        assert name not in TARGETS, name
        TARGETS[name] = Target(name, check, seeds, covers, words, longest)
        return check

    return register


class Input:
    """Takes an input apart from its front. What is not there reads as zero, or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def byte(self) -> int:
        return self.take(1)[0] if self else 0

    def piece(self) -> bytes:
        """Bytes behind their length, which takes two octets."""
        return self.take(self.byte() << 8 | self.byte())

    def rest(self) -> bytes:
        return self.take(len(self._data))


def pieces(*parts: int | bytes) -> bytes:
    """The other way round: a number is a byte, bytes are a piece behind its length."""
    return b"".join(
        bytes((part,)) if isinstance(part, int) else len(part).to_bytes(2, "big") + part for part in parts
    )
