"""One BFD session as a state machine (RFC 5880 section 6.8): times go in, packets come out.

Rule: it asks no clock and opens no socket. `receive` takes what has come, with the time at which it came; `expire`
gives the packet that is due, if one is, and declares the neighbour silent, but only as far as `heard_until`: up to
that time all that has come was given to `receive`. All of asynchronous mode is here; we ask for neither demand mode
nor echo, and answer a neighbour that asks for demand mode by sending nothing but what it polls for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from bfd.packet import Diag, Packet, State

SLOW = 1_000_000
"""Microseconds: nothing is sent more often than that until a session is Up (section 6.8.3)."""
LEAST_INTERVAL = 10_000
"""Microseconds: what we offer is never shorter."""
GAP = 0.75 * LEAST_INTERVAL / 1e6
"""Seconds between two packets at least, whatever asks for one: that interval less the jitter that it is to have
(section 6.8.7). So nobody makes us send faster."""
LONGEST_INTERVAL = 60_000_000


@dataclass(frozen=True, slots=True)
class Timing:
    """What we ask for. Intervals in microseconds. Raises ValueError."""

    min_tx: int = 300_000
    """We send no more often than that."""
    min_rx: int = 300_000
    """We take packets no more often than that."""
    multiplier: int = 3
    """So many of our packets may be missed until the neighbour takes us for gone."""

    def __post_init__(self) -> None:
        for name, value in (("min_tx", self.min_tx), ("min_rx", self.min_rx)):
            if not LEAST_INTERVAL <= value <= LONGEST_INTERVAL:
                raise ValueError(f"{name} must lie between 10 ms and 60 s, not {value / 1000:g} ms")
        if not 1 <= self.multiplier <= 255:
            raise ValueError(f"the multiplier must lie between 1 and 255, not {self.multiplier}")


@dataclass(frozen=True, slots=True)
class Resumed:
    """What is known of a session that was Up when its process died: all that it takes to go on with it."""

    mine: int
    yours: int
    multiplier: int
    desired_tx: int
    required_rx: int
    """The last three are the neighbour's."""
    port: int = 0
    """Where our packets came from, if that is known."""


