"""Several routes to a prefix (RFC 7911) and next hops of IPv6 for IPv4 (RFC 8950), between speakers in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bgp import metrics, views
from bgp.connection import Established
from bgp.daemon import show
from bgp.export import Several
from bgp.message import (
    AddPath,
    Attributes,
    Family,
    GracefulRestart,
    encode_announcement,
    encode_end_of_rib,
    encode_withdrawal,
    nlri,
)
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import Match, Policy, PrefixRange, Rule
from bgp.route import Route
from bgp.speaker import PrefixLimit, Speaker
from tests.unit.test_bgp_speaker import V4, V6, Cluster, Probe, address, address6, prefix

ANYCAST = nlri.parse("10.50.0.0/24")[1]
ALL = Several()
BOTH = AddPath.RECEIVE | AddPath.SEND
WAYS = tuple((family, BOTH) for family in Family)


def star(cluster: Cluster, clients: int, several: Several | None = ALL, **options: Any) -> None:
    """Speaker 9 reflects for 1 and so on, which all use several routes."""
    cluster.speaker(9, originates=False, paths=8, **options)
    for number in range(1, clients + 1):
        cluster.speaker(number, originates=False, paths=8, **options)
        cluster.peer(number, 9, several_in=True, several_out=ALL)
        cluster.peer(9, number, client=True, several_in=True, several_out=several)


def next_hops(speaker: Speaker, wire: bytes = ANYCAST) -> list[int]:
    """The last octets of the next hops chosen."""
    return sorted(route.attributes.next_hop[-1] for route in speaker.ribs[V4].chosen.get(wire, ()))


def paths(speaker: Speaker, peer: str, wire: bytes = ANYCAST) -> dict[int, int]:
    """Identifier and last octet of the next hop of each route that a peer gives."""
    received = speaker.ribs[V4].received(speaker.peers[peer].source)
    return {
        int.from_bytes(path[len(wire) :], "big"): route.attributes.next_hop[-1]
        for path, route in received.items()
        if path.startswith(wire)
    }


def until(cluster: Cluster, wanted: dict[int, list[int]], seconds: float = 10) -> None:
    assert cluster.network.run(
        seconds, lambda: all(next_hops(cluster.speakers[number]) == hops for number, hops in wanted.items())
    ), {number: next_hops(cluster.speakers[number]) for number in wanted}


def reaches(cluster: Cluster, condition: Any) -> None:
    assert cluster.network.run(10, condition)


def test_two_nodes_with_one_prefix_are_two_ways_through_a_reflector() -> None:
    cluster = Cluster()
    star(cluster, 3)
    for number in (1, 2):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2], 9: [1, 2]})
    given = paths(cluster.speakers[3], "9")
    assert sorted(given.values()) == [1, 2]
    assert 0 not in given
    # nobody is given its own route back
    assert list(paths(cluster.speakers[1], "9").values()) == [2]
    assert list(paths(cluster.speakers[2], "9").values()) == [1]

    kept = next(identifier for identifier, hop in given.items() if hop == 2)
    cluster.speakers[1].retract(V4, ANYCAST)
    until(cluster, {3: [2], 9: [2], 1: [2]})
    assert paths(cluster.speakers[3], "9") == {kept: 2}  # the one left has kept its identifier
    cluster.speakers[1].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2]})
    assert paths(cluster.speakers[3], "9")[kept] == 2
    cluster.crash(2)
    until(cluster, {3: [1], 9: [1]}, seconds=200)


def test_a_reflector_that_has_the_prefix_itself_tells_of_the_others_too() -> None:
    cluster = Cluster()
    star(cluster, 2)
    for number in (1, 9):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {2: [1, 9]})
    (chosen,) = cluster.speakers[9].ribs[V4].chosen[ANYCAST]
    assert chosen.source is cluster.speakers[9].local
    assert list(paths(cluster.speakers[1], "9").values()) == [9]
    cluster.speakers[9].retract(V4, ANYCAST)
    until(cluster, {2: [1], 9: [1]})


def test_without_the_capability_only_the_best_is_told() -> None:
    cluster = Cluster()
    star(cluster, 3)
    cluster.speaker(4, originates=False, paths=8)
    cluster.peer(4, 9)  # does not ask for several
    cluster.peer(9, 4, client=True, several_in=True, several_out=ALL)
    for number in (1, 2):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2], 4: [1]})
    received = cluster.speakers[4].ribs[V4].received(cluster.speakers[4].peers["9"].source)
    assert ANYCAST in received  # no identifier
    assert len(cluster.speakers[9].advertising.groups) == 2
    cluster.speakers[1].retract(V4, ANYCAST)
    until(cluster, {3: [2], 4: [2]})


@pytest.mark.parametrize(
    ("several", "told"),
    [(ALL, [1, 2, 3]), (Several(1), [1]), (Several(2), [1, 2]), (Several(7), [1, 2, 3]), (None, [1])],
)
def test_how_many_are_told(several: Several | None, told: list[int]) -> None:
    cluster = Cluster()
    star(cluster, 4, several)
    for number in (1, 2, 3):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {9: [1, 2, 3], 4: told})
    if several is not None:
        assert len(paths(cluster.speakers[4], "9")) == len(told)
    cluster.speakers[1].retract(V4, ANYCAST)
    until(cluster, {9: [2, 3], 4: [2, 3][: len(told)]})


def test_another_number_is_told_without_a_flap() -> None:
    cluster = Cluster()
    star(cluster, 4)
    for number in (1, 2, 3):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {4: [1, 2, 3]})
    before = paths(cluster.speakers[4], "9")
    reflector = cluster.speakers[9]

    def tell(several: Several | None) -> None:
        configs = [peer.config for peer in reflector.peers.values()]
        reflector.set_peers(
            [replace(config, several_out=several) if config.name == "4" else config for config in configs],
            cluster.network.now,
        )

    tell(Several(2))
    until(cluster, {4: [1, 2]})
    assert paths(cluster.speakers[4], "9").items() <= before.items()
    tell(ALL)
    until(cluster, {4: [1, 2, 3]})
    assert paths(cluster.speakers[4], "9") == before
    assert len(cluster.events(4, Established)) == 1
    tell(None)  # our OPEN does not say any more that we send several
    until(cluster, {4: [1]})
    assert len(cluster.events(4, Established)) == 2


def test_what_other_reflectors_repeat_is_told_once_a_next_hop() -> None:
    """Two reflectors, each other's clients, with the same clients: every route is there twice."""
    several = Several(by_next_hop=True)
    cluster = Cluster()
    for number in (1, 2, 3, 8, 9):
        cluster.speaker(number, originates=False, paths=8)
    for reflector, other in ((8, 9), (9, 8)):
        cluster.peer(reflector, other, client=True, several_in=True, several_out=several)
        for number in (1, 2, 3):
            cluster.peer(reflector, number, client=True, several_in=True, several_out=several)
            cluster.peer(number, reflector, several_in=True, several_out=several)
    for number in (1, 2):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2], 8: [1, 2], 9: [1, 2]})
    cluster.network.run(1)
    for peer in ("8", "9"):
        assert sorted(paths(cluster.speakers[3], peer).values()) == [1, 2]
    cluster.network.break_connections("1", "9")  # what the other reflector says of it takes its place
    until(cluster, {3: [1, 2], 9: [1, 2]})
    cluster.speakers[1].retract(V4, ANYCAST)
    until(cluster, {3: [2], 8: [2], 9: [2]})


