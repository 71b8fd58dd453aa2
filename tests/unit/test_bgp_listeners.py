"""The listening sockets without a network: keys that the kernel refuses, a process without descriptors left."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bgp.aio import Driver, SetupError
from bgp.aio.listeners import Listeners
from bgp.connection import Direction
from bgp.message import Family, nlri
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.ranges import PeerRange
from bgp.speaker import Speaker
from bgp.transport import Transport


def at(number: int) -> bytes:
    return bytes((192, 0, 2, number))


class Refusing:
    """A listening socket of IPv4 whose kernel has no room for the keys of some addresses."""

    family = socket.AF_INET

    def __init__(self, *refused: int) -> None:
        self.refused = {at(number) for number in refused}
        self.signed: set[bytes] = set()

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option != 14:  # TCP_MD5SIG
            return
        address = value[4:8]
        if address in self.refused:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.signed.add(address)

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


def driver_of(count: int) -> Driver:
    speaker = Speaker(SpeakerConfig(65001, at(1), (Family.IPV4,)), lambda: 0.5)
    for number in range(2, 2 + count):
        config = PeerConfig(f"n{number}", at(number), 65001, passive=True, transport=Transport(password=b"secret"))
        speaker.add_peer(config, 0)
    return Driver(speaker)


def listening_on(kernel: Refusing, driver: Driver) -> None:
    driver.start()
    some: Any = kernel
    driver._listeners.open([])  # forgets what it knows
    driver._listeners.sockets.append(some)
    driver.speaker.version += 1


async def test_a_key_that_is_refused_names_its_peer_and_keeps_no_other_out() -> None:
    driver = driver_of(4)
    kernel = Refusing(3, 4)
    listening_on(kernel, driver)
    remedy = r"cannot allocate memory, errno 12\): no room .* net\.core\.optmem_max"
    with pytest.raises(SetupError, match=rf"n3: TCP MD5 for 192\.0\.2\.3 is refused \({remedy}; n4: TCP MD5 for 192"):
        driver.wake()
    assert driver.unsigned.keys() == {"n3", "n4"}
    assert any("TCP MD5" in str(entry) for entry in driver.speaker.peers["n3"].session.recorder.entries(driver.now()))
    # What has become possible meanwhile is done, whether or not something else is asked for.
    kernel.refused = {at(4)}
    with pytest.raises(SetupError, match=r"^n4: "):
        driver.wake()
    kernel.refused = set()
    driver.wake()
    assert driver.unsigned == {}
    assert kernel.signed == {at(number) for number in range(2, 6)}
    driver._listeners.sockets.clear()
    await driver.stop(None)


async def test_a_complaint_about_very_many_stays_short() -> None:
    driver = driver_of(50)
    listening_on(Refusing(*range(2, 52)), driver)
    with pytest.raises(SetupError, match=r"and 47 more$"):
        driver.wake()
    driver._listeners.sockets.clear()
    await driver.stop(None)


class Door(socket.socket):
    """A listening socket that cannot accept for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.setblocking(False)
        self.errors: list[int] = []
        self.tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


@contextmanager
def connections(count: int) -> Iterator[list[socket.socket]]:
    """The near ends of TCP connections; the far ones are kept until the end."""
    with ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        near = []
        for _ in range(count):
            stack.enter_context(socket.create_connection(door.getsockname()))
            near.append(door.accept()[0])
            near[-1].setblocking(False)
        yield near


async def arrivals(errors: list[int], count: int) -> tuple[int, int]:
    """How many connections come in through such a door, and how often it tried."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[socket.socket] = asyncio.Queue()
    listeners = Listeners(loop, lambda some: [came.put_nowait(sock) for sock, _ in some] and None)
    door = Door()
    door.errors = errors
    clients = []
    for _ in range(count):
        clients.append(socket.socket())
        clients[-1].connect(door.getsockname())
    listeners.sockets.append(door)
    listeners._again(door)
    found = [await asyncio.wait_for(came.get(), 30) for _ in range(count)]
    listeners.close()
    for sock in (*clients, *found):
        sock.close()
    return len(found), door.tries


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_descriptors_those_who_come_wait_and_nothing_spins(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgp.aio.listeners._OUT_OF_FILES", 0.01)
    assert await arrivals([number, number], 3) == (3, 6)  # two that fail, three, and one that finds nobody


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EPERM])
async def test_a_connection_that_has_gone_again_does_not_keep_the_next_one_waiting(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgp.aio.listeners._OUT_OF_FILES", 1e6)
    assert await arrivals([number], 2) == (2, 4)


async def test_a_guest_that_has_gone_again_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of its connection cannot be set any more: it is no peer, and the range has room for the next."""
    family, wire = nlri.parse("127.0.0.0/8")
    template = PeerConfig("", bytes(4), 65001, hold_time=9)
    driver = driver_of(0)
    driver.speaker.set_peers([], 0, [PeerRange("clients", family, wire, template, limit=1)])
    driver.start()

    def gone(*_: Any, **__: Any) -> None:
        raise OSError(errno.EINVAL, "gone")

    with connections(1) as (ours,), monkeypatch.context() as context:
        context.setattr("bgp.aio.driver.prepare", gone)
        driver._accepted([(ours, "127.0.0.9")])
    assert ours.fileno() < 0
    assert not driver.speaker.peers
    await driver.stop(None)


async def test_a_storm_of_refused_connections_costs_few_descriptors() -> None:
    """A peer, or who has its address, connects again and again: most of it is refused without a word."""
    driver = driver_of(1)
    driver.start()
    with connections(200) as ours:
        driver._accepted([(sock, "192.0.2.2") for sock in ours])
        assert sum(sock.fileno() >= 0 for sock in ours) == 65
        assert list(driver.channels("n2")) == [Direction.INCOMING]
    await driver.stop("enough")


async def test_a_storm_of_strangers_costs_nothing() -> None:
    driver = driver_of(1)
    driver.start()
    with connections(200) as ours:
        driver._accepted([(sock, "192.0.2.99") for sock in ours])
        assert all(sock.fileno() < 0 for sock in ours)
    assert driver.refused == 200
    await driver.stop(None)
