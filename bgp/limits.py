"""How many prefixes a peer may give: the warning, and the end of its session.

Rule: what is stale does not count, it is on its way out: a peer that has restarted, or sends all again, may tell of
it in another way (RFC 7911 gives it other identifiers). But with it a peer has twice its limit at most: one that
never says that it has told all gathers no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from bgp.message import Family
from bgp.peer import Peer
from bgp.rib import Rib


@dataclass(frozen=True, slots=True)
class PrefixLimit:
    """A peer has given this many prefixes: a warning, or the end of its session."""

    family: Family
    prefixes: int
    limit: int
    ended: bool


def reached_limit(peer: Peer, rib: Rib) -> PrefixLimit | None:
    """What a peer has come to in that family, once: it is noted in the peer."""
    limit = peer.config.most_prefixes
    if limit is None or peer.limited:
        return None
    held = len(rib.received(peer.source))
    count = held if held > 2 * limit else held - rib.stale(peer.source)
    if count > limit:
        peer.limited = True
        return PrefixLimit(rib.family, count, limit, True)
    if count > limit * peer.config.warn_at and rib.family not in peer.warned:
        peer.warned.add(rib.family)
        return PrefixLimit(rib.family, count, limit, False)
    return None
