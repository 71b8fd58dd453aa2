"""The engine's life: it outlives the agent, is adopted, restarted, upgraded and ended, and loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.udp import client
from tests.support.netns import Namespaces, eventually, need_device, need_tool
from tests.support.udp import DEADLINE, Lab, Ping

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]


@pytest.fixture(autouse=True)
def needs() -> None:
    need_device("tun")
    need_tool("ping")


@pytest.fixture
async def lab(namespaces: Namespaces, tmp_path: Path) -> AsyncIterator[Lab]:
    async with Lab(namespaces, tmp_path) as lab:
        yield lab


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
async def test_no_packet_is_lost_when_the_agent_restarts(lab: Lab, kill: bool) -> None:
    one, other = await lab.cluster()
    engine = await one.engine_pid()
    running = await Ping.start(one.container, other.address4, count=300)
    assert one.service is not None
    await one.service.end(kill=kill)
    await one.start([other.lease])
    await one.until_running()
    assert await running.lost() == 0
    assert await one.engine_pid() == engine


async def test_no_packet_is_lost_when_the_engine_is_upgraded(lab: Lab) -> None:
    one, other = await lab.cluster()
    engine = await one.engine_pid()
    running = await Ping.start(one.container, other.address4, count=300)
    assert one.service is not None
    await one.service.end()
    await one.start([other.lease], tag="two")
    await one.until_running()
    assert await running.lost() == 0
    status = await one.status()
    assert status["engine"]["tag"] == "two"
    assert status["engine"]["pid"] != engine
    await eventually(lambda: not Path(f"/proc/{engine}").exists(), "the old engine to end")
    # Counters went along, and the new one is found at the same socket.
    async with asyncio.timeout(DEADLINE):
        while (await one.status())["peers"][other.lease.key]["tx_packets"] < 300:
            await asyncio.sleep(0.1)


async def test_an_engine_that_dies_is_back_within_a_second(lab: Lab) -> None:
    one, other = await lab.cluster()
    engine = await one.engine_pid()
    running = await Ping.start(one.container, other.address4, count=300)
    os.kill(engine, signal.SIGKILL)
    assert await running.lost() < 100  # of 100 a second
    assert await one.engine_pid() != engine
    assert (await one.status())["restarts"] == 1


async def test_an_engine_that_hangs_is_replaced(lab: Lab) -> None:
    one, other = await lab.cluster()
    assert one.service is not None
    engine = await one.engine_pid()
    await one.service.end()
    os.kill(engine, signal.SIGSTOP)
    starting = asyncio.create_task(one.start([other.lease]))
    await eventually(lambda: not Path(f"/proc/{engine}").exists(), "the hung engine to be ended", timeout=20)
    # The first answer of the service process comes when its new engine has the peers.
    await asyncio.wait((starting,))
    await one.until_running()
    one.container.run("ping", "-c", "1", "-W", "10", other.address4)


async def test_stop_ends_the_engine_and_its_socket(lab: Lab) -> None:
    one, _ = await lab.cluster()
    assert one.service is not None
    engine = await one.engine_pid()
    await one.service.ask(stop=True)
    await eventually(lambda: not Path(f"/proc/{engine}").exists(), "the engine to end")
    assert not (one.run_dir / "udp.sock").exists()
    await client.stop(one.run_dir / "udp.sock")  # none there: nothing to do


async def test_the_control_socket_is_roots_alone(lab: Lab) -> None:
    one, _ = await lab.cluster()
    assert (one.run_dir / "udp.sock").stat().st_mode & 0o777 == 0o600


async def test_two_engines_on_one_host(lab: Lab) -> None:
    """A second agent with another run directory, device and port, in the same namespace."""
    one, _ = await lab.cluster()
    second = lab.twin(one, Port=8286, Device="na-tun2")
    second.lay([])
    await second.start([])
    await second.until_running()
    assert await second.engine_pid() != await one.engine_pid()


async def test_a_port_that_is_taken_is_a_finding_and_is_taken_up_when_free(lab: Lab) -> None:
    import socket

    one = lab.host(1)
    lab.net.switch("switch", {one.space: one.outer})

    def occupy() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 8285))
        return sock

    with one.space.call(occupy):
        one.lay([])
        await one.start([])
        async with asyncio.timeout(DEADLINE):
            while "udp-port" not in {finding["code"] for finding in (await one.status())["findings"]}:
                await asyncio.sleep(0.05)
        assert "Address already in use" in (await one.status())["problems"][0]
    await one.until_running()