def probe_of(cluster: Cluster, **options: Any) -> Probe:
    """Something at the wire that gives several routes to speaker 1; its own session has them both ways."""
    cluster.speaker(1, originates=False, paths=8)
    cluster.peer(1, 2, several_in=True, **options)
    return Probe(cluster, 2, 65001, peer=1, add_path=WAYS)


def announced(hop: int, *told: bytes) -> list[bytes]:
    return encode_announcement(V4, Attributes(next_hop=address(hop), local_pref=100), told, as4=True)


def path(number: int, wire: bytes = ANYCAST) -> bytes:
    return wire + number.to_bytes(4, "big")


def test_each_path_is_replaced_and_taken_back_by_its_identifier() -> None:
    cluster = Cluster()
    probe = probe_of(cluster)
    speaker = cluster.speakers[1]
    probe.send([*announced(11, path(7)), *announced(12, path(0)), *announced(13, path(8), path(9))])
    assert next_hops(speaker) == [11, 12, 13]  # two of the same next hop are one way
    assert paths(speaker, "2") == {7: 11, 0: 12, 8: 13, 9: 13}
    probe.send(announced(14, path(7)))
    assert next_hops(speaker) == [12, 13, 14]
    probe.send(encode_withdrawal(V4, [path(8), path(77)]))
    assert next_hops(speaker) == [12, 13, 14]
    probe.send(encode_withdrawal(V4, [path(9), path(0)]))
    assert next_hops(speaker) == [14]
    probe.send(encode_withdrawal(V4, [path(7)]))
    assert next_hops(speaker) == []
    assert not speaker.ribs[V4].received(speaker.peers["2"].source)


