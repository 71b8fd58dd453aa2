"""The agent on a store and a kernel in memory: the contract of backends, proved with one that is not in netagent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import AsyncIterator, Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from netagent.agent import Agent
from netagent.config import Settings
from netagent.identity import load_identity
from netagent.kernel.fake import FakeHost
from netagent.model import AddressFact, Hop, LinkFact, Route, RouteFact
from netagent.registry import Registry
from netagent.snapshot import SnapshotFile
from netagent.store.memory import MemoryCluster, MemoryStore
from tests.support.netns import eventually
from tests.support.probe_backend import ProbeService

PREFIX = "/coreos.com/network"
ENTRIES = {
    "probe": EntryPoint("probe", "tests.support.probe_backend:Probe", "netagent.backends"),
    "vxlan": EntryPoint("vxlan", "backends.vxlan:VxlanBackend", "netagent.backends"),
}


def host() -> FakeHost:
    return FakeHost(
        links=(LinkFact(name="eth0", index=2, mac="02:00:00:00:00:02", up=True, carrier=True),),
        addresses=(AddressFact(dev="eth0", ip="192.168.50.11", length=24),),
        routes=(RouteFact(dst="0.0.0.0/0", dev="eth0", gateway="192.168.50.1"),),
    )


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path, cluster: MemoryCluster, name: str = "h1", *, kernel: FakeHost | None = None
) -> AsyncIterator[Agent]:
    settings = Settings(
        node_name=name, state_dir=tmp_path / name, run_dir=tmp_path / name, subnet_file=tmp_path / name / "subnet.env"
    )
    identity = load_identity(settings.state_dir, name)
    agent = Agent(settings, identity, MemoryStore(cluster), kernel or host(), Registry(ENTRIES), lambda: settings)
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def put_config(cluster: MemoryCluster, backend: dict[str, object]) -> None:
    config = {"Network": "10.5.0.0/16", "Backend": backend}
    await MemoryStore(cluster).put(f"{PREFIX}/config", json.dumps(config).encode())


async def until(condition: Callable[[], object], what: str) -> None:
    await eventually(condition, what, timeout=15)


@pytest.fixture(autouse=True)
def fresh() -> None:
    ProbeService.made.clear()


async def test_a_service_adds_routes_of_its_own_and_takes_them_back(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, {"Type": "probe", "AS": 65001})
    async with running(tmp_path, cluster) as agent:
        await until(agent.first_pass.is_set, "the first pass")
        (service,) = ProbeService.made
        kernel = agent.host.objects  # type: ignore[attr-defined]
        service.learn("172.20.0.0/16", "192.168.50.21", "192.168.50.22")
        ecmp = Route("172.20.0.0/16", (Hop("eth0", "192.168.50.21"), Hop("eth0", "192.168.50.22")))
        await until(lambda: kernel.get(ecmp.key) == ecmp, "the route with two next hops is in the kernel")
        assert "probe-learnt" in [f.code for f in agent.status().findings]
        owners = {row.text: row.owner for row in agent.objects(("route",))}
        assert [owner for text, owner in owners.items() if text.startswith("172.20")] == [
            "service probe/best/172.20.0.0/16"
        ]
        agent.host.meddle_delete(ecmp.key)  # type: ignore[attr-defined]
        await until(lambda: kernel.get(ecmp.key) == ecmp, "it is put back")
        service.learn("172.20.0.0/16", "192.168.50.22")
        await until(lambda: len(kernel[ecmp.key].hops) == 1, "a next hop went")
        service.withdraw("172.20.0.0/16")
        await until(lambda: ecmp.key not in kernel, "the route is withdrawn")


async def test_a_service_that_crashes_runs_again_and_its_routes_stay(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, {"Type": "probe"})
    async with running(tmp_path, cluster) as agent:
        await until(agent.first_pass.is_set, "the first pass")
        (service,) = ProbeService.made
        kernel = agent.host.objects  # type: ignore[attr-defined]
        service.learn("172.20.0.0/16", "192.168.50.21")
        await until(lambda: ("route", "172.20.0.0/16", 0) in kernel, "the route stands")
        service.crash.set()
        await until(lambda: agent.status().backend.service.get("state") == "failed", "the crash is told")
        assert ("route", "172.20.0.0/16", 0) in kernel
        await until(lambda: service.runs == 2, "it runs again")
        await until(lambda: agent.status().backend.service.get("state") == "running", "and all is well")


async def test_services_share_attributes_and_know_peers(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, {"Type": "probe", "AS": 65001})
    async with running(tmp_path, cluster) as one:
        await until(one.first_pass.is_set, "h1")
        async with running(tmp_path, cluster, "h2") as two:
            await until(two.first_pass.is_set, "h2")
            first, second = ProbeService.made
            await until(
                lambda: second.records.get("h1") and second.records["h1"].attributes == {"probe.as": "65001"},
                "h2 reads what h1 shares",
            )
            await until(lambda: set(second.known) == {one.leasing.state.key}, "h2's service knows h1")
            await until(lambda: set(first.known) == {two.leasing.state.key}, "h1's service knows h2")
            assert first.known[two.leasing.state.key].data == b'{"AS":65001}'


async def test_a_backend_that_is_no_longer_wanted_ends_with_all_that_it_added(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, {"Type": "probe"})
    async with running(tmp_path, cluster) as agent:
        await until(agent.first_pass.is_set, "the first pass")
        (service,) = ProbeService.made
        kernel = agent.host.objects  # type: ignore[attr-defined]
        service.learn("172.20.0.0/16", "192.168.50.21")
        await until(lambda: ("route", "172.20.0.0/16", 0) in kernel, "the route stands")
        await put_config(cluster, {"Type": "vxlan"})
        await until(lambda: ("link", "na-vx1") in kernel, "vxlan stands")
        await until(lambda: service.stopped, "the service ends")
        await until(lambda: ("route", "172.20.0.0/16", 0) not in kernel, "and its routes go")


async def test_an_unknown_backend_keeps_the_last_one_in_force(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, {"Type": "vxlan"})
    async with running(tmp_path, cluster) as agent:
        await until(agent.first_pass.is_set, "the first pass")
        await put_config(cluster, {"Type": "nonesuch"})
        await until(lambda: agent.status().network.error, "it is told")
        status = agent.status()
        assert "nonesuch" in status.network.error
        assert (status.network.valid, status.network.backend, status.backend.type) == (False, "vxlan", "vxlan")
        assert status.verdict.ready


async def test_not_ready_before_the_base_stands(tmp_path: Path) -> None:
    cluster = MemoryCluster()
    await put_config(cluster, {"Type": "vxlan"})
    kernel = host()
    kernel.fail(("link", "na-vx1"), errno.EPERM)
    async with running(tmp_path, cluster, kernel=kernel) as agent:
        await until(lambda: agent.status().reconciler.failing.get("link"), "the device is refused")
        assert not agent.first_pass.is_set()
        assert not (tmp_path / "h1" / "subnet.env").exists()
        assert not agent.status().verdict.ready
        kernel.heal()
        agent.reconciler.retry()
        await until(agent.first_pass.is_set, "it stands")
        assert (tmp_path / "h1" / "subnet.env").exists()


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"Network": "nonsense"}, "config-invalid"),
        ({"Network": "10.9.0.0/16", "Backend": {"Type": "vxlan"}}, "network-excludes-subnet"),
    ],
)
async def test_the_last_good_network_stays_in_force_across_a_restart(
    tmp_path: Path, config: dict[str, object], code: str
) -> None:
    """On the same boot: containers use its subnet, whose lease must be renewed."""
    cluster = MemoryCluster()
    await put_config(cluster, {"Type": "probe"})
    async with running(tmp_path, cluster) as agent:
        await until(agent.first_pass.is_set, "the first pass")
        await until(lambda: agent.leasing.state.state == "held", "the lease")
        before = agent.network, agent.leasing.state.v4
        await MemoryStore(cluster).put(f"{PREFIX}/config", json.dumps(config).encode())
        await until(lambda: code in {f.code for f in agent.findings()}, "it is told")
    async with running(tmp_path, cluster) as agent:
        await until(agent.first_pass.is_set, "the first pass")
        await until(lambda: agent.leasing.state.state == "held", "the lease is taken up")
        assert (agent.network, agent.leasing.state.v4) == before
        assert code in {f.code for f in agent.findings()}


def test_a_snapshot_that_cannot_be_written_is_told_and_written_later(tmp_path: Path) -> None:
    (tmp_path / "state").touch()  # where its directory should be
    file = SnapshotFile(tmp_path / "state" / "snapshot", lambda: b"records")
    file.write()
    assert [finding.code for finding in file.findings] == ["state-not-kept"]
    (tmp_path / "state").unlink()
    file.write()
    assert (file.findings, file.read()) == ((), b"records")
