"""What is measured between two containers: TCP, rate of small packets, round trips. iperf3, and pingpong.py.

Rule: an end is a network namespace of a lab and an address in it; how the packets get there is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from netagent.lab.lab import Lab
from netagent.lab.space import LabError

DEADLINE = 20.0  # seconds for whatever is awaited besides the measurement itself
PINGPONG = str(Path(__file__).with_name("pingpong.py"))


class End(NamedTuple):
    lab: Lab
    netns: str
    address: str


class Load(NamedTuple):
    """How much of each measurement: seconds of a stream, round trips of a ping-pong."""

    seconds: int = 2
    pings: int = 2000


@contextlib.asynccontextmanager
async def server(end: End, *argv: str, ready: bytes, once: bool = False) -> AsyncIterator[None]:
    """Run a server at an end while the context lasts; entered when it has said that it is ready. `once`: it serves
    one client and ends by itself (to kill a process that is just ending makes asyncio lose its exit status)."""
    process = await end.lab.space.start(
        end.netns, argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        said = b""
        async with asyncio.timeout(DEADLINE):
            while ready not in said:
                if not (line := await process.stdout.readline()):
                    raise LabError(f"{argv[0]} ended: {said.decode(errors='replace')}", where=end.netns)
                said += line
        yield
        if once:
            async with asyncio.timeout(DEADLINE):
                await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def iperf(source: End, sink: End, seconds: int, *options: str) -> dict[str, Any]:
    """The `end` of iperf3's report."""
    async with server(sink, "iperf3", "-s", "-1", "--forceflush", ready=b"listening", once=True):
        argv = ["iperf3", "-c", sink.address, "-t", f"{seconds}", "-J", *options]
        result = await source.lab.space.run(source.netns, argv, timeout=seconds + DEADLINE)
    end: dict[str, Any] = json.loads(result.out)["end"]
    return end


async def tcp(source: End, sink: End, load: Load, streams: int) -> list[float]:
    """Gbit/s of so many streams together, as the receiver counts."""
    end = await iperf(source, sink, load.seconds, "-P", f"{streams}")
    return [float(end["sum_received"]["bits_per_second"]) / 1e9]


async def packets(source: End, sink: End, load: Load) -> list[float]:
    """Thousands of UDP datagrams of 64 bytes a second that arrive, from a sender as fast as it can."""
    end = await iperf(source, sink, load.seconds, "-u", "-b", "0", "-l", "64")
    total = end["sum"]
    return [(total["packets"] - total["lost_packets"]) / total["seconds"] / 1000]


async def latency(source: End, sink: End, load: Load) -> list[float]:
    """Median and 99th percentile of UDP round trips, microseconds."""
    async with server(sink, sys.executable, PINGPONG, "serve", sink.address, ready=b"ready"):
        argv = [sys.executable, PINGPONG, "ask", sink.address, f"{load.pings}"]
        result = await source.lab.space.run(source.netns, argv, timeout=DEADLINE + load.pings * 0.01)
    answer = json.loads(result.out)
    if answer["lost"] > load.pings // 100:
        raise LabError(f"{answer['lost']} of {load.pings} round trips were lost", where=source.netns)
    hundredths = statistics.quantiles(answer["times"], n=100)
    return [hundredths[49], hundredths[98]]


async def tcp1(source: End, sink: End, load: Load) -> list[float]:
    return await tcp(source, sink, load, 1)


async def tcp4(source: End, sink: End, load: Load) -> list[float]:
    return await tcp(source, sink, load, 4)


class Measure(NamedTuple):
    """A measurement: the figures that it gives, each by its heading and its format, and what takes them."""

    figures: tuple[tuple[str, str], ...]
    take: Callable[[End, End, Load], Awaitable[list[float]]]


MEASURES = {
    "tcp1": Measure((("TCP, 1 stream, Gbit/s", ".2f"),), tcp1),
    "tcp4": Measure((("TCP, 4 streams, Gbit/s", ".2f"),), tcp4),
    "packets": Measure((("64-byte UDP, 1000/s", ".0f"),), packets),
    "latency": Measure((("round trip p50, us", ".0f"), ("p99, us", ".0f")), latency),
}