def test_the_order_of_arrival_does_not_decide() -> None:
    chosen = []
    for numbers in ((5, 3, 4), (4, 5, 3)):
        cluster = Cluster()
        cluster.speaker(1, originates=False)
        cluster.peer(1, 2, several_in=True)
        probe = Probe(cluster, 2, 65001, peer=1, add_path=WAYS)
        for number in numbers:
            probe.send(announced(10 + number, path(number)))
        chosen.append(next_hops(cluster.speakers[1]))
    assert chosen == [[13], [13]]


def test_every_path_counts_for_the_limit() -> None:
    cluster = Cluster()
    probe = probe_of(cluster, most_prefixes=3)
    probe.send([*announced(11, path(1)), *announced(12, path(2)), *announced(13, path(3))])
    assert [event.ended for event in cluster.events(1, PrefixLimit)] == [False]
    probe.send(announced(14, path(4)))
    assert cluster.events(1, PrefixLimit)[-1] == PrefixLimit(V4, 4, 3, True)


def test_own_prefixes_and_policies_are_judged_by_prefix() -> None:
    cluster = Cluster()
    refused = Policy((Rule(False, Match(prefixes=(PrefixRange.parse("10.60.0.0/16+"),))),))
    probe = probe_of(cluster, import_policy=refused)
    speaker = cluster.speakers[1]
    speaker.originate(V4, prefix(1), guard=True)
    inside, other = nlri.parse("10.0.1.128/25")[1], nlri.parse("10.60.1.0/24")[1]
    probe.send(announced(11, *(path(5, wire) for wire in (prefix(1), inside, other, b"\0", ANYCAST))))
    received = speaker.ribs[V4].received(speaker.peers["2"].source)
    assert {nlri.text(V4, each): route.rejected for each, route in received.items()} == {
        "10.0.1.0/24": "our own prefix",
        "10.0.1.128/25": "inside our own 10.0.1.0/24",
        "10.60.1.0/24": "rejected by the import policy",
        "0.0.0.0/0": "a default route",
        "10.50.0.0/24": "",
    }
    speaker.retract(V4, prefix(1))
    speaker.set_peers([replace(speaker.peers["2"].config, import_policy=None)], cluster.network.now)
    reaches(cluster, lambda: not speaker.pending)
    assert {nlri.text(V4, each) for each, route in received.items() if route.rejected} == {"0.0.0.0/0"}


def test_graceful_restart_marks_each_path() -> None:
    cluster = Cluster()
    restart = GracefulRestart(30, False, ((V4, True),))
    back = replace(restart, restarting=True)
    cluster.speaker(1, originates=False, paths=8, stale_time=20)
    cluster.peer(1, 2, several_in=True)
    probe = Probe(cluster, 2, 65001, peer=1, add_path=WAYS, graceful_restart=restart)
    speaker = cluster.speakers[1]
    probe.send([*announced(11, path(1)), *announced(12, path(2))])
    cluster.network.remove("2")
    cluster.network.run(1)
    assert speaker.ribs[V4].stale(speaker.peers["2"].source) == 2
    assert next_hops(speaker) == [11, 12]
    probe = Probe(cluster, 2, 65001, peer=1, add_path=WAYS, graceful_restart=back)
    probe.send(announced(12, path(2)))
    assert next_hops(speaker) == [11, 12]
    assert speaker.ribs[V4].stale(speaker.peers["2"].source) == 1
    probe.send([encode_end_of_rib(V4)])
    assert next_hops(speaker) == [12]

    # back without several: what had an identifier is stale until End-of-RIB, whatever it says now
    cluster.network.remove("2")
    cluster.network.run(1)
    probe = Probe(cluster, 2, 65001, peer=1, graceful_restart=back)
    probe.send(announced(12, ANYCAST))
    assert speaker.ribs[V4].stale(speaker.peers["2"].source) == 1
    probe.send([encode_end_of_rib(V4)])
    assert paths(speaker, "2") == {0: 12}
    assert ANYCAST in speaker.ribs[V4].received(speaker.peers["2"].source)


