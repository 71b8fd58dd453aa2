"""A BGP peer made of bytes: says exactly what a test wants said, and keeps every message that comes.

Rule: hand-made from RFC 4271, with nothing of `bgp/` in it, so that it is an oracle of its own and can send what no
encoder would. It keeps its session up by itself (KEEPALIVE), and judges nothing.

    async with Probe(site, "10.98.0.1", asn=65009) as probe:
        await probe.establish()
        probe.send(update(attributes(next_hop=probe.address), "10.9.0.0/24"))
        notification = await probe.notification()
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest

from tests.support.netns import Namespace
from tests.support.routers import TIMEOUT

OPEN, UPDATE, NOTIFICATION, KEEPALIVE, REFRESH = 1, 2, 3, 4, 5
MARKER = b"\xff" * 16
OPTIONAL, TRANSITIVE, PARTIAL, EXTENDED = 0x80, 0x40, 0x20, 0x10
ORIGIN, AS_PATH, NEXT_HOP, MED, LOCAL_PREF, ATOMIC, AGGREGATOR = range(1, 8)
COMMUNITIES, ORIGINATOR_ID, CLUSTER_LIST, MP_REACH, MP_UNREACH = 8, 9, 10, 14, 15
AS_TRANS = 23456
WIRE_FAMILIES = {"ipv4": b"\0\1\1", "ipv6": b"\0\2\1"}


def message(kind: int, body: bytes = b"", *, length: int | None = None, marker: bytes = MARKER) -> bytes:
    """A whole message; `length` lies about it."""
    return marker + struct.pack(">HB", 19 + len(body) if length is None else length, kind) + body


def capability(code: int, value: bytes = b"") -> bytes:
    return bytes((code, len(value))) + value


def capabilities(asn: int, families: Iterable[str] = ("ipv4", "ipv6"), *more: bytes, as4: bool = True) -> bytes:
    """Multiprotocol, route refresh and, unless `as4` is False, AS numbers of four octets; then `more`."""
    parts = [capability(1, WIRE_FAMILIES[family][:2] + b"\0\1") for family in families]
    parts.append(capability(2))
    if as4:
        parts.append(capability(65, asn.to_bytes(4, "big")))
    return b"".join((*parts, *more))


def open_message(
    asn: int, identifier: str, hold_time: int = 90, offered: bytes | None = None, *, version: int = 4
) -> bytes:
    """An OPEN; `offered` are capabilities, each in the one optional parameter."""
    offered = capabilities(asn) if offered is None else offered
    parameter = bytes((2, len(offered))) + offered if offered else b""
    short = asn if asn < 65536 else AS_TRANS
    body = struct.pack(">BHH", version, short, hold_time) + socket.inet_aton(identifier)
    return message(OPEN, body + bytes((len(parameter),)) + parameter)


def attribute(kind: int, value: bytes, flags: int = TRANSITIVE, *, length: int | None = None) -> bytes:
    """One path attribute; `length` lies about it."""
    size = len(value) if length is None else length
    if size > 255 or flags & EXTENDED:
        return struct.pack(">BBH", flags | EXTENDED, kind, size) + value
    return bytes((flags, kind, size)) + value


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def prefix_bytes(prefix: str) -> bytes:
    """A prefix as it stands on the wire."""
    network = ipaddress.ip_network(prefix)
    return bytes((network.prefixlen,)) + network.network_address.packed[: (network.prefixlen + 7) // 8]


def as_path(*numbers: int, size: int = 4) -> bytes:
    """The value of AS_PATH: one sequence."""
    if not numbers:
        return b""
    return bytes((2, len(numbers))) + b"".join(number.to_bytes(size, "big") for number in numbers)


def attributes(
    *more: bytes, path: tuple[int, ...] = (), next_hop: str = "", local_pref: int | None = 100, as_size: int = 4
) -> bytes:
    """ORIGIN, AS_PATH, NEXT_HOP (where given), LOCAL_PREF (unless None), then `more`."""
    parts = [attribute(ORIGIN, b"\0"), attribute(AS_PATH, as_path(*path, size=as_size))]
    if next_hop:
        parts.append(attribute(NEXT_HOP, packed(next_hop)))
    if local_pref is not None:
        parts.append(attribute(LOCAL_PREF, local_pref.to_bytes(4, "big")))
    return b"".join((*parts, *more))


def reach(prefixes: Iterable[str], next_hop: str) -> bytes:
    """MP_REACH_NLRI for IPv6."""
    hop = packed(next_hop)
    value = WIRE_FAMILIES["ipv6"] + bytes((len(hop),)) + hop + b"\0" + b"".join(map(prefix_bytes, prefixes))
    return attribute(MP_REACH, value, OPTIONAL)


def update(block: bytes = b"", *prefixes: str, withdrawn: Iterable[str] = (), raw: bytes = b"") -> bytes:
    """An UPDATE of an attribute block and IPv4 prefixes; `raw` octets follow the prefixes."""
    gone = b"".join(map(prefix_bytes, withdrawn))
    body = struct.pack(">H", len(gone)) + gone + struct.pack(">H", len(block)) + block
    return message(UPDATE, body + b"".join(map(prefix_bytes, prefixes)) + raw)


END_OF_RIB = update()


class Update(NamedTuple):
    """An UPDATE as it came: prefixes in text, of both families; attributes as {type: (flags, value)}."""

    withdrawn: tuple[str, ...]
    announced: tuple[str, ...]
    attributes: dict[int, tuple[int, bytes]]


def read_update(body: bytes) -> Update:
    gone = int.from_bytes(body[:2], "big")
    size = int.from_bytes(body[2 + gone : 4 + gone], "big")
    block, found = body[4 + gone : 4 + gone + size], {}
    while block:
        flags, kind = block[:2]
        head = 4 if flags & EXTENDED else 3
        length = int.from_bytes(block[2:head], "big")
        found[kind] = (flags, block[head : head + length])
        block = block[head + length :]
    withdrawn = _prefixes(body[2 : 2 + gone], 4)
    announced = _prefixes(body[4 + gone + size :], 4)
    if MP_REACH in found and found[MP_REACH][1][:3] == WIRE_FAMILIES["ipv6"]:
        value = found[MP_REACH][1]
        announced += _prefixes(value[5 + value[3] :], 16)
    if MP_UNREACH in found and found[MP_UNREACH][1][:3] == WIRE_FAMILIES["ipv6"]:
        withdrawn += _prefixes(found[MP_UNREACH][1][3:], 16)
    return Update(withdrawn, announced, found)


def _prefixes(field: bytes, size: int) -> tuple[str, ...]:
    found = []
    while field:
        octets = (field[0] + 7) // 8
        address = ipaddress.ip_address(field[1 : 1 + octets].ljust(size, b"\0"))
        found.append(f"{address}/{field[0]}")
        field = field[1 + octets :]
    return tuple(found)


class Probe:
    """One session, begun by the probe from a network namespace. `messages` is all that came: (type, body)."""

    def __init__(
        self,
        space: Namespace,
        address: str,
        peer: str,
        asn: int,
        *,
        hold_time: int = 90,
        offered: bytes | None = None,
        ttl: int = 0,
    ) -> None:
        self.space = space
        self.address = address
        self.peer = peer
        self.asn = asn
        self.hold_time = hold_time
        self.offered = offered
        self.ttl = ttl
        self.messages: list[tuple[int, bytes]] = []
        self.closed = False
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Probe:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """The TCP connection, tried again while the router refuses it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + TIMEOUT
        while True:
            try:
                return await self.connect_once(5.0)
            except OSError:
                if loop.time() > end:
                    raise
                await asyncio.sleep(0.1)

    async def connect_once(self, timeout: float) -> None:
        """One attempt. Raises TimeoutError where nobody answers within so many seconds, OSError otherwise."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        loop = asyncio.get_running_loop()
        sock = self.space.call(socket.socket, family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind((self.address, 0))
            if self.ttl:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self.ttl)
            await asyncio.wait_for(loop.sock_connect(sock, (self.peer, 179)), timeout)
        except BaseException:
            sock.close()
            raise
        reader, self._writer = await asyncio.open_connection(sock=sock)
        self.closed = False
        self._tasks.append(asyncio.create_task(self._read(reader)))

    async def establish(self) -> None:
        """Connect, and again if the router is not ready for us yet, until both OPENs are confirmed."""
        for attempt in range(20):
            await self.connect()
            self.messages.clear()
            self.send(
                open_message(
                    self.asn, self.address if ":" not in self.address else "9.9.9.9", self.hold_time, self.offered
                ),
                message(KEEPALIVE),
            )
            await self._until(lambda: self.closed or bool(self.of(KEEPALIVE)), "KEEPALIVE")
            if self.of(KEEPALIVE) and not self.closed:
                if self.hold_time:
                    self._tasks.append(asyncio.create_task(self._keep_alive()))
                return
            await self.close()
            await asyncio.sleep(0.1 * (attempt + 1))
        pytest.fail(f"{self.peer} takes no session from {self.address}: {self.messages}", pytrace=False)

    def send(self, *messages: bytes) -> None:
        assert self._writer is not None
        self._writer.write(b"".join(messages))

    def stop_keepalives(self) -> None:
        """From now on it is silent, with its connection open."""
        for task in self._tasks[1:]:
            task.cancel()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    # ---------------------------------------------------------------------------------------- what came

    def of(self, kind: int) -> list[bytes]:
        return [body for each, body in self.messages if each == kind]

    @property
    def updates(self) -> list[Update]:
        return [read_update(body) for body in self.of(UPDATE)]

    def known(self) -> set[str]:
        """The prefixes that it has been told and that were not taken back."""
        prefixes: set[str] = set()
        for each in self.updates:
            prefixes.difference_update(each.withdrawn)
            prefixes.update(each.announced)
        return prefixes

    async def knows(self, *prefixes: str) -> None:
        await self._until(lambda: self.known() >= set(prefixes), f"routes to {prefixes}")

    async def forgets(self, *prefixes: str) -> None:
        await self._until(lambda: not self.known() & set(prefixes), f"withdrawal of {prefixes}")

    async def new_updates(self, seen: int) -> list[Update]:
        """Those that came after the first `seen`; waits for the first of them."""
        await self._until(lambda: len(self.updates) > seen, "UPDATE")
        return self.updates[seen:]

    async def new_routes(self, seen: int) -> list[str]:
        """The prefixes announced after the first `seen` announcements, repetitions included; waits for the first."""
        await self._until(lambda: len(self.announced()) > seen, "routes")
        return self.announced()[seen:]

    def announced(self) -> list[str]:
        """Each announced prefix in order, as often as it came."""
        return [prefix for each in self.updates for prefix in each.announced]

    async def notification(self) -> tuple[int, int, bytes]:
        """Code, subcode and data of the NOTIFICATION that ends the session."""
        await self._until(lambda: self.closed or bool(self.of(NOTIFICATION)), "NOTIFICATION")
        found = self.of(NOTIFICATION)
        assert found, f"{self.peer} closed the connection without a NOTIFICATION"
        return found[0][0], found[0][1], found[0][2:]

    async def until_closed(self) -> None:
        await self._until(lambda: self.closed, "end of the connection")

    async def refreshed(self, count: int = 1) -> None:
        """Until so many requests for our routes have come."""
        await self._until(lambda: len(self.of(REFRESH)) >= count, "ROUTE-REFRESH")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"probe {self.address} to {self.peer}: no {what}; got {self.messages}", pytrace=False)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                head = await reader.readexactly(19)
                body = await reader.readexactly(int.from_bytes(head[16:18], "big") - 19)
                self.messages.append((head[18], body))
                self._changed.set()
        except (asyncio.IncompleteReadError, OSError):
            self.closed = True
            self._changed.set()

    async def _keep_alive(self) -> None:
        while not self.closed:
            await asyncio.sleep(self.hold_time / 3)
            with contextlib.suppress(OSError):
                self.send(message(KEEPALIVE))
