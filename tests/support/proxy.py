"""A TCP proxy for tests, to break connections at a chosen moment: hold the replies back, or cut everything.

async with proxy("127.0.0.1", port) as middle:
    middle.hold()    # requests go on to the server, replies do not come back
    middle.release()
    middle.cut()     # reset every connection; new ones are accepted
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator


class Proxy:
    """`forwarded` counts the bytes that went from clients to the server."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._flow = asyncio.Event()
        self._flow.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._sent = asyncio.Condition()
        self._blocked = False
        self.forwarded = 0
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def hold(self) -> None:
        self._flow.clear()

    def release(self) -> None:
        self._flow.set()

    def cut(self) -> None:
        for writer in list(self._writers):
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no FIN
            writer.transport.abort()

    def block(self) -> None:
        self._blocked = True
        self.cut()

    def unblock(self) -> None:
        self._blocked = False

    async def sent(self, count: int) -> None:
        """Until `count` bytes in all have gone to the server."""
        async with self._sent:
            await self._sent.wait_for(lambda: self.forwarded >= count)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._blocked:
                return
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream)
            self._writers |= {writer, upstream_writer}
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream_writer, replies=False))
                group.create_task(self._pump(upstream_reader, writer, replies=True))
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        try:
            while data := await reader.read(65536):
                if replies:
                    await self._flow.wait()
                writer.write(data)
                await writer.drain()
                if not replies:
                    async with self._sent:
                        self.forwarded += len(data)
                        self._sent.notify_all()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


@contextlib.asynccontextmanager
async def proxy(host: str, port: int) -> AsyncIterator[Proxy]:
    found = Proxy(host, port)
    await found.start()
    try:
        yield found
    finally:
        await found.stop()
