"""A speaker that changes a peer's AS number, hold time, port and password without losing a route by it.

Rule: what an OPEN or a connection has said cannot change under a session that stands. Where the peer restarts
gracefully (RFC 4724) the session ends as if the connection were lost, and both sides use each other's routes until it
stands again: it begins a moment later, so that a peer which is told the same has ended it too by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bgp.message import Cease, ErrorCode, Notification
from bgp.peer import Peer, PeerConfig, session_settings
from bgp.ranges import PeerRange
from bgp.speaker import Speaker

_ANEW = ("asn", "hold_time", "passive", "transport")
"""What can change so: the peer is the same one, and its routes are."""


class Renewing(Speaker):
    """See bgp.speaker.Speaker."""

    def set_peers(self, configs: Iterable[PeerConfig], now: float, ranges: Iterable[PeerRange] = ()) -> None:
        wanted = tuple(configs)
        for config in wanted:
            peer = self.peers.get(config.name)
            if peer is None or peer.config is config or peer.config.same_session(config):
                continue
            renewed = replace(peer.config, **{name: getattr(config, name) for name in _ANEW})
            if renewed.same_session(config):
                self._renew(peer, renewed, now)
        super().set_peers(wanted, now, ranges)

    def _renew(self, peer: Peer, config: PeerConfig, now: float) -> None:
        """A session that stands and cannot be kept so is left to `set_peers`: it ends with a word, and its routes go.

        One that does not stand yet goes on with the peer that it has: what is known of it, that our own restart waits
        for it among that, is still true.
        """
        negotiated, session = peer.session.negotiated, peer.session
        graceful = negotiated is None or negotiated.received.capabilities.graceful_restart is not None
        if not (self.config.restarts and session.started and graceful):
            return
        if negotiated is not None:
            session.failed(negotiated.direction, now, "its settings have changed")
        else:
            session.stop(now, Notification(ErrorCode.CEASE, Cease.OTHER_CONFIGURATION_CHANGE))
        self._touched(peer, now)
        peer.config = config
        session.settings = session_settings(self.config, config, restarting=bool(self.deferral))
        self._offer(peer)
        if negotiated is None:
            session.start(now)
        self._touched(peer, now)
