"""ipip: the kernel's devices that put packets into IPv4, one per address family, each for all peers; 20 bytes each.

A device has no remote end: where a packet goes is the gateway of its route, so a peer is one route (and one nexthop
object), without neighbour or forwarding entry. IPv4 is flannel's ipip, record ({"BackendType":"ipip"}, no data) and
DirectRouting included. flannel has no IPv6 here; ours goes into IPv4 as well, by a sit device (RFC 4213), whose
gateway is the peer's IPv4 address in IPv6 notation ("::192.168.50.12"). Not ip6tnl: Linux refuses a gateway that is
reached by another device, as a peer's IPv6 address is by the uplink (ip6_route_check_nh_onlink).
Rules that hold here: the kernel's fallback devices (tunl0, sit0) are left alone; where another owner's device takes
every packet that would be ours, nothing is planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends import options, peering
from netagent.contract import Context, LeaseData, Options, Plan, Service, ServicePort
from netagent.model import Address, Family, Finding, Hop, Lease, Link, NextHop, Object, Route, TunnelAttrs

OVERHEAD = 20  # the outer IPv4 header (RFC 2003)
KIND: Mapping[Family, str] = {4: "ipip", 6: "sit"}
DEVICE: Mapping[Family, str] = {4: "na-ipip", 6: "na-sit"}


class IpipOptions(msgspec.Struct, frozen=True):
    """Options of `Backend`, with flannel's name."""

    direct_routing: bool = msgspec.field(name="DirectRouting", default=False)


class IpipBackend:
    """Plans the tunnel devices and, for each peer, a route through them by the peer's own address."""

    name = "ipip"

    def options(self, raw: Mapping[str, Any]) -> Options:
        return Options(*options.parse(self.name, IpipOptions, raw))

    def ports(self, options: IpipOptions) -> tuple[int, ...]:
        return ()  # no ports: the guard of IP protocols 4 and 41 comes with the devices

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
        findings: list[Finding] = []
        for family in context.network.families:
            taken = _taken(context, family)
            if taken is not None:
                findings.append(taken)
                continue
            # Planned also where the kernel made none so far: the reconciler tries again, and the module may come.
            attrs = TunnelAttrs(local=local)
            objects.append(Link(kind=KIND[family], name=DEVICE[family], mtu=self.mtu(context), tunnel=attrs))
            if KIND[family] not in context.facts.abilities:
                findings.append(peering.lacking(self.name, KIND[family], context.facts))
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
        if (
            context.node.local(4) is None
            or KIND[family] not in context.facts.abilities
            or _taken(context, family) is not None
        ):
            return None  # base() says why
        endpoint = lease.endpoint(4)
        assert endpoint is not None
        dev, gateway = DEVICE[family], endpoint if family == 4 else _compatible(endpoint)
        if "nexthop" in context.facts.abilities:
            objects.append(NextHop(dev, gateway))
            objects.append(Route(subnet, nexthop=(dev, gateway)))
        else:
            objects.append(Route(subnet, (Hop(dev, gateway, onlink=True),)))
        return None


def _compatible(ip: str) -> str:
    """An IPv4 address as sit takes it for a gateway (RFC 4291, 2.5.5.1), in the form in which inet_ntop gives it."""
    return f"::{ip}"


def _needs_ipv4(context: Context) -> Finding:
    return Finding(
        code="ipip-needs-ipv4",
        subject=context.node.name,
        severity="error",
        message="ipip puts packets into IPv4, and this node has no IPv4 address that peers could send to",
        evidence=f"addresses on {context.node.uplink}: {context.node.local(6) or 'none'}",
        remedy='give the interface an IPv4 address, or use "vxlan", which goes over IPv6 too',
    )


def _taken(context: Context, family: Family) -> Finding | None:
    """Another owner's device without a remote end: two such take each other's packets.

    The kernel refuses two with one local address. One without a local address that is up (Calico uses tunl0 so)
    would get nothing any more, for a device with an address of its own is preferred (ip_tunnel_lookup).
    """
    for link in context.facts.links.values():
        if link.kind != KIND[family] or link.own or link.tunnel is None or link.tunnel.remote is not None:
            continue
        if link.tunnel.local == context.node.local(4) or (link.tunnel.local is None and link.up):
            return Finding(
                code="ipip-device-taken",
                subject=link.name,
                severity="error",
                message=f"{link.name} of another owner takes the {KIND[family]} packets of every peer",
                evidence=f"{link.name} has no remote end, local address {link.tunnel.local or 'any'} "
                "(flanneld makes flannel.ipip, Calico uses tunl0)",
                remedy=f"stop its owner and `ip link set {link.name} down`, then `ip link delete {link.name}` unless "
                'it is the kernel\'s own (tunl0, sit0); or use "vxlan"',
            )
    return None
