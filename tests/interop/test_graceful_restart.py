"""Graceful restart (RFC 4724) both ways: one side is killed, and the other keeps its routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support import bgp_probe as wire
from tests.support.bgp_ours import Ours
from tests.support.frr import Frr
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]

OURS = (Network("10.1.0.0/24"), Network("10.1.1.0/24"), Network("fd01::/64"))
THEIRS = (Network("10.2.0.0/24"), Network("10.2.1.0/24"), Network("fd02::/64"))


class Watch:
    """Looks at a router's table all the time: whatever is missing at any moment is kept in `missed`."""

    def __init__(self, router: Router, *prefixes: str) -> None:
        self.router = router
        self.prefixes = prefixes
        self.missed: set[str] = set()
        self.looks = 0
        self._over = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._over = True
        await self._task

    async def _look(self) -> None:
        while not self._over:
            table = {**await self.router.routes("ipv4"), **await self.router.routes("ipv6")}
            self.missed |= set(self.prefixes) - set(table)
            self.looks += 1
            await asyncio.sleep(0.02)


def stale(router: Router, prefix: str) -> Callable[[], Awaitable[bool]]:
    family = "ipv6" if ":" in prefix else "ipv4"

    async def check() -> bool:
        return any(route.stale for route in (await router.routes(family)).get(prefix, []))

    return check


def fresh(router: Router, prefix: str) -> Callable[[], Awaitable[bool]]:
    family = "ipv6" if ":" in prefix else "ipv4"

    async def check() -> bool:
        routes = (await router.routes(family)).get(prefix, [])
        return bool(routes) and not any(route.stale for route in routes)

    return check


@pytest.mark.timeout(150)
async def test_they_restart_and_we_keep_their_routes(routers: Routers, theirs: type[Router]) -> None:
    """Killed, back without one of its networks: the others never left our table, that one goes with End-of-RIB."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=(OURS, THEIRS), restart_time=60)
    for network in THEIRS:
        await ours.has(network.prefix)
    for network in OURS:
        await other.has(network.prefix)
    kept = ("10.2.0.0/24", "fd02::/64")
    async with Watch(ours, *kept) as watch:
        await other.kill()
        await ours.down(other.site.address)
        for network in THEIRS:
            await ours.until(f"{network.prefix} stale", stale(ours, network.prefix))
        other.site.networks = (THEIRS[0], THEIRS[2])
        await other.start(recovering=True)
        await asyncio.gather(ours.established(), other.established())
        for prefix in kept:
            await ours.until(f"{prefix} anew", fresh(ours, prefix))
        await ours.lacks("10.2.1.0/24")
        for network in OURS:
            await other.has(network.prefix)
        assert watch.looks > 5
    assert not watch.missed


@pytest.mark.timeout(150)
async def test_we_restart_and_they_keep_our_routes(routers: Routers, theirs: type[Router]) -> None:
    """Ours killed, and back: it says that it was restarting, and sends all; nothing ever left their table."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=(OURS, THEIRS), restart_time=60)
    for network in OURS:
        await other.has(network.prefix)
    for network in THEIRS:
        await ours.has(network.prefix)
    await ours.until("who stands, written down", remembered(ours))
    kept = ("10.1.0.0/24", "fd01::/64")
    async with Watch(other, *kept) as watch:
        await ours.kill()
        for prefix in kept:
            await other.until(f"{prefix} stale", stale(other, prefix))
        ours.site.networks = (OURS[0], OURS[2])
        await ours.start(recovering=True)
        await asyncio.gather(ours.established(), other.established())
        for prefix in kept:
            await other.until(f"{prefix} anew", fresh(other, prefix))
        await other.lacks("10.1.1.0/24")
        for network in THEIRS:
            await ours.has(network.prefix)
        assert watch.looks > 3
    assert not watch.missed


def remembered(ours: Router) -> Callable[[], Awaitable[bool]]:
    path = ours.directory / "state"

    async def check() -> bool:
        return path.exists() and ours.site.peerings[0].address in path.read_text()

    return check


