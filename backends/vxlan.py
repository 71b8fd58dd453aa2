"""vxlan: the kernel's VXLAN device, one per address family, with permanent neighbour and FDB entries per peer.

Wire and records are flannel's: VNI 1, port 8472, the VTEP's address is the subnet's first, peers route each other's
subnets through it and find its MAC in the lease ({"VNI":1,"VtepMAC":"..."}). Rules that hold here:
the VTEP's MAC is derived from the node's id, so that it is the same after a restart and a re-creation; a peer with
another VNI gets no objects; a device of another owner on our VNI and port is refused, not fought.
What flannel gets wrong and we do not: IPv6 costs 70 bytes, not 50; a peer's new MAC leaves no old FDB entry.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from socket import AF_INET6, inet_ntop
from typing import Any

import msgspec

from backends import options, peering
from netagent.contract import Context, LeaseData, Options, Plan, Service, ServicePort
from netagent.errors import ConfigError
from netagent.model import (
    Address,
    Facts,
    Family,
    FdbEntry,
    Finding,
    Hop,
    Lease,
    Link,
    LinkFact,
    Neighbour,
    NextHop,
    Object,
    Route,
    VxlanAttrs,
)

# Linux's own default; IANA's 4789 came later, and flannel kept 8472 (drivers/net/vxlan).
DEFAULT_PORT = 8472

# Outer IP header + UDP 8 + VXLAN 8 + inner Ethernet 14.
OVERHEAD: Mapping[Family, int] = {4: 50, 6: 70}

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\Z")


class VxlanOptions(msgspec.Struct, frozen=True):
    """Options of `Backend`, with flannel's names. `MTU` is the external MTU to assume (bytes; 0: the uplink's)."""

    vni: int = msgspec.field(name="VNI", default=1)
    port: int = msgspec.field(name="Port", default=0)
    mtu: int = msgspec.field(name="MTU", default=0)
    learning: bool = msgspec.field(name="Learning", default=False)
    gbp: bool = msgspec.field(name="GBP", default=False)
    direct_routing: bool = msgspec.field(name="DirectRouting", default=False)


class VtepData(msgspec.Struct, frozen=True, gc=False):
    """BackendData and BackendV6Data of a vxlan lease."""

    vni: int = msgspec.field(name="VNI")
    mac: str = msgspec.field(name="VtepMAC")


_decode_vtep = msgspec.json.Decoder(VtepData).decode


@functools.cache
def vtep_mac(node_id: str, vni: int, family: Family) -> str:
    """The node's VTEP MAC: locally administered, unicast, the same whenever it is asked for."""
    digest = bytearray(hashlib.sha256(f"vtep {node_id} {vni} {family}".encode()).digest()[:6])
    digest[0] = digest[0] & 0xFC | 0x02
    return digest.hex(":")


@functools.cache
def _own_macs(node_id: str, vni: int) -> frozenset[str]:
    """The MACs of the node's devices: no peer's frames may go to one, in whichever family its record has it."""
    return frozenset((vtep_mac(node_id, vni, 4), vtep_mac(node_id, vni, 6)))


def device(vni: int, family: Family) -> str:
    """Name of the VXLAN device. The dash keeps VNI 1 over IPv6 apart from VNI 61 over IPv4."""
    return f"na-vx{vni}" if family == 4 else f"na-vx6-{vni}"


