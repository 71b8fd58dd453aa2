"""Speakers on real sockets for tests, and a peer by hand that does what no speaker does.

Rule: all of it runs in the network namespace of the thread that uses it; addresses are 10.77.x.y on the loopback
device, which `home` adds.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from random import Random
from typing import Any

from bgp.aio import Driver, Listen
from bgp.connection import Established
from bgp.message import (
    KEEPALIVE,
    AttributeDecoder,
    Attributes,
    Capabilities,
    Family,
    Framer,
    GracefulRestart,
    MessageType,
    Open,
    UpdateDecoder,
    nlri,
)
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.speaker import News, Speaker
from bgp.transport import Transport
from tests.support.netns import Namespace, Namespaces

V4, V6 = Family.IPV4, Family.IPV6
PORT = 1790
ASN = 65001


def at(number: int) -> bytes:
    """The address of speaker number n."""
    return bytes((10, 77, number >> 8, number & 255))


def at6(number: int) -> bytes:
    return bytes.fromhex("fd77") + bytes(12) + number.to_bytes(2, "big")


def prefix(number: int) -> bytes:
    """The n-th of many IPv4 prefixes, /26 each."""
    return bytes((26,)) + (0x0B000000 | number << 6).to_bytes(4, "big")


def hop(number: int) -> bytes:
    """The n-th of 16,384 next hops."""
    return bytes((172, 16)) + (number % 16384).to_bytes(2, "big")


def home(namespaces: Namespaces, numbers: Iterable[int]) -> Namespace:
    """A namespace that has the addresses of these speakers."""
    space = namespaces.make("speakers")
    lines = [f"address add {nlri.address_text(at(n))}/32 dev lo" for n in numbers]
    lines += [f"address add {nlri.address_text(at6(n))}/128 dev lo nodad" for n in numbers]
    space.run("ip", "-batch", "-", input="\n".join(lines) + "\n")
    return space


class Host:
    """A speaker with its driver; its peers are named by their numbers."""

    def __init__(self, number: int, *, asn: int = ASN, listen: bool = True, **options: Any) -> None:
        self.number = number
        config = SpeakerConfig(asn, at(number), tuple(Family), ((V4, at(number)), (V6, at6(number))), **options)
        self.speaker = Speaker(config, Random(number).random)
        self.news: list[tuple[str, News]] = []
        self.changed = asyncio.Event()
        """Something happened: a session, a route."""
        self.flapped = 0
        places = [Listen(at(number), PORT), Listen(at6(number), PORT)] if listen else []
        self.driver = Driver(self.speaker, places, on_news=self._news, on_changes=lambda _: self.changed.set())

    def _news(self, name: str, news: News) -> None:
        self.news.append((name, news))
        self.changed.set()

    def peer(self, number: int, *, asn: int = ASN, six: bool = False, transport: Any = None, **options: Any) -> None:
        place = at6 if six else at
        options = {"hold_time": 30, "connect_retry": 1.0, **options}
        how = {"port": PORT, "local_address": place(self.number), **(transport or {})}
        config = PeerConfig(str(number), place(number), asn, transport=Transport(**how), **options)
        self.speaker.add_peer(config, asyncio.get_running_loop().time())

    def stands(self, number: int) -> bool:
        peer = self.speaker.peers.get(str(number))
        return peer is not None and peer.session.negotiated is not None

    def known(self, family: Family = V4) -> set[bytes]:
        return set(self.speaker.ribs[family].chosen)

    def established(self) -> int:
        return sum(isinstance(news, Established) for _, news in self.news)


@contextlib.asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[None]:
    """The hosts' drivers, started and stopped."""
    try:
        for host in hosts:
            host.driver.start()
        yield
    finally:
        for host in hosts:
            if host.driver.started:
                await host.driver.stop("the test is over")


class Probe:
    """A BGP session by hand on a blocking socket, for another thread or for a namespace's own."""

    def __init__(
        self,
        sock: socket.socket,
        number: int,
        asn: int = ASN,
        hold_time: int = 30,
        timeout: float = 30.0,
        restart: GracefulRestart | None = None,
    ) -> None:
        self.sock = sock
        self.framer = Framer()
        sock.settimeout(timeout)
        opening = Open(asn, hold_time, at(number), Capabilities(tuple(Family), graceful_restart=restart))
        sock.sendall(opening.encode() + KEEPALIVE)
        self._waiting: deque[tuple[int, bytes]] = deque()
        while next(self.messages())[0] != MessageType.KEEPALIVE:
            pass

    @classmethod
    def connect(cls, number: int, to: int, **options: Any) -> Probe:
        return cls(connected(number, to), number, **options)

    def _read(self) -> bool:
        """Wait for what comes next; false when the speaker has closed the connection."""
        data = self.sock.recv(1 << 20)
        self._waiting.extend(self.framer.receive(data))
        return bool(data)

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Type and body of each, until the speaker closes the connection."""
        while self._waiting or self._read():
            if self._waiting:
                yield self._waiting.popleft()

    def read_until(self, right: Callable[[dict[bytes, Attributes]], bool]) -> None:
        """Read UPDATEs until the table that they make is right."""
        decoder = UpdateDecoder(tuple(Family), AttributeDecoder(as4=True, internal=True))
        known: dict[bytes, Attributes] = {}
        while not right(known):
            assert self._waiting or self._read(), "the speaker has closed the connection"
            for kind, body in self._waiting:
                if kind == MessageType.UPDATE:
                    update = decoder.decode(body)
                    for _, prefixes in update.withdrawn:
                        for each in prefixes:
                            known.pop(each, None)
                    for _, prefixes, attributes in update.announced:
                        known.update(dict.fromkeys(prefixes, attributes))
            self._waiting.clear()

    def reset(self) -> None:
        """Close with RST, as a crashed host's kernel does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def connected(number: int, to: int, *, ttl: int = 0, timeout: float = 30.0) -> socket.socket:
    """A plain TCP connection from one speaker's address to another's. Raises OSError."""
    sock = socket.socket()
    try:
        if ttl:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sock.bind((nlri.address_text(at(number)), 0))
        sock.settimeout(timeout)
        sock.connect((nlri.address_text(at(to)), PORT))
    except OSError:
        sock.close()
        raise
    return sock
