"""Enhanced route refresh (RFC 7313) between speakers in memory, and with a peer made of octets."""

from __future__ import annotations

from random import Random

import pytest

from bgp import views
from bgp.connection import Direction, Send
from bgp.message import (
    KEEPALIVE,
    AsPath,
    Attributes,
    Capabilities,
    Family,
    Framer,
    GracefulRestart,
    MessageType,
    Notification,
    Open,
    Refresh,
    RefreshKind,
    RemoteError,
    decode_notification,
    decode_route_refresh,
    encode_announcement,
    encode_end_of_rib,
    encode_route_refresh,
)
from bgp.message.framing import frame
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.route import Route
from bgp.speaker import Speaker
from tests.unit.test_bgp_speaker import V4, V6, Cluster, prefix, prefix6

OUT = Direction.OUTGOING
BEGINS, ENDS = RefreshKind.BEGINS, RefreshKind.ENDS
PLAIN = Attributes(0, AsPath.sequence(65002), b"\x0a\0\0\2")
SOME = [bytes((32, 10, 7, 0, number)) for number in range(4)]


class Octets:
    """A speaker (AS 65001) with a peer that is made of octets (AS 65002)."""

    def __init__(self, *, enhanced: bool = True, restart: bool = False) -> None:
        self.speaker = Speaker(SpeakerConfig(65001, b"\x0a\0\0\1", (V4,), ((V4, b"\x0a\0\0\1"),)), Random(0).random)
        self.speaker.add_peer(PeerConfig("peer", b"\x0a\0\0\2", 65002), 0.0)
        self.speaker.take(0.0)
        self.speaker.connected("peer", 0.0)
        offered = Capabilities(
            (V4,),
            graceful_restart=GracefulRestart(120, preserved=((V4, True),)) if restart else None,
            enhanced_refresh=enhanced,
        )
        self.say(Open(65002, 90, b"\x0a\0\0\2", offered).encode() + KEEPALIVE)
        self.answers()

    def say(self, data: bytes, now: float = 1.0) -> None:
        self.speaker.receive("peer", OUT, data, now)

    def answers(self, now: float = 1.0) -> list[tuple[int, bytes]]:
        """What it was sent, KEEPALIVEs aside."""
        data = b"".join(output.data for _, output in self.speaker.take(now) if isinstance(output, Send))
        return [each for each in Framer().receive(data) if each[0] != MessageType.KEEPALIVE]

    @property
    def received(self) -> dict[bytes, Route]:
        return self.speaker.ribs[V4].received(self.speaker.peers["peer"].source)

    @property
    def stale(self) -> int:
        return self.speaker.ribs[V4].stale(self.speaker.peers["peer"].source)


def announced(prefixes: list[bytes]) -> bytes:
    return b"".join(encode_announcement(V4, PLAIN, prefixes, as4=True))


# ------------------------------------------------------------------------------------------------ the codec


@pytest.mark.parametrize("size", [0, 2, 3, 5, 400, 5000])
@pytest.mark.parametrize("kind", RefreshKind)
def test_a_wrong_length_has_an_error_of_its_own(size: int, kind: RefreshKind) -> None:
    body = (encode_route_refresh(V4, kind)[19:] + bytes(6000))[:size]
    own = size > 2 and kind in (BEGINS, ENDS)
    for enhanced in (False, True):
        with pytest.raises(RemoteError) as caught:
            decode_route_refresh(body, enhanced=enhanced)
        if own and enhanced:
            whole = frame(MessageType.ROUTE_REFRESH, body, 65535)
            assert (caught.value.code, caught.value.subcode, caught.value.data) == (7, 1, whole[:4075])
            assert str(Notification(7, 1)) == "route refresh message/invalid message length (7/1)"
        else:
            assert (caught.value.code, caught.value.subcode) == (1, 2)


# ------------------------------------------------------------------------------------------- a peer by hand


def test_what_is_not_sent_again_goes_with_the_end() -> None:
    peer = Octets()
    peer.say(announced(SOME))
    peer.say(encode_route_refresh(V4, BEGINS))
    assert peer.stale == 4
    shown = {route["prefix"]: route["stale"] for route in views.received(peer.speaker, "peer")}
    assert set(shown.values()) == {True}
    peer.say(announced(SOME[:2]))
    assert (peer.stale, len(peer.received)) == (2, 4)  # in use until the end
    peer.say(encode_route_refresh(V4, ENDS))
    assert set(peer.received) == set(SOME[:2])
    peer.say(encode_route_refresh(V4, ENDS))  # the end of nothing
    assert set(peer.received) == set(SOME[:2])


def test_a_second_beginning_is_all_over_again() -> None:
    peer = Octets()
    peer.say(announced(SOME) + encode_route_refresh(V4, BEGINS) + announced(SOME[:2]))
    peer.say(encode_route_refresh(V4, BEGINS))
    assert peer.stale == 4
    peer.say(announced(SOME[2:]) + encode_route_refresh(V4, ENDS))
    assert set(peer.received) == set(SOME[2:])


def test_an_end_that_does_not_come_is_awaited_for_a_while() -> None:
    peer = Octets()
    peer.say(announced(SOME) + encode_route_refresh(V4, BEGINS) + announced(SOME[:3]))
    (shown,) = views.peers(peer.speaker, 1.0)
    assert shown["refresh_ends"] == {"ipv4": 360.0}
    for now in range(1, 361, 30):
        peer.say(KEEPALIVE, now)
        peer.speaker.expire(now)
    assert len(peer.received) == 4
    deadline = peer.speaker.deadline()
    assert deadline is not None and deadline <= 361
    peer.say(KEEPALIVE, 360.5)
    peer.speaker.expire(361.0)
    assert set(peer.received) == set(SOME[:3])
    assert peer.speaker.peers["peer"].session.negotiated is not None


