"""What the RFCs and our documents say of sessions, clause by clause, where no other test says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bgp.connection import Connection, Direction, Down, Established, Settings
from bgp.fsm import State
from bgp.message import (
    KEEPALIVE,
    AddPath,
    AsPath,
    Attributes,
    Capabilities,
    Cease,
    ErrorCode,
    GracefulRestart,
    Notification,
    Open,
    RefreshKind,
    encode_announcement,
    encode_end_of_rib,
    encode_route_refresh,
    nlri,
)
from bgp.peer import PeerConfig
from bgp.ranges import PeerRange
from bgp.speaker import PrefixLimit, Speaker
from tests.unit.test_bgp_operating import Ranged, clients
from tests.unit.test_bgp_speaker import V4, V6, Cluster, Probe, address, prefix, prefix6

FROM_2 = Attributes(0, AsPath.sequence(65002), address(2))


@pytest.mark.parametrize(
    ("path", "allowed", "refused"),
    [
        ((65002, 64999), 0, "our AS 64999 is in the path"),
        ((65002, 65001), 0, "our AS 65001 is in the path"),
        ((65002, 64999, 65001), 1, ""),
        ((65002, 65001, 65001), 1, "our AS 65001 is in the path"),
        ((65002, 65009), 0, ""),
    ],
)
def test_a_path_with_either_of_our_as_numbers_is_a_loop(path: tuple[int, ...], allowed: int, refused: str) -> None:
    """RFC 4271 section 9.1.2, where a peer knows us by another AS number than others do."""
    cluster = Cluster()
    speaker = cluster.speaker(1, 65001)
    cluster.peer(1, 2, 65002, local_asn=64999, allowed_own_as=allowed)
    probe = Probe(cluster, 2, 65002, peer=1)
    probe.send(encode_announcement(V4, Attributes(0, AsPath.sequence(*path), address(2)), [prefix(7)], as4=True))
    assert speaker.ribs[V4].received(speaker.peers["2"].source)[prefix(7)].rejected == refused


def several(number: int, *numbers: int) -> list[bytes]:
    """10.0.number.0/24, once under each of these identifiers."""
    return encode_announcement(V4, FROM_2, [prefix(number) + each.to_bytes(4, "big") for each in numbers], as4=True)


def test_what_is_stale_does_not_count_in_the_limit_of_prefixes() -> None:
    """A peer that has restarted gives its paths other identifiers (RFC 7911 section 3)."""
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2, 65002, several_in=True, most_prefixes=8, warn_at=1.0)
    restart = GracefulRestart(120, False, ((V4, True),))
    options: dict[str, Any] = {"graceful_restart": restart, "add_path": ((V4, AddPath.SEND),), "families": (V4,)}
    probe = Probe(cluster, 2, 65002, peer=1, **options)
    probe.send(several(7, *range(1, 7)))
    for first in (11, 21):  # once and once more: nothing gathers
        cluster.network.remove("2")
        cluster.network.run(5)
        assert speaker.ribs[V4].stale(speaker.peers["2"].source) == 6
        probe = Probe(cluster, 2, 65002, peer=1, **options)
        probe.send(several(7, *range(first, first + 6)))
        assert cluster.events(1, PrefixLimit) == []
        assert len(speaker.ribs[V4].received(speaker.peers["2"].source)) == 12
    probe.send([encode_end_of_rib(V4)])
    assert len(speaker.ribs[V4].received(speaker.peers["2"].source)) == 6
    probe.send(several(7, *range(31, 34)))
    assert cluster.events(1, PrefixLimit) == [PrefixLimit(V4, 9, 8, True)]


def test_a_refresh_without_an_end_is_no_way_around_the_limit() -> None:
    """BoRR after BoRR (RFC 7313), each with other prefixes."""
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2, 65002, most_prefixes=8, warn_at=1.0)
    probe = Probe(cluster, 2, 65002, peer=1, families=(V4,), enhanced_refresh=True)
    for first in range(20, 60, 8):
        if probe.session.negotiated is None:
            break
        probe.send([encode_route_refresh(V4, RefreshKind.BEGINS)])
        probe.send(encode_announcement(V4, FROM_2, list(map(prefix, range(first, first + 8))), as4=True))
    assert cluster.events(1, PrefixLimit) == [PrefixLimit(V4, 24, 8, True)]
    assert not speaker.ribs[V4].received(speaker.peers["2"].source)


# --------------------------------------------------------------------------------- whom our own restart waits for


def awaited(speaker: Speaker) -> list[str]:
    return speaker.deferral.awaited().get(V4, [])


def test_a_restart_waits_for_nobody_who_is_kept_down_here() -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1, restarting=["2", "3", "4"], deferral=600)
    for number in (2, 3, 4):
        cluster.peer(1, number, shutdown="maintenance" if number == 2 else None)
    assert awaited(speaker) == ["3", "4"]
    speaker.stop_peer("3", cluster.network.now)
    assert awaited(speaker) == ["4"]
    speaker.set_peers([replace(peer.config, shutdown="tea") for peer in speaker.peers.values()], cluster.network.now)
    assert not speaker.deferring
    cluster.network.run(1)
    assert cluster.known(1) == {1}


def test_a_restart_waits_for_nobody_who_cannot_come() -> None:
    """The configuration is another one by now: who stood before is no peer, unless a range has the address."""
    cluster = Cluster()
    speaker = cluster.speaker(1, restarting=["2", "198.51.100.7", "203.0.113.7", "gone"], deferral=600)
    family, wire = nlri.parse("198.51.100.0/24")
    within = PeerRange("clients", family, wire, PeerConfig("", bytes((198, 51, 100, 0)), 65001))
    speaker.set_peers([PeerConfig("2", address(2), 65001)], cluster.network.now, [within])
    assert awaited(speaker) == ["198.51.100.7", "2"]
    speaker.set_peers([PeerConfig("2", address(2), 65001)], cluster.network.now)
    assert awaited(speaker) == ["2"]


def test_a_restart_waits_no_longer_for_who_has_too_many_prefixes() -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1, restarting=["2"], deferral=600)
    cluster.peer(1, 2, 65002, most_prefixes=1)
    restart = GracefulRestart(120, False, ((V4, True),))
    probe = Probe(cluster, 2, 65002, peer=1, families=(V4,), graceful_restart=restart)
    assert awaited(speaker) == ["2"]
    probe.send(encode_announcement(V4, FROM_2, [prefix(7), prefix(8)], as4=True))
    assert not speaker.deferring


@pytest.mark.parametrize("hard", [False, True])
def test_a_restart_waits_no_longer_for_who_is_shut_down_over_there(hard: bool) -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1, restarting=["2"], deferral=600)
    cluster.peer(1, 2, 65002)
    restart = GracefulRestart(120, False, ((V4, True),), notification=hard)
    probe = Probe(cluster, 2, 65002, peer=1, families=(V4,), graceful_restart=restart)
    assert awaited(speaker) == ["2"]
    probe.session.stop(cluster.network.now, Notification.shutdown("tea"))
    cluster.network.run(1)
    down = speaker.peers["2"].session.last_down
    assert down and down.received and down.received.is_hard is hard
    assert not speaker.deferring


# ------------------------------------------------------------------------------------------- another configuration


def test_another_connect_retry_time_counts_at_once() -> None:
    """For the attempt that is under way too; a session that stands is left alone."""
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.speaker(2)
    cluster.mesh((1, 2))
    cluster.peer(1, 3, connect_retry=3600.0)
    cluster.network.run(20)
    nobody = speaker.peers["3"].session
    assert nobody.timers()["start"] is None or nobody.unanswered == 0
    cluster.network.cut.add(frozenset("13"))
    cluster.network.run(130)
    assert (nobody.state, nobody.unanswered) == (State.CONNECT, 0)
    configs = [replace(peer.config, connect_retry=2.0) for peer in speaker.peers.values()]
    speaker.set_peers(configs, cluster.network.now)
    cluster.network.run(9)
    assert 3 < nobody.unanswered < 7
    assert len(cluster.events(1, Established)) == 1


def changed(config: PeerConfig, **options: Any) -> PeerConfig:
    transport = {name: options.pop(name) for name in ("port", "password", "local_address") if name in options}
    return replace(config, transport=replace(config.transport, **transport), **options)


@pytest.mark.parametrize(
    "options",
    [{"hold_time": 30}, {"password": b"x"}, {"port": 1790}, {"passive": True}, {"several_in": True}],
    ids=lambda options: next(iter(options)),
)
def test_a_session_that_begins_anew_for_its_settings_loses_no_route(options: dict[str, Any]) -> None:
    """RFC 8538: what ends it is no Hard Reset, and both sides keep the other's routes until they are told again."""
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
    cluster.mesh((1, 2, 3))
    cluster.everywhere(10, (1, 2, 3))
    cluster.network.run(20)
    ours = cluster.speakers[1]

    def complete() -> bool:
        assert all(cluster.known(number) == {1, 2, 3} for number in (1, 2, 3))
        return len(cluster.events(2, Established)) == 3 and all(
            peer.complete for speaker in cluster.speakers.values() for peer in speaker.peers.values()
        )

    ours.set_peers(
        [changed(peer.config, **(options if name == "2" else {})) for name, peer in ours.peers.items()],
        cluster.network.now,
    )
    assert cluster.network.run(60, complete)
    cluster.network.run(1)
    (down,) = (down for down in cluster.events(2, Down) if down.was is State.ESTABLISHED)
    assert down.received == Notification(ErrorCode.CEASE, Cease.OTHER_CONFIGURATION_CHANGE)
    for speaker in cluster.speakers.values():
        assert all(rib.stale(peer.source) == 0 for rib in speaker.ribs.values() for peer in speaker.peers.values())
    assert [len(cluster.events(number, Established)) for number in (1, 2, 3)] == [3, 3, 2]
    negotiated = ours.peers["2"].session.negotiated
    assert negotiated and negotiated.hold_time == 9


