"""The reconciler as a state machine: whatever owners, rivals and the kernel do, once quiet all is as wanted.

At every quiet moment: what is there is what can be there of what is wanted, what is foreign is untouched, and one
dump and diff from the same wishes leads to the same kernel. A restart removes nothing that is wanted, at no instant.
"""

from __future__ import annotations

import asyncio
import errno

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netagent.kernel.base import Op
from netagent.kernel.fake import FakeHost
from netagent.model import Address, Key, Link, NextHop, Object, Route
from netagent.plan.desired import Desired
from netagent.plan.diff import diff, order
from netagent.reconcile import FIGHT_WINDOW, RETRY_MAX
from tests.support.reconciling import ADDRESS, DEVICE, Rig, direct

GATEWAYS = ("10.5.2.0", "10.5.3.0")
UNIVERSE: tuple[Object, ...] = (
    DEVICE,
    Link(kind="bridge", name="na-br", mtu=1400),
    Link(kind="bridge", name="na-br", mtu=1300),
    ADDRESS,
    Address("na-br", "10.5.1.1", 24),
    *(NextHop("na-vx1", gateway) for gateway in GATEWAYS),
    *(Route(f"{gateway}/24", nexthop=("na-vx1", gateway)) for gateway in GATEWAYS),
    *(direct(number, gateway) for number in (2, 9) for gateway in ("192.168.50.12", "192.168.50.13")),
    Route("10.5.3.0/24", type="blackhole"),
)
OWNERS = ("host", "base/vxlan", "peer/a", "peer/b", "service/x")
owners = st.sampled_from(OWNERS)
objects = st.lists(st.sampled_from(UNIVERSE), max_size=8, unique_by=lambda obj: obj.key)
one = st.sampled_from(UNIVERSE)


class Reconciling(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.host = FakeHost()
        self.wishes = Desired()  # kept apart from the reconciler's own
        self.ranks: dict[str, tuple[int, list[Object]]] = {}
        self.failing: set[Key] = set()
        self.foreign: dict[Key, str] = {}
        self.quiet = False
        self.rig = self.started()

    def started(self) -> Rig:
        async def start() -> Rig:
            rig = Rig(self.host)
            rig.start()
            await rig.quiet()
            return rig

        return self.loop.run_until_complete(start())

    def teardown(self) -> None:
        self.loop.run_until_complete(self.rig.stop())
        self.loop.close()

    # ------------------------------------------------------------------------------------------ what happens

    @rule(owner=owners, wanted=objects, rank=st.integers(0, 2))
    def put(self, owner: str, wanted: list[Object], rank: int) -> None:
        self.quiet = False
        self.ranks[owner] = (rank, wanted)
        self.wishes.put(owner, wanted, rank)
        self.rig.reconciler.put(owner, wanted, rank)

    @rule(owner=owners)
    def drop(self, owner: str) -> None:
        self.quiet = False
        self.ranks.pop(owner, None)
        self.wishes.drop(owner)
        self.rig.reconciler.drop(owner)

    @rule(obj=one)
    def somebody_deletes(self, obj: Object) -> None:
        self.quiet = False
        self.host.meddle_delete(obj.key)

    @rule(obj=one)
    def somebody_changes(self, obj: Object) -> None:
        # Without a nexthop object, so that a kernel would take it at any time.
        if obj.key in self.host.objects and isinstance(obj, Route) and obj.nexthop is None:
            self.quiet = False
            self.host.meddle_put(obj)

    @rule(obj=one)
    def somebody_takes_the_key(self, obj: Object) -> None:
        if isinstance(obj, Route):
            self.quiet = False
            self.host.foreign_put(obj.key, "static")
            self.foreign[obj.key] = "static"

    @precondition(lambda self: self.foreign)
    @rule()
    def somebody_gives_a_key_back(self) -> None:
        self.quiet = False
        key, _ = self.foreign.popitem()
        self.host.foreign_delete(key)

    @rule(obj=one, code=st.sampled_from([errno.EPERM, errno.ENOBUFS]))
    def the_kernel_refuses(self, obj: Object, code: int) -> None:
        self.quiet = False
        self.host.fail(obj.key, code)
        self.failing.add(obj.key)

    @rule()
    def the_kernel_relents(self) -> None:
        self.quiet = False
        self.host.heal()
        self.failing.clear()

    @rule()
    def hints_are_lost(self) -> None:
        self.quiet = False
        self.host.overflow()

    @rule()
    def a_moment_passes(self) -> None:
        self.loop.run_until_complete(self.rig.quiet())

    @rule()
    def a_long_time_passes(self) -> None:
        async def wait() -> None:
            await self.rig.quiet()
            self.rig.reconciler.release_stale()
            for _ in range(3):  # a failing removal makes room for what waits for it
                await self.rig.pass_time(2 * RETRY_MAX + FIGHT_WINDOW)

        self.loop.run_until_complete(wait())
        self.quiet = True

    @precondition(lambda self: self.quiet and not self.failing)
    @rule()
    def the_agent_starts_again(self) -> None:
        self.loop.run_until_complete(self.rig.stop())
        self.host.gone.clear()
        self.host.log.clear()
        self.rig = self.started()
        for owner, (rank, wanted) in self.ranks.items():
            self.rig.reconciler.put(owner, wanted, rank)
            self.loop.run_until_complete(self.rig.quiet())
        assert not [key for key in self.host.gone if key in self.wishes]
        self.rig.reconciler.release_stale()
        self.loop.run_until_complete(self.rig.quiet())
        assert not [key for key in self.host.gone if key in self.wishes]

    # ------------------------------------------------------------------------------------------ what holds

    @invariant()
    def what_is_foreign_is_untouched(self) -> None:
        assert self.host.foreign == self.foreign

    @invariant()
    def once_quiet_the_kernel_is_what_is_wanted(self) -> None:
        if not self.quiet:
            return
        reconciler = self.rig.reconciler
        refused = {failing.object.key for failing in reconciler.status().failing}
        assert not refused - self.failing - self.foreign.keys() - self.unfounded()
        for key in UNIVERSE_KEYS - refused:
            assert self.host.objects.get(key) == self.wishes.get(key), key
            assert reconciler.installed(key) == (key in self.wishes)
        # No delta was missed: a dump finds nothing to do but what is refused.
        assert {op.object.key for op in reconciler.plan()} <= refused

    @invariant()
    def dump_and_diff_leads_to_the_same(self) -> None:
        if not self.quiet or self.failing:
            return
        other = FakeHost()
        for key, text in self.foreign.items():
            other.foreign_put(key, text)
        other.apply(diff(dict(self.wishes.items()), other.dump(("link", "address", "nexthop", "route"))))
        # Where a replacement is refused the old content stays, and a fresh host has none.
        refused = {failing.object.key for failing in self.rig.reconciler.status().failing}
        for key in UNIVERSE_KEYS - refused:
            assert other.objects.get(key) == self.host.objects.get(key), key

    def unfounded(self) -> set[Key]:
        """Keys that are wanted although what they stand on is not there."""
        probe = FakeHost()
        probe.objects = {key: obj for key, obj in self.host.objects.items() if isinstance(obj, Link | NextHop)}
        probe.faults, probe.foreign = dict(self.host.faults), dict(self.foreign)
        wanted = [obj for _, obj in self.wishes.items()]
        return {failure.op.object.key for failure in probe.apply(sorted((Op("put", o) for o in wanted), key=order))}


UNIVERSE_KEYS = {obj.key for obj in UNIVERSE}

TestReconciling = Reconciling.TestCase
TestReconciling.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
