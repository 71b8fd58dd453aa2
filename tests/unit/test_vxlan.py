"""vxlan's plan held against the objects that flannel makes (reference: flanneld 0.20.2, device flannel.1)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.vxlan import VxlanBackend, device, vtep_mac
from netagent.errors import ConfigError
from netagent.model import (
    Address,
    Family,
    FdbEntry,
    Hop,
    LinkFact,
    Neighbour,
    NextHop,
    Route,
    VxlanAttrs,
)
from tests.unit.test_backends import context, facts, lease

VXLAN = VxlanBackend()
PEER = lease(VXLAN)


def codes(plan: Any) -> list[str]:
    return [finding.code for finding in plan.findings]


def test_the_device_is_flannels_but_for_its_name() -> None:
    link, address = VXLAN.base(context(VXLAN)).objects
    assert link.name == "na-vx1"
    assert link.mtu == 1450
    assert link.vxlan == VxlanAttrs(vni=1, port=8472, local="192.168.50.11", dev="eth0")
    assert address == Address("na-vx1", "10.5.59.0", 32)


def test_ipv6_costs_seventy_bytes() -> None:
    ctx = context(VXLAN, v6=True)
    assert {o.name: o.mtu for o in VXLAN.base(ctx).objects if o.KIND == "link"} == {"na-vx1": 1450, "na-vx6-1": 1430}
    assert VXLAN.mtu(ctx) == 1430
    assert VXLAN.mtu(context(VXLAN)) == 1450


def test_the_record_has_flannels_fields_in_flannels_order() -> None:
    ctx = context(VXLAN)
    data = VXLAN.lease(ctx)
    assert data.type == "vxlan"
    assert msgspec.json.encode(data.data).decode() == f'{{"VNI":1,"VtepMAC":"{vtep_mac("0" * 32, 1, 4)}"}}'
    assert data.data6 is None


def test_the_mac_is_stable_local_and_unicast() -> None:
    mac = vtep_mac("0" * 32, 1, 4)
    assert mac == vtep_mac("0" * 32, 1, 4)
    assert len({mac, vtep_mac("1" * 32, 1, 4), vtep_mac("0" * 32, 2, 4), vtep_mac("0" * 32, 1, 6)}) == 4
    assert int(mac[:2], 16) & 3 == 2


def test_a_peer_is_nexthop_route_neighbour_and_fdb() -> None:
    assert set(VXLAN.peer(context(VXLAN), PEER).objects) == {
        NextHop("na-vx1", "10.5.72.0"),
        Route("10.5.72.0/24", nexthop=("na-vx1", "10.5.72.0")),
        Neighbour("na-vx1", "10.5.72.0", "ae:da:bc:2e:be:25"),
        FdbEntry("na-vx1", "ae:da:bc:2e:be:25", "192.168.50.12"),
    }


def test_an_ipv6_gateway_is_link_local_and_the_peers_mac_alone() -> None:
    """One inside the peer's subnet would be refused while a route of another backend leads there."""
    ctx, peer = context(VXLAN, v6=True), lease(VXLAN, v6=True)
    gateway = "fe80::acda:bcff:fe2e:be25"
    found = [o for o in VXLAN.peer(ctx, peer).objects if "na-vx6-1" in o.key or o.key[1] == "fc00:0:0:2::/64"]
    assert found == [
        NextHop("na-vx6-1", gateway),
        Route("fc00:0:0:2::/64", nexthop=("na-vx6-1", gateway)),
        Neighbour("na-vx6-1", gateway, "ae:da:bc:2e:be:25"),
        FdbEntry("na-vx6-1", "ae:da:bc:2e:be:25", "fd50::12"),
    ]


def test_without_nexthop_objects_the_route_is_plain_and_onlink() -> None:
    ctx = msgspec.structs.replace(context(VXLAN), facts=facts("vxlan"))
    routes = [o for o in VXLAN.peer(ctx, PEER).objects if o.KIND == "route"]
    assert routes == [Route("10.5.72.0/24", (Hop("na-vx1", "10.5.72.0", onlink=True),))]


def test_direct_routing_tunnels_only_behind_a_router() -> None:
    ctx = context(VXLAN, DirectRouting=True)
    assert VXLAN.peer(ctx, PEER).objects == (Route("10.5.72.0/24", (Hop("eth0", "192.168.50.12"),)),)
    far = msgspec.structs.replace(PEER, public_ip="192.168.60.12")
    assert NextHop("na-vx1", "10.5.72.0") in VXLAN.peer(ctx, far).objects


def test_another_vni_is_a_finding() -> None:
    other = msgspec.structs.replace(PEER, data=b'{"VNI":7,"VtepMAC":"ae:da:bc:2e:be:25"}')
    plan = VXLAN.peer(context(VXLAN), other)
    assert plan.objects == ()
    assert codes(plan) == ["vxlan-other-vni"]


