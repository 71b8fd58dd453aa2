"""Whole clusters of real agents on a real etcd: every backend and address family carries every kind of packet."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from netagent.lab.lab import Lab

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

BACKENDS = ("host-gw", "vxlan", "udp", "bgp")
HEADERS = {4: 28, 6: 48}  # IP and ICMP

SERVER = """
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 9000), family=family) as listener:
    print('ready', flush=True)
    peer, _ = listener.accept()
    with peer:
        total = 0
        while data := peer.recv(65536):
            total += len(data)
        peer.sendall(str(total).encode())
"""

CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000), timeout=20) as peer:
    for _ in range(64):
        peer.sendall(bytes(65536))
    peer.shutdown(socket.SHUT_WR)
    print(peer.recv(100).decode())
"""


async def tcp(lab: Lab, source: str, target: str, family: int) -> None:
    """4 MiB from container to container, counted at the other end."""
    address = lab[target].container_ip(family)
    server = await lab[target].start(
        sys.executable, "-c", SERVER, address, container=True, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert await asyncio.wait_for(server.stdout.readline(), 20) == b"ready\n"
        result = await lab[source].exec(sys.executable, "-c", CLIENT, address, container=True)
        assert result.out.strip() == str(64 * 65536)
        assert await asyncio.wait_for(server.wait(), 20) == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("v4", "v6"), [(True, False), (True, True), (False, True)], ids=["v4", "dual", "v6"])
async def test_everybody_reaches_everybody(backend: str, v4: bool, v6: bool) -> None:
    async with Lab(nodes=3, backend=backend, ipv4=v4, ipv6=v6) as lab:
        await lab.ready(backend=backend)
        matrix = await lab.ping(count=2, hosts=True)
        assert matrix.ok, matrix.failed
        mtu = int(lab["h1"].subnet_env()["FLANNEL_MTU"])
        for family in lab.topology.families:
            whole = await lab.ping(family=family, size=mtu - HEADERS[family], whole=True)
            assert whole.ok, ("the largest whole packet", whole.failed)
            pieces = await lab.ping(family=family, size=2 * mtu)
            assert pieces.ok, ("fragments", pieces.failed)
            await tcp(lab, "h1", "h2", family)
        for node in lab.nodes.values():
            status = await node.status()
            assert status.verdict.state == "healthy", status.verdict
            assert status.peers.states == {"up": 2}


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_packet_that_is_too_big_for_the_path_is_told(backend: str) -> None:
    """A container with a larger MTU than the path learns it: ICMP, or the local error, and never silence."""
    async with Lab(nodes=2, backend=backend) as lab:
        await lab.ready(backend=backend)
        mtu = int(lab["h1"].subnet_env()["FLANNEL_MTU"])
        for name in ("h1", "h2"):
            await lab[name].ip("link set eth0 mtu 9000", container=True)
            await lab[name].ip(f"link set {await bridge_port(lab, name)} mtu 9000")
        target = lab["h2"].container_ip()
        large = ("ping", "-c", "2", "-W", "1", "-M", "do", "-s", str(mtu - 28 + 1), target)
        result = await lab["h1"].exec(*large, container=True, check=False)
        assert result.code != 0
        told = result.out + result.err
        assert f"mtu={mtu}" in told or f"mtu = {mtu}" in told, told
        await lab["h1"].exec("ping", "-c", "1", "-W", "2", "-s", str(mtu * 2), target, container=True)


async def bridge_port(lab: Lab, name: str) -> str:
    """The host's end of the container's wire."""
    import json

    links = json.loads(await lab[name].ip("-j link show type veth"))
    return next(link["ifname"] for link in links if link["ifname"] != "eth0")


@pytest.mark.parametrize(
    "backend",
    [
        "vxlan",
        {"Type": "vxlan", "DirectRouting": True},
        "udp",
        {"Type": "bgp", "Encapsulation": "vxlan"},
        {"Type": "bgp", "Encapsulation": "vxlan-cross-subnet"},
    ],
    ids=str,
)
async def test_across_a_router(backend: Any) -> None:
    async with Lab(nodes=4, backend=backend, kind="racks", ipv6=True) as lab:
        await lab.ready()
        matrix = await lab.ping(hosts=True)
        assert matrix.ok, matrix.failed
        if isinstance(backend, dict) and backend.get("Encapsulation") != "vxlan":
            near = next(h.name for h in lab.topology.hosts if h.rack == "rack1" and h.name != "h1")
            far = next(h.name for h in lab.topology.hosts if h.rack != "rack1")
            assert "dev eth0" in await lab["h1"].route_to(lab[near].container_ip())
            assert "dev na-vx1" in await lab["h1"].route_to(lab[far].container_ip())


async def test_host_gw_across_a_router_says_why_not() -> None:
    async with Lab(nodes=2, backend="host-gw", kind="racks") as lab:
        await lab.ready()
        status = await lab["h1"].status()
        assert status.peers.states == {"unreachable": 1}
        assert [f.code for f in status.findings if f.code.startswith("hostgw")] == ["hostgw-not-on-link"]
        assert await lab["h1"].route_to(lab["h2"].container_ip()) != "none"  # the default route; but:
        assert (await lab.ping(timeout=0.3)).good == 0


async def test_traffic_to_unassigned_subnets_never_leaves() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        result = await lab["h1"].exec("ping", "-c", "1", "-W", "1", "10.5.255.9", container=True, check=False)
        assert "Unreachable" in result.out


async def test_a_change_of_backend_moves_both_families() -> None:
    async with Lab(nodes=2, backend="host-gw", ipv6=True) as lab:
        await lab.ready()
        for backend, device in (("vxlan", "na-vx6-1"), ("host-gw", "eth0"), ("vxlan", "na-vx6-1")):
            await lab.set_backend(backend)
            await lab.ready(backend=backend)
            target = lab["h2"].container_ip(6)

            async def moved(device: str = device, target: str = target) -> str:
                path = await lab["h1"].route_to(target)
                return "" if path.endswith(f"dev {device}") else path

            await lab.until(moved, f"IPv6 goes by {device}", 20)
            assert (await lab.ping()).ok
