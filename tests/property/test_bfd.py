"""Two BFD machines with a bad wire between them, under a time that jumps: what must hold whatever happens."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from bfd.packet import Packet, State
from bfd.session import GAP, LEAST_INTERVAL, Timing
from tests.support.bfd import Two

timings = st.builds(
    Timing,
    st.sampled_from((LEAST_INTERVAL, 50_000, 100_000, 300_000, 2_000_000)),
    st.sampled_from((LEAST_INTERVAL, 70_000)) | st.integers(50_000, 1_000_000),
    st.integers(1, 6),
)

# What an end may be made to do: seconds to run, which ends stand still meanwhile, and a change afterwards.
steps = st.lists(
    st.tuples(
        st.floats(0.01, 1.5),
        st.sampled_from(((), (), (), (0,), (1,), (0, 1))),
        st.none() | st.tuples(st.integers(0, 1), timings),
    ),
    max_size=5,
)


class BadWire:
    """Loses, delays (so that packets overtake each other) and repeats."""

    def __init__(self, seed: int, loss: float, delay: float, repeated: float) -> None:
        self.random = Random(seed)
        self.loss, self.delay, self.repeated = loss, delay, repeated

    def __call__(self, sender: int, packet: Packet) -> list[float]:
        if self.random.random() < self.loss:
            return []
        copies = 2 if self.random.random() < self.repeated else 1
        return [self.random.random() * self.delay for _ in range(copies)]


def straight(sender: int, packet: Packet) -> list[float]:
    return [0.001]


def agreed(two: Two) -> bool:
    """Both are Up, know each other's timers, and have nothing left to tell."""
    for number in (0, 1):
        ours, theirs = two.session(number), two.session(1 - number)
        if ours.state is not State.UP or ours.polling:
            return False
        if ours.detection_time != theirs.timing.multiplier * theirs.interval:
            return False
        if ours.interval != max(ours.timing.min_tx, theirs.timing.min_rx) / 1e6:
            return False
    return True


@settings(deadline=None, max_examples=60)
@given(timings, timings, steps, st.integers(0, 999), st.floats(0, 1), st.floats(0, 0.2), st.floats(0, 0.5))
def test_whatever_happened_a_good_wire_makes_them_agree(
    first: Timing, second: Timing, steps: list, seed: int, loss: float, delay: float, repeated: float
) -> None:
    two = Two(first, second, wire=BadWire(seed, loss, delay, repeated), seed=seed)
    for seconds, stopped, change in steps:
        two.run(two.now + seconds, stopped=stopped)
        if change:
            two.retime(*change)
    two.wire = straight
    two.run(two.now + 3)  # what was late is over
    two.run(two.now + 60, done=lambda: agreed(two))
    assert agreed(two)
    failures = [two.session(number).failures for number in (0, 1)]
    two.run(two.now + 3)
    assert agreed(two)
    assert [two.session(number).failures for number in (0, 1)] == failures


@settings(deadline=None, max_examples=60)
@given(timings, timings, steps, st.integers(0, 999), st.floats(0, 1), st.floats(0, 0.2), st.floats(0, 0.5))
def test_nobody_sends_more_than_was_agreed_on(
    first: Timing, second: Timing, steps: list, seed: int, loss: float, delay: float, repeated: float
) -> None:
    """Section 6.8.7: never within GAP, and one a second at most until Up but for news, answers and polls."""
    two = Two(first, second, wire=BadWire(seed, loss, delay, repeated), seed=seed)
    for seconds, stopped, change in steps:
        two.run(two.now + seconds, stopped=stopped)
        if change:
            two.retime(*change)
    for number in (0, 1):
        said = [(at, packet) for at, sender, packet in two.seen if sender == number]
        for (before, last), (at, packet) in pairwise(said):
            assert at - before >= GAP * 0.999
            news = packet._replace(poll=False, final=False) != last._replace(poll=False, final=False)
            if packet.state is not State.UP:
                assert packet.desired_tx >= 1_000_000
                # An answer is prompt, and so is what has changed meanwhile though it is the same again now.
                assert news or packet.final or at - before >= 0.75 * 0.999 or packet.yours


@settings(deadline=None, max_examples=60)
@given(timings, timings, st.integers(0, 999))
def test_silence_is_found_in_time_and_never_before(first: Timing, second: Timing, seed: int) -> None:
    two = Two(first, second, seed=seed)
    two.run(60, done=lambda: agreed(two))
    two.run(two.now + 1)
    assert [two.session(number).failures for number in (0, 1)] == [0, 0]
    two.wire = lambda sender, packet: []
    cut = two.now
    two.run(cut + 0.002)  # what is under way
    expected = [two.session(number).heard_at + two.session(number).detection_time for number in (0, 1)]
    for number in (0, 1):
        two.run(cut + 60, done=lambda number=number: two.session(number).state is State.DOWN)
    for number in (0, 1):
        session = two.session(number)
        assert session.failures == 1
        # The other one's Down is lost, so each finds out by itself.
        assert abs(session.since - expected[number]) < 1e-6


@settings(deadline=None, max_examples=60)
@given(st.floats(0.05, 5), st.integers(0, 999))
def test_a_pause_of_ours_is_not_their_silence(pause: float, seed: int) -> None:
    """We stand still, and what came meanwhile is read before anybody is judged; they may well give us up."""
    two = Two(Timing(100_000, 100_000, 3), Timing(100_000, 100_000, 3), seed=seed)
    two.run(5)
    two.run(two.now + pause, stopped=(0,))
    ours = two.session(0)
    two.run(two.now + 0.001)
    if two.session(1).failures == 0:
        assert ours.state is State.UP
    assert ours.diag != 1
