"""One machine of RFC 4271 section 8 with its timers and its TCP connection: octets in, octets and messages out.

Rule: no socket and no clock. `now` is a time in seconds that never goes back; what is to be done outside is appended
to `outputs`, in order. Whoever owns the connection reads them after each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from bgp.fsm import TABLE, Action, Event, State
from bgp.message import (
    KEEPALIVE,
    AddPath,
    AttributeDecoder,
    Capabilities,
    Cease,
    ErrorCode,
    Family,
    Framer,
    MessageType,
    Notification,
    Open,
    Refresh,
    RefreshKind,
    RemoteError,
    Update,
    UpdateDecoder,
    decode_notification,
    decode_open,
    decode_route_refresh,
)
from bgp.message.codes import EXTENDED_MESSAGE_SIZE, MAX_MESSAGE_SIZE, OpenError
from bgp.recorder import Context, Recorder

LARGE_HOLD_TIME = 240.0
"""Seconds that a peer has for its OPEN (section 8.2.2)."""

LEAST_SEND_HOLD = 480.0
"""Seconds that TCP may take nothing in, or twice the hold time if that is more (RFC 9687 section 5)."""

_UNREAD = 1.0
"""Seconds within which what lies unread is read."""

_UPDATE, _ESTABLISHED = MessageType.UPDATE, State.ESTABLISHED
_ONLY_HOLD = TABLE[State.ESTABLISHED][Event.UPDATE]
assert _ONLY_HOLD == (State.ESTABLISHED, (Action.START_HOLD,))

_SHOWN_STATE_ERROR = {State.OPEN_SENT: 1, State.OPEN_CONFIRM: 2, State.ESTABLISHED: 3}


_FOR_GOOD = (Cease.MAXIMUM_PREFIXES, Cease.ADMINISTRATIVE_SHUTDOWN, Cease.PEER_DECONFIGURED, Cease.BFD_DOWN)
"""Ends after which nothing of the peer's is to stay: a Hard Reset, where there is one (RFC 8538 section 5.1). What
BFD finds broken is forwarding itself (RFC 9384 section 4).
"""

_KEPT_DOWN = (Cease.ADMINISTRATIVE_SHUTDOWN, Cease.PEER_DECONFIGURED)

_DEFAULT_CAPABILITIES = Capabilities()


class Direction(Enum):
    """Who began the TCP connection."""

    OUTGOING = "outgoing"
    INCOMING = "incoming"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a session is told. Times in seconds, identifiers of 4 octets."""

    asn: int
    identifier: bytes
    peer_asn: int | None = None
    """None takes any AS."""
    capabilities: Capabilities = _DEFAULT_CAPABILITIES
    hold_time: int = 90
    connect_retry: float = 30.0
    passive: bool = False
    """Never connect, only accept."""
    longest_idle: float = 120.0
    """The longest wait after repeated failures."""
    send_hold: float | None = None
    """How long TCP may take nothing of what we say; 0: for ever; None: as RFC 9687 says."""

    def opening(self) -> Open:
        """Our OPEN."""
        return Open(self.asn, self.hold_time, self.identifier, self.capabilities)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides have agreed on."""

    sent: Open
    received: Open
    families: tuple[Family, ...]
    as4: bool
    internal: bool
    route_refresh: bool
    hold_time: int
    keepalive: float
    direction: Direction
    several_in: frozenset[Family] = frozenset()
    """Families in which the peer may send several routes to a prefix, with identifiers (RFC 7911)."""
    several_out: frozenset[Family] = frozenset()
    """The same for us."""
    extended_next_hop: bool = False
    """IPv4 may have a next hop of IPv6 (RFC 8950)."""
    enhanced_refresh: bool = False
    """What is sent again has a beginning and an end (RFC 7313)."""
    long_lived: bool = False
    """The peer knows what long-lived stale routes are (RFC 9494)."""
    longest_out: int = MAX_MESSAGE_SIZE
    """The longest message that the peer takes (RFC 8654)."""
    notification_restart: bool = False
    """Graceful restart holds after a NOTIFICATION too, unless it is a Hard Reset (RFC 8538)."""

    @property
    def silence_keeps(self) -> bool:
        """Both sides keep routes when the connection goes, but not after a NOTIFICATION (RFC 4724 without 8538)."""
        both = (self.sent.capabilities.graceful_restart, self.received.capabilities.graceful_restart)
        return all(each and each.preserved for each in both) and not self.notification_restart


# What a connection asks of the world.


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin a TCP connection to the peer; an attempt still under way is given up."""


