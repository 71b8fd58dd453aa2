"""Route refresh (RFC 2918), asked by ours and by theirs."""

from __future__ import annotations

import pytest

from tests.support import bgp_probe as wire
from tests.support.bgp_ours import Ours
from tests.support.bird import Bird
from tests.support.frr import Frr
from tests.support.gobgp import GoBgp
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]

NETWORKS = (
    (Network("10.1.0.0/24"), Network("fd01::/64")),
    (Network("10.2.0.0/24"), Network("fd02::/64")),
)


async def prefixes(ours: Ours, address: str, way: str) -> list[str]:
    """What the UPDATEs of the session have announced, one way, in order."""
    found = []
    for entry in await ours.command("log", peer=address):
        if entry.get(way) == "UPDATE":
            found += [prefix for routes in entry.get("announced", ()) for prefix in routes["prefixes"]]
    return found


@pytest.mark.parametrize(
    ("asker", "theirs"), [("ours", Bird), ("ours", Frr), ("ours", GoBgp), ("theirs", Bird), ("theirs", Frr)]
)
async def test_routes_are_sent_again(routers: Routers, asker: str, theirs: type[Router]) -> None:
    """Each network of both families once when the session comes up, and once more when they are asked for.

    GoBGP answers, but has no command that asks: its soft reset only reads its own Adj-RIB-In anew.
    """
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=NETWORKS)
    assert isinstance(ours, Ours)
    await ours.has("10.2.0.0/24")
    await ours.has("fd02::/64")
    await other.has("10.1.0.0/24")
    await other.has("fd01::/64")
    way, networks = ("received", NETWORKS[1]) if asker == "ours" else ("sent", NETWORKS[0])
    before = await prefixes(ours, other.site.address, way)
    if asker == "ours":
        await ours.ask_again(other.site.address)
    else:
        await other.ask_again(ours.site.address)

    async def again() -> bool:
        new = (await prefixes(ours, other.site.address, way))[len(before) :]
        return {network.prefix for network in networks} <= set(new)

    await ours.until("the routes again", again)
    counted = (await ours.view(other.site.address))["messages"]["sent" if asker == "ours" else "received"]
    assert counted["route_refresh"] >= 1
    for router in (ours, other):
        assert (await router.peer(router.site.peerings[0].address)).established
    assert (await ours.view(other.site.address))["flaps"] == 0


async def test_a_request_is_answered_with_the_family_asked_for(routers: Routers) -> None:
    """Only that family, each time anew; one for a family that was not agreed on is passed over."""
    site, far = routers.site(65001), routers.site(65001)
    site.networks = NETWORKS[0]
    site.peerings = (Peering(far.address, 65001, passive=True),)
    ours = await routers.add(Ours(site))
    async with wire.Probe(far.space, far.address, site.address, 65001) as probe:
        await probe.establish()
        await probe.knows("10.1.0.0/24", "fd01::/64")
        for family, prefix in (("ipv4", "10.1.0.0/24"), ("ipv6", "fd01::/64"), ("ipv4", "10.1.0.0/24")):
            seen = len(probe.announced())
            probe.send(wire.message(wire.REFRESH, b"\0\2\0\x80"))  # VPN, never agreed on
            probe.send(wire.message(wire.REFRESH, wire.WIRE_FAMILIES[family][:2] + b"\0\1"))
            assert await probe.new_routes(seen) == [prefix]
        await ours.ask_again(far.address)
        await probe.refreshed(2)
        assert set(probe.of(wire.REFRESH)) == {b"\0\1\0\1", b"\0\2\0\1"}


@pytest.mark.parametrize(("asker", "theirs"), [("ours", Bird), ("ours", Frr), ("theirs", Bird), ("theirs", Frr)])
async def test_what_is_sent_again_has_a_beginning_and_an_end(
    routers: Routers, asker: str, theirs: type[Router]
) -> None:
    """Enhanced refresh (RFC 7313); GoBGP does not have it."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=NETWORKS, restart_time=60)
    assert isinstance(ours, Ours)
    for network in NETWORKS[1]:
        await ours.has(network.prefix)
    for network in NETWORKS[0]:
        await other.has(network.prefix)
    address, way = other.site.address, "received" if asker == "ours" else "sent"
    assert (await ours.view(address))["capabilities"]["received"]["enhanced_refresh"] is True

    async def told() -> bool:
        """BoRR, the routes, EoRR, of each family."""
        entries = [entry for entry in await ours.command("log", peer=address) if way in entry]
        for family in ("IPV4", "IPV6"):
            marks = [
                (number, entry["refresh"])
                for number, entry in enumerate(entries)
                if entry.get("refresh") and entry["family"] == family
            ]
            if [kind for _, kind in marks] != ["begins", "ends"]:
                return False
            if not any(entry[way] == "UPDATE" for entry in entries[marks[0][0] : marks[1][0]]):
                return False
        return True

    if asker == "ours":
        await ours.ask_again(address)
    else:
        await other.ask_again(ours.site.address)
    await ours.until("the beginning and the end", told)
    for network in NETWORKS[1]:
        await ours.has(network.prefix)
    for network in NETWORKS[0]:
        await other.has(network.prefix)
    view = await ours.view(address)
    assert view["flaps"] == 0
    assert "refresh_ends" not in view
