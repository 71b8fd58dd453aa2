"""The reconciler under random owners, rivals, meddlers and failures: once all is quiet the kernel is what is wanted.

Also: deltas and dump-and-diff lead to one kernel, and a restart removes nothing that is wanted, at no instant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.kernel.fake import FakeHost
from netagent.model import FdbEntry, Key, Link, Neighbour, NextHop, Object, Route, VxlanAttrs
from netagent.reconcile import Reconciler

DEVICE = Link(kind="vxlan", name="na-vx1", mtu=1450, mac="02:00:00:00:00:01", vxlan=VxlanAttrs(vni=1, port=8472))
OWNERS = ("peer/a", "peer/b", "service/x/best")
GATEWAYS = ("10.5.1.0", "10.5.2.0", "10.5.3.0")
MACS = ("02:00:00:00:01:01", "02:00:00:00:01:02")


def peer(gateway: str, mac: str, endpoint: str) -> tuple[Object, ...]:
    """What the vxlan backend plans for a peer."""
    return (
        NextHop("na-vx1", gateway),
        Route(f"{gateway}/24", nexthop=("na-vx1", gateway)),
        Neighbour("na-vx1", gateway, mac),
        FdbEntry("na-vx1", mac, endpoint),
    )


PEERS = st.builds(
    peer, st.sampled_from(GATEWAYS), st.sampled_from(MACS), st.sampled_from(("192.168.50.2", "192.168.50.3"))
)
PUT = st.tuples(st.just("put"), st.sampled_from(OWNERS), PEERS, st.integers(0, 2))
DROP = st.tuples(st.just("drop"), st.sampled_from(OWNERS))
MEDDLE = st.tuples(st.just("meddle"), st.integers(0, 99))
FAIL = st.tuples(st.just("fail"), st.sampled_from(GATEWAYS))
HEAL = st.tuples(st.just("heal"))
OVERFLOW = st.tuples(st.just("overflow"))
STEPS = st.lists(st.one_of(PUT, PUT, DROP, MEDDLE, FAIL, HEAL, OVERFLOW), max_size=25)


class Bench:
    """One host, one reconciler, and a model of what is wanted: by key, the claim of the lowest rank and name."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.claims: dict[str, tuple[int, tuple[Object, ...]]] = {}
        self.start()

    def start(self) -> None:
        self.reconciler = Reconciler(self.host, jitter=lambda low, _: low)
        self.task = asyncio.create_task(self.reconciler.run())
        self.put("base/vxlan", (DEVICE,), 0)
        for owner, (rank, objects) in self.claims.items():
            self.reconciler.put(owner, objects, rank)

    def put(self, owner: str, objects: tuple[Object, ...], rank: int) -> None:
        self.claims[owner] = (rank, objects)
        self.reconciler.put(owner, objects, rank)

    def drop(self, owner: str) -> None:
        self.claims.pop(owner, None)
        self.reconciler.drop(owner)

    @property
    def wanted(self) -> dict[Key, Object]:
        found: dict[Key, tuple[int, str, Object]] = {}
        for owner, (rank, objects) in self.claims.items():
            for obj in objects:
                if obj.key not in found or (rank, owner) < found[obj.key][:2]:
                    found[obj.key] = (rank, owner, obj)
        return {key: obj for key, (_, _, obj) in found.items()}

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def quiet(self) -> None:
        """All hints heard, all failures healed and tried again."""
        self.host.heal()
        for _ in range(3):
            await asyncio.sleep(0)
            self.reconciler.retry()
            await asyncio.wait_for(self.reconciler.settled(), 5)


async def play(steps: Sequence[tuple[object, ...]], bench: Bench) -> None:
    for step in steps:
        match step:
            case ("put", str(owner), tuple(objects), int(rank)):
                bench.put(owner, objects, rank)
            case ("drop", str(owner)):
                bench.drop(owner)
            case ("meddle", int(number)):
                ours = [key for key in bench.host.objects if key[0] != "link"]
                if ours:
                    bench.host.meddle_delete(sorted(ours)[number % len(ours)])
            case ("fail", str(gateway)):
                bench.host.fail(("nexthop", "na-vx1", gateway), 12, 2)
            case ("heal",):
                bench.host.heal()
            case ("overflow",):
                bench.host.overflow()
        await asyncio.sleep(0)


def run(work: object) -> None:
    asyncio.run(work)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_once_quiet_the_kernel_is_what_is_wanted(steps: list[tuple[object, ...]]) -> None:
    async def work() -> None:
        host = FakeHost()
        host.foreign_put(("route", "10.5.9.0/24", 0), "10.5.9.0/24 via 192.168.50.1 proto static")
        bench = Bench(host)
        await play(steps, bench)
        await bench.quiet()
        bench.reconciler.release_stale()
        await bench.quiet()
        assert host.objects == bench.wanted
        assert host.foreign == {("route", "10.5.9.0/24", 0): "10.5.9.0/24 via 192.168.50.1 proto static"}
        assert bench.reconciler.plan() == []
        status = bench.reconciler.status()
        assert status.desired == status.installed
        await bench.stop()

    run(work())


@settings(deadline=None, max_examples=80)
@given(STEPS)
def test_deltas_lead_where_one_dump_and_diff_leads(steps: list[tuple[object, ...]]) -> None:
    async def work() -> None:
        by_deltas = Bench(FakeHost())
        await play(steps, by_deltas)
        await by_deltas.quiet()
        at_once = Bench(FakeHost())
        for owner, (rank, objects) in by_deltas.claims.items():
            at_once.put(owner, objects, rank)
        await at_once.quiet()
        assert by_deltas.host.objects == at_once.host.objects
        await by_deltas.stop()
        await at_once.stop()

    run(work())


@settings(deadline=None, max_examples=80)
@given(STEPS, st.lists(DROP, max_size=3))
def test_a_restart_removes_nothing_that_is_wanted(
    steps: list[tuple[object, ...]], gone: list[tuple[str, str]]
) -> None:
    async def work() -> None:
        bench = Bench(FakeHost())
        await play(steps, bench)
        await bench.quiet()
        await bench.stop()
        for _, owner in gone:  # meanwhile, in etcd
            bench.claims.pop(owner, None)
        bench.host.gone.clear()
        written = len(bench.host.log)
        bench.start()
        await bench.quiet()
        same = {key for key, obj in bench.wanted.items() if bench.host.objects.get(key) == obj}
        assert not same.intersection(bench.host.gone)
        bench.reconciler.release_stale()
        await bench.quiet()
        assert bench.host.objects == bench.wanted
        assert not set(bench.wanted).intersection(bench.host.gone)
        if not gone:
            assert len(bench.host.log) == written, "what is equal is not written again"
        await bench.stop()

    run(work())
