"""The reconciler on a kernel in memory: what is wanted comes, in order and once; what is equal is left alone."""

from __future__ import annotations

import asyncio
import errno

from netagent.kernel.base import Change, Op
from netagent.kernel.fake import FakeHost
from netagent.model import KINDS, Link, NextHop, Object, Route, Sysctl, VxlanAttrs
from netagent.reconcile import CHUNK
from tests.support.reconciling import ADDRESS, DEVICE, NEXTHOP, OVERLAY, STACK, Rig, direct, rig

FORWARD = Sysctl("net/ipv4/ip_forward", "1")


def existing(*objects: Object) -> FakeHost:
    """A host on which an earlier run left these."""
    host = FakeHost()
    assert host.apply([Op("put", obj) for obj in objects]) == []
    host.log.clear()
    return host


# ------------------------------------------------------------------------------------------- what is wanted


async def test_what_is_put_comes_and_what_is_dropped_goes() -> None:
    async with rig() as r:
        r.reconciler.put("x", STACK)
        await r.quiet()
        assert r.has(*STACK)
        assert r.reconciler.stands("x")
        r.reconciler.drop("x")
        await r.quiet()
        assert r.host.objects == {}
        assert [op.verb for op in r.host.log] == ["put"] * 4 + ["delete"] * 4


async def test_each_stands_before_what_needs_it_whatever_the_order_of_the_puts() -> None:
    async with rig() as r:
        for number, obj in enumerate(reversed(STACK)):
            r.reconciler.put(f"owner{number}", [obj])
        await r.quiet()
        assert [op.object for op in r.written()] == list(STACK)
        for number in (3, 1, 0, 2):
            r.reconciler.drop(f"owner{number}")
        await r.quiet()
        assert [op.object for op in r.written()] == list(reversed(STACK))


async def test_many_events_become_one_pass_and_one_batch() -> None:
    async with rig() as r:
        passes, batches = r.reconciler.status().passes, len(r.host.batches)
        for number in range(50):
            r.reconciler.put(f"peer/{number}", [direct(number)], 20)
        await r.quiet()
        assert r.reconciler.status().passes == passes + 1
        assert r.host.batches[batches:] == [50]


async def test_what_comes_and_goes_before_the_pass_is_never_written() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        r.reconciler.put("x", [direct(2)])
        r.reconciler.drop("x")
        await r.quiet()
        assert r.written() == []


async def test_a_large_pass_gives_the_loop_air() -> None:
    async with rig() as r:
        r.reconciler.put(
            "x", [Route(f"10.5.{n // 256}.{n % 256}/32", type="blackhole") for n in range(2 * CHUNK + 1)]
        )
        batches = len(r.host.batches)
        await r.until(lambda: len(r.host.batches) == batches + 1)
        assert not r.reconciler.stands("x")  # we had a turn in between
        await r.quiet()
        assert r.host.batches[batches:] == [CHUNK, CHUNK, 1]
        assert r.reconciler.stands("x")


async def test_a_loser_takes_over_in_one_write() -> None:
    async with rig() as r:
        strong, weak = direct(1), direct(1, "192.168.50.13")
        r.reconciler.put("peer", [weak], 20)
        r.reconciler.put("service", [strong], 10)
        await r.quiet()
        assert r.has(strong)
        r.written()
        r.reconciler.drop("service")
        await r.quiet()
        assert r.written() == [Op("put", weak, weak.key)]


async def test_a_put_of_the_same_writes_nothing() -> None:
    async with rig() as r:
        r.reconciler.put("x", STACK)
        await r.quiet()
        dumps = r.host.dumps
        r.written()
        r.reconciler.put("x", STACK)
        await r.quiet()
        assert (r.written(), r.host.dumps) == ([], dumps)


async def test_a_setting_returns_to_its_old_value_when_nobody_wants_it() -> None:
    async with rig() as r:
        r.reconciler.put("host", [FORWARD])
        await r.quiet()
        assert r.host.sysctls[FORWARD.name] == "1"
        r.reconciler.drop("host")
        await r.quiet()
        assert r.host.sysctls[FORWARD.name] == "0"


