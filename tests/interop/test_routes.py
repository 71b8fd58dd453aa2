"""Sessions come up and routes go both ways, with all their attributes: iBGP and eBGP, IPv4 and IPv6."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.bgp_ours import Ours
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]

OURS = (
    Network("10.1.0.0/24", ("65010:1", "65010:2"), ("65010:7:8", "4200000000:1:2")),
    Network("10.1.1.0/26"),
    Network("fd01::/64", ("65010:3",)),
)
THEIRS = (
    Network("10.2.0.0/24", ("65020:1", "65020:2"), ("65020:7:8", "4200000000:3:4")),
    Network("10.2.1.128/25"),
    Network("fd02::/64", ("65020:3",)),
)


async def carried(receiver: Router, networks: tuple[Network, ...], path: tuple[int, ...], sender: Router) -> None:
    """Each network has arrived with the path, the sender as next hop, and its communities."""
    for network in networks:
        route = await receiver.has(network.prefix)
        assert route.as_path == path, network
        assert route.next_hop == (sender.site.address6 if network.family == "ipv6" else sender.site.address)
        assert set(route.communities) == set(network.communities), network
        assert set(route.large_communities) == set(network.large_communities), network


async def test_ibgp(routers: Routers, theirs: type[Router]) -> None:
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=(OURS, THEIRS))
    await carried(other, OURS, (), ours)
    await carried(ours, THEIRS, (), other)
    assert (await ours.has("10.2.0.0/24")).local_pref == 100
    assert (await other.has("10.1.0.0/24")).local_pref == 100


@pytest.mark.parametrize("asn", [65002, 4200000002])
async def test_ebgp(routers: Routers, theirs: type[Router], asn: int) -> None:
    """With AS numbers of two and of four octets."""
    ours, other = await routers.pair((Ours, 4200000001), (theirs, asn), networks=(OURS, THEIRS))
    await carried(other, OURS, (4200000001,), ours)
    await carried(ours, THEIRS, (asn,), other)


async def test_routes_come_and_go(routers: Routers, theirs: type[Router]) -> None:
    """Announced, changed and withdrawn under a session that stands."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65002))
    for mine, far in ((ours, other), (other, ours)):
        number = 1 if mine is ours else 2
        for prefix in (f"10.{number}.9.0/24", f"fd0{number}:9::/64"):
            await mine.announce(Network(prefix))
            assert (await far.has(prefix)).communities == ()
            await mine.withdraw(prefix)
            await far.lacks(prefix)
            await mine.announce(Network(prefix, ("65000:99",)))
            await far.has(prefix, lambda route: route.communities == ("65000:99",))


async def test_med_goes_to_the_neighbouring_as(routers: Routers, theirs: type[Router]) -> None:
    _, other = await routers.pair((Ours, 65001), (theirs, 65002), networks=((Network("10.1.0.0/24", med=77),), ()))
    assert (await other.has("10.1.0.0/24")).med == 77


async def test_session_over_ipv6(routers: Routers, theirs: type[Router]) -> None:
    """IPv6 routes over a session of IPv6 addresses."""
    sites = routers.site(65001), routers.site(65002)
    for mine, far, network in ((0, 1, Network("fd01::/64")), (1, 0, Network("fd02::/64"))):
        sites[mine].peerings = (Peering(sites[far].address6, sites[far].asn, ("ipv6",)),)
        sites[mine].networks = (network,)
    ours, other = Ours(sites[0]), theirs(sites[1])
    await asyncio.gather(routers.add(ours), routers.add(other))
    await asyncio.gather(ours.established(), other.established())
    await carried(other, sites[0].networks, (65001,), ours)
    await carried(ours, sites[1].networks, (65002,), other)


async def test_old_speaker(routers: Routers) -> None:
    """A peer without AS numbers of four octets sees AS_TRANS, and AS4_PATH beside it (RFC 6793)."""
    from tests.support import bgp_probe as wire

    site, far = routers.site(4200000001), routers.site(65002)
    site.networks = (Network("10.1.0.0/24"),)
    site.peerings = (Peering(far.address, 65002, ("ipv4",), passive=True),)
    ours = await routers.add(Ours(site))
    offered = wire.capabilities(65002, ("ipv4",), as4=False)
    async with wire.Probe(far.space, far.address, site.address, 65002, offered=offered) as probe:
        await probe.establish()
        await probe.knows("10.1.0.0/24")
        found = probe.updates[0].attributes
        assert found[wire.AS_PATH][1] == wire.as_path(wire.AS_TRANS, size=2)
        path = wire.as_path(65002, wire.AS_TRANS, size=2)
        as4 = wire.attribute(17, wire.as_path(65002, 4200000099), wire.OPTIONAL | wire.TRANSITIVE)
        block = wire.attributes(next_hop=far.address, local_pref=None).replace(
            wire.attribute(wire.AS_PATH, b""), wire.attribute(wire.AS_PATH, path)
        )
        probe.send(wire.update(block + as4, "10.2.0.0/24"))
        assert (await ours.has("10.2.0.0/24")).as_path == (65002, 4200000099)
