"""UPDATE (RFC 4271 section 4.3) with routes of IPv4 and IPv6 (RFC 4760), and its errors (RFC 7606).

Rule: what decode() returns can be applied as it stands: every announced path has complete attributes, and routes
whose attributes were malformed are among the withdrawn. Nothing downstream judges the wire again.

Where the session has ADD-PATH (RFC 7911) the lists hold prefixes with identifiers (nlri.py), all of a list or none.
With extended next hop (RFC 8950) routes of IPv4 may have a next hop of IPv6, and stand in MP_REACH_NLRI then. Of a
next hop with a link-local address behind it only the global one is kept: the other is for who is on that link, and
not to be passed on (RFC 2545 section 3).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from bgp.message import nlri
from bgp.message.attribute_decoding import (
    AS_PATH_BIT,
    NEXT_HOP_BIT,
    ORIGIN_BIT,
    AttributeDecoder,
    Fault,
)
from bgp.message.attributes import Attributes, attribute, encode_attributes
from bgp.message.codes import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    OPTIONAL,
    AttributeType,
    ErrorCode,
    Family,
    MessageType,
    UpdateError,
)
from bgp.message.errors import LocalError, RemoteError
from bgp.message.framing import frame

_IPV4 = Family.IPV4
_AROUND = HEADER_SIZE + 4
"""Octets of an UPDATE that are none of its three fields: the header and two lengths."""


class Update(NamedTuple):
    """An UPDATE, ready to be applied: the withdrawals first."""

    withdrawn: tuple[tuple[Family, list[bytes]], ...] = ()
    announced: tuple[tuple[Family, list[bytes], Attributes], ...] = ()
    end_of_rib: Family | None = None
    """The family whose initial routes have all been sent (RFC 4724 section 2)."""
    faults: tuple[Fault, ...] = ()


class UpdateDecoder:
    """Reads the UPDATEs of one session. Families that were not negotiated are passed over.

    `identified` are the families whose prefixes have identifiers, `extended` says whether IPv4 may have a next hop of
    IPv6.
    """

    def __init__(
        self,
        families: Iterable[Family],
        attributes: AttributeDecoder,
        *,
        identified: Collection[Family] = (),
        extended: bool = False,
    ) -> None:
        self._families = {family.wire: family for family in families}
        self._attributes = attributes
        self._ipv4 = Family.IPV4 in self._families.values()
        self._splits = {
            family: nlri.split_identified if family in identified else nlri.split
            for family in self._families.values()
        }
        self._split4 = self._splits.get(Family.IPV4, _unread)
        self._next_hops = {Family.IPV4: (4, 16, 32) if extended else (4,), Family.IPV6: (16, 32)}

    def decode(self, body: bytes) -> Update:
        """The body of an UPDATE. Raises RemoteError where the session must end."""
        end = len(body)
        cut = 2 + (body[0] << 8 | body[1])
        if cut + 2 > end:
            raise _error(UpdateError.MALFORMED_ATTRIBUTE_LIST, reason="withdrawn routes run over the message's end")
        start = cut + 2
        stop = start + (body[cut] << 8 | body[cut + 1])
        if stop > end:
            raise _error(UpdateError.MALFORMED_ATTRIBUTE_LIST, reason="attributes run over the message's end")
        ipv4 = _IPV4
        try:
            gone = self._split4(ipv4, body[2:cut]) if cut > 2 else []
            new = self._split4(ipv4, body[stop:]) if stop < end else []
        except nlri.BadPrefix as wrong:
            raise _error(UpdateError.INVALID_NETWORK_FIELD, reason=str(wrong)) from None
        if start == stop and not new:
            if not self._ipv4:
                return Update(faults=_NOT_AGREED) if gone else Update()
            return Update(((ipv4, gone),)) if gone else Update(end_of_rib=ipv4)

        attributes, reach, unreach, faults, present = self._attributes.decode(body[start:stop])
        if attributes is None and not new and not _announces(reach):
            # RFC 7606 section 5.2: the routes that this was about cannot be found, perhaps behind the error.
            reason = f"{faults[0]}, and there are no routes to withdraw for it"
            raise _error(UpdateError.MALFORMED_ATTRIBUTE_LIST, reason=reason)
        if not self._ipv4 and (gone or new):
            gone, new, faults = [], [], (*faults, *_NOT_AGREED)
        if reach is None and unreach is None:  # the common case, kept short
            missing = _MANDATORY & ~present
            if new and (missing or attributes is None):
                if missing and attributes is not None:
                    faults = (*faults, _missing(missing))
                return Update(((ipv4, gone + new),), (), None, faults)
            withdrawn = ((ipv4, gone),) if gone else ()
            return Update(withdrawn, ((ipv4, new, attributes),) if new and attributes else (), None, faults)
        alone = unreach is not None and stop - start <= len(unreach) + 4  # and the header of MP_UNREACH_NLRI
        return self._multiprotocol(gone, new, attributes, reach, unreach, faults, present, alone)

    def _multiprotocol(
        self,
        gone: list[bytes],
        new: list[bytes],
        attributes: Attributes | None,
        reach: bytes | None,
        unreach: bytes | None,
        faults: tuple[Fault, ...],
        present: int,
        alone: bool,
    ) -> Update:
        """`alone`: there is no attribute but MP_UNREACH_NLRI."""
        withdrawn: list[tuple[Family, list[bytes]]] = [(Family.IPV4, gone)] if gone else []
        announced: list[tuple[Family, list[bytes], Attributes]] = []
        if unreach is not None:
            family, prefixes = self._unreach(unreach)
            if family and prefixes:
                withdrawn.append((family, prefixes))
            elif family and alone and not new and not gone:
                return Update(end_of_rib=family)
            elif family and not alone:
                faults = (*faults, _NO_END_OF_RIB)
            elif len(unreach) > 3:
                faults = (*faults, _not_agreed(AttributeType.MP_UNREACH_NLRI, unreach))
        if new or reach is not None:
            # What is missing, or malformed, costs all routes of the UPDATE (RFC 7606 section 2).
            missing = (_MANDATORY if new else ORIGIN_BIT | AS_PATH_BIT) & ~present
            if missing and attributes is not None:
                faults, attributes = (*faults, _missing(missing)), None
        if reach is not None:
            family, next_hop, prefixes = self._reach(reach)
            if family and prefixes:
                next_hop, also = next_hop[:16], next_hop[16:]
                fit = nlri.is_host(next_hop) and not (len(next_hop) == 16 and nlri.is_link_local(next_hop))
                if not fit:
                    faults = (*faults, Fault(AttributeType.MP_REACH_NLRI, True, "the next hop is no host address"))
                elif also and not nlri.is_link_local(also):
                    faults = (
                        *faults,
                        Fault(AttributeType.MP_REACH_NLRI, False, "the second next hop is not link-local"),
                    )
                if attributes is None or not fit:
                    withdrawn.append((family, prefixes))
                else:
                    announced.append((family, prefixes, attributes._replace(next_hop=next_hop)))
            elif family is None:
                faults = (*faults, _not_agreed(AttributeType.MP_REACH_NLRI, reach))
        if new and attributes is None:
            withdrawn.append((Family.IPV4, new))
        elif new and attributes:
            announced.append((Family.IPV4, new, attributes))
        return Update(tuple(withdrawn), tuple(announced), None, faults)

    def _unreach(self, value: bytes) -> tuple[Family | None, list[bytes]]:
        if len(value) < 3:
            raise _lost(AttributeType.MP_UNREACH_NLRI, value, f"length {len(value)}")
        family = self._families.get(value[:3])
        if family is None:
            return None, []
        return family, self._paths(AttributeType.MP_UNREACH_NLRI, family, value, 3)

    def _reach(self, value: bytes) -> tuple[Family | None, bytes, list[bytes]]:
        """Family, next hop and prefixes (RFC 7606 section 7.11)."""
        if len(value) < 5:
            raise _lost(AttributeType.MP_REACH_NLRI, value, f"length {len(value)}")
        size = value[3]
        if 5 + size > len(value):
            raise _lost(AttributeType.MP_REACH_NLRI, value, f"a next hop of {size} octets does not fit")
        family = self._families.get(value[:3])
        if family is None:
            return None, b"", []
        if size not in self._next_hops[family]:
            raise _lost(AttributeType.MP_REACH_NLRI, value, f"a next hop of {size} octets")
        prefixes = self._paths(AttributeType.MP_REACH_NLRI, family, value, 5 + size)
        return family, value[4 : 4 + size], prefixes

    def _paths(self, kind: AttributeType, family: Family, value: bytes, start: int) -> list[bytes]:
        try:
            return self._splits[family](family, value[start:])
        except nlri.BadPrefix as wrong:
            raise _lost(kind, value, str(wrong)) from None


def _unread(family: Family, field: bytes) -> list[bytes]:
    """Routes of a family not agreed on: with or without identifiers, who knows?"""
    return [field]


_MANDATORY = ORIGIN_BIT | AS_PATH_BIT | NEXT_HOP_BIT
_NOT_AGREED = (Fault(0, False, "routes of IPv4, which was not agreed on: passed over"),)
"""RFC 4760 section 8: without the capability of both sides there is no family."""
_NO_END_OF_RIB = Fault(
    AttributeType.MP_UNREACH_NLRI, False, "without routes, and no End-of-RIB beside other attributes"
)


def _not_agreed(kind: AttributeType, value: bytes) -> Fault:
    return Fault(kind, False, f"family {value[0] << 8 | value[1]}/{value[2]} was not agreed on: passed over")


def _announces(reach: bytes | None) -> bool:
    """Whether MP_REACH_NLRI has routes, of whatever family."""
    return reach is not None and (len(reach) < 5 or len(reach) > 5 + reach[3])


def _missing(bits: int) -> Fault:
    """RFC 7606 section 3 d."""
    kind = (bits & -bits).bit_length() - 1
    return Fault(kind, True, "is missing")


def _lost(kind: AttributeType, value: bytes, reason: str) -> RemoteError:
    """An attribute that carries routes and cannot be read: which routes is not known, so the session ends."""
    return _error(UpdateError.OPTIONAL_ATTRIBUTE_ERROR, attribute(OPTIONAL, kind, value), f"{kind.name}: {reason}")


def _error(subcode: UpdateError, data: bytes = b"", reason: str = "") -> RemoteError:
    return RemoteError(ErrorCode.UPDATE_MESSAGE, subcode, data[: MAX_MESSAGE_SIZE - HEADER_SIZE - 2], reason)


# ------------------------------------------------------------------------------------------------ sending


def encode_announcement(
    family: Family, attributes: Attributes, prefixes: Sequence[bytes], *, as4: bool, most: int = MAX_MESSAGE_SIZE
) -> list[bytes]:
    """Whole messages of at most so many octets that announce the paths, as few as hold them.

    IPv4 with its own next hop stands in the UPDATE's own field, all else in MP_REACH_NLRI, which comes first (RFC
    7606 section 5.1). Raises LocalError when the attributes leave no room for a path, or when the next hop is none.
    """
    try:
        block = encode_attributes(attributes, as4)
    except (OverflowError, ValueError, struct.error) as wrong:
        raise LocalError(f"attributes that do not fit their fields: {wrong}") from None
    next_hop = attributes.next_hop
    plain = family is Family.IPV4 and len(next_hop) == 4
    if not plain and len(next_hop) not in (16, 32):
        raise LocalError(f"a next hop of {len(next_hop)} octets for {family.name}")
    # MP_REACH_NLRI takes 4 octets of header, 5 and the next hop.
    room = most - _AROUND - len(block) - (0 if plain else 9 + len(next_hop))
    if room < nlri.LONGEST:
        raise LocalError(f"{len(block)} octets of attributes leave no room for a path")
    if plain:
        head = b"\0\0" + len(block).to_bytes(2, "big") + block
        return [frame(MessageType.UPDATE, head + field, most) for field in nlri.pack(family, prefixes, room)]
    start = family.wire + bytes((len(next_hop),)) + next_hop + b"\0"
    return [
        frame(
            MessageType.UPDATE, _body(attribute(OPTIONAL, AttributeType.MP_REACH_NLRI, start + field) + block), most
        )
        for field in nlri.pack(family, prefixes, room)
    ]


def encode_withdrawal(family: Family, prefixes: Sequence[bytes], most: int = MAX_MESSAGE_SIZE) -> list[bytes]:
    """Whole messages of at most so many octets that withdraw the paths."""
    room = most - _AROUND
    if family is Family.IPV4:
        fields = nlri.pack(family, prefixes, room)
        return [frame(MessageType.UPDATE, struct.pack(">H", len(field)) + field + b"\0\0", most) for field in fields]
    return [
        frame(
            MessageType.UPDATE, _body(attribute(OPTIONAL, AttributeType.MP_UNREACH_NLRI, family.wire + field)), most
        )
        for field in nlri.pack(family, prefixes, room - 7)
    ]


def encode_end_of_rib(family: Family) -> bytes:
    """RFC 4724 section 2: an UPDATE that says nothing, of the family."""
    if family is Family.IPV4:
        return frame(MessageType.UPDATE, bytes(4))
    return frame(MessageType.UPDATE, _body(attribute(OPTIONAL, AttributeType.MP_UNREACH_NLRI, family.wire)))


def _body(block: bytes) -> bytes:
    return b"\0\0" + len(block).to_bytes(2, "big") + block
