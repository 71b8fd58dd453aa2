"""A session with one peer: up to two connections while it comes up, one when it stands (RFC 4271 section 6.8).

Rule: of two connections the one begun by the side with the higher identifier lives, and one that is Established
always does. A session that was started keeps trying: after a failure it waits, longer each time, with jitter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bgp.connection import Close, Connection, Direction, Down, Established, Negotiated, Output, Send, Settings
from bgp.fsm import State
from bgp.message import AttributeDecoder, Capabilities, Cease, ErrorCode, LocalError, Notification
from bgp.recorder import Recorder

_FIRST_IDLE = 1.0
"""Seconds before the first new start after a session broke; doubled with each failure."""


class Session:
    """Fed with what happens to the peer's TCP connections; `take()` gives what is to be done and what came of it.

    `random` gives numbers from 0 to 1 and is where all jitter comes from. `decoders` gives the decoder of attributes
    for (as4, internal); sessions that share them share the parsed attributes. Raises LocalError for settings that
    do not fit an OPEN.
    """

    def __init__(
        self,
        settings: Settings,
        random: Callable[[], float],
        decoders: Callable[[bool, bool], AttributeDecoder] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        settings.opening().encode()
        self.settings = settings
        self.started = False
        self.last_down: Down | None = None
        """How the last connection ended that had come as far as an OPEN."""
        self.last_failure: Down | None = None
        """The same of any attempt: the latest news of a session that does not come up."""
        self._outputs: list[Output] = []
        self._seen = 0  # how many of the outputs _after has looked at
        self._random = random
        self.recorder = recorder or Recorder()
        self._connections = {
            direction: Connection(settings, direction, self._outputs, random, decoders, self.recorder)
            for direction in Direction
        }
        self._outgoing = self._connections[Direction.OUTGOING]
        self._incoming = self._connections[Direction.INCOMING]
        self._start_at: float | None = None
        self._failures = 0

    @property
    def state(self) -> State:
        """That of the connection that has come furthest; an attempt to connect counts for more than waiting."""
        furthest = max(self._outgoing.state, self._incoming.state)
        return self._outgoing.state if furthest is State.ACTIVE and self._outgoing.state > State.IDLE else furthest

    @property
    def negotiated(self) -> Negotiated | None:
        """What was agreed on, while the session stands."""
        for connection in self._connections.values():
            if connection.state is State.ESTABLISHED:
                return connection.negotiated
        return None

    @property
    def unanswered(self) -> int:
        """Attempts to connect, one after the other, to which nothing came back."""
        return self._outgoing.unanswered

    def timers(self) -> dict[str, float | None]:
        """When each timer runs out: that of the connection that has come furthest, and of the next start."""
        furthest = max(self._connections.values(), key=lambda connection: connection.state)
        return {**furthest.timers(), "start": self._start_at}

    def take(self) -> list[Output]:
        """What came up since the last call, in order: Connect, Send and Close are to be done, the rest is news."""
        outputs = self._outputs[:]
        self._outputs.clear()
        self._seen = 0
        return outputs

    # -------------------------------------------------------------------------------------------- the operator

    def start(self, now: float) -> None:
        """Keep a session with the peer from now on."""
        if self.started:
            return
        self.started = True
        self._failures = 0
        self._incoming.start(now, manual=True)
        if not self.settings.passive:
            self._outgoing.start(now, manual=True)

    def stop(self, now: float, notification: Notification | None = None) -> None:
        """End the session and stay down."""
        self.started = False
        self._start_at = None
        for connection in self._connections.values():
            connection.stop(now, notification or Notification.shutdown())
        self._after(now)

    def reset(self, now: float, notification: Notification | None = None) -> None:
        """End the session with the NOTIFICATION (administrative reset without one) and try again after a moment."""
        self._begin_anew(now)
        for connection in self._connections.values():
            if connection.state >= State.OPEN_SENT:
                connection.stop(now, notification or Notification.shutdown(reset=True), manual=False)
        self._after(now)

    def send(self, data: bytes) -> None:
        """Whole messages to the peer. Raises LocalError unless the session stands."""
        for connection in self._connections.values():
            if connection.state is State.ESTABLISHED:
                self._outputs.append(Send(connection.direction, data))
                return
        raise LocalError(f"the session is {self.state.name}, not ESTABLISHED")

    def change(self, settings: Settings, now: float) -> None:
        """Other settings, for the next OPEN and the next attempt; a session that stands goes on with what it has.

        Raises LocalError for what does not fit an OPEN.
        """
        settings.opening().encode()
        self.settings = settings
        for connection in self._connections.values():
            connection.change(settings, now)

    def renew(self, settings: Settings, notification: Notification, now: float) -> None:
        """End what there is, attempts too, and begin anew with other settings, once the peer has heard of it."""
        self.change(settings, now)
        self._begin_anew(now)
        for connection in self._connections.values():
            connection.change_over(now, notification)
        self._after(now)

    def _begin_anew(self, now: float) -> None:
        if self.started:
            self._failures = 0
            self._start_at = self._idle_until(now)

    def change_capabilities(self, capabilities: Capabilities) -> None:
        """What the next OPEN says."""
        self.change(replace(self.settings, capabilities=capabilities), 0.0)  # no timer is concerned

    # ------------------------------------------------------------------------------------------------- the world

    def connected(self, now: float) -> None:
        """The connection that Connect asked for stands."""
        if self._outgoing.state is State.CONNECT:
            self._outgoing.connected(now)
        else:
            self._outputs.append(Close(Direction.OUTGOING))

    def accepted(self, now: float) -> bool:
        """The peer has connected. False: the caller is to close that connection (`refusal` says how), not ours."""
        if not self.started or self.state is State.ESTABLISHED or self._incoming.state is not State.ACTIVE:
            return False
        self._incoming.connected(now)
        return True

    @staticmethod
    def refusal() -> bytes:
        """What to send before an accepted connection that is not wanted is closed (RFC 4486)."""
        return Notification(ErrorCode.CEASE, Cease.CONNECTION_REJECTED).encode()

    def failed(self, direction: Direction, now: float, reason: str = "the TCP connection was closed") -> None:
        """A TCP connection broke, was closed by the peer, or did not come about."""
        self._connections[direction].failed(now, reason)
        self._after(now)

    def receive(self, direction: Direction, data: bytes, now: float) -> None:
        """Octets of a connection."""
        self._connections[direction].receive(data, now, lambda connection: self._survives(connection, now))
        self._after(now)

    def unread(self, direction: Direction, now: float) -> None:
        """Octets have come on a connection and wait to be received."""
        self._connections[direction].unread(now)

    def waits(self, direction: Direction, since: float | None) -> None:
        """What was sent on a connection waits: TCP has taken nothing since then; None when nothing waits."""
        self._connections[direction].waits(since)

    def deadline(self) -> float | None:
        """When `expire` is to be called; None while nothing is awaited."""
        deadlines = (self._outgoing.deadline(), self._incoming.deadline(), self._start_at)
        return min((at for at in deadlines if at is not None), default=None)

    def expire(self, now: float) -> None:
        """Carry out what is due. Calling it early does nothing."""
        for connection in self._connections.values():
            connection.expire(now)
        if self._start_at is not None and self._start_at <= now:
            self._start_at = None
            if self._outgoing.state < State.OPEN_SENT and self._incoming.state is State.IDLE:
                self._incoming.start(now, manual=False)
            alone = self._incoming.state < State.OPEN_SENT
            if alone and self._outgoing.state is State.IDLE and not self.settings.passive:
                self._outgoing.start(now, manual=False)
        self._after(now)

    # ------------------------------------------------------------------------------------------------- collisions

    def _survives(self, connection: Connection, now: float) -> bool:
        """An OPEN has come on `connection`: which of the two lives. The loser is ended here.

        Section 6.8 has the other one in OpenConfirm, and in OpenSent where the peer's identifier is known by other
        means, as it is now from this OPEN. Deciding already then spares what would go wrong otherwise: one side has
        this connection Established, and ends the other, while the far side still chooses the other and ends this.
        """
        other = self._incoming if connection is self._outgoing else self._outgoing
        if other.state < State.OPEN_SENT:
            return True
        loser = connection
        if other.state is not State.ESTABLISHED and connection.direction is self._preferred(connection):
            loser = other
        loser.collide(now)
        return loser is other

    def _preferred(self, connection: Connection) -> Direction:
        """The connection begun by the higher identifier; by the higher AS where they are equal (RFC 6286)."""
        assert connection.received_open is not None
        ours = (self.settings.identifier, self.settings.asn)
        theirs = (connection.received_open.identifier, connection.received_open.asn)
        return Direction.OUTGOING if ours > theirs else Direction.INCOMING

    def _after(self, now: float) -> None:
        """What each event may leave to do: end the other connection, or plan a new start."""
        standing = self.state is State.ESTABLISHED
        for output in self._outputs[self._seen :]:
            if isinstance(output, Established):
                self._failures = 0
                self._start_at = None
                other = self._incoming if output.negotiated.direction is Direction.OUTGOING else self._outgoing
                other.collide(now)
            elif isinstance(output, Down) and not standing:
                self.last_failure = output
                if output.was >= State.OPEN_SENT:
                    self.last_down = output
                self._retry(output, now)
        self._seen = len(self._outputs)

    def _retry(self, down: Down, now: float) -> None:
        """A connection has ended. Wait for the peer at once, unless we ended it; start anew after a while."""
        if not self.started:
            return
        if down.sent is None and self._incoming.state is State.IDLE and self._outgoing.state < State.OPEN_SENT:
            self._incoming.start(now, manual=False)
        if self._start_at is None:
            self._start_at = self._idle_until(now)

    def _idle_until(self, now: float) -> float:
        self._failures += 1
        longest: float = min(_FIRST_IDLE * 2 ** min(self._failures - 1, 16), self.settings.longest_idle)
        return now + longest * (0.5 + 0.5 * self._random())
