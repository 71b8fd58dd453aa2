"""Path attributes from the wire, judged as RFC 7606 says (revised error handling), on iBGP as on eBGP.

Rule: a malformed attribute costs its own routes or only itself, never the session. Each decoder below returns a
value, or raises Withdraw (the routes are withdrawn: treat-as-withdraw) or Discard (the attribute is left out). The
session ends only where RFC 7606 leaves no other way: the NLRI cannot be found (MP_REACH_NLRI or MP_UNREACH_NLRI
twice, with wrong flags or unreadable) or a well-known attribute is unknown (RFC 4271 section 6.3).

Speed: nodes originate distinct routes, so most blocks are new while their attributes are old acquaintances.
Whole blocks are remembered by their bytes, and so are blocks without their next hop, for a mesh's differ in that
alone, and each attribute. The memories are bounded, in number and in octets: with messages of RFC 8654 a single
attribute may have 64 KiB, and a value takes some ten times its octets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from bgp.message.aspath import AS_SEQUENCE, AS_SET, AsPath, MalformedPath, decode_path, merge
from bgp.message.attributes import Attributes
from bgp.message.codes import (
    AS_TRANS,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    OPTIONAL,
    PARTIAL,
    TRANSITIVE,
    AttributeType,
    ErrorCode,
    UpdateError,
)
from bgp.message.errors import RemoteError

_MEMORY = 16384
"""Blocks, and attributes, that a decoder remembers at most."""
_MEMORY_OCTETS = 1 << 20
"""And how many octets they may have on the wire: of usual blocks some ten thousand."""


class Fault(NamedTuple):
    """What was wrong with an UPDATE that did not end the session."""

    kind: int
    """The attribute's type; 0 for the UPDATE as a whole."""
    withdraws: bool
    """Treat-as-withdraw, or only this attribute discarded."""
    reason: str

    def __str__(self) -> str:
        name = AttributeType(self.kind).name if self.kind in AttributeType._value2member_map_ else f"type {self.kind}"
        return f"{name}: {self.reason}" if self.kind else self.reason


class Block(NamedTuple):
    """A block of path attributes, read. Without attributes the routes of the UPDATE are to be withdrawn."""

    attributes: Attributes | None
    reach: bytes | None = None
    """The value of MP_REACH_NLRI."""
    unreach: bytes | None = None
    """The value of MP_UNREACH_NLRI."""
    faults: tuple[Fault, ...] = ()
    present: int = 0
    """A bit for each attribute type that was there and well-formed."""


class Withdraw(Exception):
    """Treat-as-withdraw: the attribute decides on routes and cannot be read."""


class Discard(Exception):
    """The attribute is left out, the routes stand."""


_ORIGIN, _AS_PATH, _NEXT_HOP = b"\x40\x01\x01", b"\x40\x02", b"\x40\x03\x04"
"""How the three begin that every route has: flags, type, and a length that is always the same."""
ORIGIN_BIT = 1 << AttributeType.ORIGIN
AS_PATH_BIT = 1 << AttributeType.AS_PATH
NEXT_HOP_BIT = 1 << AttributeType.NEXT_HOP
_NO_BLOCK = Block(Attributes())


