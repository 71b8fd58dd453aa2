"""Speakers joined in memory under simulated time: mesh, reflection, other ASes, policy, limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from bgp.connection import Direction, Down, Established, Settings
from bgp.message import AsPath, Attributes, Capabilities, Family, LocalError, Update, encode_announcement, nlri
from bgp.message.attributes import attribute
from bgp.message.framing import frame
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import EVERYTHING, Change, Match, Policy, PrefixRange, Rule
from bgp.session import Session
from bgp.speaker import PrefixLimit, Speaker
from tests.support.bgp import Network, OneSession

V4, V6 = Family.IPV4, Family.IPV6


def address(number: int) -> bytes:
    return bytes((192, 0, 2, number))


def address6(number: int) -> bytes:
    return bytes.fromhex("20010db8") + bytes(11) + bytes((number,))


class Cluster:
    """Numbered speakers on one network. Number n has the address 192.0.2.n and originates 10.0.n.0/24."""

    def __init__(self, seed: int = 0) -> None:
        self.network = Network(seed)
        self.random = Random(seed).random
        self.speakers: dict[int, Speaker] = {}

    def speaker(self, number: int, asn: int = 65001, *, originates: bool = True, **options: Any) -> Speaker:
        starting = {
            name: options.pop(name) for name in ("restarting", "deferral", "metric", "dropped") if name in options
        }
        config = SpeakerConfig(
            asn, address(number), tuple(Family), ((V4, address(number)), (V6, address6(number))), **options
        )
        speaker = Speaker(config, self.random, now=self.network.now, **starting)
        if originates:
            speaker.originate(V4, prefix(number))
            speaker.originate(V6, prefix6(number))
        self.speakers[number] = speaker
        self.network.add(str(number), speaker)
        return speaker

    def peer(self, one: int, two: int, asn: int | None = 65001, **options: Any) -> None:
        """`one` is told of `two`."""
        config = PeerConfig(str(two), address(two), asn, **{"hold_time": 9, **options})
        self.speakers[one].add_peer(config, self.network.now)

    def mesh(self, numbers: Iterable[int]) -> None:
        chosen = list(numbers)
        for one in chosen:
            for two in chosen:
                if one != two:
                    self.peer(one, two)

    def crash(self, number: int) -> None:
        self.network.remove(str(number))
        del self.speakers[number]

    def until(self, seconds: float, wanted: dict[int, set[int]]) -> None:
        """Wait until each speaker knows exactly the prefixes of those numbers, in both families."""

        end = self.network.now + seconds
        while any(self.known(number) != numbers for number, numbers in wanted.items()):
            assert self.network.now < end, {number: self.known(number) for number in wanted}
            self.network.run(0.05)

    def everywhere(self, seconds: float, numbers: Iterable[int], known: set[int] | None = None) -> None:
        """Wait until these speakers know these prefixes; by default each other's."""
        numbers = set(numbers)
        self.until(seconds, dict.fromkeys(numbers, numbers if known is None else known))

    def known(self, number: int) -> set[int]:
        """The numbers of the prefixes chosen; -1 among them when the two families differ."""
        four = {wire[3] for wire in self.speakers[number].ribs[V4].chosen}
        six = {wire[6] for wire in self.speakers[number].ribs[V6].chosen}
        return four if four == six else {*four, *six, -1}

    def events(self, number: int, kind: type) -> list[Any]:
        return self.network.events(str(number), kind)


def prefix(number: int) -> bytes:
    return bytes((24, 10, 0, number))


def prefix6(number: int) -> bytes:
    return bytes((48,)) + bytes.fromhex("20010db8") + bytes((0, number))


def via(speaker: Speaker, number: int, family: Family = V4) -> str:
    wire = prefix(number) if family is V4 else prefix6(number)
    return nlri.address_text(speaker.ribs[family].chosen[wire][0].attributes.next_hop)


@pytest.mark.parametrize("seed", range(5))
def test_a_mesh_learns_loses_and_learns_again(seed: int) -> None:
    cluster = Cluster(seed)
    everybody = set(range(1, 6))
    for number in everybody:
        cluster.speaker(number, restart_time=0)
    cluster.mesh(everybody)
    cluster.everywhere(10, everybody)
    assert via(cluster.speakers[1], 4) == "192.0.2.4"
    assert via(cluster.speakers[1], 4, V6) == "2001:db8::4"
    assert cluster.speakers[1].ribs[V4].chosen[prefix(4)][0].attributes.local_pref == 100

    cluster.speakers[2].retract(V4, prefix(2))
    cluster.speakers[2].retract(V6, prefix6(2))
    cluster.everywhere(1, everybody, everybody - {2})
    cluster.crash(3)
    alive = everybody - {3}
    cluster.everywhere(1, alive, everybody - {2, 3})

    cluster.speaker(3, restart_time=0)
    for number in alive:
        cluster.peer(3, number)
    cluster.everywhere(10, everybody, everybody - {2})


