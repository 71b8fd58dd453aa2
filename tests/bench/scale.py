"""Control plane at scale: cold start, bursts and single leases with thousands of peers, beside `ip -batch`.

    python -m tests.bench.scale [--leases 1000 5000] [--backends host-gw vxlan udp] [--rounds 3]

Everything runs in one network namespace made for it: a veth pair as uplink, a real etcd on its loopback, one agent,
and leases of foreign flannel nodes put by this program. Peers of the figures: the same kinds of objects put in by
`ip -batch` in the same run (the floor of what exec'd tools can do), and flanneld when FLANNELD=/path is given.
Wall times are honest only on a quiet machine; ratios and CPU seconds are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from netagent.store.base import Put
from netagent.store.etcd import EtcdStore
from tests.bench.kernelview import RTM_NEWNEIGH, RTM_NEWROUTE, Arrivals, Counts, Kernel, ip, usage
from tests.support.etcd import Etcd, etcd

PREFIX = "/coreos.com/network"
NETWORK = "10.0.0.0/9"
INSIDE = "NETAGENT_BENCH_INSIDE"
CHUNK = 128  # etcd's default limit of operations in a transaction


def enter() -> None:
    """Run again inside a network namespace of its own, so that nothing here touches the machine's."""
    if os.environ.get(INSIDE):
        return
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    argv = [*unshare, sys.executable, "-m", "tests.bench.scale", *sys.argv[1:]]
    os.execvpe(argv[0], argv, {**os.environ, INSIDE: "1"})


def wire() -> None:
    """Loopback, and an uplink: one end of a veth pair, whose other end is only there for the carrier."""
    ip("link", "set", "lo", "up")
    ip(batch="link add eth0 type veth peer name wire0\nlink set wire0 up\nlink set eth0 up\n")
    ip("address", "add", "192.168.0.1/16", "dev", "eth0")
    ip("route", "add", "default", "via", "192.168.255.254")


def record(number: int, backend: str) -> tuple[str, bytes]:
    """Key and value of the foreign lease `number`, as flanneld writes them."""
    subnet = f"10.{(number >> 8) + 1}.{number & 255}.0"
    address = f"192.168.{(number + 10) >> 8}.{(number + 10) & 255}"
    value: dict[str, Any] = {"PublicIP": address, "PublicIPv6": None}
    if backend != "udp":
        value["BackendType"] = backend
    if backend == "vxlan":
        mac = f"02:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        value["BackendData"] = {"VNI": 1, "VtepMAC": mac}
    return f"{PREFIX}/subnets/{subnet}-24", json.dumps(value, separators=(",", ":")).encode()


async def fill(store: EtcdStore, numbers: range, backend: str) -> None:
    for start in range(numbers.start, numbers.stop, CHUNK):
        part = range(start, min(start + CHUNK, numbers.stop))
        await store.txn((), [Put(*record(number, backend)) for number in part])


class Agent:
    """One `netagent run` in this namespace."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    @property
    def env(self) -> Path:
        return self.directory / "run" / "subnet.env"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        directory = self.directory
        argv = [sys.executable, "-m", "netagent", "run", "--etcd-endpoints", self.endpoint, "--node-name", "bench"]
        argv += ["--state-dir", str(directory / "state"), "--run-dir", str(directory / "run")]
        argv += ["--subnet-file", str(self.env), "--ip-masq", "--config", os.devnull]
        self.env.unlink(missing_ok=True)
        with (directory / "log").open("ab") as log:
            self.started = time.monotonic()
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        self.process.wait(20)
        self.process = None
        subprocess.run(
            [
                *(sys.executable, "-m", "netagent", "cleanup", "--yes", "--config", os.devnull),
                *("--state-dir", str(self.directory / "state"), "--run-dir", str(self.directory / "run")),
            ],
            check=True,
            capture_output=True,
        )


def until(what: str, done: Callable[[], bool], timeout: float, pause: float = 0.01) -> float:
    """time.monotonic() when `done` was first true."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(pause)
    return time.monotonic()


def expected(backend: str, peers: int) -> Counts:
    """What the kernel must hold with so many foreign leases (the agent's own route of its subnet is none of ours)."""
    vxlan = peers if backend == "vxlan" else 0
    return Counts(routes=peers, neighbours=vxlan, fdb=vxlan, nexthops=vxlan)


def objects(backend: str, peers: int) -> dict[int, int]:
    """Notifications that so many new leases cause: a neighbour and an FDB entry are both RTM_NEWNEIGH."""
    return {RTM_NEWROUTE: peers} | ({RTM_NEWNEIGH: 2 * peers} if backend == "vxlan" else {})


