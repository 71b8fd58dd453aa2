"""Real etcd processes for tests: one member or a cluster, on loopback or inside a network namespace.

    async with etcd() as server:
        store = EtcdStore([server.endpoint])
        await server.ctl("put", "k", "v")
        server.pause(); server.resume()          # SIGSTOP, SIGCONT
        await server.kill(); await server.start()  # SIGKILL, then the same port and data directory
        await server.wipe()                      # the data directory is gone, the port the same

Rules: data lies in a temporary directory; a process dies with its context and with the test run (parent-death
signal); ports come from below the ephemeral range, so that no outgoing connection takes a port between kill and
start. etcd is $ETCD, .tools/bin/etcd, or in PATH; where there is none the test is skipped, with CI=true it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certs import Authority, Pair

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 30.0
COMMAND_TIMEOUT = 20.0
_system = random.SystemRandom()


class ServerTLS(NamedTuple):
    """TLS of the client port. `client_cert`: only clients with a certificate of the CA are let in."""

    authority: Authority
    pair: Pair
    client_cert: bool = False


def binary(name: str = "etcd") -> str:
    """Path of etcd or etcdctl; skips the test (fails it with CI=true) where there is none."""
    given = os.environ.get("ETCD", "")
    places = [
        os.environ.get(name.upper(), ""),
        str(Path(given).with_name(name)) if given else "",
        str(ROOT / ".tools" / "bin" / name),
        shutil.which(name) or "",
    ]
    for place in places:
        if place and os.access(place, os.X_OK):
            return place
    reason = f"no {name}: run `make tools`, or set {name.upper()}=/path/to/{name}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, outside the ephemeral range (32768 and up)."""
    for _ in range(200):
        # Not the seeded generator: hypothesis seeds it alike in all workers, and they would take the same ports.
        port = _system.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 20000 and 32000")


