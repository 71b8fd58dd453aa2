"""What one side can do, and the capabilities in an OPEN that say it (RFC 5492).

Rule: each capability's codec is a function or two of its own. A decoder gets every value that came under its code
(RFC 5492 section 4 lets a capability stand there more than once) and raises RemoteError for one that cannot be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag

from bgp.message.codes import ErrorCode, Family, OpenError
from bgp.message.errors import LocalError, RemoteError

_MULTIPROTOCOL = 1
_ROUTE_REFRESH = 2
_EXTENDED_NEXT_HOP = 5
_EXTENDED_MESSAGES = 6
_GRACEFUL_RESTART = 64
_AS4 = 65
_ADD_PATH = 69
_ENHANCED_REFRESH = 70
_LONG_LIVED = 71
_KNOWN = frozenset(
    (_MULTIPROTOCOL, _ROUTE_REFRESH, _EXTENDED_MESSAGES, _GRACEFUL_RESTART, _AS4, _ENHANCED_REFRESH, _LONG_LIVED)
)

_FAMILIES = {family.value: family for family in Family}

_IPV4_OVER_IPV6 = bytes((0, 1, 0, 1, 0, 2))
"""AFI and SAFI of the prefixes, AFI of the next hop."""

Item = tuple[int, bytes]
"""A capability's code and value."""


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """RFC 4724 section 3, RFC 8538 section 2."""

    restart_time: int
    """Seconds, 0 to 4095, until the session should be back."""
    restarting: bool = False
    """The sender has just restarted: do not wait for its End-of-RIB."""
    preserved: tuple[tuple[Family, bool], ...] = ()
    """Families that it is for, and whether forwarding went on while the sender was away."""
    notification: bool = False
    """A session that a NOTIFICATION has ended, or the hold timer, is restarted gracefully too (RFC 8538)."""

    def describe(self) -> dict[str, object]:
        return {
            "time": self.restart_time,
            "restarting": self.restarting,
            "notification": self.notification,
            "families": {family.name.lower(): kept for family, kept in self.preserved},
        }


@dataclass(frozen=True, slots=True)
class LongLived:
    """Long-lived graceful restart (RFC 9494 section 3.1); it says nothing without GracefulRestart beside it."""

    families: tuple[tuple[Family, bool, int], ...] = ()
    """Families, whether forwarding went on while the sender was away, and for how many seconds its routes may be
    kept once its restart time is over. None: the sender only knows what a long-lived stale route is.
    """

    def describe(self) -> dict[str, object]:
        return {family.name.lower(): {"time": time, "kept": kept} for family, kept, time in self.families}