def complete(kernel: Kernel, backend: str, peers: int) -> Callable[[], bool]:
    want = expected(backend, peers)

    def done() -> bool:
        return kernel.routes() >= want.routes and kernel.counts() >= want

    return done


def elements() -> int:
    """Elements of the set of known peers in our nft table."""
    listing = subprocess.run(
        ["nft", "-j", "list", "set", "inet", "netagent", "peers4"], capture_output=True, text=True, check=False
    )
    if listing.returncode:
        return 0
    sets = [entry["set"] for entry in json.loads(listing.stdout)["nftables"] if "set" in entry]
    return len(sets[0].get("elem", ()))


def batch_floor(backend: str, peers: int) -> float:
    """Seconds that `ip -batch` and `bridge -batch` take for the same kinds of objects on a device made by hand."""
    numbers = range(peers)
    subnets = [record(number, backend)[0].rsplit("/", 1)[1].removesuffix("-24") for number in numbers]
    addresses = [json.loads(record(number, backend)[1])["PublicIP"] for number in numbers]
    if backend == "vxlan":
        ip(
            *[
                "link",
                "add",
                "floor0",
                "type",
                "vxlan",
                "id",
                "99",
                "dstport",
                "9999",
                "local",
                "192.168.0.1",
                "dev",
                "eth0",
                "nolearning",
            ]
        )
        ip(*["link", "set", "floor0", "up"])
        routes = "".join(f"route add {s}/24 via {s} dev floor0 onlink\n" for s in subnets)
        macs = [json.loads(record(number, backend)[1])["BackendData"]["VtepMAC"] for number in numbers]
        neighbours = "".join(
            f"neigh add {s} lladdr {m} dev floor0 nud permanent\n" for s, m in zip(subnets, macs, strict=True)
        )
        fdb = "".join(f"fdb add {m} dev floor0 dst {a} self\n" for m, a in zip(macs, addresses, strict=True))
    elif backend == "udp":
        ip(*["tuntap", "add", "floor0", "mode", "tun"])
        ip(*["link", "set", "floor0", "up"])
        routes, neighbours, fdb = "".join(f"route add {s}/24 dev floor0\n" for s in subnets), "", ""
    else:
        pairs = zip(subnets, addresses, strict=True)
        routes, neighbours, fdb = "".join(f"route add {s}/24 via {a} dev eth0\n" for s, a in pairs), "", ""
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


@asynccontextmanager
async def cluster(directory: Path, backend: str, leases: int) -> AsyncIterator[tuple[Etcd, EtcdStore]]:
    async with etcd() as server:
        store = EtcdStore([server.endpoint])
        config = {"Network": NETWORK, "SubnetLen": 24, "Backend": {"Type": backend}}
        # our own subnet comes from above the foreign ones
        config["SubnetMin"] = "10.100.0.0"
        await store.put(f"{PREFIX}/config", json.dumps(config).encode())
        await fill(store, range(leases), backend)
        try:
            yield server, store
        finally:
            await store.close()


async def cold(directory: Path, backend: str, leases: int, rounds: int) -> dict[str, float]:
    """Process start until every object of every lease is in the kernel; CPU of the agent then."""
    kernel = Kernel()
    walls, cpus, envs = [], [], []
    floor = batch_floor(backend, leases)
    async with cluster(directory, backend, leases) as (server, _store):
        for _ in range(rounds):
            agent = Agent(directory, server.endpoint)
            agent.start()
            try:
                done = complete(kernel, backend, leases)
                end = await asyncio.to_thread(until, "cold start", done, 60)
                used = usage(agent.pid)
                if backend != "host-gw":
                    assert elements() == leases, f"{elements()} of {leases} peers in the firewall's set"
                env = await asyncio.to_thread(until, "subnet.env", agent.env.exists, 30, 0.001)
                walls.append(end - agent.started)
                cpus.append(used.cpu)
                envs.append(env - agent.started)
            finally:
                await asyncio.to_thread(agent.stop)
    return {
        "wall": statistics.median(walls),
        "cpu": statistics.median(cpus),
        "floor": floor,
        "ratio": statistics.median(walls) / floor,
    }


