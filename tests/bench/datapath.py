"""Packets of each backend beside direct routing and kernel VXLAN made by hand, in the same run.

    python -m tests.bench.datapath [--rounds 7] [--seconds 2] [--backends host-gw vxlan udp]

A lab of two hosts for each path, all up at once and measured in turn, container to container: real agents for the
backends; for the baselines routes, and a VXLAN device, laid with `ip` and no netagent. TCP and the packet rate are
iperf3's, as the receiver counts; latency is ping's. Figures are medians of the rounds, ratios are medians of the
rounds' own ratios to kernel VXLAN. veth and VXLAN keep the kernel's default offloads, which is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from netagent.lab.lab import Lab
from netagent.lab.node import Node

BASELINE = "VXLAN by hand"
DIRECT = "routing by hand"
STANDIN = Path(__file__).resolve().parents[1] / "support" / "standin.py"
DEADLINE = 20.0


class Sample(NamedTuple):
    """One round on one path."""

    one: float  # TCP, one stream, Gbit/s
    four: float  # TCP, four streams
    packets: float  # 64-byte UDP payloads delivered a second
    p50: float  # round trip, seconds
    p99: float


@contextlib.asynccontextmanager
async def path(name: str) -> AsyncIterator[tuple[Node, Node]]:
    """Two hosts joined by that path, their containers attached."""
    if name in (DIRECT, BASELINE):
        async with Lab(nodes=2, agent=_standin) as lab:
            await lab.leased()
            if name == BASELINE:
                for node in lab.nodes.values():
                    await _lay_vxlan(node)
            await lab.attach()
            yield lab["h1"], lab["h2"]
        return
    async with Lab(nodes=2, backend=name) as lab:
        await lab.ready(backend=name)
        yield lab["h1"], lab["h2"]


def _standin(node: Node) -> list[str]:
    other = {"h1": "2", "h2": "1"}[node.name]
    return [sys.executable, str(STANDIN), node.name.removeprefix("h"), str(node.run_dir), other]


async def _lay_vxlan(node: Node) -> None:
    """What the vxlan backend lays, with `ip`, and the MTU that it leaves to containers."""
    own, other = (1, 2) if node.name == "h1" else (2, 1)
    for words in (
        f"link add vx0 type vxlan id 1 dstport 8472 local 192.168.50.1{own} dev eth0 nolearning",
        f"link set vx0 address 02:00:00:00:00:0{own} mtu 1450 up",
        f"neighbour add 10.5.{other}.0 lladdr 02:00:00:00:00:0{other} dev vx0 nud permanent",
        f"route replace 10.5.{other}.0/24 via 10.5.{other}.0 dev vx0 onlink",
    ):
        await node.ip(words)
    remote = f"192.168.50.1{other}"
    await node.exec(
        "bridge", "fdb", "add", f"02:00:00:00:00:0{other}", "dev", "vx0", "dst", remote, "self", "permanent"
    )


async def assert_default_offloads(node: Node) -> None:
    """Every veth and VXLAN device of the host has the features that the kernel gives to a new one."""
    await node.ip("link add probe0 type veth peer name probe1")
    await node.ip("link add probe2 type vxlan id 99 dstport 9999 dev probe0")
    try:
        plain = {"veth": await _features(node, "probe0"), "vxlan": await _features(node, "probe2")}
        for kind, expected in plain.items():
            for link in json.loads(await node.ip(f"-j link show type {kind}")):
                name = link["ifname"]
                if not name.startswith("probe"):
                    assert await _features(node, name) == expected, f"{node.name} {name}: offloads were changed"
    finally:
        await node.ip("link delete probe2")
        await node.ip("link delete probe0")


async def _features(node: Node, device: str) -> str:
    return (await node.exec("ethtool", "-k", device)).out.partition("\n")[2]


async def iperf(source: Node, sink: Node, seconds: float, *words: str) -> dict[str, float]:
    """One iperf3 run between the containers; the sums of its end."""
    server = await sink.start("iperf3", "-s", "-1", "--forceflush", container=True, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    async with asyncio.timeout(DEADLINE):
        while b"listening" not in await server.stdout.readline():
            pass
    command = ("iperf3", "-c", sink.container_ip(), "-t", f"{seconds:.0f}", "-J", *words)
    client = await source.exec(*command, container=True, timeout=seconds + DEADLINE)
    async with asyncio.timeout(DEADLINE):
        await server.communicate()
    end = json.loads(client.out)["end"]
    return dict(end.get("sum_received") or end["sum"]) | {
        "lost": end["sum"].get("lost_packets", 0) if "sum" in end else 0
    }


async def sample(source: Node, sink: Node, seconds: float) -> Sample:
    one = await iperf(source, sink, seconds)
    four = await iperf(source, sink, seconds, "-P", "4")
    rate = await iperf(source, sink, seconds, "-u", "-b", "0", "-l", "64")
    delivered = max(0.0, rate["packets"] - rate["lost"]) / rate["seconds"]
    pings = await source.exec("ping", "-i", "0.002", "-c", "500", sink.container_ip(), container=True)
    times = sorted(float(found) / 1000 for found in re.findall(r"time=([0-9.]+) ms", pings.out))
    return Sample(
        one["bits_per_second"] / 1e9,
        four["bits_per_second"] / 1e9,
        delivered,
        times[len(times) // 2],
        times[len(times) * 99 // 100],
    )


async def measure(backends: Sequence[str], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    names = (DIRECT, BASELINE, *backends)
    results: dict[str, list[Sample]] = {name: [] for name in names}
    async with contextlib.AsyncExitStack() as stack:
        pairs = {}
        for name in names:
            print(f"making {name}", file=sys.stderr)
            pairs[name] = await stack.enter_async_context(path(name))
            for node in pairs[name]:
                await assert_default_offloads(node)
        for number in range(rounds):
            for name, (source, sink) in pairs.items():
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                results[name].append(await sample(source, sink, seconds))
    return results


def report(results: dict[str, list[Sample]]) -> str:
    """A Markdown table: medians, and in brackets the median ratio to kernel VXLAN in the same round."""
    base = results[BASELINE]

    def cell(name: str, field: str, unit: float, form: str) -> str:
        values = [getattr(s, field) for s in results[name]]
        ratios = [value / getattr(b, field) for value, b in zip(values, base, strict=True)]
        return f"{statistics.median(values) * unit:{form}} ({statistics.median(ratios):.2f})"

    lines = [
        "| path | TCP 1 stream, Gbit/s | TCP 4 streams | 64-byte UDP, k/s | ping p50, us | p99, us |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {cell(name, 'one', 1, '.2f')} | {cell(name, 'four', 1, '.2f')} "
        f"| {cell(name, 'packets', 1e-3, '.0f')} "
        f"| {cell(name, 'p50', 1e6, '.0f')} | {cell(name, 'p99', 1e6, '.0f')} |"
        for name in results
    ]
    return "\n".join([*lines, "", "In brackets: the ratio to VXLAN by hand in the same round, median of the rounds."])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--backends", nargs="+", default=["host-gw", "vxlan", "udp"])
    options = parser.parse_args(arguments)
    for tool in ("iperf3", "ethtool", "ping"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed: run make tools")
    print(report(asyncio.run(measure(options.backends, options.rounds, options.seconds))))


if __name__ == "__main__":
    main()
