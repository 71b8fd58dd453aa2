"""The one host of the scale benchmark: its namespace, an etcd with leases of foreign nodes, and an agent or flanneld.

Rule: the host is alone. Its uplink ends in a veth that answers nothing, and whoever the leases belong to exists
only in etcd, so that what is measured is the control plane's work and no traffic.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from netagent.api.client import Client
from netagent.lab.space import environment
from netagent.store.base import Put
from netagent.store.etcd import EtcdStore
from tests.bench.kernelview import ip
from tests.support.etcd import Etcd, etcd

PREFIX = "/coreos.com/network"
NETWORK = "10.0.0.0/9"
INSIDE = "NETAGENT_BENCH_INSIDE"
CHUNK = 128  # etcd's default limit of operations in a transaction
LOCAL = "192.168.0.1"


def inside() -> bool:
    return bool(os.environ.get(INSIDE))


def run_inside(module: str, *argv: str) -> int:
    """Run a module again in a network namespace of its own; its exit code."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    command = [*unshare, sys.executable, "-m", module, *argv]
    return subprocess.run(command, env={**environment(), INSIDE: "1"}, check=False).returncode


def wire() -> None:
    """Loopback, and an uplink: one end of a veth pair, whose other end is only there for the carrier."""
    ip("link", "set", "lo", "up")
    ip(batch="link add eth0 type veth peer name wire0\nlink set wire0 up\nlink set eth0 up\n")
    ip("address", "add", f"{LOCAL}/16", "dev", "eth0")
    ip("route", "add", "default", "via", "192.168.255.254", "proto", "static")


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


def chunks(numbers: range, backend: str) -> list[list[Put]]:
    """Leases as transactions, as full as etcd takes them."""
    return [
        [Put(*record(number, backend)) for number in numbers[at : at + CHUNK]] for at in range(0, len(numbers), CHUNK)
    ]


@asynccontextmanager
async def cluster(backend: str, leases: int) -> AsyncIterator[tuple[Etcd, EtcdStore]]:
    """An etcd with the network's configuration and so many foreign leases."""
    async with etcd() as server:
        store = EtcdStore([server.endpoint])
        # our own subnet comes from above the foreign ones
        config = {"Network": NETWORK, "SubnetLen": 24, "SubnetMin": "10.100.0.0", "Backend": {"Type": backend}}
        await store.put(f"{PREFIX}/config", json.dumps(config).encode())
        for part in chunks(range(leases), backend):
            await store.txn((), part)
        try:
            yield server, store
        finally:
            await store.close()


class Daemon:
    """What is measured: one process in this namespace, with a directory of its own and its log there."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    @property
    def env(self) -> Path:
        return self.directory / "run" / "subnet.env"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        raise NotImplementedError

    def clear(self) -> None:
        """Remove what it left in the kernel."""
        raise NotImplementedError

    def start(self) -> None:
        self.env.parent.mkdir(exist_ok=True)
        self.env.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.started = time.monotonic()
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        self.process.wait(20)
        self.process = None
        self.clear()

    def until(self, what: str, done: Callable[[], bool], timeout: float, pause: float = 0.01) -> float:
        """time.monotonic() when `done` was first true. TimeoutError with the end of the log."""
        deadline = time.monotonic() + timeout
        while not done():
            ended = self.process is not None and self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                last = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
                why = "it ended" if ended else f"not within {timeout:g} s"
                raise TimeoutError(f"{what}: {why}. The end of its log:\n{last}")
            time.sleep(pause)
        return time.monotonic()


class Agent(Daemon):
    """`netagent run`."""

    def _directories(self) -> list[str]:
        directories = ["--state-dir", str(self.directory / "state"), "--run-dir", str(self.directory / "run")]
        return [*directories, "--config", os.devnull]

    def command(self) -> list[str]:
        argv = [sys.executable, "-m", "netagent", "run", *self._directories(), "--node-name", "bench"]
        return [*argv, "--etcd-endpoints", self.endpoint, "--subnet-file", str(self.env), "--ip-masq"]

    def clear(self) -> None:
        argv = [sys.executable, "-m", "netagent", "cleanup", "--yes", *self._directories()]
        subprocess.run(argv, check=True, capture_output=True)
        shutil.rmtree(self.directory / "state", ignore_errors=True)

    def answers(self) -> bool:
        return (self.directory / "run" / "netagent.sock").exists()

    def ask(self) -> None:
        """Status and metrics, once, over the socket: what answers them is loaded from then on."""
        client = Client(self.directory / "run" / "netagent.sock")
        client.status(all_peers=True)
        client.request("GET", "/metrics")


class Flanneld(Daemon):
    """A flanneld of the user's."""

    def __init__(self, directory: Path, endpoint: str, program: str) -> None:
        super().__init__(directory, endpoint)
        self.program = program

    def command(self) -> list[str]:
        argv = [self.program, f"--etcd-endpoints={self.endpoint}", f"--etcd-prefix={PREFIX}", "--iface=eth0"]
        return [*argv, f"--subnet-file={self.env}", "--ip-masq"]

    def clear(self) -> None:
        subprocess.run(["ip", "link", "delete", "flannel.1"], check=False, capture_output=True)
        ip("route", "flush", "proto", "boot")
        subprocess.run(["nft", "flush", "ruleset"], check=True)  # its iptables chains
