"""The HTTP server on the agent's unix socket, and the small one for metrics on TCP.

Rules: whoever may open the socket may read (mode 0660 and the socket's group), only root and the agent's own user
may change something (SO_PEERCRED); no request costs more than REQUEST_SECONDS, BODY_BYTES and one of CONNECTIONS; a
client sees what went wrong and what to do, never a traceback. Reading answers from memory, without a call to etcd.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from netagent import unix
from netagent.api.metrics import Exposition
from netagent.errors import ConfigError, NetagentError, UsageError
from netagent.model import KINDS, Finding
from netagent.status import AgentView

log = logging.getLogger(__name__)

CONNECTIONS = 32  # at once, on each listener
REQUEST_SECONDS = 10.0  # to handle a request
SLICE = 0.01  # seconds that a long answer is worked on before others have their turn
IDLE_SECONDS = 15.0  # until a connection's first request, and between requests
STOP_SECONDS = 1.0  # that running requests get when the agent stops
BODY_BYTES = 4096
SOCKET_MODE = 0o660
SUN_PATH = 107  # bytes of a unix socket's path (sockaddr_un, unix(7))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Both listeners. `findings` says what could not be opened."""

    def __init__(self, view: AgentView) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._view = view
        self._exposition = Exposition(view)
        self._planning = asyncio.Lock()
        self._listeners: list[_Listener] = []
        self._path: Path | None = None
        self._inode = 0

    async def start(self, path: Path, *, group: str = "", metrics_listen: str = "") -> None:
        findings: list[Finding] = []
        try:
            await self._listen_unix(path, group)
        except (NetagentError, OSError) as error:
            findings.append(_unopened(str(path), error))
        if metrics_listen:
            try:
                await self._listen_tcp(metrics_listen)
            except (NetagentError, OSError) as error:
                findings.append(_unopened(metrics_listen, error, metrics=True))
        self.findings = tuple(findings)
        for finding in findings:
            log.error("%s", finding.message)

    async def stop(self) -> None:
        for listener in self._listeners:
            await listener.stop()
        self._listeners.clear()
        # A successor may have put its own socket there meanwhile.
        if self._path is not None and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)
            self._path = None

    # ------------------------------------------------------------------------------------ listeners

    async def _listen_unix(self, path: Path, group: str) -> None:
        sock = _bind_unix(path, group)
        self._path, self._inode = path, _inode(path)
        app = web.Application(middlewares=[_guard], client_max_size=BODY_BYTES)
        app.router.add_routes(
            [
                *self._probes(),
                web.get("/v1/status", self._status),
                web.get("/v1/peers", self._peers),
                web.get("/v1/routes", self._routes),
                web.get("/v1/objects", self._objects),
                web.get("/v1/findings", self._findings),
                web.get("/v1/plan", self._plan),
                web.get("/v1/backend/{backend}/{view}", self._backend),
                web.post("/v1/resync", self._resync),
                web.post("/v1/reload", self._reload),
            ]
        )
        await self._serve(app, sock)

    async def _listen_tcp(self, address: str) -> None:
        host, port = parse_listen(address)
        info = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, target = info[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
        except OSError:
            sock.close()
            raise
        app = web.Application(middlewares=[_guard], client_max_size=BODY_BYTES)
        app.router.add_routes(self._probes())
        await self._serve(app, sock)

    async def _serve(self, app: web.Application, sock: socket.socket) -> None:
        listener = _Listener(app, sock)
        self._listeners.append(listener)
        await listener.start()

    def _probes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
        ]

    # ------------------------------------------------------------------------------------- handlers

    async def _healthz(self, _request: web.Request) -> web.Response:
        verdict = self._view.status().verdict
        body = {"state": verdict.state, "reason": verdict.reason}
        return _json(body, status=503 if verdict.state == "down" else 200)

    async def _readyz(self, _request: web.Request) -> web.Response:
        verdict = self._view.status().verdict
        return _json({"ready": verdict.ready, "reasons": verdict.blockers}, status=200 if verdict.ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._exposition.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, request: web.Request) -> web.Response:
        status = self._view.status()
        if request.query.get("peers") == "all":
            peers = msgspec.structs.replace(status.peers, shown=tuple(self._view.peers()))
            status = msgspec.structs.replace(status, peers=peers)
        return _json(status)

    async def _peers(self, _request: web.Request) -> web.Response:
        return _json_list(self._view.peers())

    async def _routes(self, _request: web.Request) -> web.Response:
        return _json_list(self._view.objects(("route",)))

    async def _objects(self, request: web.Request) -> web.Response:
        kinds = request.query.getall("kind", [])
        if unknown := sorted(set(kinds) - set(KINDS)):
            return _error(400, f"unknown kind {', '.join(unknown)}", f"Kinds: {', '.join(KINDS)}")
        return _json_list(self._view.objects(kinds))

    async def _findings(self, _request: web.Request) -> web.Response:
        return _json_list(self._view.status().findings)

    async def _backend(self, request: web.Request) -> web.Response:
        backend, view = request.match_info["backend"], request.match_info["view"]
        try:
            answer = self._view.backend_view(backend, view, dict(request.query))
            if request.query.get("text"):
                values = [value async for value in _by_turns(answer.values)]
                return _json_list(await asyncio.to_thread(lambda: list(answer.lines(values))))
            encode = msgspec.json.Encoder().encode
            return _joined([encode(value) async for value in _by_turns(answer.values)])
        except UsageError as error:
            return _error(400, error.message, error.remedy)

    async def _plan(self, _request: web.Request) -> web.Response:
        async with self._planning:  # a plan dumps the kernel: one at a time
            return _json_list(await self._view.plan())

    async def _resync(self, request: web.Request) -> web.Response:
        if refusal := _refusal(request):
            return refusal
        await self._view.resync()
        return _json({"done": True})

    async def _reload(self, request: web.Request) -> web.Response:
        if refusal := _refusal(request):
            return refusal
        return _json({"done": True, "findings": list(await self._view.reload())})


