"""A whole table's worth of work is done by and by: what the speaker says meanwhile, and that others have a turn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgp.connection import Direction, Send, Settings
from bgp.message import Attributes, Capabilities, Family, MessageType, Update, encode_announcement
from bgp.message.framing import Framer
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import EVERYTHING, Change, Match, Policy, PrefixRange, Rule
from bgp.session import Session
from bgp.speaker import AT_ONCE, Speaker

V4 = Family.IPV4
NOW = 1000.0
COUNT = 2 * AT_ONCE + 1
NOTHING = Policy((Rule(False, Match(prefixes=(PrefixRange.parse("0.0.0.0/0+"),))),))
NOTHING_OUT = Policy((Rule(False),))
PREFIXES = [bytes((24, 10, *divmod(number, 256))) for number in range(COUNT)]


class Full:
    """A speaker with COUNT routes from one peer, told to nobody else: the other one is no client either."""

    def __init__(self) -> None:
        own = bytes((192, 0, 2, 1))
        self.speaker = Speaker(SpeakerConfig(65001, own, (V4,), ((V4, own),)), lambda: 0.5, now=NOW)
        self.config, self.other = (
            PeerConfig(name, bytes((192, 0, 2, number)), 65001, passive=True, hold_time=9)
            for name, number in (("peer", 2), ("other", 3))
        )
        self.speaker.set_peers([self.config, self.other], NOW)
        self.sessions: dict[str, Session] = {}
        self.heard: dict[str, list[Update]] = {"peer": [], "other": []}
        for config in (self.config, self.other):
            settings = Settings(65001, config.address, None, Capabilities((V4,)), hold_time=9)
            session = self.sessions[config.name] = Session(settings, lambda: 0.5)
            assert self.speaker.accepted(config.name, NOW)
            session.start(NOW)
            session.connected(NOW)
            self.drain(NOW)
            assert session.negotiated is not None
        attributes = Attributes(next_hop=bytes((192, 0, 2, 2)), local_pref=100)
        self.sessions["peer"].send(b"".join(encode_announcement(V4, attributes, PREFIXES, as4=True)))
        self.drain(NOW)

    @property
    def peer_rib(self) -> dict[bytes, str]:
        received = self.speaker.ribs[V4].received(self.speaker.peers["peer"].source)
        return {prefix: route.rejected for prefix, route in received.items()}

    def say(self, now: float) -> None:
        for name, session in self.sessions.items():
            for output in session.take():
                if isinstance(output, Send):
                    self.speaker.receive(name, Direction.INCOMING, output.data, now)
                elif isinstance(output, Update):
                    self.heard[name].append(output)

    def take(self, now: float) -> list[tuple[str, int]]:
        """One turn of the speaker; the kinds of messages that it had, and for whom."""
        kinds = []
        for name, output in self.speaker.take(now):
            if isinstance(output, Send):
                kinds += [(name, kind) for kind, _ in Framer().receive(output.data)]
                self.sessions[name].receive(Direction.OUTGOING, output.data, now)
        return kinds

    def drain(self, now: float) -> int:
        """As many turns as it takes; how many."""
        self.say(now)
        turns = 1
        while self.take(now) or self.speaker.pending or self.speaker.telling:
            self.say(now)
            turns += 1
        self.say(now)
        return turns

    def told(self, name: str) -> tuple[int, int]:
        """How many prefixes a peer has been announced, and how many withdrawn, since it was asked last."""
        heard, self.heard[name] = self.heard[name], []
        return (
            sum(len(some) for update in heard for _, some, _ in update.announced),
            sum(len(some) for update in heard for _, some in update.withdrawn),
        )


def test_another_policy_is_pending_and_a_keepalive_goes_out_in_between() -> None:
    full = Full()
    speaker = full.speaker
    assert len(speaker.ribs[V4].chosen) == COUNT
    speaker.set_peers([replace(full.config, import_policy=NOTHING), full.other], NOW)
    assert speaker.pending
    full.take(NOW)
    rejected = sum(map(bool, full.peer_rib.values()))
    assert rejected == AT_ONCE
    assert speaker.pending

    later = NOW + 4  # a third of the hold time is over
    speaker.expire(later)
    assert sorted(full.take(later)) == [("other", MessageType.KEEPALIVE), ("peer", MessageType.KEEPALIVE)]
    assert speaker.pending
    assert sum(map(bool, full.peer_rib.values())) == 2 * AT_ONCE

    # What comes meanwhile is judged by the new policy at once.
    again = Attributes(next_hop=bytes((192, 0, 2, 2)), local_pref=200)
    full.sessions["peer"].send(b"".join(encode_announcement(V4, again, PREFIXES[-1:], as4=True)))
    full.say(later)
    assert full.peer_rib[PREFIXES[-1]]
    full.drain(later)
    assert all(full.peer_rib.values())
    assert not speaker.ribs[V4].chosen
    assert speaker.peers["peer"].session.negotiated is not None


def test_a_policy_that_changes_again_before_it_is_through() -> None:
    full = Full()
    full.speaker.set_peers([replace(full.config, import_policy=NOTHING), full.other], NOW)
    full.take(NOW)
    full.speaker.set_peers([full.config, full.other], NOW)
    turns = 0
    while full.speaker.pending:
        full.take(NOW)
        turns += 1
    assert turns >= COUNT // AT_ONCE
    assert not any(full.peer_rib.values())
    assert len(full.speaker.ribs[V4].chosen) == COUNT


def test_a_session_that_ends_while_its_routes_are_judged_leaves_nothing() -> None:
    full = Full()
    full.speaker.set_peers([replace(full.config, import_policy=NOTHING), full.other], NOW)
    full.take(NOW)
    full.speaker.set_peers([], NOW)
    while full.speaker.pending:
        full.speaker.take(NOW)
    assert not full.speaker.ribs[V4].chosen
    assert not list(full.speaker.ribs[V4].prefixes())


@pytest.mark.parametrize("who", ["peer", "other"])
def test_another_role_is_told_by_and_by(who: str) -> None:
    full = Full()
    assert full.told("other") == (0, 0)
    full.speaker.set_peers([replace(config, client=config.name == who) for config in (full.config, full.other)], NOW)
    full.take(NOW)
    assert full.speaker.telling
    later = NOW + 4
    full.speaker.expire(later)
    assert {("peer", MessageType.KEEPALIVE), ("other", MessageType.KEEPALIVE)} <= set(full.take(later))
    assert full.speaker.telling
    assert full.drain(later) >= COUNT // AT_ONCE - 1
    assert full.told("other") == (COUNT, 0)
    full.speaker.set_peers([full.config, full.other], later)
    assert full.drain(later) > COUNT // AT_ONCE
    assert full.told("other") == (0, COUNT)
    assert full.told("peer")[0] == 0


def test_another_export_policy_is_compared_by_and_by_and_only_what_differs_is_sent() -> None:
    full = Full()
    clients = [replace(config, client=True) for config in (full.config, full.other)]
    full.speaker.set_peers(clients, NOW)
    full.drain(NOW)
    full.told("other")
    full.speaker.set_peers([clients[0], replace(clients[1], export_policy=EVERYTHING)], NOW)
    assert full.drain(NOW) > COUNT // AT_ONCE
    assert full.told("other") == (0, 0)
    one = PrefixRange(V4, PREFIXES[0], 24, 24)
    changed = Policy((Rule(True, Match(prefixes=(one,)), Change(med=7)), Rule(True)))
    full.speaker.set_peers([clients[0], replace(clients[1], export_policy=changed)], NOW)
    full.take(NOW)
    # What changes meanwhile, in what was compared already and in what was not, is told too; and it moves on.
    again = Attributes(next_hop=bytes((192, 0, 2, 2)), local_pref=200)
    full.sessions["peer"].send(b"".join(encode_announcement(V4, again, PREFIXES[-2:], as4=True)))
    full.say(NOW)
    full.take(NOW)
    full.speaker.set_peers([clients[0], replace(clients[1], export_policy=NOTHING_OUT)], NOW)
    full.drain(NOW)
    announced, withdrawn = full.told("other")
    assert withdrawn == COUNT
    assert announced <= 3
    full.speaker.set_peers(clients, NOW)
    full.drain(NOW)
    assert full.told("other") == (COUNT, 0)


def test_another_role_is_told_to_others_although_the_peer_itself_does_not_read() -> None:
    full = Full()
    full.speaker.hold("peer")
    full.speaker.set_peers([replace(full.config, client=True), full.other], NOW)
    assert full.speaker.telling
    full.drain(NOW)
    assert full.told("other") == (COUNT, 0)
