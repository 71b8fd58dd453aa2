"""Hosts that run the udp backend without an agent: the plan laid with `ip`, the service in a process of its own.

Rule: the service process (`python -m tests.support.udp`) is what an agent is to the engine, and no more: it can be
killed, started again, and told of leases. It takes one JSON object a line and answers with one.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends.udp import Udp
from backends.udp.service import UdpService
from netagent.contract import Context
from netagent.model import Address, Facts, Finding, Lease, Link, Network, Node, Object, Route
from tests.support.netns import Namespace, Namespaces

DEADLINE = 30.0  # seconds for whatever a test awaits here

# Captured between two flannel v0.20.2 hosts: `ping -s 24 -p a5` from 10.5.62.2 to 10.5.72.2, as it left
# 192.168.50.11, from the outer IPv4 header on (its UDP checksum is not filled in yet: offloaded on a veth).
FLANNEL = bytes.fromhex(
    "4500 0050 cd7e 4000 4011 87b6 c0a8 320b c0a8 320c 205d 205d 003c e5b5 4500 0034"
    "e9f5 4000 3e01 b8c5 0a05 3e02 0a05 4802 0800 e720 5272 0001 a3b1 046b 0000 0000"
    "7db8 0200 0000 0000 a5a5 a5a5 a5a5 a5a5"
)
FLANNEL_INNER = FLANNEL[28:]


def host_context(
    number: int, *, v4: bool = True, v6: bool = False, outer4: str = "", outer6: bool = True, **options: Any
) -> Context:
    """Host `number` of a cluster: 192.168.50.1N and fd50::1N outside, 10.5.N.0/24 and fc00:0:0:N::/64 inside.

    `outer6` False: no IPv6 address outside, IPv6 inside goes over IPv4. `outer4`: another address than that.
    """
    outer4 = outer4 or f"192.168.50.1{number}"
    has6 = v6 and outer6
    backend = Udp()
    return Context(
        network=Network(v4="10.5.0.0/16" if v4 else None, v6="fc00::/48" if v6 else None),
        options=backend.options(options).value,
        node=Node(
            name=f"h{number}",
            id=f"{number:032x}",
            uplink="eth0",
            mtu=1500,
            public_ip=None if has6 and not v4 else outer4,
            local_ip=None if has6 and not v4 else outer4,
            public_ip6=f"fd50::1{number}" if has6 else None,
            local_ip6=f"fd50::1{number}" if has6 else None,
            v4=f"10.5.{number}.0/24" if v4 else None,
            v6=f"fc00:0:0:{number}::/64" if v6 else None,
        ),
        facts=Facts(abilities=frozenset({"tun"})),
    )


def lease_of(context: Context) -> Lease:
    """The lease that such a host has in the cluster."""
    node = context.node
    key = (node.v4 or "0.0.0.0/0").replace("/", "-") + (f"&{node.v6.replace('/', '-')}" if node.v6 else "")
    return Lease(key=key, v4=node.v4, v6=node.v6, public_ip=node.public_ip, public_ip6=node.public_ip6)


class Service:
    """The service process of one host."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            line = await self.process.stdout.readline()
        assert line, "the service process ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def end(self, *, kill: bool = False) -> None:
        """End it as an agent ends: by SIGTERM, or by SIGKILL."""
        if self.process.returncode is None:
            (self.process.kill if kill else self.process.terminate)()
        async with asyncio.timeout(DEADLINE):
            await self.process.communicate()


