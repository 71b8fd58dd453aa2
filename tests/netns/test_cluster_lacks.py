"""A kernel without the backend's device: the agent says so, names the next best backend, and follows to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from netagent.errors import AgentUnavailable
from netagent.lab.lab import Lab
from netagent.planning import RETIRE_AFTER
from tests.support.netns import lacks_device

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


async def test_ipip_where_the_kernel_has_none() -> None:
    if not lacks_device("ipip"):
        pytest.skip("this kernel makes ipip devices: the VMs' tests block the module")
    async with Lab(nodes=2, backend="ipip") as lab:

        async def told() -> str:
            try:
                findings = [f for node in lab.nodes.values() for f in (await node.status()).findings]
            except AgentUnavailable:
                return "an agent does not answer yet"
            found = [f for f in findings if f.code == "kernel-lacks-device"]
            return "" if len(found) == 2 else f"{[f.code for f in findings]}"

        await lab.until(told, "both agents say what their kernel lacks", 20)
        status = await lab["h1"].status()
        (finding,) = [f for f in status.findings if f.code == "kernel-lacks-device"]
        assert finding.subject == "ipip"
        assert 'use "vxlan", the next best backend' in finding.remedy
        assert not status.verdict.ready
        assert [f for f in status.findings if f.code == "object-refused" and not f.subject.startswith("link")] == []
        assert all(code is None for code in [await node.agent_code() for node in lab.nodes.values()])

        await lab.set_backend("vxlan")
        await lab.ready(backend="vxlan")
        assert (await lab.ping()).ok

        async def gone() -> str:
            findings = [f.code for node in lab.nodes.values() for f in (await node.status()).findings]
            return "still told" if "kernel-lacks-device" in findings else ""

        await lab.until(gone, "nothing is lacking any more", 20)


async def test_a_change_to_a_backend_that_the_kernel_lacks_takes_no_traffic_away() -> None:
    """h1 lacks the device (a foreign one has its place, as after flannel), h2 does not and changes."""
    async with Lab(nodes=2, backend="host-gw") as lab:
        await lab.ready()
        one = lab["h1"]
        await one.ip("link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.50.11 dev eth0")
        async with lab.flow() as flow:
            await lab.set_backend("vxlan")

            async def told() -> str:
                found = {f.code for f in (await one.status()).findings}
                return "" if {"backend-waits", "vxlan-vni-taken"} <= found else f"{found}"

            await lab.until(told, "h1 says that it stays", 20)

            async def changed() -> str:
                leases = await lab.etcd.leases()
                kinds = sorted(json.loads(value)["BackendType"] for value in leases.values())
                return "" if kinds == ["host-gw", "vxlan"] else f"{kinds}"

            await lab.until(changed, "h2 has changed, and h1 announces what it had", 20)
            assert (await one.status()).verdict.ready
            # Longer than a previous backend stays that nobody uses.
            await asyncio.sleep(RETIRE_AFTER + 1)
            assert (await lab.ping()).ok
            await one.ip("link del flannel.1")
            await lab.ready(backend="vxlan")
        assert flow.lost == 0, flow
        assert "backend-waits" not in {f.code for f in (await one.status()).findings}


async def test_a_change_that_waits_can_be_taken_back() -> None:
    if not lacks_device("ipip"):
        pytest.skip("this kernel makes ipip devices: the VMs' tests block the module")
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        async with lab.flow() as flow:
            await lab.set_backend("ipip")

            async def told() -> str:
                lacks = [{f.code for f in (await node.status()).findings} for node in lab.nodes.values()]
                return "" if all({"backend-waits", "kernel-lacks-device"} <= found for found in lacks) else f"{lacks}"

            await lab.until(told, "both say that they stay", 20)
            await lab.set_backend("vxlan")

            async def healthy() -> str:
                verdicts = [(await node.status()).verdict for node in lab.nodes.values()]
                return "" if all(v.state == "healthy" for v in verdicts) else f"{verdicts}"

            await lab.until(healthy, "nothing is left of it", 20)
        assert flow.lost == 0, flow


async def test_a_change_of_vni_that_waits_takes_no_traffic_away() -> None:
    """The same backend before and after; and what was to come is changed again while it waits."""
    async with Lab(nodes=3, backend={"Type": "vxlan", "VNI": 7}) as lab:
        await lab.ready()
        one = lab["h1"]
        await one.ip("link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.50.11 dev eth0")

        def on(*vnis: int) -> Callable[[], Awaitable[str]]:
            async def look() -> str:
                leases = await lab.etcd.leases()
                found = sorted(json.loads(value)["BackendData"]["VNI"] for value in leases.values())
                return "" if found == sorted(vnis) else f"{found}"

            return look

        async with lab.flow() as flow:
            await lab.set_backend({"Type": "vxlan", "VNI": 1})
            await lab.until(on(1, 1, 7), "h2 and h3 have changed, and h1 announces what it had", 20)
            await asyncio.sleep(RETIRE_AFTER + 1)
            assert (await lab.ping()).ok
            await lab.set_backend({"Type": "vxlan", "VNI": 9})
            await lab.until(on(9, 9, 9), "all have changed", 20)
        assert flow.lost == 0, flow


async def test_agents_that_start_anew_while_a_change_waits_take_no_traffic_away() -> None:
    """h1, which cannot follow, and h2, which has."""
    async with Lab(nodes=3, backend="host-gw") as lab:
        await lab.ready()
        one = lab["h1"]
        await one.ip("link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.50.11 dev eth0")

        async def waits() -> str:
            leases = await lab.etcd.leases()
            kinds = sorted(json.loads(value)["BackendType"] for value in leases.values())
            found = {f.code for f in (await one.status()).findings}
            return "" if kinds == ["host-gw", "vxlan", "vxlan"] and "backend-waits" in found else f"{kinds} {found}"

        async with lab.flow() as flow:
            await lab.set_backend("vxlan")
            await lab.until(waits, "h1 waits", 20)
            for name in ("h1", "h2"):
                await lab[name].restart_agent()
                await lab.ready(attach=False)
                await asyncio.sleep(RETIRE_AFTER + 1)
                assert not await waits(), name
            await one.ip("link del flannel.1")
            await lab.ready(backend="vxlan")
        assert flow.lost == 0, flow


async def test_a_change_to_a_backend_without_a_way_to_a_peer_is_followed() -> None:
    """Both have host-gw, and a router lies between: what the network is configured to is no path."""
    async with Lab(nodes=2, kind="racks", backend="vxlan") as lab:
        await lab.ready()
        await lab.set_backend("host-gw")

        async def unreachable() -> str:
            found = {peer.state: peer.reason for node in lab.nodes.values() for peer in await node.peers()}
            return "" if set(found) == {"unreachable"} else f"{found}"

        await lab.until(unreachable, "no path is left", 30)
        assert {f.code for f in (await lab["h1"].status()).findings} == {"hostgw-not-on-link"}
        assert "proto 110" not in await lab["h1"].ip("route show type unicast proto 110")
        await lab.set_backend("vxlan")
        await lab.ready(backend="vxlan")
        assert (await lab.ping()).ok