def test_a_batch_is_one_change_however_often_a_peer_changes_its_mind() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.until(10, {1: {1, 2}, 2: {1, 2}})
    speaker = cluster.speakers[1]
    speaker.take_changes()
    for _ in range(5):
        speaker.retract(V4, prefix(1))
        speaker.originate(V4, prefix(1), Attributes(med=7))
    cluster.network.settle()
    changes = speaker.take_changes()
    assert {family: list(some) for family, some in changes.items()} == {V4: [prefix(1)], V6: []}
    assert speaker.take_changes() == {V4: {}, V6: {}}


def reflected(seed: int = 0) -> Cluster:
    """Reflectors 1 and 2 with clients 11 to 14, and 3 beside them, who is nobody's client."""
    cluster = Cluster(seed)
    for number in (1, 2, 3, 11, 12, 13, 14):
        cluster.speaker(number)
    cluster.mesh((1, 2, 3))
    for reflector in (1, 2):
        for client in (11, 12, 13, 14):
            cluster.peer(reflector, client, client=True, passive=True)
            cluster.peer(client, reflector)
    return cluster


@pytest.mark.parametrize("seed", range(3))
def test_two_reflectors_and_one_is_enough(seed: int) -> None:
    cluster = reflected(seed)
    everybody = {1, 2, 3, 11, 12, 13, 14}
    cluster.everywhere(10, everybody)
    cluster.network.run(30)
    client = cluster.speakers[11]
    assert via(client, 12) == "192.0.2.12"  # the next hop is kept
    routes = client.ribs[V4].candidates(prefix(12))
    assert sorted(route.source.name for route in routes) == ["1", "2"]
    for route in routes:
        assert route.attributes.originator_id == address(12)
        assert route.attributes.cluster_list == (address(int(route.source.name)),)
    # What a client said comes back to it from nobody it said it to.
    assert prefix(11) not in client.ribs[V4].received(client.peers["1"].source)

    for number in everybody - {1}:
        assert {peer.session.negotiated is not None for peer in cluster.speakers[number].peers.values()} == {True}
    cluster.speakers[1].shut_down(cluster.network.now, "old age")
    cluster.everywhere(1, everybody - {1})
    down = cluster.speakers[11].peers["1"].session.last_down
    assert down is not None
    assert "old age" in down.reason


def test_routes_do_not_go_round_between_reflectors_of_each_other() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
        for other in {1, 2, 3} - {number}:
            cluster.peer(number, other, client=True)
    cluster.everywhere(10, (1, 2, 3))
    before = dict(cluster.network.sent)
    cluster.network.run(2)
    assert sum(cluster.network.sent.values()) - sum(before.values()) < 20  # keepalives, nothing else


def test_what_came_round_is_not_used() -> None:
    """ORIGINATOR_ID and CLUSTER_LIST (RFC 4456 section 8)."""
    cluster = Cluster()
    cluster.speaker(1)
    cluster.peer(1, 2)
    probe = Probe(cluster, 2, 65001, peer=1)
    good = Attributes(0, AsPath(), address(2), local_pref=100)
    probe.send(encode_announcement(V4, good._replace(originator_id=address(1)), [prefix(7)], as4=True))
    probe.send(encode_announcement(V4, good._replace(cluster_list=(address(9), address(1))), [prefix(8)], as4=True))
    probe.send(encode_announcement(V4, good._replace(originator_id=address(3)), [prefix(9)], as4=True))
    received = cluster.speakers[1].ribs[V4].received(cluster.speakers[1].peers["2"].source)
    assert {wire[3]: route.rejected for wire, route in received.items()} == {
        7: "we are the originator",
        8: "our cluster is in the cluster list",
        9: "",
    }
    assert set(cluster.speakers[1].ribs[V4].chosen) == {prefix(1), prefix(9)}


def test_between_ases() -> None:
    cluster = Cluster()
    cluster.speaker(1, 65001)
    cluster.speaker(2, 65002)
    cluster.speaker(3, 4200000003)
    for one, two, asn in ((1, 2, 65002), (2, 1, 65001), (2, 3, 4200000003), (3, 2, 65002)):
        cluster.peer(one, two, asn, export_policy=EVERYTHING)
    cluster.everywhere(10, (1, 2, 3))
    route = cluster.speakers[3].ribs[V4].chosen[prefix(1)][0]
    assert str(route.attributes.as_path) == "65002 65001"
    assert route.attributes.next_hop == address(2)
    assert route.attributes.local_pref is None
    back = cluster.speakers[1].ribs[V4].received(cluster.speakers[1].peers["2"].source)
    assert prefix(1) not in back or "in the path" in back[prefix(1)].rejected


