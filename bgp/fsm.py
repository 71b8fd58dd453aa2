"""The finite state machine of RFC 4271 section 8: what happens in each state on each event.

With the send hold timer of RFC 9687 (event 29).

Rule: everything that decides about a session's state is in TABLE; who drives it (connection.py) only carries out
actions in their order. A pair that is not in the table leaves everything as it is.

Read it beside section 8.2.2. Of the optional attributes, the machine has AllowAutomaticStart, AllowAutomaticStop
and PassiveTcpEstablishment; the delay before a new start (DampPeerOscillations) is in session.py. It has no
DelayOpen, so events 12 and 20 do not exist. Where it departs from the letter:

- A NOTIFICATION is never answered, not even in OpenSent, where event 25 stands among the errors (section 6.4).
- A bad header in Established is answered with its own error (section 6.1), where event 21 stands among "any other".
- A second OPEN on one connection is an error of the machine. Collisions, for which event 19 stands in OpenConfirm
  and Established, are between two machines (section 6.8) and found in session.py.
- Whatever leads to Idle stops the ConnectRetryTimer, event 18 in Active too, where the RFC restarts it: session.py
  plans the new start.
- ROUTE-REFRESH (RFC 2918) is treated like UPDATE.
- The SendHoldTimer runs while octets wait for TCP, since the last that it took, and not when nothing waits: with
  keepalives going out that is the timer of RFC 9687, which each message sent restarts. What it ends is not told to
  the peer, which takes nothing.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple


class State(IntEnum):
    IDLE = 1
    CONNECT = 2
    ACTIVE = 3
    OPEN_SENT = 4
    OPEN_CONFIRM = 5
    ESTABLISHED = 6


class Event(IntEnum):
    """Numbered as in section 8.1."""

    MANUAL_START = 1
    MANUAL_STOP = 2
    AUTOMATIC_START = 3
    MANUAL_START_PASSIVE = 4
    AUTOMATIC_START_PASSIVE = 5
    AUTOMATIC_STOP = 8
    CONNECT_RETRY_TIMER_EXPIRES = 9
    HOLD_TIMER_EXPIRES = 10
    KEEPALIVE_TIMER_EXPIRES = 11
    TCP_CONNECTED = 16
    TCP_ACCEPTED = 17
    TCP_FAILS = 18
    OPEN = 19
    HEADER_ERROR = 21
    OPEN_ERROR = 22
    COLLISION_DUMP = 23
    NOTIFICATION_VERSION_ERROR = 24
    NOTIFICATION = 25
    KEEPALIVE = 26
    UPDATE = 27
    UPDATE_ERROR = 28
    SEND_HOLD_TIMER_EXPIRES = 29
    """RFC 9687 section 3."""
    ROUTE_REFRESH = 100
    """Not in RFC 4271."""


class Action(Enum):
    CONNECT = "start a TCP connection to the peer"
    DROP = "drop the TCP connection, or the attempt"
    SEND_OPEN = "send OPEN"
    SEND_KEEPALIVE = "send KEEPALIVE"
    NOTIFY = "send the NOTIFICATION that belongs to the event"
    FSM_ERROR = "send NOTIFICATION finite state machine error (RFC 6608)"
    START_RETRY = "start the ConnectRetryTimer"
    STOP_RETRY = "stop the ConnectRetryTimer"
    START_LARGE_HOLD = "start the HoldTimer with a large value"
    START_HOLD = "start the HoldTimer with the negotiated value"
    START_KEEPALIVE = "start the KeepaliveTimer"
    COUNT = "add one to the ConnectRetryCounter"
    RESET_COUNT = "set the ConnectRetryCounter to zero"


class Transition(NamedTuple):
    next: State
    actions: tuple[Action, ...]


A, E, S = Action, Event, State

_OPEN = (A.STOP_RETRY, A.SEND_OPEN, A.START_LARGE_HOLD)
_FAIL = (A.STOP_RETRY, A.DROP, A.COUNT)
_NOTIFY_AND_FAIL = (A.NOTIFY, A.STOP_RETRY, A.DROP, A.COUNT)
_FSM_ERROR_AND_FAIL = (A.FSM_ERROR, A.STOP_RETRY, A.DROP, A.COUNT)


def _to_idle(actions: tuple[Action, ...], *events: Event) -> dict[Event, Transition]:
    return {event: Transition(S.IDLE, actions) for event in events}


TABLE: dict[State, dict[Event, Transition]] = {
    S.IDLE: {
        E.MANUAL_START: Transition(S.CONNECT, (A.RESET_COUNT, A.START_RETRY, A.CONNECT)),
        E.AUTOMATIC_START: Transition(S.CONNECT, (A.START_RETRY, A.CONNECT)),
        E.MANUAL_START_PASSIVE: Transition(S.ACTIVE, (A.RESET_COUNT, A.START_RETRY)),
        E.AUTOMATIC_START_PASSIVE: Transition(S.ACTIVE, (A.START_RETRY,)),
    },
    S.CONNECT: {
        E.MANUAL_STOP: Transition(S.IDLE, (A.DROP, A.RESET_COUNT, A.STOP_RETRY)),
        E.CONNECT_RETRY_TIMER_EXPIRES: Transition(S.CONNECT, (A.DROP, A.START_RETRY, A.CONNECT)),
        E.TCP_CONNECTED: Transition(S.OPEN_SENT, _OPEN),
        E.TCP_ACCEPTED: Transition(S.OPEN_SENT, _OPEN),
        **_to_idle(
            _FAIL,
            *(E.TCP_FAILS, E.AUTOMATIC_STOP, E.HOLD_TIMER_EXPIRES, E.KEEPALIVE_TIMER_EXPIRES, E.OPEN),
            *(E.HEADER_ERROR, E.OPEN_ERROR, E.COLLISION_DUMP, E.NOTIFICATION_VERSION_ERROR, E.NOTIFICATION),
            *(E.KEEPALIVE, E.UPDATE, E.UPDATE_ERROR, E.ROUTE_REFRESH),
        ),
    },
    S.ACTIVE: {
        E.MANUAL_STOP: Transition(S.IDLE, (A.DROP, A.RESET_COUNT, A.STOP_RETRY)),
        E.CONNECT_RETRY_TIMER_EXPIRES: Transition(S.CONNECT, (A.START_RETRY, A.CONNECT)),
        E.TCP_CONNECTED: Transition(S.OPEN_SENT, _OPEN),
        E.TCP_ACCEPTED: Transition(S.OPEN_SENT, _OPEN),
        **_to_idle(
            _FAIL,
            *(E.TCP_FAILS, E.AUTOMATIC_STOP, E.HOLD_TIMER_EXPIRES, E.KEEPALIVE_TIMER_EXPIRES, E.OPEN),
            *(E.HEADER_ERROR, E.OPEN_ERROR, E.COLLISION_DUMP, E.NOTIFICATION_VERSION_ERROR, E.NOTIFICATION),
            *(E.KEEPALIVE, E.UPDATE, E.UPDATE_ERROR, E.ROUTE_REFRESH),
        ),
    },
    S.OPEN_SENT: {
        E.MANUAL_STOP: Transition(S.IDLE, (A.NOTIFY, A.STOP_RETRY, A.DROP, A.RESET_COUNT)),
        E.TCP_FAILS: Transition(S.ACTIVE, (A.DROP, A.START_RETRY)),
        E.OPEN: Transition(S.OPEN_CONFIRM, (A.STOP_RETRY, A.SEND_KEEPALIVE, A.START_KEEPALIVE, A.START_HOLD)),
        E.NOTIFICATION_VERSION_ERROR: Transition(S.IDLE, (A.STOP_RETRY, A.DROP)),
        **_to_idle(
            _NOTIFY_AND_FAIL,
            *(E.AUTOMATIC_STOP, E.HOLD_TIMER_EXPIRES, E.HEADER_ERROR, E.OPEN_ERROR, E.COLLISION_DUMP),
        ),
        **_to_idle(_FAIL, E.NOTIFICATION),
        **_to_idle(
            _FSM_ERROR_AND_FAIL,
            *(E.CONNECT_RETRY_TIMER_EXPIRES, E.KEEPALIVE_TIMER_EXPIRES),
            *(E.KEEPALIVE, E.UPDATE, E.UPDATE_ERROR, E.ROUTE_REFRESH),
        ),
    },
    S.OPEN_CONFIRM: {
        E.MANUAL_STOP: Transition(S.IDLE, (A.NOTIFY, A.STOP_RETRY, A.DROP, A.RESET_COUNT)),
        E.KEEPALIVE_TIMER_EXPIRES: Transition(S.OPEN_CONFIRM, (A.SEND_KEEPALIVE, A.START_KEEPALIVE)),
        E.KEEPALIVE: Transition(S.ESTABLISHED, (A.START_HOLD,)),
        E.NOTIFICATION_VERSION_ERROR: Transition(S.IDLE, (A.STOP_RETRY, A.DROP)),
        **_to_idle(_FAIL, E.TCP_FAILS, E.NOTIFICATION),
        **_to_idle(
            _NOTIFY_AND_FAIL,
            *(E.AUTOMATIC_STOP, E.HOLD_TIMER_EXPIRES, E.HEADER_ERROR, E.OPEN_ERROR, E.COLLISION_DUMP),
        ),
        **_to_idle(
            _FSM_ERROR_AND_FAIL,
            *(E.CONNECT_RETRY_TIMER_EXPIRES, E.OPEN, E.UPDATE, E.UPDATE_ERROR, E.ROUTE_REFRESH),
        ),
    },
    S.ESTABLISHED: {
        E.MANUAL_STOP: Transition(S.IDLE, (A.NOTIFY, A.STOP_RETRY, A.DROP, A.RESET_COUNT)),
        E.KEEPALIVE_TIMER_EXPIRES: Transition(S.ESTABLISHED, (A.SEND_KEEPALIVE, A.START_KEEPALIVE)),
        E.KEEPALIVE: Transition(S.ESTABLISHED, (A.START_HOLD,)),
        E.UPDATE: Transition(S.ESTABLISHED, (A.START_HOLD,)),
        E.ROUTE_REFRESH: Transition(S.ESTABLISHED, (A.START_HOLD,)),
        **_to_idle(_FAIL, E.TCP_FAILS, E.NOTIFICATION, E.NOTIFICATION_VERSION_ERROR, E.SEND_HOLD_TIMER_EXPIRES),
        **_to_idle(
            _NOTIFY_AND_FAIL,
            *(E.AUTOMATIC_STOP, E.HOLD_TIMER_EXPIRES, E.HEADER_ERROR, E.UPDATE_ERROR, E.COLLISION_DUMP),
        ),
        **_to_idle(_FSM_ERROR_AND_FAIL, E.CONNECT_RETRY_TIMER_EXPIRES, E.OPEN, E.OPEN_ERROR),
    },
}
