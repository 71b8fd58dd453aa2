"""BFD with BIRD's bfd protocol, FRR's bfdd, and ourselves (RFC 5880, 5881, 5882, 5883). GoBGP has none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interop.test_graceful_restart import Watch, stale
from tests.support.bgp_ours import Ours
from tests.support.bird import Bird
from tests.support.frr import Frr
from tests.support.routers import Bfd, BfdView, Network, Peering, Router, Routers, Site

pytestmark = [pytest.mark.interop, pytest.mark.netns]

OURS, THEIRS = (Network("10.1.0.0/24"),), (Network("10.2.0.0/24"),)


@pytest.fixture(params=(Ours, Bird, Frr), ids=lambda kind: kind.kind)
def watching(request: pytest.FixtureRequest) -> type[Router]:
    """Each daemon that has BFD."""
    kind: type[Router] = request.param
    return kind


@pytest.fixture(params=(Bird, Frr), ids=lambda kind: kind.kind)
def foreign(request: pytest.FixtureRequest) -> type[Router]:
    """Those that are not ours."""
    kind: type[Router] = request.param
    return kind


class Pair:
    """Ours, and another one: how each knows the other."""

    def __init__(self, ours: Ours, other: Any, near: str, far: str) -> None:
        self.ours, self.other, self.near, self.far = ours, other, near, far

    async def up(self) -> None:
        """BFD is up on both sides, with the timers that were asked for, and so is BGP."""
        await asyncio.gather(
            self.ours.bfd_is(self.far, "up", _fast), self.other.bfd_is(self.near, "up", _fast), self.established()
        )

    async def established(self) -> None:
        await asyncio.gather(self.ours.established(), self.other.established())

    async def told(self) -> dict[str, Any]:
        return dict((await self.ours.view(self.far))["bfd"])


def _fast(view: BfdView) -> bool:
    return view.interval < 1000


async def meet(
    routers: Routers,
    kind: type[Router],
    ours: Bfd | None,
    theirs: Bfd | None,
    *,
    six: bool = False,
    apart: bool = False,
    restart: int = 0,
) -> Pair:
    """Two neighbours, on one link or with a router between them."""
    sites = [routers.site(65001), routers.site(65002)]
    if apart:
        _part(routers, sites)
    addresses = [site.address6 if six else site.address for site in sites]
    for mine, bfd, networks in ((0, ours, OURS), (1, theirs, THEIRS)):
        hops = 5 if apart else 0
        peering = Peering(addresses[1 - mine], 65002 - mine, bfd=bfd, multihop=hops, restart_time=restart)
        sites[mine].peerings, sites[mine].networks = (peering,), networks
    pair = Pair(Ours(sites[0]), kind(sites[1]), *addresses)
    await asyncio.gather(routers.add(pair.ours), routers.add(pair.other))
    await pair.established()
    return pair


def _part(routers: Routers, sites: list[Site]) -> None:
    """Give each a link of its own to a router between them."""
    middle = routers.net.make("middle")
    middle.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for number, site in enumerate(sites, 1):
        routers.net.veth(site.space, "far", middle, f"m{number}")
        middle.ip(f"address add 10.97.{number}.254/24 dev m{number}")
        middle.ip(f"address add fd97:{number}::254/64 dev m{number}")
        site.address, site.address6 = f"10.97.{number}.1", f"fd97:{number}::1"
        site.space.ip(f"address add {site.address}/24 dev far")
        site.space.ip(f"address add {site.address6}/64 dev far")
        site.space.ip(f"route add 10.97.0.0/16 via 10.97.{number}.254")
        site.space.ip(f"route add fd97::/16 via fd97:{number}::254")


@pytest.mark.parametrize("apart", [False, True], ids=["on-the-link", "over-hops"])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
async def test_timers_are_negotiated(routers: Routers, watching: type[Router], six: bool, apart: bool) -> None:
    """The slower of what one side wants to send and the other to hear, and the sender's multiplier."""
    pair = await meet(routers, watching, Bfd(100, 150, 3), Bfd(200, 50, 5), six=six, apart=apart)
    await pair.ours.bfd_is(pair.far, "up", lambda view: (view.interval, view.detection) == (100, 1000))
    await pair.other.bfd_is(pair.near, "up", lambda view: (view.interval, view.detection) == (200, 300))
    assert (await pair.told())["multihop"] is apart


