"""What the speaker's choice and its peers become among the node's objects: one key a prefix, one a peer.

Rule: only what differs is published, and what was published stays until something else takes its place, also while
the speaker starts anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from backends.bgp.members import Member
from backends.bgp.planner import guard
from backends.bgp.sessions import Peering
from backends.bgp.ways import Ways
from bgp.message import Family as Afi
from bgp.message import nlri
from bgp.message.nlri import address_text
from bgp.rib import Chosen
from bgp.route import Kind
from netagent.contract import ServicePort
from netagent.model import Object, Route


class Publisher:
    """`routes` are published by prefix; `refused` are prefixes that were chosen and are not installed, and why."""

    def __init__(self, port: ServicePort) -> None:
        self.routes: dict[str, Route] = {}
        self.refused: dict[str, str] = {}
        self._port = port
        self._places: dict[str, tuple[Object, ...]] = {}

    def install(self, ways: Ways, afi: Afi, chosen: Mapping[bytes, Chosen]) -> None:
        """What was chosen anew; empty: nothing any more."""
        for wire, routes in chosen.items():
            dst = nlri.text(afi, wire)
            route, reason = None, ""
            if routes and routes[0].source.kind is not Kind.LOCAL:
                route, reason = ways.route(dst, [address_text(each.attributes.next_hop) for each in routes])
            self.refused.pop(dst, None)
            if reason:
                self.refused[dst] = reason
            if route is None:
                self._withdraw(dst)
            elif self.routes.get(dst) != route:
                self.routes[dst] = route
                self._port.publish(f"route/{dst}", (route,))

    def sweep(self, known: Collection[str]) -> None:
        """Withdraw what is not among these prefixes."""
        for dst in self.routes.keys() - known:
            self._withdraw(dst)

    def _withdraw(self, dst: str) -> None:
        if self.routes.pop(dst, None) is not None:
            self._port.publish(f"route/{dst}", ())

    def places(self, ways: Ways, others: Mapping[str, Member], peering: Peering) -> None:
        """For each peer its element of the guard, and for each node behind the tunnel what its routes refer to."""
        wanted: dict[str, tuple[Object, ...]] = {}
        for name, member in others.items():
            wanted[f"node/{name}"] = (*guard(member.v4, member.v6), *ways.vtep(name))
        for peer in peering.peers:
            if peer.name in peering.routers:
                wanted[f"router/{peer.name}"] = guard(address_text(peer.address))
        for key in self._places.keys() - wanted.keys():
            self._port.publish(key, ())
        for key, objects in wanted.items():
            if self._places.get(key) != objects:
                self._port.publish(key, objects)
        self._places = wanted