@pytest.mark.parametrize("notification", [True, False])
def test_what_has_gone_while_a_session_began_anew_goes(notification: bool) -> None:
    """Also between speakers with RFC 4724 alone: nothing is said then, for a NOTIFICATION would be the end."""
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    session = cluster.speakers[2].peers["1"].session
    restart = session.settings.capabilities.graceful_restart
    assert restart
    restart = replace(restart, notification=notification)
    session.change_capabilities(replace(session.settings.capabilities, graceful_restart=restart))
    cluster.everywhere(10, (1, 2))
    cluster.network.run(20)
    ours = cluster.speakers[1]
    ours.set_peers([changed(ours.peers["2"].config, hold_time=30)], cluster.network.now)
    cluster.network.run(0.2)
    (down,) = (down for down in cluster.events(2, Down) if down.was is State.ESTABLISHED)
    assert (down.received is not None) is notification
    assert cluster.known(2) == {1, 2}
    cluster.speakers[2].retract(V4, prefix(2))
    cluster.speakers[2].retract(V6, prefix6(2))
    assert cluster.known(1) == {1, 2}
    cluster.until(30, {1: {1}, 2: {1}})


@pytest.mark.parametrize("options", [{"local_asn": 64999}, {"asn": None}, {"address": address(9)}])
def test_another_peer_by_the_same_name_begins_with_nothing(options: dict[str, Any]) -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    ours = cluster.speakers[1]
    ours.set_peers([replace(ours.peers["2"].config, **options)], cluster.network.now)
    ours.take(cluster.network.now)
    assert cluster.known(1) == {1}


