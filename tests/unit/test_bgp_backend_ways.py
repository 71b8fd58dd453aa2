"""The bgp backend: from next hops to ways out of the host, and from chosen routes to kernel objects."""

from __future__ import annotations

import msgspec
import pytest

from backends.bgp.planner import Bgp, tunnelled
from backends.bgp.reports import out_of_reach
from backends.bgp.ways import Ways, metric
from backends.ipip import device6
from backends.vxlan import link_local, vtep_mac
from bgp.message.nlri import parse_address
from netagent.contract import Context, Ip, Tcp
from netagent.model import (
    Facts,
    FdbEntry,
    Hop,
    Link,
    LinkFact,
    Neighbour,
    NextHop,
    Route,
    RouteFact,
    TunnelAttrs,
    VxlanAttrs,
)
from tests.unit.test_bgp_backend import LINKS, context, facts, member


def at(*addresses: str) -> list[bytes]:
    """Next hops as a speaker has them."""
    return [parse_address(address) for address in addresses]


def test_on_the_link_without_a_tunnel() -> None:
    ways = Ways(context(), {"h2": member("h2", 12)})
    assert ways.to("192.168.50.12").hop == Hop("eth0", "192.168.50.12")
    assert ways.route("10.5.72.0/24", at("192.168.50.12")) == (
        Route("10.5.72.0/24", (Hop("eth0", "192.168.50.12"),), metric=metric("10.5.72.0/24")),
        "",
    )
    assert ways.vtep("h2") == ()


@pytest.mark.parametrize(
    ("next_hop", "word"),
    [
        ("192.168.70.11", "not on a link"),
        ("10.5.72.1", "inside the containers' network"),
        ("127.0.0.1", "no address of a host"),
        ("224.0.0.5", "no address of a host"),
        ("0.0.0.0", "no address of a host"),
        ("fd99::1", "not on a link"),
    ],
)
def test_a_next_hop_that_cannot_be_reached(next_hop: str, word: str) -> None:
    ways = Ways(context(), {})
    assert ways.to(next_hop).metric is None
    route, reason = ways.route("10.5.72.0/24", at(next_hop))
    assert route is None
    assert word in reason


def test_nodes_behind_a_router_are_told_with_the_remedy() -> None:
    far = {"v4": "192.168.70.13", "v6": "fd70::13", "subnets": ("10.5.13.0/24",)}
    others = {"h2": member("h2", 12, subnets=("10.5.12.0/24",)), "h3": member("h3", 13, **far)}
    (finding,) = out_of_reach(Ways(context(v6=True), others), others)
    assert (finding.code, finding.subject) == ("bgp-out-of-reach", "h3")
    assert "h2" not in finding.message
    assert out_of_reach(Ways(context(v6=True), others), {"h2": others["h2"]}) == []
    gone = {"h3": member("h3", 13, v4="192.168.70.13", v6=None)}
    assert out_of_reach(Ways(context(), gone), gone) == [], "it has no subnet"


def test_across_subnets_by_the_tunnel_and_on_the_link_without() -> None:
    others = {"h2": member("h2", 12), "h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13")}
    ways = Ways(context({"Encapsulation": "vxlan-cross-subnet"}, v6=True), others)
    assert ways.to("192.168.50.12").hop == Hop("eth0", "192.168.50.12")
    assert ways.to("192.168.70.13").hop == Hop("na-vx1", "192.168.70.13", onlink=True)
    mac4, mac6 = vtep_mac(others["h3"].id, 1, 4), vtep_mac(others["h3"].id, 1, 6)
    gateway6 = link_local(mac6)
    assert ways.vtep("h2") == ()
    assert ways.vtep("h3") == (
        NextHop("na-vx1", "192.168.70.13"),
        Neighbour("na-vx1", "192.168.70.13", mac4),
        FdbEntry("na-vx1", mac4, "192.168.70.13"),
        NextHop("na-vx6-1", gateway6),
        Neighbour("na-vx6-1", gateway6, mac6),
        FdbEntry("na-vx6-1", mac6, "fd70::13"),
    )
    assert ways.route("10.5.73.0/24", at("192.168.70.13"))[0] == Route(
        "10.5.73.0/24", nexthop=("na-vx1", "192.168.70.13"), metric=metric("10.5.73.0/24")
    )
    assert ways.route("fc00:5:0:9::/64", at("fd70::13"))[0] == Route(
        "fc00:5:0:9::/64", nexthop=("na-vx6-1", gateway6)
    )


def test_with_the_tunnel_always() -> None:
    others = {"h2": member("h2", 12)}
    ways = Ways(context({"Encapsulation": "vxlan"}), others)
    assert ways.to("192.168.50.12").member == "h2"
    assert ways.to("192.168.50.1").hop == Hop("eth0", "192.168.50.1"), "a router is no node"
    assert ways.to("192.168.50.1").metric == 0
    assert ways.to("192.168.50.12").metric == 1