class _Listener:
    """One listening socket: limits what aiohttp does not, the number of connections and the wait for a request."""

    def __init__(self, app: web.Application, sock: socket.socket) -> None:
        self._sock = sock
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=log,
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=IDLE_SECONDS,
            shutdown_timeout=STOP_SECONDS,
        )
        self._server: asyncio.Server | None = None
        self._silent: set[asyncio.BaseProtocol] = set()  # connections that have not asked anything yet
        app.on_response_prepare.append(self._note)

    async def start(self) -> None:
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if self._sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._accept, sock=self._sock)
        else:
            self._server = await loop.create_server(self._accept, sock=self._sock)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        self._sock.close()

    async def _note(self, request: web.Request, _response: web.StreamResponse) -> None:
        self._silent.discard(request.protocol)

    def _accept(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or len(server.connections) >= CONNECTIONS:
            return _Refuse()
        handler = server()
        self._silent.add(handler)
        asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire, handler)
        return handler

    def _expire(self, handler: web.RequestHandler) -> None:
        """Close a connection that has not made its first request in time."""
        if handler in self._silent:
            self._silent.discard(handler)
            handler.force_close()


class _Refuse(asyncio.Protocol):
    """Closes at once: there are too many connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


# ----------------------------------------------------------------------------------------- what is asked and said


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A deadline on every request, and every failure as {error, remedy}."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, error.reason.lower(), _REMEDIES.get(error.status, ""))
    except NetagentError as error:
        where = f"{error.where}: " if error.where else ""
        return _error(500, where + error.message, error.remedy)
    except TimeoutError:
        return _error(504, f"not done within {REQUEST_SECONDS:g} s", "The agent is busy; see its log")
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, "internal error", "See the agent's log (`journalctl -u netagent`)")


_REMEDIES = {
    404: "GET /v1/status, /v1/peers, /v1/routes, /v1/objects, /v1/findings, /v1/plan, /v1/backend/TYPE/VIEW, "
    "/healthz, /readyz or /metrics",
    405: "Views are read with GET; /v1/resync and /v1/reload are asked for with POST",
}


def _refusal(request: web.Request) -> web.Response | None:
    """None when the peer may change something, else the answer that it gets."""
    uid = _peer_uid(request)
    if uid in (0, os.geteuid()):
        return None
    return _error(403, f"user {uid} may read but not change", "Run it as root")


def _peer_uid(request: web.Request) -> int | None:
    """Who is at the other end (SO_PEERCRED, unix(7)); None where that cannot be told."""
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    _pid, uid, _gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type="application/json")


def _json_list(values: Iterable[Any]) -> web.Response:
    """Encoded one by one, so that a lazy view of tens of thousands of objects never stands as a whole."""
    return _joined(map(msgspec.json.Encoder().encode, values))


def _joined(values: Iterable[bytes]) -> web.Response:
    """A list of values that are encoded."""
    return web.Response(body=b"[" + b",".join(values) + b"]\n", content_type="application/json")


async def _by_turns(values: Iterable[Any]) -> AsyncIterator[Any]:
    """All of them, in slices of time between which others have their turn."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + SLICE
    for value in values:
        yield value
        if loop.time() > ends:
            await asyncio.sleep(0)
            ends = loop.time() + SLICE