class UdpHost:
    """A host with an uplink, a container, and the udp backend."""

    def __init__(self, net: Namespaces, number: int, run_dir: Path, **context: Any) -> None:
        self.number = number
        self.context = host_context(number, **context)
        self.lease = lease_of(self.context)
        self.run_dir = run_dir / f"h{number}"
        self.run_dir.mkdir()
        self.space: Namespace = net.make(f"h{number}")
        self.container: Namespace = net.make(f"c{number}")
        self.address4 = f"10.5.{number}.2"
        self.address6 = f"fc00:0:0:{number}::2"
        self.service: Service | None = None
        self.space.sysctl("net/ipv4/ip_forward", "1")
        if self.context.network.v6:
            self.space.sysctl("net/ipv6/conf/all/forwarding", "1")
        net.veth(self.space, "c0", self.container, "eth0")
        if self.context.network.v4:
            self.space.ip(f"address add 10.5.{number}.1/24 dev c0")
            self.container.ip(f"address add {self.address4}/24 dev eth0")
            self.container.ip(f"route add default via 10.5.{number}.1")
        if self.context.network.v6:
            self.space.ip(f"address add fc00:0:0:{number}::1/64 dev c0 nodad")
            self.container.ip(f"address add {self.address6}/64 dev eth0")
            self.container.ip(f"-6 route add default via fc00:0:0:{number}::1")

    @property
    def outer(self) -> str:
        """Addresses of the uplink, for Namespaces.switch."""
        node = self.context.node
        return " ".join(
            [
                *([f"{node.local_ip}/24"] if node.local_ip else []),
                *([f"{node.local_ip6}/64"] if node.local_ip6 else []),
            ]
        )

    def lay(self, peers: Iterable[Lease]) -> None:
        """Put the plan into the kernel, as the reconciler would."""
        backend = Udp()
        plans = [backend.base(self.context), *(backend.peer(self.context, lease) for lease in peers)]
        for plan in plans:
            assert not plan.findings
            for item in plan.objects:
                self._put(item)

    def _put(self, item: Object) -> None:
        if isinstance(item, Link):
            self.space.ip(f"tuntap add {item.name} mode tun" + " vnet_hdr" * item.tun_vnet_hdr)
            self.space.ip(f"link set {item.name} mtu {item.mtu} up")
        elif isinstance(item, Address):
            self.space.ip(f"address add {item.ip}/{item.length} dev {item.dev}")
        elif isinstance(item, Route):
            self.space.ip(f"route add {item.dst} dev {item.hops[0].dev}")
        else:
            raise AssertionError(item)

    async def start(self, peers: Iterable[Lease], *, tag: str = "one") -> Service:
        """Start the service process and wait until the engine has the peers."""
        if self.service is not None:
            await self.service.end()
        process = await self.space.spawn(
            sys.executable,
            "-m",
            "tests.support.udp",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 22,
        )
        self.service = Service(process)
        node, network = self.context.node, self.context.network
        await self.service.ask(
            run_dir=str(self.run_dir),
            tag=tag,
            network=msgspec.to_builtins(network),
            node=msgspec.to_builtins(node),
            options={"Port": self.context.options.port, "Device": self.context.options.device},
            peers=[msgspec.to_builtins(lease) for lease in peers],
        )
        return self.service

    async def status(self) -> dict[str, Any]:
        assert self.service is not None
        return await self.service.ask(status=True)

    async def until_running(self) -> None:
        """Wait until the engine holds its device and sockets."""
        async with asyncio.timeout(DEADLINE):
            while True:
                status = await self.status()
                if status["state"] == "running" and not status["problems"] and status["engine"].get("pid"):
                    return
                await asyncio.sleep(0.02)

    async def engine_pid(self) -> int:
        return int((await self.status())["engine"]["pid"])


