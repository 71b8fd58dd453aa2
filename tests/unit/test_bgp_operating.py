"""What an operator does to speakers and sees of them: peers by prefix, shutdown, own prefixes, slow peers, views."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backends.bgp import show
from backends.bgp.publishing import Publisher
from bgp import metrics, views
from bgp.connection import Direction, Down, Established
from bgp.daemon import show as daemon_show
from bgp.message import AsPath, Attributes, LocalError, encode_announcement, encode_route_refresh, nlri
from bgp.peer import PeerConfig
from bgp.policy import EVERYTHING
from bgp.ranges import PeerRange, range_of
from bgp.recorder import KEPT
from bgp.transport import Transport
from tests.unit.test_bgp_speaker import V4, V6, Cluster, Probe, address, prefix

NET24 = nlri.parse("192.0.2.0/24")[1]


def clients(limit: int = 100, **options: Any) -> PeerRange:
    template = PeerConfig("", bytes(4), 65001, **{"client": True, "hold_time": 9, **options})
    return PeerRange("clients", V4, NET24, template, limit)


def names(cluster: Cluster, number: int) -> set[str]:
    return set(cluster.speakers[number].peers)


class Ranged(Cluster):
    """Speaker 1 lists nobody; the network's names of its peers are their addresses there."""

    def accepting(self, *ranges: PeerRange, **options: Any) -> None:
        speaker = self.speaker(1, **options)
        speaker.set_peers([], self.network.now, ranges)
        self.network.nodes["1"] = _ByAddress(speaker)

    def client(self, number: int, **options: Any) -> None:
        self.speaker(number, **options)
        self.peer(number, 1)


class _ByAddress:
    """Between the network, which knows peers by number, and a speaker that knows them by address."""

    def __init__(self, speaker: Any) -> None:
        self.speaker = speaker

    def superseded(self, peer: str, now: float) -> bool:
        return bool(self.speaker.superseded(f"192.0.2.{peer}", now))

    def accepted(self, peer: str, now: float) -> bool:
        name = self.speaker.incoming(address(int(peer)), now)
        return name is not None and self.speaker.accepted(name, now)

    def failed(self, peer: str, direction: Direction, now: float, reason: str = "") -> None:
        self.speaker.failed(f"192.0.2.{peer}", direction, now, reason)

    def receive(self, peer: str, direction: Direction, data: bytes, now: float) -> None:
        self.speaker.receive(f"192.0.2.{peer}", direction, data, now)

    def take(self, now: float) -> list[tuple[str, Any]]:
        return [(name.rpartition(".")[2], output) for name, output in self.speaker.take(now)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.speaker, name)


# ------------------------------------------------------------------------------------------------- peers by prefix


def test_clients_of_a_range_need_no_list() -> None:
    cluster = Ranged()
    cluster.accepting(clients())
    for number in (2, 3, 4):
        cluster.client(number)
    cluster.everywhere(10, (1, 2, 3, 4))
    assert names(cluster, 1) == {"192.0.2.2", "192.0.2.3", "192.0.2.4"}
    assert len(cluster.speakers[1].advertising.groups) == 1


def test_a_range_has_a_limit_and_a_place_gets_free() -> None:
    cluster = Ranged()
    cluster.accepting(clients(limit=2), restart_time=0)
    for number in (2, 3):
        cluster.client(number)
    cluster.everywhere(10, (1, 2, 3))
    cluster.client(4)
    cluster.network.run(20)
    assert names(cluster, 1) == {"192.0.2.2", "192.0.2.3"}
    cluster.crash(2)
    cluster.everywhere(200, (1, 3, 4))
    assert names(cluster, 1) == {"192.0.2.3", "192.0.2.4"}


