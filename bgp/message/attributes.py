"""The path attributes of a route as a value, and their encoding (RFC 4271 section 5, 1997, 4456, 6793, 8092).

Rule: an Attributes is immutable and complete: what a session's capabilities change (AS numbers of two octets, the
next hop's place) exists only on the wire. Decoding, with all that may be wrong, is in attribute_decoding.py.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from bgp.message.aspath import EMPTY_PATH, AsPath, encode_path
from bgp.message.codes import (
    AS_TRANS,
    EXTENDED_LENGTH,
    OPTIONAL,
    PARTIAL,
    TRANSITIVE,
    AttributeType,
    Origin,
    WellKnownCommunity,
)
from bgp.message.nlri import address_text


class Attributes(NamedTuple):
    """What an UPDATE says of its routes. Addresses are packed; None and empty mean that the attribute is absent."""

    origin: int = Origin.IGP
    as_path: AsPath = EMPTY_PATH
    next_hop: bytes = b""
    """4 octets, or 16: from NEXT_HOP or MP_REACH_NLRI. To be announced it may have 32, with a link-local address."""
    med: int | None = None
    local_pref: int | None = None
    atomic_aggregate: bool = False
    aggregator: tuple[int, bytes] | None = None
    """AS number and the router's address."""
    communities: tuple[int, ...] = ()
    originator_id: bytes = b""
    cluster_list: tuple[bytes, ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()
    others: tuple[tuple[int, int, bytes], ...] = ()
    """Unrecognised transitive attributes to pass on: (flags with PARTIAL set, type, value), by type."""
    partial: int = 0
    """A bit for each type of the recognised ones that came with PARTIAL: it stays set (RFC 4271 section 5)."""


def community_text(community: int) -> str:
    """As people write it: 65000:120, or the name of a well-known one."""
    try:
        return WellKnownCommunity(community).name.lower().replace("_", "-")
    except ValueError:
        return f"{community >> 16}:{community & 0xFFFF}"


def describe(attributes: Attributes) -> dict[str, object]:
    """The attributes present, by their names, in text and numbers: for views, logs and JSON."""
    shown: dict[str, object] = {
        "origin": Origin(attributes.origin).name,
        "as_path": str(attributes.as_path),
        "next_hop": address_text(attributes.next_hop) if attributes.next_hop else None,
        "med": attributes.med,
        "local_pref": attributes.local_pref,
        "atomic_aggregate": attributes.atomic_aggregate or None,
        "aggregator": f"AS{attributes.aggregator[0]} {address_text(attributes.aggregator[1])}"
        if attributes.aggregator
        else None,
        "communities": [community_text(community) for community in attributes.communities] or None,
        "originator_id": address_text(attributes.originator_id) if attributes.originator_id else None,
        "cluster_list": [address_text(cluster) for cluster in attributes.cluster_list] or None,
        "large_communities": [":".join(map(str, parts)) for parts in attributes.large_communities] or None,
        "others": [kind for _, kind, _ in attributes.others] or None,
    }
    return {name: value for name, value in shown.items() if value is not None}


def attribute(flags: int, kind: int, value: bytes) -> bytes:
    """One attribute with its header; the length takes two octets where it must."""
    if len(value) > 255:
        return struct.pack(">BBH", flags | EXTENDED_LENGTH, kind, len(value)) + value
    return bytes((flags & ~EXTENDED_LENGTH, kind, len(value))) + value


def encode_attributes(attributes: Attributes, as4: bool) -> bytes:
    """The block of path attributes in order of type, without the next hop of IPv6, which MP_REACH_NLRI carries.

    `as4` says whether the session has AS numbers of four octets; without it AS4_PATH and AS4_AGGREGATOR are added
    where a number needs them.
    """
    origin, path, next_hop, med, local_pref, atomic, aggregator = attributes[:7]
    communities, originator, clusters, large, others, partial = attributes[7:]
    short = not path or (len(path) == 1 and len(path[0][1]) <= _SHORT)
    parts = [_head(origin, path, as4) if short else _new_head(origin, path, as4)]
    if len(next_hop) == 4:
        parts.append(b"\x40\x03\x04" + next_hop)
    if med is not None:
        parts.append(b"\x80\x04\x04" + med.to_bytes(4, "big"))
    if local_pref is not None:
        parts.append(b"\x40\x05\x04" + local_pref.to_bytes(4, "big"))
    if atomic:
        parts.append(b"\x40\x06\x00")
    if aggregator:
        parts.append(_aggregator(aggregator, as4, partial))
    if communities:
        value = struct.pack(f">{len(communities)}I", *communities)
        parts.append(attribute(_transitive(partial, AttributeType.COMMUNITIES), AttributeType.COMMUNITIES, value))
    if originator:
        parts.append(b"\x80\x09\x04" + originator)
    if clusters:
        parts.append(attribute(OPTIONAL, AttributeType.CLUSTER_LIST, b"".join(clusters)))
    if not as4:
        parts.append(_four_octets_beside(path, aggregator))
    if large:
        value = b"".join(struct.pack(">3I", *community) for community in large)
        flags = _transitive(partial, AttributeType.LARGE_COMMUNITIES)
        parts.append(attribute(flags, AttributeType.LARGE_COMMUNITIES, value))
    for flags, kind, value in others:
        parts.append(attribute(flags, kind, value))
    return b"".join(parts)


def _new_head(origin: int, path: AsPath, as4: bool) -> bytes:
    """ORIGIN and AS_PATH."""
    value = encode_path(path, 4 if as4 else 2)
    return bytes((TRANSITIVE, AttributeType.ORIGIN, 1, origin)) + attribute(TRANSITIVE, AttributeType.AS_PATH, value)


_SHORT = 32
"""AS numbers of a path that may be remembered: with messages of RFC 8654 a path has up to 16,000."""
_head = lru_cache(maxsize=4096)(_new_head)
"""The same for thousands of routes."""


def _transitive(partial: int, kind: int) -> int:
    """The flags of an optional transitive attribute."""
    return OPTIONAL | TRANSITIVE | (PARTIAL if partial >> kind & 1 else 0)


def _aggregator(aggregator: tuple[int, bytes], as4: bool, partial: int) -> bytes:
    number, router = aggregator
    if as4:
        value = number.to_bytes(4, "big") + router
    else:
        value = (number if number < 65536 else AS_TRANS).to_bytes(2, "big") + router
    return attribute(_transitive(partial, AttributeType.AGGREGATOR), AttributeType.AGGREGATOR, value)


def _four_octets_beside(path: AsPath, aggregator: tuple[int, bytes] | None) -> bytes:
    """AS4_PATH and AS4_AGGREGATOR for a session of two octets; nothing where two octets say it all."""
    parts = []
    if any(number > 65535 for number in path.numbers()):
        value = encode_path(path, 4)
        parts.append(attribute(OPTIONAL | TRANSITIVE, AttributeType.AS4_PATH, value))
    if aggregator and aggregator[0] > 65535:
        value = aggregator[0].to_bytes(4, "big") + aggregator[1]
        parts.append(attribute(OPTIONAL | TRANSITIVE, AttributeType.AS4_AGGREGATOR, value))
    return b"".join(parts)
