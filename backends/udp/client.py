"""The agent's end of the control socket (control.py), on asyncio.

Rule: every request has a deadline, and an answer that does not come ends the connection: the two sides would be out
of step. `closed` is how the engine's death is seen, at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

from backends.udp import control
from backends.udp.control import ControlError, Decoder, encode
from backends.udp.session import process_at

DEADLINE = 5.0  # seconds for one answer


class Client(asyncio.Protocol):
    """One connection to an engine. Made by `connect`."""

    def __init__(self) -> None:
        self.pid = 0  # the engine's process
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()

    async def ask(self, name: str, **fields: Any) -> dict[str, Any]:
        """The answer to one request. ControlError: refused; ConnectionError: no engine any more; TimeoutError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection to the engine is closed")
        data = encode({"do": name, **fields})
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._transport.write(data)
        try:
            async with asyncio.timeout(DEADLINE):
                message = await answer
        except TimeoutError:
            self.close()
            raise TimeoutError(f"the engine did not answer {name} within {DEADLINE:.0f} s") from None
        if message.get("ok") is not True:
            raise ControlError(f"{name}: {str(message.get('error', 'refused without a reason'))[:200]}")
        return message

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.pid, _ = process_at(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                if not self._waiting:
                    raise ControlError("an answer to nothing")
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(message)
        except ControlError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(ConnectionResetError("the engine closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)


async def connect(path: Path) -> Client:
    """Connect to the engine at `path`. OSError (ConnectionRefusedError, FileNotFoundError): there is none."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE):
        _, client = await loop.create_unix_connection(Client, str(path))
    return client


async def stop(path: Path) -> None:
    """End the engine at `path`, if there is one."""
    try:
        client = await connect(path)
    except OSError:
        return
    try:
        await client.ask(control.DO_STOP)
        async with asyncio.timeout(DEADLINE):
            await asyncio.shield(client.closed)
    except ConnectionError:
        pass
    finally:
        client.close()
