"""From next hops to ways out of this host, and from chosen routes to kernel objects. Pure.

Rules: a next hop on the link is a plain gateway; one of another node is reached by the tunnel where the options have
one; any other cannot be reached, and its routes are not installed. In the VXLAN tunnel a node's VTEP is named by an
address that depends on the node alone: its own over IPv4, over IPv6 the link-local one of its VTEP's MAC (the kernel
refuses a gateway that is on the link of another device). MAC and forwarding entry follow from the node's id and
address, so a lease that ended takes no way away. IP in IP needs only the node's IPv4 address (backends/ipip.py).
"""

from __future__ import annotations

import ipaddress
from binascii import crc32
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from backends import ipip
from backends.bgp.members import Member
from backends.bgp.options import BgpOptions
from backends.vxlan import device, link_local, vtep_mac
from bgp.message.nlri import address_text, is_host, parse_address
from netagent.contract import Context
from netagent.model import Family, FdbEntry, Hop, Link, Neighbour, NextHop, Object, Route, TunnelAttrs, family_of

DIRECT, TUNNEL = 0, 1  # what a way costs: without the tunnel is better


def metric(dst: str) -> int:
    """The metric of an IPv4 route, 256 to 511: any number will do, if it is another one for other prefixes.

    Linux finds the gateways that it knows already by device, protocol and metric, and not by their address
    (fib_info_hashfn in net/ipv4/fib_semantics.c): thousands of gateways behind one device and metric are one list,
    walked for each new route. It follows from the prefix alone, so that a route that goes another way is replaced.
    """
    return 256 + (crc32(dst.encode()) & 255) if "." in dst else 0


class Way(NamedTuple):
    """How a next hop is reached; `problem` says why it is not. `member` names the node behind a tunnel."""

    hop: Hop | None = None
    member: str = ""
    problem: str = ""

    @property
    def metric(self) -> int | None:
        return None if self.hop is None else TUNNEL if self.member else DIRECT


def _family(address: bytes) -> Family:
    return 4 if len(address) == 4 else 6


def _is_host(address: bytes) -> bool:
    return is_host(address) and (len(address) == 4 or not ipaddress.IPv6Address(address).is_reserved)


