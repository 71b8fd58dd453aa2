"""OPEN (RFC 4271 section 4.2) and the capabilities in it (RFC 5492).

Rule: what the peer can do and we do not know is kept and shown, and never a reason to refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bgp.message.codes import AS_TRANS, BGP_VERSION, ErrorCode, Family, MessageType, OpenError
from bgp.message.errors import LocalError, RemoteError
from bgp.message.framing import frame

_CAPABILITIES = 2  # the one optional parameter in use
_MULTIPROTOCOL = 1
_ROUTE_REFRESH = 2
_GRACEFUL_RESTART = 64
_AS4 = 65

_FAMILIES = {family.value: family for family in Family}


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """RFC 4724 section 3."""

    restart_time: int
    """Seconds, 0 to 4095, until the session should be back."""
    restarting: bool = False
    """The sender has just restarted: do not wait for its End-of-RIB."""
    preserved: tuple[tuple[Family, bool], ...] = ()
    """Families that it is for, and whether forwarding went on while the sender was away."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one side can do."""

    families: tuple[Family, ...] = (Family.IPV4,)
    as4: bool = True
    """AS numbers of four octets (RFC 6793); the number itself is Open.asn."""
    route_refresh: bool = True
    graceful_restart: GracefulRestart | None = None
    others: tuple[tuple[int, bytes], ...] = ()
    """Code and value of what this library does not know."""

    def describe(self) -> dict[str, object]:
        """In text and numbers: for views, logs and JSON."""
        shown: dict[str, object] = {
            "families": [family.name.lower() for family in self.families],
            "as4": self.as4,
            "route_refresh": self.route_refresh,
        }
        if restart := self.graceful_restart:
            shown["graceful_restart"] = {
                "time": restart.restart_time,
                "restarting": restart.restarting,
                "families": {family.name.lower(): kept for family, kept in restart.preserved},
            }
        if self.others:
            shown["others"] = [{"code": code, "value": value.hex()} for code, value in self.others]
        return shown


@dataclass(frozen=True, slots=True)
class Open:
    """An OPEN. `asn` is the whole AS number, wherever it stood; `identifier` has 4 octets; times in seconds."""

    asn: int
    hold_time: int
    identifier: bytes
    capabilities: Capabilities = Capabilities()

    def encode(self) -> bytes:
        """The whole message. Raises LocalError for values that do not fit their fields."""
        if not 0 < self.asn < 1 << 32 or (self.asn > 65535 and not self.capabilities.as4):
            raise LocalError(f"AS {self.asn} does not fit")
        if not (self.hold_time == 0 or 3 <= self.hold_time <= 65535) or len(self.identifier) != 4:
            raise LocalError(f"hold time {self.hold_time} or identifier {self.identifier.hex()} does not fit")
        capabilities = _encode_capabilities(self.capabilities, self.asn)
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
    capabilities, as4 = _decode_capabilities(fields)
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


def _encode_capabilities(capabilities: Capabilities, asn: int) -> bytes:
    items = [(_MULTIPROTOCOL, bytes((0, family.afi, 0, family.safi))) for family in capabilities.families]
    if capabilities.route_refresh:
        items.append((_ROUTE_REFRESH, b""))
    restart = capabilities.graceful_restart
    if restart:
        if not 0 <= restart.restart_time < 4096:
            raise LocalError(f"restart time {restart.restart_time} does not fit into 12 bits")
        head = restart.restart_time | (0x8000 if restart.restarting else 0)
        families = (family.wire + bytes((0x80 if kept else 0,)) for family, kept in restart.preserved)
        items.append((_GRACEFUL_RESTART, head.to_bytes(2, "big") + b"".join(families)))
    if capabilities.as4:
        items.append((_AS4, asn.to_bytes(4, "big")))
    items.extend(capabilities.others)
    return b"".join(bytes((code, len(value))) + value for code, value in items)


def _decode_capabilities(items: list[tuple[int, bytes]]) -> tuple[Capabilities, int | None]:
    """The capabilities and the AS number of four octets. A repeated one adds a family, or counts the first time."""
    families: dict[Family, None] = {}
    multiprotocol = refresh = False
    as4: int | None = None
    restart: GracefulRestart | None = None
    others: dict[tuple[int, bytes], None] = {}
    for code, value in items:
        if code == _MULTIPROTOCOL:
            _check_length(code, value, len(value) == 4)
            multiprotocol = True
            family = _FAMILIES.get(int.from_bytes(value[:2], "big") << 8 | value[3])
            if family:
                families[family] = None
            else:
                others[code, value] = None
        elif code == _ROUTE_REFRESH:
            _check_length(code, value, not value)
            refresh = True
        elif code == _AS4:
            _check_length(code, value, len(value) == 4)
            as4 = int.from_bytes(value, "big")
        elif code == _GRACEFUL_RESTART:
            _check_length(code, value, len(value) % 4 == 2)
            restart = restart or _decode_restart(value)
        else:
            others[code, value] = None
    if not multiprotocol:
        families[Family.IPV4] = None
    return Capabilities(tuple(families), as4 is not None, refresh, restart, tuple(others)), as4


def _decode_restart(value: bytes) -> GracefulRestart:
    head = int.from_bytes(value[:2], "big")
    preserved = []
    for start in range(2, len(value), 4):
        family = _FAMILIES.get(int.from_bytes(value[start : start + 2], "big") << 8 | value[start + 2])
        if family:
            preserved.append((family, bool(value[start + 3] & 0x80)))
    return GracefulRestart(head & 0xFFF, bool(head & 0x8000), tuple(preserved))


def _check_length(code: int, value: bytes, right: bool) -> None:
    if not right:
        raise _error(OpenError.UNSPECIFIC, reason=f"capability {code} of {len(value)} octets")


def _error(subcode: OpenError, data: bytes = b"", reason: str = "") -> RemoteError:
    return RemoteError(ErrorCode.OPEN_MESSAGE, subcode, data, reason)
