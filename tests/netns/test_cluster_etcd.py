"""etcd stops, dies, is wiped and compacted under running agents: packets flow, state comes back, and all is told."""

from __future__ import annotations

import asyncio
import json

import pytest

from netagent.errors import AgentUnavailable
from netagent.lab.lab import Lab
from netagent.status import Status

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

BACKENDS = ("host-gw", "vxlan", "udp")
ABOVE_IS_OURS = {"SubnetMax": "10.5.199.0"}  # no agent leases what these tests write, 10.5.240.0 and up


async def until_status(lab: Lab, name: str, want: str, look: object, timeout: float = 20.0) -> Status:
    """The node's status once `look` says yes of it."""
    seen: list[Status] = []

    async def check() -> str:
        try:
            seen[:] = [await lab[name].status()]
        except AgentUnavailable:
            return f"{name} does not answer yet"
        return "" if look(seen[0]) else f"{name}: {seen[0].verdict.reason}"  # type: ignore[operator]

    await lab.until(check, want, timeout)
    return seen[0]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_an_outage_loses_no_packet_and_is_told(backend: str) -> None:
    async with Lab(nodes=3, backend=backend) as lab:
        await lab.ready(backend=backend)
        async with lab.flow() as flow:
            await lab.etcd.kill()
            status = await until_status(lab, "h1", "the outage is told", lambda s: not s.etcd.connected)
            assert status.verdict.state == "degraded"
            assert status.verdict.ready
            assert "etcd unreachable" in status.verdict.reason
            assert len(await lab["h1"].peers()) == 2
            # A restart in the outage goes on from the snapshot.
            await lab["h2"].restart_agent()
            await until_status(lab, "h2", "the snapshot is used", lambda s: s.verdict.ready)
            await lab.etcd.start()
            for name in lab.nodes:
                await until_status(lab, name, "etcd is back", lambda s: s.verdict.state == "healthy")
        assert flow.lost == 0, flow
        # Who joins now is seen by all.
        await lab.add_node()
        await lab.ready()
        assert (await lab.ping()).ok


async def test_an_agent_that_boots_without_etcd_forwards_from_its_snapshot() -> None:
    """As after a reboot: nothing of ours in the kernel, no run directory, etcd down."""
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        await until_snapshot(lab)
        subnet = lab["h1"].subnet_env()["FLANNEL_SUBNET"]
        await lab.etcd.stop()
        await lab["h1"].stop_agent()
        kept = json.loads((lab["h1"].state_dir / "lease.json").read_text())
        (lab["h1"].state_dir / "lease.json").write_text(json.dumps({**kept, "boot": "another boot"}))
        await lab["h1"].exec("netagent", "cleanup", "--yes")
        assert lab["h1"].subnet_env() == {}
        await lab["h1"].start_agent()
        status = await until_status(lab, "h1", "ready from the snapshot", lambda s: s.verdict.ready)
        assert (status.etcd.source, status.lease.state) == ("snapshot", "restored")
        assert lab["h1"].subnet_env()["FLANNEL_SUBNET"] == subnet
        assert (await lab.ping(hosts=True)).ok
        await lab.etcd.start()
        await until_status(lab, "h1", "held again", lambda s: s.lease.state == "held")
        assert lab["h1"].subnet_env()["FLANNEL_SUBNET"] == subnet


async def until_snapshot(lab: Lab) -> None:
    """Every node has written down that it knows every other."""

    async def look() -> str:
        missing = []
        for name, node in lab.nodes.items():
            path = node.state_dir / "snapshot"
            data = path.read_bytes() if path.exists() else b""
            missing += (
                [name]
                if data.count(b"PublicIP\\\\") < len(lab.nodes) and data.count(b'"10.5.') < len(lab.nodes)
                else []
            )
        return f"no snapshot of all on {missing}" if missing else ""

    await lab.until(look, "snapshots", 20)


async def test_a_wiped_etcd_gets_every_subnet_back() -> None:
    async with Lab(nodes=3, backend="vxlan") as lab:
        await lab.ready()
        before = await lab.etcd.leases()
        async with lab.flow() as flow:
            await lab.etcd.wipe()

            async def back() -> str:
                now = await lab.etcd.leases()
                return "" if now == before else f"etcd has {sorted(now)}"

            await lab.until(back, "every lease is claimed again", 30)
            for name in lab.nodes:
                await until_status(lab, name, "healthy again", lambda s: s.verdict.state == "healthy", 30)
        assert flow.lost == 0, flow


