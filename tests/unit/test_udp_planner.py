"""The udp plan: flannel's record, one device with an address, a plain route for each peer, and when there is none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.udp import Udp
from backends.udp.planner import entry_of
from backends.udp.table import Entry
from netagent.contract import Context, LeaseData
from netagent.errors import ConfigError
from netagent.model import Address, Finding, Hop, Lease, Link, Route
from tests.support.udp import host_context, lease_of

UDP = Udp()


def test_the_plan_of_an_ipv4_host() -> None:
    assert UDP.base(host_context(1)) == (
        (Link(kind="tun", name="na-tun", mtu=1472, tun_vnet_hdr=True), Address("na-tun", "10.5.1.0", 32)),
        (),
    )
    plan = UDP.peer(host_context(1), lease_of(host_context(2)))
    assert plan == ((Route("10.5.2.0/24", (Hop("na-tun"),)),), ())


def test_the_plan_of_a_dual_stack_host() -> None:
    """One device, 48 bytes less: any peer may be reached over IPv6."""
    context = host_context(1, v6=True)
    assert UDP.base(context).objects == (
        Link(kind="tun", name="na-tun", mtu=1452, tun_vnet_hdr=True),
        Address("na-tun", "10.5.1.0", 32),
        Address("na-tun", "fc00:0:0:1::", 128),
    )
    assert [route.dst for route in UDP.peer(context, lease_of(host_context(2, v6=True))).objects] == [
        "10.5.2.0/24",
        "fc00:0:0:2::/64",
    ]


def test_the_lease_is_flannels() -> None:
    assert UDP.lease(host_context(1, v6=True)) == LeaseData("", None, None)


@pytest.mark.parametrize(
    ("raw", "port", "mtu", "device"),
    [
        ({}, 8285, 1472, "na-tun"),
        ({"port": 9000, "mTu": 9000}, 9000, 8972, "na-tun"),
        ({"DEVICE": "na-tun2"}, 8285, 1472, "na-tun2"),
    ],
)
def test_options(raw: dict[str, Any], port: int, mtu: int, device: str) -> None:
    parsed = UDP.options(raw)
    assert parsed.findings == ()
    context = msgspec.structs.replace(host_context(1), options=parsed.value)
    assert UDP.ports(parsed.value) == (port,)
    assert UDP.mtu(context) == mtu
    link = UDP.base(context).objects[0]
    assert isinstance(link, Link)
    assert (link.name, link.mtu) == (device, mtu)


@pytest.mark.parametrize(
    "raw",
    [
        {"Port": 0},
        {"Port": 65536},
        {"Port": "8285"},
        {"Port": True},
        {"MTU": 100},
        {"MTU": 70000},
        {"Device": "eth0"},
        {"Device": "na-a-name-too-long"},
        {"Device": "na-a b"},
        {"Device": 1},
    ],
)
def test_bad_options_name_the_key_and_the_remedy(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        UDP.options(raw)
    assert f"Backend.{next(iter(raw))}" in str(caught.value)
    assert caught.value.remedy


def test_an_mtu_too_small_for_ipv6_is_a_finding() -> None:
    context = host_context(1, v6=True)
    context = msgspec.structs.replace(context, node=msgspec.structs.replace(context.node, mtu=1300))
    (finding,) = UDP.base(context).findings
    assert finding.code == "udp-mtu-too-small"


@pytest.mark.parametrize("kind", ["", "udp"])
def test_a_lease_without_type_is_a_udp_peer(kind: str) -> None:
    lease = msgspec.structs.replace(lease_of(host_context(2)), backend=kind)
    assert UDP.peer(host_context(1), lease).objects


def entry(context: Context, lease: Lease, **changes: Any) -> Entry | Finding:
    return entry_of(context, msgspec.structs.replace(lease, **changes))


def test_what_the_engine_is_told_of_a_lease() -> None:
    """The families of the network, and the addresses that this node can send to."""
    dual, four = host_context(1, v6=True), host_context(1)
    peer = lease_of(host_context(2, v6=True))
    assert entry(dual, peer) == Entry(
        "10.5.2.0-24&fc00:0:0:2::-64", ("10.5.2.0/24", "fc00:0:0:2::/64"), ("192.168.50.12", "fd50::12")
    )
    assert entry(four, peer) == Entry(peer.key, ("10.5.2.0/24",), ("192.168.50.12",))
    assert entry(dual, peer, public_ip6=None) == Entry(peer.key, (peer.v4, peer.v6), ("192.168.50.12",))
    assert entry(dual, peer, public_ip=None) == Entry(peer.key, (peer.v4, peer.v6), ("fd50::12",))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"public_ip": None}, "peer-no-address"),
        ({"public_ip": None, "public_ip6": "fd50::12"}, "peer-no-address"),  # this node has no IPv6
        ({"public_ip": "192.168.50.11"}, "peer-same-address"),
    ],
)
def test_a_lease_that_gets_no_path(changes: dict[str, Any], code: str) -> None:
    lease = msgspec.structs.replace(lease_of(host_context(2)), **changes)
    plan = UDP.peer(host_context(1), lease)
    assert plan.objects == ()
    (finding,) = plan.findings
    assert finding.code == code
    assert isinstance(entry(host_context(1), lease), Finding)


def test_a_lease_of_another_backend_gets_no_path_but_may_send() -> None:
    """While the cluster moves, a peer sends by udp before its record says so: the engine knows it already."""
    context, lease = host_context(1), lease_of(host_context(2))
    other = msgspec.structs.replace(lease, backend="vxlan")
    plan = UDP.peer(context, other)
    assert plan.objects == ()
    assert [finding.code for finding in plan.findings] == ["peer-other-backend"]
    assert entry(context, other) == entry(context, lease)


def test_a_lease_of_another_family_needs_nothing() -> None:
    assert UDP.peer(host_context(1), lease_of(host_context(2, v4=False, v6=True))) == ((), ())