class AttributeDecoder:
    """Reads the blocks of one kind of session; sessions of one kind may share it, and with it the parsed values."""

    def __init__(self, *, as4: bool, internal: bool) -> None:
        self.as4 = as4
        self.internal = internal
        self._blocks: dict[bytes, Block] = {}
        self._elsewhere: dict[bytes, Block] = {}
        """By their octets without NEXT_HOP."""
        self._block_octets = 0
        self._attributes: dict[
            bytes, tuple[int, Any]
        ] = {}  # by all their bytes: the place of the value, and the value
        self._attribute_octets = 0
        self._decoders = dict(_DECODERS)
        if not as4:
            self._decoders[AttributeType.AS_PATH] = _as_path_of_two
            self._decoders[AttributeType.AGGREGATOR] = _aggregator_of_two
            self._decoders[AttributeType.AS4_PATH] = _as4_path
            self._decoders[AttributeType.AS4_AGGREGATOR] = _as4_aggregator
        if not internal:
            for kind in _WITHIN_THE_AS:
                self._decoders[kind] = _from_another_as

    def decode(self, block: bytes) -> Block:
        """Read a block. Raises RemoteError where the session must end; whatever else is wrong is in `faults`."""
        if not block:
            return _NO_BLOCK
        known = self._blocks.get(block)
        if known is not None:
            return known
        rest = _without_next_hop(block)
        read = self._with_next_hop(block, rest) or self._read(block)
        if read.reach is None and read.unreach is None and not read.faults:
            self._block_octets += len(block)
            if len(self._blocks) >= _MEMORY or self._block_octets > _MEMORY_OCTETS:
                self._blocks.clear()
                self._elsewhere.clear()
                self._block_octets = len(block)
            self._blocks[block] = read
            if rest and rest not in self._elsewhere:
                self._block_octets += len(rest)
                self._elsewhere[rest] = read
        return read

    def _with_next_hop(self, block: bytes, rest: bytes) -> Block | None:
        """The block, where one without a fault is known that differs in its next hop alone, and this one is good."""
        known = self._elsewhere.get(rest)
        if known is None or known.attributes is None:
            return None
        origin, path, _, *others = known.attributes
        at = 10 + block[6]
        try:
            next_hop = _next_hop(block[at : at + 4])
        except Withdraw:
            return None
        return Block(Attributes._make((origin, path, next_hop, *others)), None, None, (), known.present)

    def _read(self, block: bytes) -> Block:
        values = _ABSENT.copy()
        others: list[tuple[int, int, bytes]] = []
        faults: list[Fault] = []
        remembered = self._attributes
        present = repeated = 0
        position, end = 0, len(block)
        while position < end:
            try:
                flags, kind = block[position], block[position + 1]
                if flags & 0x10:
                    start = position + 4
                    following = start + (block[position + 2] << 8 | block[position + 3])
                else:
                    start = position + 3
                    following = start + block[position + 2]
            except IndexError:
                following = end + 1
            if following > end:
                faults.append(Fault(0, True, f"the attribute at octet {position} runs over the end at {end}"))
                break
            whole = block[position:following]
            position = following
            if present >> kind & 1:
                if not repeated >> kind & 1:
                    repeated |= 1 << kind
                    self._repeated(kind, faults)
                continue
            present |= 1 << kind
            known = remembered.get(whole)
            if known is not None:
                values[known[0]] = known[1]
                continue
            value = block[start:following]
            decoder = self._decoders.get(kind)
            if decoder is None:
                self._unrecognised(flags, kind, value, whole, others, faults)
                continue
            try:
                if flags & 0xC0 != _FLAGS[kind]:
                    self._wrong_flags(flags, kind, whole)
                decoded = decoder(value)
            except Withdraw as wrong:
                faults.append(Fault(kind, True, str(wrong)))
            except Discard as wrong:
                faults.append(Fault(kind, False, str(wrong)))
            else:
                place = _PLACES[kind]
                values[place] = decoded
                if flags & PARTIAL and kind in _PASSED_ON:
                    values[_PARTIAL] |= 1 << kind  # and not remembered: memory has values alone
                elif kind not in _MULTIPROTOCOL:
                    self._attribute_octets += len(whole)
                    if len(remembered) >= _MEMORY or self._attribute_octets > _MEMORY_OCTETS:
                        remembered.clear()
                        self._attribute_octets = len(whole)
                    remembered[whole] = (place, decoded)
        return self._put_together(values, others, faults, present)

    def _put_together(
        self, values: list[Any], others: list[tuple[int, int, bytes]], faults: list[Fault], present: int
    ) -> Block:
        reach, unreach, path4, aggregator4 = values[_FIELDS:]
        if faults and any(fault.withdraws for fault in faults):
            if reach is None or any(fault.withdraws and fault.kind != AttributeType.NEXT_HOP for fault in faults):
                return Block(None, reach, unreach, tuple(faults), present)
            # Beside MP_REACH_NLRI it says nothing (RFC 4760 section 3); routes in the UPDATE's own field miss it.
            faults = [fault._replace(withdraws=False) for fault in faults]
            present &= ~NEXT_HOP_BIT
        if path4 is not None or aggregator4 is not None:
            values[1], values[6] = _whole_numbers(values[1], values[6], path4, aggregator4)
        if others:
            others.sort(key=lambda other: other[1])
            values[_OTHERS] = tuple(others)
        return Block(Attributes._make(values[:_FIELDS]), reach, unreach, tuple(faults), present)

    @staticmethod
    def _repeated(kind: int, faults: list[Fault]) -> None:
        """RFC 7606 section 3 g: the first one counts, unless it is one that carries routes."""
        if kind in _MULTIPROTOCOL:
            raise RemoteError(
                ErrorCode.UPDATE_MESSAGE,
                UpdateError.MALFORMED_ATTRIBUTE_LIST,
                reason=f"{AttributeType(kind).name} stands twice",
            )
        faults.append(Fault(kind, False, "stands there more than once; the first one counts"))

    def _wrong_flags(self, flags: int, kind: int, whole: bytes) -> None:
        """RFC 7606 section 3 c, section 5.3 for those that carry routes, and RFC 6793 section 6 for the two that only
        go with AS numbers of two octets. What only counts within an AS is discarded where
        it comes from another.
        """
        if kind in _MULTIPROTOCOL:
            raise RemoteError(
                ErrorCode.UPDATE_MESSAGE,
                UpdateError.OPTIONAL_ATTRIBUTE_ERROR,
                whole[: MAX_MESSAGE_SIZE - HEADER_SIZE - 2],
                f"{AttributeType(kind).name}: flags {flags:#04x}",
            )
        not_ours = not self.internal and kind in _WITHIN_THE_AS
        if not_ours or kind in (AttributeType.AS4_PATH, AttributeType.AS4_AGGREGATOR):
            raise Discard(f"flags {flags:#04x}")
        raise Withdraw(f"flags {flags:#04x}")

    def _unrecognised(
        self,
        flags: int,
        kind: int,
        value: bytes,
        whole: bytes,
        others: list[tuple[int, int, bytes]],
        faults: list[Fault],
    ) -> None:
        """RFC 4271 section 9: passed on with PARTIAL set if transitive, dropped without a word if not."""
        if kind in _FLAGS:
            faults.append(Fault(kind, False, "makes no sense between speakers of four octets"))  # RFC 6793 section 6
        elif not flags & OPTIONAL:
            raise RemoteError(
                ErrorCode.UPDATE_MESSAGE,
                UpdateError.UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE,
                whole,
                f"unrecognised well-known attribute {kind}",
            )
        elif flags & TRANSITIVE:
            others.append((OPTIONAL | TRANSITIVE | PARTIAL, kind, value))


