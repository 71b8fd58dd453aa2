"""A service that fails: when it is started again, and what is said of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from netagent import services
from netagent.contract import Context
from netagent.kernel.fake import FakeHost
from netagent.model import Facts, Network, Node
from netagent.reconcile import Reconciler
from netagent.services import Port, Runner
from tests.support.bgp_service import until
from tests.support.probe_backend import Probe, ProbeOptions, ProbeService

NODE = Node(name="h1", id="0" * 32, uplink="eth0", mtu=1500, v4="10.5.59.0/24")


def context(asn: int) -> Context:
    return Context(network=Network(v4="10.5.0.0/16"), options=ProbeOptions(asn), node=NODE, facts=Facts())


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[Runner]:
    async def share(attributes: Mapping[str, str]) -> None:
        if attributes["probe.as"] == "0":
            raise ValueError("AS 0")

    made = Runner(Probe(), Port("probe", Reconciler(FakeHost()), tmp_path, tmp_path, share))
    yield made
    await made.leave()


async def test_a_changed_configuration_starts_it_at_once(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "BACKOFF_FIRST", 3600.0)
    runner.start(context(0), {})
    (*_, service) = ProbeService.made
    await until(lambda: runner.status()["state"] == "failed", "it fails")
    assert runner.status()["error"] == "AS 0"
    runner.configure(context(0))  # the same again
    for _ in range(10):
        await asyncio.sleep(0)
    assert service.runs == 1
    runner.configure(context(64512))
    await until(lambda: runner.status()["state"] == "running", "it is started again")
    assert service.runs == 2


async def test_one_that_goes_on_failing_is_started_again_and_again(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "BACKOFF_FIRST", 0.001)
    runner.start(context(0), {})
    (*_, service) = ProbeService.made
    await until(lambda: service.runs > 3, "it is tried again")
    assert runner.status()["state"] == "failed"