def test_a_peer_that_asks_again_is_told_all_again() -> None:
    cluster = Cluster()
    star(cluster, 3)
    for number in (1, 2):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2]})
    three = cluster.speakers[3]
    source = three.peers["9"].source
    before = paths(three, "9")
    three.ribs[V4].remove(source)
    three.ask_again("9", V4)
    until(cluster, {3: [1, 2]})
    assert paths(three, "9") == before


def test_who_does_not_read_is_told_by_path_later() -> None:
    cluster = Cluster()
    star(cluster, 3)
    for number in (1, 2):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2]})
    cluster.speakers[9].hold("3")
    cluster.speakers[1].retract(V4, ANYCAST)
    until(cluster, {9: [2]})
    cluster.network.run(2)
    assert next_hops(cluster.speakers[3]) == [1, 2]
    cluster.speakers[9].release("3")
    until(cluster, {3: [2]})


def test_paths_that_lose_their_next_hop_are_taken_back() -> None:
    lost: set[bytes] = set()
    cluster = Cluster()
    star(cluster, 3)
    cluster.speakers[9].ribs[V4].metric = lambda next_hop: None if next_hop in lost else 0
    for number in (1, 2):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2]})
    before = paths(cluster.speakers[3], "9")
    for number, left in ((2, [1]), (1, [2])):  # not the best one, then the best one
        lost.add(address(number))
        cluster.speakers[9].ribs[V4].next_hops_changed(lost)
        until(cluster, {3: left})
        lost.clear()
        cluster.speakers[9].ribs[V4].next_hops_changed({address(number)})
        until(cluster, {3: [1, 2]})
        assert paths(cluster.speakers[3], "9") == before


def test_views_show_every_path() -> None:
    cluster = Cluster()
    star(cluster, 3)
    for number in (1, 2):
        cluster.speakers[number].originate(V4, ANYCAST)
    until(cluster, {3: [1, 2]})
    three, nine, now = cluster.speakers[3], cluster.speakers[9], cluster.network.now
    (entry,) = views.routes(three, "10.50.0.0/24")
    told = {route["path_id"]: route["next_hop"] for route in entry["routes"]}
    assert sorted(told.values()) == ["192.0.2.1", "192.0.2.2"]
    assert all(route["used"] for route in entry["routes"])
    received = list(views.received(three, "9"))
    assert {route["path_id"]: route["next_hop"] for route in received} == told
    assert [route["used"] for route in received] == [True, True]
    assert {route["path_id"]: route["next_hop"] for route in views.advertised(nine, "3")} == told
    assert {route["next_hop"] for route in views.advertised(nine, "1")} == {"192.0.2.2"}
    (reflected,) = views.routes(nine, "10.50.0.0/24")
    assert sorted(reflected["advertised_to"]) == ["1", "2", "3"]
    (peer,) = views.peers(nine, now, "3")
    assert peer["add_path"] == {"ipv4": "both", "ipv6": "both"}
    assert peer["capabilities"]["received"]["add_path"] == {"ipv4": "both", "ipv6": "both"}
    assert peer["prefixes"]["ipv4"]["advertised"] == 2
    assert 'bgp_peer_prefixes{peer="3",family="ipv4",kind="advertised"} 2' in metrics.text(nine, now)
    assert any(" id " in line for line in show.lines("received", False, received))
    assert any(" id " in line for line in show.lines("routes", False, [entry]))
    for speaker, peer_name in ((three, "9"), (nine, "3")):
        shown = [str(item) for item in views.log(speaker, peer_name, now)]
        assert any("10.50.0.0/24 id " in item for item in shown)
        assert not any("malformed" in item for item in shown)


def test_groups_are_shared_and_split_by_what_is_told() -> None:
    cluster = Cluster()
    star(cluster, 4)
    reaches(cluster, lambda: sum(len(g.members) for g in cluster.speakers[9].advertising.groups.values()) == 4)
    assert len(cluster.speakers[9].advertising.groups) == 1
    nine = cluster.speakers[9]
    configs = [
        replace(peer.config, several_out=Several(2)) if name == "4" else peer.config
        for name, peer in nine.peers.items()
    ]
    nine.set_peers(configs, cluster.network.now)
    assert len(nine.advertising.groups) == 2