@pytest.mark.parametrize("family", [4, 6])
def test_our_own_mac_is_a_finding(family: Family) -> None:
    """In either family: a record may have them exchanged."""
    mac = vtep_mac("0" * 32, 1, family)
    plan = VXLAN.peer(context(VXLAN), msgspec.structs.replace(PEER, data=b'{"VNI":1,"VtepMAC":"%s"}' % mac.encode()))
    assert (plan.objects, codes(plan)) == ((), ["vxlan-same-mac"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"VNI":1}',
        b'{"VNI":"1","VtepMAC":"ae:da:bc:2e:be:25"}',
        b'{"VNI":1,"VtepMAC":""}',
        b'{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}',
        b'{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}',
        b'{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25 "}',
        b'{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25\\n"}',
        b'{"VNI":1e400,"VtepMAC":"ae:da:bc:2e:be:25"}',
        b"\xff\xfe",
        b'{"VNI":1,"VtepMAC":"ae:da:bc:\xaae:be:25"}',
        b'{"VNI":1,"x":' + b"[" * 100_000,
    ],
)
def test_a_bad_record_is_a_finding_and_no_path(data: bytes) -> None:
    plan = VXLAN.peer(context(VXLAN), msgspec.structs.replace(PEER, data=data))
    assert (plan.objects, codes(plan)) == ((), ["vxlan-bad-record"])


def test_extra_fields_of_a_record_are_ignored() -> None:
    newer = msgspec.structs.replace(PEER, data=b'{"VNI":1,"VtepMAC":"AE:DA:BC:2E:BE:25","Later":{"a":[1]}}')
    assert Neighbour("na-vx1", "10.5.72.0", "ae:da:bc:2e:be:25") in VXLAN.peer(context(VXLAN), newer).objects


def foreign(**attrs: Any) -> LinkFact:
    return LinkFact(name="flannel.1", index=9, kind="vxlan", vxlan=VxlanAttrs(**{"vni": 1, "port": 8472, **attrs}))


@pytest.mark.parametrize(
    ("link", "taken"),
    [(foreign(), True), (foreign(vni=2), False), (foreign(port=4789), False)],
    ids=["same", "other VNI", "other port"],
)
def test_a_foreign_device_on_our_vni_and_port_is_refused(link: LinkFact, taken: bool) -> None:
    here = facts()
    here.links = {**here.links, link.name: link}
    ctx = msgspec.structs.replace(context(VXLAN), facts=here)
    assert codes(VXLAN.base(ctx)) == (["vxlan-vni-taken"] if taken else [])
    assert bool(VXLAN.base(ctx).objects) is not taken
    assert bool(VXLAN.peer(ctx, PEER).objects) is not taken


@pytest.mark.parametrize(
    ("link", "announced"),
    [
        (foreign(local="192.168.50.11"), "ae:da:bc:2e:be:25"),
        (foreign(local="192.168.50.99"), ""),
        (foreign(local="192.168.50.11", vni=2), ""),
    ],
    ids=["in our place", "another address", "other VNI"],
)
def test_the_record_has_the_mac_of_the_device_in_our_place(link: LinkFact, announced: str) -> None:
    """A flanneld that was stopped leaves flannel.1, and with it all traffic, until somebody deletes it."""
    here = facts()
    before = VXLAN.lease(context(VXLAN))
    here.links = {**here.links, link.name: msgspec.structs.replace(link, mac="ae:da:bc:2e:be:25")}
    after = VXLAN.lease(msgspec.structs.replace(context(VXLAN), facts=here))
    assert before.data is not None
    assert after.data is not None
    assert after.data["VtepMAC"] == (announced or before.data["VtepMAC"])


def test_options_in_any_case() -> None:
    parsed = VXLAN.options({"vni": 7, "PORT": 4789, "directrouting": True, "Mtu": 1400})
    assert not parsed.findings
    assert (parsed.value.vni, parsed.value.port, parsed.value.direct_routing, parsed.value.mtu) == (
        7,
        4789,
        True,
        1400,
    )


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"VNI": 0}, "Backend.VNI"),
        ({"VNI": 1 << 24}, "Backend.VNI"),
        ({"VNI": "1"}, "Backend.VNI"),
        ({"vni": True}, "Backend.vni"),
        ({"Port": -1}, "Backend.Port"),
        ({"MTU": 100}, "Backend.MTU"),
        ({"DirectRouting": 1}, "Backend.DirectRouting"),
        ({"GBP": True, "Learning": True}, "Backend"),
    ],
)
def test_bad_options_name_key_and_remedy(raw: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VXLAN.options(raw)
    assert caught.value.where == where
    assert caught.value.remedy


def test_names_of_both_families_never_meet() -> None:
    names = {device(vni, family) for vni in (1, 61, 6, 661, 16777215) for family in (4, 6)}
    assert len(names) == 10
    assert max(map(len, names)) <= 15
