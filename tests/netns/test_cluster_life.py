"""Nodes come, go, crash and return, agents are restarted and killed, the backend changes: and packets flow on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from netagent.lab.lab import Lab
from netagent.lab.node import Node

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

BACKENDS = ("host-gw", "vxlan", "udp")


async def until(lab: Lab, look: Callable[[], Awaitable[str]], what: str, timeout: float = 15.0) -> None:
    await lab.until(look, what, timeout)


async def has_state(node: Node, peer: str, state: str) -> str:
    found = {p.node: p.state for p in await node.peers()}
    return "" if found.get(peer) == state else f"{node.name} sees {peer} as {found.get(peer)}"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_restart_and_crash_of_the_agent_lose_no_packet(backend: str) -> None:
    async with Lab(nodes=3, backend=backend) as lab:
        await lab.ready(backend=backend)
        subnets = {name: node.subnet_env()["FLANNEL_SUBNET"] for name, node in lab.nodes.items()}
        async with lab.flow() as flow:
            await lab["h1"].restart_agent()
            await lab.ready(attach=False)
            await lab["h2"].kill_agent()
            await asyncio.sleep(0.3)
            await lab["h2"].start_agent()
            await lab.ready(attach=False)
        assert flow.sent > 300
        assert flow.lost == 0, flow
        assert {name: node.subnet_env()["FLANNEL_SUBNET"] for name, node in lab.nodes.items()} == subnets


async def test_sigterm_ends_with_zero_and_leaves_the_kernel() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        before = await kernel(lab["h1"])
        assert await lab["h1"].stop_agent() == 0
        assert await kernel(lab["h1"]) == before


async def kernel(node: Node) -> list[str]:
    return [
        await node.ip("route show proto 110"),
        await node.ip("nexthop show"),
        await node.ip("neigh show nud permanent"),
        (await node.exec("bridge", "fdb", "show", "dev", "na-vx1")).out,
        (await node.exec("nft", "list", "table", "inet", "netagent")).out,
    ]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_node_joins_dies_and_its_lease_is_released(backend: str) -> None:
    async with Lab(nodes=2, backend=backend, extra=("--alive-ttl", "3")) as lab:
        await lab.ready(backend=backend)
        new = await lab.add_node()
        await lab.ready()
        assert (await lab.ping(hosts=True)).ok
        subnet = new.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")
        await lab.remove_node(new.name)
        for node in lab.nodes.values():
            await until(lab, lambda node=node: has_state(node, "h3", "down"), "the dead node is shown down")
            assert subnet in await node.ip("route show proto 110"), "its routes stay until its lease ends"
        await lab["h1"].exec("netagent", "lease", "release", "--node", "h3")

        async def gone() -> str:
            left = [n.name for n in lab.nodes.values() if subnet in await n.ip("route show proto 110")]
            return f"{left} still have a route" if left else ""

        await until(lab, gone, "the routes are withdrawn")
        assert (await lab.ping()).ok


async def test_a_node_that_returns_has_its_subnet() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        subnet = lab["h2"].subnet_env()["FLANNEL_SUBNET"]
        await lab["h2"].kill_agent()
        await lab["h2"].ip("link delete na-vx1")
        await lab["h2"].ip("route flush proto 110")
        lab["h2"].subnet_file.unlink()
        await lab["h2"].start_agent()
        await lab.ready()
        assert lab["h2"].subnet_env()["FLANNEL_SUBNET"] == subnet
        assert (await lab.ping(hosts=True)).ok


@pytest.mark.parametrize(
    ("before", "after"),
    [("host-gw", "vxlan"), ("vxlan", "udp"), ("udp", "host-gw"), ("vxlan", {"Type": "vxlan", "VNI": 7})],
    ids=str,
)
async def test_the_backend_changes_under_running_agents(before: str, after: object) -> None:
    async with Lab(nodes=3, backend=before) as lab:
        await lab.ready()
        async with lab.flow() as flow:
            await lab.set_backend(after)  # type: ignore[arg-type]
            await lab.ready(backend=after if isinstance(after, str) else after["Type"])  # type: ignore[index]
            gone = {"host-gw": "none", "vxlan": "na-vx1", "udp": "na-tun"}[before]
            await until(lab, lambda: devices_gone(lab, gone), f"{gone} is gone", 20)
        assert flow.lost == 0, flow
        assert (await lab.ping(hosts=True)).ok


async def test_a_backend_that_changes_while_an_agent_is_away() -> None:
    """It begins with what stood, which its peers still have for it, and then follows."""
    async with Lab(nodes=3, backend="vxlan") as lab:
        await lab.ready()
        async with lab.flow() as flow:
            await lab["h2"].stop_agent()
            await lab.set_backend("host-gw")
            await until(lab, lambda: has_path(lab["h1"], "h3", "eth0"), "h1 and h3 have changed")
            await lab["h2"].start_agent()
            await lab.ready(backend="host-gw", attach=False)
            await until(lab, lambda: devices_gone(lab, "na-vx1"), "na-vx1 is gone", 20)
        assert flow.lost == 0, flow


async def has_path(node: Node, peer: str, dev: str) -> str:
    found = await node.route_to(node.lab[peer].container_ip())
    return "" if found.endswith(f"dev {dev}") else f"{node.name} has {found}"


async def devices_gone(lab: Lab, name: str) -> str:
    left = [node.name for node in lab.nodes.values() if name in (await node.ip("-br link show")).split()]
    return f"{name} is still on {left}" if left else ""


async def test_a_changed_address_keeps_the_subnet_and_is_followed() -> None:
    async with Lab(nodes=3, backend="vxlan") as lab:
        await lab.ready()
        subnet = lab["h2"].subnet_env()["FLANNEL_SUBNET"]
        await lab["h2"].set_address("192.168.50.99/24")

        async def moved() -> str:
            endpoints = {p.node: p.endpoint for p in await lab["h1"].peers()}
            return "" if endpoints["h2"] == "192.168.50.99" else f"h1 has h2 at {endpoints['h2']}"

        await until(lab, moved, "the peers follow")
        await lab.ready()
        assert lab["h2"].subnet_env()["FLANNEL_SUBNET"] == subnet
        assert (await lab.ping(hosts=True)).ok
        fdb = (await lab["h1"].exec("bridge", "fdb", "show", "dev", "na-vx1")).out
        assert "192.168.50.99" in fdb
        assert "192.168.50.12" not in fdb


async def test_a_changed_mtu_is_followed() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        for name in ("h1", "h2"):
            await lab[name].set_mtu(1400)

        async def followed() -> str:
            mtus = [node.subnet_env()["FLANNEL_MTU"] for node in lab.nodes.values()]
            return "" if mtus == ["1350", "1350"] else f"subnet.env has {mtus}"

        await until(lab, followed, "subnet.env follows")
        await lab.ready()
        assert "mtu 1350" in await lab["h1"].ip("link show na-vx1")
        assert (await lab.ping(size=1350 - 28, whole=True)).ok


@pytest.mark.parametrize("backend", BACKENDS)
async def test_carrier_loss_and_link_down(backend: str) -> None:
    async with Lab(nodes=3, backend=backend) as lab:
        await lab.ready(backend=backend)
        await lab["h2"].cut()
        assert not (await lab.ping(timeout=0.2)).ok
        await lab["h2"].mend()
        await reached(lab)
        await lab["h2"].ip("link set eth0 down")
        assert not (await lab.ping(timeout=0.2)).ok
        await lab["h2"].ip("link set eth0 up")
        await lab["h2"].ip("route replace default via 192.168.50.1")
        await reached(lab)
        # With the agent stopped a mere carrier loss heals by itself.
        await lab["h2"].stop_agent()
        await lab["h2"].cut()
        await asyncio.sleep(0.5)
        await lab["h2"].mend()
        await reached(lab)


async def reached(lab: Lab) -> None:
    async def look() -> str:
        matrix = await lab.ping(timeout=0.3)
        return "" if matrix.ok else f"{len(matrix.failed)} pairs without a reply"

    await until(lab, look, "everybody reaches everybody again")
