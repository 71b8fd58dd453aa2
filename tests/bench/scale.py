"""Control plane at scale: cold start, bursts and single leases with thousands of peers, beside `ip -batch`.

    python -m tests.bench scale [--leases 1000 5000] [--backends host-gw vxlan udp] [--rounds 3]

Everything runs in one network namespace made for it (onehost.py): a veth pair as uplink, a real etcd on its loopback,
one agent, and leases of foreign flannel nodes put by this program. Peers of the figures: the same kinds of objects
put in by `ip -batch` in the same run (the floor of what exec'd tools can do), and flanneld when FLANNELD=/path is
given. Wall times are honest only on a quiet machine; ratios and CPU seconds are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from netagent.lab.space import LabError, find_program
from netagent.store.base import Put
from netagent.store.etcd import EtcdStore
from tests.bench.kernelview import RTM_NEWNEIGH, RTM_NEWROUTE, Arrivals, Counts, Kernel, ip, usage
from tests.bench.onehost import (
    CHUNK,
    LOCAL,
    Agent,
    Daemon,
    Flanneld,
    chunks,
    cluster,
    inside,
    record,
    run_inside,
    wire,
)
from tests.bench.report import NOT_GIVEN, flanneld, progress, table

SINGLES = 50
GAP = 0.02  # seconds between two single leases
PATIENCE = 60.0  # seconds for anything of ours
FLANNEL_PATIENCE = 180.0  # flanneld with host-gw and 5,000 leases: 34 s and more


class Cold(NamedTuple):
    """Medians of cold starts, in seconds after process start."""

    wall: float  # until every object of every lease is in the kernel
    cpu: float  # CPU seconds until then, children included
    env: float  # until subnet.env is written


class Moving(NamedTuple):
    """With the cluster in the kernel: seconds from etcd's acknowledgement to the last object, and memory."""

    single: float  # of one lease, median
    burst: float  # of the last of so many leases in full transactions
    puts: float  # of the last of so many leases put one by one
    rss: float  # MiB at rest, before all that, with API and metrics on and asked


def expected(backend: str, peers: int, *, nexthops: bool = True) -> Counts:
    """What the kernel must hold with so many foreign leases."""
    vxlan = peers if backend == "vxlan" else 0
    return Counts(routes=peers, neighbours=vxlan, fdb=vxlan, nexthops=vxlan if nexthops else 0)


def notifications(backend: str, peers: int) -> dict[int, int]:
    """What the kernel tells of so many new leases: a neighbour and an FDB entry are both RTM_NEWNEIGH."""
    return {RTM_NEWROUTE: peers} | ({RTM_NEWNEIGH: 2 * peers} if backend == "vxlan" else {})


def complete(kernel: Kernel, want: Counts) -> Callable[[], bool]:
    def done() -> bool:
        return kernel.routes() >= want.routes and all(map(int.__ge__, kernel.counts(), want))

    return done


