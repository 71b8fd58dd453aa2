"""bgp, the plan: what a node needs besides the routes, which its speaker learns (service.py).

Rules: no overlay unless `Encapsulation` asks for one, and then the vxlan or ipip backend's device, as its planner
makes it; the lease says AS and VNI for whoever reads it. Of a remote lease only the way in through the guard is
planned here: the speaker's routes and the VTEPs behind them are the service's, and outlive the lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends import peering
from backends.bgp import options
from backends.bgp.options import BgpOptions
from backends.ipip import KIND, IpipBackend
from backends.vxlan import DEFAULT_PORT as VXLAN_PORT
from backends.vxlan import VxlanBackend
from netagent.contract import Context, LeaseData, Options, Plan, Port, ServicePort, Tcp, Udp
from netagent.model import Family, Lease, Link, NftElement

if TYPE_CHECKING:
    from backends.bgp.service import BgpService


# In the run directory, which a reboot empties as it empties the kernel's tables.
BFD_SOCKET = "bgp.bfd"  # where BFD's process waits for the next agent
STATE = "bgp.json"  # who had a session with us


class Bgp:
    """Plans device and guard; `service` runs the speaker."""

    name = "bgp"

    def options(self, raw: Mapping[str, Any]) -> Options:
        return options.parse(raw)

    def ports(self, options: BgpOptions) -> tuple[Port, ...]:
        own: tuple[Port, ...] = (Tcp(options.port), *(Udp(port) for port in options.bfd_ports))
        if options.tunnel == "vxlan":
            return (*own, options.vxlan_port or VXLAN_PORT)
        return (*own, *IpipBackend().ports(options.ipip)) if options.tunnel else own

    def direct(self, options: BgpOptions) -> bool:
        routers = options.routers or any(rule.routers for rule in options.nodes)
        return not options.tunnel or options.cross_subnet or bool(routers)

    def mtu(self, context: Context) -> int:
        if context.options.tunnel:
            backend, inner = tunnel(context)
            return backend.mtu(inner)
        return context.options.mtu or context.node.mtu

    def lease(self, context: Context) -> LeaseData:
        own: BgpOptions = context.options
        asn = own.asn_of(context.node.name, context.node.labels)
        more = LeaseData("")
        if own.tunnel:
            backend, inner = tunnel(context)
            more = backend.lease(inner)
        data = {family: {"AS": asn, **(part or {})} for family, part in ((4, more.data), (6, more.data6))}
        families = context.network.families
        return LeaseData(self.name, data[4] if 4 in families else None, data[6] if 6 in families else None)

    def base(self, context: Context) -> Plan:
        if context.options.tunnel:
            backend, inner = tunnel(context)
            return backend.base(inner)
        remedy = 'set "Encapsulation": "vxlan", which works across NAT and routers'
        return Plan((), peering.translated(context, "without a tunnel", remedy))

    def peer(self, context: Context, lease: Lease) -> Plan:
        if lease.backend != self.name:
            return Plan((), (peering.other_backend(self.name, lease),))
        problems = [
            problem
            for family in context.network.families
            if lease.subnet(family) is not None
            and (problem := peering.endpoint_problem(context.node, lease, family)) is not None
        ]
        return Plan((), tuple(problems)) if problems else Plan(guard(lease.public_ip, lease.public_ip6))

    def service(self, context: Context, port: ServicePort) -> BgpService:
        from backends.bgp.service import BgpService

        return BgpService(port)

    async def dismantle(self, run_dir: Path) -> None:
        """BFD's process outlives the agent for a while; the next agent has nothing to restart from gracefully."""
        from bfd.client import end_at

        await end_at(str(run_dir / BFD_SOCKET))
        (run_dir / STATE).unlink(missing_ok=True)


def guard(*addresses: str | None) -> tuple[NftElement, ...]:
    """The elements of the guard's sets that let these hosts in."""
    return tuple(NftElement("peers6" if ":" in a else "peers4", a) for a in addresses if a is not None)


def tunnel(context: Context) -> tuple[VxlanBackend | IpipBackend, Context]:
    """The backend whose tunnel is used, and the same context for its planner."""
    options: BgpOptions = context.options
    if options.tunnel == "vxlan":
        return VxlanBackend(), msgspec.structs.replace(context, options=options.vxlan)
    node = msgspec.structs.replace(context.node, mtu=options.mtu or context.node.mtu)
    return IpipBackend(), msgspec.structs.replace(context, options=options.ipip, node=node)


def tunnelled(context: Context) -> frozenset[Family]:
    """The families that the tunnel can carry here: its devices can be made, and no other owner has them."""
    if not context.options.tunnel:
        return frozenset()
    backend, inner = tunnel(context)
    links = [obj for obj in backend.base(inner).objects if isinstance(obj, Link)]
    if context.options.tunnel == "vxlan":
        return frozenset(context.network.families if links else ())
    if context.node.local(4) is None:
        return frozenset()
    able = {family for family in context.network.families if KIND[family] in context.facts.abilities}
    return frozenset(able if links else able - {4})
