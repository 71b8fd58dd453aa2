"""A reconciler on a kernel in memory, with a clock that the test turns.

Rule: no time passes by itself. `quiet` returns when hints were heard and all that could be tried was tried;
`pass_time` turns the clock and then waits for the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from netagent.kernel.base import Op
from netagent.kernel.fake import FakeHost
from netagent.model import Address, Hop, Key, Link, NextHop, Object, Route, VxlanAttrs
from netagent.reconcile import ONE_BLOW, Reconciler

DEADLINE = 5.0  # seconds of the real clock

DEVICE = Link(kind="vxlan", name="na-vx1", mtu=1450, vxlan=VxlanAttrs(vni=1, port=8472, dev="eth0"))
ADDRESS = Address("na-vx1", "10.5.1.0", 32)
NEXTHOP = NextHop("na-vx1", "10.5.2.0")
OVERLAY = Route("10.5.2.0/24", nexthop=("na-vx1", "10.5.2.0"))
# Each stands on the one before it.
STACK: tuple[Object, ...] = (DEVICE, ADDRESS, NEXTHOP, OVERLAY)


def direct(subnet: int, gateway: str = "192.168.50.12") -> Route:
    """A route of a peer on the uplink."""
    return Route(f"10.5.{subnet}.0/24", (Hop("eth0", gateway),))


class Rig:
    """`now` is the reconciler's clock (seconds)."""

    def __init__(self, host: FakeHost | None = None) -> None:
        self.host = host or FakeHost()
        self.now = 1000.0
        self.reconciler = Reconciler(self.host, clock=lambda: self.now, jitter=lambda low, high: (low + high) / 2)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self.reconciler.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def quiet(self) -> None:
        async with asyncio.timeout(DEADLINE):
            for _ in range(3):  # the listener's turn, then the loop's
                await asyncio.sleep(0)
            await self.reconciler.settled()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.reconciler.invalidate(())  # looks at the clock, and at nothing else
        await self.quiet()

    def written(self) -> list[Op]:
        """Operations that succeeded since the last call."""
        log = list(self.host.log)
        self.host.log.clear()
        return log

    def has(self, *objects: Object) -> bool:
        return all(self.host.objects.get(obj.key) == obj for obj in objects)

    def codes(self) -> set[str]:
        return {finding.code for finding in self.reconciler.findings()}

    def attempts(self, key: Key) -> int:
        failing = self.reconciler.failure(key)
        return failing.attempts if failing is not None else 0


@contextlib.asynccontextmanager
async def rig(host: FakeHost | None = None, *, keep_stale: bool = False) -> AsyncIterator[Rig]:
    """A rig that runs, and that has released what an earlier run left unless told otherwise."""
    made = Rig(host)
    made.start()
    if not keep_stale:
        made.reconciler.release_stale()
    await made.quiet()
    try:
        yield made
    finally:
        await made.stop()


async def fight(r: Rig, times: int, every: float = 2 * ONE_BLOW) -> None:
    """Somebody deletes the route soon after it is there (seconds)."""
    for _ in range(times):
        await r.pass_time(every)
        await r.until(lambda: r.has(direct(1)))
        await r.quiet()
        r.host.meddle_delete(direct(1).key)
        await r.quiet()
