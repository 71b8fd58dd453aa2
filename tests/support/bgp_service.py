"""Nodes of the bgp backend without an agent: each is its service, on the sockets of the namespace that it is made in.

host = Host(directory, "192.0.2.", 1)
host.start(other)
await until(lambda: host.up, "a session stands")
await host.leave()
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from backends.bgp.options import parse
from backends.bgp.service import BgpService
from netagent.contract import Context
from netagent.model import AddressFact, Facts, Finding, LinkFact, Network, Node, NodeRecord, Object

PORT = 179


class Port:
    """What an agent lends, remembered."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = self.state_dir = directory
        directory.mkdir(exist_ok=True)
        self.published: dict[str, tuple[Object, ...]] = {}
        self.log: list[tuple[str, tuple[Object, ...]]] = []  # each publication, in order
        self.findings: tuple[Finding, ...] = ()
        self.shared: dict[str, str] = {}

    def publish(self, objects: Mapping[str, Iterable[Object]]) -> None:
        for name, some in objects.items():
            self.published[name] = tuple(some)
            self.log.append((name, self.published[name]))

    def report(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)

    async def share(self, attributes: Mapping[str, str]) -> None:
        self.shared |= attributes


class Host:
    """A node: its service, and what it is told."""

    def __init__(self, directory: Path, block: str, number: int, raw: dict[str, Any] | None = None) -> None:
        self.name = f"h{number}"
        self.block = block
        self.number = number
        self.address: str | None = f"{block}{number}"
        self.port = Port(directory / self.name)
        self.raw = {"Port": PORT, "HoldTime": 9, **(raw or {})}
        self.service = BgpService(self.port)
        self.task: asyncio.Task[None] | None = None

    def context(self) -> Context:
        return Context(
            network=Network(v4="10.5.0.0/16"),
            options=parse(self.raw).value,
            node=Node(
                name=self.name,
                id=f"{self.number:032x}",
                uplink="lo",
                mtu=65536,
                public_ip=self.address,
                local_ip=self.address,
                v4=f"10.5.{self.number}.0/24",
            ),
            facts=Facts({"lo": LinkFact(name="lo", index=1)}, (AddressFact(dev="lo", ip="192.0.2.250", length=24),)),
        )

    def record(self) -> NodeRecord:
        said = {"bgp.as": "64512", "bgp.role": "mesh", **self.port.shared}
        return NodeRecord(
            name=self.name, id=f"{self.number:032x}", addresses=(f"{self.block}{self.number}",), attributes=said
        )

    def start(self, *others: Host) -> None:
        self.service.configure(self.context())
        self.service.nodes({other.name: other.record() for other in others})
        self.service.peers({}, (), whole=True)
        self.task = asyncio.create_task(self.service.run())

    async def leave(self, message: str | None = None) -> None:
        if self.task is not None:
            self.task.cancel(message)
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    @property
    def up(self) -> int:
        return int(self.service.status()["gauges"]["sessions_established"])

    def keeps(self, other: Host) -> bool:
        """Whether routes of it are kept that it has to announce anew."""
        speaker = self.service.speaker
        peer = speaker.peers.get(other.name) if speaker is not None else None
        if speaker is None or peer is None:
            return False
        return any(rib.stale(peer.source) for rib in speaker.ribs.values())

    def knows(self, other: Host) -> bool:
        speaker = self.service.speaker
        peer = speaker.peers.get(other.name) if speaker is not None else None
        if speaker is None or peer is None:
            return False
        return any(rib.received(peer.source) for rib in speaker.ribs.values())


async def until(condition: Callable[[], Any], what: str, timeout: float = 30) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
