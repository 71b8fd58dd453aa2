"""One Watch call to etcd with one watch in it, and the proof that it lives.

Rule: silence is never taken for "nothing happened". Every `interval` seconds the server is asked for its progress;
when nothing at all was heard within `deadline` seconds of the question, the call is given up. gRPC's pings prove
only that the peer's HTTP/2 layer runs, and stop proving anything behind a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from netagent.errors import StoreUnavailable
from netagent.store.connection import grpc, pb


class WatchStream:
    """`call` is a grpc.aio stream-stream call that has not been written to."""

    def __init__(self, call: Any, *, interval: float, deadline: float) -> None:
        self._call = call
        self._interval = interval
        self._deadline = min(deadline, interval)
        self._opening = deadline
        self._heard = 0.0
        self._dead = ""
        self._pulse: asyncio.Task[None] | None = None

    async def open(self, start: bytes, end: bytes, revision: int) -> None:
        """Ask for the events of [start, end) from `revision` on."""
        self._pulse = asyncio.create_task(self._prove(), name="etcd watch proof of life")
        create = pb.WatchCreateRequest(key=start, range_end=end, start_revision=revision)
        with self._verdict():
            await self._call.write(pb.WatchRequest(create_request=create))

    async def read(self) -> Any:
        """The next WatchResponse. StoreUnavailable when proof of life is missing, AioRpcError when the call ends."""
        with self._verdict():
            reply = await self._call.read()
        if reply is grpc.aio.EOF:
            raise StoreUnavailable("the server has ended the watch")
        self._heard = asyncio.get_running_loop().time()
        return reply

    def close(self) -> None:
        if self._pulse is not None:
            self._pulse.cancel()
        self._call.cancel()

    @contextlib.contextmanager
    def _verdict(self) -> Iterator[None]:
        """A call that we or close() cancelled looks like the cancellation of our task: tell them apart."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise StoreUnavailable(self._dead or "the connection is closed") from None
            raise

    async def _prove(self) -> None:
        loop = asyncio.get_running_loop()
        begun = asked = loop.time()
        wait = self._opening
        while True:
            await asyncio.sleep(wait)
            if self._heard < asked:
                self._dead = f"the watch gave no sign of life for {loop.time() - (self._heard or begun):.1f} s"
                self._call.cancel()
                return
            await asyncio.sleep(max(0.0, asked + self._interval - loop.time()))
            asked = loop.time()
            wait = self._deadline
            # a failing write needs no answer here: the reader sees the end of the call
            with contextlib.suppress(
                TimeoutError, grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError
            ):
                async with asyncio.timeout(self._deadline):
                    await self._call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