def elements() -> int:
    """Elements of the set of known peers in our nft table."""
    command = ["nft", "-j", "list", "set", "inet", "netagent", "peers4"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    if listing.returncode:
        return 0
    sets = [entry["set"] for entry in json.loads(listing.stdout)["nftables"] if "set" in entry]
    return len(sets[0].get("elem", ()))


def batch_floor(backend: str, peers: int) -> float:
    """Seconds that `ip -batch` and `bridge -batch` take for the same kinds of objects on a device made by hand."""
    leases = [record(number, backend) for number in range(peers)]
    subnets = [key.rsplit("/", 1)[1].removesuffix("-24") for key, _ in leases]
    values = [json.loads(value) for _, value in leases]
    neighbours = fdb = ""
    if backend == "vxlan":
        device = f"link add floor0 type vxlan id 99 dstport 9999 local {LOCAL} dev eth0 nolearning"
        ip(batch=f"{device}\nlink set floor0 up\n")
        peer = [(s, v["BackendData"]["VtepMAC"], v["PublicIP"]) for s, v in zip(subnets, values, strict=True)]
        routes = "".join(f"route add {s}/24 via {s} dev floor0 onlink\n" for s, _, _ in peer)
        neighbours = "".join(f"neigh add {s} lladdr {m} dev floor0 nud permanent\n" for s, m, _ in peer)
        fdb = "".join(f"fdb add {m} dev floor0 dst {a} self\n" for _, m, a in peer)
    elif backend == "udp":
        ip(batch="tuntap add floor0 mode tun\nlink set floor0 up\n")
        routes = "".join(f"route add {s}/24 dev floor0\n" for s in subnets)
    else:
        routes = "".join(
            f"route add {s}/24 via {v['PublicIP']} dev eth0\n" for s, v in zip(subnets, values, strict=True)
        )
    start = time.monotonic()
    ip(batch=routes)
    if neighbours:
        ip(batch=neighbours)
        ip(batch=fdb, tool="bridge")
    took = time.monotonic() - start
    if backend == "host-gw":
        ip(batch=routes.replace("route add", "route del"))
    else:
        ip("link", "del", "floor0")
    return took


@contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="netagent-bench-") as name:
        yield Path(name)


async def cold(
    make: Callable[[Path, str], Daemon], backend: str, leases: int, rounds: int, want: Counts, patience: float
) -> Cold:
    """Start it again and again in a cluster of so many foreign leases."""
    kernel = Kernel()
    found = []
    with directory() as path:
        async with cluster(backend, leases) as (server, _):
            for _ in range(rounds):
                daemon = make(path, server.endpoint)
                daemon.start()
                try:
                    end = await asyncio.to_thread(daemon.until, "cold start", complete(kernel, want), patience)
                    used = usage(daemon.pid)
                    if isinstance(daemon, Agent) and backend != "host-gw":
                        assert elements() == leases, f"{elements()} of {leases} peers in the firewall's set"
                    env = await asyncio.to_thread(daemon.until, "subnet.env", daemon.env.exists, patience, 0.001)
                    found.append(Cold(end - daemon.started, used.cpu, env - daemon.started))
                finally:
                    await asyncio.to_thread(daemon.stop)
    return Cold(*(statistics.median(column) for column in zip(*found, strict=True)))


async def moving(backend: str, leases: int, burst: int, puts: int) -> Moving:
    """One agent under changes: single leases, then `burst` in full transactions, then `puts` one by one."""
    kernel, arrivals = Kernel(), Arrivals()
    with directory() as path:
        async with cluster(backend, leases) as (server, store):
            agent = Agent(path, server.endpoint)
            agent.start()
            try:
                done = complete(kernel, expected(backend, leases))
                await asyncio.to_thread(agent.until, "start", done, PATIENCE)
                await asyncio.to_thread(agent.until, "API", agent.answers, PATIENCE)
                await asyncio.to_thread(agent.ask)
                rss = usage(agent.pid).rss
                singles = []
                for number in random.sample(range(leases, leases + 8 * SINGLES), SINGLES):
                    singles.append(await lateness(arrivals, store, backend, [[Put(*record(number, backend))]]))
                    await asyncio.sleep(GAP)
                first = leases + 8 * SINGLES
                parts = chunks(range(first, first + burst), backend)
                progress(f"{backend}, {leases} leases: {burst} more in {len(parts)} transactions")
                in_transactions = await lateness(arrivals, store, backend, parts)
                first += burst
                parts = [[Put(*record(number, backend))] for number in range(first, first + puts)]
                progress(f"{backend}, {leases} leases: {puts} more one by one")
                one_by_one = await lateness(arrivals, store, backend, parts)
                done = complete(kernel, expected(backend, leases + SINGLES + burst + puts))
                await asyncio.to_thread(agent.until, "the end", done, PATIENCE)
            finally:
                await asyncio.to_thread(agent.stop)
    return Moving(statistics.median(singles), in_transactions, one_by_one, rss)


