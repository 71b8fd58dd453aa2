"""A speaker on real sockets: what happens to them goes into the speaker, and what it asks for is done.

Rule: nothing here decides anything about BGP, and nothing here takes long. Work comes in slices of some ten
milliseconds; between them the event loop sends what is due and serves the other tasks of its process, so keepalives
go out on time while a hundred thousand routes are processed. Who has touched the speaker calls `wake`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bgp.aio.channel import Channel
from bgp.aio.listeners import Listeners
from bgp.aio.liveness import Liveness, OnBfd
from bgp.aio.sockets import SetupError, connecting, prepare
from bgp.connection import Close, Connect, Direction, Send
from bgp.message import Family
from bgp.message.nlri import address_text, parse_address
from bgp.rib import Chosen
from bgp.route import Kind
from bgp.session import Session
from bgp.speaker import News, Speaker

_SLICE = 0.01
"""Seconds of reading before the loop has its turn again."""
_HIGH, _LOW = 1 << 20, 1 << 18
"""Octets waiting for a peer beyond which it is told nothing new, and down to which it must have read to be told."""
_SHOWN = 3
"""Peers that one complaint names."""
_REFUSALS = 64
"""Connections that are closed but still have something to say, from which on another one is refused without a word:
whoever connects again and again costs no more descriptors.
"""
_LINGERING = 1024
"""Connections at most that are closed but still have something to say; beyond that the oldest is cut off."""


@dataclass(frozen=True, slots=True)
class Listen:
    """An address of ours, 4 or 16 octets, all zero for every one of the family."""

    address: bytes
    port: int = 179


class Driver:
    """Drives one speaker in the running loop.

    `on_news` is told of sessions that come and go and of limits reached, `on_changes` of routes chosen anew, in
    batches, `on_bfd` of what BFD finds out about a peer; all are called from the loop and should be quick.
    At `bfd_path` BFD's process waits for the next driver, for our restart time, when this one stops without a word.
    """

    def __init__(
        self,
        speaker: Speaker,
        listen: Iterable[Listen] = (),
        *,
        on_news: Callable[[str, News], None] = lambda name, news: None,
        on_changes: Callable[[dict[Family, dict[bytes, Chosen]]], None] = lambda changes: None,
        on_bfd: OnBfd = lambda name, before, now: None,
        bfd_path: str = "",
    ) -> None:
        self.speaker = speaker
        self.listen = tuple(listen)
        self.refused = 0
        """Connections from addresses that are no peer's."""
        self.unsigned: dict[str, str] = {}
        """Peers and ranges that cannot connect, for the kernel does not take their key, and why."""
        self._on_news = on_news
        self._on_changes = on_changes
        self.liveness = Liveness(speaker, self.now, self._sockets, self._schedule, on_bfd, bfd_path)
        self._loop: asyncio.AbstractEventLoop
        self._listeners: Listeners
        self._channels: dict[tuple[str, Direction], Channel] = {}
        self._names: dict[Channel, tuple[str, Direction]] = {}
        self._attempts: dict[str, socket.socket] = {}
        self._lingering: dict[Channel, None] = {}
        self._ready: dict[Channel, None] = {}
        self._waits: dict[Channel, float] = {}
        """Channels with octets that the kernel does not take, and since when, as the speaker knows it."""
        self._known = -1
        """The speaker's version that the listeners know."""
        self._scheduled = False
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped: asyncio.Event | None = None

    # ---------------------------------------------------------------------------------------------- the owner's

    def now(self) -> float:
        """The speaker's time."""
        return self._loop.time()

    @property
    def started(self) -> bool:
        """Whether it runs."""
        return self._running

    def start(self) -> None:
        """Open the listening sockets and begin. Raises SetupError, and then nothing is left open.

        A peer whose key cannot be set does not keep the others from coming: `unsigned` has it.
        """
        self._loop = asyncio.get_running_loop()
        self._known = -1
        self._listeners = Listeners(self._loop, self._accepted)
        self._listeners.open((each.address, each.port) for each in self.listen)
        self._know()
        self._running = True
        self._schedule()

    def open(self, listen: Iterable[Listen]) -> None:
        """Listen on these, and nowhere else. Raises SetupError: nothing is open, or a key is missing (`wake`)."""
        self._listeners.close()
        self.listen = tuple(listen)
        self._known = -1
        self._listeners.open((each.address, each.port) for each in self.listen)
        self._know()
        self._complain()

    def wake(self) -> None:
        """Something was asked of the speaker: carry it out, soon. Raises SetupError for keys that cannot be set.

        All else is carried out even then. Before `start` and after `stop` it does nothing.
        """
        if self._running:
            self._schedule()
            self._know()
            self._complain()

    def _know(self) -> None:
        """Tell the listeners what the peers demand of them, where that may have changed or was refused."""
        if self._known == self.speaker.version and not self.unsigned:
            return
        before, self.unsigned = self.unsigned, self._listeners.know(self.speaker.peers.transports())
        self._known = self.speaker.version
        for name, problem in self.unsigned.items():
            if name in self.speaker.peers and problem != before.get(name):
                self.speaker.peers[name].session.recorder.note(problem, self.now())

    def _complain(self) -> None:
        if self.unsigned:
            some = [f"{name}: {problem}" for name, problem in self.unsigned.items()]
            more = [f"and {len(some) - _SHOWN} more"] if len(some) > _SHOWN else []
            raise SetupError("; ".join(some[:_SHOWN] + more))

    async def stop(self, text: str | None = None) -> None:
        """End all sessions and close everything.

        With words, each peer is told (RFC 9003). Without (None) nobody is: who knows graceful restart keeps our
        routes and waits for us to come back. BFD goes on meanwhile. With words it ends too, and says that it was
        meant (AdminDown), but after them: real routers end a session on AdminDown, with words of their own.
        """
        self._listeners.close()
        if text is not None:
            self.speaker.shut_down(self.now(), text)
            self._carry_out()
        for name in list(self._attempts):
            self._abandon(name)
        for key, channel in list(self._channels.items()):
            self._forget(*key)
            channel.abort()
        self._running = False
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._stopped = asyncio.Event()
        if text is None:
            await self.liveness.leave()
        else:
            await self.liveness.stop()
        if self._lingering:
            await self._stopped.wait()

    def channels(self, name: str) -> dict[Direction, Channel]:
        """A peer's open connections."""
        return {way: self._channels[name, way] for way in Direction if (name, way) in self._channels}

    def _sockets(self, name: str) -> list[socket.socket]:
        return [channel.sock for channel in self.channels(name).values()]

    # -------------------------------------------------------------------------------------------------- the loop

    def _schedule(self) -> None:
        if self._running and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        """One slice: read while there is time, then decide and tell. What is left waits for the next turn."""
        self._scheduled = False
        if not self._running:
            return
        if not self.speaker.pending:
            end = self._loop.time() + _SLICE
            while self._ready:
                channel = next(iter(self._ready))
                del self._ready[channel]
                self._read(channel)
                if self._loop.time() > end:
                    break
        self._carry_out()

    def _readable(self, channel: Channel) -> None:
        if channel in self._names:
            self._ready[channel] = None
            self._schedule()

    def _read(self, channel: Channel) -> None:
        key = self._names.get(channel)
        if key is None:
            return
        try:
            data = channel.read()
        except OSError as error:
            self._broke(*key, os.strerror(error.errno or 0).lower())
            return
        if data:
            self.speaker.receive(*key, data, self._loop.time())
        elif data is not None:
            self._broke(*key, "the peer closed the TCP connection")

    def _broke(self, name: str, way: Direction, reason: str) -> None:
        channel = self._forget(name, way)
        if channel:
            channel.abort()
        self.speaker.failed(name, way, self._loop.time(), reason)

    def _carry_out(self) -> None:
        """Do all that the speaker asks for, send it, and set the timer."""
        speaker = self.speaker
        touched: dict[Channel, None] = {}
        for name, output in speaker.take(self._loop.time()):
            if isinstance(output, Send):
                channel = self._channels.get((name, output.direction))
                if channel:
                    channel.write(output.data)
                    touched[channel] = None
            elif isinstance(output, Close):
                self._close(name, output.direction)
            elif isinstance(output, Connect):
                self._connect(name)
                self._schedule()  # it may have failed already
            else:
                self.liveness.heard(name)
                self._on_news(name, output)
        for channel in touched:
            if channel in self._names:
                channel.flush()
                if channel.waiting or channel in self._waits:
                    self._tell_waits(channel)
                if channel.waiting > _HIGH:
                    speaker.hold(self._names[channel][0])
        changes = speaker.take_changes()
        if any(changes.values()):
            self._on_changes(changes)
        self.liveness.follow()
        self._arm()
        if self._ready or speaker.pending or speaker.telling:
            self._schedule()

    def _arm(self) -> None:
        """One timer. Too early costs a look at the speaker; it is only ever set anew to be earlier."""
        deadline = self.speaker.deadline()
        if deadline is None or (self._timer and self._timer.when() <= deadline):
            return
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for channel in self._ready:
            # We are late, not the peer: what it sent lies there unread.
            self.speaker.unread(*self._names[channel], now)
        for channel in tuple(self._waits):
            channel.flush()  # the kernel may have room by now
            self._tell_waits(channel)
        self.speaker.expire(now)
        self._carry_out()

    # ------------------------------------------------------------------------------------------------ connections

    def _connect(self, name: str) -> None:
        """Begin a connection; an attempt still under way is given up."""
        self._abandon(name)
        peer = self.speaker.peers.get(name)
        if peer is None:
            return
        config = peer.config
        try:
            sock = connecting(config.address, config.transport, external=peer.source.kind is Kind.EXTERNAL)
        except SetupError as error:
            self.speaker.failed(name, Direction.OUTGOING, self._loop.time(), str(error))
            return
        self._attempts[name] = sock
        code = sock.connect_ex((address_text(config.address), config.transport.port))
        if code in (0, errno.EINPROGRESS):
            self._loop.add_writer(sock, self._attempted, name, sock)
        else:
            self._attempt_failed(name, code)

    def _attempted(self, name: str, sock: socket.socket) -> None:
        """The kernel knows how the attempt ended."""
        self._carry_out()
        if self._attempts.get(name) is not sock:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._attempt_failed(name, code)
        else:
            del self._attempts[name]
            self._loop.remove_writer(sock)
            self._open(name, Direction.OUTGOING, sock)
            self.speaker.connected(name, self._loop.time(), _local(sock))
        self._carry_out()

    def _attempt_failed(self, name: str, code: int) -> None:
        self._abandon(name)
        self.speaker.failed(
            name, Direction.OUTGOING, self._loop.time(), f"cannot connect: {os.strerror(code).lower()}"
        )

    def _abandon(self, name: str) -> None:
        sock = self._attempts.pop(name, None)
        if sock:
            self._loop.remove_writer(sock)
            sock.close()

    def _accepted(self, arrivals: list[tuple[socket.socket, str]]) -> None:
        """Peers, or others, have connected."""
        self._carry_out()  # a Close left over would be for the wrong connection
        for sock, text in arrivals:
            self._arrived(sock, parse_address(text.partition("%")[0]))
        self._carry_out()

    def _arrived(self, sock: socket.socket, address: bytes) -> None:
        now = self._loop.time()
        name = self.speaker.incoming(address, now)
        if name is not None and self.speaker.superseded(name, now):
            self._carry_out()
            name = self.speaker.incoming(address, now)  # one of a range may be none any more
        if name is None:
            self.refused += 1
            sock.close()
            return
        peer = self.speaker.peers[name]
        taken = self.speaker.accepted(name, now, _local(sock))
        try:
            prepare(sock, peer.config.transport, external=peer.source.kind is Kind.EXTERNAL)
        except OSError as error:  # it has gone again
            sock.close()
            if taken:
                self.speaker.failed(name, Direction.INCOMING, now, os.strerror(error.errno or 0).lower())
                self._carry_out()
            return
        if taken:
            self._open(name, Direction.INCOMING, sock)
        elif len(self._lingering) >= _REFUSALS:
            sock.close()
        else:
            channel = Channel(self._loop, sock, self._readable, self._progress)
            channel.write(Session.refusal())
            self._linger(channel)

    def _open(self, name: str, way: Direction, sock: socket.socket) -> None:
        channel = Channel(self._loop, sock, self._readable, self._progress)
        self._channels[name, way] = channel
        self._names[channel] = (name, way)

    def _progress(self, channel: Channel) -> None:
        """The kernel has taken something that was waiting."""
        key = self._names.get(channel)
        if key:
            self._tell_waits(channel)
        if key and channel.waiting <= _LOW:
            self.speaker.release(key[0])
            self._schedule()

    def _tell_waits(self, channel: Channel) -> None:
        """Have the speaker know since when the kernel has taken nothing of what waits (RFC 9687)."""
        since = channel.taken_at if channel.waiting else None
        if since == self._waits.get(channel):
            return
        if since is None:
            del self._waits[channel]
        else:
            self._waits[channel] = since
        self.speaker.waits(*self._names[channel], since, self._loop.time())

    def _close(self, name: str, way: Direction) -> None:
        if way is Direction.OUTGOING:
            self._abandon(name)
        channel = self._forget(name, way)
        if channel:
            self._linger(channel)

    def _linger(self, channel: Channel) -> None:
        if len(self._lingering) >= _LINGERING:
            next(iter(self._lingering)).abort()
        self._lingering[channel] = None
        channel.finish(lambda: self._gone(channel))

    def _gone(self, channel: Channel) -> None:
        self._lingering.pop(channel, None)
        if self._stopped and not self._lingering:
            self._stopped.set()

    def _forget(self, name: str, way: Direction) -> Channel | None:
        channel = self._channels.pop((name, way), None)
        if channel:
            del self._names[channel]
            self._ready.pop(channel, None)
            self._waits.pop(channel, None)
        return channel


def _local(sock: socket.socket) -> bytes:
    """Our address of a connection; empty where it has gone again."""
    try:
        return parse_address(str(sock.getsockname()[0]).partition("%")[0])
    except (OSError, ValueError):
        return b""
