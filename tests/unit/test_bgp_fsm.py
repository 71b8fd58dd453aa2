"""The session's machine held against RFC 4271 section 8.2.2 and RFC 9687, and sessions joined in memory."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from bgp.connection import Close, Connect, Direction, Down, Established, Send, Settings
from bgp.fsm import TABLE, Action, Event, State
from bgp.message import (
    KEEPALIVE,
    Capabilities,
    Family,
    LocalError,
    Notification,
    Open,
    decode_notification,
    encode_end_of_rib,
    encode_route_refresh,
)
from bgp.session import Session
from tests.support.bgp import Network, OneSession

# Section 8.2.2 as a table: the next state, by event number. "." leaves the state, and with it everything, as it is.
# 29 is of RFC 9687, R is ROUTE-REFRESH of RFC 2918. Idle, Connect, Active, OpenSent, openConfirm, Established.
RFC = """
event   I  C  A  S  O  E
  1     C  .  .  .  .  .
  2     .  I  I  I  I  I
  3     C  .  .  .  .  .
  4     A  .  .  .  .  .
  5     A  .  .  .  .  .
  8     .  I  I  I  I  I
  9     .  C  C  I  I  I
 10     .  I  I  I  I  I
 11     .  I  I  I  O  E
 16     .  S  S  .  .  .
 17     .  S  S  .  .  .
 18     .  I  I  A  I  I
 19     .  I  I  O  I  I
 21     .  I  I  I  I  I
 22     .  I  I  I  I  I
 23     .  I  I  I  I  I
 24     .  I  I  I  I  I
 25     .  I  I  I  I  I
 26     .  I  I  I  E  E
 27     .  I  I  I  I  E
 28     .  I  I  I  I  I
 29     .  .  .  .  .  I
  R     .  I  I  I  I  E
