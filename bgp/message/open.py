"""OPEN (RFC 4271 section 4.2, RFC 9072); the capabilities in it (RFC 5492) are in capabilities.py.

Rule: what the peer can do and we do not know is kept and shown, and never a reason to refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bgp.message.capabilities import DEFAULT, Capabilities, decode_capabilities, encode_capabilities
from bgp.message.codes import AS_TRANS, BGP_VERSION, ErrorCode, MessageType, OpenError
from bgp.message.errors import LocalError, RemoteError
from bgp.message.framing import frame

_CAPABILITIES = 2  # the one optional parameter in use
_EXTENDED = 255
"""In place of the first parameter's type: lengths have two octets (RFC 9072)."""


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
        asn = self.asn if self.asn < 65536 else AS_TRANS
        return frame(
            MessageType.OPEN,
            bytes((BGP_VERSION,))
            + asn.to_bytes(2, "big")
            + self.hold_time.to_bytes(2, "big")
            + self.identifier
            + _encode_parameters(capabilities),
        )


def _encode_parameters(capabilities: bytes) -> bytes:
    """The optional parameters and their length; in the form of RFC 9072 only if that has to be."""
    if not capabilities:
        return b"\0"
    size = len(capabilities)
    if size + 2 <= 255:
        return bytes((size + 2, _CAPABILITIES, size)) + capabilities
    head = bytes((_EXTENDED, _EXTENDED)) + (size + 3).to_bytes(2, "big")
    return head + bytes((_CAPABILITIES,)) + size.to_bytes(2, "big") + capabilities


def decode_open(body: bytes) -> Open:
    """The body of an OPEN, checked as far as it can be without knowing the peer. Raises RemoteError."""
    if body[0] != BGP_VERSION:
        supported = BGP_VERSION.to_bytes(2, "big")
        raise _error(OpenError.UNSUPPORTED_VERSION, supported, f"version {body[0]}")
    asn = int.from_bytes(body[1:3], "big")
    hold_time = int.from_bytes(body[3:5], "big")
    identifier = body[5:9]
    fields: list[tuple[int, bytes]] = []
    for kind, value in _parameters(body):
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


def _parameters(body: bytes) -> list[tuple[int, bytes]]:
    """Type and value of each. The first one's type 255 tells RFC 9072; the old length is nothing then, but not 0."""
    size, start, extended = body[9], 10, False
    if size and body[10:11] == bytes((_EXTENDED,)):
        size, start, extended = int.from_bytes(body[11:13], "big"), 13, True
    if start + size != len(body):
        raise _error(OpenError.UNSPECIFIC, reason="the optional parameters do not fill the message")
    return _items(body[start:], "optional parameter", 2 if extended else 1)


def _items(field: bytes, name: str, octets: int = 1) -> list[tuple[int, bytes]]:
    """(type, value) of items with one octet of type and so many of length."""
    items = []
    position = 0
    while position < len(field):
        start = position + 1 + octets
        size = int.from_bytes(field[position + 1 : start], "big")
        following = start + size if start <= len(field) else len(field) + 1
        if following > len(field):
            raise _error(OpenError.UNSPECIFIC, reason=f"{name} at octet {position} runs over the end")
        items.append((field[position], field[start:following]))
        position = following
    return items


def _error(subcode: OpenError, data: bytes = b"", reason: str = "") -> RemoteError:
    return RemoteError(ErrorCode.OPEN_MESSAGE, subcode, data, reason)