@dataclass(frozen=True, slots=True)
class Send:
    direction: Direction
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the TCP connection, once what was sent is on its way; or give up the attempt."""

    direction: Direction


# What a connection tells.


@dataclass(frozen=True, slots=True)
class Established:
    negotiated: Negotiated


@dataclass(frozen=True, slots=True)
class Down:
    """The machine went back to Idle (or from OpenSent to Active)."""

    direction: Direction
    was: State
    reason: str
    sent: Notification | None = None
    received: Notification | None = None
    peer_open: Open | None = None
    """The peer's OPEN, if it had come."""
    notification_restart: bool = False
    """As it was agreed on: a NOTIFICATION that is no Hard Reset is no end for graceful restart (RFC 8538)."""

    @property
    def for_good(self) -> bool:
        """Whether something was said after which the peer is not waited for."""
        said = [each for each in (self.sent, self.received) if each is not None]
        return bool(said) and (not self.notification_restart or any(each.is_hard for each in said))

    @property
    def shut_down(self) -> bool:
        """Whether the peer's operator keeps the session down: it will not come by itself."""
        said = self.received and (self.received.inside or self.received)
        return said is not None and said.code == ErrorCode.CEASE and said.subcode in _KEPT_DOWN


# And each UPDATE and ROUTE-REFRESH as it was decoded.
Output = Connect | Send | Close | Established | Down | Update | Refresh