"""
LETTERS = dict(zip("ICASOE", State, strict=True))


def rows() -> list[tuple[State, Event, State | None]]:
    head, *lines = [line.split() for line in RFC.strip().splitlines()]
    return [
        (LETTERS[column], Event(100 if name == "R" else int(name)), LETTERS.get(cell))
        for name, *cells in lines
        for column, cell in zip(head[1:], cells, strict=True)
    ]


@pytest.mark.parametrize(("state", "event", "following"), rows())
def test_every_transition_is_the_rfcs(state: State, event: Event, following: State | None) -> None:
    transition = TABLE[state].get(event)
    assert (transition.next if transition else None) == following


def test_no_transition_is_missing_from_the_test() -> None:
    assert {(state, event) for state, event, following in rows() if following} == {
        (state, event) for state, events in TABLE.items() for event in events
    }


def test_what_leads_to_idle_drops_the_connection_and_says_why_where_the_rfc_does() -> None:
    silent = {
        Event.TCP_FAILS,
        Event.NOTIFICATION,
        Event.NOTIFICATION_VERSION_ERROR,
        Event.SEND_HOLD_TIMER_EXPIRES,
    }
    for state, events in TABLE.items():
        for event, transition in events.items():
            if transition.next is not State.IDLE:
                continue
            assert Action.DROP in transition.actions
            assert Action.STOP_RETRY in transition.actions
            says = {Action.NOTIFY, Action.FSM_ERROR} & set(transition.actions)
            assert bool(says) == (state >= State.OPEN_SENT and event not in silent), (state, event)
            if says:
                assert transition.actions.index(says.pop()) < transition.actions.index(Action.DROP)


# ------------------------------------------------------------------------------------- one session by hand


def half() -> float:
    return 0.5


OURS = Settings(65001, b"\x0a\0\0\1", 65002, Capabilities(tuple(Family)), hold_time=90)
PEER = Open(65002, 30, b"\x0a\0\0\2", Capabilities(tuple(Family)))
OUT = Direction.OUTGOING
IN = Direction.INCOMING


def sent(session: Session) -> list[bytes]:
    return [output.data for output in session.take() if isinstance(output, Send)]


def notification(session: Session) -> Notification:
    (data,) = [data for data in sent(session) if data[18] == 3]
    return decode_notification(data[19:])


def in_state(state: State) -> Session:
    """A session whose outgoing connection has come to `state`, and nothing left to take."""
    session = Session(OURS, half)
    session.start(0)
    assert session.take() == [Connect()]
    if state >= State.OPEN_SENT:
        session.connected(0)
    if state >= State.OPEN_CONFIRM:
        session.receive(OUT, PEER.encode(), 0)
    if state >= State.ESTABLISHED:
        session.receive(OUT, KEEPALIVE, 0)
    assert session.state is state
    session.take()
    return session


def test_a_session_comes_up() -> None:
    session = Session(OURS, half)
    session.start(0)
    session.connected(0)
    session.receive(OUT, PEER.encode(), 0)
    assert sent(session) == [Open(65001, 90, b"\x0a\0\0\1", OURS.capabilities).encode(), KEEPALIVE]
    session.receive(OUT, KEEPALIVE, 0)
    outputs = session.take()
    (news,) = [output for output in outputs if isinstance(output, Established)]
    agreed = news.negotiated
    assert (agreed.hold_time, agreed.keepalive, agreed.families) == (30, 10, tuple(Family))
    assert (agreed.as4, agreed.internal, agreed.route_refresh) == (True, False, True)
    assert session.negotiated == agreed


def test_keepalives_come_every_third_of_the_hold_time_with_jitter() -> None:
    session = in_state(State.ESTABLISHED)
    assert session.deadline() == 10 * 0.875
    session.expire(8.75)
    assert sent(session) == [KEEPALIVE]
    assert session.deadline() == 8.75 + 8.75


def test_a_silent_peer_is_given_up_when_the_hold_time_is_over() -> None:
    session = in_state(State.ESTABLISHED)
    session.receive(OUT, KEEPALIVE, 20)
    session.expire(49.9)
    assert session.state is State.ESTABLISHED
    sent(session)
    session.expire(50)
    assert notification(session) == Notification(4)
    assert session.last_down is not None
    assert session.last_down.reason == "the hold timer expired"


def test_without_a_hold_time_there_are_no_timers() -> None:
    session = in_state(State.OPEN_SENT)
    session.receive(OUT, Open(65002, 0, b"\x0a\0\0\2").encode(), 0)
    session.receive(OUT, KEEPALIVE, 0)
    assert session.state is State.ESTABLISHED
    assert session.deadline() is None


@pytest.mark.parametrize(
    ("state", "data", "wanted"),
    [
        (State.OPEN_SENT, KEEPALIVE, Notification(5, 1, b"\4")),
        (State.OPEN_SENT, encode_end_of_rib(Family.IPV4), Notification(5, 1, b"\2")),
        (State.OPEN_SENT, bytes(19), Notification(1, 1)),
        (State.OPEN_SENT, Open(65003, 30, b"\x0a\0\0\2").encode(), Notification(2, 2)),
        (State.OPEN_CONFIRM, PEER.encode(), Notification(5, 2, b"\1")),
        (State.OPEN_CONFIRM, encode_end_of_rib(Family.IPV4), Notification(5, 2, b"\2")),
        (State.OPEN_CONFIRM, encode_route_refresh(Family.IPV4), Notification(5, 2, b"\5")),
        (State.ESTABLISHED, PEER.encode(), Notification(5, 3, b"\1")),
        (State.ESTABLISHED, KEEPALIVE[:18] + b"\x09", Notification(1, 3, b"\x09")),
        (State.ESTABLISHED, KEEPALIVE[:17] + b"\x17\x02\0\5\0\0", Notification(3, 1)),
    ],
)
def test_what_is_wrong_is_answered(state: State, data: bytes, wanted: Notification) -> None:
    session = in_state(state)
    session.receive(OUT, data, 1)
    assert notification(session) == wanted
    assert session.state < State.OPEN_SENT
    assert session.last_down is not None
    assert session.last_down.reason


@pytest.mark.parametrize("state", [State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED])
def test_a_notification_is_never_answered(state: State) -> None:
    session = in_state(state)
    session.receive(OUT, Notification.shutdown("night").encode() + bytes(40), 1)
    assert sent(session) == []
    assert session.last_down is not None
    assert session.last_down.received == Notification.shutdown("night")
    assert "night" in session.last_down.reason


def test_our_own_identifier_is_refused_within_the_as() -> None:
    session = Session(Settings(65001, b"\x0a\0\0\1", 65001), half)
    session.start(0)
    session.connected(0)
    session.take()
    session.receive(OUT, Open(65001, 90, b"\x0a\0\0\1").encode(), 0)
    assert notification(session) == Notification(2, 3)


def test_a_stop_says_why_and_stays_down() -> None:
    session = in_state(State.ESTABLISHED)
    session.stop(1, Notification.shutdown("moved"))
    outputs = session.take()
    assert Send(OUT, Notification.shutdown("moved").encode()) in outputs
    assert outputs.index(Send(OUT, Notification.shutdown("moved").encode())) < outputs.index(Close(OUT))
    assert session.deadline() is None
    assert not session.accepted(2)


def test_a_failed_attempt_is_made_again_later_each_time() -> None:
    session = in_state(State.CONNECT)
    now, waits = 0.0, []
    for _ in range(12):
        session.failed(OUT, now, "refused")
        deadline = session.deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        session.expire(now)
        assert Connect() in session.take()
    assert waits[:4] == [0.75, 1.5, 3, 6]
    assert waits[-1] == 90  # three quarters of the longest wait


def test_an_attempt_without_an_answer_is_made_again_when_the_retry_timer_expires() -> None:
    session = in_state(State.CONNECT)
    assert session.deadline() == 30 * 0.875
    session.expire(30 * 0.875)
    assert session.take() == [Close(OUT), Connect()]


def test_a_passive_session_never_connects() -> None:
    session = Session(Settings(65001, b"\x0a\0\0\1", passive=True), half)
    session.start(0)
    assert session.take() == []
    assert session.deadline() is None
    assert session.accepted(1)
    session.failed(IN, 2)
    assert session.accepted(3)  # at once: the failure was not ours
    session.receive(IN, bytes(19), 4)
    assert not session.accepted(4)  # this one was ended by us
    deadline = session.deadline()
    assert deadline is not None
    session.expire(deadline)
    assert session.accepted(deadline)
    assert Connect() not in session.take()


@pytest.mark.parametrize(("peer_identifier", "kept"), [(b"\x09\0\0\1", OUT), (b"\x0b\0\0\1", IN)])
@pytest.mark.parametrize("first", [OUT, IN])
def test_of_two_connections_the_higher_identifiers_lives(
    peer_identifier: bytes, kept: Direction, first: Direction
) -> None:
    session = in_state(State.OPEN_SENT)
    assert session.accepted(0)
    sent(session)
    for direction in (first, IN if first is OUT else OUT):
        session.receive(direction, Open(65002, 30, peer_identifier).encode(), 0)
    outputs = session.take()
    loser = IN if kept is OUT else OUT
    assert Send(loser, Notification(6, 7).encode()) in outputs
    assert Close(loser) in outputs
    assert Close(kept) not in outputs
    session.receive(kept, KEEPALIVE, 0)
    assert session.negotiated is not None
    assert session.negotiated.direction is kept


def test_a_session_that_stands_refuses_another_connection() -> None:
    session = in_state(State.ESTABLISHED)
    assert not session.accepted(1)
    assert session.refusal()[18:] == b"\x03\x06\x05"


def test_only_a_session_that_stands_takes_messages() -> None:
    with pytest.raises(LocalError, match="OPEN_SENT"):
        in_state(State.OPEN_SENT).send(KEEPALIVE)


def test_settings_that_fit_no_open_are_refused_at_once() -> None:
    with pytest.raises(LocalError, match="hold time 2"):
        Session(Settings(65001, b"\x0a\0\0\1", hold_time=2), half)


def test_octets_of_a_connection_that_is_gone_are_dropped() -> None:
    session = in_state(State.ESTABLISHED)
    session.failed(OUT, 1)
    session.take()
    session.receive(OUT, KEEPALIVE + bytes(100), 1)
    assert session.take() == []


def test_messages_are_counted() -> None:
    session = in_state(State.ESTABLISHED)
    session.receive(OUT, KEEPALIVE + KEEPALIVE, 1)
    recorder = session.recorder
    assert recorder.received == [0, 1, 0, 0, 3, 0]
    assert recorder.sent == [0, 1, 0, 0, 1, 0]


# ---------------------------------------------------------------------------------------- two in a network


def pair(seed: int, **latency: tuple[float, float]) -> tuple[Network, Session, Session]:
    network = Network(seed, **latency)
    random = Random(seed).random
    one = Session(Settings(65001, b"\x0a\0\0\1", 65001, hold_time=9), random)
    two = Session(Settings(65001, b"\x0a\0\0\2", 65001, hold_time=9), random)
    network.add("one", OneSession(one, "two"))
    network.add("two", OneSession(two, "one"))
    return network, one, two


def both_up(one: Session, two: Session) -> bool:
    if one.negotiated is None or two.negotiated is None:
        return False
    return one.negotiated.direction is not two.negotiated.direction


@pytest.mark.parametrize("seed", range(30))
def test_two_sides_that_connect_at_once_end_with_one_connection(seed: int) -> None:
    network, one, two = pair(seed)
    one.start(network.now)
    two.start(network.now)
    assert network.run(10, lambda: both_up(one, two)), (one.last_down, two.last_down)
    network.run(60)
    assert both_up(one, two)
    # What is sent on one connection may overtake what was sent earlier on the other. Then each side may end the one
    # that the other side has kept, and one more attempt is needed; never two.
    assert 1 <= len(network.events("one", Established)) <= 2
    assert 1 <= len(network.events("two", Established)) <= 2


@pytest.mark.parametrize("seed", range(10))
def test_a_reset_and_a_cut_link_are_survived(seed: int) -> None:
    network, one, two = pair(seed)
    one.start(network.now)
    two.start(network.now)
    assert network.run(10, lambda: both_up(one, two))
    network.break_connections("one", "two")
    assert network.run(10, lambda: both_up(one, two))

    network.cut.add(frozenset(("one", "two")))
    assert network.run(9.1, lambda: one.negotiated is None and two.negotiated is None)
    assert {down.reason for down in (one.last_down, two.last_down) if down} <= {"the hold timer expired"}
    network.run(100)
    network.cut.clear()
    assert network.run(150, lambda: both_up(one, two))


def test_a_peer_that_was_away_is_found_again() -> None:
    network, one, two = pair(1)
    one.start(network.now)
    network.remove("two")
    network.run(600)
    assert one.state < State.OPEN_SENT
    network.add("two", OneSession(two, "one"))
    two.start(network.now)
    assert network.run(5, lambda: both_up(one, two))
    two.stop(network.now, Notification.shutdown("gone for good"))
    assert network.run(1, lambda: one.negotiated is None)
    assert isinstance(one.last_down, Down)
    assert "gone for good" in one.last_down.reason


# ------------------------------------------------------------------------------------ send hold timer (RFC 9687)


@pytest.mark.parametrize(("hold", "allowed"), [(30, 480), (300, 600)])
def test_a_peer_that_takes_nothing_is_given_up_after_eight_minutes_or_twice_the_hold_time(
    hold: int, allowed: int
) -> None:
    session = Session(replace(OURS, hold_time=hold), half)
    session.start(0)
    session.connected(0)
    session.receive(OUT, replace(PEER, hold_time=hold).encode() + KEEPALIVE, 0)
    session.waits(OUT, 5.0)
    assert session.timers()["send_hold"] == 5 + allowed
    while (at := session.deadline()) is not None and at < 5 + allowed:
        session.receive(OUT, KEEPALIVE, at)  # it speaks all the time
        session.expire(at)
    session.take()
    session.expire(5 + allowed)
    assert session.negotiated is None
    outputs = session.take()
    assert Close(OUT) in outputs
    assert not any(isinstance(output, Send) for output in outputs)  # nobody would read it
    assert session.last_down is not None
    assert session.last_down.reason == "send hold timer expired (8/0): the peer takes nothing of what we say"
    assert session.timers()["send_hold"] is None


def test_whatever_tcp_takes_starts_the_send_hold_timer_anew() -> None:
    session = in_state(State.ESTABLISHED)
    session.waits(OUT, 0.0)
    session.waits(OUT, 100.0)
    assert session.timers()["send_hold"] == 580
    session.waits(OUT, None)
    assert session.timers()["send_hold"] is None


def test_the_send_hold_timer_has_its_own_setting_and_runs_only_where_the_hold_timer_does() -> None:
    session = Session(replace(OURS, send_hold=100.0), half)
    session.start(0)
    session.connected(0)
    session.waits(OUT, 0.0)
    assert session.timers()["send_hold"] is None  # the RFC has it in Established
    session.receive(OUT, PEER.encode() + KEEPALIVE, 0)
    session.waits(OUT, 0.0)
    assert session.timers()["send_hold"] == 100
    for settings, peer in (
        (replace(OURS, send_hold=0), PEER),
        (OURS, replace(PEER, hold_time=0)),
    ):
        session = Session(settings, half)
        session.start(0)
        session.connected(0)
        session.receive(OUT, peer.encode() + KEEPALIVE, 0)
        session.waits(OUT, 0.0)
        assert session.timers()["send_hold"] is None
