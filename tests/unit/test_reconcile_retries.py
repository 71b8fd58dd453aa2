"""What fails is tried again as soon as it can succeed, and what is fought over no sooner than that is worth it."""

from __future__ import annotations

import asyncio
import errno

from netagent.model import Link
from netagent.reconcile import FIGHT_AFTER, RETRY_MAX
from tests.support.reconciling import ADDRESS, DEVICE, NEXTHOP, OVERLAY, STACK, Rig, direct, fight, rig


async def test_what_waits_for_a_device_is_tried_as_soon_as_it_stands() -> None:
    async with rig() as r:
        r.reconciler.put("peer", [NEXTHOP, OVERLAY], 20)
        await r.quiet()
        assert r.attempts(NEXTHOP.key) == 1
        r.reconciler.put("base", [DEVICE, ADDRESS])
        await r.until(lambda: r.has(*STACK))
        await r.quiet()
        assert r.codes() == set()


async def test_another_device_name_for_the_same_vni_takes_over_at_once() -> None:
    async with rig() as r:
        r.reconciler.put("base", [DEVICE])
        await r.quiet()
        renamed = Link(kind="vxlan", name="na-vxlan", mtu=1450, vxlan=DEVICE.vxlan)
        r.reconciler.put("base", [renamed])
        await r.until(lambda: set(r.host.objects.values()) == {renamed})


async def test_it_is_installed_at_once_when_the_foreign_one_goes() -> None:
    async with rig() as r:
        r.host.foreign_put(direct(1).key, "10.5.1.0/24 proto static")
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        for _ in range(6):
            r.now += 10
            r.reconciler.retry()
            await r.quiet()
        r.now += 1  # far less than the back-off by now
        r.host.foreign_delete(direct(1).key)
        await r.until(lambda: r.has(direct(1)))


async def test_a_removal_does_not_wait_for_the_back_off_of_a_failed_change() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        r.host.fail(direct(1).key, errno.EPERM, times=1)
        r.reconciler.put("x", [direct(1, "192.168.50.13")])
        await r.quiet()
        r.reconciler.drop("x")
        await r.quiet()
        assert r.host.objects == {}


async def test_what_loses_what_it_stands_on_is_known_to_be_gone() -> None:
    async with rig() as r:
        r.reconciler.put("base", STACK[:3])
        r.reconciler.put("peer", [OVERLAY], 20)
        await r.quiet()
        r.reconciler.put("base", STACK[:2])  # the nexthop goes, and its route with it
        await r.quiet()
        assert not r.reconciler.installed(OVERLAY.key)
        assert r.codes() == {"object-refused"}
        r.reconciler.put("base", STACK[:3])
        await r.until(lambda: r.has(*STACK))


async def test_retry_does_not_feed_a_fight() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        await fight(r, FIGHT_AFTER)
        r.reconciler.retry()  # as the agent does whenever facts change
        await r.quiet()
        assert not r.has(direct(1))


async def test_a_fight_is_told_between_two_repairs_too() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        await fight(r, FIGHT_AFTER)
        waits = []
        for _ in range(8):
            failing = r.reconciler.failure(direct(1).key)
            assert failing is not None
            waits.append(failing.retry - r.now)
            await r.pass_time(waits[-1])
            assert r.has(direct(1))
            assert r.codes() == {"object-contested"}
            await fight(r, 1)
        assert waits == sorted(waits)
        assert waits[-1] == RETRY_MAX
        await r.pass_time(RETRY_MAX)
        await r.pass_time(3 * RETRY_MAX)
        assert r.codes() == set()


async def test_a_first_dump_that_fails_is_repeated() -> None:
    r = Rig()
    r.host.fail_dump("route", errno.ENOBUFS, times=1)
    r.reconciler.put("x", [direct(1)])
    r.start()
    async with asyncio.timeout(5):
        await r.reconciler.adopted.wait()
    await r.quiet()
    assert r.has(direct(1))
    await r.stop()