def able(ctx: Context, *more: str) -> Context:
    found = Facts(ctx.facts.links, ctx.facts.addresses, ctx.facts.routes, ctx.facts.abilities | set(more))
    return msgspec.structs.replace(ctx, facts=found)


def test_inside_ip() -> None:
    others = {"h2": member("h2", 12), "h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13")}
    ctx = able(context({"Encapsulation": "ipip-cross-subnet"}, v6=True), "ipip", "sit")
    assert tunnelled(ctx) == {4, 6}
    ways = Ways(ctx, others, tunnelled(ctx))
    sit = device6("192.168.70.13")
    assert ways.vtep("h2") == ()
    assert ways.vtep("h3") == (
        NextHop("na-ipip", "192.168.70.13"),
        Link(kind="sit", name=sit, mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11", remote="192.168.70.13")),
    )
    assert ways.route("10.5.73.0/24", at("192.168.70.13"))[0] == Route(
        "10.5.73.0/24", nexthop=("na-ipip", "192.168.70.13"), metric=metric("10.5.73.0/24")
    )
    assert ways.route("fc00:5:0:9::/64", at("fd70::13"))[0] == Route("fc00:5:0:9::/64", (Hop(sit),))
    assert Bgp().mtu(ctx) == 1480
    assert [o.name for o in Bgp().base(ctx).objects if isinstance(o, Link)] == ["na-ipip"]
    assert Bgp().ports(ctx.options) == (Tcp(179), Ip(4, 4), Ip(41, 6))


def test_inside_ip_where_the_kernel_cannot() -> None:
    others = {"h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13"), "h4": member("h4", 14, v4=None)}
    ctx = able(context({"Encapsulation": "ipip"}, v6=True), "sit")
    ways = Ways(ctx, others, tunnelled(ctx))
    assert "cannot be made" in ways.to("192.168.70.13").problem
    assert ways.to("fd70::13").hop == Hop(device6("192.168.70.13"))
    assert "no IPv4 address" in ways.to("fd50::14").problem


def test_equal_ways_are_used_at_once() -> None:
    ways = Ways(context(), {})
    route, _ = ways.route("10.5.72.0/24", at("192.168.50.13", "192.168.50.12", "192.168.99.1", "192.168.50.13"))
    hops = (Hop("eth0", "192.168.50.12"), Hop("eth0", "192.168.50.13"))
    assert route == Route("10.5.72.0/24", hops, metric=metric("10.5.72.0/24"))


def test_ipv4_by_a_next_hop_of_ipv6() -> None:
    """RFC 8950: the kernel takes it as it is; a tunnel that is for IPv6 does not carry it."""
    others = {"h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13")}
    ways = Ways(context({"Encapsulation": "vxlan-cross-subnet"}, v6=True), others)
    route, _ = ways.route("10.5.72.0/24", at("fd50::1", "192.168.50.1"))
    assert route is not None
    assert route.hops == (Hop("eth0", "192.168.50.1"), Hop("eth0", "fd50::1"))
    route, reason = ways.route("10.5.72.0/24", at("fd70::13"))
    assert route is None
    assert "tunnel for IPv6" in reason


def test_a_metric_follows_from_the_prefix_and_metrics_are_spread() -> None:
    found = [metric(f"10.{number >> 8}.{number & 255}.0/24") for number in range(10_000)]
    assert (min(found), max(found)) == (256, 511)
    assert max(found.count(each) for each in set(found)) < 100
    assert metric("fc00:5:0:9::/64") == 0


def test_a_prefix_that_the_host_has_itself_is_left_to_it() -> None:
    ctx = msgspec.structs.replace(context(), facts=facts(RouteFact(dst="192.168.50.0/24", dev="eth0")))
    route, reason = Ways(ctx, {}).route("192.168.50.0/24", at("192.168.50.1"))
    assert route is None
    assert "of its own" in reason


def test_a_vxlan_device_of_another_owner_leaves_no_tunnel() -> None:
    foreign = LinkFact(name="flannel.1", index=9, kind="vxlan", vxlan=VxlanAttrs(vni=1, port=8472))
    ctx = context({"Encapsulation": "vxlan"})
    assert tunnelled(ctx) == {4}
    taken = msgspec.structs.replace(ctx, facts=facts(links={**LINKS, "flannel.1": foreign}))
    assert not tunnelled(taken)
    ways = Ways(taken, {"h2": member("h2", 12)}, tunnelled(taken))
    assert ways.to("192.168.50.12").metric is None


def test_ways_differ_when_a_next_hop_is_reached_otherwise() -> None:
    one = Ways(context(), {"h2": member("h2", 12)})
    one.to("192.168.50.12")
    assert not Ways(context(), {}).differs(one)
    assert Ways(context({"Encapsulation": "vxlan"}), {"h2": member("h2", 12)}).differs(one)