def test_a_client_that_restarts_keeps_its_place_and_its_routes() -> None:
    cluster = Ranged()
    cluster.accepting(clients(limit=1))
    cluster.client(2)
    cluster.everywhere(10, (1, 2))
    cluster.network.run(20)
    cluster.crash(2)
    cluster.network.run(30)
    assert names(cluster, 1) == {"192.0.2.2"}
    assert cluster.known(1) == {1, 2}
    cluster.network.run(120)  # it does not come back
    assert names(cluster, 1) == set()
    assert cluster.known(1) == {1}


def test_who_gave_too_many_prefixes_does_not_come_back_by_connecting_again() -> None:
    cluster = Ranged()
    cluster.accepting(clients(most_prefixes=1))
    cluster.client(2)
    cluster.speakers[2].originate(V4, prefix(50))
    cluster.network.run(200)
    assert cluster.known(1) == {1}
    assert names(cluster, 1) == {"192.0.2.2"}
    assert sum(isinstance(news, Established) for _, news in cluster.network.news["1"]) == 1


def test_another_range_or_a_configuration_of_its_own_changes_only_who_it_is_about() -> None:
    cluster = Ranged()
    cluster.accepting(clients(), restart_time=0)
    for number in (2, 3):
        cluster.client(number)
    cluster.everywhere(10, (1, 2, 3))
    speaker, now = cluster.speakers[1], cluster.network.now
    # Not clients any more: no session ends, and they do not hear of each other.
    speaker.set_peers([], now, [clients(client=False)])
    cluster.until(1, {2: {1, 2}, 3: {1, 3}})
    speaker.set_peers([], now, [clients()])
    cluster.everywhere(1, (1, 2, 3))
    assert len(cluster.network.events("2", Established)) == 1
    # One gets a configuration of its own, by another name.
    own = PeerConfig("two", address(2), 65001, client=True, hold_time=9)
    speaker.set_peers([own], now, [clients()])
    assert "192.0.2.2" not in speaker.peers
    assert "two" in speaker.peers
    # The range goes, and its peers with it.
    speaker.set_peers([own], now)
    assert set(speaker.peers) == {"two"}
    assert speaker.incoming(address(3), now) is None


def test_the_narrowest_range_counts() -> None:
    wide = PeerRange("wide", V4, nlri.parse("192.0.0.0/16")[1], PeerConfig("", bytes(4)))
    six = PeerRange("six", V6, nlri.parse("2001:db8::/32")[1], PeerConfig("", bytes(4)))
    near = clients()
    for ranges in ((wide, near, six), (near, six, wide)):
        assert range_of(ranges, address(9)) is near
        assert range_of(ranges, bytes((192, 0, 3, 1))) is wide
        assert range_of(ranges, bytes.fromhex("20010db8") + bytes(12)) is six
        assert range_of(ranges, bytes((10, 0, 0, 1))) is None


# ------------------------------------------------------------------------------------------------- up and down


def test_a_session_is_shut_down_with_words_and_started_again() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    speaker = cluster.speakers[1]
    speaker.stop_peer("2", cluster.network.now, "new cable")
    cluster.until(1, {1: {1}, 2: {2}})
    down = cluster.speakers[2].peers["1"].session.last_down
    assert down is not None
    assert "new cable" in down.reason
    cluster.network.run(60)
    assert cluster.known(1) == {1}
    speaker.start_peer("2", cluster.network.now)
    cluster.everywhere(150, (1, 2))


def test_a_configuration_may_say_that_a_session_is_down() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.peer(1, 2, shutdown="not yet")
    cluster.peer(2, 1)
    cluster.network.run(30)
    assert cluster.known(1) == {1}
    speaker = cluster.speakers[1]
    shown = next(views.peers(speaker, cluster.network.now))
    assert (shown["admin"], shown["why_down"]) == ("down", "shut down here: not yet")
    config = speaker.peers["2"].config
    speaker.set_peers([replace(config, shutdown=None)], cluster.network.now)
    cluster.everywhere(150, (1, 2))
    speaker.set_peers([replace(config, shutdown="enough")], cluster.network.now)
    cluster.until(1, {1: {1}, 2: {2}})


