"""The driver of the lease session and the node's presence, on a store in memory and on a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from netagent.config import Settings
from netagent.errors import StorePermissionDenied, StoreUnavailable
from netagent.identity import Identity
from netagent.leasing import STATE_FILE, Leasing
from netagent.model import NodeRecord
from netagent.plan.cluster import Cluster
from netagent.plan.lease_session import Attributes
from netagent.store import schema
from netagent.store.base import Put, Store
from netagent.store.etcd import EtcdStore
from netagent.store.follow import follow
from netagent.store.memory import MemoryCluster, MemoryStore
from tests.support.etcd import etcd as real_etcd

PREFIX = "/coreos.com/network"
KEYS = schema.Keys(PREFIX)
CONFIG = b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'
DEADLINE = 20.0


class Agent:
    """As much of an agent as a lease needs: it follows the cluster and drives a session."""

    def __init__(
        self,
        store: Store,
        state_dir: Path,
        name: str = "a",
        *,
        boot: str = "boot-1",
        ip: str = "192.168.50.11",
        ttl: int = 60,
        alive_ttl: int = 9,
    ) -> None:
        settings = Settings(
            state_dir=state_dir, subnet_file=state_dir / "subnet.env", lease_ttl=ttl, alive_ttl=alive_ttl
        )
        self.store = store
        self.identity = Identity(name, f"{name:f>32}")
        self.cluster = Cluster(PREFIX)
        self.changes: list[str] = []
        self.changed = asyncio.Event()
        self.leasing = Leasing(
            store, settings, self.identity, self.cluster, self._on_change, rng=random.Random(5), boot_id=boot
        )
        self.attributes = Attributes(ip, None, "vxlan", {"VNI": 1})

    def _on_change(self) -> None:
        self.changes.append(self.leasing.state.state)
        self.changed.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        async with asyncio.TaskGroup() as tasks:
            run = [tasks.create_task(self.leasing.run()), tasks.create_task(self._follow())]
            self.leasing.publish(self.attributes)
            self.leasing.describe(NodeRecord(name=self.identity.name, id=self.identity.id))
            yield self
            for task in run:
                task.cancel()

    async def _follow(self) -> None:
        async for item in follow(self.store, KEYS.root, jitter=lambda: 0.0):
            self.leasing.observe(self.cluster.apply(item))
            self.changed.set()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not true():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):  # not all that is waited for is an event of the agent's
                        await self.changed.wait()

    async def until_state(self, state: str) -> None:
        await self.until(lambda: self.leasing.state.state == state)


@pytest.fixture
def memory() -> MemoryCluster:
    cluster = MemoryCluster()
    cluster.txn((), (Put(KEYS.config, CONFIG),), ())
    return cluster


# -------------------------------------------------------------------------------------------------- leasing


async def test_a_claim_is_kept_on_disk_before_it_is_told(memory: MemoryCluster, tmp_path: Path) -> None:
    agent = Agent(MemoryStore(memory), tmp_path)
    seen: list[str] = []
    agent.leasing._on_change = lambda: seen.append(f"{agent.leasing.state.state} {(tmp_path / STATE_FILE).exists()}")
    async with agent.running():
        await agent.until_state("held")
        state = agent.leasing.state
        assert seen[-1] == "held True"
        assert json.loads((tmp_path / STATE_FILE).read_bytes()) == {
            "boot": "boot-1",
            "v4": state.v4,
            "v6": None,
        }
        status = agent.leasing.status()
        assert (status.state, status.v4, status.ttl, status.problem) == ("held", state.v4, 60, "")
        assert 50 < status.expires - status.renewed <= 60
    # The lease outlives the agent.
    assert memory.get(KEYS.subnet(state.key)) is not None


async def test_a_restart_uses_its_subnet_before_etcd_answers(memory: MemoryCluster, tmp_path: Path) -> None:
    first = Agent(MemoryStore(memory), tmp_path)
    async with first.running():
        await first.until_state("held")
    store = MemoryStore(memory)
    store.partition()
    again = Agent(store, tmp_path)
    assert again.leasing.holds
    assert again.leasing.state.v4 == first.leasing.state.v4
    async with again.running():
        await again.until(lambda: again.changes)
        assert again.changes == ["restored"]
        revision = memory.get(KEYS.subnet(again.leasing.state.key))
        store.partition(False)
        await again.until_state("held")
        assert memory.get(KEYS.subnet(again.leasing.state.key)) == revision


async def test_after_a_reboot_the_subnet_is_only_a_wish_until_etcd_is_away(
    memory: MemoryCluster, tmp_path: Path
) -> None:
    first = Agent(MemoryStore(memory), tmp_path)
    async with first.running():
        await first.until_state("held")
    rebooted = Agent(MemoryStore(memory), tmp_path, boot="boot-2")
    assert not rebooted.leasing.holds
    rebooted.leasing.presume()
    assert rebooted.leasing.state.state == "restored"
    assert rebooted.leasing.state.v4 == first.leasing.state.v4


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b'{"boot":"b","v4":"x"}', b'{"boot":"b","v6":"fc00::1/64"}', b'{"x":' + b"[" * 100_000],
    ids=["empty", "cut", "bytes", "v4", "v6", "deep"],
)
async def test_a_damaged_state_file_is_a_finding(memory: MemoryCluster, tmp_path: Path, data: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(data)
    agent = Agent(MemoryStore(memory), tmp_path)
    assert [finding.code for finding in agent.leasing.findings] == ["lease-file-damaged"]
    async with agent.running():
        await agent.until_state("held")
        assert json.loads((tmp_path / STATE_FILE).read_bytes())["v4"] == agent.leasing.state.v4


async def test_a_state_directory_that_cannot_be_written_stops_nothing(memory: MemoryCluster, tmp_path: Path) -> None:
    agent = Agent(MemoryStore(memory), tmp_path / "file")
    (tmp_path / "file").write_text("in the way")
    async with agent.running():
        await agent.until_state("held")
        assert "lease-not-kept" in [finding.code for finding in agent.leasing.findings]


async def test_every_kind_of_fault_at_the_claim(memory: MemoryCluster, tmp_path: Path) -> None:
    store = MemoryStore(memory)
    agent = Agent(store, tmp_path)
    store.fail(StoreUnavailable("no endpoint answers"), method="grant", times=2)  # presence too
    async with agent.running():
        await agent.until(lambda: agent.leasing.state.problem)
        assert agent.leasing.state.problem == "no endpoint answers"
        await agent.until_state("held")
        assert agent.leasing.state.problem == ""
    assert len(memory.range(KEYS.subnets, 0).items) == 1


async def test_an_etcd_lease_that_was_granted_in_vain_is_given_back(memory: MemoryCluster, tmp_path: Path) -> None:
    memory.txn((), (Put(KEYS.config, b'{"Network":"10.5.0.0/24","SubnetLen":26}'),), ())
    a, b = (Agent(MemoryStore(memory), tmp_path / n, n, ip=f"10.0.0.{i}") for i, n in enumerate("ab"))
    async with a.running(), b.running():
        await a.until_state("held")
        await b.until_state("held")
    assert len(memory._leases) == 4  # two subnets, two signs of life


async def test_a_wiped_etcd_and_a_deleted_key(memory: MemoryCluster, tmp_path: Path) -> None:
    agent = Agent(MemoryStore(memory), tmp_path)
    async with agent.running():
        await agent.until_state("held")
        key = agent.leasing.state.key
        memory.wipe()
        await agent.until(lambda: memory.get(KEYS.subnet(key)) is not None)
        await agent.until_state("held")
        await agent.store.delete(KEYS.subnet(key))
        await agent.until(lambda: memory.get(KEYS.subnet(key)) is not None)
        await agent.until_state("held")
        assert agent.leasing.state.key == key
        assert agent.changes.count("lost") == 2


# ------------------------------------------------------------------------------------------------- presence


async def test_presence_is_put_and_put_back(memory: MemoryCluster, tmp_path: Path) -> None:
    agent = Agent(MemoryStore(memory), tmp_path)
    alive, node = KEYS.alive("a"), KEYS.node("a")
    async with agent.running():
        await agent.until(lambda: memory.get(alive) is not None and memory.get(node) is not None)
        found = memory.get(alive)
        assert found is not None and found.lease
        assert json.loads(found.value) == {"node": "a", "id": agent.identity.id}
        await agent.store.delete(alive)
        await agent.store.delete(node)
        await agent.until(lambda: memory.get(alive) is not None and memory.get(node) is not None)
        agent.leasing.describe(NodeRecord(name="a", id=agent.identity.id, version="2"))
        await agent.until(lambda: "a" in agent.cluster.nodes and agent.cluster.nodes["a"].version == "2")
    # It is left to its TTL.
    assert memory.get(alive) is not None
    memory.advance(10)
    assert memory.get(alive) is None
    assert memory.get(node) is not None


async def test_a_name_that_another_lives_under_is_reported_and_left(memory: MemoryCluster, tmp_path: Path) -> None:
    other = schema.owner_value(schema.Owner("a", "other"))
    memory.txn((), (Put(KEYS.alive("a"), other),), ())
    agent = Agent(MemoryStore(memory), tmp_path, alive_ttl=3)
    async with agent.running():
        await agent.until(lambda: "node-name-taken" in [f.code for f in agent.leasing.findings])
        found = memory.get(KEYS.alive("a"))
        assert found is not None and found.value == other
        assert memory.get(KEYS.node("a")) is None
        await agent.store.delete(KEYS.alive("a"))
        await agent.until(lambda: "node-name-taken" not in [f.code for f in agent.leasing.findings])
        assert memory.get(KEYS.node("a")) is not None


async def test_presence_survives_refusals(memory: MemoryCluster, tmp_path: Path) -> None:
    store = MemoryStore(memory)
    agent = Agent(store, tmp_path, alive_ttl=3)
    store.fail(StorePermissionDenied("permission denied"), method="get", times=2)
    async with agent.running():
        await agent.until(lambda: memory.get(KEYS.alive("a")) is not None)


# ----------------------------------------------------------------------------------------------- a real etcd


@pytest.mark.etcd
async def test_on_a_real_etcd(tmp_path: Path) -> None:
    async with real_etcd() as server:
        store = EtcdStore([server.endpoint])
        other = EtcdStore([server.endpoint])
        try:
            await store.put(KEYS.config, CONFIG)
            a = Agent(store, tmp_path / "a", "a", ttl=6, alive_ttl=3)
            b = Agent(other, tmp_path / "b", "b", ip="192.168.50.12", ttl=6, alive_ttl=3)
            async with a.running(), b.running():
                await a.until_state("held")
                await b.until_state("held")
                key = a.leasing.state.key
                found = await store.get(KEYS.subnet(key))
                assert found is not None
                assert found.value == (
                    b'{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}'
                )
                # Both see each other, joined, and alive.
                await b.until(lambda: key in b.cluster.leases and b.cluster.leases[key].node == "a")
                await b.until(lambda: set(b.cluster.alive) == {"a", "b"})
                # Longer than both TTLs: kept alive.
                renewed = a.leasing.state.renewed
                await a.until(lambda: a.leasing.state.renewed > renewed + 6)
                assert a.leasing.state.state == "held"
                # A dual-stack network moves the record to another key, in one transaction.
                await store.put(
                    KEYS.config,
                    b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}',
                )
                await a.until(lambda: a.leasing.state.v6 is not None and b.leasing.state.v6 is not None)
                assert a.leasing.state.v6 != b.leasing.state.v6
                await b.until(lambda: a.leasing.state.key in b.cluster.leases and key not in b.cluster.leases)
                key = a.leasing.state.key
                # The data is gone, the servers are back: the same subnet again.
                await server.wipe()
                await a.until(lambda: a.cluster.withheld or a.leasing.state.state != "held")
                await a.until(lambda: a.leasing.state.state == "held" and not a.cluster.withheld & {key})
                assert a.leasing.state.key == key
                assert await store.get(KEYS.subnet(key)) is not None
            # Nobody renews: the records end with their etcd leases.
            async with asyncio.timeout(DEADLINE):
                while (await store.list(KEYS.subnets)).items:
                    await asyncio.sleep(0.2)
        finally:
            await store.close()
            await other.close()
