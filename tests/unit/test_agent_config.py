"""The agent and what it is told: bad input, outages and reloads leave what works in force, and are said."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from netagent.agent import Agent
from netagent.errors import ConfigError
from netagent.model import Route, VxlanAttrs
from netagent.store import schema
from netagent.store.base import Put
from netagent.store.memory import MemoryCluster, MemoryStore
from tests.unit.test_agent import PREFIX, host, put_config, running, until

KEYS = schema.Keys(PREFIX)
VXLAN: dict[str, object] = {"Type": "vxlan", "VNI": 7}


def device(agent: Agent) -> VxlanAttrs | None:
    """The vxlan device that is in the kernel."""
    found = [link.vxlan for link in agent.host.facts().links.values() if link.vxlan is not None]
    return found[0] if len(found) == 1 else None


def routed(agent: Agent, dst: str) -> bool:
    return any(isinstance(o, Route) and o.dst == dst and o.type == "unicast" for o in agent.host.dump(("route",)))


def codes(agent: Agent) -> set[str]:
    return {finding.code for finding in agent.findings()}


async def put_peer(cluster: MemoryCluster, key: str, ip: str = "192.168.50.12") -> None:
    data = {"VNI": 7, "VtepMAC": "02:00:00:00:00:99"}
    await MemoryStore(cluster).put(KEYS.subnet(key), schema.lease_value(ip, None, "vxlan", data))


async def ready(agent: Agent) -> None:
    await until(lambda: agent.status().verdict.ready, "the agent is ready")


async def test_without_a_configuration_it_waits_and_says_so(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    async with running(tmp_path, cluster) as agent:
        await until(lambda: agent.source == "etcd", "etcd is read")
        verdict = agent.status().verdict
        assert (verdict.state, verdict.ready) == ("down", False)
        assert "no network configuration" in verdict.reason
        assert agent.host.dump(("link", "route")) == []
        await put_config(cluster, VXLAN)
        await ready(agent)


BAD = {
    "no JSON": b"{",
    "no network": b'{"Network":"nonsense"}',
    "unknown backend": b'{"Network":"10.5.0.0/16","Backend":{"Type":"pigeon"}}',
    "bad option": b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":"seven"}}',
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_bad_configuration_leaves_the_last_good_one_in_force(tmp_path: Path, bad: bytes) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        before = device(agent)
        await MemoryStore(cluster).put(KEYS.config, bad)
        await until(lambda: not agent.status().network.valid, "the mistake is seen")
        assert agent.status().verdict.state == "degraded"
        await put_peer(cluster, "10.5.200.0-24")
        await until(lambda: routed(agent, "10.5.200.0/24"), "a new peer is reached by the last good one")
        assert device(agent) == before
        await put_config(cluster, VXLAN)
        await until(lambda: agent.status().network.valid, "the good one is back")


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_bad_first_configuration_is_named_and_the_agent_is_not_ready(tmp_path: Path, bad: bytes) -> None:
    cluster = MemoryCluster()
    await MemoryStore(cluster).put(KEYS.config, bad)
    async with running(tmp_path, cluster) as agent:
        await until(lambda: agent.status().network.error, "the mistake is seen")
        verdict = agent.status().verdict
        assert (verdict.state, verdict.ready) == ("down", False)
        assert "invalid" in verdict.reason


async def test_a_changed_option_is_applied(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        await put_config(cluster, {"Type": "vxlan", "VNI": 8})
        await until(
            lambda: any(link.vxlan and link.vxlan.vni == 8 for link in agent.host.facts().links.values()),
            "the new device stands",
        )


async def test_a_network_that_no_longer_holds_our_subnet_changes_nothing(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        subnet, before = agent.leasing.state.v4, device(agent)
        other = {"Network": "10.99.0.0/16", "Backend": VXLAN}
        await MemoryStore(cluster).put(KEYS.config, json.dumps(other).encode())
        await until(lambda: agent.status().verdict.state == "degraded", "it is reported")
        assert "no longer holds" in " ".join(agent.status().verdict.reasons)
        assert (agent.leasing.state.v4, device(agent)) == (subnet, before)
        assert agent.network is not None
        assert agent.network.v4 == "10.5.0.0/16"


async def test_a_deleted_configuration_changes_nothing(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    await put_peer(cluster, "10.5.200.0-24")
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        revision = agent.cluster.revision
        await MemoryStore(cluster).delete(KEYS.config)
        await until(lambda: agent.cluster.revision > revision, "the deletion is seen")
        assert agent.status().network.v4 == "10.5.0.0/16"
        assert routed(agent, "10.5.200.0/24")


async def test_neither_our_own_lease_nor_one_outside_the_network_is_planned(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    await put_peer(cluster, "10.77.1.0-24")
    await put_peer(cluster, "10.5.200.0-24", "192.168.50.13")
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        await until(lambda: agent.leasing.state.key in agent.cluster.leases, "our own lease is in the listing")
        await agent.resync()
        assert list(agent.planning.states) == ["10.5.200.0-24"]
        assert not routed(agent, "10.77.1.0/24")
        assert "lease-outside-network" in codes(agent)


async def test_a_boot_without_etcd_forwards_from_the_snapshot(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    await put_peer(cluster, "10.5.200.0-24")
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        subnet = agent.leasing.state.v4
        agent.snapshot.write()
    async with running(tmp_path, cluster, kernel=host()) as agent:
        assert isinstance(agent.store, MemoryStore)
        agent.store.partition()
        await ready(agent)
        status = agent.status()
        assert (status.etcd.source, status.etcd.connected, status.verdict.state) == ("snapshot", False, "degraded")
        assert status.lease.v4 == subnet
        assert routed(agent, "10.5.200.0/24")


async def test_a_reservation_that_nobody_has_claimed_is_no_peer(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    key, owner = "10.5.200.0-24", schema.Owner("h9")
    puts = (Put(KEYS.subnet(key), schema.lease_value(None, None)), Put(KEYS.owner(key), schema.owner_value(owner)))
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        await MemoryStore(cluster).txn((), puts)
        await until(lambda: key in agent.cluster.leases, "the reservation is known")
        await agent.reconciler.settled()
        assert agent.status().peers.total == 0
        assert not [finding for finding in agent.status().findings if key in finding.subject]
        assert agent.status().verdict.state == "healthy"


async def test_status_tells_an_outage_and_its_end(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    await put_peer(cluster, "10.5.200.0-24")
    async with running(tmp_path, cluster) as agent:
        assert isinstance(agent.store, MemoryStore)
        await ready(agent)
        agent.store.partition()
        await until(lambda: not agent.status().etcd.connected, "the outage is seen")
        status = agent.status()
        assert status.verdict.ready
        assert status.verdict.state == "degraded"
        assert "etcd unreachable" in status.verdict.reason
        assert status.etcd.as_of <= status.at
        assert routed(agent, "10.5.200.0/24")
        agent.store.partition(False)
        await until(lambda: agent.status().etcd.connected, "etcd is found again")


async def test_a_reload_takes_over_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        new = msgspec.structs.replace(agent.settings, lease_ttl=7200, node_name="other")
        agent._load = lambda: new
        assert [(f.code, f.subject) for f in await agent.reload()] == [("reload-needs-restart", "node_name")]
        assert (agent.settings.lease_ttl, agent.settings.node_name) == (7200, "h1")
        assert "reload-needs-restart" in codes(agent)


async def test_a_reload_of_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    def broken() -> None:
        raise ConfigError("'x' is not a value of lease_ttl", where="netagent.toml:3", remedy="Write seconds")

    cluster = MemoryCluster()
    await put_config(cluster, VXLAN)
    async with running(tmp_path, cluster) as agent:
        await ready(agent)
        before = agent.settings
        agent._load = broken  # type: ignore[assignment]
        (finding,) = await agent.reload()
        assert (finding.code, finding.subject) == ("reload-failed", "netagent.toml:3")
        assert agent.settings is before
        assert agent.status().verdict.ready
