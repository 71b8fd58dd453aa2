"""What a route becomes on its way to a peer (RFC 4271 sections 5.1 and 9.2, RFC 4456, RFC 1997).

Rule: the result depends only on the route and on ExportSettings, never on the single peer. Peers with equal
settings form an update group, and share every octet (adj_rib_out.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from bgp.decision import DEFAULT_LOCAL_PREF, LLGR_STALE
from bgp.message import Attributes, Family
from bgp.message.codes import MAX_MESSAGE_SIZE, WellKnownCommunity
from bgp.policy import Policy
from bgp.route import CLIENT, EXTERNAL, INTERNAL, LOCAL, Kind, Route

_IPV4 = Family.IPV4


@dataclass(frozen=True, slots=True)
class Several:
    """Which of the routes to a prefix a peer is told of, where it takes several (RFC 7911)."""

    most: int | None = None
    """The best so many; None: all that can be used."""
    by_next_hop: bool = False
    """Of those with the same next hop only the best: others are no further way for anybody."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What peers of one group have in common."""

    kind: Kind
    asn: int
    """Ours, as this peer sees it."""
    identifier: bytes
    families: tuple[Family, ...]
    as4: bool = True
    cluster_id: bytes = b""
    """Empty means our identifier."""
    addresses: tuple[tuple[Family, bytes], ...] = ()
    """Our own address in each family, for routes that go by way of us."""
    next_hop_self: bool | None = None
    """None means what is usual: towards another AS yes, within our own no."""
    policy: Policy | None = None
    """None: what we originate and what we reflect."""
    several: tuple[tuple[Family, Several], ...] = ()
    """The families in which the peers take several routes to a prefix."""
    extended: bool = False
    """Whether they take a next hop of IPv6 for IPv4 (RFC 8950)."""
    longest: int = MAX_MESSAGE_SIZE
    """The longest message that they take (RFC 8654)."""
    long_lived: bool = False
    """Whether they know what long-lived stale routes are (RFC 9494); who does not is not told of them."""
    long_lived_partial: bool = False
    """But those of our own AS are (section 4.6): as the last choice, and not to be passed on to another AS."""


def export(settings: ExportSettings, family: Family, prefix: bytes, route: Route) -> Attributes | None:
    """The attributes to announce; None when peers of these settings must not have the route."""
    attributes = route.attributes
    if not _may_go(settings.kind, route) or (settings.policy is None and not _by_default(settings.kind, route)):
        return None
    unknown = not settings.long_lived and LLGR_STALE in attributes.communities
    if unknown and (settings.kind is EXTERNAL or not settings.long_lived_partial):
        return None  # RFC 9494 section 4.4
    base = _to_external(settings, route) if settings.kind is EXTERNAL else _to_internal(settings, route)
    by_way_of_us = settings.kind is EXTERNAL if settings.next_hop_self is None else settings.next_hop_self
    if by_way_of_us or not attributes.next_hop:
        addresses = dict(settings.addresses)
        ours = addresses.get(family) or (addresses.get(Family.IPV6, b"") if settings.extended else b"")
        base = base._replace(next_hop=ours)
    changed: Attributes | None = base
    if settings.policy:
        own = route.source.kind is LOCAL
        changed = settings.policy.apply(family, prefix, attributes, base, own=own)
        if changed and changed.local_pref is not None and settings.kind is EXTERNAL:
            changed = changed._replace(local_pref=None)  # RFC 4271 section 5.1.5, whatever the policy says
    if changed is None or not changed.next_hop:
        return None
    if unknown:
        changed = _as_last_choice(changed)
    if (len(changed.next_hop) == 4) == (family is _IPV4) or (settings.extended and family is _IPV4):
        return changed
    return None  # a next hop that is not of the family cannot be encoded: we have no address there


def _as_last_choice(attributes: Attributes) -> Attributes:
    """A long-lived stale route for who does not know what that is (RFC 9494 section 4.6)."""
    communities = dict.fromkeys((*attributes.communities, int(WellKnownCommunity.NO_EXPORT)))
    return attributes._replace(local_pref=0, communities=tuple(communities))


def _may_go(kind: Kind, route: Route) -> bool:
    communities = route.attributes.communities
    if communities:
        if WellKnownCommunity.NO_ADVERTISE in communities:
            return False
        leaves = WellKnownCommunity.NO_EXPORT in communities or WellKnownCommunity.NO_EXPORT_SUBCONFED in communities
        if leaves and kind is EXTERNAL:
            return False
    # From one who is not a client to one who is not: they have it from each other (RFC 4456 section 6).
    return not (kind is INTERNAL and route.source.kind is INTERNAL)


def _by_default(kind: Kind, route: Route) -> bool:
    """Our own, and what a reflector is there for: from a client to all of our AS, from all of our AS to a client."""
    source = route.source.kind
    if source is CLIENT:
        return kind is not EXTERNAL
    return source is LOCAL or (source is INTERNAL and kind is CLIENT)


def _to_external(settings: ExportSettings, route: Route) -> Attributes:
    """MED stays within the AS that it was sent to (RFC 4271 section 5.1.4); LOCAL_PREF and reflection within ours."""
    attributes = route.attributes
    return attributes._replace(
        as_path=attributes.as_path.prepend(settings.asn),
        med=attributes.med if route.source.kind is LOCAL else None,
        local_pref=None,
        originator_id=b"",
        cluster_list=(),
    )


def _to_internal(settings: ExportSettings, route: Route) -> Attributes:
    attributes = route.attributes
    local_pref = DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref
    if route.source.kind not in (INTERNAL, CLIENT):
        return attributes if attributes.local_pref == local_pref else attributes._replace(local_pref=local_pref)
    # Reflected: whom it came from, and through which clusters (RFC 4456 section 8). Written out, for it is done for
    # every route of every client: _replace takes three times as long.
    origin, path, hop, med, _, atomic, aggregator, communities, originator, clusters, large, others, partial = (
        attributes
    )
    return Attributes(
        *(origin, path, hop, med, local_pref, atomic, aggregator, communities),
        originator or route.source.identifier,
        (settings.cluster_id or settings.identifier, *clusters),
        *(large, others, partial),
    )
