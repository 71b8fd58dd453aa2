"""What an operator asks of a speaker, as values that are JSON as they stand: peers, routes, what was sent and why.

Rule: nothing here changes anything. Times are seconds from now, `since` back and timers ahead; addresses and prefixes
are text. Tables come piece by piece, so that whoever writes them out can let others have their turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from bgp import bfd
from bgp.connection import Negotiated
from bgp.decision import why
from bgp.fsm import State
from bgp.message import AddPath, Family, LocalError, MessageType, nlri
from bgp.message.attributes import describe
from bgp.message.codes import MAX_MESSAGE_SIZE, WellKnownCommunity
from bgp.peer import Peer
from bgp.policy import PrefixRange
from bgp.rib import Rib
from bgp.route import Kind, Route
from bgp.silence import why_down
from bgp.speaker import Speaker

_COUNTED = tuple((kind.name.lower(), kind.value) for kind in MessageType)


class NoPrefix(LocalError):
    """What was asked for is neither a prefix nor an address."""


def family_name(family: Family) -> str:
    return family.name.lower()


def summary(speaker: Speaker) -> dict[str, Any]:
    """The speaker itself."""
    config = speaker.config
    peers = list(speaker.peers.values())
    return {
        "asn": config.asn,
        "router_id": nlri.address_text(config.identifier),
        "cluster_id": nlri.address_text(config.cluster_id or config.identifier),
        "peers": len(peers),
        "established": sum(peer.session.negotiated is not None for peer in peers),
        "routes": {family_name(family): len(rib.chosen) for family, rib in speaker.ribs.items()},
        "awaited": {family_name(family): names for family, names in speaker.deferral.awaited().items()},
        "ranges": [
            {
                "name": each.name,
                "prefix": nlri.text(each.family, each.prefix),
                "peers": sum(peer.within is not None and peer.within.name == each.name for peer in peers),
                "limit": each.limit,
            }
            for each in speaker.peers.ranges
        ],
    }


# ------------------------------------------------------------------------------------------------------- peers


def peers(speaker: Speaker, now: float, name: str = "") -> Iterator[dict[str, Any]]:
    """All peers in the order of their addresses, or one. Raises LocalError."""
    some = [find(speaker, name)] if name else list(speaker.peers.values())
    best: dict[Family, Counter[str]] = {
        family: Counter(routes[0].source.name for routes in rib.chosen.values())
        for family, rib in speaker.ribs.items()
    }
    for peer in sorted(some, key=lambda peer: (len(peer.config.address), peer.config.address)):
        yield _peer(speaker, peer, now, best)


def find(speaker: Speaker, name: str) -> Peer:
    """A peer by name or address. Raises LocalError."""
    if name in speaker.peers:
        return speaker.peers[name]
    for peer in speaker.peers.values():
        if nlri.address_text(peer.config.address) == name:
            return peer
    known = ", ".join(sorted(speaker.peers)[:10]) or "none"
    raise LocalError(f"there is no peer {name!r}; there are: {known}")


def _peer(speaker: Speaker, peer: Peer, now: float, best: dict[Family, Counter[str]]) -> dict[str, Any]:
    session, config, recorder = peer.session, peer.config, peer.session.recorder
    negotiated = session.negotiated
    timers = session.timers()
    dropped = speaker.dropped().since(peer.dropped_before)
    shown: dict[str, Any] = {
        "name": peer.name,
        "address": nlri.address_text(config.address),
        "asn": peer.source.asn or None,
        "kind": peer.source.kind.value,
        "range": peer.within.name if peer.within else None,
        "state": session.state.name.lower(),
        "admin": "up" if session.started else "down",
        "since": round(now - peer.since, 1),
        "router_id": nlri.address_text(peer.source.identifier) if any(peer.source.identifier) else None,
        "direction": negotiated.direction.value if negotiated else None,
        "hold_time": negotiated.hold_time if negotiated else config.hold_time,
        "timers": {name: round(at - now, 1) for name, at in timers.items() if at is not None},
        "last_received": _ago(recorder.last_received, now),
        "flaps": peer.flaps,
        "why_down": why_down(peer, dropped) if negotiated is None else None,
        "unanswered": session.unanswered or None,
        "dropped_here": dropped._asdict() if negotiated is None and any(dropped) else None,
        "last_down": session.last_down.reason if session.last_down else None,
        "next_retry": _next_retry(timers, now) if session.started and session.state < State.OPEN_SENT else None,
        "bfd": bfd.view(config, peer.bfd, now),
        "restart_ends": round(peer.restart_ends - now, 1) if peer.restart_ends is not None else None,
        "long_lived_ends": {family_name(family): round(at - now, 1) for family, at in peer.long_lived.items()}
        or None,
        "refresh_ends": {family_name(family): round(at - now, 1) for family, at in peer.refreshing.items()} or None,
        "held": speaker.advertising.is_held(peer.source),
        "capabilities": {
            "sent": negotiated.sent.capabilities.describe(),
            "received": negotiated.received.capabilities.describe(),
        }
        if negotiated
        else None,
        **(_agreed(negotiated) if negotiated else {}),
        "messages": {
            "received": {name: recorder.received[kind] for name, kind in _COUNTED},
            "sent": {name: recorder.sent[kind] for name, kind in _COUNTED},
        },
        "malformed": peer.malformed,
        "faults": {str(fault): count for fault, count in peer.faults.items()},
        "prefixes": {
            family_name(family): _prefixes(speaker, peer, rib, best) for family, rib in speaker.ribs.items()
        },
    }
    return {name: value for name, value in shown.items() if value is not None}


def _agreed(negotiated: Negotiated) -> dict[str, Any]:
    """What this session has beyond BGP-4: families with several routes to a prefix, next hops of IPv6."""
    ways = {
        family: (AddPath.RECEIVE if family in negotiated.several_in else AddPath(0))
        | (AddPath.SEND if family in negotiated.several_out else AddPath(0))
        for family in negotiated.families
    }
    return {
        "add_path": {family_name(family): way.describe() for family, way in ways.items() if way} or None,
        "extended_next_hop": negotiated.extended_next_hop or None,
        "longest_message": negotiated.longest_out if negotiated.longest_out > MAX_MESSAGE_SIZE else None,
    }


def _prefixes(speaker: Speaker, peer: Peer, rib: Rib, best: dict[Family, Counter[str]]) -> dict[str, int]:
    received = rib.received(peer.source)
    group = speaker.advertising.group_of(peer.source)
    return {
        "received": len(received),
        "accepted": sum(not route.rejected for route in received.values()),
        "best": best[rib.family][peer.name],
        "stale": rib.stale(peer.source),
        "long_lived_stale": rib.stale(peer.source) if rib.family in peer.long_lived else 0,
        "advertised": group.count(rib.family, peer.source) if group else 0,
    }


def _next_retry(timers: dict[str, float | None], now: float) -> float | None:
    due = [at for name in ("start", "connect_retry") if (at := timers[name]) is not None]
    return round(max(min(due) - now, 0.0), 1) if due else None


def _ago(at: float | None, now: float) -> float | None:
    return None if at is None else round(now - at, 1)


# ------------------------------------------------------------------------------------------------------- routes


def routes(speaker: Speaker, wanted: str = "", *, more_specific: bool = False) -> Iterator[dict[str, Any]]:
    """Loc-RIB: each prefix with every route to it, the best first, and why it is.

    `wanted` is a prefix, or an address, for which the longest prefix that holds it is given. Raises NoPrefix.
    """
    for family, prefix in _asked_for(speaker, wanted, more_specific):
        rib = speaker.ribs[family]
        candidates = rib.candidates(prefix)
        if not candidates:
            continue
        chosen = rib.chosen.get(prefix, ())
        others = [route for route in candidates if route not in chosen]
        yield {
            "prefix": nlri.text(family, prefix),
            "family": family_name(family),
            "routes": [
                _candidate(rib, prefix, route, chosen, position) for position, route in enumerate((*chosen, *others))
            ],
            "advertised_to": _advertised_to(speaker, family, prefix),
        }


def _asked_for(speaker: Speaker, wanted: str, more_specific: bool) -> list[tuple[Family, bytes]]:
    if not wanted:
        return [(family, prefix) for family, rib in speaker.ribs.items() for prefix in list(rib.prefixes())]
    try:
        if "/" in wanted:
            family, prefix = nlri.parse(wanted)
        else:
            address = nlri.parse_address(wanted)
            family = Family.IPV4 if len(address) == 4 else Family.IPV6
            return _longest(speaker.ribs[family], address) if family in speaker.ribs else []
    except ValueError as error:
        raise NoPrefix(str(error)) from None
    if family not in speaker.ribs:
        return []
    if not more_specific:
        return [(family, prefix)]
    inside = PrefixRange(family, prefix, prefix[0], 32 if family is Family.IPV4 else 128)
    return [(family, each) for each in list(speaker.ribs[family].prefixes()) if inside.matches(family, each)]


def _longest(rib: Rib, address: bytes) -> list[tuple[Family, bytes]]:
    for bits in range(8 * len(address), -1, -1):
        prefix = nlri.split(rib.family, bytes((bits,)) + address[: (bits + 7) // 8])[0]
        if rib.candidates(prefix):
            return [(rib.family, prefix)]
    return []


def _candidate(rib: Rib, prefix: bytes, route: Route, chosen: tuple[Route, ...], position: int) -> dict[str, Any]:
    best = chosen[0] if chosen else None
    if best is None:
        reason = route.rejected or "the next hop cannot be reached"
    elif route is best:
        rest = [other for other in rib.candidates(prefix) if other not in chosen]
        reason = why(best, rest[0], rib.metric) if len(rest) == 1 else "the only one" if not rest else "best of all"
    elif route in chosen:
        reason = "as good as the best, by another way"
    else:
        reason = route.rejected or f"the best has: {why(best, route, rib.metric)}"
    return {
        "from": route.source.name,
        **_identifier(route.identifier),
        "kind": route.source.kind.value,
        "best": route is best,
        "used": route in chosen,
        "stale": rib.is_stale(route.source, prefix + route.identifier),
        "long_lived_stale": WellKnownCommunity.LLGR_STALE in route.attributes.communities,
        "why": reason,
        **_attributes(rib, route),
    }


def _identifier(identifier: bytes) -> dict[str, Any]:
    """By which the sender tells its routes to a prefix apart; nothing where it does not."""
    return {"path_id": nlri.identifier_number(identifier)} if identifier else {}


def _attributes(rib: Rib, route: Route) -> dict[str, Any]:
    metric = 0 if route.source.kind is Kind.LOCAL else rib.metric(route.attributes.next_hop)
    return {**describe(route.attributes), "metric": metric}


def _advertised_to(speaker: Speaker, family: Family, prefix: bytes) -> list[str]:
    found = []
    for name, peer in speaker.peers.items():
        group = speaker.advertising.group_of(peer.source)
        if group is not None and group.has_told(family, prefix, peer.source):
            found.append(name)
    return found


def received(speaker: Speaker, name: str) -> Iterator[dict[str, Any]]:
    """Adj-RIB-In of a peer: what it has said, what policy made of it, and why it is not used where it is not."""
    peer = find(speaker, name)
    for family, rib in speaker.ribs.items():
        for path, route in list(rib.received(peer.source).items()):
            chosen = rib.chosen.get(nlri.prefix_of(family, path), ())
            shown = {
                "prefix": nlri.text(family, path),
                **_identifier(route.identifier),
                "accepted": not route.rejected,
                "best": bool(chosen) and chosen[0] is route,
                "stale": rib.is_stale(peer.source, path),
                "long_lived_stale": WellKnownCommunity.LLGR_STALE in route.attributes.communities,
                "used": route in chosen,
                **describe(route.received),
            }
            if route.rejected:
                shown["rejected"] = route.rejected
            elif route.attributes is not route.received:
                shown["after_policy"] = describe(route.attributes)
            yield shown


def advertised(speaker: Speaker, name: str) -> Iterator[dict[str, Any]]:
    """Adj-RIB-Out of a peer."""
    peer = find(speaker, name)
    group = speaker.advertising.group_of(peer.source)
    if group is None:
        return
    for family in group.settings.families:
        for path, attributes in list(group.advertised(family, peer.source)):
            identifier = _identifier(nlri.cut(family, path)[1])
            yield {"prefix": nlri.text(family, path), **identifier, **describe(attributes)}


def log(speaker: Speaker, name: str, now: float) -> list[dict[str, Any]]:
    """A peer's flight recorder, the oldest entry first."""
    return find(speaker, name).session.recorder.entries(now)
