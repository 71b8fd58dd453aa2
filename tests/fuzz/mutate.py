"""Deterministic mutations of an input, for `make test`: no coverage guides them, so they only keep targets alive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

_EDGES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def mutations(corpus: Sequence[bytes], words: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` inputs made of those of the corpus, the same ones each time."""
    random = Random(seed)
    for _ in range(count):
        data = bytearray(random.choice(corpus))
        for _ in range(random.choice((1, 1, 2, 4))):
            _mutate(data, corpus, words, random)
        yield bytes(data)


def _mutate(data: bytearray, corpus: Sequence[bytes], words: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(data) + 1)
    match random.randrange(8 if words else 7):
        case 0 if data:
            data[at - 1] ^= 1 << random.randrange(8)
        case 1 if data:
            data[at - 1] = random.choice(_EDGES)
        case 2 if data:
            data[at - 1] = random.randrange(256)
        case 3:
            del data[at : at + random.randrange(1, 9)]
        case 4:
            data[at:at] = random.randbytes(random.randrange(1, 9))
        case 5:
            data[at:at] = data[at : at + random.randrange(1, 65)]
        case 6:
            other = random.choice(corpus)
            start = random.randrange(len(other) + 1)
            data[at:] = other[start:]
        case 7:
            data[at:at] = random.choice(words)
        case _:
            data.append(random.randrange(256))