def test_other_settings_start_no_session_that_is_kept_down() -> None:
    """`shutdown-peer` holds until `start-peer`; words in the configuration are said, and end it for good."""
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    ours = cluster.speakers[1]
    config = replace(ours.peers["2"].config, hold_time=30, shutdown="tea")
    ours.set_peers([config], cluster.network.now)
    cluster.until(1, {1: {1}, 2: {2}})
    down = cluster.speakers[2].peers["1"].session.last_down
    assert down and down.received and down.received.is_hard and down.received.text == "tea"
    ours.set_peers([replace(config, shutdown=None, hold_time=60)], cluster.network.now)
    cluster.everywhere(60, (1, 2))
    ours.stop_peer("2", cluster.network.now)
    ours.set_peers([replace(config, shutdown=None, hold_time=20)], cluster.network.now)
    cluster.network.run(60)
    assert not ours.peers["2"].session.started
    assert cluster.known(1) == {1}


def test_what_was_said_in_the_open_is_what_was_agreed_on() -> None:
    """The settings change between our OPEN and the peer's."""
    outputs: list[Any] = []
    sent = Capabilities((V4, V6))
    connection = Connection(Settings(65001, address(1), None, sent), Direction.INCOMING, outputs, lambda: 0.5)
    connection.start(0, manual=True)
    connection.connected(0)
    connection.change(replace(connection.settings, capabilities=Capabilities((V6,), enhanced_refresh=True)), 0)
    theirs = Open(65002, 90, address(2), Capabilities((V4, V6), enhanced_refresh=True))
    connection.receive(theirs.encode() + KEEPALIVE, 1, lambda _: True)
    (established,) = (output for output in outputs if isinstance(output, Established))
    assert established.negotiated.sent.capabilities == sent
    assert (established.negotiated.families, established.negotiated.enhanced_refresh) == ((V4, V6), False)


