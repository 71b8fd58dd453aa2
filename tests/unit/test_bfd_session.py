"""A BFD session: states, timers, polls and detection, each with its section of RFC 5880."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from bfd.packet import Diag, Packet, State, decode_packet
from bfd.session import GAP, LEAST_INTERVAL, SLOW, Resumed, Session, Timing
from tests.support.bfd import FAST, Two

ADMIN_DOWN, DOWN, INIT, UP = State
THEIRS = 77


def session(timing: Timing = FAST, random: float = 1.0) -> Session:
    return Session(5, timing, lambda: random, 0.0)


def heard(state: State, **fields: Any) -> Packet:
    wanted = {"yours": 5, "multiplier": 3, "desired_tx": 100_000, "required_rx": 100_000, **fields}
    return Packet(state, THEIRS, **wanted)


def sent(one: Session, now: float) -> Packet | None:
    octets = one.expire(now, now)
    return None if octets is None else decode_packet(octets)


def packet_at(one: Session) -> tuple[float, Packet]:
    """The next packet that it sends by itself, and when."""
    at = one.deadline()
    packet = sent(one, at)
    assert packet is not None
    return at, packet


def up(timing: Timing = FAST, random: float = 1.0, **fields: Any) -> Session:
    """A session that is Up, its poll over, at time 1."""
    one = session(timing, random)
    one.receive(heard(INIT, **fields), 1.0)
    one.receive(heard(UP, final=True, **fields), 1.0)
    one.receive(heard(UP, **fields), 1.0)
    sent(one, 1.0 + GAP)
    assert one.state is UP
    assert not one.polling
    return one


# Section 6.2 and the end of 6.8.6: our state, theirs, what becomes of ours.
TABLE = [
    (DOWN, ADMIN_DOWN, DOWN),
    (DOWN, DOWN, INIT),
    (DOWN, INIT, UP),
    (DOWN, UP, DOWN),
    (INIT, ADMIN_DOWN, DOWN),
    (INIT, DOWN, INIT),
    (INIT, INIT, UP),
    (INIT, UP, UP),
    (UP, ADMIN_DOWN, DOWN),
    (UP, DOWN, DOWN),
    (UP, INIT, UP),
    (UP, UP, UP),
    *((ADMIN_DOWN, theirs, ADMIN_DOWN) for theirs in State),
]


@pytest.mark.parametrize(("ours", "theirs", "expected"), TABLE)
def test_states(ours: State, theirs: State, expected: State) -> None:
    one = session()
    if ours is ADMIN_DOWN:
        one.disable(0.5)
    elif ours is INIT:
        one.receive(heard(DOWN), 0.5)
    elif ours is UP:
        one.receive(heard(INIT), 0.5)
    assert one.state is ours
    one.receive(heard(theirs), 1.0)
    assert one.state is expected
    failed = (ours, theirs) == (UP, DOWN)
    assert one.failures == failed
    if ours >= INIT and expected is DOWN:
        assert one.diag == Diag.NEIGHBOR_SIGNALED_DOWN


def test_three_packets_and_both_are_up() -> None:
    two = Two(FAST)
    two.run(10, done=lambda: all(two.session(number).state is UP for number in (0, 1)))
    assert two.now < 0.1
    assert [packet.state for _, _, packet in two.seen][-1] in (INIT, UP)


# ---------------------------------------------------------------------------------------------- sending (6.8.7)


def test_slow_until_it_is_up() -> None:
    """Section 6.8.3: one second at least."""
    one = session(Timing(10_000, 10_000, 3))
    times = [packet_at(one)[0] for _ in range(4)]
    assert times[0] == 0.0
    assert times[1:] == pytest.approx([1.0, 2.0, 3.0])
    assert sent(one, 3.0) is None


@pytest.mark.parametrize(("multiplier", "least", "most"), [(3, 0.075, 0.100), (1, 0.075, 0.090)])
def test_jitter(multiplier: int, least: float, most: float) -> None:
    for random, expected in ((0.0, least), (1.0, most)):
        one = up(Timing(100_000, 100_000, multiplier), random)
        first, _ = packet_at(one)
        second, _ = packet_at(one)
        assert second - first == pytest.approx(expected)


def test_who_was_late_makes_up_for_it_within_the_jitter() -> None:
    one = up(desired_tx=5_000_000)
    due = one.deadline()
    assert sent(one, due + 0.020) is not None
    assert one.deadline() == pytest.approx(due + 0.1)
    assert sent(one, due + 0.190) is not None
    assert one.deadline() == pytest.approx(due + 0.190 + 0.075)


def test_the_neighbour_may_want_fewer() -> None:
    one = up(required_rx=400_000, desired_tx=5_000_000)
    first, _ = packet_at(one)
    second, _ = packet_at(one)
    assert second - first == pytest.approx(0.4)


def test_the_neighbour_may_want_none() -> None:
    one = up(required_rx=0)
    assert one.deadline() == pytest.approx(1.0 + 0.3)  # its silence is all that is awaited
    one.receive(heard(UP, required_rx=0, poll=True), 1.2)
    assert sent(one, 1.2).final  # type: ignore[union-attr]


def test_demand_mode_of_the_neighbour() -> None:
    """Section 6.6: it asks for silence while both are Up, and is still heard, polled and answered."""
    one = up(demand=True)
    assert sent(one, 1.2) is None
    one.receive(heard(UP, demand=True, poll=True), 1.25)
    answer = sent(one, 1.25)
    assert answer is not None
    assert answer.final
    assert not answer.demand
    one.retime(Timing(50_000, 100_000, 3), 1.3)
    _, packet = packet_at(one)
    assert packet.poll
    again, packet = packet_at(one)  # until it is answered
    assert packet.poll
    one.receive(heard(UP, demand=True, final=True), again)
    assert one.deadline() == pytest.approx(again + 0.3)
    one.receive(heard(UP), again + 0.1)
    assert one.deadline() < again + 0.2


def test_a_new_state_is_told_at_once_but_never_in_a_burst() -> None:
    one = up()
    before = one.sent
    for number in range(100):
        now = 2.0 + number * 0.001
        one.receive(heard(UP, poll=True), now)
        sent(one, now)
    assert 9 <= one.sent - before <= 1 + 0.1 / GAP


@pytest.mark.parametrize(("multiplier", "random", "gap"), [(3, 0.0, 0.0075), (3, 1.0, 0.010), (1, 1.0, 0.009)])
def test_the_shortest_interval_has_its_jitter_and_no_more(multiplier: int, random: float, gap: float) -> None:
    timing = Timing(LEAST_INTERVAL, LEAST_INTERVAL, multiplier)
    one = up(timing, random, required_rx=LEAST_INTERVAL, desired_tx=LEAST_INTERVAL)
    (before, _), (after, _) = packet_at(one), packet_at(one)
    assert after - before == pytest.approx(gap)
    assert after - before >= GAP * 0.999


# ------------------------------------------------------------------------------------------------ polls (6.5, 6.8.3)


def test_a_poll_is_answered_without_waiting() -> None:
    one = up()
    one.receive(heard(UP, poll=True), 1.05)
    answer = sent(one, 1.05)
    assert answer is not None
    assert (answer.final, answer.poll) == (True, False)


def test_coming_up_is_told_by_a_poll() -> None:
    one = session()
    packet_at(one)
    one.receive(heard(INIT), 0.5)
    _, packet = packet_at(one)
    assert (packet.state, packet.poll, packet.desired_tx) == (UP, True, 100_000)
    assert one.interval == pytest.approx(0.1)
    one.receive(heard(UP, final=True), 0.6)
    assert not packet_at(one)[1].poll


def test_going_slower_waits_for_the_answer() -> None:
    one = up()
    one.retime(Timing(500_000, 100_000, 3), 1.1)
    _, packet = packet_at(one)
    assert (packet.poll, packet.desired_tx) == (True, 500_000)
    assert one.interval == pytest.approx(0.1)
    one.receive(heard(UP, final=True), 1.2)
    assert one.interval == pytest.approx(0.5)


def test_going_faster_does_not() -> None:
    one = up(Timing(500_000, 100_000, 3))
    one.retime(FAST, 1.1)
    assert one.interval == pytest.approx(0.1)


def test_detection_gets_shorter_only_after_the_answer() -> None:
    one = up(Timing(100_000, 500_000, 3))
    assert one.detection_time == pytest.approx(1.5)
    one.retime(FAST, 1.1)
    assert one.detection_time == pytest.approx(1.5)
    one.receive(heard(UP, final=True), 1.2)
    assert one.detection_time == pytest.approx(0.3)


def test_detection_gets_longer_at_once() -> None:
    one = up()
    one.retime(Timing(100_000, 500_000, 3), 1.1)
    assert one.detection_time == pytest.approx(1.5)
    assert one.deadline() <= 1.0 + 1.5


def test_one_poll_at_a_time() -> None:
    """Section 6.8.3: the next one waits for a packet without F."""
    one = up()
    one.retime(Timing(200_000, 100_000, 3), 1.1)
    one.retime(Timing(400_000, 100_000, 3), 1.15)
    assert packet_at(one)[1].desired_tx == 200_000
    one.receive(heard(UP, final=True), 1.2)
    assert not one.polling
    one.receive(heard(UP, final=True), 1.21)  # a late answer to the first
    assert one.tx == 200_000
    one.receive(heard(UP), 1.22)
    assert one.polling
    assert packet_at(one)[1].desired_tx == 400_000


def test_a_poll_that_its_end_overtook_is_not_waited_for() -> None:
    """Slower timers were being told when the session went down: once it is up again they count."""
    one = up()
    one.retime(Timing(2_000_000, 100_000, 3), 1.1)
    assert one.interval == pytest.approx(0.1)
    one.receive(heard(DOWN), 1.15)
    one.receive(heard(INIT), 1.2)
    assert one.state is UP
    assert one.interval == pytest.approx(2.0)


def test_another_multiplier_needs_no_poll() -> None:
    one = up()
    one.retime(Timing(100_000, 100_000, 7), 1.1)
    packet = sent(one, 1.1)
    assert packet is not None
    assert (packet.multiplier, packet.poll) == (7, False)


# ---------------------------------------------------------------------------------------------- detection (6.8.4)


def test_silence() -> None:
    """The neighbour's multiplier, and the slower of its wish and ours."""
    one = up(desired_tx=200_000, multiplier=4)
    assert one.detection_time == pytest.approx(0.8)
    one.expire(1.79, 1.79)
    assert one.state is UP
    packet = sent(one, 1.8)
    assert one.state is DOWN
    assert (one.diag, one.failures, one.remote_discriminator) == (Diag.DETECTION_TIME_EXPIRED, 1, 0)
    assert packet is not None
    assert (packet.state, packet.diag, packet.yours, packet.desired_tx) == (DOWN, 1, 0, SLOW)


