"""OPEN (RFC 4271 section 4.2); the capabilities in it (RFC 5492) are in capabilities.py.

Rule: what the peer can do and we do not know is kept and shown, and never a reason to refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bgp.message.capabilities import DEFAULT, Capabilities, decode_capabilities, encode_capabilities
from bgp.message.codes import AS_TRANS, BGP_VERSION, ErrorCode, MessageType, OpenError
from bgp.message.errors import LocalError, RemoteError
from bgp.message.framing import frame

_CAPABILITIES = 2  # the one optional parameter in use


@dataclass(frozen=True, slots=True)
class Open:
    """An OPEN. `asn` is the whole AS number, wherever it stood; `identifier` has 4 octets; times in seconds."""

    asn: int
    hold_time: int
    identifier: bytes
    capabilities: Capabilities = DEFAULT

    def encode(self) -> bytes:
        """The whole message. Raises LocalError for values that do not fit their fields."""
        if not 0 < self.asn < 1 << 32 or (self.asn > 65535 and not self.capabilities.as4):
            raise LocalError(f"AS {self.asn} does not fit")
        if not (self.hold_time == 0 or 3 <= self.hold_time <= 65535) or len(self.identifier) != 4:
            raise LocalError(f"hold time {self.hold_time} or identifier {self.identifier.hex()} does not fit")
        capabilities = encode_capabilities(self.capabilities, self.asn)
        if len(capabilities) > 253:
            raise LocalError(f"{len(capabilities)} octets of capabilities do not fit into an OPEN")
        asn = self.asn if self.asn < 65536 else AS_TRANS
        parameters = bytes((_CAPABILITIES, len(capabilities))) + capabilities if capabilities else b""
        return frame(
            MessageType.OPEN,
            bytes((BGP_VERSION,))
            + asn.to_bytes(2, "big")
            + self.hold_time.to_bytes(2, "big")
            + self.identifier
            + bytes((len(parameters),))
            + parameters,
        )


def decode_open(body: bytes) -> Open:
    """The body of an OPEN, checked as far as it can be without knowing the peer. Raises RemoteError."""
    if body[0] != BGP_VERSION:
        supported = BGP_VERSION.to_bytes(2, "big")
        raise _error(OpenError.UNSUPPORTED_VERSION, supported, f"version {body[0]}")
    asn = int.from_bytes(body[1:3], "big")
    hold_time = int.from_bytes(body[3:5], "big")
    identifier = body[5:9]
    if 10 + body[9] != len(body):
        raise _error(OpenError.UNSPECIFIC, reason="the optional parameters do not fill the message")
    fields: list[tuple[int, bytes]] = []
    for kind, value in _items(body[10:], "optional parameter"):
        if kind != _CAPABILITIES:
            raise _error(OpenError.UNSUPPORTED_OPTIONAL_PARAMETER, reason=f"optional parameter {kind}")
        fields += _items(value, "capability")
    capabilities, as4 = decode_capabilities(fields)
    if as4 is not None:
        asn = as4
    if asn == 0:
        raise _error(OpenError.BAD_PEER_AS, reason="AS 0")  # RFC 7607
    if hold_time in (1, 2):
        raise _error(OpenError.UNACCEPTABLE_HOLD_TIME, reason=f"hold time {hold_time}")
    if identifier == bytes(4):
        raise _error(OpenError.BAD_BGP_IDENTIFIER, reason="identifier 0.0.0.0")  # RFC 6286
    return Open(asn, hold_time, identifier, capabilities)


def _items(field: bytes, name: str) -> list[tuple[int, bytes]]:
    """(type, value) of items with one octet of type and one of length."""
    items = []
    position = 0
    while position < len(field):
        start = position + 2
        following = start + field[position + 1] if start <= len(field) else len(field) + 1
        if following > len(field):
            raise _error(OpenError.UNSPECIFIC, reason=f"{name} at octet {position} runs over the end")
        items.append((field[position], field[start:following]))
        position = following
    return items


def _error(subcode: OpenError, data: bytes = b"", reason: str = "") -> RemoteError:
    return RemoteError(ErrorCode.OPEN_MESSAGE, subcode, data, reason)