def test_other_settings_of_the_speaker_end_no_session() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
        for other in {1, 2, 3} - {number}:
            cluster.peer(number, other, client=number == 1)
    cluster.everywhere(10, (1, 2, 3))
    speaker = cluster.speakers[1]
    config = replace(speaker.config, cluster_id=bytes((9, 9, 9, 9)), paths=2, restart_time=7)
    speaker.set_config(config, cluster.network.now)
    cluster.network.run(1)
    routes = cluster.speakers[3].ribs[V4].candidates(prefix(2))
    assert (bytes((9, 9, 9, 9)),) in {route.attributes.cluster_list for route in routes}
    assert [len(cluster.events(number, Established)) for number in (1, 2, 3)] == [2, 2, 2]
    capabilities = speaker.peers["2"].session.settings.capabilities
    assert capabilities.graceful_restart is not None
    assert capabilities.graceful_restart.restart_time == 7
    with pytest.raises(LocalError, match="do not change"):
        speaker.set_config(replace(config, asn=1), cluster.network.now)


# --------------------------------------------------------------------------------------------- what is never taken


def test_a_default_route_is_taken_only_where_that_is_wanted() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.peer(1, 2, 65002)
    probe = Probe(cluster, 2, 65002, peer=1)
    for family, next_hop in ((V4, address(2)), (V6, bytes.fromhex("20010db8") + bytes(11) + b"\2")):
        given = Attributes(0, AsPath.sequence(65002), next_hop)
        probe.send(encode_announcement(family, given, [b"\0"], as4=True))
        speaker = cluster.speakers[1]
        assert b"\0" not in speaker.ribs[family].chosen
        assert speaker.ribs[family].received(speaker.peers["2"].source)[b"\0"].rejected == "a default route"
    config = replace(speaker.peers["2"].config, accept_default=True)
    speaker.set_peers([config], cluster.network.now)
    cluster.network.run(0.1)
    assert b"\0" in speaker.ribs[V4].chosen
    assert b"\0" in speaker.ribs[V6].chosen


def test_nobody_takes_our_prefix_nor_a_part_of_it() -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1, originates=False)
    cluster.peer(1, 2, 65002)
    probe = Probe(cluster, 2, 65002, peer=1)
    given = Attributes(0, AsPath.sequence(65002), address(2))
    part = nlri.parse("10.0.1.128/25")[1]
    probe.send(encode_announcement(V4, given, [prefix(1), part, prefix(2)], as4=True))

    def rejected() -> dict[str, str]:
        received = speaker.ribs[V4].received(speaker.peers["2"].source)
        return {nlri.text(V4, each): route.rejected for each, route in received.items()}

    free = {"10.0.1.0/24": "", "10.0.1.128/25": "", "10.0.2.0/24": ""}
    assert rejected() == free
    speaker.originate(V4, prefix(1))
    cluster.network.settle()
    assert rejected() == free  # others may have it too, and ours is what is used
    (chosen,) = speaker.ribs[V4].chosen[prefix(1)]
    assert chosen.source is speaker.local
    speaker.originate(V4, prefix(1), guard=True)
    cluster.network.settle()
    assert rejected() == {
        "10.0.1.0/24": "our own prefix",
        "10.0.1.128/25": "inside our own 10.0.1.0/24",
        "10.0.2.0/24": "",
    }
    assert set(speaker.ribs[V4].chosen) == {prefix(1), prefix(2)}
    # What comes later is judged alike.
    probe.send(encode_announcement(V4, given, [nlri.parse("10.0.1.0/32")[1]], as4=True))
    assert rejected()["10.0.1.0/32"] == "inside our own 10.0.1.0/24"
    speaker.retract(V4, prefix(1))
    cluster.network.settle()
    assert set(rejected().values()) == {""}
    assert part in speaker.ribs[V4].chosen


