"""ipip's plan: flannel's record, MTU and gateways; no path where the kernel or another owner is in the way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.hostgw import HostGw
from backends.ipip import IpipBackend, device6
from backends.udp import Udp
from backends.vxlan import VxlanBackend
from netagent.contract import Backend, Context, Ip
from netagent.errors import ConfigError
from netagent.model import Address, Facts, Hop, Link, LinkFact, NextHop, Route, TunnelAttrs
from netagent.plan.compose import Composer, Standing
from tests.unit.test_backends import context, facts, lease

IPIP = IpipBackend()
PEER = lease(IPIP)


def codes(plan: Any) -> list[str]:
    return [finding.code for finding in plan.findings]


def on(ctx: Context, here: Facts) -> Context:
    return msgspec.structs.replace(ctx, facts=here)


def beside(*links: LinkFact) -> Facts:
    here = facts()
    here.links = {**here.links, **{link.name: link for link in links}}
    return here


def test_the_device_takes_every_peer() -> None:
    assert IPIP.base(context(IPIP)) == (
        (
            Link(kind="ipip", name="na-ipip", mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11")),
            Address("na-ipip", "10.5.59.0", 32),
        ),
        (),
    )


def test_ipv6_costs_no_more_for_it_goes_over_ipv4_too() -> None:
    ctx = context(IPIP, v6=True)
    assert IPIP.base(ctx) == IPIP.base(context(IPIP))
    assert (IPIP.mtu(ctx), IPIP.mtu(context(IPIP))) == (1480, 1480)


def test_a_host_without_ipv4_is_told() -> None:
    ctx = context(IPIP, v4=False, v6=True)
    bare = msgspec.structs.replace(ctx, node=msgspec.structs.replace(ctx.node, public_ip=None, local_ip=None))
    plan = IPIP.base(bare)
    assert (plan.objects, codes(plan)) == ((), ["ipip-needs-ipv4"])
    assert IPIP.peer(bare, lease(IPIP, v4=False, v6=True)).objects == ()
    silent = msgspec.structs.replace(lease(IPIP, v4=False, v6=True), public_ip=None)
    assert codes(IPIP.peer(ctx, silent)) == ["peer-no-address"]
    # A direct path needs none.
    direct = msgspec.structs.replace(bare, options=IPIP.options({"DirectRouting": True}).value)
    assert IPIP.peer(direct, silent).objects == (Route("fc00:0:0:2::/64", (Hop("eth0", "fd50::12"),)),)


def test_the_record_is_flannels() -> None:
    assert IPIP.lease(context(IPIP, v6=True)) == ("ipip", None, None)
    assert IPIP.ports(context(IPIP).options) == (Ip(4, 4), Ip(41, 6))


def test_a_peer_is_a_nexthop_and_a_route_and_for_ipv6_a_device() -> None:
    dev = device6("192.168.50.12")
    assert IPIP.peer(context(IPIP, v6=True), lease(IPIP, v6=True)).objects == (
        NextHop("na-ipip", "192.168.50.12"),
        Route("10.5.72.0/24", nexthop=("na-ipip", "192.168.50.12")),
        Link(kind="sit", name=dev, mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11", remote="192.168.50.12")),
        Route("fc00:0:0:2::/64", (Hop(dev),)),
    )
    assert len(dev) <= 15
    assert dev != device6("192.168.50.13")


def test_without_nexthop_objects_the_route_is_plain_and_onlink() -> None:
    plan = IPIP.peer(on(context(IPIP), facts("ipip")), PEER)
    assert plan.objects == (Route("10.5.72.0/24", (Hop("na-ipip", "192.168.50.12", onlink=True),)),)


def test_direct_routing_tunnels_only_behind_a_router() -> None:
    ctx = context(IPIP, directrouting=True)
    assert IPIP.direct(ctx.options)
    assert IPIP.peer(ctx, PEER).objects == (Route("10.5.72.0/24", (Hop("eth0", "192.168.50.12"),)),)
    far = msgspec.structs.replace(PEER, public_ip="192.168.60.12")
    assert NextHop("na-ipip", "192.168.60.12") in IPIP.peer(ctx, far).objects


def test_an_option_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        IPIP.options({"DirectRouting": "yes"})
    assert caught.value.where == "Backend.DirectRouting"


# --------------------------------------------------------------------------------- what the kernel lacks


@pytest.mark.parametrize(
    ("backend", "kind", "abilities", "instead"),
    [
        (IPIP, "ipip", {"nexthop", "vxlan", "tun"}, '"vxlan"'),
        (IPIP, "ipip", {"nexthop", "tun"}, '"udp"'),
        (VxlanBackend(), "vxlan", {"ipip", "tun"}, '"ipip"'),
        (VxlanBackend(), "vxlan", {"tun"}, '"udp"'),
        (Udp(), "tun", {"vxlan", "ipip"}, '"vxlan"'),
        (Udp(), "tun", {"nexthop"}, '"host-gw"'),
    ],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else None),
)
def test_a_kernel_without_the_device_is_told_with_the_next_best_backend(
    backend: Backend, kind: str, abilities: set[str], instead: str
) -> None:
    ctx = on(context(backend), facts(*abilities))
    plan = backend.base(ctx)
    (finding,) = plan.findings
    assert (finding.code, finding.subject, finding.severity) == ("kernel-lacks-device", kind, "error")
    assert f"use {instead}" in finding.remedy
    # It is wanted all the same, so that it stands as soon as the module does.
    assert [o.kind for o in plan.objects if isinstance(o, Link)] == [kind]


@pytest.mark.parametrize("backend", [IPIP, VxlanBackend()], ids=lambda backend: backend.name)
def test_without_the_device_peers_get_no_path_but_a_direct_one(backend: Backend) -> None:
    assert backend.peer(on(context(backend), facts("nexthop")), lease(backend)) == ((), ())
    direct = backend.peer(on(context(backend, DirectRouting=True), facts("nexthop")), lease(backend))
    assert direct.objects == (Route("10.5.72.0/24", (Hop("eth0", "192.168.50.12"),)),)


def test_one_family_without_the_device_does_not_take_the_other() -> None:
    ctx = on(context(IPIP, v6=True), facts("ipip", "vxlan", "nexthop"))
    plan = IPIP.base(ctx)
    assert [(f.code, f.subject) for f in plan.findings] == [("kernel-lacks-device", "sit")]
    assert [o for o in plan.objects if o.KIND == "address"] == [Address("na-ipip", "10.5.59.0", 32)]
    peer = IPIP.peer(ctx, lease(IPIP, v6=True)).objects
    assert {o.dst for o in peer if o.KIND == "route"} == {"10.5.72.0/24"}
    assert [o.kind for o in peer if isinstance(o, Link)] == ["sit"]  # tried again


# ------------------------------------------------------------------------------ another owner's devices


def tunnel(name: str, *, up: bool = True, kind: str = "ipip", own: bool = False, **attrs: Any) -> LinkFact:
    return LinkFact(name=name, index=9, kind=kind, up=up, own=own, tunnel=TunnelAttrs(**attrs))


@pytest.mark.parametrize(
    ("link", "taken"),
    [
        (tunnel("tunl0", up=False), False),
        (tunnel("tunl0"), True),
        (tunnel("flannel.ipip", local="192.168.50.11"), True),
        (tunnel("flannel.ipip", local="192.168.50.11", up=False), True),
        (tunnel("other", local="192.168.50.99"), False),
        (tunnel("branch", local="192.168.50.11", remote="203.0.113.9"), False),
        (tunnel("sit0", kind="sit"), False),
        (tunnel("na-ipip", local="192.168.50.11", own=True), False),
    ],
    ids=lambda value: value.name if isinstance(value, LinkFact) else None,
)
def test_a_device_that_takes_the_same_packets_is_refused_not_fought(link: LinkFact, taken: bool) -> None:
    ctx = on(context(IPIP), beside(link))
    assert codes(IPIP.base(ctx)) == (["ipip-device-taken"] if taken else [])
    assert bool(IPIP.base(ctx).objects) is not taken
    assert bool(IPIP.peer(ctx, PEER).objects) is not taken


# ---------------------------------------------------------------------------------------------- the guard


def test_peers_addresses_are_kept_for_the_guard() -> None:
    """Without a port, yet only peers may send: see the rules in test_hostplan.py."""
    assert Composer(Standing(IPIP, context(IPIP))).guarded
    assert Composer(Standing(HostGw(), context(HostGw())), previous=(Standing(IPIP, context(IPIP)),)).guarded
    assert not Composer(Standing(HostGw(), context(HostGw()))).guarded