class VxlanBackend:
    """Plans the VTEP devices and, for each peer, nexthop, neighbour, FDB entry and route."""

    name = "vxlan"

    def options(self, raw: Mapping[str, Any]) -> Options:
        value, findings = options.parse(self.name, VxlanOptions, raw)
        options.check_range("VNI", value.vni, 1, 0xFFFFFF)
        options.check_range("Port", value.port, 0, 0xFFFF)
        if value.mtu:
            options.check_range("MTU", value.mtu, 576 + OVERHEAD[6], 65535)
        if value.gbp and value.learning:
            raise ConfigError(
                "GBP and Learning cannot be combined", where="Backend", remedy="Set one of the two to false"
            )
        if value.vni > 0xFFFF:
            findings = (
                *findings,
                Finding(
                    code="vxlan-large-vni",
                    subject="Backend.VNI",
                    message=f"VNI {value.vni} does not fit the 16 bits that flannel before v0.24 reads",
                    evidence=f"VNI = {value.vni}",
                    remedy="in a cluster with older flannel nodes use a VNI up to 65535",
                    severity="info",
                ),
            )
        return Options(value, findings)

    def ports(self, options: VxlanOptions) -> tuple[int, ...]:
        return (options.port or DEFAULT_PORT,)

    def direct(self, options: VxlanOptions) -> bool:
        return options.direct_routing

    def mtu(self, context: Context) -> int:
        return min(self._device_mtu(context, family) for family in context.network.families)

    def lease(self, context: Context) -> LeaseData:
        vni = context.options.vni
        data = {
            family: {
                "VNI": vni,
                "VtepMAC": self._macs_in_place(context).get(family) or vtep_mac(context.node.id, vni, family),
            }
            for family in context.network.families
        }
        return LeaseData("vxlan", data.get(4), data.get(6))

    def base(self, context: Context) -> Plan:
        taken = self._taken(context)
        if taken is not None:
            return Plan((), (taken,))
        options: VxlanOptions = context.options
        objects: list[Object] = []
        for family in context.network.families:
            dev = device(options.vni, family)
            attrs = VxlanAttrs(
                vni=options.vni,
                port=options.port or DEFAULT_PORT,
                local=context.node.local(family),
                dev=context.node.uplink,
                learning=options.learning,
                gbp=options.gbp,
            )
            mac = vtep_mac(context.node.id, options.vni, family)
            mtu = self._device_mtu(context, family)
            # Planned also where the kernel made none so far: the reconciler tries again, and the module may come.
            objects.append(Link(kind="vxlan", name=dev, mtu=mtu, mac=mac, vxlan=attrs))
            if "vxlan" not in context.facts.abilities:
                continue
            subnet = context.node.subnet(family)
            if subnet is not None:
                objects.append(Address(dev, subnet.partition("/")[0], 32 if family == 4 else 128))
        if "vxlan" not in context.facts.abilities:
            return Plan(tuple(objects), (peering.lacking(self.name, "vxlan", context.facts),))
        return Plan(tuple(objects))

    def peer(self, context: Context, lease: Lease) -> Plan:
        if lease.backend != self.name:
            return Plan((), (peering.other_backend(self.name, lease),))
        if _foreign_devices(context.facts):
            taken = self._taken(context)
            if taken is not None:
                return Plan()  # base() says why
        return peering.paths(context, lease, self._path)

    def service(self, context: Context, port: ServicePort) -> Service | None:
        return None

    async def dismantle(self, run_dir: Path) -> None:
        pass

    def _device_mtu(self, context: Context, family: Family) -> int:
        return (context.options.mtu or context.node.mtu) - OVERHEAD[family]

    def _path(self, context: Context, lease: Lease, family: Family, objects: list[Object]) -> Finding | None:
        """Append the objects that lead to the peer's subnet of that family, or say why there are none."""
        problem = peering.endpoint_problem(context.node, lease, family)
        if problem is not None:
            return problem
        options: VxlanOptions = context.options
        subnet, endpoint = lease.subnet(family), lease.endpoint(family)
        assert subnet is not None
        assert endpoint is not None
        if options.direct_routing:
            uplink = context.facts.on_link(endpoint)
            if uplink is not None:
                objects.append(Route(subnet, (Hop(uplink, endpoint),)))
                return None
        if "vxlan" not in context.facts.abilities:
            return None  # base() says why
        vtep = _vtep(lease, family)
        if isinstance(vtep, Finding):
            return vtep
        if vtep.vni != options.vni:
            return Finding(
                code="vxlan-other-vni",
                subject=lease.key,
                message=f"no path to {subnet}: {lease.label} is on VNI {vtep.vni}, this node on {options.vni}",
                evidence=f"BackendData of {lease.key}: VNI {vtep.vni}",
                remedy="restart the agent on the node that did not follow the network's configuration",
            )
        mac = vtep.mac.lower()
        if mac in _own_macs(context.node.id, options.vni):
            return Finding(
                code="vxlan-same-mac",
                subject=lease.key,
                severity="error",
                message=f"no path to {subnet}: {lease.label} announces this node's own VTEP MAC {mac}",
                evidence=f"both nodes have the id {context.node.id}: a cloned state directory",
                remedy="on the clone stop the agent, remove the file `id` in its state directory, start it again",
            )
        dev = device(options.vni, family)
        # Linux refuses an IPv6 gateway that the present routes lead to by another device, as those of host-gw do
        # while the backend changes (ip6_route_check_nh_onlink); a link-local one is never looked up.
        gateway = subnet.partition("/")[0] if family == 4 else link_local(mac)
        if "nexthop" in context.facts.abilities:
            objects.append(NextHop(dev, gateway))
            objects.append(Route(subnet, nexthop=(dev, gateway)))
        else:
            objects.append(Route(subnet, (Hop(dev, gateway, onlink=True),)))
        objects.append(Neighbour(dev, gateway, mac))
        objects.append(FdbEntry(dev, mac, endpoint))
        return None

    def _taken(self, context: Context) -> Finding | None:
        """A VXLAN device that is not ours holds our VNI and port: the kernel delivers to one of them only."""
        options: VxlanOptions = context.options
        port = options.port or DEFAULT_PORT
        for link in _holders(context):
            return Finding(
                code="vxlan-vni-taken",
                subject=link.name,
                severity="error",
                message=f"{link.name} of another owner already holds VNI {options.vni} on port {port}",
                evidence=f"{link.name} is not a device of this agent (flanneld and k3s make such devices)",
                remedy=f"stop its owner and `ip link delete {link.name}`, or set another VNI or Port",
            )
        return None

    @staticmethod
    def _macs_in_place(context: Context) -> dict[Family, str]:
        """By family, MACs of the devices that hold our VNI and port. While a stopped flanneld's stands it carries the
        node's traffic, and would take no frame for another MAC."""
        own = {context.node.local(family): family for family in context.network.families}
        found = ((own.get(link.vxlan.local), link.mac) for link in _holders(context) if link.vxlan is not None)
        return {family: mac for family, mac in found if family is not None and mac}


