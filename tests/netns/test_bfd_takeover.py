"""BFD's process and its next owner when things went wrong: both killed, a process that is stuck or about to end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bfd.sessions import Place
from tests.netns.test_bfd_engine import FAR, FAST, NEAR, End, both_up, ends, until
from tests.support.netns import Namespaces

pytestmark = [pytest.mark.netns]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Where the process waits, in a namespace with both addresses."""
    with Namespaces() as net:
        space = net.make("bfd")
        space.give("192.0.2.1/32", "192.0.2.2/32")
        with space.entered():
            yield str(tmp_path / "bfd")


def wanting(path: str = "", near: bytes = NEAR, far: bytes = FAR) -> End:
    end = End(path)
    end.client.outlive(60)
    end.want(Place(far, near), FAST)
    return end


def found(path: str) -> bool:
    """Whether somebody waits there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        return sock.connect_ex(path) == 0


async def test_owner_and_process_are_killed(path: str) -> None:
    """What is left is a socket with nobody behind it: the next one begins anew, and can be found itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(path)
    one, other = wanting(path), wanting(near=FAR, far=NEAR)
    async with ends(one, other):
        await both_up(one, other)
        pid = one.client.pid
        assert pid is not None
        await one.client.leave()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not found(path), "its end")
        next_one = wanting(path)
        async with ends(next_one):
            await both_up(next_one, other)
            await next_one.client.leave()
            assert found(path)


async def test_a_process_that_is_stuck(path: str) -> None:
    """It holds the port, and lets go as soon as it wakes up: without a word, and without its successor's path."""
    one, other = wanting(path), wanting(near=FAR, far=NEAR)
    async with ends(one, other):
        await both_up(one, other)
        pid = one.client.pid
        assert pid is not None
        await one.client.leave()
        os.kill(pid, signal.SIGSTOP)
        next_one = wanting(path)
        async with ends(next_one):
            await until(lambda: "another program has it" in next_one.status.problem, "the problem")
            os.kill(pid, signal.SIGCONT)
            await both_up(next_one, other)
            await next_one.client.leave()
            assert found(path)


async def test_one_that_says_goodbye_is_not_taken_over(path: str) -> None:
    """Nobody claimed its sessions in time; who comes now has a process of its own, and no second end."""
    one, other = wanting(path), wanting(near=FAR, far=NEAR)
    async with ends(one, other):
        await both_up(one, other)
        one.client.outlive(0.2)
        await one.client.leave()
        await until(lambda: not Path(path).exists(), "its goodbye")
        next_one = wanting(path)
        async with ends(next_one):
            await both_up(next_one, other)
            assert (next_one.client.restarts, next_one.status.failures) == (0, 0)
