"""The API over a real unix socket: what it answers, who may change something, and what it withstands."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from netagent import api
from netagent.api import server as server_module
from netagent.api.client import Client
from netagent.api.server import Server, parse_listen
from netagent.contract import Answer
from netagent.errors import AgentUnavailable, ConfigError, KernelError, NetagentError
from netagent.health import judged
from netagent.status import Step
from tests.support.views import HEALTHY, PEERS, View, altered


@pytest.fixture
def view() -> View:
    return View()


@pytest.fixture
async def server(view: View, tmp_path: Path) -> AsyncIterator[Server]:
    running = await api.start(view, tmp_path)
    assert running.findings == ()
    yield running
    await running.stop()


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / api.SOCKET_NAME, deadline=10)


async def ask(path: Path, request: bytes) -> tuple[int, bytes]:
    """Send raw bytes; the status code and body of the answer (0: closed without one)."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def plain(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


async def get(path: Path, url: str) -> tuple[int, Any]:
    code, body = await ask(path, plain("GET", url))
    return code, json.loads(body)


# ----------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("query", ["", "?text=1"])
async def test_a_long_answer_lets_others_have_their_turn(
    server: Server, view: View, tmp_path: Path, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SLICE", 0.0)
    made = 0
    seen: set[int] = set()

    def values() -> Iterator[int]:
        nonlocal made
        for number in range(1, 101):
            made = number
            yield number

    async def other() -> None:
        while True:
            seen.add(made)
            await asyncio.sleep(0)

    monkeypatch.setattr(view, "backend_view", lambda *_: Answer(values(), lambda all_: map(str, all_)))
    task = asyncio.create_task(other())
    code, answer = await get(tmp_path / api.SOCKET_NAME, f"/v1/backend/bgp/routes{query}")
    task.cancel()
    numbers = range(1, 101)
    assert (code, answer) == (200, [str(number) for number in numbers] if query else list(numbers))
    assert len(seen) > 90


async def test_views_come_as_they_are(server: Server, view: View, client: Client) -> None:
    view.steps = [Step(verb="add", kind="route", text="10.5.72.0/24 dev na-vx1", owner="peer h2")]
    assert await asyncio.to_thread(client.status) == judged(HEALTHY)
    assert await asyncio.to_thread(client.peers) == list(PEERS)
    assert await asyncio.to_thread(client.objects) == view.views
    assert await asyncio.to_thread(client.objects, ("link",)) == view.views[:1]
    assert await asyncio.to_thread(client.routes) == view.views[1:]
    assert await asyncio.to_thread(client.plan) == view.steps


async def test_status_has_all_peers_on_request(server: Server, view: View, client: Client) -> None:
    view.every *= 100
    assert len((await asyncio.to_thread(client.status)).peers.shown) == 2
    assert len((await asyncio.to_thread(lambda: client.status(all_peers=True))).peers.shown) == 200


async def test_probes_of_a_healthy_node(server: Server, client: Client) -> None:
    code, body = await get(client.path, "/healthz")
    assert (code, body["state"]) == (200, "healthy")
    assert await get(client.path, "/readyz") == (200, {"ready": True, "reasons": []})


async def test_probes_are_honest(server: Server, view: View, client: Client) -> None:
    view.unjudged = altered(lease={"state": "claiming", "problem": "no subnet is free"})
    code, body = await get(client.path, "/healthz")
    assert (code, body["state"]) == (503, "down")
    code, body = await get(client.path, "/readyz")
    assert (code, body) == (503, {"ready": False, "reasons": ["no subnet yet (no subnet is free)"]})


async def test_an_etcd_outage_leaves_the_node_ready(server: Server, view: View, client: Client) -> None:
    view.unjudged = altered(etcd={"connected": False, "error": "connection refused"})
    assert (await get(client.path, "/readyz"))[0] == 200
    code, body = await get(client.path, "/healthz")
    assert (code, body["state"]) == (200, "degraded")


async def test_changes(server: Server, view: View, client: Client) -> None:
    assert await asyncio.to_thread(client.post, "/v1/resync") == {"done": True}
    answer = await asyncio.to_thread(client.post, "/v1/reload")
    assert answer["findings"][0]["code"] == "reload-ignored"
    assert view.asked == ["resync", "reload"]


# ---------------------------------------------------------------------------------------------- who may


async def test_only_root_and_the_agents_user_may_change(
    server: Server, view: View, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_peer_uid", lambda _request: os.geteuid() + 1000)
    for path in ("/v1/resync", "/v1/reload"):
        code, body = await ask(client.path, plain("POST", path))
        assert (code, json.loads(body)["remedy"]) == (403, "Run it as root")
    assert view.asked == []
    assert (await get(client.path, "/v1/status"))[0] == 200


async def test_the_peer_is_who_the_kernel_says(
    server: Server, view: View, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []
    real = server_module._peer_uid
    monkeypatch.setattr(server_module, "_peer_uid", lambda request: seen.append(real(request)) or seen[-1])
    await asyncio.to_thread(client.post, "/v1/resync")
    assert seen == [os.geteuid()]


async def test_the_socket_is_for_its_group(view: View, tmp_path: Path) -> None:
    server = await api.start(view, tmp_path, group=str(os.getegid()))
    found = (tmp_path / api.SOCKET_NAME).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getegid())
    await server.stop()


# ------------------------------------------------------------------------------------------------ faults


async def test_failures_say_what_to_do_and_show_no_traceback(
    server: Server, view: View, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    view.fault = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        code, body = await ask(client.path, plain("GET", "/v1/status"))
    assert code == 500
    assert json.loads(body)["error"] == "internal error"
    assert b"secret" not in body
    assert "secret detail" in caplog.text  # it is in the log instead
    view.fault = KernelError("the dump failed", where="rtnetlink", remedy="Try again")
    assert await get(client.path, "/v1/status") == (
        500,
        {"error": "rtnetlink: the dump failed", "remedy": "Try again"},
    )


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/objects?kind=fish", 400),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/resync", 405),
    ],
)
async def test_wrong_requests(server: Server, client: Client, method: str, path: str, code: int) -> None:
    found, body = await ask(client.path, plain(method, path))
    assert found == code
    answer = json.loads(body)
    assert answer["error"] and answer["remedy"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00 not http\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/resync HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: nonsense\r\n\r\n",
    ],
    ids=["tls", "header", "line", "length", "encoding"],
)
async def test_garbage_is_answered_shortly_and_harms_nobody(
    server: Server, view: View, client: Client, request_bytes: bytes
) -> None:
    code, body = await ask(client.path, request_bytes)
    assert code in (0, 400)
    assert b"Traceback" not in body
    assert len(body) < 2000
    assert view.asked == []
    assert (await get(client.path, "/readyz"))[0] == 200


