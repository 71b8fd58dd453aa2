"""The control socket: one request a connection, in JSON, answered line by line.

    {"command": "routes", "prefix": "10.1.0.0/16"}
    {"item": {...}}                      none, one or many
    {"end": true}                        or {"error": "there is no peer 'x'; there are: ..."},
                                         with "wrong": true where the request itself is

Rule: who can open the socket (mode 0600: root and the daemon's user) may do everything. A long answer is written in
slices, as fast as it is read, and sessions go on meanwhile. What comes in is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bgp.aio import SetupError
from bgp.message.errors import BgpError
from bgp.views import NoPrefix

_LONGEST_REQUEST = 65536
_PATIENCE = 10.0
"""Seconds for a request to arrive, and for a slice of the answer to be read."""
_SLICE = 200

Answer = Callable[[dict[str, Any]], Iterable[Any]]
"""From a request to the items of its answer. Raises BgpError."""


class ControlSocket:
    """Serves requests until it is closed."""

    def __init__(self, path: str, answer: Answer) -> None:
        self.path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._ours: tuple[int, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Raises SetupError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(sock, self.path)
            self._ours = _identity(self.path)
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=_LONGEST_REQUEST)
        except OSError as error:
            sock.close()
            raise SetupError(f"{self.path}: cannot be the control socket: {_remedy(error)}") from None
        except SetupError:
            sock.close()
            raise

    async def close(self) -> None:
        if self._server:
            self._server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if _identity(self.path) == self._ours:  # another daemon's may be there by now
                _remove(self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await _request(reader)
            await self._reply(line, writer)
            writer.close()
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            if not writer.is_closing():
                writer.transport.abort()  # what nobody reads must not stay

    async def _reply(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            writer.write(_line({"error": 'a request is one line of JSON: {"command": "peers"}'}))
            return
        try:
            for number, item in enumerate(self._answer(request), 1):
                writer.write(_line({"item": item}))
                if number % _SLICE == 0:
                    async with asyncio.timeout(_PATIENCE):
                        await writer.drain()
                    await asyncio.sleep(0)
            writer.write(_line({"end": True}))
        except BgpError as error:
            writer.write(_line({"error": str(error), **({"wrong": True} if isinstance(error, NoPrefix) else {})}))
        async with asyncio.timeout(_PATIENCE):
            await writer.drain()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """A line; empty where it is longer than any request."""
    try:
        return await reader.readline()
    except ValueError:
        return b""


def _bind(sock: socket.socket, path: str) -> None:
    """Bind, in the place of a socket that a daemon has left behind. Raises OSError, SetupError."""
    if _answers(path):
        raise SetupError(f"{path}: another daemon answers there; stop it, or set speaker.control")
    if Path(path).is_socket():
        _remove(path)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of what is there."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _answers(path: str) -> bool:
    """Whether somebody listens there: one who is too busy to take a connection does, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (BlockingIOError, TimeoutError):
            return True
        except OSError:
            return False
        return True


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _remedy(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "its directory does not exist; make it, or set speaker.control"
    if error.errno == errno.EADDRINUSE:
        return "a file is there that is no socket; remove it, or set speaker.control"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission; be root, or set speaker.control to a place of yours"
    return str(error.strerror or error)