class Connection:
    """A machine. `random` gives numbers from 0 to 1 for the jitter of section 10."""

    def __init__(
        self,
        settings: Settings,
        direction: Direction,
        outputs: list[Output],
        random: Callable[[], float],
        decoders: Callable[[bool, bool], AttributeDecoder] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.settings = settings
        self.direction = direction
        self.state = State.IDLE
        self.negotiated: Negotiated | None = None
        self.received_open: Open | None = None
        self._sent_open: Open | None = None
        self.retry_count = 0
        self.unanswered = 0
        """Attempts to connect, one after the other, that nothing has come of: neither a connection nor a refusal."""
        self._outputs = outputs
        self._random = random
        self._decoders = decoders or (lambda as4, internal: AttributeDecoder(as4=as4, internal=internal))
        self._recorder = recorder or Recorder()
        self._framer = Framer()
        self._decoder: UpdateDecoder | None = None
        self._notification = Notification(ErrorCode.CEASE)
        self._reason = ""
        self._received: Notification | None = None
        self._unexpected = 0
        self._hold_time = 0
        self._retry_at: float | None = None
        self._hold_at: float | None = None
        self._keepalive_at: float | None = None
        self._send_hold_at: float | None = None

    # -------------------------------------------------------------------------------------------- from outside

    def start(self, now: float, *, manual: bool) -> None:
        """Connect, or wait for the peer if the settings are passive or this is the incoming machine."""
        if self.settings.passive or self.direction is Direction.INCOMING:
            self._fire(Event.MANUAL_START_PASSIVE if manual else Event.AUTOMATIC_START_PASSIVE, now)
        else:
            self._fire(Event.MANUAL_START if manual else Event.AUTOMATIC_START, now)

    def change(self, settings: Settings, now: float) -> None:
        """Other settings: for the next OPEN, and at once for a ConnectRetryTimer that runs."""
        before, self.settings = self.settings, settings
        if self._retry_at is not None and before.connect_retry != settings.connect_retry:
            self._carry_out(Action.START_RETRY, now)

    def stop(self, now: float, notification: Notification, *, manual: bool = True) -> None:
        if self.negotiated and self.negotiated.notification_restart and notification.code == ErrorCode.CEASE:
            notification = notification.hard() if notification.subcode in _FOR_GOOD else notification
        self._notify_with(notification, str(notification))
        self._fire(Event.MANUAL_STOP if manual else Event.AUTOMATIC_STOP, now)

    def change_over(self, now: float, notification: Notification) -> None:
        """End, to begin anew with other settings: with a word, unless that would cost routes on both sides."""
        if self.state is State.ESTABLISHED and self.negotiated and self.negotiated.silence_keeps:
            self.failed(now, str(notification))
        else:
            self.stop(now, notification, manual=False)

    def collide(self, now: float) -> None:
        """The other connection with this peer was preferred (section 6.8)."""
        self._notify_with(
            Notification(ErrorCode.CEASE, Cease.COLLISION_RESOLUTION), "another connection was preferred"
        )
        self._fire(Event.COLLISION_DUMP, now)

    def connected(self, now: float) -> None:
        """The TCP connection stands."""
        self.unanswered = 0
        self._fire(Event.TCP_CONNECTED if self.direction is Direction.OUTGOING else Event.TCP_ACCEPTED, now)

    def failed(self, now: float, reason: str) -> None:
        """The TCP connection broke, was closed by the peer, or did not come about."""
        self._reason = reason
        self.unanswered = 0
        self._fire(Event.TCP_FAILS, now)

    def receive(self, data: bytes, now: float, on_open: Callable[[Connection], bool]) -> None:
        """Octets from the peer.

        `on_open` is asked when a good OPEN has come, before it is answered: whether this connection may live
        (section 6.8).
        """
        if self.state < State.OPEN_SENT:
            return  # late octets of a connection that is gone
        framer = self._framer
        try:
            for kind, body in framer.receive(data):
                self._message(kind, body, now, on_open)
                if self._framer is not framer:
                    return
        except RemoteError as error:
            self._refuse(error, now)

    def unread(self, now: float) -> None:
        """Octets have come that are not received yet. While they wait, nobody knows that the peer is silent."""
        if self._hold_at is not None and self._hold_at <= now:
            self._hold_at = now + _UNREAD

    def waits(self, since: float | None) -> None:
        """What we say waits: TCP has taken nothing since then; None when nothing waits."""
        period = self.settings.send_hold
        if period is None:
            period = max(LEAST_SEND_HOLD, 2 * self._hold_time)
        runs = since is not None and self.state is State.ESTABLISHED and self._hold_time and period
        self._send_hold_at = since + period if runs and since is not None else None

    def timers(self) -> dict[str, float | None]:
        """When each runs out; None where it does not run."""
        return {
            "connect_retry": self._retry_at,
            "hold": self._hold_at,
            "keepalive": self._keepalive_at,
            "send_hold": self._send_hold_at,
        }

    def deadline(self) -> float | None:
        """When `expire` is to be called next."""
        earliest = self._hold_at  # asked for after every message: no generator
        if self._keepalive_at is not None and (earliest is None or self._keepalive_at < earliest):
            earliest = self._keepalive_at
        if self._retry_at is not None and (earliest is None or self._retry_at < earliest):
            earliest = self._retry_at
        if self._send_hold_at is not None and (earliest is None or self._send_hold_at < earliest):
            earliest = self._send_hold_at
        return earliest

    def expire(self, now: float) -> None:
        """Carry out what is due."""
        if self._keepalive_at is not None and self._keepalive_at <= now:
            self._fire(Event.KEEPALIVE_TIMER_EXPIRES, now)
        if self._hold_at is not None and self._hold_at <= now:
            self._notify_with(Notification(ErrorCode.HOLD_TIMER_EXPIRED), "the hold timer expired")
            self._fire(Event.HOLD_TIMER_EXPIRES, now)
        if self._send_hold_at is not None and self._send_hold_at <= now:
            error = Notification(ErrorCode.SEND_HOLD_TIMER_EXPIRED)
            self._reason = f"{error}: the peer takes nothing of what we say"
            self._fire(Event.SEND_HOLD_TIMER_EXPIRES, now)
        if self._retry_at is not None and self._retry_at <= now:
            if self.state is State.CONNECT:
                self.unanswered += 1
                self._recorder.note("no answer to an attempt to connect", now)
            self._fire(Event.CONNECT_RETRY_TIMER_EXPIRES, now)

    # ------------------------------------------------------------------------------------------------ messages

    def _message(self, kind: int, body: bytes, now: float, on_open: Callable[[Connection], bool]) -> None:
        self._recorder.hear(kind, body, now)
        self._unexpected = kind
        if kind == _UPDATE:
            if self._decoder is None or self.state is not _ESTABLISHED:
                self._fire(Event.UPDATE, now)
                return
            update = self._decoder.decode(body)
            # What the table says for this pair, without looking it up a hundred thousand times (_ONLY_HOLD).
            self._hold_at = now + self._hold_time if self._hold_time else None
            self._outputs.append(update)
        elif kind == MessageType.KEEPALIVE:
            self._fire(Event.KEEPALIVE, now)
        elif kind == MessageType.OPEN:
            self._open(body, now, on_open)
        elif kind == MessageType.NOTIFICATION:
            notification = decode_notification(body)
            self._received = notification
            self._reason = f"the peer said: {notification}"
            version = (notification.code, notification.subcode) == (
                ErrorCode.OPEN_MESSAGE,
                OpenError.UNSUPPORTED_VERSION,
            )
            self._fire(Event.NOTIFICATION_VERSION_ERROR if version else Event.NOTIFICATION, now)
        else:
            established = self.state is State.ESTABLISHED
            self._fire(Event.ROUTE_REFRESH, now)
            negotiated = self.negotiated
            if not established or negotiated is None:
                return
            refresh = decode_route_refresh(body, enhanced=negotiated.enhanced_refresh)
            if refresh is None or refresh.family not in negotiated.families:
                return
            if refresh.kind is RefreshKind.REQUEST or negotiated.enhanced_refresh:
                self._outputs.append(refresh)

    def _open(self, body: bytes, now: float, on_open: Callable[[Connection], bool]) -> None:
        if self.state is not State.OPEN_SENT:
            self._fire(Event.OPEN, now)
            return
        received = decode_open(body)
        settings = self.settings
        if settings.peer_asn is not None and received.asn != settings.peer_asn:
            raise _open_error(OpenError.BAD_PEER_AS, f"AS {received.asn} instead of {settings.peer_asn}")
        if received.asn == settings.asn and received.identifier == settings.identifier:
            raise _open_error(OpenError.BAD_BGP_IDENTIFIER, "the peer has our own identifier")
        assert self._sent_open is not None
        self.received_open = received
        self.negotiated = negotiated = _negotiate(settings, self._sent_open, received, self.direction)
        self._hold_time = negotiated.hold_time
        attributes = self._decoders(negotiated.as4, negotiated.internal)
        self._decoder = UpdateDecoder(
            negotiated.families,
            attributes,
            identified=negotiated.several_in,
            extended=negotiated.extended_next_hop,
        )
        if on_open(self):
            self._fire(Event.OPEN, now)

    def _refuse(self, error: RemoteError, now: float) -> None:
        self._notify_with(Notification.answering(error), f"the peer is wrong: {error}")
        events = {ErrorCode.OPEN_MESSAGE: Event.OPEN_ERROR, ErrorCode.UPDATE_MESSAGE: Event.UPDATE_ERROR}
        self._fire(events.get(ErrorCode(error.code), Event.HEADER_ERROR), now)

    # ----------------------------------------------------------------------------------------------- the machine

    def _notify_with(self, notification: Notification, reason: str) -> None:
        self._notification = notification
        self._reason = reason

    def _fire(self, event: Event, now: float) -> None:
        transition = TABLE[self.state].get(event)
        if transition is None:
            return
        was = self.state
        sent: Notification | None = None
        for action in transition.actions:
            if action is Action.START_HOLD:
                self._hold_at = now + self._hold_time if self._hold_time else None
            elif action is Action.FSM_ERROR or action is Action.NOTIFY:
                sent = self._fsm_error(was) if action is Action.FSM_ERROR else self._notification
                self._say(sent.encode(), now)
            else:
                self._carry_out(action, now)
        self.state = transition.next
        if transition.next is State.ESTABLISHED and was is not State.ESTABLISHED:
            assert self.negotiated is not None
            self.retry_count = 0
            negotiated = self.negotiated
            self._recorder.context = Context(
                negotiated.families,
                negotiated.as4,
                negotiated.internal,
                negotiated.several_in,
                negotiated.several_out,
                negotiated.extended_next_hop,
            )
            self._recorder.note(f"established, {self.direction.value}", now)
            self._outputs.append(Established(negotiated))
        elif transition.next is State.IDLE or (transition.next is State.ACTIVE and was is State.OPEN_SENT):
            keeps = self.negotiated is not None and self.negotiated.notification_restart
            self._outputs.append(
                Down(self.direction, was, self._reason, sent, self._received, self.received_open, keeps)
            )
            if was is not State.ACTIVE:  # who only waited has nothing to tell
                self._recorder.note(f"down in {was.name}, {self.direction.value}: {self._reason}", now)
            self._forget()

    def _carry_out(self, action: Action, now: float) -> None:
        if action is Action.CONNECT:
            self._outputs.append(Connect())
        elif action is Action.DROP:
            self._outputs.append(Close(self.direction))
            self._hold_at = self._keepalive_at = self._send_hold_at = None
        elif action is Action.SEND_OPEN:
            if self.settings.capabilities.extended_messages:
                self._framer.most = EXTENDED_MESSAGE_SIZE
            self._sent_open = self.settings.opening()
            self._say(self._sent_open.encode(), now)
        elif action is Action.SEND_KEEPALIVE:
            self._say(KEEPALIVE, now)
        elif action is Action.START_RETRY:
            # A machine that does not connect has nothing to retry.
            if self.direction is Direction.OUTGOING and not self.settings.passive:
                self._retry_at = now + self._jittered(self.settings.connect_retry)
        elif action is Action.STOP_RETRY:
            self._retry_at = None
        elif action is Action.START_LARGE_HOLD:
            self._hold_at = now + LARGE_HOLD_TIME
        elif action is Action.START_KEEPALIVE:
            period = self.negotiated.keepalive if self.negotiated else 0
            self._keepalive_at = now + self._jittered(period) if period else None
        elif action is Action.COUNT:
            self.retry_count += 1
        elif action is Action.RESET_COUNT:
            self.retry_count = 0

    def _say(self, message: bytes, now: float) -> None:
        self._recorder.say(message, 1, now)
        self._outputs.append(Send(self.direction, message))

    def _fsm_error(self, state: State) -> Notification:
        """RFC 6608: the state is the subcode, the type of the message the data."""
        subcode = _SHOWN_STATE_ERROR.get(state, 0)
        data = bytes((self._unexpected,)) if self._unexpected else b""
        name = MessageType(self._unexpected).name if self._unexpected else "a timer"
        self._reason = f"{name} is not expected in {state.name}"
        return Notification(ErrorCode.FINITE_STATE_MACHINE, subcode, data)

    def _forget(self) -> None:
        """Nothing of a connection that is gone may reach the next one."""
        self._framer = Framer()
        self._decoder = None
        self.negotiated = None
        self.received_open = self._sent_open = None
        self._received = None
        self._unexpected = 0
        self._reason = ""
        self._notification = Notification(ErrorCode.CEASE)

    def _jittered(self, period: float) -> float:
        """Section 10: between three quarters and the whole."""
        return period * (0.75 + 0.25 * self._random())


def _negotiate(settings: Settings, sent: Open, received: Open, direction: Direction) -> Negotiated:
    ours, theirs = sent.capabilities, received.capabilities
    hold_time = min(sent.hold_time, received.hold_time)
    families = tuple(family for family in ours.families if family in theirs.families)
    return Negotiated(
        sent,
        received,
        families,
        ours.as4 and theirs.as4,
        received.asn == settings.asn,
        ours.route_refresh and theirs.route_refresh,
        hold_time,
        hold_time / 3,
        direction,
        _several(families, theirs, ours),
        _several(families, ours, theirs),
        ours.extended_next_hop and theirs.extended_next_hop and Family.IPV4 in families,
        ours.enhanced_refresh and theirs.enhanced_refresh,
        theirs.graceful_restart is not None and theirs.long_lived is not None,
        EXTENDED_MESSAGE_SIZE if ours.extended_messages and theirs.extended_messages else MAX_MESSAGE_SIZE,
        all(each and each.notification for each in (ours.graceful_restart, theirs.graceful_restart)),
    )


def _several(families: Iterable[Family], sender: Capabilities, receiver: Capabilities) -> frozenset[Family]:
    """The families in which one side sends several routes to a prefix, and the other takes them."""
    sent, taken = dict(sender.add_path), dict(receiver.add_path)
    none = AddPath(0)
    return frozenset(
        family
        for family in families
        if AddPath.SEND in sent.get(family, none) and AddPath.RECEIVE in taken.get(family, none)
    )


def _open_error(subcode: OpenError, reason: str) -> RemoteError:
    return RemoteError(ErrorCode.OPEN_MESSAGE, subcode, b"", reason)
