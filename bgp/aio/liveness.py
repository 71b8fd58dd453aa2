"""BFD's process beside a speaker: it is told of the peers that want BFD, and what it finds ends their sessions.

Rule: BFD is not believed before the connection: a peer whose FIN or reset is here already has gone by itself, and
what came before that (or nothing: a graceful restart) says how. It is only ours to be late in reading it.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from bfd.client import Client
from bfd.orders import Status
from bgp import bfd
from bgp.peer import Peer
from bgp.speaker import Speaker

OnBfd = Callable[[str, Status, Status], None]
"""The peer's name, what was known before, and what is now."""


class Liveness:
    """`sockets` gives a peer's connections; `on_down` is called when there is something to do."""

    def __init__(
        self,
        speaker: Speaker,
        now: Callable[[], float],
        sockets: Callable[[str], Iterable[socket.socket]],
        on_down: Callable[[], None],
        on_change: OnBfd,
        path: str = "",
    ) -> None:
        self.client = Client(self._changed, path)
        self._speaker = speaker
        self._now = now
        self._sockets = sockets
        self._on_down = on_down
        self._on_change = on_change
        self._known = -1
        self._touched: dict[str, None] = {}

    def heard(self, name: str) -> None:
        """The peer's session has come up or gone down."""
        self._touched[name] = None

    def follow(self) -> None:
        """Have the BFD sessions that the peers want, where that may have changed."""
        peers = self._speaker.peers
        names: Iterable[str] = self._touched
        if self._known != self._speaker.version:
            self._known = self._speaker.version
            self.client.outlive(self._speaker.config.restart_time)
            names = {**self._touched, **dict.fromkeys(self.client.status), **dict.fromkeys(peers)}
        for name in names:
            self._follow(name, peers.get(name))
        self._touched.clear()

    def _follow(self, name: str, peer: Peer | None) -> None:
        now = self._now()
        wanted = bfd.wanted(peer, now) if peer is not None else None
        if wanted is not None:
            assert peer is not None
            self.client.set(name, wanted, peer.bfd)
            peer.bfd = self.client.status[name]
            if peer.session.negotiated is None and (left := bfd.kept_until(peer) - now) < inf:
                asyncio.get_running_loop().call_later(left, self._look_again, name)
        elif name in self.client.status:
            self.client.unset(name)
            if peer is not None:
                peer.bfd = bfd.ended(peer.bfd)

    def _look_again(self, name: str) -> None:
        self.heard(name)
        self._on_down()

    def view(self) -> dict[str, Any]:
        """How its process fares: empty while there is none. Times in milliseconds."""
        health, pid = self.client.health, self.client.pid
        if pid is None:
            return {}
        return {
            "pid": pid,
            "scheduling": health.scheduling,
            "sessions": len(self.client.status),
            "up": sum(status.up for status in self.client.status.values()),
            "latest": round(1000 * health.latest, 1),
            "slowdown": health.slowdown,
            "restarts": self.client.restarts,
            "dropped": health.dropped,
        }

    async def stop(self) -> None:
        """The end: every neighbour is told AdminDown."""
        await self.client.stop()

    async def leave(self) -> None:
        """A restart: BFD goes on without us, where it can, and our peers have nothing to notice but BGP's."""
        await self.client.leave()

    def _changed(self, name: str, before: Status, now: Status) -> None:
        peer = self._speaker.peers.get(name)
        if peer is None:
            return
        peer.bfd = now
        if now.failures > before.failures:
            independent = now.failed_independent
            if independent or not any(map(_closing, self._sockets(name))):
                self._speaker.bfd_down(name, self._now(), _why(now), independent=independent)
            self._touched[name] = None
            self._on_down()
        elif before.up and not now.up:
            self._touched[name] = None
            self._on_down()
        self._on_change(name, before, now)


def _why(status: Status) -> str:
    """As far as it is still known: it may be up again."""
    return status.diag if not status.up else "it was down for a moment"


def _closing(sock: socket.socket) -> bool:
    """Whether the peer has closed or reset the connection, even if there is something to read before that."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