async def test_a_mac_that_the_kernel_chose_is_left_alone() -> None:
    made = Link(kind="vxlan", name="na-vx1", mtu=1450, mac="02:00:00:00:00:77", vxlan=DEVICE.vxlan)
    async with rig(existing(made), keep_stale=True) as r:
        r.reconciler.put("base", [DEVICE])
        await r.quiet()
        assert r.written() == []
        assert r.reconciler.stands("base")


# ------------------------------------------------------------------------------------------- an earlier run


async def test_what_an_earlier_run_left_is_adopted_without_a_write() -> None:
    host = existing(*STACK)
    r = Rig(host)
    r.reconciler.put("x", STACK)
    r.start()
    await r.quiet()
    r.reconciler.release_stale()
    await r.quiet()
    assert (r.written(), host.gone) == ([], [])
    assert r.reconciler.stands("x")
    await r.stop()


async def test_stale_objects_wait_until_they_are_released() -> None:
    async with rig(existing(*STACK, direct(9)), keep_stale=True) as r:
        r.reconciler.put("x", STACK[:2])
        r.reconciler.invalidate()
        await r.quiet()
        assert r.written() == []
        r.reconciler.release_stale()
        await r.quiet()
        assert set(r.host.gone) == {direct(9).key, NEXTHOP.key, OVERLAY.key}
        assert r.has(*STACK[:2])


async def test_a_stale_object_that_is_wanted_after_all_stays() -> None:
    async with rig(existing(direct(1)), keep_stale=True) as r:
        r.reconciler.put("late", [direct(1)])
        r.reconciler.release_stale()
        await r.quiet()
        assert (r.written(), r.host.gone) == ([], [])


async def test_a_stale_object_with_other_content_is_replaced_at_once() -> None:
    async with rig(existing(direct(1)), keep_stale=True) as r:
        newer = direct(1, "192.168.50.13")
        r.reconciler.put("x", [newer])
        await r.quiet()
        assert r.has(newer)
        assert r.host.gone == []


async def test_stopping_leaves_the_kernel_as_it_is() -> None:
    async with rig() as r:
        r.reconciler.put("x", STACK)
        await r.quiet()
    assert r.has(*STACK)
    assert r.host.gone == []


# ------------------------------------------------------------------------------------------- hints from the kernel


async def test_news_of_the_host_are_passed_on() -> None:
    async with rig() as r:
        r.host.hint("facts")
        r.host.hint("accept")
        async with asyncio.timeout(5):
            await r.reconciler.facts_changed.wait()
            await r.reconciler.others_changed.wait()


async def test_a_hint_without_a_change_costs_a_dump_and_no_write() -> None:
    async with rig() as r:
        r.reconciler.put("x", STACK)
        await r.quiet()
        dumps = r.host.dumps
        r.written()
        for obj in STACK:
            r.host.hint(obj.KIND, obj.key)
        await r.quiet()
        assert (r.written(), r.host.dumps, r.reconciler.status().drifts) == ([], dumps + 1, 0)


async def test_what_looks_like_ours_and_nobody_wants_is_removed() -> None:
    async with rig() as r:
        r.host.meddle_put(direct(7))
        await r.until(lambda: not r.host.objects)
        assert r.host.gone == [direct(7).key]


async def test_after_lost_hints_everything_is_looked_at() -> None:
    async with rig() as r:
        r.reconciler.put("x", [*STACK, direct(1)])
        await r.quiet()
        r.host.meddle_delete(direct(1).key)
        r.host.meddle_put(direct(8))
        r.host.overflow()  # both hints are lost with it
        await r.until(lambda: r.has(*STACK, direct(1)) and direct(8).key not in r.host.objects)


