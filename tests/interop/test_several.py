"""Several routes to a prefix (RFC 7911) and IPv4 with next hops of IPv6 (RFC 8950), with BIRD, FRR and GoBGP."""

from __future__ import annotations

import asyncio

import pytest

from tests.interop.conftest import THEIRS
from tests.support.bgp_ours import Ours
from tests.support.routers import Network, Peering, Router, Routers, Site

pytestmark = [pytest.mark.interop, pytest.mark.netns]

ANYCAST, ANYCAST6 = "10.9.0.0/24", "fd09::/64"


def star(routers: Routers, clients: int) -> tuple[Site, list[Site]]:
    """Places for a reflector and its clients, all of whom take and give several routes to a prefix."""
    reflector = routers.site(65001)
    sites = [routers.site(65001) for _ in range(clients)]
    reflector.peerings = tuple(Peering(site.address, 65001, client=True, several=True) for site in sites)
    for site in sites:
        site.peerings = (Peering(reflector.address, 65001, several=True),)
    return reflector, sites


async def start(routers: Routers, *everyone: Router) -> None:
    await asyncio.gather(*(routers.add(router) for router in everyone))
    await asyncio.gather(*(router.established() for router in everyone))


async def reaches(router: Router, *origins: Site, prefixes: tuple[str, ...] = (ANYCAST, ANYCAST6)) -> None:
    """Until the router knows exactly these ways to each prefix."""
    for prefix in prefixes:
        family = "ipv6" if ":" in prefix else "ipv4"
        wanted = sorted(site.address6 if family == "ipv6" else site.address for site in origins)

        async def known(prefix: str = prefix, family: str = family, wanted: list[str] = wanted) -> bool:
            found = (await router.routes(family)).get(prefix, [])
            return sorted(route.next_hop for route in found) == wanted

        await router.until(f"{prefix} by {wanted}", known)


async def announce(router: Router) -> None:
    for prefix in (ANYCAST, ANYCAST6):
        await router.announce(Network(prefix))


async def withdraw(router: Router) -> None:
    for prefix in (ANYCAST, ANYCAST6):
        await router.withdraw(prefix)


async def test_ours_takes_every_path_of_their_reflector(routers: Routers, theirs: type[Router]) -> None:
    reflector, sites = star(routers, 3)
    one, two, watching = Ours(sites[0]), Ours(sites[1]), Ours(sites[2])
    other = theirs(reflector)
    await start(routers, other, one, two, watching)
    await asyncio.gather(announce(one), announce(two))
    await reaches(watching, sites[0], sites[1])
    received = await watching.command("received", peer=reflector.address)
    numbers = {route["next_hop"]: route["path_id"] for route in received if route["prefix"] == ANYCAST}
    assert len(set(numbers.values())) == 2, received
    assert all(route["used"] for route in received if route["prefix"] == ANYCAST)
    view = await watching.view(reflector.address)
    assert view["add_path"] == {"ipv4": "both", "ipv6": "both"}

    await withdraw(one)
    await reaches(watching, sites[1])
    await announce(one)
    await reaches(watching, sites[0], sites[1])
    await watching.ask_again(reflector.address)
    await two.kill()
    await reaches(watching, sites[0])


async def test_our_reflector_tells_them_of_every_path(routers: Routers, theirs: type[Router]) -> None:
    reflector, sites = star(routers, 3)
    one, two, watching = Ours(sites[0]), Ours(sites[1]), theirs(sites[2])
    ours = Ours(reflector)
    await start(routers, ours, one, two, watching)
    await asyncio.gather(announce(one), announce(two))
    await reaches(watching, sites[0], sites[1])
    await withdraw(one)
    await reaches(watching, sites[1])
    await announce(one)
    await reaches(watching, sites[0], sites[1])
    await watching.ask_again(reflector.address)
    await two.kill()
    await reaches(watching, sites[0])


async def test_all_of_them_through_our_reflector(routers: Routers) -> None:
    """Each has a route of its own, and is told of the two others'."""
    reflector, sites = star(routers, 3)
    ours = Ours(reflector)
    others = [kind(site) for kind, site in zip(THEIRS, sites, strict=True)]
    await start(routers, ours, *others)
    await asyncio.gather(*(announce(router) for router in others))
    await reaches(ours, *sites)
    advertised = await ours.command("advertised", peer=sites[0].address)
    told = [route for route in advertised if route["prefix"] == ANYCAST]
    assert {route["next_hop"] for route in told} == {site.address for site in sites[1:]}
    assert len({route["path_id"] for route in told}) == 2
    for router in others:

        async def knows(router: Router = router) -> bool:
            found = {route.next_hop for route in (await router.routes()).get(ANYCAST, [])}
            return found >= {site.address for site in sites if site is not router.site}

        await router.until("the others' routes", knows)
    await withdraw(others[1])
    await reaches(ours, sites[0], sites[2])


async def test_who_takes_only_one_is_told_of_the_best(routers: Routers, theirs: type[Router]) -> None:
    reflector, sites = star(routers, 3)
    plain = Peering(sites[2].address, 65001, client=True, several=True)
    reflector.peerings = (*reflector.peerings[:2], plain)
    sites[2].peerings = (Peering(reflector.address, 65001),)
    one, two, watching = Ours(sites[0]), Ours(sites[1]), theirs(sites[2])
    ours = Ours(reflector)
    await start(routers, ours, one, two, watching)
    await asyncio.gather(announce(one), announce(two))
    await reaches(ours, sites[0], sites[1])
    view = await ours.view(sites[2].address)
    if "add_path" not in view:  # FRR takes several unless it is told not to
        await watching.has(ANYCAST)
        assert len((await watching.routes())[ANYCAST]) == 1


async def test_ipv4_over_ipv6(routers: Routers, theirs: type[Router]) -> None:
    sites = [routers.site(65001), routers.site(65002)]
    for mine, far in zip(sites, reversed(sites), strict=True):
        mine.peerings = (Peering(far.address6, far.asn, extended=True),)
    ours, other = Ours(sites[0]), theirs(sites[1])
    await start(routers, ours, other)
    view = await ours.view(sites[1].address6)
    assert view["extended_next_hop"] is True
    for mine, far, prefix in ((ours, other, "10.1.0.0/24"), (other, ours, "10.2.0.0/24")):
        await mine.announce(Network(prefix, ("65000:9",)))
        route = await far.has(prefix)
        assert route.next_hop == mine.site.address6
        assert route.communities == ("65000:9",)
        await mine.withdraw(prefix)
        await far.lacks(prefix)


async def test_ipv4_over_ipv6_with_every_path(routers: Routers, theirs: type[Router]) -> None:
    """Both at once, through our reflector."""
    reflector, *sites = (routers.site(65001) for _ in range(4))
    reflector.peerings = tuple(
        Peering(site.address6, 65001, client=True, several=True, extended=True) for site in sites
    )
    for site in sites:
        site.peerings = (Peering(reflector.address6, 65001, several=True, extended=True),)
    one, two, watching = Ours(sites[0]), Ours(sites[1]), theirs(sites[2])
    await start(routers, Ours(reflector), one, two, watching)
    await asyncio.gather(one.announce(Network(ANYCAST)), two.announce(Network(ANYCAST)))
    wanted = sorted(site.address6 for site in sites[:2])

    async def known() -> bool:
        return sorted(route.next_hop for route in (await watching.routes()).get(ANYCAST, [])) == wanted

    await watching.until(f"{ANYCAST} by {wanted}", known)
    await one.withdraw(ANYCAST)
    await watching.has(ANYCAST, lambda route: route.next_hop == sites[1].address6)
