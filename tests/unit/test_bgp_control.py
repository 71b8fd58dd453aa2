"""The control socket and the commands that ask it: clients that stall or talk nonsense, and what a command says."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bgp import views
from bgp.aio import SetupError
from bgp.daemon import cli, control
from bgp.daemon.control import ControlSocket
from bgp.message import nlri
from bgp.peer import SpeakerConfig
from bgp.speaker import Speaker


def answer(request: dict[str, Any]) -> Iterator[Any]:
    """A daemon that has one route, and very many of something else."""
    if request.get("command") == "many":
        yield from ({"item": "x" * 1000} for _ in range(1_000_000))
        return
    speaker = Speaker(SpeakerConfig(65001, bytes((192, 0, 2, 1))), lambda: 0.5)
    speaker.originate(*nlri.parse("10.5.0.0/16"))
    speaker.take(0)
    yield from views.routes(speaker, str(request.get("prefix", "")))


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[ControlSocket]:
    served = ControlSocket(str(path), answer)
    await served.open()
    try:
        yield served
    finally:
        await served.close()


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        ("10.5.0.0/16", 0, ""),
        ("10.5.0.0/33", 2, "'10.5.0.0/33': the length must lie between 0 and 32"),
        ("2001:db8::/129", 2, "'2001:db8::/129': the length must lie between 0 and 128"),
        ("10.5.0/16", 2, "'10.5.0/16' is no prefix: write it like 10.0.0.0/8"),
        ("foo:bar", 2, "'foo:bar' is no address"),
        ("all", 2, "'all' is no address"),
    ],
)
async def test_a_prefix_that_is_none_is_a_wrong_command(
    wanted: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path / "s"):
        assert await asyncio.to_thread(cli.main, ["routes", wanted, "--control", str(tmp_path / "s")]) == code
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == bool(code)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[1]\n", b"{}\n", b"\xff\n", b"7\n"])
def test_who_asks_something_else_is_told_so(said: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()

        def reply() -> None:
            with other.accept()[0] as sock:
                sock.recv(1000)
                sock.sendall(said)

        thread = threading.Thread(target=reply)
        thread.start()
        assert cli.main(["peers", "--control", path]) == 1
        thread.join()
    assert "is no BGP daemon" in capsys.readouterr().err


def test_ctrl_c_ends_a_command_without_a_word(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(path)
        slow.listen()
        argv = [sys.executable, "-m", "bgp", "peers", "--control", path]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            sock = slow.accept()[0]
            assert sock.recv(1000)  # it has asked, and waits
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=60)
            sock.close()
    assert (process.returncode, *told) == (130, b"", b"")


async def test_a_client_that_stalls_is_cut_off_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One says nothing, one does not read what it has asked for: nothing of them is left after a while."""
    monkeypatch.setattr(control, "_PATIENCE", 0.05)
    path = tmp_path / "s"
    async with served(path) as server:
        silent = await asyncio.open_unix_connection(str(path))
        deaf_reader, deaf = await asyncio.open_unix_connection(str(path))
        deaf_reader._transport.pause_reading()  # type: ignore[attr-defined]
        deaf.write(b'{"command": "many"}\n')
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b'{"command": "routes"}\n')
            lines = [json.loads(line) for line in (await reader.read()).splitlines()]
            assert [line.get("end") for line in lines] == [None, True]
            writer.close()
        assert await silent[0].read() == b""
        async with asyncio.timeout(30):
            while server._tasks:
                await asyncio.gather(*server._tasks)
        deaf_reader._transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(30):
            while await deaf_reader.read(1 << 20):  # what had been sent, and then the end
                pass
        for writer in (silent[1], deaf):
            writer.close()


async def test_a_request_without_end_is_no_request(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"x" * 200_000)
        assert b"a request is one line of JSON" in await reader.read()
        writer.close()


async def test_a_daemon_that_is_busy_keeps_its_socket(tmp_path: Path) -> None:
    """Its queue of connections is full: it does not answer, and is there all the same."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(SetupError, match="another daemon answers there; stop it"):
            await ControlSocket(str(path), answer).open()
    assert path.is_socket()
    async with served(path):  # left behind: nobody is there any more
        pass
    assert not path.exists()


async def test_who_goes_leaves_the_socket_of_another_daemon(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with served(path):
        path.rename(tmp_path / "old")  # somebody has cleaned up
        second = ControlSocket(str(path), answer)
        await second.open()
    assert path.is_socket()
    await second.close()
    assert not path.exists()
