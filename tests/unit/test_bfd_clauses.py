"""BFD by the clause: what an RFC says of one case, one test each; the section is in the name or the docstring.

States, timers and polls as a whole are in test_bfd_session.py, what is discarded in test_bfd_packet.py.
"""

from __future__ import annotations

import struct
from random import Random

import pytest

from bfd import sockets
from bfd.orders import diag_name
from bfd.packet import Diag, State, decode_packet
from bfd.session import GAP, SLOW, Session, Timing
from bfd.sessions import MULTIHOP_PORT, PORT, Place, Sessions
from tests.support.bfd import FAR, FAST, Two
from tests.unit.test_bfd_session import THEIRS, heard, packet_at, sent, session, up

ADMIN_DOWN, DOWN, INIT, UP = State


def in_state(state: State) -> Session:
    """A session in that state at time 1, the neighbour heard then."""
    one = session()
    one.receive(heard({ADMIN_DOWN: DOWN, DOWN: ADMIN_DOWN, INIT: DOWN, UP: INIT}[state]), 1.0)
    if state is ADMIN_DOWN:
        one.disable(1.0)
    assert one.state is state
    return one


# --------------------------------------------------------------------------------------------- RFC 5880, the packet


@pytest.mark.parametrize("state", list(State))
def test_4_1_what_we_never_say(state: State) -> None:
    """No authentication, no multipoint, no demand mode of ours, no echo; 24 octets of version 1."""
    one = in_state(state)
    one.receive(heard(DOWN if state is not UP else UP, poll=True, demand=True), 1.0)
    octets = one.expire(1.0, 1.0)
    assert octets is not None
    first, flags, multiplier, length, mine, yours = struct.unpack_from(">BBBBII", octets)
    assert (first >> 5, length, len(octets), multiplier, mine, yours) == (1, 24, 24, 3, 5, THEIRS)
    assert not flags & 0b0000_0111
    assert octets[20:24] == bytes(4)


def test_4_1_poll_and_final_are_never_in_one_packet() -> None:
    one = up()
    one.retime(Timing(200_000, 200_000, 3), 1.1)
    one.receive(heard(UP, poll=True), 1.1)
    answer = sent(one, 1.1)
    assert answer is not None
    assert (answer.final, answer.poll) == (True, False)
    _, packet = packet_at(one)
    assert (packet.final, packet.poll) == (False, True)


@pytest.mark.parametrize(("number", "name"), [(6, "concatenated path down"), (8, "reverse concatenated path down")])
def test_4_1_diagnostics_have_names(number: int, name: str) -> None:
    assert diag_name(number) == name


@pytest.mark.parametrize("number", [9, 31])
def test_4_1_diagnostics_to_come_are_taken_as_they_are(number: int) -> None:
    one = session()
    one.receive(decode_packet(heard(DOWN, diag=number).encode()), 1.0)
    assert (one.state, diag_name(one.remote_diag)) == (INIT, f"diagnostic {number}")


# ------------------------------------------------------------------------------------------ RFC 5880, whose packet


def test_6_3_only_the_discriminator_counts_once_it_is_known() -> None:
    """The source address may change; what names a session that is none is discarded, whoever it is from."""
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR), FAST, 0.0)
    mine = made.members[1].session.mine
    made.receive(heard(INIT, yours=mine).encode(), bytes((203, 0, 113, 9)), 255, 1.0, multihop=False)
    assert made.members[1].session.state is UP
    made.receive(heard(DOWN, yours=mine ^ 1).encode(), FAR, 255, 1.1, multihop=False)
    assert (made.members[1].session.state, made.dropped) == (UP, {"of no session": 1})


def test_6_3_discriminators_are_not_zero_and_nobody_elses() -> None:
    drawn = iter((0.0, 0.0, 1.0, 0.5))
    made = Sessions(lambda: next(drawn))
    for key in (1, 2):
        made.set(key, Place(bytes((10, 0, 1, key))), FAST, 0.0)
    assert [member.session.mine for member in made.members.values()] == [1, 0x80000000]


def test_6_3_a_neighbour_may_take_another_discriminator() -> None:
    """It names ours, so it is the one: we name its new one from then on."""
    one = up()
    one.receive(heard(UP)._replace(mine=4711), 1.1)
    assert one.state is UP
    assert packet_at(one)[1].yours == 4711


