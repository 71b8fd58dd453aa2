"""ipip: the kernel's IP-in-IP devices, one per address family, each for all peers. Twenty bytes of overhead.

One device has no remote end: where a packet goes is the gateway of its route, the address of the peer's host, so a
peer is one route (and one nexthop object), without neighbour or forwarding entry. IPv4 is flannel's ipip, record
({"BackendType":"ipip"}, no data) and DirectRouting included. flannel has no IPv6 here; ours goes IPv6 in IPv6 through
an ip6tnl device, by the same rules (RFC 2473). Rules that hold here: the kernel's fallback devices (tunl0, ip6tnl0)
are left alone; where another owner's device takes every packet that would be ours, nothing is planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends import options, peering
from netagent.contract import Context, LeaseData, Options, Plan, Service, ServicePort
from netagent.model import Address, Family, Finding, Hop, Lease, Link, NextHop, Object, Route, TunnelAttrs

# The outer IP header (RFC 2003; RFC 2473 without options).
OVERHEAD: Mapping[Family, int] = {4: 20, 6: 40}
KIND: Mapping[Family, str] = {4: "ipip", 6: "ip6tnl"}
MODULE: Mapping[Family, str] = {4: "ipip", 6: "ip6_tunnel"}
DEVICE: Mapping[Family, str] = {4: "na-ipip", 6: "na-ipip6"}


class IpipOptions(msgspec.Struct, frozen=True):
    """Options of `Backend`, with flannel's name."""

    direct_routing: bool = msgspec.field(name="DirectRouting", default=False)


class IpipBackend:
    """Plans the tunnel devices and, for each peer, a route through them by the peer's own address."""

    name = "ipip"

    def options(self, raw: Mapping[str, Any]) -> Options:
        return Options(*options.parse(self.name, IpipOptions, raw))

    def ports(self, options: IpipOptions) -> tuple[int, ...]:
        return ()  # no ports: the guard of protocols 4 and 41 comes with the devices

    def direct(self, options: IpipOptions) -> bool:
        return options.direct_routing

    def mtu(self, context: Context) -> int:
        return min(context.node.mtu - OVERHEAD[family] for family in context.network.families)

    def lease(self, context: Context) -> LeaseData:
        return LeaseData("ipip")

    def base(self, context: Context) -> Plan:
        objects: list[Object] = []
        findings: list[Finding] = []
        for family in context.network.families:
            taken = _taken(context, family)
            if taken is not None:
                findings.append(taken)
                continue
            # Planned also where the kernel made none so far: the reconciler tries again, and the module may come.
            attrs = TunnelAttrs(local=context.node.local(family))
            mtu = context.node.mtu - OVERHEAD[family]
            objects.append(Link(kind=KIND[family], name=DEVICE[family], mtu=mtu, tunnel=attrs))
            if KIND[family] not in context.facts.abilities:
                findings.append(peering.lacking(self.name, KIND[family], context.facts, MODULE[family]))
                continue
            subnet = context.node.subnet(family)
            if subnet is not None:
                objects.append(Address(DEVICE[family], subnet.partition("/")[0], 32 if family == 4 else 128))
        return Plan(tuple(objects), tuple(findings))

    def peer(self, context: Context, lease: Lease) -> Plan:
        if lease.backend != self.name:
            return Plan((), (peering.other_backend(self.name, lease),))
        objects: list[Object] = []
        findings: list[Finding] = []
        for family in context.network.families:
            if lease.subnet(family) is not None:
                problem = self._path(context, lease, family, objects)
                if problem is not None:
                    findings.append(problem)
        return Plan(tuple(objects), tuple(findings))

    def service(self, context: Context, port: ServicePort) -> Service | None:
        return None

    async def dismantle(self, run_dir: Path) -> None:
        pass

    def _path(self, context: Context, lease: Lease, family: Family, objects: list[Object]) -> Finding | None:
        """Append the objects that lead to the peer's subnet of that family, or say why there are none."""
        problem = peering.endpoint_problem(context.node, lease, family)
        if problem is not None:
            return problem
        subnet, endpoint = lease.subnet(family), lease.endpoint(family)
        assert subnet is not None
        assert endpoint is not None
        if context.options.direct_routing:
            uplink = context.facts.on_link(endpoint)
            if uplink is not None:
                objects.append(Route(subnet, (Hop(uplink, endpoint),)))
                return None
        if KIND[family] not in context.facts.abilities or _taken(context, family) is not None:
            return None  # base() says why
        dev = DEVICE[family]
        if "nexthop" in context.facts.abilities:
            objects.append(NextHop(dev, endpoint))
            objects.append(Route(subnet, nexthop=(dev, endpoint)))
        else:
            objects.append(Route(subnet, (Hop(dev, endpoint, onlink=True),)))
        return None


def _taken(context: Context, family: Family) -> Finding | None:
    """Another owner's device without a remote end: two such take each other's packets.

    The kernel refuses two with one local address. One without a local address that is up (Calico uses tunl0 so)
    would get nothing any more, for a device with an address of its own is preferred (ip_tunnel_lookup).
    """
    for link in context.facts.links.values():
        if link.kind != KIND[family] or link.own or link.tunnel is None or link.tunnel.remote is not None:
            continue
        if link.tunnel.local == context.node.local(family) or (link.tunnel.local is None and link.up):
            return Finding(
                code="ipip-device-taken",
                subject=link.name,
                severity="error",
                message=f"{link.name} of another owner takes the {KIND[family]} packets of every peer",
                evidence=f"{link.name} is up without a remote end, local {link.tunnel.local or 'any'} "
                "(flanneld makes flannel.ipip, Calico uses tunl0)",
                remedy=f"stop its owner and `ip link set {link.name} down`, then `ip link delete {link.name}` unless "
                'it is the kernel\'s own (tunl0, ip6tnl0); or use "vxlan"',
            )
    return None
