"""ipip: the kernel's devices that put packets into IPv4; 20 bytes each.

IPv4 is flannel's ipip: one device for all peers, without a remote end; a packet goes to the gateway of its route.
Record ({"BackendType":"ipip"}, no data) and DirectRouting are flannel's too. A peer is one route (and one nexthop
object), without neighbour or forwarding entry. flannel has no IPv6 here; ours goes into IPv4 as well (RFC 4213), by a
sit device for each peer. One for all would be wrong: sit keeps the route of one packet for the next, whatever its
destination (net/ipv6/sit.c, dst_cache), and for ip6tnl Linux refuses the gateway (ip6_route_check_nh_onlink).
What else was tried is in docs/adr/0017.
Rules that hold here: the kernel's fallback devices (tunl0, sit0) are left alone; where another owner's device takes
every packet that would be ours, nothing is planned.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends import options, peering
from netagent.contract import Context, Ip, LeaseData, Options, Plan, Port, Service, ServicePort
from netagent.model import IPIP, SIT, Address, Family, Finding, Hop, Lease, Link, NextHop, Object, Route, TunnelAttrs

OVERHEAD = 20  # the outer IPv4 header (RFC 2003)
KIND: Mapping[Family, str] = {4: "ipip", 6: "sit"}
DEVICE = "na-ipip"


class IpipOptions(msgspec.Struct, frozen=True):
    """Options of `Backend`, with flannel's name."""

    direct_routing: bool = msgspec.field(name="DirectRouting", default=False)


class IpipBackend:
    """Plans the tunnel devices and, for each peer, the routes through them."""

    name = "ipip"

    def options(self, raw: Mapping[str, Any]) -> Options:
        return Options(*options.parse(self.name, IpipOptions, raw))

    def ports(self, options: IpipOptions) -> tuple[Port, ...]:
        return Ip(IPIP, 4), Ip(SIT, 6)

    def direct(self, options: IpipOptions) -> bool:
        return options.direct_routing

    def mtu(self, context: Context) -> int:
        return context.node.mtu - OVERHEAD

    def lease(self, context: Context) -> LeaseData:
        return LeaseData("ipip")

    def base(self, context: Context) -> Plan:
        local = context.node.local(4)
        if local is None:
            return Plan((), (_needs_ipv4(context),))
        objects: list[Object] = []
        findings = [
            peering.lacking(self.name, KIND[family], context.facts)
            for family in context.network.families
            if KIND[family] not in context.facts.abilities
        ]
        taken = _taken(context)
        if 4 in context.network.families and taken is not None:
            findings.append(taken)
        elif 4 in context.network.families:
            # Planned also where the kernel made none so far: the reconciler tries again, and the module may come.
            attrs = TunnelAttrs(local=local)
            objects.append(Link(kind="ipip", name=DEVICE, mtu=self.mtu(context), tunnel=attrs))
            subnet = context.node.subnet(4)
            if subnet is not None and "ipip" in context.facts.abilities:
                objects.append(Address(DEVICE, subnet.partition("/")[0], 32))
        return Plan(tuple(objects), tuple(findings))

    def peer(self, context: Context, lease: Lease) -> Plan:
        if lease.backend != self.name:
            return Plan((), (peering.other_backend(self.name, lease),))
        return peering.paths(context, lease, self._path)

    def service(self, context: Context, port: ServicePort) -> Service | None:
        return None

    async def dismantle(self, run_dir: Path) -> None:
        pass

    def _path(self, context: Context, lease: Lease, family: Family, objects: list[Object]) -> Finding | None:
        """Append the objects that lead to the peer's subnet of that family, or say why there are none."""
        subnet = lease.subnet(family)
        assert subnet is not None
        if context.options.direct_routing and peering.endpoint_problem(context.node, lease, family) is None:
            endpoint = lease.endpoint(family)
            assert endpoint is not None
            uplink = context.facts.on_link(endpoint)
            if uplink is not None:
                objects.append(Route(subnet, (Hop(uplink, endpoint),)))
                return None
        problem = peering.endpoint_problem(context.node, lease, 4)
        if problem is not None:
            return problem
        local, remote = context.node.local(4), lease.endpoint(4)
        assert remote is not None
        if local is None:
            return None  # base() says why
        able = KIND[family] in context.facts.abilities
        if family == 6:
            # It takes packets of its remote end alone, so it needs no guard.
            attrs = TunnelAttrs(local=local, remote=remote)
            dev = device6(remote)
            objects.append(Link(kind="sit", name=dev, mtu=self.mtu(context), tunnel=attrs))
            if able:
                objects.append(Route(subnet, (Hop(dev),)))
        elif able and _taken(context) is None:
            if "nexthop" in context.facts.abilities:
                objects.append(NextHop(DEVICE, remote))
                objects.append(Route(subnet, nexthop=(DEVICE, remote)))
            else:
                objects.append(Route(subnet, (Hop(DEVICE, remote, onlink=True),)))
        return None


@functools.cache
def device6(remote: str) -> str:
    """Name of the device that carries IPv6 to a peer."""
    return "na-s" + hashlib.sha256(remote.encode()).hexdigest()[:8]


def _needs_ipv4(context: Context) -> Finding:
    return Finding(
        code="ipip-needs-ipv4",
        subject=context.node.name,
        severity="error",
        message="ipip puts packets into IPv4, and this node has no IPv4 address that peers could send to",
        evidence=f"addresses on {context.node.uplink}: {context.node.local(6) or 'none'}",
        remedy='give the interface an IPv4 address, or use "vxlan", which goes over IPv6 too',
    )


def _taken(context: Context) -> Finding | None:
    """Another owner's device without a remote end: two such take each other's packets.

    The kernel refuses two with one local address. One without a local address that is up (Calico uses tunl0 so)
    would get nothing any more, for a device with an address of its own is preferred (ip_tunnel_lookup).
    """
    for link in context.facts.links.values():
        if link.kind != "ipip" or link.own or link.tunnel is None or link.tunnel.remote is not None:
            continue
        if link.tunnel.local == context.node.local(4) or (link.tunnel.local is None and link.up):
            return Finding(
                code="ipip-device-taken",
                subject=link.name,
                severity="error",
                message=f"{link.name} of another owner takes the IP-in-IP packets of every peer",
                evidence=f"{link.name} has no remote end, local address {link.tunnel.local or 'any'} "
                "(flanneld makes flannel.ipip, Calico uses tunl0)",
                remedy=f"stop its owner and `ip link set {link.name} down`, then `ip link delete {link.name}` unless "
                'it is the kernel\'s own tunl0; or use "vxlan"',
            )
    return None
