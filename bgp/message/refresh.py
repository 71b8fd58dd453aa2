"""KEEPALIVE (RFC 4271 section 4.4) and ROUTE-REFRESH (RFC 2918), which with RFC 7313 says more than "send it all".

Rule: what asks for a family that this library does not know, or says what it does not know, is passed over, as RFC
2918 section 4 and RFC 7313 section 5 say.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from bgp.message.codes import (
    EXTENDED_MESSAGE_SIZE,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    ErrorCode,
    Family,
    HeaderError,
    MessageType,
    RefreshError,
)
from bgp.message.errors import RemoteError
from bgp.message.framing import frame

KEEPALIVE = frame(MessageType.KEEPALIVE, b"")


class RefreshKind(IntEnum):
    """RFC 7313 section 3.2."""

    REQUEST = 0
    BEGINS = 1
    """BoRR: all routes of the family follow."""
    ENDS = 2
    """EoRR: they have been sent."""


class Refresh(NamedTuple):
    family: Family
    kind: RefreshKind = RefreshKind.REQUEST


def encode_route_refresh(family: Family, kind: RefreshKind = RefreshKind.REQUEST) -> bytes:
    return frame(MessageType.ROUTE_REFRESH, bytes((0, family.afi, kind, family.safi)))


def decode_route_refresh(body: bytes, *, enhanced: bool = False) -> Refresh | None:
    """What the peer says; None where this library does not know the family, or the subtype.

    `enhanced`: the peer has the capability of RFC 7313, whose error for a wrong length there is. Raises RemoteError.
    """
    if len(body) != 4:
        whole = frame(MessageType.ROUTE_REFRESH, body, EXTENDED_MESSAGE_SIZE)
        if enhanced and body[2:3] in (b"\1", b"\2"):
            raise RemoteError(
                ErrorCode.ROUTE_REFRESH_MESSAGE,
                RefreshError.INVALID_MESSAGE_LENGTH,
                whole[: MAX_MESSAGE_SIZE - HEADER_SIZE - 2],
                f"ROUTE-REFRESH of {len(whole)} octets",
            )
        raise RemoteError(
            ErrorCode.MESSAGE_HEADER,
            HeaderError.BAD_MESSAGE_LENGTH,
            len(whole).to_bytes(2, "big"),
            f"message length {len(whole)}",
        )
    try:
        return Refresh(Family(body[0] << 16 | body[1] << 8 | body[3]), RefreshKind(body[2]))
    except ValueError:
        return None