def test_own_as_may_be_allowed_in_the_path() -> None:
    """Two racks with one AS number, joined by a router of another."""
    cluster = Cluster()
    cluster.speaker(1, 65001)
    cluster.speaker(2, 65001)
    cluster.speaker(9, 65009)
    cluster.peer(9, 1, export_policy=EVERYTHING)
    cluster.peer(9, 2, export_policy=EVERYTHING)
    cluster.peer(1, 9, 65009)
    cluster.peer(2, 9, 65009, allowed_own_as=1)
    cluster.until(10, {1: {1, 9}, 2: {1, 2, 9}})
    config = replace(cluster.speakers[1].peers["9"].config, allowed_own_as=1)
    cluster.speakers[1].set_peers([config], cluster.network.now)
    cluster.until(1, {1: {1, 2, 9}})
    assert len(cluster.events(1, Established)) == 1


def test_an_as_of_ones_own_for_one_peer() -> None:
    cluster = Cluster()
    cluster.speaker(1, 65001)
    cluster.speaker(2, 65002)
    cluster.peer(1, 2, 65002, local_asn=64999)
    cluster.peer(2, 1, 64999)
    cluster.everywhere(10, (1, 2))
    assert str(cluster.speakers[2].ribs[V4].chosen[prefix(1)][0].attributes.as_path) == "64999"


def test_a_path_that_does_not_begin_with_the_peers_as_is_not_used() -> None:
    cluster = Cluster()
    cluster.speaker(1, 65001)
    cluster.peer(1, 2, 65002)
    probe = Probe(cluster, 2, 65002, peer=1)
    probe.send(encode_announcement(V4, Attributes(0, AsPath.sequence(65005), address(2)), [prefix(7)], as4=True))
    received = cluster.speakers[1].ribs[V4].received(cluster.speakers[1].peers["2"].source)
    assert "does not begin" in received[prefix(7)].rejected
    assert prefix(7) not in cluster.speakers[1].ribs[V4].chosen


# --------------------------------------------------------------------------------------------------- changes


def test_policies_change_without_a_flap() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
    cluster.mesh((1, 2, 3))
    cluster.everywhere(10, (1, 2, 3))
    speaker, now = cluster.speakers[1], cluster.network.now
    two, three = (speaker.peers[name].config for name in ("2", "3"))

    closed = Policy(
        (Rule(False, Match(prefixes=(PrefixRange.parse("10.0.0.0/8+"), PrefixRange.parse("2001:db8::/32+")))),)
    )
    speaker.set_peers([replace(two, import_policy=closed), three], now)
    cluster.until(1, {1: {1, 3}, 2: {1, 2, 3}})
    received = speaker.ribs[V4].received(speaker.peers["2"].source)
    assert received[prefix(2)].rejected == "rejected by the import policy"
    preferred = Policy((Rule(True, Match(), Change(local_pref=300, add_communities=(7,))),))
    speaker.set_peers([replace(two, import_policy=preferred), three], now)
    cluster.until(1, {1: {1, 2, 3}})
    assert speaker.ribs[V4].chosen[prefix(2)][0].attributes.local_pref == 300
    assert speaker.ribs[V4].chosen[prefix(2)][0].received.local_pref == 100

    speaker.set_peers([replace(two, export_policy=closed), three], now)
    cluster.until(1, {2: {2, 3}, 3: {1, 2, 3}})
    speaker.set_peers([replace(two, export_policy=None), three], now)
    cluster.until(1, {2: {1, 2, 3}})
    assert [len(cluster.events(number, Established)) for number in (1, 2, 3)] == [2, 2, 2]


def test_a_reload_touches_only_the_sessions_that_changed() -> None:
    cluster = Cluster()
    for number in (1, 2, 3, 4):
        cluster.speaker(number)
    cluster.mesh((1, 2, 3))
    cluster.peer(4, 1)
    cluster.network.run(10)
    speaker = cluster.speakers[1]
    two, three = (speaker.peers[name].config for name in ("2", "3"))
    four = PeerConfig("4", address(4), 65001, hold_time=9)
    speaker.set_peers([two, replace(three, hold_time=30), four], cluster.network.now)
    cluster.until(30, {1: {1, 2, 3, 4}})
    assert len([down for down in cluster.events(1, Down) if down.was == 6]) == 1
    down = cluster.speakers[3].peers["1"].session.last_down
    assert down is not None
    speaker.set_peers([two], cluster.network.now)
    cluster.until(1, {1: {1, 2}})
    last = cluster.speakers[4].peers["1"].session.last_down
    assert last is not None
    assert "deconfigured" in last.reason


