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
from bgp.route import LOCAL
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
        changed: dict[str, tuple[Object, ...]] = {}
        for wire, routes in chosen.items():
            dst = nlri.text(afi, wire)
            route, reason = None, ""
            if routes and routes[0].source.kind is not LOCAL:
                route, reason = ways.route(dst, [each.attributes.next_hop for each in routes])
            if reason:
                self.refused[dst] = reason
            elif self.refused:
                self.refused.pop(dst, None)
            if route is None:
                if self.routes.pop(dst, None) is not None:
                    changed[f"route/{dst}"] = ()
            elif self.routes.get(dst) != route:
                self.routes[dst] = route
                changed[f"route/{dst}"] = (route,)
        self._port.publish(changed)

    def sweep(self, known: Collection[str]) -> None:
        """Withdraw what is not among these prefixes."""
        gone = self.routes.keys() - known
        for dst in gone:
            del self.routes[dst]
        self._port.publish({f"route/{dst}": () for dst in gone})

    def places(self, ways: Ways, others: Mapping[str, Member], peering: Peering) -> None:
        """For each peer its element of the guard, and for each node behind the tunnel what its routes refer to."""
        wanted: dict[str, tuple[Object, ...]] = {}
        for name, member in others.items():
            wanted[f"node/{name}"] = (*guard(member.v4, member.v6), *ways.vtep(name))
        for peer in peering.peers:
            if peer.name in peering.routers:
                wanted[f"router/{peer.name}"] = guard(address_text(peer.address))
        gone = self._places.keys() - wanted.keys()
        changed = {key: objects for key, objects in wanted.items() if self._places.get(key) != objects}
        self._port.publish({**dict.fromkeys(gone, ()), **changed})
        self._places = wanted
