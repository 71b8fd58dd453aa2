"""What the RFCs and our documents say of sessions, clause by clause, where no other test says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bgp.message import (
    AddPath,
    AsPath,
    Attributes,
    GracefulRestart,
    Notification,
    RefreshKind,
    encode_announcement,
    encode_end_of_rib,
    encode_route_refresh,
    nlri,
)
from bgp.peer import PeerConfig
from bgp.ranges import PeerRange
from bgp.speaker import PrefixLimit, Speaker
from tests.unit.test_bgp_speaker import V4, Cluster, Probe, address, prefix

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