async def test_timers_change_by_a_poll(routers: Routers, watching: type[Router]) -> None:
    """On either side, slower and faster again; nobody goes down over it."""
    pair = await meet(routers, watching, Bfd(), Bfd())
    await pair.up()
    for bfd in (Bfd(400, 500, 4), Bfd(150, 100, 3)):
        await pair.ours.retime(bfd)
        theirs = max(100, bfd.min_rx)
        await pair.other.bfd_is(pair.near, "up", lambda view, bfd=bfd: view.detection == bfd.multiplier * bfd.min_tx)
        await pair.ours.bfd_is(pair.far, "up", lambda view, theirs=theirs: view.detection == 3 * theirs)
    for bfd in (Bfd(500, 700, 5), Bfd(100, 100, 3)):
        await pair.other.retime(bfd)
        expected = (max(150, bfd.min_rx), bfd.multiplier * bfd.min_tx)
        await pair.ours.bfd_is(
            pair.far, "up", lambda view, expected=expected: (view.interval, view.detection) == expected
        )
    assert (await pair.told())["failures"] == 0
    assert (await pair.ours.view(pair.far))["flaps"] == 0


async def test_a_silent_peer_is_found(routers: Routers, watching: type[Router]) -> None:
    """Its processes stop, its connection stays open: the session ends with Cease/BFD Down (RFC 9384)."""
    pair = await meet(routers, watching, Bfd(), Bfd())
    await pair.up()
    await pair.ours.has("10.2.0.0/24")
    others = [await pair.other.engine()] if isinstance(pair.other, Ours) else []
    pair.other.freeze()
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    view = await pair.ours.down(pair.far)
    assert "bfd down" in view.why
    await pair.ours.lacks("10.2.0.0/24")
    assert (await pair.told())["diag"] == "detection time expired"
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    pair.other.thaw()
    await pair.up()


async def test_they_find_us_silent(routers: Routers, watching: type[Router]) -> None:
    """What keeps our time stops, and nothing else: the other side ends the session, and tells us why."""
    pair = await meet(routers, watching, Bfd(), Bfd())
    await pair.up()
    engine = await pair.ours.engine()
    os.kill(engine, signal.SIGSTOP)
    try:
        await pair.other.bfd_is(pair.near, "down")
        await pair.ours.until("the end of the session", _flapped(pair.ours, pair.far))
    finally:
        os.kill(engine, signal.SIGCONT)
    await pair.up()


def _flapped(ours: Ours, far: str) -> Callable[[], Awaitable[bool]]:
    """It may be back before anybody looks."""

    async def check() -> bool:
        return int((await ours.view(far))["flaps"]) > 0

    return check


async def test_a_cut_cable_is_found_on_both_sides(routers: Routers, watching: type[Router]) -> None:
    pair = await meet(routers, watching, Bfd(), Bfd())
    await pair.up()
    port = pair.other.space.label.removeprefix("r")
    assert routers.bridge is not None
    routers.bridge.ip(f"link set p{port} nomaster")
    await asyncio.gather(pair.ours.down(pair.far), pair.other.down(pair.near))
    routers.bridge.ip(f"link set p{port} master br0")
    await pair.up()


@pytest.mark.parametrize("kind", [Ours, Frr], ids=lambda kind: kind.kind)  # BIRD only falls silent
async def test_their_admin_down_is_no_failure(routers: Routers, kind: type[Router]) -> None:
    """BFD is shut down there: we keep the session (RFC 5882 section 3.2)."""
    pair = await meet(routers, kind, Bfd(), Bfd())
    await pair.up()
    await pair.other.bfd_admin(False)
    await pair.ours.bfd_is(pair.far, "down")
    told = await pair.told()
    assert (told["failures"], told["diag"]) == (0, "neighbor signaled down")
    assert not any("BFD down" in str(entry.get("event")) for entry in await pair.ours.command("log", peer=pair.far))
    await pair.other.bfd_admin(True)
    await pair.up()


async def test_our_admin_down_is_told(routers: Routers, watching: type[Router]) -> None:
    """BFD is taken away here, and put back: they hear of it at once, not by their detection time."""
    pair = await meet(routers, watching, Bfd(), Bfd(multiplier=50))
    await pair.up()
    await pair.ours.retime(None)
    await pair.other.bfd_is(pair.near, "down", timeout=4)
    await pair.established()
    await pair.ours.retime(Bfd())
    await pair.up()