async def lateness(arrivals: Arrivals, store: EtcdStore, backend: str, parts: Sequence[Sequence[Put]]) -> float:
    """Put new leases, a transaction each part; seconds from etcd's last acknowledgement to the last object."""
    arrivals.drain()
    want = notifications(backend, sum(map(len, parts)))
    arrived = asyncio.create_task(asyncio.to_thread(arrivals.wait, want, PATIENCE))
    for part in parts:
        await store.txn((), part)
    acknowledged = time.monotonic()
    return max(0.0, await arrived - acknowledged)


async def run(args: argparse.Namespace) -> None:
    rows = []
    for backend in args.backends:
        for leases in args.leases:
            progress(f"{backend}, {leases} leases: cold start")
            floor = batch_floor(backend, leases)
            want = expected(backend, leases)
            start = await cold(Agent, backend, leases, args.rounds, want, PATIENCE)
            row = [
                backend,
                f"{leases:,}",
                f"{start.wall:.2f}",
                f"{start.cpu:.2f}",
                f"{start.env:.2f}",
                f"{floor:.2f}",
            ]
            row += [f"{start.wall / floor:.2f}", *await flannel_cells(backend, leases, args.rounds, start)]
            change = await moving(backend, leases, args.burst, args.puts)
            row += [f"{change.burst:.3f}", f"{change.puts:.3f}", f"{change.single * 1000:.1f}", f"{change.rss:.0f}"]
            rows.append(row)
    columns = ["backend", "leases", "cold s", "CPU s", "subnet.env s", "ip -batch s", "cold to ip -batch"]
    columns += ["flanneld cold s (CPU s)", "cold to flanneld"]
    columns += [
        f"{args.burst:,} in {-(-args.burst // CHUNK)} txns s",
        f"{args.puts:,} puts s",
        "one lease ms",
        "RSS MiB",
    ]
    print(table(columns, rows), flush=True)

    rows = []
    for backend in args.backends:
        progress(f"{backend}: start in an empty cluster")
        start = await cold(Agent, backend, 0, args.rounds, expected(backend, 0), PATIENCE)
        rows.append([backend, f"{start.env:.3f}"])
    print(f"\n{table(['backend', 'start to subnet.env, empty cluster, s'], rows)}", flush=True)


async def flannel_cells(backend: str, leases: int, rounds: int, ours: Cold) -> list[str]:
    """flanneld's cold start in the same cluster, and the ratio of ours to it."""
    program = flanneld()
    if not program:
        return [NOT_GIVEN, "-"]
    if backend == "udp":
        return ["not seen (its table is its own)", "-"]
    progress(f"{backend}, {leases} leases: cold start of flanneld")

    def make(path: Path, endpoint: str) -> Daemon:
        return Flanneld(path, endpoint, program)

    want = expected(backend, leases, nexthops=False)
    theirs = await cold(make, backend, leases, rounds, want, FLANNEL_PATIENCE)
    return [f"{theirs.wall:.2f} ({theirs.cpu:.2f})", f"{ours.wall / theirs.wall:.2f}"]


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="tests.bench scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leases", nargs="+", type=int, default=[1000, 5000])
    parser.add_argument(
        "--backends", nargs="+", choices=["host-gw", "vxlan", "udp"], default=["host-gw", "vxlan", "udp"]
    )
    parser.add_argument("--rounds", type=int, default=3, help="cold starts; the figures are their medians")
    parser.add_argument("--burst", type=int, default=1024, help="leases put in full transactions")
    parser.add_argument("--puts", type=int, default=5000, help="leases put one by one")
    args = parser.parse_args(given)
    try:
        for tool in ("ip", "bridge", "nft", "etcd"):
            find_program(tool)
    except LabError as error:
        sys.exit(f"scale: {error}")
    if not inside():
        return run_inside("tests.bench.scale", *given)
    wire()
    asyncio.run(run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
