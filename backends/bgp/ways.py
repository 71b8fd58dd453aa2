"""From next hops to ways out of this host, and from chosen routes to kernel objects. Pure.

Rules: a next hop on the link is a plain gateway; one of another node is reached by the tunnel where the options have
one; any other cannot be reached, and its routes are not installed. In the tunnel a node's VTEP is named by an address
that depends on the node alone: its own over IPv4, over IPv6 the link-local one of its VTEP's MAC (the kernel refuses
a gateway that is on the link of another device). MAC and forwarding entry follow from the node's id and address, so a
lease that ended takes no way away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from backends.bgp.members import Member
from backends.bgp.options import BgpOptions
from backends.vxlan import device, vtep_mac
from netagent.contract import Context
from netagent.model import Family, FdbEntry, Hop, Neighbour, NextHop, Object, Route, family_of

DIRECT, TUNNEL = 0, 1  # what a way costs: without the tunnel is better


class Way(NamedTuple):
    """How a next hop is reached; `problem` says why it is not. `member` names the node behind a tunnel."""

    hop: Hop | None = None
    member: str = ""
    problem: str = ""

    @property
    def metric(self) -> int | None:
        return None if self.hop is None else TUNNEL if self.member else DIRECT


class Ways:
    """The ways of one context; each next hop is looked at once. `tunnel` False: the VXLAN device cannot stand."""

    def __init__(self, context: Context, others: Mapping[str, Member], *, tunnel: bool = True) -> None:
        self.context = context
        self._options: BgpOptions = context.options
        self._tunnel = tunnel and self._options.tunnels
        self._others = others
        self._behind = {
            address: member.name
            for member in others.values()
            for address in (member.v4, member.v6)
            if address is not None and member.id
        }
        networks = (context.network.v4, context.network.v6)
        self._inside = [ipaddress.ip_network(prefix) for prefix in networks if prefix is not None]
        self._taken = {route.dst for route in context.facts.routes}
        self._known: dict[str, Way] = {}

    def to(self, next_hop: str) -> Way:
        way = self._known.get(next_hop)
        if way is None:
            way = self._known[next_hop] = self._find(next_hop)
        return way

    def differs(self, before: Ways) -> bool:
        """Whether routes that `before` made would be made in another way."""
        if (self._taken, self._nexthops) != (before._taken, before._nexthops):
            return True
        return any(self.to(next_hop) != way for next_hop, way in before._known.items())

    def _find(self, next_hop: str) -> Way:
        address = ipaddress.ip_address(next_hop)
        if any(address.version == net.version and address in net for net in self._inside):
            return Way(problem=f"next hop {next_hop} is inside the containers' network")
        if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_reserved:
            return Way(problem=f"next hop {next_hop} is no address of a host")
        member = self._behind.get(next_hop, "")
        dev = self.context.facts.on_link(next_hop)
        if dev is not None and dev.startswith("na-"):
            dev = None
        if self._options.tunnels and member and not (dev is not None and self._options.cross_subnet):
            if not self._tunnel:
                return Way(problem="the VXLAN device cannot be made")
            family = family_of(next_hop)
            return Way(Hop(self.device(family), self.gateway(member, family), onlink=True), member)
        if dev is not None:
            return Way(Hop(dev, next_hop))
        return Way(problem=f"next hop {next_hop} is not on a link of this host")

    # ------------------------------------------------------------------------------------------- the tunnel

    def device(self, family: Family) -> str:
        return device(self._options.vni, family)

    def gateway(self, member: str, family: Family) -> str:
        """What names the member's VTEP on our device."""
        known = self._others[member]
        if family == 4:
            assert known.v4 is not None
            return known.v4
        return link_local(vtep_mac(known.id, self._options.vni, 6))

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
            assert gateway is not None
            mac = vtep_mac(self._others[member].id, self._options.vni, family)
            if self._nexthops:
                objects.append(NextHop(dev, gateway))
            objects += [Neighbour(dev, gateway, mac), FdbEntry(dev, mac, endpoint)]
        return tuple(objects)

    @property
    def _nexthops(self) -> bool:
        return "nexthop" in self.context.facts.abilities

    # ------------------------------------------------------------------------------------------- routes

    def route(self, dst: str, next_hops: Sequence[str]) -> tuple[Route | None, str]:
        """The route to install, or None and why not. Next hops that cannot be reached are left out."""
        if dst in self._taken:
            return None, "the host has a route of its own to that prefix"
        ways = [self.to(next_hop) for next_hop in next_hops]
        usable = list(dict.fromkeys(way for way in ways if way.hop is not None))
        if not usable:
            return None, next((way.problem for way in ways), "it has no next hop")
        if len(usable) == 1 and usable[0].member and self._nexthops:
            hop = usable[0].hop
            assert hop is not None
            assert hop.gateway is not None
            return Route(dst, nexthop=(hop.dev, hop.gateway)), ""
        hops = sorted(way.hop for way in usable if way.hop is not None)
        return Route(dst, tuple(hops)), ""


def link_local(mac: str) -> str:
    """The link-local address of a MAC (RFC 4291 appendix A)."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return str(ipaddress.IPv6Address(bytes.fromhex("fe80000000000000") + octets[:3] + b"\xff\xfe" + octets[3:]))


def tunnelled(ways: Ways, members: Iterable[str]) -> dict[str, tuple[Object, ...]]:
    """The VTEP objects of each member that needs some."""
    return {name: objects for name in members if (objects := ways.vtep(name))}