def test_too_many_prefixes_are_an_end_for_good() -> None:
    """RFC 8538 section 5.1: it stays down until somebody acts, so no routes are kept for its return."""
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.peer(1, 2, most_prefixes=1)
    cluster.peer(2, 1)
    cluster.everywhere(10, (1, 2))
    cluster.speakers[2].originate(V4, prefix(22))
    cluster.until(2, {1: {1}, 2: {2, 22, -1}})
    down = cluster.speakers[2].peers["1"].session.last_down
    assert down and down.received
    assert down.received.inside == Notification.too_many_prefixes(V4, 1)


def test_who_keeps_no_routes_is_told_why_a_session_begins_anew() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.speaker(2, restart_time=0)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    ours = cluster.speakers[1]
    ours.set_peers([changed(ours.peers["2"].config, hold_time=30)], cluster.network.now)
    cluster.until(0.4, {1: {1}, 2: {2}})
    down = cluster.speakers[2].peers["1"].session.last_down
    assert down and down.received and down.received.subcode == Cease.OTHER_CONFIGURATION_CHANGE


def test_a_reset_is_an_attempt_at_once_and_starts_nothing_that_is_kept_down() -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2)
    cluster.network.run(3600)
    session = speaker.peers["2"].session
    while (at := session.timers()["start"]) is None or at < cluster.network.now + 30:
        cluster.network.run(1)
    speaker.reset("2", cluster.network.now)
    at = session.timers()["start"]
    assert at is not None and at <= cluster.network.now + 1
    speaker.stop_peer("2", cluster.network.now)
    speaker.reset("2", cluster.network.now)
    assert not session.started


def test_nothing_is_kept_of_a_peer_that_has_graceful_restart_for_no_family() -> None:
    """RFC 4724 section 3: it only says that it sends End-of-RIB. Nobody is awaited, and nothing is shown as kept."""
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2, 65002)
    probe = Probe(cluster, 2, 65002, peer=1, families=(V4,), graceful_restart=GracefulRestart(120))
    probe.send(encode_announcement(V4, FROM_2, [prefix(7)], as4=True))
    cluster.network.remove("2")
    cluster.network.run(1)
    assert cluster.known(1) == {1}
    assert not speaker.peers["2"].awaited


def test_routes_are_not_kept_for_a_peer_of_another_as() -> None:
    """Any AS may come; but who comes back with another one is not who went."""
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2, None)
    restart = GracefulRestart(120, False, ((V4, True),))
    probe = Probe(cluster, 2, 65002, peer=1, families=(V4,), graceful_restart=restart)
    for asn, known in ((65002, {1, 7, -1}), (65003, {1})):
        probe.send(encode_announcement(V4, FROM_2, [prefix(7)], as4=True))
        cluster.network.remove("2")
        cluster.network.run(5)
        assert cluster.known(1) == {1, 7, -1}
        probe = Probe(cluster, 2, asn, peer=1, families=(V4,), graceful_restart=restart)
        assert cluster.known(1) == known
    assert not speaker.peers["2"].awaited


