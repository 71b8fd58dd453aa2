"""host-gw's plan held against flannel's: `10.5.48.0/24 via 192.168.50.12 dev eth0`."""

from __future__ import annotations

import msgspec

from backends.hostgw import HostGw
from netagent.model import Hop, Route
from tests.unit.test_backends import context, lease

HOSTGW = HostGw()


def test_a_peer_on_the_link_is_one_plain_route() -> None:
    plan = HOSTGW.peer(context(HOSTGW, v6=True), lease(HOSTGW, v6=True))
    assert plan.objects == (
        Route("10.5.72.0/24", (Hop("eth0", "192.168.50.12"),)),
        Route("fc00:0:0:2::/64", (Hop("eth0", "fd50::12"),)),
    )


def test_a_peer_behind_a_router_gets_no_route_and_a_reason() -> None:
    plan = HOSTGW.peer(context(HOSTGW), msgspec.structs.replace(lease(HOSTGW), public_ip="192.168.60.12"))
    assert plan.objects == ()
    (finding,) = plan.findings
    assert finding.code == "hostgw-not-on-link"
    assert "192.168.60.12" in finding.message


def test_one_family_off_link_does_not_take_the_other() -> None:
    plan = HOSTGW.peer(
        context(HOSTGW, v6=True), msgspec.structs.replace(lease(HOSTGW, v6=True), public_ip6="fd60::1")
    )
    assert [o.dst for o in plan.objects] == ["10.5.72.0/24"]
    assert [f.code for f in plan.findings] == ["hostgw-not-on-link"]


def test_a_public_address_that_is_not_the_uplinks_is_refused() -> None:
    ctx = context(HOSTGW)
    assert HOSTGW.base(ctx).findings == ()
    natted = msgspec.structs.replace(ctx, node=msgspec.structs.replace(ctx.node, public_ip="203.0.113.9"))
    assert [f.code for f in HOSTGW.base(natted).findings] == ["public-address-not-ours"]


def test_record_and_mtu_are_flannels() -> None:
    ctx = context(HOSTGW)
    assert HOSTGW.lease(ctx) == ("host-gw", None, None)
    assert HOSTGW.mtu(ctx) == 1500
