"""BFD's process on real sockets: what it hears, what it outlives, who goes on with its sessions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from backends.bgp.planner import BFD_SOCKET, Bgp
from bfd import client as module
from bfd.client import Client, end_at
from bfd.orders import Status
from bfd.packet import Packet, State, decode_packet
from bfd.session import Timing
from bfd.sessions import MULTIHOP_PORT, PORT, Place, Wanted
from bfd.sockets import Receiver, SocketError, sender
from tests.support.netns import Namespaces

pytestmark = [pytest.mark.netns]

NEAR, FAR = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
NEAR6, FAR6 = bytes.fromhex("fd50" + "0" * 27 + "1"), bytes.fromhex("fd50" + "0" * 27 + "2")
FAST, SLOWER = Timing(100_000, 100_000, 5), Timing(300_000, 300_000, 5)


@pytest.fixture
def here() -> Iterator[None]:
    """A namespace with all these addresses on its loopback device."""
    with Namespaces() as net:
        space = net.make("bfd")
        space.give("192.0.2.1/32", "192.0.2.2/32", "fd50::1/128", "fd50::2/128")
        with space.entered():
            yield


class End:
    """A client and what it was told."""

    def __init__(self, path: str = "") -> None:
        self.heard: list[tuple[str, str]] = []
        self.client = Client(self._changed, path)

    def _changed(self, name: str, before: Status, now: Status) -> None:
        if before.state != now.state:
            self.heard.append((name, now.state))

    def want(self, place: Place, timing: Timing = FAST, name: str = "peer") -> None:
        self.client.set(name, Wanted(place, timing))

    @property
    def status(self) -> Status:
        return self.client.status["peer"]


@contextlib.asynccontextmanager
async def ends(*some: End) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for end in some:
            await end.client.stop()
            if end.client.path:
                await end_at(end.client.path)


async def until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    try:
        async with asyncio.timeout(timeout):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {timeout:.0f} s: {what}", pytrace=False)


async def both_up(one: End, other: End) -> None:
    def up() -> bool:
        return all(end.status.up and end.status.interval == end.status.min_tx for end in (one, other))

    await until(up, f"BFD up\n{one.client.status}\n{other.client.status}")


@pytest.mark.parametrize("multihop", [False, True], ids=["on-the-link", "over-hops"])
@pytest.mark.parametrize(("near", "far"), [(NEAR, FAR), (NEAR6, FAR6)], ids=["ipv4", "ipv6"])
async def test_up_and_an_answered_goodbye(here: None, near: bytes, far: bytes, multihop: bool) -> None:
    one, other = End(), End()
    async with ends(one, other):
        one.want(Place(far, near, multihop))
        other.want(Place(near, far, multihop), Timing(100_000, 100_000, 200))
        await both_up(one, other)
        assert one.client.health.scheduling
        began = time.monotonic()
        await one.client.stop()
        assert time.monotonic() - began < 10  # not the 20 seconds of the other's detection time
        await until(lambda: not other.status.up, "AdminDown")
        assert (other.status.remote_state, other.status.failures) == ("admin_down", 0)


async def test_the_kernel_chooses_our_address(here: None) -> None:
    """Without one of ours all are listened on, and it is told which the packets have."""
    one = End()
    async with ends(one):
        one.want(Place(FAR))
        await until(lambda: one.status.local, "an address")
        assert one.status.local.startswith("192.0.2.")


async def test_other_timers_and_another_place(here: None) -> None:
    one, other = End(), End()
    async with ends(one, other):
        one.want(Place(FAR, NEAR))
        other.want(Place(NEAR, FAR))
        await both_up(one, other)
        one.want(Place(FAR, NEAR), SLOWER)
        await until(lambda: other.status.detection == 1_500_000, "slower timers")
        one.want(Place(FAR, NEAR, multihop=True))
        other.want(Place(NEAR, FAR, multihop=True))
        await both_up(one, other)
        assert one.status.failures == 0
        one.client.unset("peer")
        assert not one.client.status
        await until(lambda: not other.status.up, "AdminDown")


# ------------------------------------------------------------------------------------------------ what is heard


def test_what_crossed_a_router_is_not_heard_on_the_link(here: None) -> None:
    """The kernel keeps it off; over several hops it is heard, with its TTL."""
    octets = Packet(State.DOWN, 7, 0, 3, 100_000, 100_000).encode()
    for near, multihop in ((NEAR, False), (NEAR6, False), (NEAR, True), (NEAR6, True)):
        receiver = Receiver(near, multihop=multihop)
        heard: list[int] = []

        def take(data: bytes, source: bytes, ttl: int, at: float, multihop: bool, heard: list[int] = heard) -> None:
            heard.append(ttl)

        try:
            for ttl in (254, 255, 1):
                with socket.socket(receiver.sock.family, socket.SOCK_DGRAM) as sock:
                    level, option = (
                        (socket.IPPROTO_IP, socket.IP_TTL)
                        if len(near) == 4
                        else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
                    )
                    sock.setsockopt(level, option, ttl)
                    sock.sendto(octets, receiver.sock.getsockname()[:2])
            receiver.drain(100, take)
        finally:
            receiver.close()
        assert heard == ([254, 255, 1] if multihop else [255])


def test_packets_come_in_order_with_the_time_at_which_they_came(here: None) -> None:
    receiver = Receiver(NEAR, multihop=False)
    out = sender(NEAR, FAR, multihop=False)
    try:
        assert 49152 <= out.getsockname()[1] <= 65535
        began = time.monotonic()
        for number in range(1, 6):
            out.send(Packet(State.DOWN, number, 0, 3, 100_000, 100_000).encode())
        sent = time.monotonic()
        deadline = sent + 1.0
        while time.monotonic() < deadline:  # we are late: they wait
            pass
        heard: list[tuple[int, bytes, float]] = []

        def take(data: bytes, source: bytes, ttl: int, at: float, multihop: bool) -> None:
            heard.append((decode_packet(data).mine, source, at))

        assert receiver.drain(3, take) < deadline  # what is left may be as old as the last that was read
        before = time.monotonic()
        assert receiver.drain(3, take) >= before
        assert [number for number, _, _ in heard] == [1, 2, 3, 4, 5]
        assert {source for _, source, _ in heard} == {FAR}
        assert all(began - 0.01 <= at < deadline for _, _, at in heard)
        assert [at for _, _, at in heard] == sorted(at for _, _, at in heard)
    finally:
        out.close()
        receiver.close()


@pytest.mark.parametrize("jump", [-1e9, -0.5, 0.5, 1e9])
def test_a_clock_that_jumps_is_not_believed(here: None, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """The kernel's stamps are of the wall clock: what they say lies between our last look and this one."""
    receiver = Receiver(NEAR, multihop=False)
    out = sender(NEAR, FAR, multihop=False)
    heard: list[float] = []

    def take(data: bytes, source: bytes, ttl: int, at: float, multihop: bool) -> None:
        heard.append(at)

    try:
        emptied = receiver.drain(9, take)
        out.send(Packet(State.DOWN, 7, 0, 3, 100_000, 100_000).encode())
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + jump)  # it was set after the packet had come
        until = receiver.drain(9, take)
    finally:
        out.close()
        receiver.close()
    assert len(heard) == 1
    assert emptied <= heard[0] <= until


