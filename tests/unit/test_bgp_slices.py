"""A whole table's worth of work is done by and by: what the speaker says meanwhile, and that others have a turn."""

from __future__ import annotations

from dataclasses import replace

from bgp.connection import Direction, Send, Settings
from bgp.message import Attributes, Capabilities, Family, MessageType, encode_announcement
from bgp.message.framing import Framer
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import Match, Policy, PrefixRange, Rule
from bgp.session import Session
from bgp.speaker import AT_ONCE, Speaker

V4 = Family.IPV4
NOW = 1000.0
COUNT = 2 * AT_ONCE + 1
NOTHING = Policy((Rule(False, Match(prefixes=(PrefixRange.parse("0.0.0.0/0+"),))),))
PREFIXES = [bytes((24, 10, *divmod(number, 256))) for number in range(COUNT)]


class Full:
    """A speaker with COUNT routes from its one peer, decided."""

    def __init__(self) -> None:
        self.speaker = Speaker(
            SpeakerConfig(65001, bytes((192, 0, 2, 1)), (V4,), ((V4, bytes((192, 0, 2, 1))),)), lambda: 0.5, now=NOW
        )
        self.config = PeerConfig("peer", bytes((192, 0, 2, 2)), 65001, passive=True, hold_time=9)
        self.speaker.set_peers([self.config], NOW)
        settings = Settings(65001, bytes((192, 0, 2, 2)), None, Capabilities((V4,)), hold_time=9)
        self.session = Session(settings, lambda: 0.5)
        assert self.speaker.accepted("peer", NOW)
        self.session.start(NOW)
        self.session.connected(NOW)
        self.drain(NOW)
        assert self.session.negotiated is not None
        attributes = Attributes(next_hop=bytes((192, 0, 2, 2)), local_pref=100)
        self.session.send(b"".join(encode_announcement(V4, attributes, PREFIXES, as4=True)))
        self.drain(NOW)

    @property
    def peer_rib(self) -> dict[bytes, str]:
        received = self.speaker.ribs[V4].received(self.speaker.peers["peer"].source)
        return {prefix: route.rejected for prefix, route in received.items()}

    def say(self, now: float) -> None:
        for output in self.session.take():
            if isinstance(output, Send):
                self.speaker.receive("peer", Direction.INCOMING, output.data, now)

    def take(self, now: float) -> list[int]:
        """One turn of the speaker; the kinds of messages that it had for the peer."""
        kinds = []
        for _, output in self.speaker.take(now):
            if isinstance(output, Send):
                kinds += [kind for kind, _ in Framer().receive(output.data)]
                self.session.receive(Direction.OUTGOING, output.data, now)
        return kinds

    def drain(self, now: float) -> None:
        self.say(now)
        while self.take(now) or self.speaker.pending or self.speaker.telling:
            self.say(now)


def test_another_policy_is_pending_and_a_keepalive_goes_out_in_between() -> None:
    full = Full()
    speaker = full.speaker
    assert len(speaker.ribs[V4].chosen) == COUNT
    speaker.set_peers([replace(full.config, import_policy=NOTHING)], NOW)
    assert speaker.pending
    full.take(NOW)
    rejected = sum(map(bool, full.peer_rib.values()))
    assert rejected == AT_ONCE
    assert speaker.pending

    later = NOW + 4  # a third of the hold time is over
    speaker.expire(later)
    assert full.take(later) == [MessageType.KEEPALIVE]
    assert speaker.pending
    assert sum(map(bool, full.peer_rib.values())) == 2 * AT_ONCE

    # What comes meanwhile is judged by the new policy at once.
    again = Attributes(next_hop=bytes((192, 0, 2, 2)), local_pref=200)
    full.session.send(b"".join(encode_announcement(V4, again, PREFIXES[-1:], as4=True)))
    full.say(later)
    assert full.peer_rib[PREFIXES[-1]]
    full.drain(later)
    assert all(full.peer_rib.values())
    assert not speaker.ribs[V4].chosen
    assert speaker.peers["peer"].session.negotiated is not None


def test_a_policy_that_changes_again_before_it_is_through() -> None:
    full = Full()
    full.speaker.set_peers([replace(full.config, import_policy=NOTHING)], NOW)
    full.take(NOW)
    full.speaker.set_peers([full.config], NOW)
    turns = 0
    while full.speaker.pending:
        full.take(NOW)
        turns += 1
    assert turns >= COUNT // AT_ONCE
    assert not any(full.peer_rib.values())
    assert len(full.speaker.ribs[V4].chosen) == COUNT


def test_a_session_that_ends_while_its_routes_are_judged_leaves_nothing() -> None:
    full = Full()
    full.speaker.set_peers([replace(full.config, import_policy=NOTHING)], NOW)
    full.take(NOW)
    full.speaker.set_peers([], NOW)
    while full.speaker.pending:
        full.speaker.take(NOW)
    assert not full.speaker.ribs[V4].chosen
    assert not list(full.speaker.ribs[V4].prefixes())
