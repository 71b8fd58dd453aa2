"""The event translator survives anything that comes in, and nothing foreign makes it hint at what is ours."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from netagent.kernel.base import Change
from netagent.kernel.events import Ours, Translator
from netagent.kernel.links import Links
from netagent.kernel.nexthops import NexthopIds
from netagent.kernel.wire import addresses, links, message, neighbours, netconf, nexthops, routes
from netagent.model import KINDS, Hop, Route, VxlanAttrs


class Kernel:
    """Stands in for the request socket: na-vx1 is ours, eth0 is not."""

    def dump(self, request: bytes, kind: int, decode: Any) -> list[Any]:
        vxlan = VxlanAttrs(vni=1, port=8472)
        own = links.LinkMessage(7, "na-vx1", "vxlan", 0x11043, 1450, "", "netagent", 0, 0, vxlan, None, False, False)
        return [own, own._replace(ifindex=2, name="eth0", kind="", alias="", vxlan=None)]


def translator() -> Translator:
    return Translator(110, Links(Kernel()), NexthopIds(100, 10), Ours())  # type: ignore[arg-type]


TYPES = (
    links.NEWLINK, links.DELLINK, addresses.NEWADDR, addresses.DELADDR, routes.NEWROUTE, routes.DELROUTE,
    neighbours.NEWNEIGH, neighbours.DELNEIGH, nexthops.NEWNEXTHOP, nexthops.DELNEXTHOP, netconf.NEWNETCONF,
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.binary(max_size=80)), max_size=8))
def test_any_payload_of_a_known_type_is_survived(events: list[tuple[int, bytes]]) -> None:
    made = [message.message(kind, 0, payload) for kind, payload in events]
    for change in translator().changes([b"".join(data + bytes(-len(data) % 4) for data in made), *made]):
        assert change.kind in (*KINDS, "facts")


@given(st.integers(0, 255).filter(lambda n: n != 110), st.integers(0, 0xFFFFFFFF))
def test_a_foreign_route_by_a_gateway_is_nobodys_business(protocol: int, metric: int) -> None:
    route = Route("10.9.0.0/24", (Hop("eth0", "192.168.50.1"),), metric=metric)
    data = routes.put(route, 0, protocol, 0, {"eth0": 2})
    hints = translator().changes([data])
    assert set(hints) <= {Change("facts")}
    assert translator().changes([routes.put(route, 0, 110, 0, {"eth0": 2})]) == [Change("route", route.key)]