def link_local(mac: str) -> str:
    """The link-local address that belongs to a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return inet_ntop(AF_INET6, b"\xfe\x80" + bytes(6) + interface)


def _foreign_devices(facts: Facts) -> list[LinkFact]:
    return [link for link in facts.links.values() if link.kind == "vxlan" and not link.own]


def _holders(context: Context) -> list[LinkFact]:
    """Devices of others that hold our VNI and port."""
    vni, port = context.options.vni, context.options.port or DEFAULT_PORT
    return [
        link
        for link in _foreign_devices(context.facts)
        if link.vxlan is not None and link.vxlan.vni == vni and link.vxlan.port == port
    ]


def _vtep(lease: Lease, family: Family) -> VtepData | Finding:
    """The peer's VTEP from its lease, checked: a hostile or torn record is a finding."""
    raw = lease.data if family == 4 else lease.data6
    field = "BackendData" if family == 4 else "BackendV6Data"
    try:
        vtep = _decode_vtep(raw)
        if not _MAC.match(vtep.mac.lower()) or int(vtep.mac[:2], 16) & 1:
            raise msgspec.ValidationError(f"{vtep.mac!r} is not a unicast MAC address")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Finding(
            code="vxlan-bad-record",
            subject=lease.key,
            message=f"no path to {lease.subnet(family)}: {field} of {lease.label} cannot be used",
            evidence=f"{error}; {field} = {raw[:120].decode(errors='replace') or 'absent'}",
            remedy="restart the agent on that node: it writes its record anew",
        )
    return vtep
