"""Messages of up to 65,535 octets (RFC 8654), and an OPEN whose parameters are longer than 255 (RFC 9072)."""

from __future__ import annotations

from random import Random

import pytest

from bgp import views
from bgp.connection import Direction, Send
from bgp.message import (
    KEEPALIVE,
    Attributes,
    Capabilities,
    Family,
    Framer,
    MessageType,
    Notification,
    Open,
    RemoteError,
    decode_notification,
    decode_open,
)
from bgp.message.framing import frame
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.recorder import Recorder
from bgp.speaker import Speaker
from tests.support.bgp import Network

V4 = Family.IPV4
OUT = Direction.OUTGOING


def open_with(*others: tuple[int, bytes]) -> Open:
    return Open(65002, 90, b"\x0a\0\0\2", Capabilities((V4,), route_refresh=False, others=others))


# ------------------------------------------------------------------------------------------------ RFC 9072


def test_the_long_form_only_where_it_has_to_be() -> None:
    # 6 octets for the family, 6 for the AS number, 2 around the value, 2 around the parameter: 255 in all
    just = open_with((200, bytes(239)))
    (_, body), *_ = Framer().receive(just.encode())
    assert (body[9], body[10]) == (255, 2)
    assert decode_open(body) == just
    more = open_with((200, bytes(240)))
    (_, body), *_ = Framer().receive(more.encode())
    assert body[9:13] == bytes((255, 255, 1, 1))  # 254 octets of capabilities and 3 around them
    assert body[13:16] == bytes((2, 0, 254))
    assert decode_open(body) == more


def test_the_long_form_is_read_however_short_and_whatever_the_old_length_says() -> None:
    for old in ("01", "ff", "04"):
        got = decode_open(bytes.fromhex(f"04 fdea 005a 0a000002 {old} ff 0005 02 0002 0200"))
        assert got.capabilities == Capabilities((V4,), as4=False)
    assert decode_open(bytes.fromhex("04 fdea 005a 0a000002 ff ff 0000")).capabilities.route_refresh is False


@pytest.mark.parametrize(
    ("parameters", "subcode"),
    [
        ("ff ff", 0),  # no length
        ("ff ff 00", 0),
        ("ff ff 0006 02 0002 0200", 0),  # longer than the message
        ("ff ff 0004 02 0002 0200", 0),  # shorter
        ("ff ff 0005 02 0003 0200", 0),  # a parameter over the end
        ("ff ff 0002 02 00", 0),  # half a length
        ("ff ff 0003 ff 0000", 4),  # type 255 is nothing but the first
        ("00 ff 0005 02 0002 0200", 0),  # the old length must not be 0
    ],
)
def test_malformed_long_forms(parameters: str, subcode: int) -> None:
    with pytest.raises(RemoteError) as caught:
        decode_open(bytes.fromhex("04 fdea 005a 0a000002" + parameters))
    assert (caught.value.code, caught.value.subcode) == (2, subcode)


# ------------------------------------------------------------------------------------------------ RFC 8654


class Three:
    """Ours (1), with peers that take long messages (2) and do not (3)."""

    def __init__(self) -> None:
        self.network = Network(0)
        self.speakers: dict[int, Speaker] = {}
        for number in (1, 2, 3):
            config = SpeakerConfig(65001, bytes((10, 0, 0, number)), addresses=((V4, bytes((10, 0, 0, number))),))
            speaker = self.speakers[number] = Speaker(config, Random(number).random, now=self.network.now)
            self.network.add(str(number), speaker)
        for one, two in ((1, 2), (2, 1), (1, 3), (3, 1)):
            self.speakers[one].add_peer(
                PeerConfig(str(two), bytes((10, 0, 0, two)), 65001, extended_messages=one != 3), self.network.now
            )

    def longest(self, name: str) -> int | None:
        negotiated = self.speakers[1].peers[name].session.negotiated
        return negotiated.longest_out if negotiated else None


