"""What the RFCs and our documents say of sessions, clause by clause, where no other test says it."""

from __future__ import annotations

import pytest

from bgp.message import AsPath, Attributes, encode_announcement
from tests.unit.test_bgp_speaker import V4, Cluster, Probe, address, prefix


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
