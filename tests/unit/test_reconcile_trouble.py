"""The reconciler in trouble: drift, refusals, foreign objects in the way, and somebody who fights."""

from __future__ import annotations

import errno

import pytest

from netagent.model import Hop, Link, LinkFact, Object, Route
from netagent.reconcile import FIGHT_AFTER, RETRY_MAX
from tests.support.reconciling import ADDRESS, DEVICE, NEXTHOP, OVERLAY, STACK, direct, fight, rig

# ------------------------------------------------------------------------------------------- drift


@pytest.mark.parametrize("victim", STACK, ids=lambda obj: obj.KIND)
async def test_what_somebody_deletes_is_back_with_all_that_stood_on_it(victim: Object) -> None:
    async with rig() as r:
        r.reconciler.put("x", STACK)
        await r.quiet()
        r.host.meddle_delete(victim.key)
        await r.until(lambda: r.has(*STACK))
        status = r.reconciler.status()
        assert status.drifts >= 1
        assert status.last_drift is not None
        assert "was removed by somebody else" in status.last_drift.what


async def test_what_somebody_changes_is_changed_back() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        r.host.meddle_put(direct(1, "192.168.50.66"))
        await r.until(lambda: r.has(direct(1)))
        drift = r.reconciler.status().last_drift
        assert drift is not None
        assert (drift.kind, "was changed by somebody else" in drift.what) == ("route", True)


async def test_a_device_set_down_comes_up_with_its_routes() -> None:
    async with rig() as r:
        r.reconciler.put("x", STACK)
        await r.quiet()
        r.host.set_down("na-vx1")
        await r.until(lambda: not r.host.down and r.has(*STACK))


async def test_repair_writes_only_what_differs() -> None:
    async with rig() as r:
        r.reconciler.put("x", [*STACK, direct(1), direct(3)])
        await r.quiet()
        r.written()
        r.host.meddle_delete(direct(1).key)
        await r.until(lambda: r.has(direct(1)))
        await r.quiet()
        assert [op.object for op in r.written()] == [direct(1)]


# ------------------------------------------------------------------------------------------- refusals


async def test_a_device_that_the_kernel_lacks_is_tried_again_and_both_changes_are_told() -> None:
    """What is planned depends on what the kernel can make, and only trying tells."""
    async with rig() as r:
        r.host.lacks.add("vxlan")
        r.reconciler.put("x", [DEVICE])
        await r.quiet()
        assert r.reconciler.facts_changed.is_set()
        assert "vxlan" not in r.host.facts().abilities
        r.reconciler.facts_changed.clear()
        await r.pass_time(RETRY_MAX)
        assert not r.reconciler.facts_changed.is_set()  # no news
        r.host.lacks.clear()
        await r.pass_time(RETRY_MAX)
        assert r.has(DEVICE)
        assert r.reconciler.facts_changed.is_set()
        assert "vxlan" in r.host.facts().abilities


async def test_a_failing_object_holds_up_nobody() -> None:
    async with rig() as r:
        r.host.fail(direct(1).key, errno.EPERM)
        r.reconciler.put("x", [direct(1), direct(2)])
        r.reconciler.put("y", [direct(3)])
        await r.quiet()
        assert r.has(direct(2), direct(3))
        assert r.codes() == {"object-refused"}
        r.reconciler.put("z", [direct(4)])
        await r.quiet()
        assert r.has(direct(4))
        assert r.attempts(direct(1).key) == 1


async def test_the_back_off_grows_and_has_an_end() -> None:
    async with rig() as r:
        r.host.fail(direct(1).key, errno.EPERM)
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        waits = []
        for attempt in range(1, 13):
            failing = r.reconciler.failure(direct(1).key)
            assert failing is not None
            assert failing.attempts == attempt
            waits.append(round(failing.retry - r.now, 6))
            await r.pass_time(failing.retry - r.now - 0.01)
            assert r.attempts(direct(1).key) == attempt
            await r.pass_time(0.02)
        assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
        assert waits == sorted(waits)
        assert waits[-1] == RETRY_MAX
        r.host.heal()
        await r.pass_time(RETRY_MAX)
        assert r.has(direct(1))
        assert (r.codes(), r.reconciler.failure(direct(1).key)) == (set(), None)


async def test_retry_tries_at_once() -> None:
    async with rig() as r:
        r.host.fail(direct(1).key, errno.EPERM, times=3)
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        for _ in range(3):
            r.reconciler.retry()
            await r.quiet()
        assert r.has(direct(1))


async def test_new_content_is_tried_at_once() -> None:
    async with rig() as r:
        r.host.fail(direct(1).key, errno.EPERM, times=1)
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        newer = direct(1, "192.168.50.13")
        r.reconciler.put("x", [newer])
        await r.quiet()
        assert r.has(newer)


async def test_a_failing_object_that_nobody_wants_any_more_is_forgotten() -> None:
    async with rig() as r:
        r.host.fail(direct(1).key, errno.EPERM)
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        r.reconciler.drop("x")
        await r.quiet()
        assert (r.codes(), r.reconciler.status().failing) == (set(), [])


async def test_a_removal_that_fails_is_tried_again() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        r.host.fail(direct(1).key, errno.EBUSY, times=1)
        r.reconciler.drop("x")
        await r.quiet()
        assert r.has(direct(1))
        assert "removed" in r.reconciler.findings()[0].message
        await r.pass_time(1)
        assert r.host.objects == {}


async def test_a_route_whose_uplink_is_down_is_there_once_the_agent_says_retry() -> None:
    async with rig() as r:
        r.host.set_link(LinkFact(name="eth0", index=2, up=False))
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        assert not r.has(direct(1))
        r.host.set_link(LinkFact(name="eth0", index=2, up=True, carrier=True))
        await r.reconciler.facts_changed.wait()
        r.reconciler.retry()
        await r.until(lambda: r.has(direct(1)))