def test_decided_prefixes_are_only_remembered_while_somebody_takes_several() -> None:
    cluster = Cluster()
    star(cluster, 2, several=None)
    cluster.speakers[1].originate(V4, ANYCAST)
    until(cluster, {2: [1]})
    assert cluster.speakers[9].ribs[V4].take_decided() == {}
    assert all(not each._known for each in cluster.speakers[9].advertising._identifiers.values())


# ------------------------------------------------------------------------------------- next hops of IPv6 for IPv4


def over_ipv6(cluster: Cluster, number: int, **options: Any) -> Speaker:
    """A speaker that has only an address of IPv6."""
    config = SpeakerConfig(65001, address(number), tuple(Family), ((V6, address6(number)),), paths=8, **options)
    speaker = Speaker(config, cluster.random, now=cluster.network.now)
    cluster.speakers[number] = speaker
    cluster.network.add(str(number), speaker)
    return speaker


def peer6(cluster: Cluster, one: int, two: int, asn: int = 65001, **options: Any) -> None:
    config = PeerConfig(str(two), address6(two), asn, hold_time=9, **options)
    cluster.speakers[one].add_peer(config, cluster.network.now)


def test_routes_of_ipv4_over_ipv6() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        over_ipv6(cluster, number)
    for one, two, client in ((1, 2, False), (2, 1, True), (2, 3, True), (3, 2, False)):
        peer6(cluster, one, two, client=client, extended_next_hop=True)
    cluster.speakers[1].originate(V4, ANYCAST)

    def route(number: int) -> Route | None:
        return next(iter(cluster.speakers[number].ribs[V4].chosen.get(ANYCAST, ())), None)

    reaches(cluster, lambda: route(3) is not None)
    found = route(3)
    assert found is not None
    assert found.attributes.next_hop == address6(1)  # reflected with the next hop that it came with
    (entry,) = views.routes(cluster.speakers[3], "10.50.0.0/24")
    assert entry["routes"][0]["next_hop"] == "2001:db8::1"
    (peer,) = views.peers(cluster.speakers[3], cluster.network.now, "2")
    assert peer["extended_next_hop"] is True
    cluster.speakers[1].retract(V4, ANYCAST)
    reaches(cluster, lambda: route(3) is None)
    assert not any("malformed" in str(item) for item in views.log(cluster.speakers[3], "2", cluster.network.now))


def test_who_has_not_agreed_is_not_told_of_them() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        over_ipv6(cluster, number)
    for one, two in ((1, 2), (2, 1)):
        peer6(cluster, one, two, client=one == 2, extended_next_hop=True)
    peer6(cluster, 2, 3, client=True, extended_next_hop=True)
    peer6(cluster, 3, 2)
    cluster.speakers[1].originate(V4, ANYCAST)
    cluster.speakers[1].originate(V6, nlri.parse("2001:db8:7::/48")[1])
    reaches(cluster, lambda: bool(cluster.speakers[3].ribs[V6].chosen))
    assert ANYCAST in cluster.speakers[2].ribs[V4].chosen
    assert not cluster.speakers[3].ribs[V4].chosen
    assert [len(cluster.events(number, Established)) for number in (1, 2, 3)] == [1, 2, 1]


@pytest.mark.parametrize("over", [4, 6])
def test_over_ipv6_the_next_hop_is_of_ipv6_where_that_is_agreed(over: int) -> None:
    cluster = Cluster()
    cluster.speaker(1, originates=False)
    cluster.speaker(2, originates=False)
    for one, two in ((1, 2), (2, 1)):
        (cluster.peer if over == 4 else lambda *given, **more: peer6(cluster, *given, **more))(
            one, two, extended_next_hop=True
        )
    cluster.speakers[1].originate(V4, ANYCAST)
    reaches(cluster, lambda: ANYCAST in cluster.speakers[2].ribs[V4].chosen)
    (route,) = cluster.speakers[2].ribs[V4].chosen[ANYCAST]
    assert route.attributes.next_hop == (address(1) if over == 4 else address6(1))