class Session:
    """`mine` is our discriminator, not zero and nobody else's; `random` gives numbers from 0 to 1 for the jitter."""

    __slots__ = (
        *("mine", "timing", "state", "diag", "since", "failures", "failed_independent", "ups", "changed", "sent"),
        *("received", "heard_at", "remote_discriminator", "remote_state", "remote_diag", "remote_tx", "remote_rx"),
        *("remote_multiplier", "remote_independent", "remote_demand", "tx", "rx", "polling", "independent"),
        *("_random", "_tx_used", "_rx_used", "_settling", "_pending", "_final", "_prompt", "_sent_at", "_send_at"),
        *("_detect_at",),
    )

    def __init__(
        self, mine: int, timing: Timing, random: Callable[[], float], now: float, resumed: Resumed | None = None
    ) -> None:
        self.mine = mine
        self.timing = timing
        self.state = State.DOWN
        self.diag: int = Diag.NONE
        self.since = now
        """When the state changed last."""
        self.failures = 0
        """How often it went from Up to Down but for AdminDown on either side: what a client acts on."""
        self.failed_independent = False
        """Whether the neighbour's BFD did not share the fate of its control plane when that happened last."""
        self.ups = 0
        self.changed = True
        """Something that is worth telling has changed; whoever tells it clears this."""
        self.independent = False
        """The C bit that we send: whether we go on when our control plane does not."""
        self.sent = self.received = 0
        self.heard_at = -inf
        self.tx = max(timing.min_tx, SLOW)
        """What we say that we would send at, in microseconds (bfd.DesiredMinTxInterval)."""
        self.rx = timing.min_rx
        """What we say that we take (bfd.RequiredMinRxInterval)."""
        self.polling = False
        self._random = random
        self._tx_used = self.tx
        self._rx_used = self.rx
        self._settling = False  # a poll has ended; the next must wait for a packet without F
        self._pending = False  # there is a change of timers left, for the next poll
        self._final = False
        self._prompt = True  # the next packet is not to wait for its turn
        self._sent_at = -inf
        self._send_at = now
        self._detect_at = inf
        self._forget()
        if resumed is not None:
            self._resume(resumed, now)

    def _forget(self) -> None:
        """The neighbour is as unknown as at the start (bfd.RemoteDiscr and its like)."""
        self.remote_discriminator = 0
        self.remote_state = State.DOWN
        self.remote_diag = 0
        self.remote_tx = 0
        self.remote_rx = 1
        self.remote_multiplier = 0
        self.remote_independent = self.remote_demand = False
        self._detect_at = inf

    def _resume(self, before: Resumed, now: float) -> None:
        self.state = self.remote_state = State.UP
        self.ups = 1
        self.remote_discriminator = before.yours
        self.remote_multiplier = before.multiplier
        self.remote_tx, self.remote_rx = before.desired_tx, before.required_rx
        self.tx = self._tx_used = self.timing.min_tx
        self.polling = True  # what the neighbour believes of our timers may be older
        self.heard_at = now
        self._detect_at = now + self.detection_time

    # ------------------------------------------------------------------------------------------------ what it is

    @property
    def interval(self) -> float:
        """Seconds between our packets, before jitter (section 6.8.2)."""
        return max(self._tx_used, self.remote_rx) / 1e6

    @property
    def remote_interval(self) -> float:
        """Seconds between the neighbour's packets, as agreed on; 0 while nothing was heard."""
        return max(self._rx_used, self.remote_tx) / 1e6 if self.remote_multiplier else 0.0

    @property
    def detection_time(self) -> float:
        """Seconds of silence after which the neighbour is gone (section 6.8.4)."""
        return self.remote_multiplier * self.remote_interval

    @property
    def resumable(self) -> Resumed | None:
        """What another process would need to go on with the session; None unless it is Up."""
        if self.state is not State.UP:
            return None
        return Resumed(self.mine, self.remote_discriminator, self.remote_multiplier, self.remote_tx, self.remote_rx)

    # --------------------------------------------------------------------------------------------- the operator

    def retime(self, timing: Timing, now: float) -> None:
        """Other timers. The neighbour is told by a poll, and the session stands."""
        if timing == self.timing:
            return
        if timing.multiplier != self.timing.multiplier:
            self._say(now)
        self.timing = timing
        self.changed = True
        self._time_anew(now)

    def disable(self, now: float) -> None:
        """AdminDown: the neighbour is told that this means nothing (section 6.8.16)."""
        if self.state is not State.ADMIN_DOWN:
            self._enter(State.ADMIN_DOWN, Diag.ADMINISTRATIVELY_DOWN, now)

    def enable(self, now: float) -> None:
        if self.state is State.ADMIN_DOWN:
            self._enter(State.DOWN, Diag.NONE, now)

    def set_independent(self, independent: bool, now: float) -> None:
        """Set the C bit."""
        if independent is not self.independent:
            self.independent = independent
            self._say(now)

    def say_again(self, now: float) -> None:
        """Have the state sent once more: nobody has acknowledged AdminDown yet."""
        self._say(now)

    # ------------------------------------------------------------------------------------------------- the world

    def may_be_from(self, discriminator: int) -> bool:
        """Whether a packet that names nobody, from one with that discriminator, can be meant for this session.

        A neighbour that was started anew has another one, and is met again when its silence was found.
        """
        return self.state is not State.UP or discriminator == self.remote_discriminator

    def receive(self, packet: Packet, at: float) -> None:
        """A packet for this session that came at that time (section 6.8.6, from where the session is known)."""
        self.received += 1
        at = max(at, self.heard_at)
        self.heard_at = at
        told = (
            self.remote_discriminator,
            self.remote_state,
            self.remote_rx,
            self.remote_demand,
            self.remote_tx,
            self.remote_multiplier,
            self.remote_diag,
            self.remote_independent,
        )
        tells = (
            packet.mine,
            packet.state,
            packet.required_rx,
            packet.demand,
            packet.desired_tx,
            packet.multiplier,
            packet.diag,
            packet.independent,
        )
        if told != tells:
            (
                self.remote_discriminator,
                self.remote_state,
                self.remote_rx,
                self.remote_demand,
                self.remote_tx,
                self.remote_multiplier,
                self.remote_diag,
                self.remote_independent,
            ) = tells
            self.changed = True
            if told[:4] != tells[:4]:
                self._plan(at)
        if packet.final:
            if self.polling:
                self._poll_ended(at)
        elif self._settling:
            self._settling = False
            if self._pending:
                self._pending = False
                self._time_anew(at)
        self._detect_at = at + self.remote_multiplier * max(self._rx_used, self.remote_tx) / 1e6
        state = self.state
        if state is State.ADMIN_DOWN:
            return
        theirs = packet.state
        if state is State.UP:
            if theirs <= State.DOWN:
                self._enter(State.DOWN, Diag.NEIGHBOR_SIGNALED_DOWN, at, failed=theirs is State.DOWN)
        elif theirs is State.ADMIN_DOWN:
            if state is State.INIT:
                self._enter(State.DOWN, Diag.NEIGHBOR_SIGNALED_DOWN, at)
        elif state is State.DOWN:
            if theirs is State.DOWN:
                self._enter(State.INIT, self.diag, at)
            elif theirs is State.INIT:
                self._enter(State.UP, Diag.NONE, at)
        elif theirs >= State.INIT:
            self._enter(State.UP, Diag.NONE, at)
        if packet.poll:
            self._final = True
            self._say(at)

    def deadline(self) -> float:
        """When `expire` is to be called."""
        return self._send_at if self._send_at < self._detect_at else self._detect_at

    def expire(self, now: float, heard_until: float) -> bytes | None:
        """The packet that is due. `heard_until` is `now`, or earlier where octets are still unread."""
        if self._detect_at <= heard_until and self._detect_at <= now:
            self._silent(now)
        return self._send(now) if self._send_at <= now else None

    # ------------------------------------------------------------------------------------------------ in detail

    def _silent(self, now: float) -> None:
        """The detection time has passed without a packet."""
        if self.state >= State.INIT:
            self._enter(State.DOWN, Diag.DETECTION_TIME_EXPIRED, now, failed=self.state is State.UP)
        self._forget()
        self.polling = False
        self.changed = True
        self._plan(now)

    def _enter(self, state: State, diag: int, now: float, *, failed: bool = False) -> None:
        was, self.state, self.diag, self.since = self.state, state, diag, now
        self.changed = True
        if failed:
            self.failures += 1
            self.failed_independent = self.remote_independent
        if state is State.UP:
            self.ups += 1
        if State.UP in (was, state):
            self.polling = self._settling = self._pending = False
            self._tx_used, self._rx_used = self.tx, self.rx  # what was to wait for a poll's end
            self._time_anew(now)
        self._say(now)

    def _time_anew(self, now: float) -> None:
        """Tell what the timing asks for, by one poll at a time (section 6.8.3)."""
        up = self.state is State.UP
        tx = self.timing.min_tx if up else max(self.timing.min_tx, SLOW)
        rx = self.timing.min_rx
        if (tx, rx) == (self.tx, self.rx):
            return
        if up and (self.polling or self._settling):
            self._pending = True
            return
        self.tx, self.rx = tx, rx
        # What would make the neighbour's, or our own, detection fire too early waits for the poll's end.
        if not up or tx < self._tx_used:
            self._tx_used = tx
        if not up or rx > self._rx_used:
            self._rx_used = rx
        self.polling = self.remote_discriminator != 0
        self._timers_have_changed()
        self._say(now)

    def _poll_ended(self, now: float) -> None:
        self.polling = False
        self._settling = True
        self._tx_used, self._rx_used = self.tx, self.rx
        self._timers_have_changed()
        self._plan(now)

    def _timers_have_changed(self) -> None:
        self.changed = True
        if self._detect_at != inf:
            self._detect_at = self.heard_at + self.detection_time

    def _say(self, now: float) -> None:
        """The next packet does not wait for its turn: it would say something new."""
        self._prompt = True
        self._plan(now)

    def _plan(self, now: float) -> None:
        """After a change of what sets the pace."""
        at = self._sent_at + self._jittered() if self._periodic() else inf
        if self._prompt:
            at = min(at, self._sent_at + GAP)
        self._send_at = max(at, now)

    def _periodic(self) -> bool:
        """Whether packets go out by themselves (section 6.8.7)."""
        if not self.remote_rx:
            return False
        demand = self.remote_demand and self.state is State.UP and self.remote_state is State.UP
        return not demand or self.polling

    def _jittered(self) -> float:
        span = 0.15 if self.timing.multiplier == 1 else 0.25
        return self.interval * (0.75 + span * self._random())

    def _send(self, now: float) -> bytes:
        final = self._final
        planned = now if self._prompt else self._send_at
        self._final = self._prompt = False
        self._sent_at = now
        self.sent += 1
        if self._periodic():
            # Who was late makes up for it, as far as the jitter allows.
            self._send_at = max(planned + self._jittered(), now + 0.75 * self.interval)
        else:
            self._send_at = inf
        return Packet(
            self.state,
            self.mine,
            self.remote_discriminator,
            self.timing.multiplier,
            self.tx,
            self.rx,
            0,
            self.diag,
            self.polling and not final,
            final,
            self.independent,
        ).encode()
