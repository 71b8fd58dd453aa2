"""`make lab`: the same three hosts through host-gw, vxlan and udp, under running agents; a row for each.

Rule: nothing is shown that was not measured in this run, and a backend that this machine cannot try is named, with
the reason, not left out.
"""

from __future__ import annotations

import msgspec

from netagent.lab.lab import Lab, obstacle
from netagent.lab.matrix import Matrix

BACKENDS = ("host-gw", "vxlan", "udp")
LEAVE = "vxlan"
COUNT = 5  # echo requests to each pair


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen with one backend. `why_not`: it could not be tried here."""

    backend: str
    good: int = 0
    pairs: int = 0
    median: float | None = None  # seconds
    route: str = ""
    mtu: int = 0
    why_not: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.why_not) or (self.pairs > 0 and self.good == self.pairs)


async def run(lab: Lab) -> list[Row]:
    """A lab that is up, with its agents starting, through every backend. It ends with the last of them `LEAVE`."""
    rows = []
    for backend in BACKENDS:
        if reason := obstacle(backend):
            rows.append(Row(backend=backend, why_not=reason))
            continue
        rows.append(await _row(lab, backend))
    await _row(lab, LEAVE)
    return rows


async def _row(lab: Lab, backend: str) -> Row:
    lab.progress(
        f"{backend}: writing it to etcd" if lab.topology.backend != backend else f"{backend}: agents at work"
    )
    if lab.topology.backend != backend:
        await lab.set_backend(backend)
    await lab.ready(backend=backend)
    lab.progress(f"{backend}: pinging")
    matrix: Matrix = await lab.ping(count=COUNT)
    first, second = list(lab.nodes.values())[:2]
    return Row(
        backend=backend,
        good=matrix.good,
        pairs=len(matrix.cells),
        median=matrix.median,
        route=await first.route_to(second.container_ip(lab.topology.families[0])),
        mtu=int(first.subnet_env().get("FLANNEL_MTU", 0)),
    )
