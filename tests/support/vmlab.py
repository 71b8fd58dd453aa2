"""A cluster whose hosts are virtual machines, from the same description as the lab in namespaces.

Rules: `netagent.lab.topology` is the only description; racks, routers and etcd are the lab's own namespaces and
wires, and each host of the topology is a machine plugged into the bridge of its rack. netagent comes from the package
and runs as its service; a host's container is a network namespace on a bridge in it, attached by subnet.env.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from netagent.lab import pinger, wiring
from netagent.lab.lab import Lab
from netagent.lab.matrix import Cell, Flow, Matrix
from netagent.lab.space import LabError, Result
from netagent.lab.topology import Host, Topology
from netagent.model import Finding
from netagent.status import Status
from tests.support import vmtcp
from tests.support.vm import Image, Vm

PINGER, TCP = "/var/lib/vm/pinger.py", "/var/lib/vm/tcp.py"
SUBNET_ENV = "/run/netagent/subnet.env"
READY_TIMEOUT = 150.0  # seconds; guests are emulated
POLL = 0.5


# The pinger runs on until its input ends, which `sleep` holds open.
FLOW = f"""
mkdir -p /run/flow
rm -f /run/flow/in /run/flow/out
mkfifo /run/flow/in
setsid python3 {PINGER} </run/flow/in >/run/flow/out 2>&1 &
exec 3>/run/flow/in
setsid sleep infinity >/dev/null 2>&1 </dev/null &
echo $! >/run/flow/pid
echo "$1" >&3
"""


class VmLab:
    """`async with VmLab(topology, image) as lab` boots every host; then `await lab.install()`."""

    def __init__(self, plan: Topology, image: Image) -> None:
        # The namespaces of everything but the hosts.
        self.core = Lab(msgspec.structs.replace(plan, hosts=()))
        self.topology = plan
        self.image = image
        self.vms: dict[str, Vm] = {}
        self._attached: dict[str, dict[str, str]] = {}

    def __getitem__(self, name: str) -> Vm:
        return self.vms[name]

    @property
    def directory(self) -> Path:
        return self.core.path

    # ------------------------------------------------------------------------------------- beginning and end

    async def __aenter__(self) -> VmLab:
        try:
            await self.core.up(ephemeral=True)
            await self.core.etcd.put_config(self.topology.config)
            for number, host in enumerate(self.topology.hosts, 1):
                vm = self.vms[host.name] = Vm(self.core.space, self.image, host, self.directory, number)
                await vm.start()
            await asyncio.gather(*(vm.booted() for vm in self.vms.values()))
            await asyncio.gather(*(self._install(vm) for vm in self.vms.values()))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for vm in self.vms.values():
            await vm.close()
        await self.core.down()

    async def _install(self, vm: Vm) -> None:
        """What an administrator does once on each host: name, network, where etcd is; then the service is enabled."""
        await self.configure(vm)
        await vm.write("/etc/hostname", f"{vm.name}\n")
        await vm.write(PINGER, inspect.getsource(pinger))
        await vm.write(TCP, inspect.getsource(vmtcp))
        # Not by vm-net.service: a boot that is still under way would hold it up.
        await vm.sh(f"hostname {vm.name}; ip -batch /etc/vm-net; systemctl enable --quiet netagent", timeout=300)
        await self.settings(vm)

    async def configure(self, vm: Vm) -> None:
        """Its uplink, as the topology has it, for this boot's vm-net.service and the next's."""
        lines = ["link set lo up", "link set eth0 up", *wiring.uplink(self.topology, vm.host)]
        await vm.write("/etc/vm-net", "\n".join(lines) + "\n")

    async def settings(self, vm: Vm, **more: Any) -> None:
        """Write its netagent.toml, and (re)start the service without waiting for it."""
        values = {"etcd_endpoints": [self.core.etcd.endpoint], **more}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        await vm.write("/etc/netagent/netagent.toml", text)
        await vm.exec("systemctl", "--no-block", "restart", "netagent", timeout=120)

    async def move(self, name: str, rack: str) -> None:
        """Carry a running machine to another rack: its cable goes into that bridge, and it gets an address there."""
        vm = self.vms[name]
        before = vm.host
        moved = self.topology.without_host(name).with_host(rack).hosts[-1]
        vm.host = msgspec.structs.replace(moved, name=name)
        hosts = tuple(vm.host if host.name == name else host for host in self.topology.hosts)
        self.topology = msgspec.structs.replace(self.topology, hosts=hosts)
        space = self.core.space
        inode = await space.run(before.rack, ["ip", "link", "set", name, "nomaster"])
        assert inode.code == 0
        await space.run("", ["ip", "-n", before.rack, "link", "set", name, "netns", rack])
        await space.run(rack, ["ip", "link", "set", name, "master", "br0", "up"])
        await self.configure(vm)
        await vm.sh("ip address flush dev eth0 scope global; ip -batch /etc/vm-net")

    # -------------------------------------------------------------------------------------------- the cluster

    async def set_config(self, **changed: Any) -> None:
        self.topology = msgspec.structs.replace(self.topology, config={**self.topology.config, **changed})
        await self.core.etcd.put_config(self.topology.config)

    async def set_backend(self, backend: str | Mapping[str, Any]) -> None:
        self.topology = self.topology.with_backend(backend)
        await self.core.etcd.put_config(self.topology.config)

    async def ready(self, only: Iterable[str] | None = None, timeout: float = READY_TIMEOUT) -> dict[str, Status]:
        """Until these hosts (all, if none is named) have the network's backend and families, every path to each
        other, and their containers attached; what each then says."""
        names = list(only or self.vms)
        found: dict[str, Status] = {}

        async def look() -> str:
            told = await asyncio.gather(*(self.vms[name].status() for name in names))
            missing = {name: self._unready(status, names) for name, status in zip(names, told, strict=True)}
            found.update({name: status for name, status in zip(names, told, strict=True) if status is not None})
            return "; ".join(f"{name}: {what}" for name, what in missing.items() if what)

        await self.until(look, "every host ready", timeout)
        await asyncio.gather(*(self.attach(self.vms[name]) for name in names))
        return found

    async def healthy(self, only: Iterable[str] | None = None, timeout: float = READY_TIMEOUT) -> dict[str, Status]:
        """`ready`, and then until none of these hosts has anything to complain of: what was tried in vain while an
        emulated machine was slow has been tried again."""
        statuses = await self.ready(only, timeout)

        async def look() -> str:
            told = await asyncio.gather(*(self.vms[name].status() for name in statuses))
            statuses.update({s.node.name: s for s in told if s is not None})
            complaints = {
                s.node.name: [f.message for f in s.findings] for s in told if s and s.verdict.state != "healthy"
            }
            return f"{complaints}" if complaints or None in told else ""

        await self.until(look, "every host healthy", timeout)
        return statuses

    def _unready(self, status: Status | None, names: list[str]) -> str:
        backend = self.topology.backend
        if status is None:
            return "the agent does not answer"
        if not status.verdict.ready:
            return "; ".join(status.verdict.blockers) or status.verdict.reason
        if status.backend.type != backend:
            return f"still {status.backend.type}"
        for family, subnet in ((4, status.lease.v4), (6, status.lease.v6)):
            if (family in self.topology.families) != bool(subnet):
                return f"IPv{family} subnet {subnet or 'missing'}"
        peers = {peer.node: peer for peer in status.peers.shown}
        for name in names:
            peer = peers.get(name)
            if name == status.node.name:
                continue
            if peer is None:
                return f"does not know {name}"
            if peer.backend != backend or peer.state != "up":
                return f"{name} is {peer.state} on {peer.backend}: {peer.reason}"
            for family, subnet in ((4, peer.v4), (6, peer.v6)):
                if (family in self.topology.families) != bool(subnet):
                    return f"{name} has IPv{family} subnet {subnet or 'missing'}"
        counts = status.reconciler
        if sum(counts.installed.values()) < sum(counts.desired.values()) - sum(counts.failing.values()):
            return f"{counts.installed} of {counts.desired} objects"
        return ""

    async def finding(self, name: str, code: str, *, gone: bool = False, timeout: float = 90.0) -> Finding | None:
        """Await a host's finding of that code (or its end)."""
        found: list[Finding] = []

        async def look() -> str:
            status = await self.vms[name].status()
            if status is None:
                return "the agent does not answer"
            found[:] = [f for f in status.findings if f.code == code]
            return "" if bool(found) is not gone else f"findings are {[f.code for f in status.findings]}"

        await self.until(look, f"{name} {'no longer ' if gone else ''}reports {code}", timeout)
        return found[0] if found else None

    async def until(self, look: Callable[[], Awaitable[str]], what: str, timeout: float) -> None:
        """Until `look` finds nothing missing any more ("")."""
        end = time.monotonic() + timeout
        while missing := await look():
            if time.monotonic() > end:
                logs = await self.logs()
                raise LabError(f"not within {timeout:g} s: {what}. Missing: {missing}\n{logs}")
            await asyncio.sleep(POLL)

    async def logs(self) -> str:
        """The last lines of every agent's log."""
        texts = []
        for vm in self.vms.values():
            with contextlib.suppress(LabError):
                out = await vm.exec(
                    "journalctl", "-u", "netagent", "-n", "12", "-o", "cat", "--no-pager", check=False
                )
                texts.append(f"--- {vm.name}\n{out.out}")
        return "\n".join(texts)

    # ------------------------------------------------------------------------------------------ containers

    async def attach(self, vm: Vm) -> None:
        """Its container, by subnet.env; one that is there follows a changed MTU and a new family."""
        lines = (await vm.exec("cat", SUBNET_ENV)).out.splitlines()
        env = {name: value for name, _, value in (line.partition("=") for line in lines)}
        if env == self._attached.get(vm.name):
            return
        again = vm.name in self._attached
        inside = wiring.container(vm.name)
        steps = wiring.attach(vm.name, env, again=again)
        if not again:
            dad = "for f in all default; do echo 0 >/proc/sys/net/ipv6/conf/$f/accept_dad; done"
            await vm.sh(f"ip netns add {inside}; ip netns exec {inside} sh -c '{dad}'; ip -n {inside} link set lo up")
        await vm.sh(wiring.script(s._replace(netns="" if s.netns == vm.name else s.netns) for s in steps))
        if not again:
            await vm.sh(f"setsid ip netns exec {inside} python3 {TCP} serve </dev/null >/var/log/vm-tcp 2>&1 &")
        self._attached[vm.name] = env

    def forget_container(self, name: str) -> None:
        """After a reboot or a power cut: its container is gone."""
        self._attached.pop(name, None)

    def container_ip(self, name: str, family: int) -> str:
        for _, own in wiring.addresses(self._attached[name]):
            if (":" in own) == (family == 6):
                return own.partition("/")[0]
        return ""

    def mtu(self, name: str) -> int:
        return int(self._attached[name]["FLANNEL_MTU"])

    async def carries(self, only: Iterable[str] | None = None) -> None:
        """All pairs, every family: small packets, the largest whole ones, and TCP."""
        small = await self.ping(only)
        assert small.ok, small.failed
        large = await self.ping(only, count=1, largest=True)
        assert large.ok, large.failed
        assert await self.tcp(only) == {}

    async def _each(self, names: Iterable[str], job: Callable[[str], Awaitable[Any]]) -> list[Any]:
        return list(await asyncio.gather(*(job(name) for name in names)))

    async def ping(
        self, only: Iterable[str] | None = None, *, count: int = 2, timeout: float = 5.0, largest: bool = False
    ) -> Matrix:
        """Every ordered pair of containers in every family. `largest`: with packets that just fit the MTU, whole."""
        names = list(only or self.vms)
        cells: list[Cell] = []

        async def one(source: str) -> None:
            for family in self.topology.families:
                targets = [name for name in names if name != source]
                pairs = [(wiring.container(source), self.container_ip(name, family)) for name in targets]
                size = self.mtu(source) - (28 if family == 4 else 48) if largest else 56
                request = {"pairs": pairs, "count": count, "timeout": timeout, "size": size, "whole": largest}
                done = await self.vms[source].exec("python3", PINGER, input=json.dumps(request) + "\n")
                cells.extend(
                    Cell(source=source, target=target, family=family, times=tuple(times))
                    for target, times in zip(targets, json.loads(done.out), strict=True)
                )

        await self._each(names, one)
        return Matrix(sent=count, cells=tuple(cells))

    @contextlib.asynccontextmanager
    async def flow(self, *names: str, rate: float = 10, timeout: float = 10.0) -> AsyncIterator[Flow]:
        """While the context lasts, ping between all containers of these hosts (of all, if none is named) in every
        family. Entered once every pair was answered; the counts are there after it."""
        hosts = list(names or self.vms)
        pairs = {source: [(source, name) for name in hosts if name != source] for source in hosts}
        result = Flow(pairs=tuple(pair for some in pairs.values() for pair in some))
        families = self.topology.families
        for source, some in pairs.items():
            wanted = [(wiring.container(source), self.container_ip(to, f)) for f in families for _, to in some]
            request = {"pairs": wanted, "interval": 1 / rate, "timeout": timeout, "size": 56, "whole": False}
            await self.vms[source].exec("sh", "-euc", FLOW, "flow", json.dumps(request))

        async def flowing() -> str:
            begun = await self._each(hosts, lambda name: self.vms[name].sh("head -n 1 /run/flow/out"))
            return "" if all('"flowing": true' in said for said in begun) else f"replies, so far: {begun}"

        async def counted() -> str:
            said = await self._each(hosts, lambda name: self.vms[name].sh("tail -n +2 /run/flow/out"))
            counts.update({name: json.loads(text) for name, text in zip(hosts, said, strict=True) if text.strip()})
            return "" if len(counts) == len(hosts) else "the counts"

        counts: dict[str, list[dict[str, Any]]] = {}
        try:
            await self.until(flowing, "a reply for every pair", 60)
            yield result
        finally:
            # Whoever has it open for writing lets go of it: the pinger's input ends.
            await self._each(hosts, lambda name: self.vms[name].sh("kill $(cat /run/flow/pid)"))
        await self.until(counted, "the pingers' counts", timeout + 60)
        for source, some in pairs.items():
            for (_, target), found in zip(some * len(families), counts[source], strict=True):
                result.add(source, target, found)

    async def tcp(self, only: Iterable[str] | None = None, *, size: int = 1 << 18) -> dict[tuple[str, str], str]:
        """`size` bytes from each container to each other one in every family, compared by digest; what failed, by
        (source, address)."""
        names = list(only or self.vms)
        failed: dict[tuple[str, str], str] = {}

        async def one(source: str) -> None:
            targets = [
                self.container_ip(name, family)
                for family in self.topology.families
                for name in names
                if name != source
            ]
            command = ["ip", "netns", "exec", wiring.container(source), "python3", TCP, "send", str(size), *targets]
            done: Result = await self.vms[source].exec(*command, timeout=180)
            failed.update({(source, target): why for target, why in json.loads(done.out).items() if why})

        await self._each(names, one)
        return failed


def hosts_in(plan: Topology, *racks: str) -> Topology:
    """The same lab with its hosts in these racks, one after the other."""
    bare = msgspec.structs.replace(plan, hosts=())
    for rack in racks:
        bare = bare.with_host(rack)
    return bare


__all__ = ["Host", "VmLab", "hosts_in"]