async def changes(directory: Path, backend: str, leases: int) -> dict[str, float]:
    """With the cluster in the kernel: bursts and single leases, and memory with API and metrics on."""
    kernel, arrivals = Kernel(), Arrivals()
    result: dict[str, float] = {}
    async with cluster(directory, backend, leases) as (server, store):
        agent = Agent(directory, server.endpoint)
        agent.start()
        try:
            await asyncio.to_thread(until, "start", complete(kernel, backend, leases), 60)
            await asyncio.to_thread(until, "API", (directory / "run" / "netagent.sock").exists, 30)
            await asyncio.to_thread(status, agent)

            await asyncio.to_thread(scrape, agent)
            result["rss"] = usage(agent.pid).rss

            singles = []
            numbers = random.sample(range(leases, leases + 400), 50)
            for number in numbers:
                arrivals.drain()
                await store.put(*record(number, backend))
                acknowledged = time.monotonic()
                end = await asyncio.to_thread(arrivals.wait, objects(backend, 1), 10)
                singles.append(end - acknowledged)
                await asyncio.sleep(0.02)
            result["single"] = statistics.median(singles)
            present = leases + len(numbers)

            first = leases + 1000
            total = 1024
            parts = [
                [Put(*record(number, backend)) for number in range(start, start + CHUNK)]
                for start in range(first, first + total, CHUNK)
            ]
            arrivals.drain()
            arrived = asyncio.create_task(asyncio.to_thread(arrivals.wait, objects(backend, total), 30))
            for part in parts:
                await store.txn((), part)
            acknowledged = time.monotonic()
            result["burst"] = max(0.0, await arrived - acknowledged)
            await asyncio.to_thread(until, "burst", complete(kernel, backend, present + total), 30)
            present += total

            first = leases + 3000
            rest = [record(number, backend) for number in range(first, first + 5000)]
            arrivals.drain()
            arrived = asyncio.create_task(asyncio.to_thread(arrivals.wait, objects(backend, len(rest)), 60))
            for key, value in rest:
                await store.put(key, value)
            acknowledged = time.monotonic()
            result["puts"] = max(0.0, await arrived - acknowledged)
            await asyncio.to_thread(until, "puts", complete(kernel, backend, present + len(rest)), 60)
        finally:
            await asyncio.to_thread(agent.stop)
    return result


def status(agent: Agent) -> dict[str, Any]:
    """Ask the agent over its socket: the API and the metrics are loaded from then on."""
    out = subprocess.run(
        [sys.executable, "-m", "netagent", "status", "--json", "--run-dir", str(agent.directory / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(out.stdout)  # type: ignore[no-any-return]


def scrape(agent: Agent) -> str:
    """The metrics, once."""
    from netagent.api.client import Client

    return Client(agent.directory / "run" / "netagent.sock").request("GET", "/metrics").decode()


async def empty(directory: Path, backend: str, rounds: int) -> float:
    """Process start to subnet.env in a cluster without other nodes, median."""
    times = []
    async with cluster(directory, backend, 0) as (server, _):
        for _ in range(rounds):
            agent = Agent(directory, server.endpoint)
            agent.start()
            try:
                end = await asyncio.to_thread(until, "subnet.env", agent.env.exists, 30, 0.001)
                times.append(end - agent.started)
            finally:
                await asyncio.to_thread(agent.stop)
    return statistics.median(times)


async def run(args: argparse.Namespace) -> None:
    print(
        "| backend | leases | cold s | CPU s | ip -batch s | ratio | 1,024 in 8 txns s | 5,000 puts s "
        "| one lease ms | RSS MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for backend in args.backends:
        for leases in args.leases:
            with tempfile.TemporaryDirectory(prefix="nabn-") as name:
                start = await cold(Path(name), backend, leases, args.rounds)
            with tempfile.TemporaryDirectory(prefix="nabn-") as name:
                moving = await changes(Path(name), backend, leases)
            print(
                f"| {backend} | {leases} | {start['wall']:.2f} | {start['cpu']:.2f} | {start['floor']:.2f} "
                f"| {start['ratio']:.2f} | {moving['burst']:.3f} | {moving['puts']:.3f} "
                f"| {moving['single'] * 1000:.1f} | {moving['rss']:.0f} |",
                flush=True,
            )
    print("\n| backend | start to subnet.env, empty cluster, s |\n|---|---|")
    for backend in args.backends:
        with tempfile.TemporaryDirectory(prefix="nabn-") as name:
            print(f"| {backend} | {await empty(Path(name), backend, args.rounds):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", nargs="+", type=int, default=[1000, 5000])
    parser.add_argument("--backends", nargs="+", default=["host-gw", "vxlan", "udp"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    enter()
    wire()
    asyncio.run(run(args))


if __name__ == "__main__":
    main()
