"""Random faults of every kind upon a whole cluster, several at once; all mended, everything is as it should be.

The faults come from a seeded generator (CHAOS_SEED=N replays a run as far as the machine's timing allows), which is
printed with the history when the test fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from netagent.errors import AgentUnavailable
from netagent.lab.lab import Lab
from netagent.lab.node import Node

# It takes less than a minute; only a failure may take longer, and must still be told with its seed.
pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.slow, pytest.mark.timeout(300)]

DURATION = 25.0  # seconds of faults
CONVERGE = 60.0
NODES, MOST_NODES = 5, 7
BACKENDS: tuple[str | dict[str, Any], ...] = (
    "vxlan",
    "host-gw",
    "udp",
    {"Type": "vxlan", "VNI": 7},
    {"Type": "vxlan", "DirectRouting": True},
    "bgp",
    {"Type": "bgp", "Encapsulation": "vxlan", "Mesh": False, "Reflectors": ["h1", "h2"]},
)


class Chaos:
    """One run: what it broke and has to mend, and what it did so far."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self.lab = lab
        self.rng = rng
        self.history: list[str] = []
        self.subnets: dict[str, str] = {}
        self.dead: set[str] = set()  # nodes without an agent
        self.cut: set[str] = set()  # nodes without an uplink
        self.etcd = True  # whether it runs

    def node(self) -> Node:
        return self.lab[self.rng.choice(sorted(self.lab.nodes))]

    def note_subnets(self) -> None:
        """Remember each node's first subnet; any other later is a renumbering."""
        for name, node in self.lab.nodes.items():
            if subnet := node.subnet_env().get("FLANNEL_SUBNET"):
                assert self.subnets.setdefault(name, subnet) == subnet, f"{name} was renumbered"

    async def step(self) -> None:
        fault = self.rng.choice(FAULTS)
        self.history.append(fault.__name__)
        await fault(self)
        self.note_subnets()

    def say(self, what: object) -> None:
        self.history[-1] += f" {what}"

    async def mend(self) -> None:
        if not self.etcd:
            await self.lab.etcd.start()
            self.etcd = True
        for name in sorted(self.cut):
            await self.lab[name].mend()
        for name in sorted(self.dead):
            await self.lab[name].start_agent()
        self.cut.clear()
        self.dead.clear()


async def agent_killed(chaos: Chaos) -> None:
    node = chaos.node()
    chaos.say(node.name)
    if node.name not in chaos.dead:
        await node.kill_agent()
        chaos.dead.add(node.name)


async def agent_started(chaos: Chaos) -> None:
    if chaos.dead:
        name = chaos.rng.choice(sorted(chaos.dead))
        chaos.say(name)
        await chaos.lab[name].start_agent()
        chaos.dead.remove(name)


async def agent_restarted(chaos: Chaos) -> None:
    node = chaos.node()
    chaos.say(node.name)
    if node.name not in chaos.dead:
        await node.restart_agent()


async def etcd_killed_or_started(chaos: Chaos) -> None:
    await (chaos.lab.etcd.kill() if chaos.etcd else chaos.lab.etcd.start())
    chaos.etcd = not chaos.etcd


async def etcd_compacted(chaos: Chaos) -> None:
    if chaos.etcd:
        revision = json.loads(await chaos.lab.etcd.ctl("get", "x", "-w", "json"))["header"]["revision"]
        # Twice in a row etcd refuses: that revision is gone already.
        command = f"etcdctl --endpoints=http://127.0.0.1:2379 compact {revision} || true"
        await chaos.lab.space.run("etcd", ["sh", "-c", command])


async def uplink_cut_or_mended(chaos: Chaos) -> None:
    node = chaos.node()
    chaos.say(node.name)
    await (node.mend() if node.name in chaos.cut else node.cut())
    chaos.cut ^= {node.name}


async def kernel_meddled_with(chaos: Chaos) -> None:
    node, what = chaos.node(), chaos.rng.choice(MEDDLING)
    chaos.say(f"{node.name}: {what}")
    await node.exec("sh", "-c", what, check=False)  # what is not there now cannot be removed


async def backend_switched(chaos: Chaos) -> None:
    if chaos.etcd:
        backend = chaos.rng.choice(BACKENDS)
        chaos.say(backend)
        await chaos.lab.set_backend(backend)


