"""The listening sockets: connections accepted in batches, and the keys and TTLs that the peers' settings demand.

Rule: a listener carries the key of each peer that has one (RFC 2385: the SYN is signed already), and the least TTL
that any peer allows. What one peer demands beyond that is set on the accepted connection.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable

from bgp.aio.sockets import SetupError, family_of, listening, set_key, set_least_ttl
from bgp.message.nlri import address_text
from bgp.peers import Wanted

_AT_ONCE = 64
_GONE = (
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET),
)
"""What accept(2) says of one connection, which is gone by that: its own trouble."""
_OUT_OF_FILES = 1.0
"""Seconds before the next try to accept when this process has no descriptor left, or the kernel no memory."""

Arrival = tuple[socket.socket, str]
Key = tuple[bytes, int | None]
"""An address, and the length of the prefix where it stands for more than itself."""


class Listeners:
    """`on_arrivals` gets connected sockets with the text of the peer's address."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_arrivals: Callable[[list[Arrival]], None]) -> None:
        self.sockets: list[socket.socket] = []
        self._loop = loop
        self._on_arrivals = on_arrivals
        self._keys: dict[Key, bytes] = {}
        self._least_ttl: dict[int, int] = {}

    def open(self, places: Iterable[tuple[bytes, int]]) -> None:
        """Listen on each (address, port). Raises SetupError, and then none is open. `know` must follow."""
        self._keys, self._least_ttl = {}, {}
        try:
            for address, port in places:
                self.sockets.append(listening(address, port))
        except SetupError:
            self.close()
            raise
        for sock in self.sockets:
            self._loop.add_reader(sock, self._acceptable, sock)

    def close(self) -> None:
        for sock in self.sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self.sockets.clear()

    def know(self, wanted: Iterable[Wanted]) -> dict[str, str]:
        """All peers and ranges there are. Those whose key a socket does not take, and why: the others have theirs."""
        keys: dict[Key, bytes] = {}
        names: dict[Key, str] = {}
        least: dict[int, int] = {}
        for name, address, length, transport in wanted:
            if transport.password:
                keys[address, length] = transport.password
                names.setdefault((address, length), name)
            family = family_of(address)
            least[family] = min(transport.least_ttl, least.get(family, 255))
        for sock in self.sockets:
            if least.get(sock.family, 0) != self._least_ttl.get(sock.family, 0):
                set_least_ttl(sock, least.get(sock.family, 0))
        self._least_ttl = least
        problems: dict[str, str] = {}
        for key in (*keys, *(self._keys.keys() - keys.keys())):
            if keys.get(key) == self._keys.get(key):
                continue
            try:
                self._set_key(*key, keys.get(key, b""))
            except SetupError as error:
                problems[names.get(key, address_text(key[0]))] = str(error)
                keys.pop(key, None)  # it is tried again
        self._keys = keys
        return problems

    def _set_key(self, address: bytes, length: int | None, password: bytes) -> None:
        for sock in self.sockets:
            if family_of(address) == sock.family:
                set_key(sock, address, length, password)

    def _acceptable(self, sock: socket.socket) -> None:
        arrivals: list[Arrival] = []
        for _ in range(_AT_ONCE):
            try:
                connected, where = sock.accept()
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    # No descriptor or memory left: those that wait stay in the backlog.
                    self._loop.remove_reader(sock)
                    self._loop.call_later(_OUT_OF_FILES, self._again, sock)
                break
            connected.setblocking(False)
            arrivals.append((connected, where[0]))
        if arrivals:
            self._on_arrivals(arrivals)

    def _again(self, sock: socket.socket) -> None:
        if sock in self.sockets:
            self._loop.add_reader(sock, self._acceptable, sock)
