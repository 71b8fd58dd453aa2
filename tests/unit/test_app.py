"""What the agent's process says of itself around the agent: what a start waits for."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from netagent import app
from netagent.health import judged
from netagent.status import Status
from tests.support.views import HEALTHY, altered

NO_ETCD = altered(
    HEALTHY,
    etcd={"connected": False, "source": "none", "error": "http://192.168.50.2:2379: connection refused"},
    network={"v4": ""},
)
NO_NETWORK = altered(HEALTHY, network={"v4": ""})


class Starting:
    """An agent that is not ready until it was asked as often as there are statuses."""

    def __init__(self, *statuses: Status) -> None:
        self.first_pass = asyncio.Event()
        self._statuses = list(statuses)

    def status(self) -> Status:
        status = judged(self._statuses.pop(0))
        if not self._statuses:
            self.first_pass.set()
        return status


async def test_what_a_start_waits_for_is_said_once_for_each_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "EXPLAIN_EVERY", 0)
    caplog.set_level(logging.INFO)
    slower = altered(NO_ETCD, etcd={"error": "http://192.168.50.2:2379: no answer within 1.9 s"})
    slow = altered(NO_ETCD, etcd={"error": "http://192.168.50.2:2379: no answer within 2 s"})
    agent = Starting(NO_ETCD, NO_ETCD, slow, slower, slow, NO_NETWORK, NO_NETWORK, HEALTHY)
    task = asyncio.create_task(app._explain(agent))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await agent.first_pass.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert [record.getMessage() for record in caplog.records] == [
        "not ready: etcd has not answered yet (http://192.168.50.2:2379: connection refused), and there is no "
        "snapshot of an earlier run",
        "not ready: etcd has not answered yet (http://192.168.50.2:2379: no answer within 2 s), and there is no "
        "snapshot of an earlier run",
        "not ready: no network configuration under /coreos.com/network/config (write one with `netagent init`)",
    ]
