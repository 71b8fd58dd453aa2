"""An iBGP mesh of ours, BIRD, FRR and GoBGP: everybody knows everybody's routes from everybody himself."""

from __future__ import annotations

import asyncio

import pytest

from tests.interop.conftest import THEIRS
from tests.support.bgp_ours import Ours
from tests.support.routers import Network, Peering, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]


async def test_mesh_of_four(routers: Routers) -> None:
    sites = [routers.site(65001) for _ in range(4)]
    for number, site in enumerate(sites):
        site.peerings = tuple(Peering(other.address, 65001) for other in sites if other is not site)
        site.networks = (Network(f"10.{number + 1}.0.0/24"), Network(f"fd0{number + 1}::/64"))
    everyone = [kind(site) for kind, site in zip((Ours, *THEIRS), sites, strict=True)]
    await asyncio.gather(*(routers.add(router) for router in everyone))
    await asyncio.gather(*(router.established() for router in everyone))
    for router in everyone:
        for other in everyone:
            if other is not router:
                v4, v6 = other.site.networks
                assert (await router.has(v4.prefix)).next_hop == other.site.address
                assert (await router.has(v6.prefix)).next_hop == other.site.address6
    # in a mesh nothing is passed on: one route for each network, and it goes when its owner does
    for router in everyone:
        table = await router.routes()
        assert {prefix: len(paths) for prefix, paths in table.items()} == {f"10.{n}.0.0/24": 1 for n in range(1, 5)}
    await everyone[3].kill()
    for router in everyone[:3]:
        await router.lacks("10.4.0.0/24")
        await router.lacks("fd04::/64")
    assert "10.3.0.0/24" in await everyone[0].routes()