async def test_a_dump_that_fails_is_repeated() -> None:
    async with rig() as r:
        r.reconciler.put("x", [direct(1)])
        await r.quiet()
        r.host.fail_dump("route", errno.ENOBUFS, times=1)
        r.host.meddle_delete(direct(1).key)
        await r.until(lambda: r.has(direct(1)))


# ------------------------------------------------------------------------------------------- all of it, and views


async def test_withdraw_all_leaves_nothing_of_ours_and_all_that_is_foreign() -> None:
    host = existing(*STACK, FORWARD, direct(1))
    host.foreign_put(direct(2).key, "a route of BIRD's")
    assert await Rig(host).reconciler.withdraw_all() == []
    assert host.objects == {}
    assert host.sysctls[FORWARD.name] == "0"
    assert host.foreign == {direct(2).key: "a route of BIRD's"}


async def test_withdraw_all_tells_what_would_not_go() -> None:
    host = existing(*STACK, direct(1))
    host.fail(direct(1).key, errno.EPERM)
    failed = await Rig(host).reconciler.withdraw_all()
    assert [(failure.op.object, failure.errno) for failure in failed] == [(direct(1), errno.EPERM)]
    assert list(host.objects) == [direct(1).key]


async def test_a_plan_shows_what_would_change_and_changes_nothing() -> None:
    host = existing(DEVICE, direct(9), direct(1, "192.168.50.13"))
    r = Rig(host)
    r.reconciler.put("x", [DEVICE, ADDRESS, direct(1)])
    assert r.reconciler.plan() == [Op("put", ADDRESS), Op("put", direct(1)), Op("delete", direct(9))]
    assert r.written() == []


async def test_explain_says_who_owns_what_and_how_it_is() -> None:
    async with rig() as r:
        r.reconciler.put("base", [DEVICE])
        r.reconciler.put("peer/a", [direct(1)], 20)
        r.reconciler.put("peer/b", [direct(1, "192.168.50.13"), direct(2)], 20)
        r.host.fail(direct(2).key, errno.EPERM)
        await r.quiet()
        rows = {row.object.key: row for row in r.reconciler.explain()}
        assert [KINDS.index(row.object.KIND) for row in r.reconciler.explain()] == [1, 9, 9]
        winner = rows[direct(1).key]
        assert (winner.owner, winner.rank, winner.losers, winner.installed) == ("peer/a", 20, ("peer/b",), True)
        assert not rows[direct(2).key].installed
        assert rows[direct(2).key].error
        assert [row.object for row in r.reconciler.explain(["link"])] == [DEVICE]


async def test_status_counts() -> None:
    async with rig() as r:
        r.reconciler.put("x", [*STACK, direct(1)])
        r.host.fail(direct(1).key, errno.EPERM)
        await r.quiet()
        status = r.reconciler.status()
        assert status.desired == {"link": 1, "address": 1, "nexthop": 1, "route": 2}
        assert status.installed == {"link": 1, "address": 1, "nexthop": 1, "route": 1}
        assert [(f.object, f.errno) for f in status.failing] == [(direct(1), errno.EPERM)]
        assert status.operations == 5
        assert not r.reconciler.stands("x")
        assert r.reconciler.installed(OVERLAY.key)
        assert r.reconciler.present(OVERLAY.key) == OVERLAY


def test_one_hint_makes_its_dependants_suspect_too() -> None:
    r = Rig()
    r.reconciler._hear([Change("nft"), Change("facts")])
    assert set(r.reconciler._dirty) == {"nft", "element"}


async def test_another_vni_moves_to_another_device() -> None:
    async with rig() as r:
        other = Link(kind="vxlan", name="na-vx2", mtu=1450, vxlan=VxlanAttrs(vni=2, port=8472, dev="eth0"))
        r.reconciler.put("base", [DEVICE, NEXTHOP])
        await r.quiet()
        r.reconciler.put("base", [other, NextHop("na-vx2", "10.5.2.0")])
        await r.quiet()
        assert set(r.host.objects.values()) == {other, NextHop("na-vx2", "10.5.2.0")}