# ------------------------------------------------------------------------------ a reload while a peer is restarting


def restarting_pair() -> Cluster:
    """2 has gone without a word; 1 keeps its routes."""
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    cluster.network.run(20)
    cluster.crash(2)
    cluster.network.run(5)
    assert cluster.known(1) == {1, 2}
    return cluster


def test_other_settings_for_a_peer_that_restarts_keep_its_routes() -> None:
    cluster = restarting_pair()
    ours = cluster.speakers[1]
    ours.set_peers([changed(ours.peers["2"].config, hold_time=30, password=b"x")], cluster.network.now)
    cluster.network.run(5)
    assert cluster.known(1) == {1, 2}
    cluster.speaker(2, restarting=["1"], deferral=60)
    cluster.peer(2, 1)

    def complete() -> bool:
        assert cluster.known(1) == {1, 2}
        return ours.peers["2"].complete

    assert cluster.network.run(60, complete)
    assert not ours.peers["2"].awaited


def test_a_peer_that_restarts_and_is_taken_away_is_gone_at_once() -> None:
    cluster = restarting_pair()
    ours = cluster.speakers[1]
    ours.set_peers([], cluster.network.now)
    cluster.until(0.1, {1: {1}})
    cluster.network.run(300)
    assert not ours._timers


def test_a_peer_that_restarts_and_is_shut_down_meanwhile_is_not_waited_for() -> None:
    cluster = restarting_pair()
    ours = cluster.speakers[1]
    ours.set_peers([replace(ours.peers["2"].config, shutdown="no more")], cluster.network.now)
    cluster.until(0.1, {1: {1}})
    assert not ours.peers["2"].awaited


def test_other_settings_for_a_range_keep_its_members_and_their_routes() -> None:
    cluster = Ranged()
    within = clients()
    cluster.accepting(within)
    for number in (2, 3):
        cluster.client(number)
    cluster.everywhere(10, (1, 2, 3))
    cluster.network.run(20)
    ours = cluster.speakers[1]
    other = replace(within, template=replace(within.template, hold_time=30))
    ours.set_peers([], cluster.network.now, [other])

    def complete() -> bool:
        assert all(cluster.known(number) == {1, 2, 3} for number in (1, 2, 3))
        return len(cluster.events(1, Established)) == 4 and all(peer.complete for peer in ours.peers.values())

    assert cluster.network.run(60, complete)
    assert ours.peers.keys() == {"192.0.2.2", "192.0.2.3"}
    assert all(peer.config.hold_time == 30 and peer.within is other for peer in ours.peers.values())


def test_routes_are_kept_for_a_peer_that_is_said_to_have_another_as_now() -> None:
    cluster = Cluster()
    speaker = cluster.speaker(1)
    cluster.peer(1, 2, 65002)
    restart = GracefulRestart(120, False, ((V4, True),))
    probe = Probe(cluster, 2, 65002, peer=1, families=(V4,), graceful_restart=restart)
    probe.send(encode_announcement(V4, FROM_2, [prefix(7), prefix(8)], as4=True))
    cluster.network.remove("2")
    speaker.set_peers([replace(speaker.peers["2"].config, asn=65003)], cluster.network.now)
    cluster.network.run(5)
    assert cluster.known(1) == {1, 7, 8, -1}
    probe = Probe(cluster, 2, 65003, peer=1, families=(V4,), graceful_restart=restart)
    assert cluster.known(1) == {1, 7, 8, -1}
    there = Attributes(0, AsPath.sequence(65003), address(2))
    probe.send([*encode_announcement(V4, there, [prefix(7)], as4=True), encode_end_of_rib(V4)])
    assert cluster.known(1) == {1, 7, -1}
    assert speaker.peers["2"].source.asn == 65003