class Ways:
    """The ways of one context; each next hop is looked at once. `tunnelled`: families that the tunnel can carry."""

    def __init__(
        self, context: Context, others: Mapping[str, Member], tunnelled: Collection[Family] = (4, 6)
    ) -> None:
        self.context = context
        self._options: BgpOptions = context.options
        self._tunnel = self._options.tunnel
        self._tunnelled = tunnelled
        self._others = others
        self._behind = {
            address: member.name
            for member in others.values()
            for address in (member.v4, member.v6)
            if address is not None and member.id
        }
        networks = (context.network.v4, context.network.v6)
        inside = [ipaddress.ip_network(prefix) for prefix in networks if prefix is not None]
        self._inside = {net.version: (int(net.network_address), int(net.netmask)) for net in inside}
        self._taken = {route.dst for route in context.facts.routes}
        self._known: dict[bytes, Way] = {}

    def to(self, next_hop: str) -> Way:
        return self.reach(parse_address(next_hop))

    def reach(self, next_hop: bytes) -> Way:
        """`to`, of an address in octets, as the speaker has it."""
        way = self._known.get(next_hop)
        if way is None:
            way = self._known[next_hop] = self._find(next_hop)
        return way

    def differs(self, before: Ways) -> bool:
        """Whether routes that `before` made would be made in another way."""
        if (self._taken, self._nexthops) != (before._taken, before._nexthops):
            return True
        return any(self.reach(next_hop) != way for next_hop, way in before._known.items())

    def _find(self, packed: bytes) -> Way:
        next_hop, family = address_text(packed), _family(packed)
        network, mask = self._inside.get(family, (1, 0))
        if int.from_bytes(packed, "big") & mask == network:
            return Way(problem=f"next hop {next_hop} is inside the containers' network")
        if not _is_host(packed):
            return Way(problem=f"next hop {next_hop} is no address of a host")
        member = self._behind.get(next_hop, "")
        dev = self.context.facts.on_link(next_hop)
        if dev is not None and dev.startswith("na-"):
            dev = None
        if self._tunnel and member and not (dev is not None and self._options.cross_subnet):
            return self._through(member, family)
        if dev is not None:
            return Way(Hop(dev, next_hop))
        return Way(problem=f"next hop {next_hop} is not on a link of this host")

    # ------------------------------------------------------------------------------------------- the tunnel

    def _through(self, member: str, family: Family) -> Way:
        """A member's next hop by the tunnel."""
        known, tunnel = self._others[member], self._tunnel
        if family not in self._tunnelled:
            return Way(problem=f"the {tunnel} device for IPv{family} cannot be made")
        if tunnel == "vxlan":
            gateway = known.v4 if family == 4 else link_local(vtep_mac(known.id, self._options.vni, 6))
            return Way(Hop(device(self._options.vni, family), gateway, onlink=True), member)
        if known.v4 is None:
            return Way(problem=f"{member} has no IPv4 address, which {tunnel} needs")
        return Way(Hop(ipip.DEVICE, known.v4, onlink=True) if family == 4 else Hop(ipip.device6(known.v4)), member)

    def vtep(self, member: str) -> tuple[Object, ...]:
        """The objects that the routes to a member refer to; none where the member is reached without the tunnel."""
        objects: list[Object] = []
        for family in self.context.network.families:
            endpoint = self._others[member].address(family)
            if endpoint is None:
                continue
            way = self.to(endpoint)
            if way.hop is None or way.member != member:
                continue
            dev, gateway = way.hop.dev, way.hop.gateway
            if gateway is None:
                objects.append(self._sit(dev, member))
                continue
            if self._nexthops:
                objects.append(NextHop(dev, gateway))
            if self._tunnel == "vxlan":
                mac = vtep_mac(self._others[member].id, self._options.vni, family)
                objects += [Neighbour(dev, gateway, mac), FdbEntry(dev, mac, endpoint)]
        return tuple(objects)

    def _sit(self, dev: str, member: str) -> Link:
        """The device that carries IPv6 to a member inside IPv4."""
        mtu = (self._options.mtu or self.context.node.mtu) - ipip.OVERHEAD
        attrs = TunnelAttrs(local=self.context.node.local(4), remote=self._others[member].v4)
        return Link(kind="sit", name=dev, mtu=mtu, tunnel=attrs)

    @property
    def _nexthops(self) -> bool:
        return "nexthop" in self.context.facts.abilities

    # ------------------------------------------------------------------------------------------- routes

    def _towards(self, dst: str, address: bytes) -> Way:
        """IPv4 may have a next hop of IPv6 (RFC 8950); in a tunnel each family has its own."""
        way = self.reach(address)
        if way.member and family_of(dst) != _family(address):
            return Way(problem=f"next hop {address_text(address)} is behind the tunnel for IPv{_family(address)}")
        return way

    def route(self, dst: str, next_hops: Sequence[bytes]) -> tuple[Route | None, str]:
        """The route to install, or None and why not. Next hops that cannot be reached are left out."""
        if dst in self._taken:
            return None, "the host has a route of its own to that prefix"
        ways = [self._towards(dst, next_hop) for next_hop in next_hops]
        usable = [way for way in ways if way.hop is not None]
        if not usable:
            return None, next((way.problem for way in ways), "it has no next hop")
        hops = tuple(way.hop for way in usable if way.hop is not None)
        if len(hops) > 1:
            hops = tuple(sorted(set(hops)))
        if len(hops) == 1 and usable[0].member and self._nexthops and (gateway := hops[0].gateway) is not None:
            return Route(dst, nexthop=(hops[0].dev, gateway), metric=metric(dst)), ""
        return Route(dst, hops, metric=metric(dst)), ""