def test_before_end_of_rib_of_a_peer_with_graceful_restart_it_is_passed_over() -> None:
    peer = Octets(restart=True)
    peer.say(announced(SOME) + encode_route_refresh(V4, BEGINS))
    assert peer.stale == 0
    assert any("before its End-of-RIB" in str(entry.get("event")) for entry in views.log(peer.speaker, "peer", 1.0))
    peer.say(encode_route_refresh(V4, ENDS) + encode_end_of_rib(V4))
    assert len(peer.received) == 4
    peer.say(encode_route_refresh(V4, BEGINS))
    assert peer.stale == 4


def test_routes_not_sent_again_yet_are_kept_when_the_peer_restarts() -> None:
    peer = Octets(restart=True)
    peer.say(announced(SOME) + encode_end_of_rib(V4) + encode_route_refresh(V4, BEGINS) + announced(SOME[:1]))
    peer.speaker.failed("peer", OUT, 2.0)
    assert (peer.stale, len(peer.received)) == (4, 4)
    assert not peer.speaker.peers["peer"].refreshing


def test_without_the_capability_its_messages_say_nothing() -> None:
    peer = Octets(enhanced=False)
    peer.say(announced(SOME) + encode_route_refresh(V4, BEGINS))
    assert peer.stale == 0
    peer.say(encode_route_refresh(V4))
    assert [kind for kind, _ in peer.answers() if kind == MessageType.ROUTE_REFRESH] == []


def test_unknown_subtypes_and_families_are_passed_over() -> None:
    peer = Octets()
    peer.say(announced(SOME))
    for body in (b"\0\1\3\1", b"\0\1\xff\1", b"\0\2\1\1", b"\0\1\2\x80"):
        peer.say(frame(MessageType.ROUTE_REFRESH, body))
    assert (peer.stale, len(peer.received)) == (0, 4)
    assert peer.speaker.peers["peer"].session.negotiated is not None


def test_a_wrong_length_ends_the_session_with_the_whole_message() -> None:
    peer = Octets()
    wrong = frame(MessageType.ROUTE_REFRESH, b"\0\1\1\1\0")
    peer.say(wrong)
    ((kind, body),) = [each for each in peer.answers() if each[0] == MessageType.NOTIFICATION]
    assert kind == MessageType.NOTIFICATION
    assert decode_notification(body) == Notification(7, 1, wrong)


def test_an_answer_is_between_its_beginning_and_its_end() -> None:
    peer = Octets()
    for each in SOME:
        peer.speaker.originate(V4, each)
    peer.answers()
    peer.say(encode_route_refresh(V4))
    kinds = []
    for kind, body in peer.answers():
        refresh = decode_route_refresh(body) if kind == MessageType.ROUTE_REFRESH else None
        kinds.append(refresh.kind.name if refresh else MessageType(kind).name)
    assert kinds == ["BEGINS", "UPDATE", "ENDS"]


def test_no_beginning_is_sent_before_end_of_rib() -> None:
    """Asked before it was told all: it is told all once, with End-of-RIB."""
    peer = Octets()
    for number in range(5000):  # more than is told at once
        peer.speaker.originate(V4, bytes((32, 10, 8, number >> 8, number & 255)))
    peer.speaker.failed("peer", OUT, 2.0)
    peer.speaker.start_peer("peer", 2.0)
    peer.speaker.reset("peer", 2.0)
    deadline = peer.speaker.deadline()
    assert deadline is not None
    peer.speaker.expire(deadline)
    peer.speaker.take(deadline)
    peer.speaker.connected("peer", deadline)
    hello = Open(65002, 90, b"\x0a\0\0\2", Capabilities((V4,), enhanced_refresh=True)).encode()
    peer.say(hello + KEEPALIVE, deadline)
    peer.say(encode_route_refresh(V4), deadline)
    said = []
    while peer.speaker.pending or peer.speaker.telling or not said:
        said += peer.answers(deadline)
    assert (MessageType.UPDATE, encode_end_of_rib(V4)[19:]) in said
    assert not any(kind == MessageType.ROUTE_REFRESH for kind, _ in said)


# ------------------------------------------------------------------------------------------ two speakers


@pytest.mark.parametrize("seed", range(3))
def test_a_route_that_vanished_unnoticed_goes_with_a_refresh(seed: int) -> None:
    """One side has a route that the other never withdrew: asking again clears it up, and loses nothing else."""
    cluster = Cluster(seed)
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    cluster.network.run(5)
    ours = cluster.speakers[1]
    source = ours.peers["2"].source
    for family, ghost in ((V4, prefix(99)), (V6, prefix6(99))):
        given = next(iter(ours.ribs[family].received(source).values()))
        ours.ribs[family].announce(source, [ghost], given.attributes, given.received)
    cluster.until(1, {1: {1, 2, 99}})
    ours.take_changes()
    for family in Family:
        ours.ask_again("2", family)
    cluster.until(5, {1: {1, 2}})
    changes = ours.take_changes()
    gone = {family: {prefix for prefix, routes in some.items() if not routes} for family, some in changes.items()}
    assert gone == {V4: {prefix(99)}, V6: {prefix6(99)}}
    refreshes = [entry for entry in views.log(ours, "2", cluster.network.now) if entry.get("refresh")]
    assert [entry["refresh"] for entry in refreshes] == ["begins", "ends"] * 2
    assert Refresh(V4) == Refresh(V4, RefreshKind.REQUEST)
