"""host-gw: a plain next-hop route per peer, for hosts that share an L2 segment. No overlay, no overhead.

Rule: a route only where the peer's address is on a link of this host; the kernel would refuse the gateway, or
worse, send to a router that knows nothing of the subnet. Such a peer gets no route and a finding that says why.
Plain routes, never nexthop objects: the uplink is not ours, and a carrier loss would delete nexthops for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends import options, peering
from netagent.contract import Context, LeaseData, Options, Plan, Service, ServicePort
from netagent.model import Family, Finding, Hop, Lease, Object, Route


class HostGwOptions(msgspec.Struct, frozen=True):
    """host-gw has no options; a key in `Backend` beside Type is a finding."""


class HostGw:
    """Plans `subnet via endpoint dev uplink` for each peer (flannel's host-gw, with IPv6)."""

    name = "host-gw"

    def options(self, raw: Mapping[str, Any]) -> Options:
        return Options(*options.parse(self.name, HostGwOptions, raw))

    def ports(self, options: HostGwOptions) -> tuple[int, ...]:
        return ()

    def direct(self, options: HostGwOptions) -> bool:
        return True

    def mtu(self, context: Context) -> int:
        return context.node.mtu

    def lease(self, context: Context) -> LeaseData:
        return LeaseData("host-gw")

    def base(self, context: Context) -> Plan:
        remedy = "use vxlan or udp, which work across NAT and routers"
        return Plan((), peering.translated(context, "with host-gw", remedy))

    def peer(self, context: Context, lease: Lease) -> Plan:
        if lease.backend != self.name:
            return Plan((), (peering.other_backend(self.name, lease),))
        return peering.paths(context, lease, self._route)

    def service(self, context: Context, port: ServicePort) -> Service | None:
        return None

    async def dismantle(self, run_dir: Path) -> None:
        pass

    def _route(self, context: Context, lease: Lease, family: Family, objects: list[Object]) -> Finding | None:
        subnet, gateway = lease.subnet(family), lease.endpoint(family)
        problem = peering.endpoint_problem(context.node, lease, family)
        if problem is not None:
            return problem
        assert subnet is not None
        assert gateway is not None
        dev = context.facts.on_link(gateway)
        if dev is None:
            return Finding(
                code="hostgw-not-on-link",
                subject=lease.key,
                message=f"no route to {subnet}: {lease.label} at {gateway} is not on the same L2 segment",
                evidence=f"no address of this host has a prefix that holds {gateway}",
                remedy='use "vxlan" with DirectRouting, which tunnels only where a router lies between',
            )
        objects.append(Route(subnet, (Hop(dev, gateway),)))
        return None
