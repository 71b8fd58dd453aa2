"""What stays of a peer when its session ends: NOTIFICATIONs (RFC 8538), long-lived graceful restart (RFC 9494)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bgp import metrics, views
from bgp.connection import Down
from bgp.daemon import show
from bgp.fsm import State
from bgp.message import AsPath, Attributes, Cease, ErrorCode, Family, LongLived, Notification
from bgp.message.codes import WellKnownCommunity
from bgp.message.framing import frame
from bgp.peer import PeerConfig, SpeakerConfig, capabilities
from bgp.policy import EVERYTHING, Change, Match, Policy, Rule
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


# ------------------------------------------------------------------------------ long-lived (RFC 9494)

STALE = int(WellKnownCommunity.LLGR_STALE)


def three(**options: Any) -> Cluster:
    """1 reflects for 2 and 3, both of which know of long-lived stale routes; 2 asks for an hour after 40 seconds."""
    cluster = Cluster()
    cluster.speaker(1, **{name: value for name, value in options.items() if name.startswith("long_lived")})
    cluster.speaker(2, restart_time=options.get("restart_time", 40), long_lived_time=3600)
    cluster.speaker(3)
    for number in (2, 3):
        cluster.peer(1, number, client=True)
        cluster.peer(number, 1)
    cluster.everywhere(10, (1, 2, 3))
    cluster.network.run(20)
    return cluster


def best(cluster: Cluster, number: int, wire: bytes = prefix(2), family: Family = V4) -> Attributes:
    return cluster.speakers[number].ribs[family].chosen[wire][0].attributes


def away(cluster: Cluster) -> None:
    """Speaker 2 dies and stays away until its restart time is over."""
    cluster.crash(2)
    cluster.network.run(39)
    assert 2 in cluster.known(1) & cluster.known(3)
    assert STALE not in best(cluster, 1).communities
    cluster.network.run(2)


def test_after_the_restart_time_routes_are_the_last_choice_for_as_long_as_was_asked() -> None:
    cluster = three()
    away(cluster)
    for number in (1, 3):
        assert cluster.known(number) == {1, 2, 3}
        assert STALE in best(cluster, number).communities
        assert STALE in best(cluster, number, prefix6(2), V6).communities
    ours, now = cluster.speakers[1], cluster.network.now
    shown = next(peer for peer in views.peers(ours, now) if peer["name"] == "2")
    assert 3590 < shown["long_lived_ends"]["ipv4"] <= 3600
    assert shown["prefixes"]["ipv4"]["long_lived_stale"] == 1
    (entry,) = views.routes(ours, "10.0.2.0/24")
    assert entry["routes"][0]["long_lived_stale"] is entry["routes"][0]["stale"] is True
    assert "llgr-stale" in entry["routes"][0]["communities"]
    assert 'kind="long_lived_stale"} 1' in metrics.text(ours, now)
    lines = list(show.lines("peers", False, [shown]))
    assert "its routes are the last choice for" in "\n".join(lines)
    cluster.network.run(3590)
    assert cluster.known(1) == {1, 2, 3}
    cluster.until(15, {1: {1, 3}, 3: {1, 3}})
    assert not ours.peers["2"].long_lived


def test_any_other_route_is_better() -> None:
    """Speaker 4, with a much longer path, has the same prefix: used as soon as the stale one is long-lived stale."""
    cluster = three()
    cluster.speaker(4, 65004)
    cluster.peer(1, 4, 65004)
    cluster.peer(4, 1)
    worse = Attributes(as_path=AsPath.sequence(*range(65100, 65110)))
    for family, wire in ((V4, prefix(2)), (V6, prefix6(2))):
        cluster.speakers[4].originate(family, wire, worse)
    cluster.network.run(10)
    source = cluster.speakers[1].peers["4"].source
    assert cluster.speakers[1].ribs[V4].received(source)
    assert best(cluster, 1).as_path.length == 0
    away(cluster)
    assert best(cluster, 1).as_path.length == 11
    (entry,) = views.routes(cluster.speakers[1], "10.0.2.0/24")
    assert [route["from"] for route in entry["routes"]] == ["4", "2"]
    assert entry["routes"][1]["why"] == "the best has: not long-lived stale"


def test_back_in_time_everything_is_as_before() -> None:
    cluster = three()
    away(cluster)
    cluster.network.run(600)
    for number in (1, 3):
        cluster.speakers[number].take_changes()
    cluster.speaker(2, restart_time=40, long_lived_time=3600, restarting=["1"], deferral=60)
    cluster.peer(2, 1)
    assert cluster.network.run(60, lambda: cluster.speakers[1].peers["2"].complete)
    cluster.network.run(2)
    assert nothing_lost(cluster.speakers[1]) and nothing_lost(cluster.speakers[3])
    for number in (1, 3):
        assert cluster.known(number) == {1, 2, 3}
        assert STALE not in best(cluster, number).communities
    assert not cluster.speakers[1].peers["2"].long_lived


def test_back_without_having_gone_on_forwarding_they_go_at_once() -> None:
    cluster = three()
    away(cluster)
    cluster.speaker(2, originates=False, restart_time=40, long_lived_time=3600)  # a cold start
    cluster.peer(2, 1)
    cluster.until(60, {1: {1, 3}, 3: {1, 3}})


def test_a_restart_time_of_0_is_long_lived_at_once() -> None:
    cluster = three(restart_time=0)
    cluster.crash(2)
    cluster.network.run(1)
    for number in (1, 3):
        assert cluster.known(number) == {1, 2, 3}
        assert STALE in best(cluster, number).communities


def test_no_llgr_is_honoured() -> None:
    cluster = three()
    tagged = Attributes(communities=(int(WellKnownCommunity.NO_LLGR),))
    cluster.speakers[2].originate(V4, prefix(22), tagged)
    cluster.speakers[2].originate(V6, prefix6(22), tagged)
    cluster.until(5, {1: {1, 2, 22, 3}})
    cluster.crash(2)
    cluster.network.run(39)
    assert cluster.known(1) == {1, 2, 22, 3}
    cluster.until(5, {1: {1, 2, 3}, 3: {1, 2, 3}})


def test_we_keep_no_longer_than_we_allow() -> None:
    cluster = three(long_lived_most=60)
    away(cluster)
    assert cluster.known(1) == {1, 2, 3}
    cluster.network.run(50)
    assert cluster.known(1) == {1, 2, 3}
    cluster.until(15, {1: {1, 3}})
    cluster = three(long_lived_most=0)
    cluster.crash(2)
    cluster.until(45, {1: {1, 3}})


@pytest.mark.parametrize("partial", [False, True])
def test_who_does_not_know_is_told_only_where_that_is_wanted(partial: bool) -> None:
    cluster = three(long_lived_partial=partial)
    for number in (4, 5):
        cluster.speaker(number, 65001 if number == 4 else 65005)
        cluster.peer(1, number, None, client=number == 4, export_policy=EVERYTHING)
        cluster.peer(number, 1)
        session = cluster.speakers[number].peers["1"].session
        session.change_capabilities(replace(session.settings.capabilities, long_lived=None))
    cluster.until(60, {4: {1, 2, 3, 4, 5}, 5: {1, 2, 3, 4, 5}})
    cluster.crash(2)
    cluster.network.run(45)
    assert 2 in cluster.known(1) & cluster.known(3)
    assert cluster.known(5) == {1, 3, 4, 5}
    assert cluster.known(4) == ({1, 2, 3, 4, 5} if partial else {1, 3, 4, 5})
    if partial:
        told = best(cluster, 4)
        assert told.local_pref == 0
        assert {STALE, int(WellKnownCommunity.NO_EXPORT)} <= set(told.communities)


def test_it_comes_and_goes_without_its_end_of_rib_and_gets_no_new_time() -> None:
    cluster = three()
    away(cluster)
    ends = dict(cluster.speakers[1].peers["2"].long_lived)
    cluster.network.run(100)
    # Held back in its own deferral it tells nothing, and dies again.
    cluster.speaker(2, restart_time=40, long_lived_time=3600, restarting=["1", "99"], deferral=1000)
    cluster.peer(2, 1)
    cluster.network.run(30)
    assert cluster.speakers[1].peers["2"].session.negotiated is not None
    cluster.crash(2)
    cluster.network.run(100)
    assert cluster.known(1) == {1, 2, 3}
    kept = cluster.speakers[1].peers["2"].long_lived
    assert kept and all(kept[family] <= ends[family] for family in kept)
    cluster.until(3600, {1: {1, 3}})


def test_another_policy_does_not_take_the_mark_away() -> None:
    cluster = three()
    away(cluster)
    ours = cluster.speakers[1]
    policy = Policy((Rule(True, Match(), Change(local_pref=250)),))
    ours.set_peers(
        [
            replace(peer.config, import_policy=policy) if name == "2" else peer.config
            for name, peer in ours.peers.items()
        ],
        cluster.network.now,
    )
    cluster.network.settle()
    cluster.network.run(1)
    assert (best(cluster, 1).local_pref, STALE in best(cluster, 1).communities) == (250, True)
    cluster.speakers[1].stop_peer("2", cluster.network.now)
    cluster.until(2, {1: {1, 3}, 3: {1, 3}})
    assert not ours.peers["2"].awaited


def test_the_capability_says_how_long_and_nothing_without_graceful_restart() -> None:
    config = SpeakerConfig(65001, b"\x0a\0\0\1", (V4, V6), restart_time=0)
    peer = PeerConfig("x", b"\x0a\0\0\2")
    assert capabilities(config, peer, restarting=False).long_lived is None
    aware = capabilities(replace(config, restart_time=9), peer, restarting=False)
    assert aware.long_lived == LongLived()
    asks = capabilities(replace(config, long_lived_time=7), peer, restarting=False)
    assert asks.long_lived == LongLived(((V4, False, 7), (V6, False, 7)))
    assert asks.graceful_restart and asks.graceful_restart.restart_time == 0
    assert asks.describe()["long_lived_graceful_restart"] == {
        "ipv4": {"time": 7, "kept": False},
        "ipv6": {"time": 7, "kept": False},
    }
