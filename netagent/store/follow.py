"""Follow a prefix of the store: a listing, then every change, for ever, whatever happens to the store.

Rule: only the driver is here, the decisions are in resume.py. Events that arrive in a burst come as few Deltas; an
event that arrives alone is handed on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from netagent.errors import StoreError
from netagent.store.base import Batch, Store
from netagent.store.resume import BACKOFF, Delta, Follow, FollowState, Resync, Step

__all__ = ["Delta", "FollowState", "Follower", "Resync", "follow"]

# An event that comes this soon after the consumer was ready for it is one of many: others are waited for. gRPC hands
# over one message per turn of the loop, so that without the pause each would be planned and written on its own.
_BURST = 0.0005  # seconds
_GATHER = 0.001
_BUFFER = 4096  # batches that wait for the consumer before the server is held back


class Follower(AsyncIterator[Resync | Delta]):
    """Resync and Delta of all keys that begin with `prefix`. Never ends and never raises a StoreError.

    `on_state` is called when `connected` or `error` changes. `state` is for status; its times are of the event
    loop's clock. `jitter` (0 to 1) and `backoff` (first and longest wait, seconds) are for tests.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        on_state: Callable[[FollowState], None] | None = None,
        jitter: Callable[[], float] = random.random,
        backoff: tuple[float, float] = BACKOFF,
    ) -> None:
        self._store = store
        self._machine = Follow(prefix, jitter, backoff)
        self._on_state = on_state
        self._told = (False, "")
        self._items = self._run()

    @property
    def state(self) -> FollowState:
        return self._machine.state

    async def __anext__(self) -> Resync | Delta:
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()

    async def _run(self) -> AsyncGenerator[Resync | Delta, None]:
        machine = self._machine
        clock = asyncio.get_running_loop().time
        resync: Resync | None = None
        while True:
            step = machine.step()
            try:
                if step.do == "wait":
                    await asyncio.sleep(step.seconds)
                    machine.waited()
                elif step.do == "list":
                    resync = machine.listed(await self._store.list(step.prefix), clock())
                elif step.do == "check":
                    machine.checked(await self._store.list(step.prefix, revision=step.revision))
                else:
                    queue: asyncio.Queue[Batch | Exception] = asyncio.Queue(_BUFFER)
                    reader = asyncio.create_task(self._read(step, queue), name=f"watch {step.prefix}")
                    try:
                        if resync is not None:  # while the consumer is busy with it the watch already stands
                            yield resync
                            resync = None
                        while True:
                            delta, error = await self._gather(queue)
                            if delta is not None:
                                yield delta
                            if error is not None:
                                raise error
                    finally:
                        reader.cancel()
                        await asyncio.wait([reader])
            except StoreError as failure:
                machine.failed(failure, clock())
                self._tell()

    async def _gather(self, queue: asyncio.Queue[Batch | Exception]) -> tuple[Delta | None, Exception | None]:
        """What has arrived since the last time, as one Delta; and the error that ended the watch, if it has."""
        clock = asyncio.get_running_loop().time
        asked = clock()
        arrived = [await queue.get()]
        if clock() - asked < _BURST:
            await asyncio.sleep(_GATHER)
        while not queue.empty():
            arrived.append(queue.get_nowait())
        now = clock()
        batches = (batch for batch in arrived if isinstance(batch, Batch))
        deltas = [delta for batch in batches if (delta := self._machine.batch(batch, now)) is not None]
        self._tell()
        error = arrived[-1] if isinstance(arrived[-1], Exception) else None
        if len(deltas) < 2:
            return (deltas[0] if deltas else None), error
        return Delta(deltas[-1].revision, tuple(event for delta in deltas for event in delta.events)), error

    async def _read(self, step: Step, queue: asyncio.Queue[Batch | Exception]) -> None:
        try:
            async with contextlib.aclosing(self._store.watch(step.prefix, step.revision)) as batches:
                async for batch in batches:
                    await queue.put(batch)
        except Exception as error:  # the consumer raises it, in the order of events
            await queue.put(error)

    def _tell(self) -> None:
        state = self._machine.state
        if self._on_state is not None and self._told != (state.connected, state.error):
            self._told = (state.connected, state.error)
            self._on_state(state)


follow = Follower  # reads better in `async for item in follow(store, prefix)`