# ------------------------------------------------------------------------------------------- one a decoder


def _without_next_hop(block: bytes) -> bytes:
    """What is left of a block that begins with ORIGIN, AS_PATH and NEXT_HOP, as most do; empty for another."""
    if len(block) < 14 or block[:3] != _ORIGIN or block[4:6] != _AS_PATH:
        return b""
    at = 7 + block[6]
    return block[:at] + block[at + 7 :] if block[at : at + 3] == _NEXT_HOP and at + 7 <= len(block) else b""


def _origin(value: bytes) -> int:
    if len(value) != 1 or value[0] > 2:
        raise Withdraw(f"value {value[:8].hex()}")
    return value[0]


def _as_path(value: bytes) -> AsPath:
    try:
        return decode_path(value, 4)
    except MalformedPath as wrong:
        raise Withdraw(str(wrong)) from None


def _as_path_of_two(value: bytes) -> AsPath:
    try:
        return decode_path(value, 2)
    except MalformedPath as wrong:
        raise Withdraw(str(wrong)) from None


def _as4_path(value: bytes) -> AsPath:
    """RFC 6793 section 6: segments of a confederation have no place in it and are left out."""
    try:
        path = decode_path(value, 4, confederation=True)
    except MalformedPath as wrong:
        raise Discard(str(wrong)) from None
    if not path:
        raise Discard("no AS number")
    return AsPath(segment for segment in path if segment[0] in (AS_SET, AS_SEQUENCE))


def _next_hop(value: bytes) -> bytes:
    """RFC 4271 section 6.3: a valid host address; 0/8, 127/8, multicast and class E are none."""
    if len(value) != 4 or value[0] in (0, 127) or value[0] >= 224:
        raise Withdraw(f"value {value[:8].hex()}")
    return value


def _number(value: bytes) -> int:
    if len(value) != 4:
        raise Withdraw(f"length {len(value)}")
    return int.from_bytes(value, "big")


def _atomic_aggregate(value: bytes) -> bool:
    if value:
        raise Discard(f"length {len(value)}")
    return True


def _aggregator_of(value: bytes, width: int) -> tuple[int, bytes]:
    if len(value) != width + 4:
        raise Discard(f"length {len(value)}")
    number = int.from_bytes(value[:width], "big")
    if not number:
        raise Discard("AS 0")  # RFC 7607
    return number, value[width:]


def _aggregator(value: bytes) -> tuple[int, bytes]:
    return _aggregator_of(value, 4)


def _aggregator_of_two(value: bytes) -> tuple[int, bytes]:
    return _aggregator_of(value, 2)


def _as4_aggregator(value: bytes) -> tuple[int, bytes]:
    return _aggregator_of(value, 4)


def _communities(value: bytes) -> tuple[int, ...]:
    if not value or len(value) % 4:
        raise Withdraw(f"length {len(value)}")
    return struct.unpack(f">{len(value) // 4}I", value)


def _originator_id(value: bytes) -> bytes:
    if len(value) != 4:
        raise Withdraw(f"length {len(value)}")
    return value


def _cluster_list(value: bytes) -> tuple[bytes, ...]:
    if not value or len(value) % 4:
        raise Withdraw(f"length {len(value)}")
    return tuple(value[start : start + 4] for start in range(0, len(value), 4))


