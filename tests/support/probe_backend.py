"""A backend of the tests' own: it proves that the contract carries what a speaker of routes will need.

Its service "learns" routes at run time and publishes them with several next hops on the uplinks, withdraws them,
reads what other nodes share, shares something itself, reports findings and crashes when told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends import options
from netagent.contract import Context, LeaseData, Options, Plan, ServicePort
from netagent.model import Finding, Hop, Lease, NodeRecord, Route


class ProbeOptions(msgspec.Struct, frozen=True):
    asn: int = msgspec.field(name="AS", default=64512)


class ProbeService:
    made: list[ProbeService] = []

    def __init__(self, port: ServicePort) -> None:
        self.port = port
        self.context: Context | None = None
        self.known: dict[str, Lease] = {}
        self.records: Mapping[str, NodeRecord] = {}
        self.runs = 0
        self.stopped = False
        self.crash = asyncio.Event()
        ProbeService.made.append(self)

    async def run(self) -> None:
        self.runs += 1
        assert self.context is not None
        await self.port.share({"probe.as": str(self.context.options.asn)})
        await self.crash.wait()
        self.crash.clear()
        raise RuntimeError("told to crash")

    def learn(self, dst: str, *gateways: str) -> None:
        self.port.publish({f"best/{dst}": [Route(dst, tuple(Hop("eth0", gateway) for gateway in gateways))]})
        self.port.report([Finding(code="probe-learnt", subject=dst, message=f"{dst} is learnt", severity="info")])

    def withdraw(self, dst: str) -> None:
        self.port.publish({f"best/{dst}": []})
        self.port.report([])

    def configure(self, context: Context) -> None:
        self.context = context

    def peers(self, changed: Mapping[str, Lease], removed: Iterable[str], *, whole: bool) -> None:
        if whole:
            self.known.clear()
        self.known.update(changed)
        for key in removed:
            self.known.pop(key, None)

    def nodes(self, nodes: Mapping[str, NodeRecord]) -> None:
        self.records = dict(nodes)

    async def settled(self) -> None:
        return

    async def stop(self) -> None:
        self.stopped = True

    def status(self) -> Mapping[str, Any]:
        return {"state": "running", "runs": self.runs}


class Probe:
    name = "probe"

    def options(self, raw: Mapping[str, Any]) -> Options:
        return Options(*options.parse(self.name, ProbeOptions, raw))

    def ports(self, options: ProbeOptions) -> tuple[int, ...]:
        return (179,)

    def direct(self, options: ProbeOptions) -> bool:
        return True

    def mtu(self, context: Context) -> int:
        return context.node.mtu

    def lease(self, context: Context) -> LeaseData:
        return LeaseData("probe", {"AS": context.options.asn})

    def base(self, context: Context) -> Plan:
        return Plan()

    def peer(self, context: Context, lease: Lease) -> Plan:
        return Plan()

    def service(self, context: Context, port: ServicePort) -> ProbeService:
        return ProbeService(port)

    async def dismantle(self, run_dir: Path) -> None:
        return