class Lab:
    """The hosts of one test; leaving its context ends their services. The namespaces end the engines."""

    def __init__(self, net: Namespaces, run_dir: Path) -> None:
        self.net = net
        self._run_dir = run_dir
        self._hosts: list[UdpHost] = []

    async def __aenter__(self) -> Lab:
        return self

    async def __aexit__(self, *_: object) -> None:
        for host in self._hosts:
            if host.service is not None:
                await host.service.end(kill=True)

    def host(self, number: int, **context: Any) -> UdpHost:
        host = UdpHost(self.net, number, self._run_dir, **context)
        self._hosts.append(host)
        return host

    def twin(self, host: UdpHost, **options: Any) -> UdpHost:
        """A second agent on a host, with other options and a run directory of its own."""
        twin = copy.copy(host)
        twin.context = host_context(host.number, **options)
        twin.run_dir = host.run_dir / "twin"
        twin.run_dir.mkdir()
        twin.service = None
        self._hosts.append(twin)
        return twin

    async def cluster(self, count: int = 2, **context: Any) -> list[UdpHost]:
        """That many hosts on one switch, each with the others as peers, engines running."""
        hosts = [self.host(number, **context) for number in range(1, count + 1)]
        self.net.switch("switch", {host.space: host.outer for host in hosts})
        await join(hosts)
        return hosts


async def join(hosts: list[UdpHost]) -> None:
    """Make the hosts peers of each other and start their services."""
    for host in hosts:
        others = [other.lease for other in hosts if other is not host]
        host.lay(others)
        await host.start(others)
    for host in hosts:
        await host.until_running()


class Ping:
    """A ping that runs while something else happens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, source: Namespace, target: str, *, count: int, interval: float = 0.01) -> Ping:
        """Returns when the first reply has come."""
        source.run("ping", "-n", "-c", "1", "-w", f"{DEADLINE:g}", target, timeout=DEADLINE + 5)
        process = await source.spawn(
            "ping", "-n", "-i", f"{interval}", "-c", f"{count}", "-W", "1", target, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while b"bytes from" not in (line := await process.stdout.readline()):
                assert line, "ping ended without a reply"
        return cls(process)

    async def lost(self) -> int:
        """How many of its packets had no reply, when it has ended."""
        async with asyncio.timeout(DEADLINE + 20):
            out, _ = await self._process.communicate()
        found = re.search(r"(\d+) packets transmitted, (\d+) received", out.decode())
        assert found is not None, out.decode()
        return int(found[1]) - int(found[2])


# ------------------------------------------------------------------------------------ the service process


class _Port:
    """contract.ServicePort, as much as the udp service uses."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = self.state_dir = run_dir
        self.findings: list[Finding] = []

    def publish(self, objects: Mapping[str, Iterable[Object]]) -> None:
        raise AssertionError("the udp service publishes nothing")

    def report(self, findings: Iterable[Finding]) -> None:
        self.findings = list(findings)

    async def share(self, attributes: Mapping[str, str]) -> None:
        raise AssertionError("the udp service shares nothing")


def _leases(raw: list[Any]) -> dict[str, Lease]:
    leases = [msgspec.convert(item, Lease, strict=False) for item in raw]
    return {lease.key: lease for lease in leases}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    first = json.loads(await requests.readline())
    port = _Port(Path(first["run_dir"]))
    service = UdpService(port, tag=first["tag"])
    service.configure(
        Context(
            network=msgspec.convert(first["network"], Network),
            options=Udp().options(first["options"]).value,
            node=msgspec.convert(first["node"], Node),
            facts=Facts(abilities=frozenset({"tun"})),
        )
    )
    service.nodes({})
    service.peers(_leases(first["peers"]), (), whole=True)
    running = asyncio.create_task(service.run())
    answer: Any = {}
    await service.settled()
    while True:
        print(json.dumps(answer), flush=True)
        request = json.loads(await requests.readline() or "null")
        if request is None:
            break
        answer = {}
        if "peers" in request:
            service.peers(_leases(request["peers"]), request.get("removed", ()), whole=request.get("whole", False))
            await service.settled()
        elif "status" in request:
            answer = {**service.status(), "findings": [msgspec.to_builtins(f) for f in port.findings]}
        elif "stop" in request:
            running.cancel()
            await asyncio.wait((running,))
            await service.stop()
    running.cancel()
    await asyncio.wait((running,))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(_serve())
