"""The values that the agent reports: they cross the socket unharmed, stay small, and read like iproute2's output."""

from __future__ import annotations

import msgspec
import pytest

from netagent.model import (
    Address,
    FdbEntry,
    ForeignAccept,
    Hop,
    Link,
    Neighbour,
    NextHop,
    NftElement,
    NftTable,
    Object,
    Offload,
    Route,
    Sysctl,
    VxlanAttrs,
)
from netagent.status import SHOWN_ALL, SHOWN_MAX, Peer, Status, condensed, describe, summary
from tests.support.views import HEALTHY


def test_status_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(HEALTHY), type=Status) == HEALTHY


def test_fields_of_another_version_are_ignored() -> None:
    text = b'{"at": 1.5, "fashion": [1], "node": {"name": "h1", "colour": "red"}, "peers": {"states": {"asleep": 1}}}'
    status = msgspec.json.decode(text, type=Status)
    assert (status.at, status.node.name, status.peers.states) == (1.5, "h1", {"asleep": 1})


def peers(count: int, state: str = "up") -> list[Peer]:
    return [Peer(node=f"n{i}", state=state) for i in range(count)]


def test_few_peers_are_all_shown() -> None:
    found = summary(peers(SHOWN_ALL))
    assert (found.total, found.states, len(found.shown)) == (SHOWN_ALL, {"up": SHOWN_ALL}, SHOWN_ALL)


def test_of_many_peers_those_that_are_not_up_are_shown() -> None:
    found = summary([*peers(4998), *peers(1, "down"), *peers(1, "ignored")])
    assert found.total == 5000
    assert found.states == {"up": 4998, "down": 1, "ignored": 1}
    assert [peer.state for peer in found.shown] == ["down"]


def test_a_summary_is_bounded() -> None:
    found = summary(peers(5000, "unreachable"))
    assert (found.states, len(found.shown)) == ({"unreachable": 5000}, SHOWN_MAX)


def test_a_services_peers_are_summed_up() -> None:
    said = {
        "state": "running",
        "drops": {"ttl": 1},
        "peers": {
            f"10.5.{n}.0-24": {"rx_packets": 2, "rx_bytes": 10, "drops": 1, "last_heard": 7.5} for n in range(5)
        },
    }
    assert condensed(said) == {
        "state": "running",
        "drops": {"ttl": 1},
        "counters": {"rx_packets": 10, "rx_bytes": 50, "drops": 5},
    }
    assert condensed({}) == {}


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        (
            Route(dst="10.5.72.0/24", nexthop=("na-vx1", "10.5.72.0")),
            "10.5.72.0/24 via 10.5.72.0 dev na-vx1 onlink",
        ),
        (
            Route(dst="10.5.72.0/24", hops=(Hop("eth0", "192.168.50.12"),), src="10.5.59.1", mtu=1472),
            "10.5.72.0/24 via 192.168.50.12 dev eth0 src 10.5.59.1 mtu 1472",
        ),
        (
            Route(dst="10.5.0.0/16", type="unreachable", metric=4294967295),
            "unreachable 10.5.0.0/16 metric 4294967295",
        ),
        (
            Route(dst="10.5.72.0/24", hops=(Hop("eth0", "10.0.0.1"), Hop("eth1", "10.1.0.1", True, 2))),
            "10.5.72.0/24 nexthop via 10.0.0.1 dev eth0 nexthop via 10.1.0.1 dev eth1 onlink weight 2",
        ),
        (NextHop("na-vx1", "10.5.72.0"), "10.5.72.0 dev na-vx1 onlink"),
        (
            Neighbour("na-vx1", "10.5.72.0", "ba:d2:d9:65:1e:87"),
            "10.5.72.0 lladdr ba:d2:d9:65:1e:87 dev na-vx1 permanent",
        ),
        (
            FdbEntry("na-vx1", "ba:d2:d9:65:1e:87", "192.168.50.12"),
            "ba:d2:d9:65:1e:87 dst 192.168.50.12 dev na-vx1 self permanent",
        ),
        (
            Link(
                kind="vxlan",
                name="na-vx1",
                mtu=1450,
                mac="ae:da:bc:2e:be:25",
                vxlan=VxlanAttrs(vni=1, port=8472, local="192.168.50.11", dev="eth0"),
            ),
            "na-vx1 vxlan mtu 1450 address ae:da:bc:2e:be:25 id 1 dstport 8472 local 192.168.50.11 dev eth0",
        ),
        (Address("na-vx1", "10.5.59.0", 32), "10.5.59.0/32 dev na-vx1"),
        (NftTable("inet", "netagent", "..."), "table inet netagent"),
        (NftElement("peers4", "192.168.50.12"), "peers4 { 192.168.50.12 }"),
        (Sysctl("net/ipv4/ip_forward", "1"), "net.ipv4.ip_forward = 1"),
        (Offload("eth0", "tx-checksum-ip-generic", False), "eth0 tx-checksum-ip-generic off"),
        (ForeignAccept("docker-user", 4, "10.5.0.0/16"), "accept 10.5.0.0/16 in docker-user"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_describe(obj: Object, text: str) -> None:
    assert describe(obj) == text