async def test_compaction_while_cut_off() -> None:
    async with Lab(nodes=2, backend="vxlan", config=ABOVE_IS_OURS) as lab:
        await lab.ready()
        await lab.etcd.pause()
        await until_status(lab, "h1", "the outage is told", lambda s: not s.etcd.connected, 40)
        await lab.etcd.resume()
        for number in range(5):
            await put_lease(lab, number)
        revision = json.loads(await lab.etcd.ctl("get", "x", "-w", "json"))["header"]["revision"]
        await lab.etcd.ctl("compact", str(revision))
        for name in lab.nodes:
            await until_status(lab, name, "all is known", lambda s: s.etcd.connected and s.peers.total == 6, 40)


async def put_lease(lab: Lab, number: int) -> None:
    """A lease of a foreign node, as flanneld writes it."""
    value = {
        "PublicIP": f"192.168.50.{200 + number}",
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": f"02:00:00:00:01:{number:02x}"},
    }
    await lab.etcd.ctl("put", f"{lab.etcd.prefix}/subnets/10.5.{240 + number}.0-24", json.dumps(value))


async def test_malformed_records_stop_nothing() -> None:
    """flanneld from 0.21.3 on drops all its routes at the first of these (the reference's Behaviour 4)."""
    async with Lab(nodes=2, backend="vxlan", config=ABOVE_IS_OURS) as lab:
        await lab.ready()
        prefix = lab.etcd.prefix
        async with lab.flow() as flow:
            for key, value in (
                ("subnets/garbage", "x"),
                ("subnets/10.5.250.0-24", "not json"),
                ("subnets/10.5.251.0-24", '{"PublicIP":"no address"}'),
                ("subnets/10.5.252.0-99", "{}"),
                (
                    "subnets/10.5.253.0-24",
                    '{"PublicIP":"192.168.50.90","BackendType":"vxlan","BackendData":{"VNI":"x"}}',
                ),
                ("netagent/owners/10.5.254.0-24", "[]"),
                ("netagent/nodes/evil", "\\u0000"),
            ):
                await lab.etcd.ctl("put", f"{prefix}/{key}", value)
            await put_lease(lab, 0)
            status = await until_status(lab, "h1", "the good one is planned", lambda s: "unknown" in s.peers.states)
            await asyncio.sleep(0.1)
        assert flow.lost == 0
        subjects = " ".join(f.subject for f in status.findings)
        for word in ("garbage", "10.5.250.0-24", "10.5.251.0-24", "10.5.252.0-99", "10.5.253.0-24"):
            assert word in subjects, subjects
        assert "10.5.240.0/24" in await lab["h1"].ip("route show proto 110")


async def test_our_key_taken_by_another_is_reported_and_not_fought() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        subnet = lab["h1"].subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0-24")
        key = f"{lab.etcd.prefix}/subnets/{subnet}"
        other = {"PublicIP": "192.168.50.66", "PublicIPv6": None, "BackendType": "host-gw"}
        await lab.etcd.ctl("put", key, json.dumps(other))
        status = await until_status(lab, "h1", "the conflict is told", lambda s: s.lease.state == "conflict")
        assert status.verdict.state == "degraded"
        assert lab["h1"].subnet_env()["FLANNEL_SUBNET"].startswith(subnet.split("-")[0][:-1])
        assert "192.168.50.66" in await lab.etcd.ctl("get", key)
        await lab.etcd.ctl("del", key)
        await until_status(lab, "h1", "the subnet is ours again", lambda s: s.lease.state == "held")
        assert "192.168.50.11" in await lab.etcd.ctl("get", key)


async def test_our_key_deleted_is_claimed_again() -> None:
    """flanneld shuts itself down: "Lease has been revoked"."""
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        before = await lab.etcd.leases()
        async with lab.flow() as flow:
            await lab.etcd.ctl("del", "--prefix", f"{lab.etcd.prefix}/subnets/")

            async def back() -> str:
                return "" if await lab.etcd.leases() == before else "not yet"

            await lab.until(back, "both are claimed again", 20)
            await lab.ready()
        assert flow.gap < 1.0
        assert (await lab.ping()).ok


async def test_nodes_race_for_the_last_subnet() -> None:
    """Of three nodes that want two subnets one goes without, and says what is exhausted."""
    config = {"Network": "10.5.0.0/22", "SubnetLen": 24, "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.2.0"}
    async with Lab(nodes=3, config={**config, "Backend": {"Type": "host-gw"}}) as lab:

        async def one_without() -> str:
            held = await lease_states(lab)
            return "" if sorted(held.values()) == ["claiming", "held", "held"] else str(held)

        await lab.until(one_without, "two hold a subnet, one waits", 20)
        held = await lease_states(lab)
        without = await lab[next(name for name, state in held.items() if state == "claiming")].status()
        assert "subnets-exhausted" in [f.code for f in without.findings]
        assert not without.verdict.ready


async def lease_states(lab: Lab) -> dict[str, str]:
    found = {}
    for name, node in lab.nodes.items():
        try:
            found[name] = (await node.status()).lease.state
        except AgentUnavailable:
            found[name] = "no answer yet"
    return found