def test_a_reflector_by_one_setting_and_back_without_a_flap() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
    for client in (2, 3):
        cluster.peer(1, client)
        cluster.peer(client, 1)
    cluster.until(10, {1: {1, 2, 3}, 2: {1, 2}, 3: {1, 3}})
    speaker = cluster.speakers[1]
    for client, known in ((True, {1, 2, 3}), (False, None), (True, {1, 2, 3})):
        configs = [replace(peer.config, client=client) for peer in speaker.peers.values()]
        speaker.set_peers(configs, cluster.network.now)
        cluster.until(1, {2: known or {1, 2}, 3: known or {1, 3}})
    # One client is enough for both to hear of each other.
    configs = [replace(peer.config, client=peer.name == "2") for peer in speaker.peers.values()]
    speaker.set_peers(configs, cluster.network.now)
    cluster.until(1, {2: {1, 2, 3}, 3: {1, 2, 3}})
    assert len(cluster.events(1, Established)) == 2


def test_routes_can_be_asked_for_again() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    with pytest.raises(LocalError, match="does not take"):
        cluster.speakers[1].ask_again("2", V4)
    cluster.until(10, {1: {1, 2}, 2: {1, 2}})
    source = cluster.speakers[1].peers["2"].source
    before = cluster.speakers[1].ribs[V4].received(source)[prefix(2)]
    cluster.speakers[1].ask_again("2", V4)
    assert cluster.network.run(1, lambda: cluster.speakers[1].ribs[V4].received(source)[prefix(2)] is not before)
    assert cluster.known(1) == {1, 2}


@pytest.mark.parametrize("families", [(V4,), (V6,)])
def test_only_what_both_speak_is_sent(families: tuple[Family, ...]) -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.peer(1, 2, 65002)
    probe = Probe(cluster, 2, 65002, peer=1, families=families)
    assert {family for update in probe.updates() for family, _, _ in update.announced} == set(families)
    assert {update.end_of_rib for update in probe.updates() if update.end_of_rib} == set(families)


# ---------------------------------------------------------------------------------------- what peers do wrong


class Probe:
    """A session by hand, for what no speaker sends."""

    def __init__(
        self,
        cluster: Cluster,
        number: int,
        asn: int,
        *,
        peer: int,
        families: tuple[Family, ...] = tuple(Family),
        **options: Any,
    ) -> None:
        capabilities = Capabilities(families, **options)
        settings = Settings(asn, address(number), None, capabilities, hold_time=90)
        self.cluster, self.name = cluster, str(number)
        self.session = Session(settings, cluster.random)
        cluster.network.add(self.name, OneSession(self.session, str(peer)))
        self.session.start(cluster.network.now)
        assert cluster.network.run(10, lambda: self.session.negotiated is not None)
        cluster.network.run(0.5)

    def send(self, messages: list[bytes]) -> None:
        self.session.send(b"".join(messages))
        self.cluster.network.run(0.5)

    def updates(self) -> list[Any]:
        return self.cluster.network.events(self.name, Update)


def test_a_malformed_update_costs_its_routes_and_nothing_else() -> None:
    cluster = Cluster()
    for number in (1, 3):
        cluster.speaker(number)
    cluster.peer(1, 3, export_policy=EVERYTHING)
    cluster.peer(3, 1)
    cluster.peer(1, 2, 65002)
    probe = Probe(cluster, 2, 65002, peer=1)
    good = Attributes(0, AsPath.sequence(65002), address(2))
    probe.send(encode_announcement(V4, good, [prefix(21), prefix(22)], as4=True))
    watched = cluster.speakers[3].ribs[V4].chosen
    assert {prefix(21), prefix(22)} <= set(watched)

    block = b"\x40\x01\x01\x07" + attribute(0x40, 2, b"\x02\x01\0\0\xfd\xea") + b"\x40\x03\x04" + address(2)
    probe.send([frame(2, b"\0\0" + len(block).to_bytes(2, "big") + block + prefix(21))])
    assert prefix(21) not in watched
    assert prefix(22) in watched
    assert probe.session.negotiated is not None
    assert [str(fault) for fault in cluster.speakers[1].peers["2"].faults] == ["ORIGIN: value 07"]

    probe.send([frame(2, b"\0\0\0\0\x21\0\0\0\0\0")])
    assert prefix(22) not in watched
    down = probe.session.last_down
    assert down is not None
    assert down.received is not None
    assert (down.received.code, down.received.subcode) == (3, 10)


