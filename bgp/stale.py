"""What becomes of a peer's routes when its session goes and comes: the receiver of RFC 4724 section 4.2.

Rule: a peer that goes away without a word keeps its routes, marked stale, until its restart time is over; back again,
it must announce them anew before its End-of-RIB, and has `stale_time` for it. What it has not by then, goes. Where
both sides have RFC 8538, a NOTIFICATION is as good as none, whoever sends it, unless it is a Hard Reset.
"""

from __future__ import annotations

from collections.abc import Mapping

from bgp.connection import Down, Negotiated
from bgp.message import Family
from bgp.peer import Peer
from bgp.rib import Rib


class Stale:
    """The routes of peers that are away, or are back and not complete yet; Peer.restart_ends is their time."""

    def __init__(self, ribs: Mapping[Family, Rib]) -> None:
        self._ribs = ribs

    def came_up(self, peer: Peer, negotiated: Negotiated, now: float) -> None:
        """The session stands."""
        restart = negotiated.received.capabilities.graceful_restart
        kept = {family for family, preserved in restart.preserved if preserved} if restart else set()
        for family, rib in self._ribs.items():
            if family not in kept:
                rib.sweep(peer.source)  # it has not gone on forwarding: what is stale is wrong
        peer.restart_ends = now + peer.speaker.stale_time if peer.restart_ends is not None and kept else None

    def went_down(self, peer: Peer, down: Down, now: float) -> None:
        """A session that stood does not any more."""
        restart = down.peer_open.capabilities.graceful_restart if down.peer_open else None
        if not (restart and not down.for_good and peer.speaker.restart_time and peer.session.started):
            self.forget(peer)
            return
        kept = {family for family, _ in restart.preserved}
        for family, rib in self._ribs.items():
            if family in kept:
                rib.sweep(peer.source)  # what is stale from the last time is not kept twice
                rib.mark_stale(peer.source)
            else:
                rib.remove(peer.source)
        peer.restart_ends = now + restart.restart_time

    def over(self, peer: Peer) -> None:
        """Away too long, or back and too slow."""
        peer.restart_ends = None
        for rib in self._ribs.values():
            rib.sweep(peer.source)

    def forget(self, peer: Peer) -> None:
        """All its routes, at once."""
        peer.restart_ends = None
        for rib in self._ribs.values():
            rib.remove(peer.source)
