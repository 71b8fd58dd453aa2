"""udp, the plan: a TUN device, and a route into it for each peer's subnet. The engine does the rest.

Records are flannel's: a udp lease carries no BackendType and no data (reference: flannel v0.20 to v0.28), so a lease
without a type is a udp peer, and one with another type is not. MTU rule: what the outer headers take is taken off
the uplink's, 28 bytes over IPv4; where the network has IPv6, 48, because any peer may then be reached over
IPv6, and one device carries both families.
Rule that holds here: plain routes on the device, never nexthop objects: a TUN whose engine is away has no carrier,
and the kernel would delete nexthops and their routes for good.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends import options, peering
from backends.udp.packet import IPV6_MIN_MTU, OUTER_HEADERS
from backends.udp.table import Entry
from netagent.contract import Context, LeaseData, Options, Plan, ServicePort
from netagent.errors import ConfigError
from netagent.model import Address, Finding, Hop, Lease, Link, Node, Object, Route

if TYPE_CHECKING:
    from backends.udp.service import UdpService

DEFAULT_PORT = 8285  # flannel's
DEFAULT_DEVICE = "na-tun"

_DEVICE = re.compile(r"na-[A-Za-z0-9_.-]{1,12}\Z")
_MIN_INNER = 576  # RFC 791: what every host must accept


class UdpOptions(msgspec.Struct, frozen=True):
    """Options of `Backend`. `Port` is flannel's; `MTU` is the external MTU to assume (bytes; 0: the uplink's).

    `Device` is for a second agent in the same network namespace.
    """

    port: int = msgspec.field(name="Port", default=DEFAULT_PORT)
    mtu: int = msgspec.field(name="MTU", default=0)
    device: str = msgspec.field(name="Device", default=DEFAULT_DEVICE)


class Udp:
    """Plans the device and the routes; `service` runs the engine."""

    name = "udp"

    def options(self, raw: Mapping[str, Any]) -> Options:
        value, findings = options.parse(self.name, UdpOptions, raw)
        options.check_range("Port", value.port, 1, 0xFFFF)
        if value.mtu:
            options.check_range("MTU", value.mtu, _MIN_INNER + OUTER_HEADERS[6], 65535)
        if not _DEVICE.match(value.device):
            raise ConfigError(
                f"{value.device!r} is no name for the TUN device",
                where="Backend.Device",
                remedy='Use "na-" and up to 12 letters, digits, dots, dashes or underscores',
            )
        return Options(value, findings)

    def ports(self, options: UdpOptions) -> tuple[int, ...]:
        return (options.port,)

    def direct(self, options: UdpOptions) -> bool:
        return False

    def mtu(self, context: Context) -> int:
        overhead = OUTER_HEADERS[6 if context.network.v6 else 4]
        return (context.options.mtu or context.node.mtu) - overhead

    def lease(self, context: Context) -> LeaseData:
        return LeaseData("")

    def base(self, context: Context) -> Plan:
        device, mtu = context.options.device, self.mtu(context)
        findings = []
        if context.network.v6 and mtu < IPV6_MIN_MTU:
            findings.append(
                Finding(
                    code="udp-mtu-too-small",
                    subject=device,
                    severity="error",
                    message=f"IPv6 needs an MTU of {IPV6_MIN_MTU}, and {mtu} bytes are left inside the tunnel",
                    evidence=f"MTU of {context.node.uplink} {context.node.mtu}, option MTU {context.options.mtu}",
                    remedy=f"raise it to {IPV6_MIN_MTU + OUTER_HEADERS[6]} or more, or use IPv4 alone",
                )
            )
        if "tun" not in context.facts.abilities:
            findings.append(peering.lacking(self.name, "tun", context.facts))
        objects: list[Object] = [Link(kind="tun", name=device, mtu=mtu, tun_vnet_hdr=True)]
        for family in context.network.families:
            subnet = context.node.subnet(family)
            if subnet is not None:
                objects.append(Address(device, subnet.partition("/")[0], 32 if family == 4 else 128))
        return Plan(tuple(objects), tuple(findings))

    def peer(self, context: Context, lease: Lease) -> Plan:
        if lease.backend not in ("", "udp"):
            return Plan((), (peering.other_backend("udp", lease),))
        entry = entry_of(context, lease)
        if isinstance(entry, Finding):
            return Plan((), (entry,))
        hops = (Hop(context.options.device),)
        return Plan(tuple(Route(subnet, hops) for subnet in entry.subnets))

    def service(self, context: Context, port: ServicePort) -> UdpService:
        from backends.udp.service import UdpService

        return UdpService(port)

    async def dismantle(self, run_dir: Path) -> None:
        from backends.udp import client, service

        await client.stop(run_dir / service.SOCKET)


def entry_of(context: Context, lease: Lease) -> Entry | Finding:
    """The lease as the engine's table has it, or why no packet can go to that peer.

    Either address of the peer's host serves for either family, as far as this node can send to it. A lease of another
    backend has an entry too: what is sent follows the routes, which `peer` plans for udp's own leases alone, and
    what is accepted must not wait until a peer that has moved here has said so in etcd.
    """
    node = context.node
    subnets = tuple(subnet for family in context.network.families if (subnet := lease.subnet(family)) is not None)
    endpoints = tuple(
        endpoint
        for endpoint, local in ((lease.public_ip, node.local_ip), (lease.public_ip6, node.local_ip6))
        if endpoint is not None and local is not None
    )
    if not subnets:
        return Entry(lease.key, (), endpoints)
    if not endpoints:
        return Finding(
            code="peer-no-address",
            subject=lease.key,
            message=f"no path to {', '.join(subnets)}: {lease.label} has no address of a family that this node has",
            evidence=f"PublicIP {lease.public_ip}, PublicIPv6 {lease.public_ip6}; here {_addresses(node)}",
            remedy="give that node an address in this node's family, or set --public-ip for its agent",
        )
    if own := set(endpoints) & {node.public_ip, node.public_ip6}:
        return peering.same_address(node, lease, sorted(own)[0] or "")
    return Entry(lease.key, subnets, endpoints)


def _addresses(node: Node) -> str:
    return " and ".join(filter(None, (node.local_ip, node.local_ip6))) or "none"
