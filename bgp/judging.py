"""Judging anew what peers have sent: after another policy or role, and when a prefix becomes ours or is it no longer.

Rule: nothing is asked of the peer, for Adj-RIB-In keeps what it said. A whole table is judged by and by, by `step`;
what comes meanwhile is judged by the new rules at once, and judged again does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping

from bgp.message import Attributes, Family
from bgp.message.codes import WellKnownCommunity
from bgp.peer import Peer
from bgp.rib import Rib
from bgp.route import Source


class Judging:
    """What is left to be judged. `peers` is the speaker's own table: a source that is gone from it is dropped."""

    def __init__(self, ribs: Mapping[Family, Rib], peers: Mapping[Source, Peer]) -> None:
        self._ribs = ribs
        self._peers = peers
        self._left: dict[tuple[Source, Family], list[bytes]] = {}
        self._tagged: dict[Attributes, Attributes | None] = {}
        """Attributes of stale routes, as they are with long-lived graceful restart, while a table is judged."""

    def __bool__(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._left)

    def again(self, peer: Peer, only: Family | None = None) -> None:
        """All that the peer has sent, or all of a family."""
        for family, rib in self._ribs.items():
            if only not in (None, family):
                continue
            received = rib.received(peer.source)
            if received:
                self._left[peer.source, family] = list(received)

    def step(self, most: int) -> None:
        """Judge so many paths of what is left."""
        while self._left and most > 0:
            source, family = key = next(iter(self._left))
            some, rest = self._left[key][:most], self._left[key][most:]
            most -= len(some)
            peer = self._peers.get(source)
            if peer is None or not rest:
                del self._left[key]
            else:
                self._left[key] = rest
            if peer is None:
                continue
            received = self._ribs[family].received(source)
            for path in some:
                if route := received.get(path):
                    self._judge(peer, family, path, route.received)
        if not self._left:
            self._tagged.clear()

    def own_changed(self, family: Family, prefix: bytes) -> None:
        """A prefix is ours alone, or is not any more. What peers said of it and of all inside it, at once."""
        for source, path, route in list(self._ribs[family].within(prefix)):
            if peer := self._peers.get(source):
                self._judge(peer, family, path, route.received)

    def _judge(self, peer: Peer, family: Family, path: bytes, received: Attributes) -> None:
        rib = self._ribs[family]
        before = rib.received(peer.source)[path]
        for _, judged, rejected in peer.judge(family, [path], received):
            attributes: Attributes | None = judged
            if family in peer.long_lived and rib.is_stale(peer.source, path):
                attributes = self._long_lived(judged, received)
            if attributes is None:
                rib.withdraw(peer.source, [path])
            elif (attributes, rejected) != (before.attributes, before.rejected):
                rib.replace(peer.source, path, attributes, rejected)

    def _long_lived(self, attributes: Attributes, received: Attributes) -> Attributes | None:
        """A stale route that is kept longer says so; None: it must not be kept (RFC 9494 section 4.2)."""
        if WellKnownCommunity.NO_LLGR in received.communities:
            return None
        if attributes not in self._tagged:
            self._tagged[attributes] = long_lived(attributes)
        return self._tagged[attributes]


def long_lived(attributes: Attributes) -> Attributes | None:
    """With LLGR_STALE among the communities; None for a route that must not be kept."""
    communities = attributes.communities
    if WellKnownCommunity.NO_LLGR in communities:
        return None
    if WellKnownCommunity.LLGR_STALE in communities:
        return attributes
    return attributes._replace(communities=(*communities, int(WellKnownCommunity.LLGR_STALE)))
