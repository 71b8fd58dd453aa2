"""Graceful restart both ways (RFC 4724), between speakers in memory: no route is lost, none stays that should not."""

from __future__ import annotations

from typing import Any

from bgp.connection import Down
from bgp.fsm import State
from bgp.speaker import Complete
from tests.unit.test_bgp_speaker import V4, V6, Cluster, prefix


def restarted(cluster: Cluster, number: int, *others: int, **options: Any) -> None:
    cluster.speaker(number, restarting=[str(other) for other in others], deferral=60, **options)
    for other in others:
        cluster.peer(number, other)


def test_a_restart_loses_no_route_on_either_side() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.speaker(number)
    cluster.mesh((1, 2, 3))
    cluster.everywhere(10, (1, 2, 3))
    cluster.network.run(20)
    for number in (2, 3):
        cluster.speakers[number].take_changes()
    cluster.crash(1)
    cluster.network.run(5)
    for number in (2, 3):
        assert cluster.known(number) == {1, 2, 3}
        assert cluster.speakers[number].take_changes() == {V4: {}, V6: {}}

    restarted(cluster, 1, 2, 3)
    speaker = cluster.speakers[1]
    assert cluster.network.run(30, lambda: bool(speaker.take_changes()[V4]))
    # The first decision comes when all is known: it has everything.
    assert set(speaker.ribs[V4].chosen) == {prefix(1), prefix(2), prefix(3)}
    cluster.network.run(1)
    for number in (2, 3):
        for some in cluster.speakers[number].take_changes().values():
            assert all(some.values()), "a route was lost on the way"
        assert cluster.known(number) == {1, 2, 3}
    # The restart is over: the next OPEN does not say it again.
    capabilities = speaker.peers["2"].session.settings.capabilities
    assert capabilities.graceful_restart is not None
    assert not capabilities.graceful_restart.restarting


def test_it_is_told_when_a_peer_has_said_all_in_every_family() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    assert cluster.network.run(10, lambda: bool(cluster.events(1, Complete)))
    peer = cluster.speakers[1].peers["2"]
    assert peer.complete
    assert cluster.known(1) == {1, 2}
    cluster.speakers[2].ask_again("1", V4)
    cluster.network.run(5)
    assert len(cluster.events(1, Complete)) == 1
    cluster.crash(2)
    cluster.network.run(1)
    assert not peer.complete
    assert not cluster.speakers[1].deferring
    restarted(cluster, 2, 1)
    assert cluster.speakers[2].deferring
    assert cluster.network.run(30, lambda: len(cluster.events(1, Complete)) == 2)
    assert not cluster.speakers[2].deferring


def test_routes_that_are_not_announced_anew_go_with_end_of_rib() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.speaker(2)
    cluster.mesh((1, 2))
    cluster.speakers[1].originate(V4, prefix(77))
    cluster.network.run(20)
    assert prefix(77) in cluster.speakers[2].ribs[V4].chosen
    cluster.crash(1)
    cluster.network.run(5)
    restarted(cluster, 1, 2)
    cluster.until(30, {2: {1, 2}})


def test_a_peer_that_stays_away_loses_its_routes_when_its_time_is_over() -> None:
    cluster = Cluster()
    cluster.speaker(1, restart_time=40)
    cluster.speaker(2)
    cluster.mesh((1, 2))
    cluster.network.run(20)
    cluster.crash(1)
    cluster.network.run(39)
    assert cluster.known(2) == {1, 2}
    cluster.until(2, {2: {2}})


def test_a_peer_that_says_goodbye_loses_its_routes_at_once() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.speaker(2)
    cluster.mesh((1, 2))
    cluster.network.run(20)
    cluster.speakers[1].shut_down(cluster.network.now)
    cluster.until(1, {2: {2}})


def test_a_peer_that_has_not_gone_on_forwarding_loses_its_routes_when_it_is_back() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.speaker(2)
    cluster.mesh((1, 2))
    cluster.network.run(20)
    cluster.crash(1)
    cluster.network.run(5)
    cluster.speaker(1, originates=False)  # a cold start: the bit for preserved forwarding is not set
    cluster.peer(1, 2)
    cluster.until(30, {2: {2}})


def test_the_deferral_ends_even_if_a_peer_never_comes() -> None:
    cluster = Cluster()
    cluster.speaker(1, restarting=["2", "3"], deferral=60)
    cluster.speaker(2)
    cluster.peer(1, 2)
    cluster.peer(2, 1)
    cluster.peer(1, 3)
    cluster.network.run(55)
    assert cluster.known(1) == set()
    cluster.until(10, {1: {1, 2}, 2: {1, 2}})


def test_the_deferral_does_not_wait_for_a_peer_that_cannot_restart_gracefully() -> None:
    cluster = Cluster()
    cluster.speaker(1, restarting=["2"], deferral=600)
    cluster.speaker(2, restart_time=0)
    cluster.mesh((1, 2))
    cluster.until(10, {1: {1, 2}, 2: {1, 2}})


def test_a_restart_that_the_old_connection_does_not_tell_of_is_found_by_the_new_one() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.speaker(2)
    cluster.mesh((1, 2))
    cluster.network.run(20)
    cluster.network.cut.add(frozenset("12"))
    cluster.crash(1)
    cluster.network.cut.clear()
    peer = cluster.speakers[2].peers["1"]
    before = peer.session.negotiated
    assert before is not None
    cluster.speakers[2].take_changes()
    restarted(cluster, 1, 2)
    # Its first connection is taken (section 5): a refusal would make a peer wait, BIRD a minute.
    assert cluster.network.run(0.5, lambda: peer.session.negotiated not in (None, before))
    cluster.until(1, {1: {1, 2}, 2: {1, 2}})
    assert all(all(some.values()) for some in cluster.speakers[2].take_changes().values())
    assert [down.reason for down in cluster.events(2, Down) if down.was is State.ESTABLISHED] == [
        "the peer has restarted"
    ]
    assert peer.flaps == 1
    assert cluster.speakers[2].ribs[V4].stale(peer.source) == 0


def test_a_second_connection_of_a_peer_without_graceful_restart_is_none_of_a_restarted_one() -> None:
    cluster = Cluster()
    cluster.speaker(1, restart_time=0)
    speaker = cluster.speaker(2)
    cluster.mesh((1, 2))
    cluster.network.run(20)
    assert not speaker.superseded("1", cluster.network.now)
    assert not speaker.accepted("1", cluster.network.now)
    assert not speaker.superseded("9", cluster.network.now)
    assert speaker.peers["1"].session.negotiated is not None
    assert cluster.speakers[2].peers["1"].session.last_down is not None