async def test_a_request_has_a_deadline(
    server: Server, view: View, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.05)

    async def never() -> list[Step]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(view, "plan", never)
    code, body = await get(client.path, "/v1/plan")
    assert (code, body["error"]) == (504, "not done within 0.05 s")


async def test_silent_connections_are_closed(view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.05)
    server = await api.start(view, tmp_path)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / api.SOCKET_NAME))
    writer.write(b"GET /v1/st")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    await server.stop()


async def test_connections_are_limited(server: Server, client: Client) -> None:
    held = [await asyncio.open_unix_connection(str(client.path)) for _ in range(server_module.CONNECTIONS)]
    for reader, writer in held:  # each has been accepted once it has answered
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
    assert (await ask(client.path, b""))[0] == 0  # one too many
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    end = time.monotonic() + 10
    while (await ask_or_nothing(client.path))[0] != 200:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def ask_or_nothing(path: Path) -> tuple[int, bytes]:
    try:
        return await ask(path, plain("GET", "/readyz"))
    except ConnectionError:
        return 0, b""


# ----------------------------------------------------------------------------------------------- sockets


async def test_a_dead_agents_socket_is_replaced(view: View, tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / api.SOCKET_NAME))
    dead.close()
    server = await api.start(view, tmp_path)
    assert server.findings == ()
    assert (await get(tmp_path / api.SOCKET_NAME, "/readyz"))[0] == 200
    await server.stop()
    assert list(tmp_path.iterdir()) == []


async def test_a_living_agents_socket_is_left_alone(server: Server, view: View, tmp_path: Path) -> None:
    second = await api.start(view, tmp_path)
    assert [finding.code for finding in second.findings] == ["api-socket"]
    assert "another agent answers there" in second.findings[0].message
    await second.stop()
    assert (await get(tmp_path / api.SOCKET_NAME, "/readyz"))[0] == 200