def test_too_many_prefixes_warn_and_then_end_the_session_for_good() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.peer(1, 2, 65002, most_prefixes=10)
    probe = Probe(cluster, 2, 65002, peer=1)
    good = Attributes(0, AsPath.sequence(65002), address(2))
    probe.send(encode_announcement(V4, good, [prefix(number) for number in range(20, 29)], as4=True))
    probe.send(encode_announcement(V4, good, [prefix(29)], as4=True))
    assert cluster.events(1, PrefixLimit) == [PrefixLimit(V4, 9, 10, False)]
    probe.send(encode_announcement(V4, good, [prefix(30)], as4=True))
    assert cluster.events(1, PrefixLimit)[1:] == [PrefixLimit(V4, 11, 10, True)]
    down = probe.session.last_down
    assert down is not None
    assert down.received is not None
    assert down.received.data.hex() == "0001010000000a"
    cluster.network.run(300)
    assert probe.session.negotiated is None
    assert set(cluster.speakers[1].ribs[V4].chosen) == {prefix(1)}
    cluster.speakers[1].reset("2", cluster.network.now)
    assert cluster.network.run(150, lambda: probe.session.negotiated is not None)


def test_another_limit_gives_another_chance_or_ends_the_session() -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2, 65002, most_prefixes=10)
    probe = Probe(cluster, 2, 65002, peer=1)
    config = speaker.peers["2"].config
    good = Attributes(0, AsPath.sequence(65002), address(2))
    eleven = encode_announcement(V4, good, [prefix(number) for number in range(20, 31)], as4=True)

    def limited(most: int | None) -> list[PrefixLimit]:
        before = len(cluster.events(1, PrefixLimit))
        speaker.set_peers([replace(config, most_prefixes=most)], cluster.network.now)
        cluster.network.run(60)
        return cluster.events(1, PrefixLimit)[before:]

    probe.send(eleven)
    assert probe.session.negotiated is None
    assert limited(11) == []
    assert probe.session.negotiated is not None  # raised: it is begun again by itself
    probe.send(eleven)
    assert cluster.events(1, PrefixLimit)[-1] == PrefixLimit(V4, 11, 11, False)
    assert limited(12) == [PrefixLimit(V4, 11, 12, False)]
    assert limited(None) == []
    assert probe.session.negotiated is not None
    assert limited(10) == [PrefixLimit(V4, 11, 10, True)]  # lowered below what has come: it ends at once
    assert probe.session.negotiated is None
    # What the operator has shut down is not begun again by another limit.
    speaker.stop_peer("2", cluster.network.now, "tea")
    assert limited(100) == []
    assert probe.session.negotiated is None


def test_a_next_hop_that_is_ourselves_is_not_used() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.peer(1, 2, 65002)
    probe = Probe(cluster, 2, 65002, peer=1)
    probe.send(encode_announcement(V4, Attributes(0, AsPath.sequence(65002), address(1)), [prefix(9)], as4=True))
    assert set(cluster.speakers[1].ribs[V4].chosen) == {prefix(1)}


# ---------------------------------------------------------------------------------------------------- the rest


def test_a_name_is_taken_once_and_strangers_are_not_let_in() -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2)
    with pytest.raises(LocalError, match="already"):
        cluster.peer(1, 2)
    assert not speaker.accepted("9", 0)
    speaker.receive("9", Direction.INCOMING, b"x", 0)
    speaker.failed("9", Direction.INCOMING, 0)
    speaker.connected("9", 0)


def test_timers_do_not_pile_up() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.network.run(600)
    assert len(cluster.events(1, Established)) == 1
    assert len(cluster.speakers[1]._timers) <= 4


def test_equal_paths_are_chosen_together() -> None:
    cluster = Cluster()
    cluster.speaker(1, paths=4)
    for number in (2, 3):
        speaker = cluster.speaker(number)
        speaker.originate(V4, prefix(50))
    cluster.mesh((1, 2, 3))
    assert cluster.network.run(10, lambda: len(cluster.speakers[1].ribs[V4].chosen.get(prefix(50), ())) == 2)


def test_a_hundred_clients_come_up_at_once() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    clients = set(range(2, 102))
    for number in clients:
        cluster.speaker(number)
        cluster.peer(1, number, client=True, passive=True)
        cluster.peer(number, 1)
    cluster.everywhere(10, {1, *clients})
    assert len(cluster.speakers[1].advertising.groups) == 1
