"""From a session's start to the kernel's table: the part of the BGP benchmark that looks at routes where packets do.

Rule: the whole way is measured in one stand, and the observer (kernelview.py) shares no code with what it measures.
Ours is the agent with its `bgp` backend, its reconciler and a real etcd, and the sender is a router to it; BIRD has
its kernel protocol, FRR its zebra. Each of the sender's routes has a next hop of its own on one link, as the routes
of a mesh have. Beside them stands what the kernel takes alone: the same routes from a list, written at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.bench.bgpload import ASN, HOLD_TIME, Incomplete, Load, Peer, address, cpu, next_hop, prefix, routes
from tests.bench.kernelview import RTM_NEWROUTE, Arrivals, Kernel
from tests.bench.report import table
from tests.support.bgp_ours import ROOT
from tests.support.bird import Bird
from tests.support.etcd import Etcd
from tests.support.frr import Frr
from tests.support.netns import Namespace, Namespaces, eventually
from tests.support.routers import Peering, Router, Site, directory

PATIENCE = 120.0
LOCAL = "10.98.0.1"
ROUTERS: dict[str, type[Router]] = {"bird": Bird, "frr": Frr}
"""GoBGP is not among them: it writes no routes without FRR's zebra."""
AGENT = "ours"
METRICS = 256
"""What the agent spreads its routes over (backends/bgp/ways.py)."""


class Fib(NamedTuple):
    wall: float
    """Seconds from the first octet of the session to the last route in the kernel."""
    cpu: float
    """CPU seconds of the daemon until then; with FRR those of bgpd and of zebra."""


@asynccontextmanager
async def agent(space: Namespace) -> AsyncIterator[list[int]]:
    """Our agent, whose one router is the sender, and its etcd, both in the namespace."""
    router = {"Name": "sender", "Address": address(0), "AS": ASN, "Passive": True, "HoldTime": HOLD_TIME}
    backend = {"Type": "bgp", "AS": ASN, "Routers": [router]}
    with directory() as path:
        etcd = Etcd(path, netns=space.path)
        await etcd.start()
        try:
            network = {"Network": "172.20.0.0/16", "SubnetLen": 24, "Backend": backend}
            await etcd.ctl("put", "/coreos.com/network/config", json.dumps(network))
            places = {"--state-dir": "state", "--run-dir": "run", "--subnet-file": "subnet.env"}
            argv = [word for option, name in places.items() for word in (option, str(path / name))]
            argv += ["--etcd-endpoints", etcd.endpoint, "--config", os.devnull, "--node-name", "bench"]
            with (path / "log").open("wb") as log:
                process = await space.spawn(
                    *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "netagent", "run", *argv),
                    *("--iface", "eth0"),
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
            try:
                yield [process.pid]
            finally:
                process.terminate()
                await process.wait()
        finally:
            await etcd.stop()


@asynccontextmanager
async def router(kind: type[Router], space: Namespace) -> AsyncIterator[list[int]]:
    """BIRD or FRR with the sender as its neighbour."""
    sender = Peering(address(0), ASN, ("ipv4",), passive=True, hold_time=HOLD_TIME)
    with directory() as path:
        made = kind(Site(space, path / "dut", ASN, LOCAL, "fd98::1", (sender,), options={"quiet": True, "fib": True}))
        try:
            await made.start()
            yield [process.pid for process in made.processes]
        finally:
            await made.kill()


async def fib(name: str, count: int) -> Fib:
    """One run of a daemon. Raises Incomplete when the kernel has not got all in PATIENCE seconds."""
    octets, expected = routes(count)
    with Namespaces() as net:
        there, here = net.make("dut"), net.make("load")
        net.veth(there, "eth0", here, "eth0")
        there.ip(f"address add {LOCAL}/16 dev eth0")
        there.ip("address add fd98::1/64 dev eth0")
        here.ip(f"address add {address(0)}/16 dev eth0")
        load = Load(here, LOCAL)
        try:
            async with agent(there) if name == AGENT else router(ROUTERS[name], there) as pids:
                await eventually(lambda: listens(there), f"{name} listens", timeout=PATIENCE)
                kernel, arrivals = there.call(Kernel), there.call(Arrivals)
                before, start = sum(map(cpu, pids)), time.monotonic()
                arrived = asyncio.create_task(asyncio.to_thread(arrivals.wait, {RTM_NEWROUTE: count}, PATIENCE))
                sender = Peer(0)
                load.open([sender])
                load.send(sender, octets)
                while not arrived.done():
                    load.run(0.01)
                    await asyncio.sleep(0)
                end = await arrived
                used = sum(map(cpu, pids)) - before
                if (found := kernel.routes()) != len(expected):
                    raise Incomplete(f"{name}: {found} routes in the kernel, not {len(expected)}")
        finally:
            load.close()
    return Fib(end - start, used)


def shown(count: int, installed: dict[str, Fib], alone: dict[int, float]) -> str:
    """The figures, each with its ratio to the kernel's own time; `alone` is that by the number of metrics."""
    floor = alone[METRICS]
    rows = [[name, f"{one.wall:.2f} ({one.wall / floor:.1f})", f"{one.cpu:.2f}"] for name, one in installed.items()]
    rows.append([f"the kernel alone, {METRICS} metrics", f"{floor:.2f} (1.0)", ""])
    rows.append(["the kernel alone, one metric", f"{alone[1]:.2f} ({alone[1] / floor:.1f})", ""])
    return "\n" + table(["", f"{count:,} routes into the FIB, s", "CPU s"], rows)


def listens(space: Namespace) -> bool:
    return bool(space.run("ss", "-Hltn", "sport = :179").stdout)


def alone(count: int, *, metrics: int) -> float:
    """Seconds that the kernel takes for the same routes from a list, under so many metrics one after the other."""
    with Namespaces() as net:
        there, here = net.make("dut"), net.make("load")
        net.veth(there, "eth0", here, "eth0")
        there.ip(f"address add {LOCAL}/16 dev eth0")
        ifindex = there.call(socket.if_nametoindex, "eth0")
        return there.call(_write, [_route(number, metrics, ifindex) for number in range(count)])


def _route(number: int, metrics: int, ifindex: int) -> bytes:
    subnet, _, length = prefix(number).partition("/")
    fields = [(1, socket.inet_aton(subnet)), (5, socket.inet_aton(next_hop(number)))]  # RTA_DST, RTA_GATEWAY
    fields += [(4, struct.pack("=I", ifindex))]  # RTA_OIF
    fields += [(6, struct.pack("=I", 256 + number % metrics))]  # RTA_PRIORITY
    head = struct.pack("=8BI", socket.AF_INET, int(length), 0, 0, 254, 4, 0, 1, 0)
    return head + b"".join(struct.pack("=HH", 8, kind) + value for kind, value in fields)


def _write(bodies: list[bytes]) -> float:
    """RTM_NEWROUTE with create, exclusive; 256 in a message, and only the last is acknowledged."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        start = time.monotonic()
        for at in range(0, len(bodies), 256):
            some = bodies[at : at + 256]
            netlink.send(
                b"".join(
                    struct.pack("=IHHII", 16 + len(body), RTM_NEWROUTE, 0x601 | (4 if body is some[-1] else 0), 1, 0)
                    + body
                    for body in some
                )
            )
            error = struct.unpack_from("=i", netlink.recv(1 << 16), 16)[0]
            assert not error, os.strerror(-error)
        return time.monotonic() - start
