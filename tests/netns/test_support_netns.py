"""The tests' own namespaces: separate, wired, entered, and gone without a trace."""

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.support.netns import Namespaces, current_namespace

pytestmark = pytest.mark.netns


def test_two_hosts_on_a_switch_reach_each_other(namespaces: Namespaces) -> None:
    a, b = namespaces.make("a"), namespaces.make("b")
    namespaces.switch("sw", {a: "192.168.50.11/24 fd50::11/64", b: "192.168.50.12/24"})
    server = b.call(socket.create_server, ("192.168.50.12", 7))
    with server, a.call(socket.create_connection, ("192.168.50.12", 7), timeout=5) as client:
        assert client.getpeername() == ("192.168.50.12", 7)


def test_entered_is_left_again(namespaces: Namespaces) -> None:
    main_thread = Path(f"/proc/self/task/{os.getpid()}/ns/net")
    before = main_thread.stat().st_ino
    a = namespaces.make("a")
    with a.entered():
        inside = current_namespace()
        assert os.fstat(inside).st_ino == os.fstat(a.fd).st_ino != before
        os.close(inside)
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert main_thread.stat().st_ino == before


async def test_close_ends_the_processes_inside(namespaces: Namespaces) -> None:
    a = namespaces.make("a")
    process = await a.spawn(sys.executable, "-c", "print('in', flush=True); input()", stdin=-1, stdout=-1)
    assert process.stdout is not None
    await process.stdout.readline()
    assert a.processes() == [process.pid]
    a.close()
    assert await process.wait() == -9
    assert not Path(a.path).exists()


def test_a_failing_command_says_what_it_said(namespaces: Namespaces) -> None:
    with pytest.raises(AssertionError, match="nonesuch"):
        namespaces.make("a").ip("link show nonesuch")