def test_a_node_with_two_routers_is_no_transit_between_them() -> None:
    cluster = Cluster()
    cluster.speaker(1, 65001)
    for number in (2, 3):
        cluster.speaker(number, 65000 + number + 100)
        cluster.peer(1, number, 65000 + number + 100)
        cluster.peer(number, 1)
    cluster.until(10, {1: {1, 2, 3}, 2: {1, 2}, 3: {1, 3}})
    for name in ("2", "3"):
        config = replace(cluster.speakers[1].peers[name].config, export_policy=EVERYTHING)
        configs = [config if peer.name == name else peer.config for peer in cluster.speakers[1].peers.values()]
        cluster.speakers[1].set_peers(configs, cluster.network.now)
    cluster.everywhere(1, (1, 2, 3))


# ------------------------------------------------------------------------------------------------------ slow peers


def test_who_does_not_read_is_told_the_difference_later() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
        for other in {1, 2, 3} - {number}:
            cluster.peer(number, other, client=number == 1)
    cluster.everywhere(10, (1, 2, 3))
    speaker = cluster.speakers[1]
    speaker.hold("2")
    speaker.originate(V4, prefix(77))
    speaker.originate(V4, prefix(78))
    speaker.retract(V4, prefix(1))
    cluster.network.run(1)
    speaker.retract(V4, prefix(78))
    cluster.network.run(1)
    assert {prefix(77), prefix(78)}.isdisjoint(cluster.speakers[2].ribs[V4].chosen)
    assert prefix(1) in cluster.speakers[2].ribs[V4].chosen
    assert prefix(77) in cluster.speakers[3].ribs[V4].chosen
    before = speaker.peers["2"].session.recorder.sent[2]
    speaker.release("2")
    speaker.release("2")
    cluster.network.run(1)
    assert set(cluster.speakers[2].ribs[V4].chosen) == {prefix(2), prefix(3), prefix(77)}
    assert speaker.peers["2"].session.recorder.sent[2] - before == 2  # one withdrawal, one announcement


def test_who_does_not_read_and_asks_for_all_again_gets_all_when_it_reads() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.peer(1, 2)
    probe = Probe(cluster, 2, 65001, peer=1)
    before = len(probe.updates())
    cluster.speakers[1].hold("2")
    probe.send([encode_route_refresh(V4)] * 50)
    assert len(probe.updates()) == before
    cluster.speakers[1].release("2")
    cluster.network.run(1)
    assert [list(update.announced[0][1]) for update in probe.updates()[before:]] == [[prefix(1)]]
    # Asked fifty times at once is answered once, by one that reads as well.
    probe.send([encode_route_refresh(V4)] * 50)
    assert len(probe.updates()) <= before + 1 + 3  # the network cuts the octets in two


def test_held_while_its_settings_change_and_gone_while_held() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number, restart_time=0)
    for number in (2, 3):
        cluster.peer(1, number)
        cluster.peer(number, 1)
    cluster.until(10, {1: {1, 2, 3}, 2: {1, 2}, 3: {1, 3}})
    speaker = cluster.speakers[1]
    speaker.hold("2")
    configs = [replace(peer.config, client=True) for peer in speaker.peers.values()]
    speaker.set_peers(configs, cluster.network.now)
    cluster.network.run(1)
    assert cluster.known(2) == {1, 2}
    speaker.release("2")
    cluster.everywhere(1, (1, 2, 3))
    speaker.hold("2")
    cluster.network.break_connections("1", "2")
    speaker.release("2")
    cluster.everywhere(30, (1, 2, 3))
    assert len(speaker.advertising.groups) == 1


# ----------------------------------------------------------------------------------------------------------- views


def watched() -> Cluster:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number, 65003 if number == 3 else 65001)
    cluster.mesh((1, 2))
    cluster.peer(1, 3, 65003, export_policy=EVERYTHING)
    cluster.peer(3, 1, export_policy=EVERYTHING)
    cluster.peer(1, 9)
    cluster.until(10, {1: {1, 2, 3}, 2: {1, 2}, 3: {1, 2, 3}})
    return cluster


