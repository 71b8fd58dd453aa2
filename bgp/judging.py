"""Judging anew what peers have sent: after another policy or role, and when a prefix becomes ours or is it no longer.

Rule: nothing is asked of the peer, for Adj-RIB-In keeps what it said. A whole table is judged by and by, by `step`;
what comes meanwhile is judged by the new rules at once, and judged again does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping

from bgp.message import Attributes, Family
from bgp.peer import Peer
from bgp.rib import Rib
from bgp.route import Source


class Judging:
    """What is left to be judged. `peers` is the speaker's own table: a source that is gone from it is dropped."""

    def __init__(self, ribs: Mapping[Family, Rib], peers: Mapping[Source, Peer]) -> None:
        self._ribs = ribs
        self._peers = peers
        self._left: dict[tuple[Source, Family], list[bytes]] = {}

    def __bool__(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._left)

    def again(self, peer: Peer) -> None:
        """All that the peer has sent."""
        for family, rib in self._ribs.items():
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

    def own_changed(self, family: Family, prefix: bytes) -> None:
        """A prefix is ours alone, or is not any more. What peers said of it and of all inside it, at once."""
        for source, path, route in list(self._ribs[family].within(prefix)):
            if peer := self._peers.get(source):
                self._judge(peer, family, path, route.received)

    def _judge(self, peer: Peer, family: Family, path: bytes, received: Attributes) -> None:
        rib = self._ribs[family]
        before = rib.received(peer.source)[path]
        for some, attributes, rejected in peer.judge(family, [path], received):
            if (attributes, rejected) != (before.attributes, before.rejected):
                rib.replace(peer.source, some[0], attributes, rejected)
