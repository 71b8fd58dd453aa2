"""AS paths (RFC 4271 sections 4.3 and 5.1.2), with AS numbers of two and of four octets (RFC 6793).

Rule: a path is a tuple of segments (type, AS numbers) whose numbers are always whole; AS_TRANS exists only on the
wire of a session that has two octets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bgp.message.codes import AS_TRANS

AS_SET = 1
AS_SEQUENCE = 2
_CONFEDERATION_SET = 4
_LONGEST_SEGMENT = 255

Segment = tuple[int, tuple[int, ...]]


class MalformedPath(ValueError):
    """A path that cannot be read: an unknown segment type, an empty or cut segment, AS 0."""


class AsPath(tuple[Segment, ...]):
    """A path. The leftmost AS number is the neighbour's, the rightmost the originator's."""

    __slots__ = ()

    @classmethod
    def sequence(cls, *numbers: int) -> AsPath:
        """The path of one AS_SEQUENCE; none at all without numbers."""
        return cls(((AS_SEQUENCE, numbers),)) if numbers else cls()

    @property
    def length(self) -> int:
        """As the decision process counts it: an AS_SET counts as one."""
        return sum(1 if kind == AS_SET else len(numbers) for kind, numbers in self)

    @property
    def first(self) -> int:
        """The neighbouring AS that the route came from; 0 when there is none, or when the path begins with a set."""
        return self[0][1][0] if self and self[0][0] == AS_SEQUENCE else 0

    def numbers(self) -> Iterator[int]:
        """Every AS number, from the left."""
        for _, numbers in self:
            yield from numbers

    def prepend(self, number: int, times: int = 1) -> AsPath:
        """The path with `number` put before it, as a speaker does towards another AS."""
        added = (number,) * times
        if self and self[0][0] == AS_SEQUENCE and len(self[0][1]) + times <= _LONGEST_SEGMENT:
            return AsPath(((AS_SEQUENCE, added + self[0][1]), *self[1:]))
        return AsPath(((AS_SEQUENCE, added), *self))

    def __str__(self) -> str:
        parts = (
            "{" + ",".join(map(str, numbers)) + "}" if kind == AS_SET else " ".join(map(str, numbers))
            for kind, numbers in self
        )
        return " ".join(parts)


EMPTY_PATH = AsPath()


def decode_path(value: bytes, width: int, *, confederation: bool = False) -> AsPath:
    """The value of AS_PATH or AS4_PATH; `width` is 2 or 4 octets. Raises MalformedPath.

    `confederation`: its segments (RFC 5065, types 3 and 4) may be there.
    """
    if not value:
        return EMPTY_PATH
    segments = []
    position, end = 0, len(value)
    while position < end:
        if end - position < 2:
            raise MalformedPath("one octet is left over")
        kind, count = value[position], value[position + 1]
        position += 2
        following = position + count * width
        if not AS_SET <= kind <= (_CONFEDERATION_SET if confederation else AS_SEQUENCE):
            raise MalformedPath(f"segment type {kind}")
        if not count or following > end:
            raise MalformedPath(f"segment of {count} AS numbers in {end - position} octets")
        numbers = struct.unpack_from(f">{count}{'I' if width == 4 else 'H'}", value, position)
        if 0 in numbers:
            raise MalformedPath("AS 0")  # RFC 7607
        segments.append((kind, numbers))
        position = following
    return AsPath(segments)


def encode_path(path: AsPath, width: int) -> bytes:
    """The value of AS_PATH (or of AS4_PATH with width 4); what does not fit two octets becomes AS_TRANS."""
    parts = []
    for kind, numbers in path:
        for start in range(0, len(numbers), _LONGEST_SEGMENT):
            piece = numbers[start : start + _LONGEST_SEGMENT]
            if width == 2:
                piece = tuple(number if number < 65536 else AS_TRANS for number in piece)
            parts.append(struct.pack(f">BB{len(piece)}{'I' if width == 4 else 'H'}", kind, len(piece), *piece))
    return b"".join(parts)


def merge(path: AsPath, path4: AsPath) -> AsPath:
    """The whole path from AS_PATH of a two-octet session and the AS4_PATH beside it (RFC 6793 section 4.2.3).

    AS4_PATH has the tail; what speakers of two octets have put before it is in AS_PATH alone.
    """
    lead = path.length - path4.length
    if lead < 0 or not path4:
        return path
    segments: list[Segment] = []
    for kind, numbers in path:
        if lead <= 0:
            break
        if kind == AS_SET:
            segments.append((kind, numbers))
            lead -= 1
        else:
            segments.append((kind, numbers[:lead]))
            lead -= len(numbers)
    first = path4[0]
    if segments and segments[-1][0] == first[0] == AS_SEQUENCE:
        joined = segments[-1][1] + first[1]
        if len(joined) <= _LONGEST_SEGMENT:
            return AsPath((*segments[:-1], (AS_SEQUENCE, joined), *path4[1:]))
    return AsPath((*segments, *path4))
