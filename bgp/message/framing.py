"""The header of every message, and a stream cut into messages (RFC 4271 sections 4.1 and 6.1, RFC 8654).

Rule: no more than one incomplete message is ever kept, whatever the peer sends.
"""

from __future__ import annotations

from collections.abc import Iterator

from bgp.message.codes import (
    EXTENDED_MESSAGE_SIZE,
    HEADER_SIZE,
    MARKER,
    MAX_MESSAGE_SIZE,
    ErrorCode,
    HeaderError,
)
from bgp.message.errors import LocalError, RemoteError

# Shortest and longest length of each type, header included; the index is the type.
# A ROUTE-REFRESH has an error of its own for a wrong length (RFC 7313): refresh.py looks at it.
_SHORTEST = (0, 29, 23, 21, 19, 19)
_LONGEST = (0, MAX_MESSAGE_SIZE, EXTENDED_MESSAGE_SIZE, EXTENDED_MESSAGE_SIZE, 19, EXTENDED_MESSAGE_SIZE)


def frame(kind: int, body: bytes, most: int = MAX_MESSAGE_SIZE) -> bytes:
    """A whole message. Raises LocalError when it is longer than `most` octets."""
    size = HEADER_SIZE + len(body)
    if size > most:
        raise LocalError(f"a message of {size} octets is longer than {most}")
    return MARKER + bytes((size >> 8, size & 0xFF, kind)) + body


def cut(data: bytes, most: int | None = None) -> list[tuple[int, bytes]]:
    """Our own messages, joined, as (type, body); at most so many, and no half one."""
    found: list[tuple[int, bytes]] = []
    position = 0
    while position + HEADER_SIZE <= len(data) and len(found) != most:
        size = data[position + 16] << 8 | data[position + 17]
        if position + size > len(data):
            break
        found.append((data[position + 18], data[position + HEADER_SIZE : position + size]))
        position += size
    return found


class Framer:
    """Cuts a stream of octets into messages.

    `most` is the longest that we have said we take: 4096 octets, or 65535 with the capability of RFC 8654.
    """

    def __init__(self) -> None:
        self.most = MAX_MESSAGE_SIZE
        self._rest = b""

    def receive(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Each whole message as (type, body), in order; what is left over waits for more.

        Raises RemoteError at the first bad header; the messages before it have been given by then. After that
        the stream is lost: there is no way to find the next message.
        """
        data = self._rest + data if self._rest else data
        self._rest = b""
        position, end = 0, len(data)
        while end - position >= HEADER_SIZE:
            body = position + HEADER_SIZE
            size = data[position + 16] << 8 | data[position + 17]
            kind = data[position + 18]
            if data[position : position + 16] != MARKER:
                raise RemoteError(
                    ErrorCode.MESSAGE_HEADER, HeaderError.CONNECTION_NOT_SYNCHRONIZED, reason="marker is not all ones"
                )
            if not HEADER_SIZE <= size <= self.most:
                raise _bad_length(size)
            if not 0 < kind < len(_SHORTEST):
                raise RemoteError(
                    ErrorCode.MESSAGE_HEADER, HeaderError.BAD_MESSAGE_TYPE, bytes((kind,)), f"message type {kind}"
                )
            if not _SHORTEST[kind] <= size <= _LONGEST[kind]:
                raise _bad_length(size)
            if end - position < size:
                break
            position += size
            yield kind, data[body:position]
        self._rest = data[position:]


def _bad_length(size: int) -> RemoteError:
    return RemoteError(
        ErrorCode.MESSAGE_HEADER, HeaderError.BAD_MESSAGE_LENGTH, size.to_bytes(2, "big"), f"message length {size}"
    )