class AddPath(IntFlag):
    """Several routes to a prefix (RFC 7911 section 4)."""

    RECEIVE = 1
    SEND = 2

    def describe(self) -> str:
        return "both" if self == AddPath.RECEIVE | AddPath.SEND else "receive" if self & AddPath.RECEIVE else "send"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one side can do."""

    families: tuple[Family, ...] = (Family.IPV4,)
    as4: bool = True
    """AS numbers of four octets (RFC 6793); the number itself is Open.asn."""
    route_refresh: bool = True
    graceful_restart: GracefulRestart | None = None
    add_path: tuple[tuple[Family, AddPath], ...] = ()
    extended_next_hop: bool = False
    """IPv4 with a next hop of IPv6 (RFC 8950)."""
    extended_messages: bool = False
    """Takes messages of up to 65,535 octets (RFC 8654)."""
    enhanced_refresh: bool = False
    """Says where what it sends again begins and ends, and hears it (RFC 7313)."""
    long_lived: LongLived | None = None
    others: tuple[Item, ...] = ()
    """Code and value of what this library does not know."""

    def describe(self) -> dict[str, object]:
        """In text and numbers: for views, logs and JSON."""
        shown: dict[str, object] = {
            "families": [family.name.lower() for family in self.families],
            "as4": self.as4,
            "route_refresh": self.route_refresh,
        }
        if self.graceful_restart:
            shown["graceful_restart"] = self.graceful_restart.describe()
        if self.add_path:
            shown["add_path"] = {family.name.lower(): ways.describe() for family, ways in self.add_path}
        if self.extended_next_hop:
            shown["extended_next_hop"] = True
        if self.extended_messages:
            shown["extended_messages"] = True
        if self.enhanced_refresh:
            shown["enhanced_refresh"] = True
        if self.long_lived:
            shown["long_lived_graceful_restart"] = self.long_lived.describe()
        if self.others:
            shown["others"] = [{"code": code, "value": value.hex()} for code, value in self.others]
        return shown


DEFAULT = Capabilities()


def encode_capabilities(capabilities: Capabilities, asn: int) -> bytes:
    """All of them, one behind the other. Raises LocalError for values that do not fit their fields."""
    return b"".join(bytes((code, len(value))) + value for code, value in _items(capabilities, asn))


def _items(capabilities: Capabilities, asn: int) -> Iterator[Item]:
    for family in capabilities.families:
        yield _MULTIPROTOCOL, bytes((0, family.afi, 0, family.safi))
    if capabilities.route_refresh:
        yield _ROUTE_REFRESH, b""
    if capabilities.extended_next_hop:
        yield _EXTENDED_NEXT_HOP, _IPV4_OVER_IPV6
    if capabilities.extended_messages:
        yield _EXTENDED_MESSAGES, b""
    if capabilities.graceful_restart:
        yield _GRACEFUL_RESTART, _encode_restart(capabilities.graceful_restart)
    if capabilities.as4:
        yield _AS4, asn.to_bytes(4, "big")
    if capabilities.add_path:
        yield _ADD_PATH, b"".join(family.wire + bytes((ways,)) for family, ways in capabilities.add_path)
    if capabilities.enhanced_refresh:
        yield _ENHANCED_REFRESH, b""
    if capabilities.long_lived:
        yield _LONG_LIVED, _encode_long_lived(capabilities.long_lived)
    yield from capabilities.others


def decode_capabilities(items: Sequence[Item]) -> tuple[Capabilities, int | None]:
    """What the items say, and the AS number of four octets, if it is there. Raises RemoteError."""

    def values(code: int) -> list[bytes]:
        return [value for its, value in items if its == code]

    as4 = _decode_as4(values(_AS4))
    capabilities = Capabilities(
        families=_decode_families(values(_MULTIPROTOCOL)),
        as4=as4 is not None,
        route_refresh=_decode_empty(_ROUTE_REFRESH, values(_ROUTE_REFRESH)),
        graceful_restart=_decode_restart(values(_GRACEFUL_RESTART)),
        add_path=_decode_add_path(values(_ADD_PATH)),
        extended_next_hop=_decode_extended_next_hop(values(_EXTENDED_NEXT_HOP)),
        extended_messages=_decode_empty(_EXTENDED_MESSAGES, values(_EXTENDED_MESSAGES)),
        enhanced_refresh=_decode_empty(_ENHANCED_REFRESH, values(_ENHANCED_REFRESH)),
        long_lived=_decode_long_lived(values(_LONG_LIVED)),
        others=tuple(dict.fromkeys(item for item in items if _is_other(item))),
    )
    return capabilities, as4


def _is_other(item: Item) -> bool:
    code, value = item
    if code == _ADD_PATH:
        return not _understood(value)
    if code == _EXTENDED_NEXT_HOP:
        return _IPV4_OVER_IPV6 not in _parts(value, 6)
    return code not in _KNOWN or (code == _MULTIPROTOCOL and _family(value) is None)


def _decode_families(values: list[bytes]) -> tuple[Family, ...]:
    """RFC 4760 section 8: one each; who says nothing of it carries IPv4 (RFC 4271)."""
    for value in values:
        _check_length(_MULTIPROTOCOL, value, len(value) == 4)
    if not values:
        return (Family.IPV4,)
    return tuple(dict.fromkeys(family for value in values if (family := _family(value))))


def _family(value: bytes) -> Family | None:
    """AFI, a reserved octet, SAFI."""
    return _FAMILIES.get(int.from_bytes(value[:2], "big") << 8 | value[3]) if len(value) == 4 else None


def _decode_empty(code: int, values: list[bytes]) -> bool:
    """A capability that says all by being there."""
    for value in values:
        _check_length(code, value, not value)
    return bool(values)


def _decode_as4(values: list[bytes]) -> int | None:
    """RFC 6793 section 3; the last one counts."""
    for value in values:
        _check_length(_AS4, value, len(value) == 4)
    return int.from_bytes(values[-1], "big") if values else None


def _encode_restart(restart: GracefulRestart) -> bytes:
    if not 0 <= restart.restart_time < 4096:
        raise LocalError(f"restart time {restart.restart_time} does not fit into 12 bits")
    head = restart.restart_time | (0x8000 if restart.restarting else 0) | (0x4000 if restart.notification else 0)
    families = (family.wire + bytes((0x80 if kept else 0,)) for family, kept in restart.preserved)
    return head.to_bytes(2, "big") + b"".join(families)


def _decode_restart(values: list[bytes]) -> GracefulRestart | None:
    """RFC 4724 section 3; the first one counts."""
    for value in values:
        _check_length(_GRACEFUL_RESTART, value, len(value) % 4 == 2)
    if not values:
        return None
    value = values[0]
    head = int.from_bytes(value[:2], "big")
    preserved = []
    for start in range(2, len(value), 4):
        family = _FAMILIES.get(int.from_bytes(value[start : start + 3], "big"))
        if family:
            preserved.append((family, bool(value[start + 3] & 0x80)))
    return GracefulRestart(head & 0xFFF, bool(head & 0x8000), tuple(preserved), bool(head & 0x4000))


def _encode_long_lived(long_lived: LongLived) -> bytes:
    parts = []
    for family, kept, time in long_lived.families:
        if not 0 <= time < 1 << 24:
            raise LocalError(f"long-lived stale time {time} does not fit into 24 bits")
        parts.append(family.wire + bytes((0x80 if kept else 0,)) + time.to_bytes(3, "big"))
    return b"".join(parts)


def _decode_long_lived(values: list[bytes]) -> LongLived | None:
    """The first one counts."""
    for value in values:
        _check_length(_LONG_LIVED, value, len(value) % 7 == 0)
    if not values:
        return None
    found = []
    for part in _parts(values[0], 7):
        family = _FAMILIES.get(int.from_bytes(part[:3], "big"))
        if family:
            found.append((family, bool(part[3] & 0x80), int.from_bytes(part[4:], "big")))
    return LongLived(tuple(found))


def _parts(value: bytes, size: int) -> list[bytes]:
    return [value[start : start + size] for start in range(0, len(value), size)]


def _understood(value: bytes) -> bool:
    """RFC 7911 section 4: with any other number than these three the capability counts as not understood."""
    return all(part[3] in (1, 2, 3) for part in _parts(value, 4))


def _decode_add_path(values: list[bytes]) -> tuple[tuple[Family, AddPath], ...]:
    """There should be one; of two that speak of a family the last one counts."""
    ways: dict[Family, AddPath] = {}
    for value in values:
        _check_length(_ADD_PATH, value, bool(value) and len(value) % 4 == 0)
        for part in _parts(value, 4) if _understood(value) else ():
            family = _FAMILIES.get(int.from_bytes(part[:3], "big"))
            if family:
                ways[family] = AddPath(part[3])
    return tuple(ways.items())


def _decode_extended_next_hop(values: list[bytes]) -> bool:
    """RFC 8950 section 4: of all combinations that may be listed, the one that there is here."""
    for value in values:
        _check_length(_EXTENDED_NEXT_HOP, value, len(value) % 6 == 0)
    return any(_IPV4_OVER_IPV6 in _parts(value, 6) for value in values)


def _check_length(code: int, value: bytes, right: bool) -> None:
    if not right:
        raise RemoteError(
            ErrorCode.OPEN_MESSAGE, OpenError.UNSPECIFIC, reason=f"capability {code} of {len(value)} octets"
        )