# ------------------------------------------------------------------------------------------------- RFC 5880, polls


def test_6_5_a_final_that_nobody_asked_for_is_nothing() -> None:
    one = up()
    before = (one.tx, one.rx, one.interval, one.detection_time, one.state)
    one.receive(heard(UP, final=True), 1.05)
    assert (one.tx, one.rx, one.interval, one.detection_time, one.state) == before


def test_6_5_a_poll_goes_on_until_it_is_answered() -> None:
    one = up()
    one.retime(Timing(100_000, 200_000, 3), 1.1)
    for number in range(5):
        at, packet = packet_at(one)
        assert packet.poll
        one.receive(heard(UP), at)
        assert one.polling, number
    one.receive(heard(UP, final=True), at)
    assert not packet_at(one)[1].poll


# ---------------------------------------------------------------------------------------------- RFC 5880, variables


def test_6_8_1_what_is_known_at_the_start() -> None:
    one = session()
    assert (one.state, one.diag, one.remote_state, one.remote_discriminator) == (DOWN, Diag.NONE, DOWN, 0)
    assert (one.remote_rx, one.remote_demand, one.polling, one.tx) == (1, False, False, SLOW)


@pytest.mark.parametrize("state", [DOWN, INIT, UP, ADMIN_DOWN])
def test_6_8_1_the_neighbours_discriminator_is_forgotten_after_a_detection_time(state: State) -> None:
    one = in_state(state)
    one.expire(1.31, 1.31)
    assert one.remote_discriminator == 0
    assert one.state is (ADMIN_DOWN if state is ADMIN_DOWN else DOWN)


def test_6_8_3_a_lower_minimum_of_the_neighbour_counts_at_once() -> None:
    """We send as soon as the new interval, since our last packet, is over."""
    one = up(required_rx=2_000_000, desired_tx=1_000_000)
    last, _ = packet_at(one)
    one.receive(heard(UP, required_rx=100_000, desired_tx=1_000_000), last + 0.02)
    assert one.deadline() == pytest.approx(last + 0.1)
    one = up(required_rx=2_000_000, desired_tx=1_000_000)
    last, _ = packet_at(one)
    one.receive(heard(UP, required_rx=100_000, desired_tx=1_000_000), last + 0.7)
    assert one.deadline() == last + 0.7


def test_6_8_3_both_timers_in_one_change() -> None:
    """Sending slower and taking packets sooner: both wait for the one poll's answer."""
    one = up(Timing(100_000, 400_000, 3))
    one.retime(Timing(400_000, 100_000, 3), 1.1)
    assert (one.interval, one.detection_time) == pytest.approx((0.1, 1.2))
    _, packet = packet_at(one)
    assert (packet.poll, packet.desired_tx, packet.required_rx) == (True, 400_000, 100_000)
    one.receive(heard(UP, final=True), 1.2)
    assert (one.interval, one.detection_time) == pytest.approx((0.4, 0.3))


def test_6_8_3_down_again_is_slow_again() -> None:
    """At least a second while it is not Up, and that is said in the first packet."""
    one = up()
    one.receive(heard(DOWN, multiplier=50), 1.2)
    at, packet = packet_at(one)
    assert (at, packet.state, packet.desired_tx) == (1.2, DOWN, SLOW)
    assert packet_at(one)[0] - at >= 0.75


def test_6_8_3_slow_timers_of_ours_stay_slow() -> None:
    one = up(Timing(4_000_000, 100_000, 3))
    assert (one.tx, one.interval) == (4_000_000, 4.0)


@pytest.mark.parametrize(("theirs", "ours", "expected"), [(50_000, 100_000, 0.4), (700_000, 100_000, 2.8)])
def test_6_8_4_detection_is_their_multiplier_and_the_slower_interval(theirs: int, ours: int, expected: float) -> None:
    one = up(Timing(100_000, ours, 9), desired_tx=theirs, multiplier=4)
    assert one.detection_time == pytest.approx(expected)


def test_6_8_4_another_multiplier_of_theirs_counts_with_its_packet() -> None:
    one = up()
    one.receive(heard(UP, multiplier=1), 2.0)
    one.expire(2.099, 2.099)
    assert one.state is UP
    one.expire(2.1, 2.1)
    assert (one.state, one.diag) == (DOWN, Diag.DETECTION_TIME_EXPIRED)


