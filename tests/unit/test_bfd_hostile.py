"""What strangers and broken neighbours send to BFD: it costs little, reaches no session, and ends none."""

from __future__ import annotations

import socket
from random import Random

import pytest

from bfd.packet import Packet, State
from bfd.session import GAP, Resumed
from bfd.sessions import Place, Sessions
from bfd.sockets import SocketError, sender
from tests.support.bfd import FAR, FAST, Two

THEIRS = 77


def packet(state: State, yours: int = 0, mine: int = THEIRS, **fields: int | bool) -> bytes:
    wanted: dict[str, int | bool] = {"multiplier": 3, "desired_tx": 100_000, "required_rx": 100_000, **fields}
    return Packet(state, mine, yours, **wanted).encode()  # type: ignore[arg-type]


def standing(*, multihop: bool = False) -> tuple[Sessions, int]:
    """A session that is Up since time 1, and our discriminator."""
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR, multihop=multihop), FAST, 0.0)
    mine = made.members[1].session.mine
    made.receive(packet(State.INIT, mine), FAR, 255, 1.0, multihop=multihop)
    assert made.members[1].session.state is State.UP
    return made, mine


# ------------------------------------------------------------------------------------------------------ strangers


@pytest.mark.parametrize("multihop", [False, True])
@pytest.mark.parametrize("state", [State.DOWN, State.ADMIN_DOWN])
def test_a_forged_source_ends_no_session(state: State, multihop: bool) -> None:
    """RFC 5880 section 6.3 leaves it to us how a packet that names nobody finds its session.

    One that is Up is also to be named by the neighbour's own discriminator, which a stranger has to guess.
    """
    made, _ = standing(multihop=multihop)
    session = made.members[1].session
    made.receive(packet(state, mine=THEIRS + 1), FAR, 255, 1.1, multihop=multihop)
    assert (session.state, session.heard_at, made.dropped) == (State.UP, 1.0, {"of no session": 1})
    made.receive(packet(state), FAR, 255, 1.1, multihop=multihop)
    assert session.state is State.DOWN


def test_a_neighbour_that_has_forgotten_us_is_met_again() -> None:
    """Its BFD was started anew: what it had is found silent, and then it is taken by its address."""
    two = Two(FAST)
    two.run(3)
    two.ends[1] = Sessions(Random(8).random)
    two.ends[1].set(1, Place(bytes((10, 0, 0, 1))), FAST, two.now)
    began = two.now
    two.run(began + 0.5, done=lambda: two.session(0).failures == 1)
    assert two.session(0).failures == 1
    two.run(began + 5)
    assert (two.session(0).state, two.session(1).state) == (State.UP, State.UP)


def test_a_flood_for_nobody_is_counted_and_nothing_else() -> None:
    """Neither memory nor turns for it, whatever its addresses, discriminators and contents."""
    made, _ = standing()
    turns, random = list(made._timers), Random(4)
    for number in range(20_000):
        octets = bytearray(packet(State(number % 4), random.randrange(1 << 32), random.randrange(1 << 32)))
        octets[random.randrange(4)] = random.randrange(256)
        made.receive(bytes(octets), random.randbytes(4), 255, 1.1, multihop=bool(number % 2))
    assert (len(made.members), made._timers, made.leaving) == (1, turns, 0)
    assert len(made.dropped) < 12
    assert sum(made.dropped.values()) == 20_000
    assert made.members[1].session.heard_at == 1.0


@pytest.mark.parametrize("link_local", ["fe80::1", "febf::1"])
def test_a_link_local_neighbour_is_told_of(link_local: str) -> None:
    """A peer that connects to us may have such an address; where it is, is not known."""
    with pytest.raises(SocketError, match=f"{link_local} is link-local.*give the peer a global address"):
        sender(socket.inet_pton(socket.AF_INET6, link_local), b"", multihop=False)


# ---------------------------------------------------------------------------------------------- a hostile neighbour


def test_timers_that_never_end_leave_nothing_behind() -> None:
    """It wants no packets, would be silent for 12 days, and polls: each answer is one turn, and no more is kept."""
    made, mine = standing()
    now = 1.0
    for _ in range(2000):
        made.receive(
            packet(State.UP, mine, multiplier=255, desired_tx=0xFFFFFFFF, required_rx=0, poll=True),
            FAR,
            255,
            now,
            multihop=False,
        )
        while made.deadline() <= now + 0.01:
            made.expire(max(now, made.deadline()), now)
        now += 0.01
    assert len(made._timers) < 200


@pytest.mark.parametrize("desired", [0, 1, 0xFFFFFFFF])
@pytest.mark.parametrize("required", [1, 10_000, 0xFFFFFFFF])
def test_no_timers_make_us_send_faster_or_fail(desired: int, required: int) -> None:
    """Polls, states and minima as fast as they come: a packet every GAP at most, and none judged by a wrong clock."""
    made, mine = standing()
    sent, now = 0, 1.0
    for number in range(1000):
        state = (State.UP, State.UP, State.DOWN, State.INIT)[number % 4]
        octets = packet(
            state, mine, multiplier=1 + number % 255, desired_tx=desired, required_rx=required, poll=number % 3 > 0
        )
        made.receive(octets, FAR, 255, now, multihop=False)
        sent += len(made.expire(now, now))
        now += 0.001
    assert sent <= 1 + 1.0 / GAP
    session = made.members[1].session
    assert session.detection_time >= 0.1
    assert session.interval >= 0.1
    assert made.deadline() <= session.heard_at + session.detection_time


# ---------------------------------------------------------------------------------------------------- odd orders


def test_two_that_are_to_go_on_with_one_discriminator() -> None:
    """The first has it; the other begins anew with its own."""
    made = Sessions(Random(1).random)
    before = Resumed(4711, THEIRS, 3, 100_000, 100_000)
    for key in (1, 2):
        made.set(key, Place(FAR, multihop=key == 2), FAST, 0.0, before)
    first, second = (member.session for member in made.members.values())
    assert (first.mine, first.state) == (4711, State.UP)
    assert second.mine != 4711
    assert (second.state, second.remote_discriminator) == (State.DOWN, 0)


def test_an_order_for_a_session_that_another_has_taken_over() -> None:
    """One neighbour under two keys, as when a peer is renamed: the later one has it, and the earlier one may go."""
    made, _ = standing()
    session = made.members[1].session
    made.set(2, Place(FAR), FAST, 2.0)
    made.remove(1, 2.0)
    assert (made.members[2].session, session.state) == (session, State.UP)
    made.set(3, Place(FAR, bytes((10, 0, 0, 9))), FAST, 2.0)
    made.remove(2, 2.0)
    assert list(made.members) == [3]
    made.remove(3, 2.0)
    made.set(4, Place(FAR), FAST, 2.0)
    assert (made.slowdown, list(made.members), made.leaving) == (1.0, [4], 0)
