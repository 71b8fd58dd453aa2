"""bgp between the virtual machines: mesh and reflectors, each encapsulation, over a router, and when power fails.

Rule: as in test_vms.py, whose cluster this is; each test asks for the topology that it wants and waits until every
part and every route stands. Which way packets go is read from the kernels (`ip route get`), not from the agents.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
import pytest_asyncio

from netagent.lab import topology
from tests.support.vmlab import VmLab
from tests.support.vmrouter import RackRouter

pytestmark = [pytest.mark.vms, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

ALL = ("h1", "h2", "h3")
MESH: Mapping[str, Any] = {"Type": "bgp", "HoldTime": 30}
REFLECTED: Mapping[str, Any] = {**MESH, "Mesh": False, "Reflectors": ["h1"]}
TWO_REFLECTORS: Mapping[str, Any] = {**MESH, "Mesh": False, "Reflectors": ["h1", "h2"]}

# Part and number of sessions of each node.
MESHED = dict.fromkeys(ALL, ("mesh", 2))
BY_ONE = {"h1": ("reflector", 2), "h2": ("client", 1), "h3": ("client", 1)}
BY_TWO = {"h1": ("reflector", 2), "h2": ("reflector", 2), "h3": ("client", 2)}

# What carries packets to another rack, in each family; MTU of containers in a network of both families.
TUNNELS = {"none": ("eth0", "eth0"), "vxlan": ("na-vx1", "na-vx6-1"), "ipip": ("na-ipip", "na-s")}
MTU = {"none": 1500, "vxlan": 1430, "ipip": 1480}


@pytest_asyncio.fixture(loop_scope="session")
async def racks(lab: VmLab) -> VmLab:
    """Both families; h2 in the other rack."""
    await lab.set_config(**topology.IPV6_NETWORK)
    if lab["h2"].host.rack != "rack2":
        await lab.set_backend("vxlan")
        await lab.move("h2", "rack2")
    await lab.ready()
    return lab


@pytest_asyncio.fixture(loop_scope="session")
async def router(racks: VmLab) -> AsyncIterator[RackRouter]:
    router = RackRouter(racks)
    await router.start()
    yield router
    await stands(racks, {**MESH, "Encapsulation": "vxlan"}, MESHED)  # what the next one starts from
    await router.stop()


async def stands(
    lab: VmLab, backend: Mapping[str, Any], parts: Mapping[str, tuple[str, int]], routers: int = 0
) -> None:
    """Ask for a topology, and wait until each node plays its part with all its sessions and sends as it should."""
    await lab.set_backend(backend)
    encapsulation = str(backend.get("Encapsulation", "none"))

    async def look() -> str:
        missing = await asyncio.gather(*(part(lab, name, *parts[name], routers) for name in parts))
        missing += await asyncio.gather(*(ways(lab, name, encapsulation, parts) for name in parts))
        return "; ".join(filter(None, missing))

    await lab.until(look, f"{backend} stands", 120)
    await lab.healthy(parts)


async def part(lab: VmLab, name: str, role: str, sessions: int, routers: int = 0) -> str:
    """ "" once the node plays that part with so many sessions, all of them up."""
    status = await lab[name].status()
    if status is None:
        return f"{name} does not answer"
    gauges = status.backend.service.get("gauges", {})
    found = (status.backend.service.get("role"), gauges.get("sessions"), gauges.get("sessions_established"))
    wanted = sessions + routers
    return "" if found == (role, wanted, wanted) else f"{name}: {status.backend.service.get('summary')}"


async def ways(lab: VmLab, name: str, encapsulation: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    """ "" once the kernel sends to every other host's containers by the device that the encapsulation asks for, and
    subnet.env has the MTU."""
    kind = encapsulation.removesuffix("-cross-subnet")
    wrong = []
    for other in names:
        if other == name:
            continue
        near = lab[other].host.rack == lab[name].host.rack and kind != encapsulation
        for family, tunnel in zip((4, 6), TUNNELS[kind], strict=True):
            wanted = "eth0" if near else tunnel
            target = lab.container_ip(other, family)
            said = json.loads((await lab[name].exec("ip", "-j", "route", "get", target, check=False)).out or "[{}]")
            dev = str(said[0].get("dev", "none"))
            if dev != wanted and not (wanted == "na-s" and dev.startswith(wanted)):
                wrong.append(f"{name} sends to {other} by {dev} and not by {wanted}")
    env = (await lab[name].exec("cat", "/run/netagent/subnet.env")).out
    if f"FLANNEL_MTU={MTU[kind]}\n" not in env:
        wrong.append(f"{name} has another MTU than {MTU[kind]}")
    return ", ".join(wrong)


@pytest.mark.parametrize("encapsulation", ["vxlan", "vxlan-cross-subnet", "ipip", "ipip-cross-subnet"])
@pytest.mark.parametrize(("backend", "parts"), [(MESH, MESHED), (REFLECTED, BY_ONE)], ids=["mesh", "reflector"])
async def test_tunnels_across_racks(
    racks: VmLab, backend: Mapping[str, Any], parts: Mapping[str, tuple[str, int]], encapsulation: str
) -> None:
    await stands(racks, {**backend, "Encapsulation": encapsulation}, parts)
    await racks.carries()


@pytest.mark.parametrize(("backend", "parts"), [(MESH, MESHED), (REFLECTED, BY_ONE)], ids=["mesh", "reflector"])
async def test_no_tunnel_and_the_router_as_a_peer(
    racks: VmLab, router: RackRouter, backend: Mapping[str, Any], parts: Mapping[str, tuple[str, int]]
) -> None:
    """The router (BIRD) hears each node's subnets, and tells them to the other rack."""
    await stands(racks, {**backend, "Nodes": router.nodes()}, parts, routers=1)
    assert len(await router.routes()) == 2 * len(ALL)
    await racks.carries()
    via = (await racks["h1"].exec("ip", "route", "get", racks.container_ip("h2", 4))).out
    assert f"via {router.leg('rack1')[0]} " in via