def test_peers_are_shown_with_all_there_is_to_know() -> None:
    cluster = watched()
    speaker, now = cluster.speakers[1], cluster.network.now
    two, three, nine = views.peers(speaker, now)
    assert (two["name"], two["state"], two["kind"], two["asn"]) == ("2", "established", "internal", 65001)
    assert (three["kind"], three["router_id"]) == ("external", "192.0.2.3")
    stale = {"stale": 0, "long_lived_stale": 0}
    assert two["prefixes"]["ipv4"] == {"received": 1, "accepted": 1, "best": 1, **stale, "advertised": 1}
    assert three["prefixes"]["ipv6"]["advertised"] == 2
    assert two["capabilities"]["received"]["families"] == ["ipv4", "ipv6"]
    assert two["messages"]["received"]["open"] >= 1
    assert two["messages"]["sent"]["update"] == 4  # a route and an End-of-RIB in each family
    assert 0 < two["timers"]["hold"] <= 9
    assert nine["state"] in ("connect", "active", "idle")
    assert nine["why_down"]
    assert "capabilities" not in nine
    cluster.network.run(60)
    nine = next(views.peers(speaker, cluster.network.now, "192.0.2.9"))
    assert nine["why_down"] == "connection refused"
    assert nine["next_retry"] >= 0
    with pytest.raises(LocalError, match="there is no peer 'x'; there are: 2, 3, 9"):
        list(views.peers(speaker, now, "x"))
    json.dumps([list(views.peers(speaker, now)), views.summary(speaker)])
    assert views.summary(speaker)["established"] == 2


def test_routes_are_shown_with_why_and_to_whom() -> None:
    cluster = watched()
    speaker = cluster.speakers[1]
    (shown,) = views.routes(speaker, "10.0.2.77")
    assert (shown["prefix"], shown["family"]) == ("10.0.2.0/24", "ipv4")
    assert [(route["from"], route["best"], route["why"]) for route in shown["routes"]] == [
        ("2", True, "the only one")
    ]
    assert shown["advertised_to"] == ["3"]
    assert len(list(views.routes(speaker))) == 6
    assert {each["prefix"] for each in views.routes(speaker, "10.0.0.0/8", more_specific=True)} == {
        "10.0.1.0/24",
        "10.0.2.0/24",
        "10.0.3.0/24",
    }
    assert list(views.routes(speaker, "10.0.0.0/8")) == list(views.routes(speaker, "192.0.2.1")) == []
    with pytest.raises(LocalError, match="must lie between 0 and 32"):
        list(views.routes(speaker, "10.0.0.0/x"))

    cluster.speakers[3].originate(V4, prefix(2))
    cluster.network.run(1)
    (shown,) = views.routes(speaker, "10.0.2.0/24")
    assert [(route["from"], route["why"]) for route in shown["routes"]] == [
        ("2", "shorter AS path"),
        ("3", "the best has: shorter AS path"),
    ]
    (received,) = (each for each in views.received(speaker, "3") if each["prefix"] == "10.0.3.0/24")
    assert (received["accepted"], received["best"], received["as_path"]) == (True, True, "65003")
    assert {each["prefix"] for each in views.advertised(speaker, "2")} == {"10.0.1.0/24", "2001:db8:1::/48"}
    assert list(views.advertised(speaker, "9")) == []