async def test_hints_do_not_make_a_failing_object_a_busy_loop() -> None:
    async with rig() as r:
        r.host.fail(direct(1).key, errno.EPERM)
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        for _ in range(20):
            r.host.hint("route")
            await r.quiet()
        assert r.attempts(direct(1).key) == 1


# ------------------------------------------------------------------------------------------- foreign


async def test_a_foreign_object_in_the_way_is_a_finding_and_stays() -> None:
    async with rig() as r:
        r.host.foreign_put(direct(1).key, "10.5.1.0/24 proto static")
        r.reconciler.put("x", [direct(1), direct(2)])
        await r.quiet()
        assert r.has(direct(2))
        (finding,) = r.reconciler.findings()
        assert (finding.code, finding.severity) == ("foreign-in-the-way", "error")
        assert finding.evidence == "10.5.1.0/24 proto static"
        r.reconciler.drop("x")
        await r.quiet()
        assert list(r.host.foreign) == [direct(1).key]
        assert r.codes() == set()


async def test_it_is_installed_when_the_foreign_one_goes() -> None:
    async with rig() as r:
        r.host.foreign_put(direct(1).key, "10.5.1.0/24 proto static")
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        r.host.foreign_delete(direct(1).key)
        await r.pass_time(RETRY_MAX)
        assert r.has(direct(1))
        assert r.codes() == set()


# ------------------------------------------------------------------------------------------- a fight


async def test_a_fight_backs_off_and_is_told() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1), direct(2)])
        await r.quiet()
        await fight(r, FIGHT_AFTER)
        assert not r.has(direct(1))
        assert r.has(direct(2))
        assert len(r.reconciler.findings()) == 1
        waits = []
        for _ in range(3):
            failing = r.reconciler.failure(direct(1).key)
            assert failing is not None
            waits.append(failing.retry - r.now)
            await r.pass_time(waits[-1])
            await fight(r, 1)
        assert waits == sorted(waits)
        assert waits[-1] >= 2 * waits[0]


async def test_what_is_taken_away_several_times_at_once_is_no_fight() -> None:
    """So it is when a device goes down: the kernel takes away what was just put back, too."""
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        await fight(r, 3 * FIGHT_AFTER, every=0.0)
        assert r.has(direct(1))
        assert r.codes() == set()
        blows = 0
        while not r.codes():  # that goes on
            await fight(r, 1, every=0.1)
            blows += 1
        assert r.codes() == {"object-contested"}
        assert FIGHT_AFTER < blows < 4 * FIGHT_AFTER


async def test_it_is_put_back_when_the_other_gives_up() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        await fight(r, FIGHT_AFTER)
        await r.pass_time(RETRY_MAX)
        assert r.has(direct(1))
        await r.pass_time(10 * RETRY_MAX)
        r.host.meddle_delete(direct(1).key)
        await r.until(lambda: r.has(direct(1)))
        await r.quiet()
        assert r.codes() == set()


async def test_drift_now_and_then_is_no_fight() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        for _ in range(3 * FIGHT_AFTER):
            await r.pass_time(11)
            await fight(r, 1)
        await r.until(lambda: r.has(direct(1)))
        assert r.codes() == set()


async def test_what_goes_with_a_flapping_uplink_is_no_fight() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        for _ in range(3 * FIGHT_AFTER):
            r.host.hint("facts", ("link", "eth0"))
            await fight(r, 1)
        await r.until(lambda: r.has(direct(1)))
        await fight(r, FIGHT_AFTER - 1)  # with the one before
        assert r.codes() == {"object-contested"}
        r.host.hint("facts", ("link", "eth1"))
        await r.quiet()
        assert not r.has(direct(1))
        r.host.hint("facts", ("link", "eth0"))
        await r.quiet()
        assert r.has(direct(1))
        assert r.codes() == set()


async def test_a_fight_ends_when_another_route_is_wanted() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        await fight(r, FIGHT_AFTER)
        newer = direct(1, "192.168.50.13")
        r.reconciler.put("x", [newer])
        await r.quiet()
        assert r.has(newer)


# ------------------------------------------------------------------------------------------- one after another


async def test_a_device_made_anew_takes_its_dependants_along() -> None:
    """Another VNI cannot be set in place: the device is made anew, and what stood on it goes silently."""
    async with rig() as r:
        r.reconciler.put("base", [DEVICE, ADDRESS])
        r.reconciler.put("peer", [NEXTHOP, OVERLAY], 20)
        await r.quiet()
        assert DEVICE.vxlan is not None
        other = Link(kind="vxlan", name="na-vx1", mtu=1450, vxlan=type(DEVICE.vxlan)(vni=1, port=4789, dev="eth0"))
        r.reconciler.put("base", [other, ADDRESS])
        await r.until(lambda: r.has(other, ADDRESS, NEXTHOP, OVERLAY))
        await r.quiet()
        assert r.reconciler.status().drifts == 0


async def test_ecmp_goes_with_either_uplink_and_returns() -> None:
    async with rig() as r:
        r.host.set_link(LinkFact(name="eth1", index=3, up=True, carrier=True))
        both = Route("10.9.0.0/24", (Hop("eth0", "192.168.50.12"), Hop("eth1", "10.1.1.1", onlink=True)))
        r.reconciler.put("x", [both])
        await r.until(lambda: r.has(both))
        r.host.set_link(LinkFact(name="eth1", index=3, up=False))
        await r.until(lambda: not r.reconciler.installed(both.key))
        r.host.set_link(LinkFact(name="eth1", index=3, up=True, carrier=True))
        await r.quiet()
        r.reconciler.retry()
        await r.until(lambda: r.has(both))