def test_what_is_unread_may_be_a_packet() -> None:
    one = up()
    one.expire(5.0, 1.25)
    assert one.state is UP
    one.receive(heard(UP), 4.9)
    one.expire(5.0, 5.0)
    assert one.state is UP


def test_a_packet_counts_from_when_it_came() -> None:
    one = up()
    one.receive(heard(UP), 1.1)  # read at 1.35
    one.expire(1.35, 1.35)
    assert one.state is UP
    one.expire(1.41, 1.41)
    assert one.state is DOWN


def test_init_expires_too_and_is_no_failure() -> None:
    one = session()
    one.receive(heard(DOWN), 0.5)
    one.expire(0.81, 0.81)
    assert (one.state, one.diag, one.failures) == (DOWN, 1, 0)


def test_the_c_bit_is_kept_with_the_failure() -> None:
    one = up(independent=True)
    one.expire(9.0, 9.0)
    assert one.failed_independent
    one = up(independent=False)
    one.expire(9.0, 9.0)
    assert not one.failed_independent


def test_a_neighbour_that_is_down_and_silent_is_forgotten() -> None:
    one = up()
    one.receive(heard(ADMIN_DOWN), 1.1)
    assert (one.state, one.failures) == (DOWN, 0)
    one.expire(1.5, 1.5)
    assert (one.remote_discriminator, one.remote_rx, one.failures) == (0, 1, 0)


