"""A whole cluster in network namespaces: real etcd, a real agent per host, a container on each. The lab's library.

    async with Lab(nodes=3, backend="vxlan") as lab:
        await lab.ready()
        assert (await lab.ping()).ok
        node = lab["h1"]
        await node.kill_agent()
        await node.start_agent()
        await lab.set_backend("host-gw")

Rule: apart from the agent the lab only starts it: it changes nothing that is the agent's, and reads what the
agent says through its API and subnet.env. Everything a lab writes lies in its directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from netagent.errors import AgentUnavailable
from netagent.lab import pinger, topology, wiring
from netagent.lab.etcd import Etcd
from netagent.lab.matrix import Cell, Flow, Matrix
from netagent.lab.node import Node
from netagent.lab.space import LabError, Space, Unable, find_program
from netagent.lab.topology import Topology

STATE = "lab.json"
TUN = Path("/dev/net/tun")
POLL = 0.05  # seconds between two looks at what announces nothing
READY_TIMEOUT = 60.0
FLOW_TIMEOUT = 5.0

Progress = Callable[[str], None]


def obstacle(backend: str) -> str:
    """Why this machine cannot run a backend in a lab; "" if it can."""
    if backend != "udp":
        return ""
    if not TUN.exists():
        return f"{TUN} does not exist (as root: modprobe tun)"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"only root may open {TUN} on this machine (distributions have it open to all: chmod 666 {TUN})"
    return ""


class State(msgspec.Struct):
    """What DIR/lab.json holds, so that another process can open the lab."""

    topology: Topology
    userns: bool


class Lab:
    """One lab. As a context manager it is made on entry and gone after it, however its process ends.

    `agent` gives the command line of a node's agent (default: `netagent run` with the lab's paths), `extra` more
    arguments for every default agent. `directory` is the lab's own; a temporary one if none is given.
    """

    def __init__(
        self,
        plan: Topology | None = None,
        *,
        nodes: int = 3,
        backend: str | Mapping[str, Any] = "vxlan",
        kind: str = "flat",
        ipv4: bool = True,
        ipv6: bool = False,
        mtu: int = 1500,
        config: Mapping[str, Any] | None = None,
        directory: Path | None = None,
        agent: Callable[[Node], Sequence[str]] | None = None,
        extra: Sequence[str] = (),
        progress: Progress = lambda _: None,
    ) -> None:
        self.topology = plan or topology.build(kind, nodes, backend, ipv4=ipv4, ipv6=ipv6, mtu=mtu, config=config)
        self.directory = directory
        self.agent = agent
        self.extra = tuple(extra)
        self.progress = progress
        self._space: Space | None = None
        self._temporary = False
        self.nodes: dict[str, Node] = {host.name: Node(self, host.name) for host in self.topology.hosts}
        self.etcd = Etcd(self)

    def __getitem__(self, name: str) -> Node:
        self.topology.host(name)  # says which nodes there are
        return self.nodes[name]

    @property
    def space(self) -> Space:
        if self._space is None:
            raise LabError("the lab is not up")
        return self._space

    @property
    def path(self) -> Path:
        if self.directory is None:
            raise LabError("the lab is not up")
        return self.directory

    # ------------------------------------------------------------------------------------- beginning and end

    async def __aenter__(self) -> Lab:
        try:
            await self.up(ephemeral=True)
        except BaseException:
            await self.down()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    async def up(self, *, ephemeral: bool, agents: bool = True) -> None:
        """Make it: namespaces, wires, etcd with the configuration, agents (started, not yet ready)."""
        for program in ("ip", "etcd", "etcdctl"):
            find_program(program)
        self._possible(self.topology)
        if self.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="netagent-lab-"))
            self._temporary = True
        self.progress("making namespaces and wires")
        self._space = await Space.make(self.directory, ephemeral=ephemeral, remove=self._temporary)
        await self.change(wiring.topology(self.topology))
        self.progress("starting etcd")
        await self.etcd.start()
        await self.etcd.put_config(self.topology.config)
        if agents:
            self.progress(f"starting {len(self.nodes)} agents")
            await _together(node.start_agent() for node in self.nodes.values())

    @classmethod
    def open(cls, directory: Path) -> Lab:
        """A lab that another process made and that is up."""
        state = load(directory)
        lab = cls(state.topology, directory=directory)
        lab._space = Space.open(directory, userns=state.userns)
        if lab._space is None:
            raise LabError(
                "the lab is not up any more", where=str(directory), remedy="`netagent lab down` clears it away"
            )
        return lab

    async def down(self) -> None:
        """End it and remove its directory. Harmless when it is not up."""
        if self._space is not None:
            await self._space.end()
            self._space = None
        if self.directory is not None and (self._temporary or (self.directory / STATE).exists()):
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def _possible(self, plan: Topology) -> None:
        """Unable, if this machine cannot run the backend: no use to wait for agents that cannot do it either."""
        if self.agent is None and (reason := obstacle(plan.backend)):
            raise Unable(f"{plan.backend} cannot run here: {reason}")

    def _save(self) -> None:
        state = State(topology=self.topology, userns=self.space.userns)
        (self.path / STATE).write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))

    async def change(self, steps: Iterable[wiring.Step]) -> None:
        """Carry out wiring steps, and keep the topology for whoever opens the lab."""
        self._save()
        await self.space.run("", ["sh", "-s"], input=wiring.script(steps))

    # ---------------------------------------------------------------------------------------------- waiting

    async def ready(self, timeout: float = READY_TIMEOUT, *, backend: str = "", attach: bool = True) -> None:
        """Until every agent says that it is ready, knows every other and has its objects in the kernel (and runs
        `backend`, if given); then containers are attached, or follow a changed MTU."""
        names = list(self.nodes)

        async def look() -> str:
            waiting: dict[str, list[str]] = {}  # what for: who
            reasons = await _together(self._unready(self.nodes[name], backend) for name in names)
            for name, reason in zip(names, reasons, strict=True):
                if reason:
                    waiting.setdefault(reason, []).append(name)
            return "; ".join(f"{', '.join(who)}: {reason}" for reason, who in waiting.items())

        await self.until(look, "every agent ready", timeout)
        if attach:
            await self.attach()

    async def _unready(self, node: Node, backend: str) -> str:
        """What this node's agent is still waiting for; "" if nothing."""
        if (code := await node.agent_code()) is not None:
            raise LabError(f"{node.name}'s agent ended with code {code}:\n{node.log_tail()}", where=str(node.log))
        try:
            status = await node.status()
        except AgentUnavailable:
            return "the agent does not answer yet"
        if not status.verdict.ready:
            return "; ".join(status.verdict.blockers) or status.verdict.reason
        if backend and status.backend.type != backend:
            return f"still {status.backend.type}"
        if backend and (late := [peer.node for peer in status.peers.shown if peer.backend != backend]):
            return f"{', '.join(late)} not on {backend} yet"
        if node.subnet_env().get("FLANNEL_MTU") != str(status.backend.mtu):
            return f"subnet.env does not have MTU {status.backend.mtu} yet"
        if status.peers.total < len(self.nodes) - 1:
            return f"knows {status.peers.total} of {len(self.nodes) - 1} peers"
        if status.peers.states.get("pending"):
            return f"{status.peers.states['pending']} paths being installed"
        counts = status.reconciler
        if sum(counts.installed.values()) < sum(counts.desired.values()) - sum(counts.failing.values()):
            return f"{sum(counts.installed.values())} of {sum(counts.desired.values())} objects installed"
        return ""

    async def leased(self, timeout: float = READY_TIMEOUT) -> None:
        """Until every node has its subnet.env."""

        async def look() -> str:
            return ", ".join(node.name for node in self.nodes.values() if not node.subnet_env())

        await self.until(look, "a subnet on every node", timeout)

    async def until(self, look: Callable[[], Awaitable[str]], what: str, timeout: float) -> None:
        """Until `look` finds nothing missing any more (""). What is missing is shown when it changes, at most once a
        second, and told when time is up."""
        begun = told = time.monotonic()
        shown = ""
        while missing := await look():
            now = time.monotonic()
            if now - begun > timeout:
                raise LabError(
                    f"not within {timeout:g} s: {what}. Missing: {missing}\n{self.tails()}", where=str(self.directory)
                )
            if missing != shown and now - told > 1:
                shown, told = missing, now
                self.progress(f"waiting for {what} ({missing})")
            await asyncio.sleep(POLL)

    def tails(self) -> str:
        """The last lines of every agent's log, for a message about a failure."""
        return "\n".join(f"--- {node.log}\n{node.log_tail(8)}" for node in self.nodes.values())

    async def attach(self) -> None:
        """Attach each node's container by its subnet.env, or let it follow a changed one."""
        await _together(node.attach() for node in self.nodes.values())

    # ------------------------------------------------------------------------------------- changing the cluster

    async def set_backend(self, backend: str | Mapping[str, Any]) -> None:
        """Write another backend into the network's configuration, under the running agents."""
        changed = self.topology.with_backend(backend)
        self._possible(changed)
        self.topology = changed
        self._save()
        await self.etcd.put_config(self.topology.config)

    async def set_config(self, config: Mapping[str, Any]) -> None:
        """Write the whole network's configuration, right or wrong."""
        self.topology = msgspec.structs.replace(self.topology, config=dict(config))
        self._save()
        await self.etcd.put_config(config)

    async def add_node(self, rack: str = "", *, agent: bool = True) -> Node:
        """One more host, wired; its agent started unless told otherwise."""
        self.topology = self.topology.with_host(rack)
        host = self.topology.hosts[-1]
        node = self.nodes[host.name] = Node(self, host.name)
        await self.change(wiring.host(self.topology, host))
        if agent:
            await node.start_agent()
        return node

    async def remove_node(self, name: str) -> None:
        """A host that dies and never returns: its processes are killed, its namespaces deleted. Its lease stays."""
        node = self[name]
        await node.kill_all()
        host = self.topology.host(name)
        self.topology = self.topology.without_host(name)
        del self.nodes[name]
        await self.change(wiring.unplug(host))

    # ----------------------------------------------------------------------------------------------- pinging

    async def ping(
        self,
        *,
        count: int = 1,
        timeout: float = 1.0,
        family: int | None = None,
        hosts: bool = False,
        size: int = 56,
        whole: bool = False,
        only: Iterable[str] | None = None,
    ) -> Matrix:
        """Every ordered pair of containers, `count` echo requests each, in every family of the network.

        `hosts`: also each host to each other's container. `size` is bytes of ICMP payload, `whole` forbids
        fragments. `only` names the nodes that take part.
        """
        names = list(only) if only is not None else list(self.nodes)
        cells: list[Cell] = []
        pairs: list[tuple[str, str]] = []
        for version in (family,) if family else self.topology.families:
            for source in names:
                for target in names:
                    address = self[target].container_ip(version)
                    for from_host in (False, True) if hosts else (False,):
                        if source == target or not address:
                            continue
                        cells.append(Cell(source=source, target=target, family=version, from_host=from_host))
                        pairs.append((source if from_host else wiring.container(source), address))
        if not pairs and len(names) > 1:
            raise LabError("no container has an address yet", remedy="`netagent lab status` tells why")
        request = {"pairs": pairs, "count": count, "timeout": timeout, "size": size, "whole": whole}
        result = await self.space.run(
            "",
            [sys.executable, "-m", pinger.__name__],
            input=json.dumps(request) + "\n",
            timeout=30 + len(pairs) * count * 0.1,
        )
        times: list[list[float]] = json.loads(result.out)
        return Matrix(
            sent=count,
            cells=tuple(
                msgspec.structs.replace(cell, times=tuple(seen)) for cell, seen in zip(cells, times, strict=True)
            ),
        )

    @contextlib.asynccontextmanager
    async def flow(
        self, *pairs: tuple[str, str], rate: float = 100, family: int = 4, size: int = 56, timeout: float = 1.0
    ) -> AsyncIterator[Flow]:
        """While the context lasts, ping from container to container (all ordered pairs if none is given), `rate`
        requests a second and pair. Entered once every pair was answered; the flow's counts are there after it:

            async with lab.flow(("h1", "h2")) as flow:
                await lab["h1"].restart_agent()
            assert flow.lost == 0
        """
        chosen = pairs or tuple((a, b) for a in self.nodes for b in self.nodes if a != b)
        wanted = [(wiring.container(source), self[target].container_ip(family)) for source, target in chosen]
        request = {"pairs": wanted, "interval": 1 / rate, "timeout": timeout, "size": size, "whole": False}
        result = Flow(pairs=chosen)
        process = await self.space.start(
            "", [sys.executable, "-m", pinger.__name__], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            try:
                flowing = await asyncio.wait_for(process.stdout.readline(), FLOW_TIMEOUT)
            except TimeoutError:
                flowing = b""
            if not flowing:
                raise LabError(f"no replies, so nothing to watch: {chosen}")
            yield result
            out, _ = await asyncio.wait_for(process.communicate(b""), timeout + FLOW_TIMEOUT)
            for (source, target), counts in zip(chosen, json.loads(out), strict=True):
                result.add(source, target, counts)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def load(directory: Path) -> State:
    try:
        return msgspec.json.decode((directory / STATE).read_bytes(), type=State)
    except FileNotFoundError:
        raise LabError(
            f"there is no lab {directory.name!r}", remedy="`netagent lab list` shows those there are"
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise LabError(f"its description cannot be read: {error}", where=str(directory / STATE)) from error


async def _together(jobs: Iterable[Awaitable[Any]]) -> list[Any]:
    """All at once; the first failure is raised after the others ended, so that nothing runs on behind one's back."""
    results = await asyncio.gather(*jobs, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