def test_a_port_that_another_has(here: None) -> None:
    """All addresses beside one of ours: we have that one. The same address: it says what to do."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", PORT))
        receiver = Receiver(NEAR, multihop=False)
        receiver.close()
        with pytest.raises(SocketError, match="another program has it"):
            Receiver(bytes(4), multihop=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("192.0.2.1", MULTIHOP_PORT))
        with pytest.raises(SocketError, match=r"cannot hear BFD at UDP port 4784 of 192\.0\.2\.1"):
            Receiver(NEAR, multihop=True)
    with pytest.raises(SocketError, match="not an address of this host"):
        Receiver(bytes((203, 0, 113, 1)), multihop=False)
    with pytest.raises(SocketError, match="not an address of this host"):
        sender(FAR, bytes((203, 0, 113, 1)), multihop=False)


async def test_what_cannot_be_opened_is_told_and_tried_again(here: None) -> None:
    one, other = End(), End()
    holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    holder.bind(("192.0.2.1", PORT))
    async with ends(one, other):
        with holder:
            one.want(Place(FAR, NEAR))
            other.want(Place(NEAR, FAR))
            await until(lambda: "another program has it" in one.status.problem, "the problem")
        await both_up(one, other)
        await until(lambda: not one.status.problem, "its end")


# ---------------------------------------------------------------------------------------------- ends and beginnings


async def test_a_killed_process_has_a_successor(here: None) -> None:
    """The discriminators stay, and nobody goes down: the other side waits for longer than a start takes."""
    one, other = End(), End()
    async with ends(one, other):
        patient = Timing(300_000, 300_000, 50)
        one.want(Place(FAR, NEAR), patient)
        other.want(Place(NEAR, FAR), patient)
        await both_up(one, other)
        before, mine, pid, port = len(other.heard), one.status.mine, one.client.pid, one.status.port
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: one.client.pid not in (None, pid), "another process")
        await both_up(one, other)
        assert (one.status.mine, one.status.port) == (mine, port)  # RFC 5881 section 4
        assert 49152 <= port <= 65535
        assert (one.status.failures, len(other.heard)) == (0, before)
        assert one.client.restarts == 1


async def test_the_next_owner_finds_the_process(here: None, tmp_path: Path) -> None:
    path = str(tmp_path / "bfd")
    one, next_one, other = End(path), End(path), End()
    async with ends(one, next_one, other):
        one.client.outlive(60)
        one.want(Place(FAR, NEAR))
        other.want(Place(NEAR, FAR))
        await both_up(one, other)
        pid, mine, before = one.client.pid, one.status.mine, len(other.heard)
        await one.client.leave()
        assert other.status.remote_independent
        next_one.client.outlive(60)
        next_one.want(Place(FAR, NEAR), SLOWER)
        await until(lambda: next_one.client.status["peer"].up, "the session")
        assert (next_one.client.pid, next_one.status.mine, next_one.status.failures) == (pid, mine, 0)
        await until(lambda: other.status.detection == 1_500_000, "the next one's timers")
        assert len(other.heard) == before
    assert not Path(path).exists()


async def test_a_process_of_another_make_yields(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade: its sessions are gone on with by a new one, also those that are claimed later."""
    path = str(tmp_path / "bfd")
    one, next_one, other = End(path), End(path), End()
    patient = Timing(300_000, 300_000, 50)
    async with ends(one, next_one, other):
        one.client.outlive(60)
        one.want(Place(FAR, NEAR), patient)
        one.want(Place(bytes((192, 0, 2, 77)), NEAR), patient, "silent")
        other.want(Place(NEAR, FAR), patient)
        await both_up(one, other)
        pid, mine, before = one.client.pid, one.status.mine, len(other.heard)
        await one.client.leave()
        monkeypatch.setattr(module, "make", lambda: "another")
        next_one.client.outlive(60)
        next_one.want(Place(bytes((192, 0, 2, 77)), NEAR), patient, "silent")
        await until(lambda: next_one.client.pid not in (None, pid), "another process")
        next_one.want(Place(FAR, NEAR), patient)
        await until(lambda: next_one.status.up, "the session")
        assert (next_one.status.mine, next_one.status.failures, len(other.heard)) == (mine, 0, before)


