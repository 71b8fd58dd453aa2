"""Many sessions: whose packet it is, who leaves and how, who is adopted, and what happens when there are too many."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from bfd.packet import Packet, State, decode_packet
from bfd.session import Resumed, Timing
from bfd.sessions import MOST_PACKETS, Place, Sessions
from tests.support.bfd import FAR, FAST, NEAR, Two

THIRD = bytes((10, 0, 0, 3))


def packet(state: State = State.DOWN, mine: int = 7, yours: int = 0, **fields: Any) -> bytes:
    return Packet(state, mine, yours, 3, 100_000, 100_000, **fields).encode()


@pytest.fixture
def sessions() -> Sessions:
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR), FAST, 0.0)
    made.set(2, Place(THIRD, multihop=True, least_ttl=250), FAST, 0.0)
    return made


def hear(made: Sessions, octets: bytes, source: bytes = FAR, ttl: int = 255, *, multihop: bool = False) -> str:
    """Why it was dropped; empty where it was not."""
    before = dict(made.dropped)
    made.receive(octets, source, ttl, 1.0, multihop=multihop)
    return next((reason for reason, count in made.dropped.items() if count != before.get(reason, 0)), "")


def test_who_names_nobody_is_told_by_the_address(sessions: Sessions) -> None:
    assert hear(sessions, packet()) == ""
    assert sessions.members[1].session.state is State.INIT
    assert sessions.members[2].session.state is State.DOWN
    assert hear(sessions, packet(), bytes(4)) == "of no neighbour"
    assert hear(sessions, packet(), FAR, multihop=True) == "of no neighbour"


def test_a_discriminator_is_enough(sessions: Sessions) -> None:
    mine = sessions.members[1].session.mine
    assert hear(sessions, packet(State.INIT, yours=mine), bytes((192, 0, 2, 1))) == ""
    assert sessions.members[1].session.state is State.UP
    assert hear(sessions, packet(State.INIT, yours=mine + 1)) == "of no session"
    assert hear(sessions, packet(State.INIT, yours=mine), multihop=True) == "on the other port"


def test_ttl(sessions: Sessions) -> None:
    """RFC 5881 section 5: 255 on the link; over hops what was asked for."""
    assert hear(sessions, packet(), ttl=254) == "its TTL is too low"
    assert hear(sessions, packet(), THIRD, 249, multihop=True) == "its TTL is too low"
    assert hear(sessions, packet(), THIRD, 250, multihop=True) == ""


def test_rubbish_is_counted(sessions: Sessions) -> None:
    assert hear(sessions, b"rubbish") == "too short"
    assert hear(sessions, packet()[:1] + b"\x04" + packet()[2:3] + b"\x1a" + packet()[4:] + b"\0\0") == (
        "authenticated, and no authentication is agreed on"
    )
    assert sum(sessions.dropped.values()) == 2


def test_discriminators_are_not_to_be_guessed() -> None:
    made = Sessions(Random(3).random)
    for number in range(100):
        made.set(number + 1, Place(bytes((10, 1, 0, number))), FAST, 0.0)
    mine = [member.session.mine for member in made.members.values()]
    assert len(set(mine)) == 100
    assert 0 not in mine
    assert max(mine) > 0xF0000000
    assert min(mine) < 0x10000000


def test_another_place_is_another_session(sessions: Sessions) -> None:
    before = sessions.members[1].session
    sessions.set(1, Place(FAR), Timing(200_000, 200_000, 3), 1.0)
    assert sessions.members[1].session is before
    sessions.set(1, Place(FAR, multihop=True), FAST, 1.0)
    assert sessions.members[1].session is not before


# ------------------------------------------------------------------------------------------------------- leaving


def test_who_does_not_answer_is_told_three_times() -> None:
    two = Two(FAST)
    two.run(3)
    began = two.now
    two.wire = lambda sender, packet: [] if sender == 0 else [0.001]
    two.ends[0].remove(1, two.now)
    two.run(began + 3, done=lambda: two.ends[0].leaving == 0)
    said = [packet for at, sender, packet in two.seen if at >= began and sender == 0]
    assert [packet.state for packet in said] == [State.ADMIN_DOWN] * 3
    assert two.now - began == pytest.approx(0.3, abs=0.02)


def test_who_was_never_there_is_told_nothing(sessions: Sessions) -> None:
    sessions.expire(0.0, 0.0)
    sessions.stop(1.0)
    assert sessions.leaving == 0
    assert sessions.expire(5.0, 5.0) == []


def test_a_new_session_ends_the_farewell() -> None:
    two = Two(FAST)
    two.run(3)
    two.ends[0].remove(1, two.now)
    two.ends[0].set(2, Place(FAR), FAST, two.now)
    assert two.ends[0].leaving == 0
    two.run(6)
    assert two.ends[0].members[2].session.state is State.UP
    assert two.session(1).state is State.UP


# ------------------------------------------------------------------------------------------------------ adoption


def test_the_next_owner_finds_its_sessions() -> None:
    two = Two(FAST)
    two.run(3)
    session = two.session(0)
    two.ends[0].orphan()
    two.run(6)
    assert session.state is State.UP
    two.ends[0].set(41, Place(FAR), Timing(100_000, 200_000, 3), two.now)
    assert two.ends[0].members[41].session is session
    assert two.ends[0].take_changes() == [41]
    two.ends[0].forsake(two.now)
    assert two.ends[0].leaving == 0
    two.run(9)
    assert (session.state, two.session(1).failures) == (State.UP, 0)


def test_what_nobody_claims_says_goodbye() -> None:
    two = Two(FAST)
    two.run(3)
    two.ends[0].orphan()
    two.ends[0].forsake(two.now)
    two.run(6)
    assert two.ends[0].leaving == 0
    assert (two.session(1).state, two.session(1).failures) == (State.DOWN, 0)


def test_a_new_address_of_ours_ends_the_old_session(sessions: Sessions) -> None:
    sessions.orphan()
    sessions.set(1, Place(FAR, NEAR), FAST, 1.0)
    assert len(sessions.members) == 2
    assert hear(sessions, packet()) == ""
    assert sessions.members[1].session.state is State.INIT


def test_a_process_that_died_is_not_noticed() -> None:
    two = Two(FAST)
    two.run(3)
    found = two.session(0).resumable
    assert isinstance(found, Resumed)
    two.ends[0] = Sessions(Random(9).random)
    two.run(3.25)
    two.ends[0].set(1, Place(FAR), FAST, two.now, found)
    two.run(6)
    assert (two.session(0).state, two.session(1).state) == (State.UP, State.UP)
    assert (two.session(0).failures, two.session(1).failures, two.session(1).ups) == (0, 0, 1)


# -------------------------------------------------------------------------------------------------- heard, and when


def test_what_is_unread_is_waited_for_without_a_busy_loop(sessions: Sessions) -> None:
    hear(sessions, packet(State.INIT, yours=sessions.members[1].session.mine))
    assert sessions.members[1].session.state is State.UP
    for _ in range(5):
        sessions.expire(50.0, 1.0)
        assert sessions.deadline() > 50.0
    assert sessions.members[1].session.state is State.UP
    sessions.expire(50.1, 50.1)
    assert sessions.members[1].session.state is State.DOWN


def test_too_many_are_slowed_down_and_told_so() -> None:
    made = Sessions(Random(2).random)
    several = 3 * MOST_PACKETS // 10
    for number in range(several):
        made.set(number + 1, Place((0x0A000000 + number).to_bytes(4, "big")), FAST, 0.0)
    assert made.slowdown > 2.4
    each = made.members[1].session.timing
    assert several * 1e6 / each.min_tx <= MOST_PACKETS
    assert each.min_rx == each.min_tx
    for number in range(100, several):
        made.remove(number + 1, 1.0)
    assert made.slowdown == 1.0
    assert made.members[1].session.timing == FAST


def test_a_slow_session_is_not_slowed_beyond_a_second() -> None:
    made = Sessions(Random(2).random)
    made.set(1, Place(FAR), Timing(900_000, 900_000, 3), 0.0)
    made.set(2, Place(THIRD), Timing(2_000_000, 2_000_000, 3), 0.0)
    for number in range(MOST_PACKETS // 50):
        made.set(number + 3, Place((0x0A010000 + number).to_bytes(4, "big")), Timing(10_000, 10_000, 3), 0.0)
    assert made.members[1].session.timing.min_tx == 1_000_000
    assert made.members[2].session.timing.min_tx == 2_000_000


def test_packets_go_out_with_the_place(sessions: Sessions) -> None:
    found = {place: decode_packet(octets).mine == mine for place, mine, octets in sessions.expire(0.0, 0.0)}
    assert found == {Place(FAR): True, Place(THIRD, multihop=True, least_ttl=250): True}
