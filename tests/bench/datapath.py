"""The data path of each backend, container to container, beside direct routing and kernel VXLAN made by hand.

    python -m tests.bench datapath [--rounds 5] [--seconds 2] [--backends host-gw vxlan udp] [--measures tcp1 latency]
    python -m tests.bench udp           one TCP stream over udp, seven rounds; exit status 1 below the bar

One lab with two hosts, real agents and a real etcd; the paths made by hand lie between the same two hosts. A round
takes every path once, one after the other, so that whatever else the machine does meets all of them; the agents
change their backend as they run. A ratio is that of a path's figure to kernel VXLAN's in the same round, and what is
printed is the median of the rounds. veth and VXLAN keep the kernel's default offloads, which is asserted: TCP then
crosses the wire in super-packets of 64 KiB, which flatters everything that stays in the kernel. With FLANNELD=/path
flanneld's backends are measured in the same rounds, on two hosts each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from netagent.lab.lab import Lab
from netagent.lab.node import Node
from netagent.lab.space import LabError, find_program
from netagent.lab.wiring import container
from tests.bench import byhand
from tests.bench.report import NOT_GIVEN, flanneld, progress, table
from tests.bench.traffic import MEASURES, End, Load

BACKENDS = ("host-gw", "vxlan", "udp")
DIRECT = "direct routing, by hand"
PEER = "kernel VXLAN, by hand"
BAR = 0.04  # the least that one TCP stream over udp must reach
FLANNEL_TIMEOUT = 30.0

Figures = dict[str, list[float]]  # of one path in one round, by measure


class Path(NamedTuple):
    name: str
    source: End
    sink: End
    prepare: Callable[[], Awaitable[None]]


async def nothing() -> None:
    """What prepares a path that is always there."""


def switch(lab: Lab, backend: str) -> Callable[[], Awaitable[None]]:
    """Has the running agents change to a backend, and the containers follow its MTU."""

    async def prepare() -> None:
        if lab.topology.backend != backend:
            await lab.set_backend(backend)
        await lab.ready(backend=backend)
        await byhand.assert_default_offloads(lab)

    return prepare


def containers(lab: Lab) -> tuple[End, End]:
    first, second = (End(lab, container(name), lab[name].container_ip()) for name in ("h1", "h2"))
    return first, second


async def lay(stack: contextlib.AsyncExitStack, backends: Sequence[str]) -> list[Path]:
    """Make the labs, with every path laid."""
    lab = await stack.enter_async_context(Lab(nodes=2, backend=backends[0], progress=progress))
    await lab.ready(backend=backends[0])
    paths = [
        Path(DIRECT, *await byhand.lay(lab, byhand.ROUTING), nothing),
        Path(PEER, *await byhand.lay(lab, byhand.TUNNEL), nothing),
    ]
    await byhand.assert_default_offloads(lab)
    paths += [Path(backend, *containers(lab), switch(lab, backend)) for backend in backends]
    if program := flanneld():
        paths += [await flannel_path(stack, program, backend) for backend in backends]
    return paths


async def flannel_path(stack: contextlib.AsyncExitStack, program: str, backend: str) -> Path:
    """Two hosts with flanneld on them."""

    def command(node: Node) -> list[str]:
        etcd = node.lab.etcd
        options = [f"--etcd-endpoints={etcd.endpoint}", f"--etcd-prefix={etcd.prefix}", "--iface=eth0", "--ip-masq"]
        return [program, *options, f"--subnet-file={node.subnet_file}"]

    lab = await stack.enter_async_context(Lab(nodes=2, backend=backend, agent=command, progress=progress))
    await lab.leased()
    await lab.attach()
    for node in lab.nodes.values():  # flanneld leaves forwarding to the container engine
        await node.exec("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    async def look() -> str:
        return ", ".join(f"{cell.source} to {cell.target}" for cell in (await lab.ping()).failed)

    await lab.until(look, "flanneld's containers reach each other", FLANNEL_TIMEOUT)
    return Path(f"flanneld {backend}", *containers(lab), nothing)


async def run(backends: Sequence[str], measures: Sequence[str], rounds: int, load: Load) -> dict[str, list[Figures]]:
    """The figures of every path, round by round."""
    found: dict[str, list[Figures]] = {}
    async with contextlib.AsyncExitStack() as stack:
        paths = await lay(stack, backends)
        for number in range(1, rounds + 1):
            for path in paths:
                progress(f"round {number} of {rounds}: {path.name}")
                await path.prepare()
                figures = {name: await MEASURES[name].take(path.source, path.sink, load) for name in measures}
                found.setdefault(path.name, []).append(figures)
    return found


def ratio(found: Mapping[str, list[Figures]], path: str, measure: str, index: int = 0) -> float:
    """Median of a path's figure in relation to kernel VXLAN's of the same round."""
    pairs = zip(found[path], found[PEER], strict=True)
    return statistics.median(own[measure][index] / peer[measure][index] for own, peer in pairs)


def report(found: Mapping[str, list[Figures]], measures: Sequence[str], rounds: int) -> str:
    columns = ["path", *(heading for name in measures for heading, _ in MEASURES[name].figures)]
    rows = []
    for path in found:
        row = [path]
        for name in measures:
            for index, (_, form) in enumerate(MEASURES[name].figures):
                median = statistics.median(figures[name][index] for figures in found[path])
                row.append(f"{median:{form}} ({ratio(found, path, name, index):.2f})")
        rows.append(row)
    if not flanneld():
        rows.append(["flanneld", *[NOT_GIVEN] * (len(columns) - 1)])
    above = f"Medians of {rounds} interleaved rounds; in brackets the ratio to {PEER}, median of the rounds' own."
    return f"{above}\n\n{table(columns, rows)}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.bench datapath", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each stream (whole ones)")
    parser.add_argument("--pings", type=int, default=2000, help="round trips of each measurement of latency")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--bar", type=float, help="exit status 1 if udp's ratio of one TCP stream is below this")
    args = parser.parse_args(argv)
    if args.bar is not None and not ("udp" in args.backends and "tcp1" in args.measures):
        parser.error("--bar is udp's, with one TCP stream: both must be measured")
    try:
        for tool in ("iperf3", "ethtool", "bridge"):
            find_program(tool)
        found = asyncio.run(run(args.backends, args.measures, args.rounds, Load(args.seconds, args.pings)))
    except LabError as error:
        sys.exit(f"datapath: {error}")
    print(report(found, args.measures, args.rounds), flush=True)
    if args.bar is None:
        return 0
    reached = ratio(found, "udp", "tcp1")
    print(f"\nudp, one TCP stream: {reached:.3f} of kernel VXLAN (bar {args.bar})", flush=True)
    return 0 if reached >= args.bar else 1


def main_udp(argv: Sequence[str] | None = None) -> int:
    """The bar of the udp backend."""
    given = list(sys.argv[1:] if argv is None else argv)
    return main(["--backends", "udp", "--measures", "tcp1", "--rounds", "7", "--bar", f"{BAR}", *given])


if __name__ == "__main__":
    sys.exit(main())