async def test_nobody_comes_and_it_says_goodbye(here: None, tmp_path: Path) -> None:
    path = str(tmp_path / "bfd")
    one, other = End(path), End()
    async with ends(one, other):
        one.client.outlive(0.5)
        one.want(Place(FAR, NEAR))
        other.want(Place(NEAR, FAR), Timing(100_000, 100_000, 200))
        await both_up(one, other)
        await one.client.leave()
        await until(lambda: not other.status.up, "AdminDown")
        assert (other.status.remote_state, other.status.failures) == ("admin_down", 0)
        await until(lambda: not Path(path).exists(), "its end")


async def test_cleanup_ends_what_outlives_the_agent(here: None, tmp_path: Path) -> None:
    one, other = End(str(tmp_path / BFD_SOCKET)), End()
    async with ends(one, other):
        one.client.outlive(600)
        one.want(Place(FAR, NEAR))
        other.want(Place(NEAR, FAR), Timing(100_000, 100_000, 200))
        await both_up(one, other)
        await one.client.leave()
        await Bgp().dismantle(tmp_path)
        await until(lambda: not other.status.up, "AdminDown")
        assert other.status.remote_state == "admin_down"
        assert not list(tmp_path.iterdir())
    await Bgp().dismantle(tmp_path)  # nobody is there


async def test_an_owner_that_dies_is_the_end_where_nothing_is_to_outlive_it(here: None) -> None:
    one, other = End(), End()
    async with ends(one, other):
        one.want(Place(FAR, NEAR))
        other.want(Place(NEAR, FAR), Timing(100_000, 100_000, 200))
        await both_up(one, other)
        await one.client.leave()
        await until(lambda: not other.status.up, "AdminDown")
        assert (other.status.remote_state, other.status.failures) == ("admin_down", 0)


async def test_failures_are_told_even_if_it_is_up_again(here: None) -> None:
    """The owner is busy while a session fails and comes back: it is told of the failure all the same."""
    one, other = End(), End()
    async with ends(one, other):
        one.want(Place(FAR, NEAR), Timing(100_000, 100_000, 3))
        other.want(Place(NEAR, FAR), Timing(100_000, 100_000, 3))
        await both_up(one, other)
        pid = other.client.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: one.status.failures == 1, "the failure")
        os.kill(pid, signal.SIGCONT)
        await both_up(one, other)
        assert one.status.failures == 1
        assert [state for _, state in one.heard][-2:] == ["init", "up"] or one.status.up
