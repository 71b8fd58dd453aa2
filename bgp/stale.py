"""What becomes of a peer's routes when its session goes and comes: the receiver of RFC 4724 section 4.2.

Rule: a peer that goes away without a word keeps its routes, marked stale, until its restart time is over; back again,
it must announce them anew before its End-of-RIB, and has `stale_time` for it. What it has not by then, goes. Where
both sides have RFC 8538, a NOTIFICATION is as good as none, whoever sends it, unless it is a Hard Reset.

A peer that sends all again with enhanced refresh (RFC 7313) has its routes marked stale in the same way from BoRR to
EoRR, while its session stands: they are used as before, and what it has not sent by then, goes.
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
                if family not in peer.refreshing:
                    rib.sweep(peer.source)  # what is stale from the last time is not kept twice
                rib.mark_stale(peer.source)
            else:
                rib.remove(peer.source)
        peer.refreshing.clear()
        peer.restart_ends = now + restart.restart_time

    def over(self, peer: Peer) -> None:
        """Away too long, or back and too slow."""
        peer.restart_ends = None
        for family, rib in self._ribs.items():
            if family not in peer.refreshing:
                rib.sweep(peer.source)

    def forget(self, peer: Peer) -> None:
        """All its routes, at once."""
        peer.restart_ends = None
        peer.refreshing.clear()
        for rib in self._ribs.values():
            rib.remove(peer.source)

    # --------------------------------------------------------------------------------------------- time

    @staticmethod
    def deadline(peer: Peer) -> float | None:
        """When something of it is over."""
        ends = list(peer.refreshing.values())
        if peer.restart_ends is not None:
            ends.append(peer.restart_ends)
        return min(ends, default=None)

    def expire(self, peer: Peer, now: float) -> None:
        """A refresh that takes too long is over (RFC 7313 section 4)."""
        for family, ends in list(peer.refreshing.items()):
            if ends <= now:
                self.refresh_ends(peer, family)

    # ------------------------------------------------------------------------------------ enhanced refresh

    def refresh_begins(self, peer: Peer, family: Family, now: float) -> None:
        """All of a family is sent again; a second time, all over again."""
        self._ribs[family].mark_stale(peer.source)
        peer.refreshing[family] = now + peer.speaker.stale_time

    def refresh_ends(self, peer: Peer, family: Family) -> None:
        """What was not sent is gone. The end of what has not begun says nothing."""
        if peer.refreshing.pop(family, None) is not None:
            self._ribs[family].sweep(peer.source)