class Etcd:
    """One etcd member. Use `etcd()` or `etcd_cluster()`, which start it and see to its end."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "m0",
        host: str = "127.0.0.1",
        port: int = 0,
        peer_port: int = 0,
        netns: str = "",
        tls: ServerTLS | None = None,
        token_ttl: int = 0,
        heartbeat: int = 10,
        extra: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.host = host
        self.port = port or free_port()
        self.peer_port = peer_port or free_port()
        self.netns = netns
        self.tls = tls
        self.data = directory / name
        authority = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.endpoint = f"{'https' if tls else 'http'}://{authority}"
        self.peer_url = f"http://127.0.0.1:{self.peer_port}"
        self.initial_cluster = f"{name}={self.peer_url}"
        self.log: deque[str] = deque(maxlen=400)
        self._token_ttl = token_ttl
        self._heartbeat = heartbeat
        self._extra = tuple(extra)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()

    # ------------------------------------------------------------------------------ life of the process

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, *, wait: bool = True) -> None:
        """Start on the same port and data directory; returns when clients are served (needs a quorum)."""
        assert self._process is None, "already running"
        self._serving.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._enter(),
            *self._command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        self._reader = asyncio.create_task(self._read(self._process))
        if wait:
            await self.serving()

    async def serving(self) -> None:
        """Until this member serves clients."""
        try:
            await asyncio.wait_for(self._serving.wait(), START_TIMEOUT)
        except TimeoutError:
            raise AssertionError(f"etcd {self.name} does not serve:\n" + "\n".join(self.log)) from None
        if self._reader is None or self._reader.done():
            raise AssertionError(f"etcd {self.name} ended:\n" + "\n".join(self.log))

    async def kill(self) -> None:
        """SIGKILL, as a crash. Harmless when it does not run."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, as an orderly stop."""
        await self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: sockets stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    async def wipe(self) -> None:
        """A new, empty etcd on the same port: revisions start at 1 again."""
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.data, ignore_errors=True)
        await self.start()

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
            os.kill(process.pid, number)
        try:
            await asyncio.wait_for(process.wait(), COMMAND_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader

    def _enter(self) -> tuple[str, ...]:
        inside: tuple[str, ...] = ()
        if self.netns:
            by_path = "/" in self.netns
            inside = ("nsenter", f"--net={self.netns}", "--") if by_path else ("ip", "netns", "exec", self.netns)
        return ("setpriv", "--pdeathsig", "KILL", *inside)

    def _command(self) -> list[str]:
        beat = self._heartbeat
        command = [
            binary(),
            f"--name={self.name}",
            f"--data-dir={self.data}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.initial_cluster}",
            f"--heartbeat-interval={beat}",
            f"--election-timeout={beat * 10}",
            "--logger=zap",
            "--unsafe-no-fsync",  # data need not outlive the machine
            "--bcrypt-cost=4",  # the cheapest password hash
        ]
        if self._token_ttl:
            command.append(f"--auth-token-ttl={self._token_ttl}")
        if self.tls:
            command += [
                f"--cert-file={self.tls.pair.cert}",
                f"--key-file={self.tls.pair.key}",
            ]
            if self.tls.client_cert:  # a --trusted-ca-file alone demands client certificates as well
                command += ["--client-cert-auth", f"--trusted-ca-file={self.tls.authority.ca}"]
        return command + list(self._extra)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            self.log.append(text)
            if '"serving client traffic' in text:
                self._serving.set()
        self._serving.set()  # it has ended: let nobody wait for it

    # --------------------------------------------------------------------------------------- etcdctl

    async def ctl(self, *args: str, user: str = "", endpoints: Sequence[str] = ()) -> str:
        """Run etcdctl against this member (as `user`, "name:password") and return what it printed."""
        command = [*self._enter(), binary("etcdctl"), f"--endpoints={','.join(endpoints) or self.endpoint}"]
        if user:
            command.append(f"--user={user}")
        if self.tls:
            command.append(f"--cacert={self.tls.authority.ca}")
            if self.tls.client_cert:
                pair = self.tls.authority.directory
                if not (pair / "etcdctl.pem").exists():
                    self.tls.authority.issue("etcdctl")
                command += [f"--cert={pair / 'etcdctl.pem'}", f"--key={pair / 'etcdctl-key.pem'}"]
        process = await asyncio.create_subprocess_exec(
            *command,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise AssertionError(f"etcdctl {' '.join(args)}: {err.decode().strip()}")
        return out.decode()

    async def compact(self, revision: int) -> None:
        await self.ctl("compaction", str(revision))

    async def enable_auth(
        self, root_password: str = "root", users: Mapping[str, tuple[str, Mapping[str, str]]] | None = None
    ) -> None:
        """Switch authentication on. `users` maps a name to (password, {key prefix: "read"|"write"|"readwrite"})."""
        await self.ctl("user", "add", f"root:{root_password}")
        await self.ctl("user", "grant-role", "root", "root")
        for name, (password, grants) in (users or {}).items():
            await self.ctl("user", "add", f"{name}:{password}")
            await self.ctl("role", "add", name)
            for prefix, permission in grants.items():
                await self.ctl("role", "grant-permission", "--prefix=true", name, permission, prefix)
            await self.ctl("user", "grant-role", name, name)
        await self.ctl("auth", "enable")


class Cluster:
    """Several members that form one cluster."""

    def __init__(self, members: Sequence[Etcd]) -> None:
        self.members = tuple(members)

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    async def leader(self) -> Etcd:
        """The member that leads now."""
        for member in self.members:
            fields = [f.strip() for f in (await member.ctl("endpoint", "status")).split(",")]
            if fields[4] == "true":
                return member
        raise AssertionError("no leader")


@contextlib.asynccontextmanager
async def etcd(
    *,
    netns: str = "",
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ServerTLS | None = None,
    token_ttl: int = 0,
    extra: Sequence[str] = (),
) -> AsyncIterator[Etcd]:
    """One etcd that serves clients, on `host`. `netns` is a namespace's name or path; `token_ttl` in seconds."""
    with _directory() as directory:
        server = Etcd(directory, netns=netns, host=host, port=port, tls=tls, token_ttl=token_ttl, extra=extra)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


@contextlib.asynccontextmanager
async def etcd_cluster(
    size: int = 3,
    *,
    netns: str = "",
    host: str = "127.0.0.1",
    tls: ServerTLS | None = None,
    token_ttl: int = 0,
    extra: Sequence[str] = (),
) -> AsyncIterator[Cluster]:
    """A cluster of `size` members in one namespace, all serving clients on `host`, each other on its loopback."""
    with _directory() as directory:
        members = [
            Etcd(
                directory,
                name=f"m{i}",
                netns=netns,
                host=host,
                tls=tls,
                token_ttl=token_ttl,
                heartbeat=50,
                extra=extra,
            )
            for i in range(size)
        ]
        for member in members:
            member.initial_cluster = ",".join(f"{m.name}={m.peer_url}" for m in members)
        try:
            for member in members:
                await member.start(wait=False)
            for member in members:
                await member.serving()
            yield Cluster(members)
        finally:
            for member in members:
                await member.kill()


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="na-etcd-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
