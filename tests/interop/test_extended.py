"""Messages of more than 4096 octets (RFC 8654), with who has them and with who does not."""

from __future__ import annotations

import pytest

from tests.support import bgp_probe as wire
from tests.support.bgp_ours import Ours
from tests.support.bird import Bird
from tests.support.frr import Frr
from tests.support.gobgp import GoBgp
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]

MANY = tuple(f"65001:{number}" for number in range(1, 1401))
"""Communities of 5,600 octets."""


@pytest.mark.parametrize("theirs", [Bird, Frr])
async def test_long_messages_both_ways(routers: Routers, theirs: type[Router]) -> None:
    """Attributes of 6,000 octets from ours through theirs, which reflects, to ours."""
    first, middle, last = (routers.site(65001) for _ in range(3))
    first.networks = (Network("10.1.0.0/24", communities=MANY), Network("fd01::/64", communities=MANY))
    first.peerings = (Peering(middle.address, 65001, extended_messages=True),)
    last.peerings = (Peering(middle.address, 65001, extended_messages=True),)
    middle.peerings = tuple(
        Peering(site.address, 65001, client=True, extended_messages=True) for site in (first, last)
    )
    sender, _, receiver = Ours(first), await routers.add(theirs(middle)), Ours(last)
    for router in (sender, receiver):
        await routers.add(router)
        await router.established()
        view = await router.view(middle.address)
        assert view["longest_message"] == 65535
    for prefix, family in (("10.1.0.0/24", "ipv4"), ("fd01::/64", "ipv6")):
        await receiver.has(prefix)
        (route,) = (await receiver.routes(family))[prefix]
        assert set(route.communities) == set(MANY)
    for router in (sender, receiver):
        assert (await router.view(middle.address))["flaps"] == 0


@pytest.mark.parametrize("theirs", [Bird, GoBgp])
async def test_who_does_not_take_them_is_not_told_what_does_not_fit(routers: Routers, theirs: type[Router]) -> None:
    networks = (Network("10.1.0.0/24", communities=MANY), Network("10.1.1.0/24"))
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=(networks, ()))
    assert isinstance(ours, Ours)
    await other.has("10.1.1.0/24")
    assert "10.1.0.0/24" not in await other.routes()
    view = await ours.view(other.site.address)
    assert "longest_message" not in view
    assert view["flaps"] == 0


@pytest.mark.parametrize(("short", "answer"), [(True, (1, 2)), (False, (3, 1))], ids=["not offered", "offered"])
async def test_a_long_message_by_hand(routers: Routers, short: bool, answer: tuple[int, int]) -> None:
    """It has a bad length for who has not said that he takes it, and is read by who has: there it is malformed."""
    site, far = routers.site(65001), routers.site(65001)
    site.options["short"] = short
    site.peerings = (Peering(far.address, 65001, passive=True),)
    await routers.add(Ours(site))
    async with wire.Probe(far.space, far.address, site.address, 65001) as probe:
        await probe.establish()
        probe.send(wire.message(wire.UPDATE, b"\xff" * 5000))
        code, subcode, data = await probe.notification()
        assert (code, subcode) == answer
        assert data == ((5019).to_bytes(2, "big") if short else b"")
