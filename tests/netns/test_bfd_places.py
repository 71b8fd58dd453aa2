"""BFD's process and what the host does under it: addresses that go and return, ports of others, descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bfd.packet import Packet, State
from bfd.session import Timing
from bfd.sessions import PORT, Place
from bfd.sockets import sender
from tests.netns.test_bfd_engine import FAR, FAR6, FAST, NEAR, NEAR6, End, both_up, ends, until
from tests.support.netns import Namespace, Namespaces

pytestmark = [pytest.mark.netns]

PATIENT = Timing(100_000, 100_000, 50)
MANY = bytes((198, 18))


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A namespace with all these addresses on its loopback device."""
    with Namespaces() as net:
        space = net.make("bfd")
        space.give("192.0.2.1/32", "192.0.2.2/32", "fd50::1/128", "fd50::2/128", "198.18.0.1/16")
        with space.entered():
            yield space


@contextlib.asynccontextmanager
async def standing(near: bytes = NEAR, far: bytes = FAR) -> AsyncIterator[tuple[End, End]]:
    """Two ends that have reached each other."""
    one, other = End(), End()
    async with ends(one, other):
        one.want(Place(far, near), PATIENT)
        other.want(Place(near, far), PATIENT)
        await both_up(one, other)
        yield one, other


def descriptors(end: End) -> int:
    return len(list(Path(f"/proc/{end.client.pid}/fd").iterdir()))


@pytest.mark.parametrize(
    ("near", "far", "address"),
    [(NEAR, FAR, "192.0.2.1/32"), (NEAR6, FAR6, "fd50::1/128")],
    ids=["ipv4", "ipv6"],
)
async def test_an_address_that_goes_and_returns(space: Namespace, near: bytes, far: bytes, address: str) -> None:
    async with standing(near, far) as (one, other):
        one.want(Place(far, near), FAST)
        other.want(Place(near, far), FAST)
        port = one.status.port
        space.ip(f"address del {address} dev lo")
        await until(lambda: not one.status.up, "its failure")
        if len(near) == 4:  # with IPv6 the kernel lets us send from an address that is gone
            await until(lambda: "not an address of this host" in one.status.problem, "why")
        space.give(address)
        await both_up(one, other)
        assert (one.status.problem, one.status.port) == ("", port)


async def test_a_process_that_stood_still_judges_nobody_by_it(space: Namespace) -> None:
    """Longer than its neighbours may be silent, shorter than they wait for it: what came meanwhile is read first."""
    one, others = End(), [End(), End()]
    async with ends(one, *others):
        for number, other in enumerate(others):
            far = MANY + bytes((9, number))
            one.want(Place(far, NEAR), PATIENT, f"{number}")
            other.want(Place(NEAR, far), Timing(100_000, 100_000, 3))
        await until(lambda: all(each.up and each.detection == 300_000 for each in one.client.status.values()), "up")
        await until(lambda: all(other.status.interval == 100_000 for other in others), "up there")
        assert one.client.pid is not None
        os.kill(one.client.pid, signal.SIGSTOP)
        await asyncio.sleep(1)  # the silence is the input
        os.kill(one.client.pid, signal.SIGCONT)
        received = [other.status.received for other in others]
        await until(lambda: all(o.status.received > n for o, n in zip(others, received, strict=True)), "packets")
        every = [*one.client.status.values(), *(other.status for other in others)]
        assert [(each.state, each.failures) for each in every] == [("up", 0)] * 4