# ---------------------------------------------------------------------------------------------- RFC 5880, reception


def octets(**changes: int) -> bytes:
    """A good packet that would end a session that is Up, changed at the named places."""
    places = {"first": 0, "flags": 1, "multiplier": 2, "length": 3}
    made = bytearray(heard(DOWN, yours=0).encode())
    for name, value in changes.items():
        made[places[name]] = value
    return bytes(made)


@pytest.mark.parametrize(
    "wrong",
    [
        octets(first=0x40),
        octets(first=0x00),
        octets(length=23),
        octets(length=255),
        octets(multiplier=0),
        octets(flags=0x41),
        octets(flags=0x44),
        octets(flags=0x44, length=26) + b"\0\0",
        octets()[:4] + bytes(4) + octets()[8:],
        octets(flags=0x80),
        octets(flags=0xC0),
        octets()[:23],
        b"",
    ],
    ids=lambda data: data[:4].hex() or "empty",
)
def test_6_8_6_what_is_discarded_changes_nothing(wrong: bytes) -> None:
    """Neither state nor timers, nor the time of silence."""
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR), FAST, 0.0)
    one = made.members[1].session
    made.receive(heard(INIT, yours=one.mine).encode(), FAR, 255, 1.0, multihop=False)
    before = [getattr(one, name) for name in Session.__slots__]
    made.receive(wrong, FAR, 255, 1.2, multihop=False)
    assert [getattr(one, name) for name in Session.__slots__] == before
    assert sum(made.dropped.values()) == 1
    made.receive(octets(), FAR, 255, 1.2, multihop=False)  # as it is without the change
    assert one.state is DOWN


def test_6_8_6_octets_behind_the_packet_are_not_looked_at() -> None:
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR), FAST, 0.0)
    made.receive(octets() + bytes(90), FAR, 255, 1.0, multihop=False)
    assert made.members[1].session.state is INIT


def test_6_8_6_who_is_shut_down_listens_and_does_nothing() -> None:
    """What was heard is kept, for later; no state, no answer."""
    one = in_state(ADMIN_DOWN)
    sent(one, 1.1)
    one.receive(heard(UP, poll=True, required_rx=200_000), 1.2)
    assert (one.state, one.remote_state, one.remote_rx) == (ADMIN_DOWN, UP, 200_000)
    assert sent(one, 1.3) is None


def test_6_8_6_no_echo_of_theirs_is_used_whatever_they_take() -> None:
    one = up(required_echo=50_000)
    assert packet_at(one)[1].required_echo == 0


# ------------------------------------------------------------------------------------------- RFC 5880, transmission


@pytest.mark.parametrize("state", [DOWN, INIT, UP])
def test_6_8_7_a_poll_is_answered_in_any_state(state: State) -> None:
    """Without waiting for a turn, also to one that takes no packets or asks for demand mode."""
    one = in_state(state)
    while one.deadline() <= 1.02:
        sent(one, one.deadline())
    theirs = {DOWN: ADMIN_DOWN, INIT: DOWN, UP: UP}[state]
    one.receive(heard(theirs, poll=True, required_rx=0, demand=True), 1.05)
    answer = sent(one, 1.05)
    assert answer is not None
    assert (answer.final, answer.state) == (True, state)


def test_6_8_7_who_takes_none_is_sent_none_but_answers() -> None:
    one = in_state(DOWN)
    sent(one, 1.0)
    one.receive(heard(ADMIN_DOWN, required_rx=0), 1.05)
    sent(one, 1.05)
    assert one.deadline() == pytest.approx(1.05 + 0.3)  # silence is all that is awaited


def test_6_8_7_demand_mode_is_one_of_two_that_are_up() -> None:
    """While one is not Up, packets go out."""
    one = in_state(INIT)
    first, _ = packet_at(one)
    one.receive(heard(DOWN, demand=True), first + 0.1)
    assert one.deadline() < first + 1.1
    packet_at(one)


def test_6_8_7_what_has_changed_is_said_between_two_packets() -> None:
    one = up()
    last, _ = packet_at(one)
    one.set_independent(True, last + 0.02)
    packet = sent(one, last + 0.02)
    assert packet is not None
    assert packet.independent
    one.set_independent(True, last + 0.03)  # nothing new
    assert one.deadline() > last + 0.09


