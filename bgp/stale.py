"""What becomes of a peer's routes when its session goes and comes: the receiver of RFC 4724 section 4.2.

Rule: a peer that goes away without a word keeps its routes, marked stale, until its restart time is over; back again,
it must announce them anew before its End-of-RIB, and has `stale_time` for it. What it has not by then, goes. Where
both sides have RFC 8538, a NOTIFICATION is as good as none, whoever sends it, unless it is a Hard Reset.

When the restart time is over and the peer asked for more (RFC 9494), its routes stay as the last choice, with the
community LLGR_STALE (judging.py puts it there), for the time that it asked for and we allow. That time begins once:
a peer that comes and goes without its End-of-RIB gets no new one.

A peer that sends all again with enhanced refresh (RFC 7313) has its routes marked stale in the same way from BoRR to
EoRR, while its session stands: they are used as before, and what it has not sent by then, goes.
"""

from __future__ import annotations

from collections.abc import Mapping

from bgp.connection import Down, Negotiated
from bgp.judging import Judging
from bgp.message import Family
from bgp.peer import Peer
from bgp.rib import Rib


class Stale:
    """The routes of peers that are away, or are back and not complete yet.

    The times are the peer's: `restart_ends`, `long_lived` and `refreshing`.
    """

    def __init__(self, ribs: Mapping[Family, Rib], judging: Judging) -> None:
        self._ribs = ribs
        self._judging = judging

    # ---------------------------------------------------------------------------------- sessions that come and go

    def came_up(self, peer: Peer, negotiated: Negotiated, now: float) -> None:
        """The session stands."""
        offered = negotiated.received.capabilities
        restart, long_lived = offered.graceful_restart, offered.long_lived
        kept = {family for family, preserved in restart.preserved if preserved} if restart else set()
        kept_long = {family for family, preserved, _ in long_lived.families if preserved} if long_lived else set()
        ends = now + peer.speaker.stale_time
        for family, rib in self._ribs.items():
            if family in peer.long_lived and restart and family in kept_long:
                peer.long_lived[family] = min(peer.long_lived[family], ends)
            elif family in peer.long_lived or family not in kept:
                peer.long_lived.pop(family, None)
                rib.sweep(peer.source)  # it has not gone on forwarding: what is stale is wrong
        peer.restart_ends = ends if peer.restart_ends is not None and kept else None

    def went_down(self, peer: Peer, down: Down, now: float) -> None:
        """A session that stood does not any more."""
        offered = down.peer_open.capabilities if down.peer_open else None
        restart = offered.graceful_restart if offered else None
        if not (offered and restart and not down.for_good and peer.speaker.restarts and peer.session.started):
            self.forget(peer)
            return
        kept = {family for family, _ in restart.preserved}
        asked = {family: time for family, _, time in offered.long_lived.families} if offered.long_lived else {}
        for family, rib in self._ribs.items():
            peer.keeps[family] = min(asked.get(family, 0), peer.speaker.long_lived_most)
            if family in kept or peer.keeps[family]:
                if family not in peer.refreshing and family not in peer.long_lived:
                    rib.sweep(peer.source)  # what is stale from the last time is not kept twice
                rib.mark_stale(peer.source)
            else:
                rib.remove(peer.source)
            if family not in kept and peer.keeps[family]:
                self._keep_long(peer, family, now)
        peer.refreshing.clear()
        peer.restart_ends = now + restart.restart_time if kept else None

    def over(self, peer: Peer, now: float) -> None:
        """Away too long, or back and too slow."""
        peer.restart_ends = None
        away = peer.session.negotiated is None
        for family in self._ribs:
            if away and peer.keeps.get(family):
                self._keep_long(peer, family, now)
            elif family not in peer.refreshing and family not in peer.long_lived:
                self._sweep(peer, family)

    def complete(self, peer: Peer, family: Family) -> None:
        """End-of-RIB has come."""
        if family not in peer.refreshing:
            self._sweep(peer, family)
        if not any(rib.stale(peer.source) for rib in self._ribs.values()):
            peer.restart_ends = None

    def forget(self, peer: Peer) -> None:
        """All its routes, at once."""
        peer.restart_ends = None
        peer.refreshing.clear()
        peer.long_lived.clear()
        for rib in self._ribs.values():
            rib.remove(peer.source)

    def _keep_long(self, peer: Peer, family: Family, now: float) -> None:
        if self._ribs[family].stale(peer.source):
            peer.long_lived.setdefault(family, now + peer.keeps[family])
            self._judging.again(peer, family)

    def _sweep(self, peer: Peer, family: Family) -> None:
        peer.long_lived.pop(family, None)
        self._ribs[family].sweep(peer.source)

    # ------------------------------------------------------------------------------------------------------ time

    @staticmethod
    def deadline(peer: Peer) -> float | None:
        """When something of it is over."""
        if peer.restart_ends is None and not peer.refreshing and not peer.long_lived:
            return None  # asked for after every message
        ends = [*peer.refreshing.values(), *peer.long_lived.values()]
        if peer.restart_ends is not None:
            ends.append(peer.restart_ends)
        return min(ends)

    def expire(self, peer: Peer, now: float) -> None:
        """Carry out what is due."""
        if peer.restart_ends is not None and peer.restart_ends <= now:
            self.over(peer, now)
        for family, ends in list(peer.long_lived.items()):
            if ends <= now:
                self._sweep(peer, family)
        for family, ends in list(peer.refreshing.items()):
            if ends <= now:
                self.refresh_ends(peer, family)  # RFC 7313 section 4 leaves how long to us

    # ------------------------------------------------------------------------------------------ enhanced refresh

    def refresh_begins(self, peer: Peer, family: Family, now: float) -> None:
        """All of a family is sent again; a second time, all over again."""
        self._ribs[family].mark_stale(peer.source)
        peer.refreshing[family] = now + peer.speaker.stale_time

    def refresh_ends(self, peer: Peer, family: Family) -> None:
        """What was not sent is gone. The end of what has not begun says nothing."""
        if peer.refreshing.pop(family, None) is not None:
            self._ribs[family].sweep(peer.source)
