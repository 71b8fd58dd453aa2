"""Long-lived graceful restart (RFC 9494) both ways: stale routes are kept as the last choice, and say so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.support.bgp_ours import Ours
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns, pytest.mark.timeout(150)]

OURS = (Network("10.1.0.0/24"), Network("fd01::/64"), Network("10.1.9.0/24", communities=("65535:7",)))
THEIRS = (Network("10.2.0.0/24"), Network("fd02::/64"), Network("10.2.9.0/24", communities=("65535:7",)))
MARKS = {"llgr-stale", "65535:6"}
RESTART = 4


def marked(router: Router, prefix: str, *, wanted: bool = True) -> Callable[[], Awaitable[bool]]:
    """Whether a route is long-lived stale, or is there and is not."""
    family = "ipv6" if ":" in prefix else "ipv4"

    async def check() -> bool:
        routes = (await router.routes(family)).get(prefix, [])
        return bool(routes) and bool(MARKS & set(routes[0].communities)) is wanted

    return check


async def test_they_are_away_for_long_and_come_back(routers: Routers, theirs: type[Router]) -> None:
    """A client of ours that knows of it is told of the stale routes, one that does not is not."""
    site, far = routers.site(65001), routers.site(65001)
    knows, knows_not = routers.site(65001), routers.site(65001)
    far.networks = THEIRS
    far.peerings = (Peering(site.address, 65001, restart_time=RESTART, long_lived=600),)
    site.peerings = (
        Peering(far.address, 65001, restart_time=60, client=True),
        Peering(knows.address, 65001, client=True, passive=True),
        Peering(knows_not.address, 65001, client=True, passive=True),
    )
    knows.peerings = (Peering(site.address, 65001, restart_time=60),)
    knows_not.peerings = (Peering(site.address, 65001),)
    ours, other = Ours(site), theirs(far)
    told, untold = Ours(knows), Ours(knows_not)
    for router in (ours, other, told, untold):
        await routers.add(router)
    for network in THEIRS:
        for router in (ours, told, untold):
            await router.has(network.prefix)
    await other.kill()
    for prefix in ("10.2.0.0/24", "fd02::/64"):
        await ours.until(f"{prefix} long-lived stale", marked(ours, prefix))
        await told.until(f"{prefix} long-lived stale", marked(told, prefix))
        await untold.lacks(prefix)
    for router in (ours, told, untold):
        await router.lacks("10.2.9.0/24")  # no-llgr
    view = await ours.view(far.address)
    assert view["long_lived_ends"]["ipv4"] > 500
    await other.start(recovering=True)
    await other.established()
    for prefix in ("10.2.0.0/24", "fd02::/64"):
        await ours.until(f"{prefix} anew", marked(ours, prefix, wanted=False))
        await told.until(f"{prefix} anew", marked(told, prefix, wanted=False))
        await untold.has(prefix)
    for router in (ours, told, untold):
        await router.has("10.2.9.0/24")


async def test_we_are_away_for_long_and_come_back(routers: Routers, theirs: type[Router]) -> None:
    ours, other = await routers.pair(
        (Ours, 65001),
        (theirs, 65001),
        networks=(OURS, THEIRS),
        options=({"restart_time": RESTART, "long_lived": 600}, {"restart_time": 60, "long_lived": 600}),
    )
    for network in OURS:
        await other.has(network.prefix)
    await ours.kill()
    for prefix in ("10.1.0.0/24", "fd01::/64"):
        await other.until(f"{prefix} long-lived stale", marked(other, prefix))
    await other.lacks("10.1.9.0/24")
    await ours.start(recovering=True)
    await ours.established()
    for prefix in ("10.1.0.0/24", "fd01::/64"):
        await other.until(f"{prefix} anew", marked(other, prefix, wanted=False))
    await other.has("10.1.9.0/24")