async def test_between_ourselves_admin_down_ends_nothing(routers: Routers) -> None:
    pair = await meet(routers, Ours, Bfd(), Bfd())
    await pair.up()
    await pair.ours.retime(None)
    await pair.other.bfd_is(pair.near, "down")
    for router, address in ((pair.ours, pair.far), (pair.other, pair.near)):
        view = await router.view(address)
        assert (view["state"], view["flaps"]) == ("established", 0)


async def test_who_has_no_bfd_keeps_the_session(routers: Routers, watching: type[Router]) -> None:
    """Set on one side only: it never comes up, and is no reason for anything (RFC 5882 section 4.1)."""
    pair = await meet(routers, watching, Bfd(), None)
    await pair.ours.has("10.2.0.0/24")
    await pair.ours.bfd_is(pair.far, "down")
    assert (await pair.told())["failures"] == 0
    assert (await pair.ours.view(pair.far))["flaps"] == 0


async def test_another_process_goes_on(routers: Routers, foreign: type[Router]) -> None:
    """The process that keeps our time is killed: the next one has its sessions, and is in time."""
    pair = await meet(routers, foreign, Bfd(300, 300, 10), Bfd())
    await pair.up()
    before = await pair.ours.engine()
    os.kill(before, signal.SIGKILL)
    await pair.ours.until("another process", _another(pair.ours, before))
    await pair.up()
    assert (await pair.told())["failures"] == 0
    assert (await pair.ours.view(pair.far))["flaps"] == 0


def _another(ours: Ours, before: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        found = (await ours.command("summary"))[0]["bfd"]
        return found.get("pid", before) != before and found["up"] == 1

    return check


# ------------------------------------------------------------------------------------------------------- restarts


@pytest.mark.timeout(150)
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_our_restart_loses_no_route(routers: Routers, watching: type[Router], how: str) -> None:
    """BFD goes on while we are away, so nobody's graceful restart is ended by it; it is the next one's then."""
    pair = await meet(routers, watching, Bfd(), Bfd(), restart=60)
    await pair.up()
    await pair.other.has("10.1.0.0/24")
    engine = await pair.ours.engine()
    async with Watch(pair.other, "10.1.0.0/24") as watch:
        await getattr(pair.ours, how)()
        await pair.other.until("10.1.0.0/24 stale", stale(pair.other, "10.1.0.0/24"))
        assert (await pair.other.bfd(pair.near)).up
        await pair.ours.start(recovering=True)
        await pair.up()
        assert watch.looks > 3
    assert not watch.missed
    assert await pair.ours.engine() == engine
    assert (await pair.told())["failures"] == 0


@pytest.mark.timeout(150)
async def test_their_restart_loses_no_route(routers: Routers, foreign: type[Router]) -> None:
    """Their BFD ends with their BGP, as their C bit says: its failing is part of the restart (section 4.3.2)."""
    pair = await meet(routers, foreign, Bfd(), Bfd(), restart=60)
    await pair.up()
    await pair.ours.has("10.2.0.0/24")
    async with Watch(pair.ours, "10.2.0.0/24") as watch:
        await pair.other.kill()
        await pair.ours.bfd_is(pair.far, "waiting")
        assert (await pair.told())["failures"] == 1
        assert await stale(pair.ours, "10.2.0.0/24")()
        await pair.other.start(recovering=True)
        await pair.up()
        assert watch.looks > 3
    assert not watch.missed


async def test_a_dead_host_is_not_waited_for(routers: Routers) -> None:
    """BFD that does not share its control plane's fate (C) fails: a restart under way is none (section 4.3.1)."""
    pair = await meet(routers, Ours, Bfd(), Bfd(), restart=120)
    await pair.up()
    await pair.ours.has("10.2.0.0/24")
    engine = await pair.other.engine()
    await pair.other.kill()
    await pair.ours.until("10.2.0.0/24 stale", stale(pair.ours, "10.2.0.0/24"))
    os.kill(engine, signal.SIGKILL)
    await pair.ours.lacks("10.2.0.0/24", timeout=20)


async def test_who_does_not_come_back_leaves_no_process(routers: Routers, foreign: type[Router]) -> None:
    """Without a word, and away for longer than the restart time: AdminDown, and the process ends."""
    pair = await meet(routers, foreign, Bfd(), Bfd(), restart=3)
    await pair.up()
    engine = await pair.ours.engine()
    await pair.ours.stop()
    await pair.other.bfd_is(pair.near, "down")

    async def gone() -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    await pair.other.until("the end of our process", gone)
    assert not (pair.ours.directory / "ctl.bfd").exists()
