"""What the RFCs and our documents say of sessions, clause by clause, where no other test says it."""

from __future__ import annotations

from typing import Any

import pytest

from bgp.message import (
    AddPath,
    AsPath,
    Attributes,
    GracefulRestart,
    RefreshKind,
    encode_announcement,
    encode_end_of_rib,
    encode_route_refresh,
)
from bgp.speaker import PrefixLimit
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
