"""What all netlink messages share: header, attributes, error and acknowledgement (linux/netlink.h).

Rule: the walkers never leave the buffer that they were given: a length that points outside it ends the walk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
ATTR = struct.Struct("=HH")  # length, type
ATTR_U32 = struct.Struct("=HHI")
U32 = struct.Struct("=I")
U16 = struct.Struct("=H")
I32 = struct.Struct("=i")

SEQ_OFFSET = 8
PORT_OFFSET = 12

ERROR, DONE, OVERRUN = 2, 3, 4

REQUEST, MULTI, ACK, DUMP_INTR = 0x1, 0x2, 0x4, 0x10
DUMP = 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
CAPPED, ACK_TLVS = 0x100, 0x200  # flags of an error message

_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_NESTED = 0x8000

_EXT_MESSAGE = 1  # NLMSGERR_ATTR_MSG
_ERROR_FIXED = 4 + HEADER.size

AF_UNSPEC, AF_INET, AF_BRIDGE, AF_INET6 = 0, 2, 7, 10


class Message(NamedTuple):
    """One message of a buffer; its payload is buffer[start:end]."""

    type: int
    flags: int
    seq: int
    port: int
    start: int
    end: int


class Refusal(NamedTuple):
    """What the kernel said to a request: a positive errno (0: done) and its words, "" where it gave none."""

    errno: int
    text: str


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """A whole request, sequence number and port id left 0."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags | REQUEST, 0, 0) + payload


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return ATTR.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attribute_u8(kind: int, value: int) -> bytes:
    return ATTR.pack(5, kind) + bytes((value, 0, 0, 0))


def attribute_u32(kind: int, value: int) -> bytes:
    return ATTR_U32.pack(8, kind, value)


def attribute_text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    offset, size = 0, len(data)
    while offset + HEADER.size <= size:
        length, kind, flags, seq, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > size:
            return
        yield Message(kind, flags, seq, port, offset + HEADER.size, offset + length)
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    """Attributes between two offsets by type; of a type that comes twice the last."""
    found: dict[int, bytes] = {}
    unpack = ATTR.unpack_from
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def text(value: bytes) -> str:
    """A string attribute, without its terminating zero."""
    return value.partition(b"\0")[0].decode(errors="replace")


def refusal(data: bytes, found: Message) -> Refusal:
    """The content of an ERROR message (or of DONE, which may carry an error of a dump)."""
    start, end = found.start, found.end
    if end - start < 4:
        return Refusal(0, "")
    code = -int(I32.unpack_from(data, start)[0])
    if found.type == DONE:
        offset = start + 4
    elif end - start < _ERROR_FIXED:
        return Refusal(max(code, 0), "")
    elif found.flags & CAPPED:
        offset = start + _ERROR_FIXED
    else:
        request = int(U32.unpack_from(data, start + 4)[0])
        offset = start + 4 + ((request + 3) & ~3)
    words = ""
    if found.flags & ACK_TLVS:
        words = text(attributes(data, offset, end).get(_EXT_MESSAGE, b""))
    return Refusal(max(code, 0), words)
