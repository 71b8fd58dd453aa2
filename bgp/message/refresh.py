"""KEEPALIVE (RFC 4271 section 4.4) and ROUTE-REFRESH (RFC 2918).

Rule: a request for a family that was not negotiated is passed over, as RFC 2918 section 4 says.
"""

from __future__ import annotations

from bgp.message.codes import Family, MessageType
from bgp.message.framing import frame

KEEPALIVE = frame(MessageType.KEEPALIVE, b"")


def encode_route_refresh(family: Family) -> bytes:
    return frame(MessageType.ROUTE_REFRESH, bytes((0, family.afi, 0, family.safi)))


def decode_route_refresh(body: bytes) -> Family | None:
    """The family asked for; None where this library does not know it, or for the subtypes of RFC 7313."""
    if body[2]:
        return None
    try:
        return Family(body[0] << 16 | body[1] << 8 | body[3])
    except ValueError:
        return None