def _error(status: int, error: str, remedy: str) -> web.Response:
    return _json({"error": error, "remedy": remedy}, status=status)


# ------------------------------------------------------------------------------------------------ sockets


def parse_listen(text: str) -> tuple[str, int]:
    """ "127.0.0.1:9480", "[::1]:9480" or ":9480" (every address) as host and port. ConfigError otherwise."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or host.count("[") > 1:
        raise ConfigError(f"{text!r} is no HOST:PORT", where="metrics_listen", remedy="For example 127.0.0.1:9480")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{text!r} is ambiguous", where="metrics_listen", remedy=f"Write [{host}]:{port}")
    return host or "0.0.0.0", int(port)  # noqa: S104 - asked for by leaving the host out


def _bind_unix(path: Path, group: str) -> socket.socket:
    """A bound socket at `path` with its mode and group, put in place in one step over what a dead agent left."""
    if len(os.fsencode(path)) + len(".new") > SUN_PATH:
        raise ConfigError("the path is too long for a unix socket", where=str(path), remedy="Set a shorter run_dir")
    gid = -1
    if group:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise ConfigError(
                f"there is no group {group!r}", where="socket_group", remedy=f"Create it: `groupadd --system {group}`"
            ) from None
    if unix.answers(path):
        raise NetagentError(
            "another agent answers there", where=str(path), remedy="Stop it, or give this one a --run-dir of its own"
        )
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(new))
        # Nobody can connect before listen(), so mode and group are in force before the first connection.
        new.chmod(SOCKET_MODE)
        _give(new, gid, group)
        sock.listen(CONNECTIONS)
        new.rename(path)
    except (NetagentError, OSError):
        sock.close()
        new.unlink(missing_ok=True)
        raise
    return sock


def _give(path: Path, gid: int, group: str) -> None:
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        raise ConfigError(
            f"the socket may not be given to group {group}",
            where="socket_group",
            remedy=f"Put the agent into that group: SupplementaryGroups={group} in its systemd unit",
        ) from None


def _inode(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0


def _unopened(where: str, error: Exception, *, metrics: bool = False) -> Finding:
    if isinstance(error, NetagentError):
        reason, remedy = error.message, error.remedy
    else:
        reason, remedy = getattr(error, "strerror", "") or str(error), "See who has it: `ss -lpn`"
    return Finding(
        code="metrics-listen" if metrics else "api-socket",
        subject=where,
        severity="error",
        message=f"{'metrics' if metrics else 'the API'} cannot be served on {where}: {reason}",
        remedy=remedy,
    )