def test_long_messages_go_only_to_who_takes_them() -> None:
    """Attributes of 6,000 octets reach one of two peers; a table is packed for each as it can be."""
    three = Three()
    ours = three.speakers[1]
    for number in range(2000):
        ours.originate(V4, bytes((32, 10, 1, number >> 8, number & 255)))
    long = Attributes(communities=tuple(range(1, 1500)))
    ours.originate(V4, bytes((24, 10, 9, 9)), long)
    assert three.network.run(
        30, lambda: len(three.speakers[2].ribs[V4].chosen) == 2001 and len(three.speakers[3].ribs[V4].chosen) == 2000
    )
    assert (three.longest("2"), three.longest("3")) == (65535, 4096)
    assert len(ours.advertising.groups) == 2
    assert three.speakers[2].ribs[V4].chosen[bytes((24, 10, 9, 9))][0].attributes.communities == long.communities
    shown = {peer["name"]: peer for peer in views.peers(ours, three.network.now)}
    assert shown["2"]["longest_message"] == 65535 and "longest_message" not in shown["3"]
    assert shown["2"]["capabilities"]["received"]["extended_messages"] is True
    failures = [group.failures[V4] for group in ours.advertising.groups.values()]
    assert [bytes((24, 10, 9, 9)) in each for each in failures].count(True) == 1
    counts = [ours.peers[name].session.recorder.sent[MessageType.UPDATE] for name in ("2", "3")]
    assert counts[0] < counts[1]
    ours.retract(V4, bytes((24, 10, 9, 9)))
    assert three.network.run(5, lambda: len(three.speakers[2].ribs[V4].chosen) == 2000)


def brought_up(*, extended: bool, told: bool = True) -> Speaker:
    """A speaker with a peer made of octets; `told`: the peer has the capability."""
    speaker = Speaker(SpeakerConfig(65001, b"\x0a\0\0\1"), Random(0).random)
    speaker.add_peer(PeerConfig("peer", b"\x0a\0\0\2", 65002, extended_messages=extended), 0.0)
    speaker.take(0.0)
    speaker.connected("peer", 0.0)
    hello = Open(65002, 90, b"\x0a\0\0\2", Capabilities((V4,), extended_messages=told))
    speaker.receive("peer", OUT, hello.encode() + KEEPALIVE, 0.0)
    speaker.take(0.0)
    return speaker


def said(speaker: Speaker) -> list[tuple[int, bytes]]:
    return [
        message
        for _, output in speaker.take(1.0)
        if isinstance(output, Send)
        for message in Framer().receive(output.data)
    ]


LONG = frame(MessageType.UPDATE, b"\xff" * 5000, 65535)


def test_who_was_not_offered_long_messages_and_sends_one_is_refused() -> None:
    speaker = brought_up(extended=False)
    speaker.receive("peer", OUT, LONG, 1.0)
    (kind, body), *_ = said(speaker)
    assert kind == MessageType.NOTIFICATION
    assert decode_notification(body) == Notification(1, 2, len(LONG).to_bytes(2, "big"))


@pytest.mark.parametrize("told", [True, False])
def test_who_was_offered_them_may_send_them_with_or_without_the_capability(told: bool) -> None:
    """Section 3: what counts is what the receiver has said. What is in it is wrong here, not its length."""
    speaker = brought_up(extended=True, told=told)
    negotiated = speaker.peers["peer"].session.negotiated
    assert negotiated and negotiated.longest_out == (65535 if told else 4096)
    speaker.receive("peer", OUT, LONG, 1.0)
    (kind, body), *_ = said(speaker)
    assert (kind, body[0]) == (MessageType.NOTIFICATION, 3)


def test_open_and_keepalive_are_never_longer() -> None:
    for kind, size in ((MessageType.OPEN, 4097), (MessageType.KEEPALIVE, 20)):
        framer = Framer()
        framer.most = 65535
        with pytest.raises(RemoteError) as caught:
            list(framer.receive(frame(kind, bytes(size - 19), 65535)))
        assert (caught.value.code, caught.value.subcode, caught.value.data) == (1, 2, size.to_bytes(2, "big"))


def test_a_new_connection_begins_with_short_messages() -> None:
    speaker = brought_up(extended=True)
    session = speaker.peers["peer"].session
    assert session._outgoing._framer.most == 65535
    speaker.failed("peer", OUT, 1.0)
    assert session._outgoing._framer.most == 4096


def test_the_recorder_keeps_few_long_messages() -> None:
    recorder = Recorder()
    for _ in range(100):
        recorder.hear(MessageType.UPDATE, bytes(60000), 0.0)
        recorder.hear(MessageType.NOTIFICATION, bytes(60000), 0.0)
    kept = [len(entry[4]) for entry in (*recorder._updates, *recorder._others)]
    assert 4 <= kept.count(60000) <= 5
    assert sum(kept) < 600_000