async def test_a_successors_socket_survives_our_stop(view: View, tmp_path: Path) -> None:
    first = await api.start(view, tmp_path)
    (tmp_path / api.SOCKET_NAME).unlink()
    second = await api.start(view, tmp_path)
    await first.stop()
    assert (await get(tmp_path / api.SOCKET_NAME, "/readyz"))[0] == 200
    await second.stop()


@pytest.mark.parametrize(
    ("group", "directory", "words"),
    [
        ("no-such-group", ".", "there is no group 'no-such-group'"),
        ("", "d" * 100, "too long"),
        ("", "absent", "No such file"),
    ],
)
async def test_a_socket_that_cannot_be_opened_is_a_finding(
    view: View, tmp_path: Path, group: str, directory: str, words: str
) -> None:
    server = await api.start(view, tmp_path / directory, group=group)
    assert [(finding.code, finding.severity) for finding in server.findings] == [("api-socket", "error")]
    assert words in server.findings[0].message
    assert server.findings[0].remedy
    await server.stop()


async def test_metrics_on_tcp_have_the_probes_and_nothing_else(view: View, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = await api.start(view, tmp_path, metrics_listen=f"127.0.0.1:{port}")
    assert server.findings == ()
    for path, wanted in (("/metrics", 200), ("/readyz", 200), ("/healthz", 200), ("/v1/status", 404)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(plain("GET", path))
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert int(answer.split()[1]) == wanted
    await server.stop()


async def test_a_taken_port_is_a_finding_and_the_socket_still_serves(view: View, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = await api.start(view, tmp_path, metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        assert [finding.code for finding in server.findings] == ["metrics-listen"]
        assert (await get(tmp_path / api.SOCKET_NAME, "/readyz"))[0] == 200
        await server.stop()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("127.0.0.1:9480", ("127.0.0.1", 9480)), ("[::1]:9480", ("::1", 9480)), (":9480", ("0.0.0.0", 9480))],
)
def test_parse_listen(text: str, parsed: tuple[str, int]) -> None:
    assert parse_listen(text) == parsed


@pytest.mark.parametrize("text", ["9480", "h:", "h:x", "h:0", "h:65536", "::1:9480", "h:٣"])
def test_parse_listen_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen(text)


# ------------------------------------------------------------------------------------------------- client


def test_client_without_an_agent(tmp_path: Path) -> None:
    with pytest.raises(AgentUnavailable, match="no agent answers"):
        Client(tmp_path / "absent").status()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    with pytest.raises(AgentUnavailable, match="no agent answers"):
        Client(tmp_path / "dead").status()


def test_client_gives_up_on_an_agent_that_hangs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        with pytest.raises(AgentUnavailable, match=r"no answer within 0\.05 s"):
            Client(tmp_path / "silent", deadline=0.05).status()


async def test_client_does_not_choke_on_another_versions_answer(
    server: Server, view: View, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "objects", lambda _kinds=(): ["text instead of an object"])
    with pytest.raises(NetagentError, match="different versions"):
        await asyncio.to_thread(client.routes)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"\xff":1}', b"[" * 100_000], ids=["empty", "html", "bytes", "deep"]
)
def test_client_does_not_choke_on_what_is_no_answer(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "request", lambda *_: body)
    client = Client(Path("/run/netagent/netagent.sock"))
    for ask in (client.peers, lambda: client.post("/v1/resync")):
        with pytest.raises(NetagentError, match="not understood") as caught:
            ask()
        assert caught.value.remedy


def test_client_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(AgentUnavailable) as caught:
        Client(tmp_path / "absent").status()
    assert caught.value.exit_code == 2


def test_the_command_line_imports_no_server() -> None:
    heavy = ("aiohttp", "asyncio", "grpc", "rich", "prometheus_client")
    code = f"import sys, netagent.api.client, netagent.cli.status; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


RACE = """
import threading, time, typing
from netagent.api.client import _decoder
from netagent.status import Status

evaluate = typing._eval_type

def slowly(*args, **options):  # msgspec asks this while it gets to know a type: long enough for others to come
    time.sleep(0.001)
    return evaluate(*args, **options)

typing._eval_type = slowly
threads = [threading.Thread(target=lambda: _decoder(Status).decode(b'{"peers": {"total": 1}}')) for _ in range(4)]
for thread in threads:
    thread.start()
    time.sleep(0.01)
for thread in threads:
    thread.join()
"""


def test_two_threads_may_ask_at_once_from_the_start() -> None:
    """msgspec 0.22 ends the process with a segmentation fault where two threads meet in the first use of a type."""
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