# ------------------------------------------------------------------------------------------------- the operator


def test_admin_down_is_told_and_ends_nothing() -> None:
    """Section 6.8.16, and RFC 5882 section 3.2."""
    two = Two(FAST)
    two.run(3)
    two.ends[0].remove(1, two.now)
    assert two.ends[0].leaving == 1
    two.run(two.now + 2, done=lambda: two.ends[0].leaving == 0)
    other = two.session(1)
    assert (other.state, other.remote_state, other.failures) == (DOWN, ADMIN_DOWN, 0)
    assert two.now < 3.2  # it was answered


def test_enabled_again() -> None:
    one = up()
    one.disable(2.0)
    assert (one.state, one.diag) == (ADMIN_DOWN, Diag.ADMINISTRATIVELY_DOWN)
    one.enable(3.0)
    assert one.state is DOWN


def test_another_process_goes_on_where_one_ended() -> None:
    before = up(independent=True)
    found = before.resumable
    assert found is not None
    one = Session(5, FAST, lambda: 1.0, 1.2, found)
    packet = sent(one, 1.2)
    assert packet is not None
    assert (packet.state, packet.mine, packet.yours, packet.desired_tx) == (UP, 5, THEIRS, 100_000)
    assert one.detection_time == pytest.approx(0.3)
    one.expire(1.6, 1.6)
    assert one.state is DOWN
    assert Session(5, FAST, lambda: 1.0, 0.0).resumable is None
    assert found == Resumed(5, THEIRS, 3, 100_000, 100_000)


@pytest.mark.parametrize(
    "wrong", [{"min_tx": 9_999}, {"min_rx": 60_000_001}, {"multiplier": 0}, {"multiplier": 256}, {"min_tx": 0}]
)
def test_timing_is_bounded(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        Timing(**wrong)


def test_a_huge_interval_of_the_neighbour_is_only_slow() -> None:
    one = up(required_rx=0xFFFFFFFF, desired_tx=0xFFFFFFFF, multiplier=255)
    assert one.deadline() < inf
    assert one.detection_time == pytest.approx(255 * 4294.967295)