async def test_a_stop_with_state_is_a_restart_too(routers: Routers, theirs: type[Router]) -> None:
    """SIGTERM with the state kept: as for an upgrade, the peers keep our routes."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=(OURS, THEIRS), restart_time=60)
    await other.has("10.1.0.0/24")
    async with Watch(other, "10.1.0.0/24") as watch:
        await ours.stop()
        await other.until("10.1.0.0/24 stale", stale(other, "10.1.0.0/24"))
        await ours.start(recovering=True)
        await asyncio.gather(ours.established(), other.established())
        await other.until("10.1.0.0/24 anew", fresh(other, "10.1.0.0/24"))
    assert not watch.missed


async def test_who_does_not_come_back_is_forgotten(routers: Routers, theirs: type[Router]) -> None:
    """The restart time is over: the routes go, and a third peer is told."""
    site, far, third = routers.site(65001), routers.site(65001), routers.site(65001)
    far.networks = THEIRS
    far.peerings = (Peering(site.address, 65001, restart_time=3),)
    site.peerings = (
        Peering(far.address, 65001, restart_time=3, client=True),
        Peering(third.address, 65001, client=True, passive=True),
    )
    ours, other = Ours(site), theirs(far)
    await asyncio.gather(routers.add(ours), routers.add(other))
    async with wire.Probe(third.space, third.address, site.address, 65001) as probe:
        await probe.establish()
        await probe.knows("10.2.0.0/24", "fd02::/64")
        await other.kill()
        await ours.until("10.2.0.0/24 stale", stale(ours, "10.2.0.0/24"))
        assert "10.2.0.0/24" in probe.known()
        await probe.forgets("10.2.0.0/24", "10.2.1.0/24", "fd02::/64")
        assert not await ours.routes("ipv6")


@pytest.mark.timeout(150)
async def test_a_notification_is_no_end(routers: Routers) -> None:
    """RFC 8538 with FRR, which has it too: a reset keeps the routes on both sides, a Hard Reset does not."""
    ours, other = await routers.pair((Ours, 65001), (Frr, 65001), networks=(OURS, THEIRS), restart_time=60)
    assert isinstance(ours, Ours)
    assert isinstance(other, Frr)
    address = other.site.address
    kept = {ours: ("10.2.0.0/24", "fd02::/64"), other: ("10.1.0.0/24", "fd01::/64")}
    for router, prefixes in kept.items():
        for prefix in prefixes:
            await router.has(prefix)
    restart = (await ours.view(address))["capabilities"]["received"]["graceful_restart"]
    assert restart["notification"] is True
    async with Watch(ours, *kept[ours]) as here, Watch(other, *kept[other]) as there:
        await ours.command("reset-peer", peer=address, text="new filters")
        await ours.down(address)
        await asyncio.gather(ours.established(), other.established())
        for router, prefixes in kept.items():
            for prefix in prefixes:
                await router.until(f"{prefix} anew", fresh(router, prefix))
    assert not here.missed
    assert not there.missed
    await ours.shut(address, "for good")
    for router, prefixes in kept.items():
        for prefix in prefixes:
            await router.lacks(prefix)
    # FRR unpacks the Hard Reset, and shows what is in it.
    assert "Cease/Administrative Shutdown" in (await other.peer(ours.site.address)).why
    said = [entry["reason"] for entry in await ours.command("log", peer=address) if "reason" in entry]
    assert said[-1] == "cease/hard reset (6/9): cease/administrative shutdown (6/2): for good"


@pytest.mark.timeout(150)
async def test_another_hold_time_costs_no_route(routers: Routers, theirs: type[Router]) -> None:
    """A reload begins the session anew: FRR is told (RFC 8538), who has RFC 4724 alone is not, and both keep all.

    All but what BIRD has told us: its new OPEN says that it did not go on forwarding, unless it has restarted itself.
    """
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=(OURS, THEIRS), restart_time=60)
    assert isinstance(ours, Ours)
    address = other.site.address
    kept = {ours: ("10.2.0.0/24", "fd02::/64"), other: ("10.1.0.0/24", "fd01::/64")}
    for router, prefixes in kept.items():
        for prefix in prefixes:
            await router.has(prefix)
    async with Watch(ours, *kept[ours]) as here, Watch(other, *kept[other]) as there:
        await ours.change_peerings(hold_time=45)

        async def agreed() -> bool:
            view = await ours.view(address)
            return bool(view["state"] == "established" and view["hold_time"] == 45)

        await ours.until("the new hold time", agreed)
        await other.established()
        for router, prefixes in kept.items():
            for prefix in prefixes:
                await router.until(f"{prefix} anew", fresh(router, prefix))
    assert not there.missed
    assert other.kind == "bird" or not here.missed
    assert (await ours.view(address))["flaps"] == 1


@pytest.mark.timeout(150)
async def test_a_peer_whose_end_was_not_heard_comes_back_at_once(routers: Routers, theirs: type[Router]) -> None:
    """It dies with its link, and is back before the hold time is over: its new connection is taken (section 5)."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=(OURS, THEIRS), restart_time=120)
    assert isinstance(ours, Ours)
    address = other.site.address
    for prefix in ("10.2.0.0/24", "10.2.1.0/24"):
        await ours.has(prefix)

    async def settled() -> bool:
        return bool((await ours.view(address))["since"] > 10)

    await ours.until("no collision any more", settled)
    other.space.sysctl("net/ipv4/tcp_orphan_retries", "1")
    other.space.ip(f"route add blackhole {ours.site.address}/32")
    async with Watch(ours, "10.2.0.0/24") as watch:
        await other.kill()

        async def forgotten() -> bool:
            lines = other.space.call(Path("/proc/thread-self/net/tcp").read_text).splitlines()[1:]
            return not any(line.split()[2].endswith(":00B3") or line.split()[1].endswith(":00B3") for line in lines)

        await other.until("the end of its connections", forgotten)
        other.space.ip(f"route del blackhole {ours.site.address}/32")
        assert (await ours.peer(address)).established
        other.site.networks = (THEIRS[0], THEIRS[2])
        await other.start(recovering=True)
        await other.established()
        await ours.lacks("10.2.1.0/24")
        await ours.until("10.2.0.0/24 anew", fresh(ours, "10.2.0.0/24"))
    assert not watch.missed
    view = await ours.view(address)
    assert (view["flaps"], view["last_down"]) == (1, "the peer has restarted")


async def test_end_of_rib_for_each_family(routers: Routers) -> None:
    """Sent after the first routes of each family, with or without graceful restart on the other side."""
    site, far = routers.site(65001), routers.site(65001)
    site.networks = OURS
    site.peerings = (Peering(far.address, 65001, passive=True),)
    await routers.add(Ours(site))
    async with wire.Probe(far.space, far.address, site.address, 65001) as probe:
        await probe.establish()
        await probe.knows(*(network.prefix for network in OURS))
        bodies = probe.of(wire.UPDATE)
        v6 = b"\0\0\0\6\x80\x0f\3" + wire.WIRE_FAMILIES["ipv6"]
        while bytes(4) not in bodies or v6 not in bodies:
            await probe.new_updates(len(bodies))
            bodies = probe.of(wire.UPDATE)
        for family, end in (("ipv4", bytes(4)), ("ipv6", v6)):
            after = [wire.read_update(body) for body in bodies[bodies.index(end) :]]
            assert not any((":" in prefix) == (family == "ipv6") for each in after for prefix in each.announced)
