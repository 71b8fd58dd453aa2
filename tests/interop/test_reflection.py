"""Route reflection (RFC 4456): ours as the reflector of their clients, ours as their client, and loops."""

from __future__ import annotations

import asyncio

import pytest

from tests.interop.conftest import THEIRS
from tests.support import bgp_probe as wire
from tests.support.bgp_ours import Ours
from tests.support.routers import Network, Peering, Router, Routers, Site

pytestmark = [pytest.mark.interop, pytest.mark.netns]

CLUSTER = "10.77.0.1"


def star(routers: Routers, clients: int, *, cluster_id: str = CLUSTER) -> tuple[Site, list[Site]]:
    """Places for a reflector and its clients, which know each other only through it."""
    reflector = routers.site(65001)
    reflector.cluster_id = cluster_id
    sites = [routers.site(65001) for _ in range(clients)]
    reflector.peerings = tuple(Peering(site.address, 65001, client=True) for site in sites)
    for number, site in enumerate(sites):
        site.peerings = (Peering(reflector.address, 65001),)
        site.networks = (Network(f"10.{number + 1}.0.0/24", ("65001:7",)), Network(f"fd0{number + 1}::/64"))
    return reflector, sites


async def reflected(router: Router, origin: Site) -> None:
    """The router has the origin's routes as a reflector passes them on: untouched but for the loop attributes."""
    for network in origin.networks:
        route = await router.has(network.prefix)
        assert route.next_hop == (origin.address6 if network.family == "ipv6" else origin.address)
        assert route.originator == origin.identifier
        assert route.clusters == (CLUSTER,)
        assert route.communities == network.communities
        assert route.local_pref == 100


async def test_ours_reflects_for_their_clients(routers: Routers) -> None:
    reflector, sites = star(routers, 3)
    everyone = [kind(site) for kind, site in zip((Ours, *THEIRS), (reflector, *sites), strict=True)]
    await asyncio.gather(*(routers.add(router) for router in everyone))
    await asyncio.gather(*(router.established() for router in everyone))
    for router in everyone[1:]:
        for site in sites:
            if site is not router.site:
                await reflected(router, site)
    await everyone[2].kill()
    await everyone[1].lacks("10.2.0.0/24")
    await everyone[3].lacks("fd02::/64")


async def test_ours_is_their_client(routers: Routers, theirs: type[Router]) -> None:
    reflector, sites = star(routers, 2)
    everyone = [theirs(reflector), Ours(sites[0]), Ours(sites[1])]
    await asyncio.gather(*(routers.add(router) for router in everyone))
    await asyncio.gather(*(router.established() for router in everyone))
    await reflected(everyone[1], sites[1])
    await reflected(everyone[2], sites[0])
    # what it originated itself comes back from no reflector
    assert len((await everyone[1].routes())["10.1.0.0/24"]) == 1


async def test_our_reflector_passes_on_only_what_it_must(routers: Routers) -> None:
    """From one that is no client it goes to clients only, not to another that is none."""
    site = routers.site(65001)
    plain = [routers.site(65001) for _ in range(2)]
    client = routers.site(65001)
    site.peerings = (
        *(Peering(each.address, 65001, ("ipv4",), passive=True) for each in plain),
        Peering(client.address, 65001, ("ipv4",), client=True, passive=True),
    )
    await routers.add(Ours(site))
    probes = [wire.Probe(each.space, each.address, site.address, 65001) for each in (*plain, client)]
    try:
        for probe in probes:
            await probe.establish()
        first, second, third = probes
        first.send(wire.update(wire.attributes(next_hop=first.address), "10.9.0.0/24"))
        third.send(wire.update(wire.attributes(next_hop=third.address), "10.9.1.0/24"))
        await third.knows("10.9.0.0/24")
        await first.knows("10.9.1.0/24")
        await second.knows("10.9.1.0/24")
        assert "10.9.0.0/24" not in second.known()
        assert "10.9.1.0/24" not in third.known()
    finally:
        for probe in probes:
            await probe.close()


@pytest.mark.parametrize("loop", ["originator", "cluster"])
async def test_loops_are_cut(routers: Routers, loop: str) -> None:
    """Ours refuses what has its own identifier as ORIGINATOR_ID, or its own cluster in CLUSTER_LIST."""
    site, far = routers.site(65001), routers.site(65001)
    site.cluster_id = CLUSTER
    site.peerings = (Peering(far.address, 65001, ("ipv4",), client=True, passive=True),)
    ours = await routers.add(Ours(site))
    mine = wire.packed(site.identifier), wire.packed(CLUSTER)
    others = wire.packed("10.77.0.8"), wire.packed("10.77.0.9")
    originator = mine[0] if loop == "originator" else others[0]
    clusters = others[1] + (mine[1] if loop == "cluster" else others[0])

    def block(originator: bytes, clusters: bytes) -> bytes:
        more = wire.attribute(wire.ORIGINATOR_ID, originator, wire.OPTIONAL)
        more += wire.attribute(wire.CLUSTER_LIST, clusters, wire.OPTIONAL)
        return wire.attributes(more, next_hop=far.address)

    async with wire.Probe(far.space, far.address, site.address, 65001) as probe:
        await probe.establish()
        probe.send(wire.update(block(others[0], others[1]), "10.9.0.0/24"))
        await ours.has("10.9.0.0/24")
        probe.send(wire.update(block(originator, clusters), "10.9.0.0/24", "10.9.1.0/24"))
        probe.send(wire.update(block(others[0], others[1]), "10.9.2.0/24"))
        await ours.has("10.9.2.0/24")
        await ours.lacks("10.9.0.0/24")
        await ours.lacks("10.9.1.0/24")


async def test_their_loops_are_cut_by_ours(routers: Routers, theirs: type[Router]) -> None:
    """Two reflectors of one cluster, ours and theirs, clients of each other: neither takes the other's routes."""
    sites = [routers.site(65001) for _ in range(4)]
    first, second, left, right = sites
    for mine, far, client in ((first, second, left), (second, first, right)):
        mine.cluster_id = CLUSTER
        mine.peerings = (
            Peering(far.address, 65001, ("ipv4",), client=True),
            Peering(client.address, 65001, ("ipv4",), client=True, passive=True),
        )
    ours, other = Ours(first), theirs(second)
    await asyncio.gather(routers.add(ours), routers.add(other))
    async with (
        wire.Probe(left.space, left.address, first.address, 65001) as one,
        wire.Probe(right.space, right.address, second.address, 65001) as two,
    ):
        await one.establish()
        await two.establish()
        await asyncio.gather(ours.established(second.address), other.established(first.address))
        one.send(wire.update(wire.attributes(next_hop=left.address), "10.9.1.0/24"))
        two.send(wire.update(wire.attributes(next_hop=right.address), "10.9.2.0/24"))
        await ours.has("10.9.1.0/24")
        await other.has("10.9.2.0/24")
        # what came later has gone the whole way, so what came before has been heard, and has gone no further
        # (GoBGP keeps it in its table, and refuses to reflect it)
        await ours.announce(Network("10.1.0.0/24"))
        await two.knows("10.1.0.0/24")
        assert "10.9.1.0/24" not in two.known()

        async def refused() -> str:
            received = await ours.command("received", peer=second.address)
            return next((route.get("rejected", "") for route in received if route["prefix"] == "10.9.2.0/24"), "")

        assert "cluster" in await ours.until("their route, refused", refused)
        assert "10.9.2.0/24" not in await ours.routes()