def test_routes_kept_while_their_peer_restarts_are_marked() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
    cluster.mesh((1, 2, 3))
    cluster.everywhere(10, (1, 2, 3))
    speaker = cluster.speakers[1]

    publisher = Publisher(None)  # type: ignore[arg-type]  # nothing is published here

    def marked() -> dict[str, set[str]]:
        """The prefixes marked, by view; the daemon's values, its lines and the agent's lines must say the same."""
        found: dict[str, set[str]] = {}
        for view, items in (
            ("routes", list(views.routes(speaker))),
            ("received", list(views.received(speaker, "2"))),
        ):
            routes = [item["routes"][0] if view == "routes" else item for item in items]
            found[view] = {item["prefix"] for item, route in zip(items, routes, strict=True) if route["stale"]}
            agent = show.view(view, {"peer": "2"}, speaker, 0, publisher)
            for lines in (agent.lines(list(agent.values)), daemon_show.lines(view, True, items)):
                assert sum("(stale)" in line for line in lines) == len(found[view])
        return found

    assert marked() == {"routes": set(), "received": set()}
    cluster.crash(2)
    cluster.network.run(5)
    kept = {"10.0.2.0/24", "2001:db8:2::/48"}
    assert marked() == {"routes": kept, "received": kept}
    cluster.speaker(2, restarting=["1", "3"], deferral=20, originates=False)
    cluster.speakers[2].originate(V4, prefix(2))
    for number in (1, 3):
        cluster.peer(2, number)
    cluster.until(30, {1: {1, 2, 3, -1}})
    assert marked() == {"routes": set(), "received": set()}


def test_the_flight_recorder_outlives_a_flap_and_is_bounded() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number, restart_time=0)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    cluster.speakers[2].shut_down(cluster.network.now, "tea")
    cluster.network.run(1)
    entries = views.log(cluster.speakers[1], "2", cluster.network.now)
    text = json.dumps(entries)
    assert entries == sorted(entries, key=lambda entry: -entry["ago"])
    assert any(entry.get("received") == "OPEN" and entry["router_id"] == "192.0.2.2" for entry in entries)
    assert any(entry.get("sent") == "UPDATE" and "announced" in entry for entry in entries)
    announced = [
        each for entry in entries if entry.get("received") == "UPDATE" for each in entry.get("announced", ())
    ]
    assert {"10.0.2.0/24", "2001:db8:2::/48"} == {each["prefixes"][0] for each in announced}
    assert "administrative shutdown (6/2): tea" in text
    assert any("established" in entry.get("event", "") for entry in entries)
    assert any("down in ESTABLISHED" in entry.get("event", "") for entry in entries)

    probe_cluster = Cluster()
    probe_cluster.speaker(1)
    probe_cluster.peer(1, 2, 65002)
    probe = Probe(probe_cluster, 2, 65002, peer=1)
    given = Attributes(0, AsPath.sequence(65002), address(2))
    messages = [encode_announcement(V4, given, [prefix(number)], as4=True)[0] for number in range(200)]
    probe.send(messages)
    probe.send([messages[0][:16] + b"\0\x1c\2\0\0\0\5\x40\1\1\7\x18"])  # the attributes run over the end
    entries = views.log(probe_cluster.speakers[1], "2", probe_cluster.network.now)
    updates = [entry for entry in entries if "UPDATE" in entry.values()]
    assert len(updates) <= KEPT
    assert "malformed" in updates[-1]
    assert entries[0].get("sent") == "OPEN" or entries[0].get("received") == "OPEN"
    assert probe_cluster.events(1, Down)


def test_metrics_are_what_prometheus_reads() -> None:
    cluster = watched()
    page = metrics.text(cluster.speakers[1], cluster.network.now)
    assert 'bgp_peer_up{peer="2"} 1.0\n' in page
    assert 'bgp_peer_up{peer="9"} 0.0\n' in page
    assert 'bgp_peer_prefixes{peer="3",family="ipv4",kind="advertised"} 2\n' in page
    assert 'bgp_routes{family="ipv4"} 3\n' in page
    known = set()
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            known.add(line.split()[2])
        elif not line.startswith("#"):
            assert line.partition("{")[0].split()[0] in known
            float(line.rpartition(" ")[2])


# ------------------------------------------------------------------------------------------------------- transport


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"port": 0}, "port 0"),
        ({"password": b"x" * 81}, "80 at most"),
        ({"security_hops": 256}, "0 to 255"),
        ({"security_hops": 1, "multihop": 2}, "its own number"),
    ],
)
def test_what_a_transport_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(LocalError, match=words):
        Transport(**values)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(PeerConfig("x", bytes(4), transport=Transport(password=b"secret")))