def test_6_8_7_a_limit_on_answers_is_below_what_we_say_we_send_at() -> None:
    """The interval that we advertise is never shorter than the limit's."""
    for timing in (Timing(10_000, 10_000, 1), FAST, Timing(60_000_000, 60_000_000, 3)):
        one = up(timing)
        assert packet_at(one)[1].desired_tx / 1e6 >= GAP


# --------------------------------------------------------------------------------------------- RFC 5880, shut down


def test_6_8_16_admin_down_has_its_diagnostic_and_no_end() -> None:
    one = up()
    one.disable(1.1)
    _, packet = packet_at(one)
    assert (packet.state, packet.diag, packet.yours) == (ADMIN_DOWN, Diag.ADMINISTRATIVELY_DOWN, THEIRS)
    assert packet.desired_tx >= SLOW
    one.enable(1.2)
    assert (one.state, one.diag) == (DOWN, Diag.NONE)


def test_6_8_16_admin_down_is_said_for_a_detection_time() -> None:
    """The neighbour's, or until it answers."""
    two = Two(FAST)
    two.run(3)
    two.wire = lambda sender, packet: []
    began = two.now
    detection = two.session(1).detection_time
    two.ends[0].remove(1, began)
    two.run(began + detection * 0.99)
    assert two.ends[0].leaving == 1
    said = [at for at, sender, _ in two.seen if sender == 0 and at >= began]
    assert said[0] == pytest.approx(began, abs=GAP)
    assert max(said) > began + detection / 2


def test_their_admin_down_is_told_apart_from_down() -> None:
    """RFC 5882 section 3.2: it is no failure, in whatever state we are."""
    for state in (INIT, UP):
        one = in_state(state)
        one.receive(heard(ADMIN_DOWN), 1.1)
        assert (one.state, one.diag, one.failures) == (DOWN, Diag.NEIGHBOR_SIGNALED_DOWN, 0)
        one.receive(heard(DOWN), 1.2)
        one.receive(heard(INIT), 1.2)
        assert one.state is UP


# ------------------------------------------------------------------------------------------- RFC 5881 and RFC 5883


def test_rfc_5881_4_ports() -> None:
    assert (PORT, sockets.port_of(multihop=False), sockets.SOURCE_PORTS) == (3784, 3784, (49152, 65535))


def test_rfc_5883_5_port() -> None:
    assert (MULTIHOP_PORT, sockets.port_of(multihop=True)) == (4784, 4784)


@pytest.mark.parametrize("ttl", [0, 1, 254])
def test_rfc_5881_5_less_than_255_is_discarded(ttl: int) -> None:
    """Also where our discriminator is named."""
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR), FAST, 0.0)
    one = made.members[1].session
    for yours in (0, one.mine):
        made.receive(heard(DOWN, yours=yours).encode(), FAR, ttl, 1.0, multihop=False)
    assert (one.received, one.state, made.dropped) == (0, DOWN, {"its TTL is too low": 2})


def test_rfc_5883_over_hops_any_ttl_will_do() -> None:
    """Unless more is asked for: test_bfd_sessions.py."""
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR, multihop=True), FAST, 0.0)
    made.receive(heard(DOWN, yours=0).encode(), FAR, 1, 1.0, multihop=True)
    assert made.members[1].session.state is INIT


def test_rfc_5883_one_neighbour_on_the_link_and_over_hops_is_two() -> None:
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR), FAST, 0.0)
    made.set(2, Place(FAR, multihop=True), FAST, 0.0)
    made.receive(heard(DOWN, yours=0).encode(), FAR, 255, 1.0, multihop=True)
    assert [member.session.state for member in made.members.values()] == [DOWN, INIT]


def test_rfc_5882_4_3_the_c_bit_is_what_the_owner_says() -> None:
    """Set where BFD goes on without its control plane, for sessions there are and those to come."""
    made = Sessions(Random(1).random)
    made.set(1, Place(FAR), FAST, 0.0)
    made.set_independent(True, 0.0)
    made.set(2, Place(FAR, multihop=True), FAST, 0.0)
    assert [decode_packet(packet).independent for _, _, packet in made.expire(0.0, 0.0)] == [True, True]
    made.set_independent(False, 1.0)
    assert {decode_packet(packet).independent for _, _, packet in made.expire(1.0, 1.0)} == {False}
