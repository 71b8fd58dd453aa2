"""An agent made of values, for the tests of what is shown of one: API, metrics and CLI."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from netagent import api, health
from netagent.contract import Answer
from netagent.errors import UsageError
from netagent.model import Finding
from netagent.status import (
    BackendStatus,
    EtcdStatus,
    InterfaceStatus,
    LeaseStatus,
    NetworkStatus,
    NodeStatus,
    ObjectView,
    Peer,
    ReconcilerStatus,
    Status,
    Step,
    summary,
)

NOW = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC

PEERS = (
    Peer(
        node="h2",
        key="10.5.72.0-24",
        v4="10.5.72.0/24",
        endpoint="192.168.50.12",
        backend="vxlan",
        path="vxlan na-vx1",
        state="up",
        since=NOW - 300,
    ),
    Peer(
        node="h3",
        key="10.5.80.0-24",
        v4="10.5.80.0/24",
        endpoint="192.168.50.13",
        backend="vxlan",
        path="vxlan na-vx1",
        state="up",
        since=NOW - 30,
    ),
)

HEALTHY = Status(
    at=NOW,
    node=NodeStatus(name="h1", id="0123456789abcdef" * 2, version="0.1.0", pid=7, started=NOW - 3600),
    etcd=EtcdStatus(
        endpoints=("http://192.168.50.2:2379",),
        prefix="/coreos.com/network",
        connected=True,
        since=NOW - 3600,
        endpoint="http://192.168.50.2:2379",
        version="3.4.23",
        revision=42,
        last_event=NOW - 30,
        last_proof=NOW - 4,
        source="etcd",
        as_of=NOW - 4,
    ),
    network=NetworkStatus(v4="10.5.0.0/16", subnet_len=24, backend="vxlan", revision=2, valid=True),
    lease=LeaseStatus(
        state="held", key="10.5.59.0-24", v4="10.5.59.0/24", ttl=86400, expires=NOW + 80000, renewed=NOW - 6400
    ),
    interface=InterfaceStatus(
        name="eth0",
        public_ip="192.168.50.11",
        local_ip="192.168.50.11",
        mtu=1500,
        up=True,
        carrier=True,
        why="it holds the default route",
        others=("eth1 10.0.2.15",),
    ),
    backend=BackendStatus(type="vxlan", options={"VNI": 1}, mtu=1450),
    reconciler=ReconcilerStatus(
        desired={"link": 1, "route": 3},
        installed={"link": 1, "route": 3},
        passed=True,
        base=True,
        passes=2,
        last_pass=NOW - 3500,
        last_pass_seconds=0.012,
        operations=9,
    ),
    peers=summary(PEERS),
)


def altered(status: Status = HEALTHY, **parts: dict[str, Any]) -> Status:
    """The status with fields of its parts replaced: altered(etcd={"connected": False})."""
    replace = msgspec.structs.replace
    return replace(status, **{name: replace(getattr(status, name), **fields) for name, fields in parts.items()})


class View:
    """An AgentView whose answers a test sets; it notes what it was asked to change."""

    def __init__(self, status: Status = HEALTHY, peers: Sequence[Peer] = PEERS) -> None:
        self.unjudged = status
        self.every = list(peers)
        self.views: list[ObjectView] = [
            ObjectView(kind="link", text="na-vx1 vxlan mtu 1450", owner="base/vxlan", why="the tunnel"),
            ObjectView(
                kind="route",
                text="10.5.72.0/24 via 10.5.72.0 dev na-vx1 onlink",
                owner="peer h2",
                why="subnet of h2",
            ),
        ]
        self.steps: list[Step] = []
        self.asked: list[str] = []
        self.fault: Exception | None = None

    def status(self) -> Status:
        if self.fault:
            raise self.fault
        return health.judged(self.unjudged)

    def peers(self) -> Iterable[Peer]:
        return iter(self.every)

    def objects(self, kinds: Collection[str] = ()) -> Iterable[ObjectView]:
        return (view for view in self.views if not kinds or view.kind in kinds)

    def backend_view(self, backend: str, view: str, arguments: Mapping[str, str]) -> Answer:
        if (backend, view) != ("bgp", "peers"):
            raise UsageError(f"the {backend} backend has no view {view!r}", remedy="There is peers")
        return Answer(iter((dict(arguments),)), lambda values: [f"the arguments are {sorted(*values)}"])

    async def plan(self) -> Sequence[Step]:
        return self.steps

    async def resync(self) -> None:
        self.asked.append("resync")

    async def reload(self) -> Sequence[Finding]:
        self.asked.append("reload")
        return (Finding(code="reload-ignored", subject="prefix", message="prefix needs a restart"),)


@contextlib.contextmanager
def serving(view: View, run_dir: Path, *, metrics_listen: str = "") -> Iterator[Path]:
    """The view on a socket, from a thread with an event loop of its own; the socket's path."""
    started: threading.Event = threading.Event()
    handle: dict[str, Any] = {}

    async def main() -> None:
        server = await api.start(view, run_dir, metrics_listen=metrics_listen)
        handle["findings"], handle["end"], handle["loop"] = (
            server.findings,
            asyncio.Event(),
            asyncio.get_running_loop(),
        )
        started.set()
        await handle["end"].wait()
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert started.wait(20), "the API did not start"
        assert not handle["findings"], handle["findings"]
        yield run_dir / api.SOCKET_NAME
    finally:
        if "loop" in handle:
            handle["loop"].call_soon_threadsafe(handle["end"].set)
        thread.join(20)