async def node_added(chaos: Chaos) -> None:
    if len(chaos.lab.nodes) < MOST_NODES:
        chaos.say((await chaos.lab.add_node()).name)


FAULTS: tuple[Callable[[Chaos], Awaitable[None]], ...] = (
    agent_killed,
    agent_started,
    agent_started,  # twice, lest most agents be dead most of the time
    agent_restarted,
    etcd_killed_or_started,
    etcd_compacted,
    uplink_cut_or_mended,
    kernel_meddled_with,
    kernel_meddled_with,
    backend_switched,
    node_added,
)

MEDDLING = (
    "ip route flush proto 110",
    "ip nexthop flush",
    "ip link delete na-vx1",
    "ip link delete na-vx7",
    "ip link delete na-tun",
    "ip link set na-vx1 down",
    "ip address flush dev na-vx1",
    "ip neigh flush nud permanent dev na-vx1",
    "nft flush ruleset",
    "nft delete table inet netagent",
    "echo 0 > /proc/sys/net/ipv4/ip_forward",
)


async def test_all_is_well_after_random_faults(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    rng = random.Random(seed)
    async with Lab(nodes=NODES, backend="vxlan") as lab:
        await lab.ready()
        chaos = Chaos(lab, rng)
        chaos.note_subnets()
        end = time.monotonic() + DURATION
        try:
            while time.monotonic() < end:
                await chaos.step()
                await asyncio.sleep(rng.random() * 0.6)
            chaos.history.append("all mended")
            await chaos.mend()
            await converged(chaos)
        except Exception as error:
            for node in lab.nodes.values():
                shutil.copy(node.log, tmp_path / f"{node.name}.log")
            story = "\n".join(chaos.history)
            pytest.fail(f"CHAOS_SEED={seed}, logs in {tmp_path}: {error}\n{story}", pytrace=False)


async def converged(chaos: Chaos) -> None:
    """Healthy everywhere, on the last backend, every pair of containers answers, and no agent has anything to do."""
    lab = chaos.lab
    kind = lab.topology.backend
    await lab.ready(CONVERGE, backend=kind)

    async def unhealthy() -> str:
        wrong = []
        for name, node in lab.nodes.items():
            try:
                verdict = (await node.status()).verdict
            except AgentUnavailable as error:
                return str(error)
            if verdict.state != "healthy":
                wrong.append(f"{name}: {verdict.reason}")
        return "; ".join(wrong)

    async def unreached() -> str:
        matrix = await lab.ping(timeout=0.5, hosts=True)
        return "" if matrix.ok else f"without a reply: {[(c.source, c.target) for c in matrix.failed]}"

    async def unequal() -> str:
        plans = {name: (await node.exec("netagent", "plan")).out.strip() for name, node in lab.nodes.items()}
        return "; ".join(f"{name}: {plan}" for name, plan in plans.items() if plan != "nothing to do")

    async def leftovers() -> str:
        wrong = []
        for name, node in lab.nodes.items():
            links = {link["ifname"] for link in json.loads(await node.ip("-j link show"))}
            if (found := {link for link in links if link.startswith("na-")}) != devices(lab):
                wrong.append(f"{name}: {found}")
        return "; ".join(wrong)

    await lab.until(unhealthy, "every node is healthy", CONVERGE)
    await lab.until(unreached, "every container is reached", CONVERGE)
    await lab.until(unequal, "kernels equal plans", CONVERGE)
    await lab.until(leftovers, "only the last backend's devices are left", CONVERGE)
    chaos.note_subnets()
    assert chaos.subnets.keys() == lab.nodes.keys()
    for node in lab.nodes.values():
        text = node.log.read_text()
        assert "Traceback" not in text, text[text.index("Traceback") - 500 :]


def devices(lab: Lab) -> set[str]:
    """Names of the devices that the network's backend has on every host."""
    backend = lab.topology.config["Backend"]
    tunnel = {f"na-vx{backend.get('VNI', 1)}"}
    bgp = tunnel if backend.get("Encapsulation", "none") != "none" else set()
    return {"vxlan": tunnel, "udp": {"na-tun"}, "host-gw": set(), "bgp": bgp}[backend["Type"]]