async def test_from_mesh_to_reflectors_and_back_loses_no_packet(racks: VmLab) -> None:
    tunnel = {"Encapsulation": "ipip-cross-subnet"}
    await stands(racks, {**MESH, **tunnel}, MESHED)
    async with racks.flow() as flow:
        await stands(racks, {**TWO_REFLECTORS, **tunnel}, BY_TWO)
        await stands(racks, {**REFLECTED, **tunnel}, BY_ONE)
        await stands(racks, {**MESH, **tunnel}, MESHED)
    print(f"{flow.sent} pings")
    assert flow.sent > 500
    assert flow.lost == 0, flow


async def test_a_node_reboots(racks: VmLab) -> None:
    """Its peers go on; it returns as who it was, with the part that it had."""
    backend = {**REFLECTED, "Encapsulation": "vxlan-cross-subnet"}
    await stands(racks, backend, BY_ONE)
    before = await racks.ready()
    async with racks.flow("h1", "h2") as flow:
        print(f"h3 rebooted in {await racks['h3'].reboot():.0f} s")
    assert flow.lost == 0, flow
    racks.forget_container("h3")
    after = await racks.ready()
    assert (after["h3"].lease.v4, after["h3"].lease.v6) == (before["h3"].lease.v4, before["h3"].lease.v6)
    await stands(racks, backend, BY_ONE)
    await racks.carries()


async def test_power_off_of_a_reflector(racks: VmLab) -> None:
    """The other reflector carries on: no packet is lost, and who comes and goes is still told."""
    backend = {**TWO_REFLECTORS, "Encapsulation": "ipip", "HoldTime": 9}
    await stands(racks, backend, BY_TWO)
    subnet = str((await racks.ready())["h1"].lease.v4)
    async with racks.flow("h2", "h3") as flow:
        await racks["h1"].cut_power()

        async def seen() -> str:
            told = [(await racks[name].status()) for name in ("h2", "h3")]
            up = [s.backend.service["gauges"]["sessions_established"] if s else None for s in told]
            return "" if up == [1, 1] else f"sessions: {up}"

        await racks.until(seen, "the others' sessions with h1 are over", 60)
        # A restarted agent learns all that it knows from the reflector that is left.
        await racks["h3"].exec("systemctl", "restart", "netagent", timeout=120)
        await racks.ready(["h2", "h3"])
    assert flow.lost == 0, flow
    await racks.carries(["h2", "h3"])
    boots = len(racks["h1"].boots)
    await racks["h1"].start()
    await racks["h1"].booted(boots + 1)
    racks.forget_container("h1")
    assert str((await racks.ready())["h1"].lease.v4) == subnet
    await stands(racks, backend, BY_TWO)
    await racks.carries()
