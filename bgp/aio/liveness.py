"""BFD's process beside a speaker: it is told of the peers that want BFD, and what it finds ends their sessions.

Rule: BFD is not believed before the connection: a peer whose FIN or reset is here already has gone by itself, and
what came before that (or nothing: a graceful restart) says how. It is only ours to be late in reading it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable
from typing import Any

from bfd.client import Client
from bfd.orders import Status
from bgp import bfd
from bgp.speaker import Speaker

OnBfd = Callable[[str, Status, Status], None]
"""The peer's name, what was known before, and what is now."""


class Liveness:
    """`sockets` gives a peer's connections; `on_down` is called when the speaker has something to do."""

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

    def follow(self) -> None:
        """Have the sessions that the speaker's peers want, where those may have changed."""
        if self._known != self._speaker.version:
            self._known = self._speaker.version
            self.client.outlive(self._speaker.config.restart_time)
            wanted = bfd.wanted(self._speaker.peers.values())
            self.client.keep(wanted)
            for name, peer in self._speaker.peers.items():
                peer.bfd = self.client.status.get(name)

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