async def test_one_that_cannot_hear_does_not_make_the_others_deaf(space: Namespace) -> None:
    """Another program has the port for all addresses; a session that needs it, too, takes nobody else's away."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", PORT))
        async with standing() as (one, other):
            one.want(Place(bytes((198, 18, 0, 9))), FAST, "anywhere")
            await until(lambda: "another program has it" in one.client.status["anywhere"].problem, "the problem")
            received = one.status.received
            await until(lambda: one.status.received >= received + 30, "packets")
            assert (one.status.up, other.status.up, one.status.problem) == (True, True, "")
            one.client.unset("anywhere")
            received = one.status.received
            await until(lambda: one.status.received > received, "packets")
            assert (one.status.failures, other.status.failures) == (0, 0)


async def test_from_all_addresses_to_one_and_back(space: Namespace) -> None:
    """A session that needs all addresses comes and goes beside one with an address of its own; none is lost."""
    one = End()
    async with ends(one):
        one.want(Place(FAR, NEAR), PATIENT)
        await until(lambda: one.status.local, "a socket")
        heard: list[bytes] = []
        for _ in range(3):
            one.want(Place(bytes((198, 18, 0, 9))), FAST, "anywhere")
            await until(lambda: one.client.status["anywhere"].local, "its socket")
            heard.append(_listens(one))
            one.client.unset("anywhere")
            await until(lambda: _listens(one) == NEAR, "the one address")
        assert heard == [bytes(4)] * 3


def _listens(end: End) -> bytes:
    """Where its process does."""
    inodes = {str(path.readlink()) for path in Path(f"/proc/{end.client.pid}/fd").iterdir() if path.is_symlink()}
    for line in Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in inodes and fields[1].endswith(f":{PORT:04X}"):
            return bytes.fromhex(fields[1].partition(":")[0])[::-1]
    return b""


async def test_sessions_that_come_and_go_leave_no_descriptor(space: Namespace) -> None:
    async with standing() as (one, other):
        before = descriptors(one)
        for number in range(100):
            for at in (Place(MANY + bytes((1, number))), Place(MANY + bytes((2, number)), NEAR, multihop=True)):
                one.want(at, FAST, f"{at}")
                if number % 2:
                    await until(lambda at=at: one.client.status[f"{at}"].mine, "it")
                one.client.unset(f"{at}")
        await until(lambda: descriptors(one) == before, "the descriptors of before")
        assert (one.status.failures, other.status.failures) == (0, 0)


async def test_more_sessions_than_a_shell_allows_descriptors(space: Namespace) -> None:
    """Each has a socket: what the limit may be raised to is asked for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    one = End()
    async with ends(one):
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        try:
            for number in range(200):
                one.want(Place(MANY + bytes((3, number)), NEAR), FAST, str(number))
            await until(lambda: all(each.local for each in one.client.status.values()), "all")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not [each.problem for each in one.client.status.values() if each.problem]


async def test_a_place_too_many_is_told(space: Namespace) -> None:
    """Where nothing is left to be raised, it says so, serves who has a socket, and spins for nobody."""
    one = End()
    async with ends(one):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        one.want(Place(MANY + bytes((4, 0)), NEAR), FAST, "first")
        await until(lambda: one.client.status["first"].local, "a socket")
        assert one.client.pid is not None
        resource.prlimit(one.client.pid, resource.RLIMIT_NOFILE, (20, limits[1]))
        for number in range(30):
            one.want(Place(MANY + bytes((5, number)), NEAR), FAST, str(number))
        await until(
            lambda: sum("too many open files" in each.problem.lower() for each in one.client.status.values()) > 10,
            "the problem",
        )
        spent = _spent(one)
        await asyncio.sleep(1)
        assert _spent(one) - spent < 30  # hundredths of a second
        resource.prlimit(one.client.pid, resource.RLIMIT_NOFILE, limits)
        await until(lambda: all(each.local for each in one.client.status.values()), "all")


def _spent(end: End) -> int:
    fields = Path(f"/proc/{end.client.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_an_owner_that_does_not_read_costs_nothing(space: Namespace) -> None:
    """Sessions change all the time meanwhile; the process waits, in time, and tells the last of each afterwards."""
    async with standing() as (one, other):
        for number in range(200):
            one.want(Place(MANY + bytes((6, number)), NEAR), FAST, f"{number}")
        await until(lambda: all(each.local for each in one.client.status.values()), "all")
        assert one.client.pid is not None
        spent, began = _spent(one), time.monotonic()
        for number in range(40):  # nothing is awaited: this loop reads no report
            with sender(NEAR, MANY + bytes((6, number)), multihop=False) as sock:
                sock.send(Packet(State.DOWN, 7, 0, 3, 100_000, 100_000).encode())
        while time.monotonic() < began + 2:
            time.sleep(0.01)
        assert _spent(one) - spent < 60  # hundredths of a second
        await until(lambda: one.client.status["39"].diag != "none", "what has become of the last")
        assert (one.status.failures, other.status.failures) == (0, 0)