def _large_communities(value: bytes) -> tuple[tuple[int, int, int], ...]:
    """Duplicates are removed on receipt (RFC 8092 section 3)."""
    if not value or len(value) % 12:
        raise Withdraw(f"length {len(value)}")
    return tuple(dict.fromkeys(struct.iter_unpack(">3I", value)))


def _multiprotocol(value: bytes) -> bytes:
    return value


def _from_another_as(value: bytes) -> None:
    raise Discard("came from another AS")


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    AttributeType.ORIGIN: _origin,
    AttributeType.AS_PATH: _as_path,
    AttributeType.NEXT_HOP: _next_hop,
    AttributeType.MULTI_EXIT_DISC: _number,
    AttributeType.LOCAL_PREF: _number,
    AttributeType.ATOMIC_AGGREGATE: _atomic_aggregate,
    AttributeType.AGGREGATOR: _aggregator,
    AttributeType.COMMUNITIES: _communities,
    AttributeType.ORIGINATOR_ID: _originator_id,
    AttributeType.CLUSTER_LIST: _cluster_list,
    AttributeType.MP_REACH_NLRI: _multiprotocol,
    AttributeType.MP_UNREACH_NLRI: _multiprotocol,
    AttributeType.LARGE_COMMUNITIES: _large_communities,
}

# What the OPTIONAL and TRANSITIVE bits must be.
_FLAGS: dict[int, int] = {
    AttributeType.ORIGIN: TRANSITIVE,
    AttributeType.AS_PATH: TRANSITIVE,
    AttributeType.NEXT_HOP: TRANSITIVE,
    AttributeType.MULTI_EXIT_DISC: OPTIONAL,
    AttributeType.LOCAL_PREF: TRANSITIVE,
    AttributeType.ATOMIC_AGGREGATE: TRANSITIVE,
    AttributeType.AGGREGATOR: OPTIONAL | TRANSITIVE,
    AttributeType.COMMUNITIES: OPTIONAL | TRANSITIVE,
    AttributeType.ORIGINATOR_ID: OPTIONAL,
    AttributeType.CLUSTER_LIST: OPTIONAL,
    AttributeType.MP_REACH_NLRI: OPTIONAL,
    AttributeType.MP_UNREACH_NLRI: OPTIONAL,
    AttributeType.AS4_PATH: OPTIONAL | TRANSITIVE,
    AttributeType.AS4_AGGREGATOR: OPTIONAL | TRANSITIVE,
    AttributeType.LARGE_COMMUNITIES: OPTIONAL | TRANSITIVE,
}

# Where a decoded value goes: the fields of Attributes in their order, then what does not stay as it is.
_FIELDS = len(Attributes._fields)
_OTHERS, _PARTIAL = Attributes._fields.index("others"), Attributes._fields.index("partial")
_PLACES: dict[int, int] = {
    AttributeType.ORIGIN: 0,
    AttributeType.AS_PATH: 1,
    AttributeType.NEXT_HOP: 2,
    AttributeType.MULTI_EXIT_DISC: 3,
    AttributeType.LOCAL_PREF: 4,
    AttributeType.ATOMIC_AGGREGATE: 5,
    AttributeType.AGGREGATOR: 6,
    AttributeType.COMMUNITIES: 7,
    AttributeType.ORIGINATOR_ID: 8,
    AttributeType.CLUSTER_LIST: 9,
    AttributeType.LARGE_COMMUNITIES: 10,
    AttributeType.MP_REACH_NLRI: _FIELDS,
    AttributeType.MP_UNREACH_NLRI: _FIELDS + 1,
    AttributeType.AS4_PATH: _FIELDS + 2,
    AttributeType.AS4_AGGREGATOR: _FIELDS + 3,
}
_ABSENT: list[Any] = [*Attributes(), None, None, None, None]

_MULTIPROTOCOL = frozenset((AttributeType.MP_REACH_NLRI, AttributeType.MP_UNREACH_NLRI))
_WITHIN_THE_AS = frozenset((AttributeType.LOCAL_PREF, AttributeType.ORIGINATOR_ID, AttributeType.CLUSTER_LIST))
_PASSED_ON = frozenset((AttributeType.AGGREGATOR, AttributeType.COMMUNITIES, AttributeType.LARGE_COMMUNITIES))


def _whole_numbers(
    path: AsPath,
    aggregator: tuple[int, bytes] | None,
    path4: AsPath | None,
    aggregator4: tuple[int, bytes] | None,
) -> tuple[AsPath, tuple[int, bytes] | None]:
    """RFC 6793 section 4.2.3: an aggregator of two octets behind the four-octet one makes both AS4 values void."""
    if aggregator and aggregator4:
        if aggregator[0] != AS_TRANS:
            return path, aggregator
        aggregator = aggregator4
    return merge(path, path4) if path4 else path, aggregator
