"""What stays of a peer when its session ends: NOTIFICATIONs and graceful restart (RFC 8538)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgp import views
from bgp.connection import Down
from bgp.fsm import State
from bgp.message import Cease, ErrorCode, Notification
from bgp.message.framing import frame
from bgp.speaker import Speaker
from tests.unit.test_bgp_speaker import V4, V6, Cluster, prefix, prefix6


def pair(seed: int = 0) -> Cluster:
    """Two that stand, and have told each other all."""
    cluster = Cluster(seed)
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    cluster.everywhere(10, (1, 2))
    cluster.network.run(20)
    for number in (1, 2):
        cluster.speakers[number].take_changes()
    return cluster


def stands(cluster: Cluster, one: int = 1, two: int = 2) -> bool:
    return all(
        cluster.speakers[ours].peers[str(theirs)].session.negotiated is not None
        for ours, theirs in ((one, two), (two, one))
    )


def nothing_lost(speaker: Speaker) -> bool:
    return all(all(some.values()) for some in speaker.take_changes().values())


def last(cluster: Cluster, number: int) -> Down:
    """How its session ended last, collisions on the way aside."""
    found: Down = [down for down in cluster.events(number, Down) if down.was is State.ESTABLISHED][-1]
    return found


def test_a_hard_reset_has_its_reason_inside() -> None:
    hard = Notification.shutdown("gone for good").hard()
    assert (hard.code, hard.subcode, hard.data[:2]) == (6, 9, b"\6\2")
    assert hard.text == "gone for good"
    assert str(hard) == "cease/hard reset (6/9): cease/administrative shutdown (6/2): gone for good"
    assert str(Notification(6, 9, b"\6")) == "cease/hard reset (6/9)"
    assert str(Notification(6, 2).hard().hard()) == "cease/hard reset (6/9)"


@pytest.mark.parametrize("seed", range(3))
def test_the_hold_timers_of_both_run_out_and_no_route_is_lost(seed: int) -> None:
    cluster = pair(seed)
    cluster.network.cut.add(frozenset("12"))
    cluster.network.run(15)
    for number in (1, 2):
        assert last(cluster, number).sent == Notification(ErrorCode.HOLD_TIMER_EXPIRED)
        assert cluster.known(number) == {1, 2}
        assert cluster.speakers[number].ribs[V4].stale(cluster.speakers[number].peers[str(3 - number)].source) == 1
    cluster.network.cut.clear()
    assert cluster.network.run(60, lambda: stands(cluster))
    # Forwarding went on meanwhile, and their OPENs say so.
    for number in (1, 2):
        session = cluster.speakers[number].peers[str(3 - number)].session
        assert session.negotiated and session.negotiated.received.capabilities.graceful_restart
        assert dict(session.negotiated.received.capabilities.graceful_restart.preserved) == {V4: True, V6: True}
    cluster.network.run(5)
    for number in (1, 2):
        speaker = cluster.speakers[number]
        assert nothing_lost(speaker)
        assert speaker.ribs[V4].stale(speaker.peers[str(3 - number)].source) == 0
        assert cluster.known(number) == {1, 2}


def test_what_a_peer_withdrew_while_it_was_away_goes_with_its_end_of_rib() -> None:
    cluster = pair()
    cluster.network.cut.add(frozenset("12"))
    cluster.network.run(20)
    cluster.speakers[1].retract(V4, prefix(1))
    cluster.speakers[1].retract(V6, prefix6(1))
    cluster.network.cut.clear()
    cluster.until(60, {2: {2}, 1: {2}})


def test_a_reset_and_a_bad_message_keep_the_routes_on_both_sides() -> None:
    cluster = pair()
    cluster.speakers[1].reset("2", cluster.network.now, "new filters")
    cluster.network.settle()
    cluster.network.run(0.5)
    received = last(cluster, 2).received
    assert received and (received.code, received.subcode) == (6, Cease.ADMINISTRATIVE_RESET)
    assert cluster.known(1) == cluster.known(2) == {1, 2}
    assert cluster.network.run(30, lambda: stands(cluster))
    cluster.network.run(5)  # what is stale still is not kept twice

    speaker = cluster.speakers[1]
    session = speaker.peers["2"].session
    assert session.negotiated
    speaker.receive("2", session.negotiated.direction, frame(2, b"\xff" * 20), cluster.network.now)
    cluster.network.settle()
    cluster.network.run(0.5)
    assert last(cluster, 1).sent == Notification(3, 1)
    assert cluster.known(1) == cluster.known(2) == {1, 2}
    assert cluster.network.run(30, lambda: stands(cluster))
    cluster.network.run(5)
    assert nothing_lost(cluster.speakers[1]) and nothing_lost(cluster.speakers[2])


def test_a_shutdown_and_a_peer_taken_away_are_for_good() -> None:
    cluster = pair()
    cluster.speakers[1].stop_peer("2", cluster.network.now, "maintenance")
    cluster.until(1, {1: {1}, 2: {2}})
    received = last(cluster, 2).received
    assert received and received.inside == Notification.shutdown("maintenance")
    (shown,) = views.peers(cluster.speakers[2], cluster.network.now)
    assert shown["last_down"].endswith("cease/administrative shutdown (6/2): maintenance")

    cluster.speakers[1].start_peer("2", cluster.network.now)
    cluster.everywhere(60, (1, 2))
    cluster.speakers[1].remove_peer("2", cluster.network.now)
    cluster.until(1, {1: {1}, 2: {2}})
    received = last(cluster, 2).received
    assert received and received.inside == Notification(6, Cease.PEER_DECONFIGURED)


def test_without_the_bit_on_both_sides_a_notification_is_the_end() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.mesh((1, 2))
    session = cluster.speakers[2].peers["1"].session
    restart = session.settings.capabilities.graceful_restart
    assert restart
    session.change_capabilities(
        replace(session.settings.capabilities, graceful_restart=replace(restart, notification=False))
    )
    cluster.everywhere(10, (1, 2))
    cluster.speakers[1].reset("2", cluster.network.now)
    cluster.until(0.5, {1: {1}, 2: {2}})
    cluster.speakers[1].stop_peer("2", cluster.network.now)
    cluster.network.settle()
    cluster.network.run(1)
    sent = last(cluster, 1).sent
    assert sent is None or not sent.is_hard
