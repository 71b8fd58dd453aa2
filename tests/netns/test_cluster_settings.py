"""Hosts with strict reverse path filtering: every backend carries, a change of backend loses nothing, and cleanup
gives each setting back."""

from __future__ import annotations

import pytest

from netagent.lab.lab import Lab
from netagent.lab.node import Node

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

STRICT = "for dev in all default eth0; do echo 1 > /proc/sys/net/ipv4/conf/$dev/rp_filter; done"


async def rp_filter(node: Node, dev: str) -> str:
    return (await node.exec("cat", f"/proc/sys/net/ipv4/conf/{dev}/rp_filter")).out.strip()


@pytest.mark.parametrize(
    ("backend", "device"), [("vxlan", "na-vx1"), ("udp", "na-tun"), ("host-gw", "eth0")], ids=lambda word: word
)
async def test_strict_reverse_path_filtering(backend: str, device: str) -> None:
    async with Lab(nodes=2, backend=backend) as lab:
        await lab.ready()
        for node in lab.nodes.values():
            await node.exec("sh", "-ec", STRICT)
            await node.restart_agent()
        await lab.ready()
        node = lab["h1"]

        async def loose() -> str:
            found = await rp_filter(node, device)
            return "" if found == "2" else f"rp_filter of {device} is {found}"

        await lab.until(loose, "inner packets may arrive", 5)
        assert (await lab.ping()).ok
        assert await rp_filter(node, "all") == "1"
        if device != "eth0":
            assert await rp_filter(node, "eth0") == "1"  # a foreign device is left as it is
        await node.stop_agent()
        await node.exec("netagent", "cleanup", "--yes")
        assert await rp_filter(node, "eth0") == "1"
        assert await rp_filter(node, "all") == "1"


async def test_a_change_of_backend_under_strict_filtering() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        for node in lab.nodes.values():
            await node.exec("sh", "-ec", STRICT)
            await node.restart_agent()
        await lab.ready()
        async with lab.flow() as flow:
            for backend in ("host-gw", "udp", "vxlan"):
                await lab.set_backend(backend)
                await lab.ready(backend=backend)
        assert flow.lost == 0
