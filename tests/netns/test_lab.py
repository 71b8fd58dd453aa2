"""The lab itself, with a stand-in for the agent: wires, containers, etcd, daemons, pings; and nothing is left."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netagent.errors import UsageError
from netagent.lab.lab import Lab
from netagent.lab.node import Node
from netagent.lab.space import LabError, Space
from tests.support.netns import eventually

STANDIN = Path(__file__).resolve().parents[1] / "support" / "standin.py"

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


def standin(node: Node) -> list[str]:
    numbers = [name.removeprefix("h") for name in node.lab.nodes if name != node.name]
    return [sys.executable, str(STANDIN), node.name.removeprefix("h"), str(node.run_dir), *numbers]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab(nodes=3, backend="host-gw", ipv6=True, agent=standin) as made:
        await made.leased()
        await made.attach()
        yield made


async def test_every_pair_in_both_families_and_from_hosts(lab: Lab) -> None:
    matrix = await lab.ping(count=2, hosts=True)
    assert len(matrix.cells) == 3 * 2 * 2 * 2
    assert matrix.ok, matrix.failed
    assert matrix.median is not None and matrix.median > 0


async def test_a_ping_that_must_not_pass_does_not(lab: Lab) -> None:
    await lab["h2"].cut()
    matrix = await lab.ping(count=1, timeout=0.2)
    assert {(cell.source, cell.target) for cell in matrix.failed} == {
        pair for pair in ((a, b) for a in lab.nodes for b in lab.nodes if a != b) if "h2" in pair
    }
    await lab["h2"].mend()
    assert (await lab.ping(only=["h1", "h3"])).ok


async def test_size_and_whole(lab: Lab) -> None:
    fits = await lab.ping(family=4, size=1400 - 28, whole=True)
    assert fits.ok, fits.failed
    assert (await lab.ping(family=4, size=1400 - 27, whole=True, timeout=0.2)).good == 0
    assert (await lab.ping(family=4, size=3000)).ok


async def test_a_flow_counts_what_is_lost(lab: Lab) -> None:
    async with lab.flow(("h1", "h2"), ("h2", "h1"), ("h3", "h1")) as quiet:
        await lab["h2"].exec("sleep", "0.3")
    assert quiet.sent >= 3
    assert quiet.lost == 0
    async with lab.flow(("h1", "h2"), timeout=0.2) as broken:
        await lab["h2"].cut()
        await lab["h2"].exec("sleep", "0.3")
        await lab["h2"].mend()
    assert 1 <= broken.lost < broken.sent
    assert broken.gap > 0.2
    await lab["h2"].cut()
    with pytest.raises(LabError, match="no replies"):
        async with lab.flow(("h1", "h2")):
            pass


async def test_container_is_set_up_as_a_runtime_would(lab: Lab) -> None:
    node = lab["h1"]
    assert node.container_ip(4) == "10.5.1.2"
    assert node.container_ip(6) == "fc00:5:0:1::2"
    assert "mtu 1400" in await node.ip("link show eth0", container=True)
    assert "default via 10.5.1.1 dev eth0" in await node.ip("route show", container=True)
    assert await node.route_to("10.5.2.2") == "10.5.2.0/24 via 192.168.50.12 dev eth0"
    # A new MTU is followed, a new subnet refused.
    node.subnet_file.write_text(node.subnet_file.read_text().replace("1400", "1300"))
    await node.attach()
    assert "mtu 1300" in await node.ip("link show eth0", container=True)
    node.subnet_file.write_text(node.subnet_file.read_text().replace("10.5.1.1", "10.5.9.1"))
    with pytest.raises(LabError, match="another subnet"):
        await node.attach()


async def test_agents_are_ended_and_started(lab: Lab) -> None:
    node = lab["h1"]
    pid = node.agent_pid
    assert pid is not None
    assert "standin" in Path(f"/proc/{pid}/cmdline").read_text()
    assert await node.agent_code() is None
    assert await node.stop_agent() == 0
    assert await node.agent_code() == 0
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(LabError, match="does not run"):
        await node.kill_agent()
    await node.start_agent()
    with pytest.raises(LabError, match="already runs"):
        await node.start_agent()
    await node.kill_agent()
    assert await node.agent_code() == -signal.SIGKILL
    assert "is up" in node.log_tail()


async def test_etcd_keeps_its_data_until_it_is_wiped(lab: Lab) -> None:
    etcd = lab.etcd
    await etcd.ctl("put", f"{etcd.prefix}/subnets/10.5.9.0-24", "{}")
    await etcd.stop()
    with pytest.raises(LabError):
        await etcd.ctl("--dial-timeout=100ms", "--command-timeout=200ms", "get", "x")
    await etcd.start()
    await etcd.restart()
    assert await etcd.leases() == {"10.5.9.0-24": "{}"}
    await etcd.pause()
    with pytest.raises(LabError):
        await etcd.ctl("--command-timeout=200ms", "get", "x")
    await etcd.resume()
    await etcd.wipe()
    assert await etcd.leases() == {}
    assert '"host-gw"' in await etcd.ctl("get", f"{etcd.prefix}/config")
    await lab.set_backend({"Type": "vxlan", "VNI": 7})
    assert '"VNI": 7' in await etcd.ctl("get", f"{etcd.prefix}/config")


async def test_hosts_come_and_go(lab: Lab) -> None:
    node = await lab.add_node()
    assert node.name == "h4"
    await lab.leased()
    await lab.attach()
    for name in ("h1", "h2", "h3"):
        await lab[name].ip("route add 10.5.4.0/24 via 192.168.50.14")
    assert (await lab.ping(family=4)).ok
    await lab.remove_node("h2")
    with pytest.raises(UsageError, match="h1, h3, h4"):
        _ = lab["h2"]
    assert (await lab.ping(family=4)).ok
    spaces = (await lab.space.run("", ["ip", "netns", "list"])).out
    assert "h2" not in spaces
    assert "h4-c" in spaces


async def test_address_changes(lab: Lab) -> None:
    node = lab["h3"]
    await node.set_address("192.168.50.77/24")
    assert "192.168.50.77/24" in await node.ip("-4 -br address show eth0")
    assert "default via 192.168.50.1" in await node.ip("route show default")
    assert node.host.v4 == "192.168.50.77/24"


async def test_a_routed_lab_reaches_etcd_and_the_other_rack() -> None:
    async with Lab(nodes=2, kind="racks", agent=standin) as lab:
        one, two = lab["h1"], lab["h2"]
        assert (one.host.rack, two.host.rack) == ("rack1", "rack2")
        for target in ("192.168.80.2", "192.168.70.11", "fd00:80::2", "fd00:70::11"):
            await one.exec("ping", "-c1", "-W2", target)


async def test_commands_inside(lab: Lab) -> None:
    result = await lab["h1"].exec("sh", "-c", "cat; echo $NETAGENT_NODE_NAME; exit 3", input="in\n", check=False)
    assert result == (3, "in\nh1\n", "")
    with pytest.raises(LabError, match="exit code 3: no"):
        await lab["h1"].exec("sh", "-c", "echo no >&2; exit 3")
    with pytest.raises(LabError, match="no end after"):
        await lab["h1"].exec("sleep", "60", timeout=0.1)


async def test_an_agent_that_ends_is_told_with_its_last_words() -> None:
    async with Lab(nodes=1, agent=lambda _: ["sh", "-c", "echo cannot work here; exit 4"]) as lab:
        with pytest.raises(LabError, match=r"h1's agent ended with code 4:\ncannot work here"):
            await lab.ready(timeout=20)


async def test_nothing_is_left() -> None:
    async with Lab(nodes=1, agent=standin) as lab:
        directory, pid = lab.path, lab.space.pid
        agent = lab["h1"].agent_pid
        # A process that forks away from its starter belongs to the holder, and ends with it.
        await lab["h1"].exec("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    await eventually(lambda: not Path(f"/proc/{agent}").exists(), "the agent ended with its lab")


async def test_a_lab_ends_with_the_process_that_made_it() -> None:
    code = """
import asyncio
from netagent.lab.lab import Lab
async def main():
    lab = Lab(nodes=1, agent=lambda node: ["sleep", "1000"])
    await lab.up(ephemeral=True)
    print(lab.space.pid, lab.path, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    holder, directory = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().split()
    assert Path(f"/proc/{holder}").exists()
    assert Path(directory).exists()
    process.kill()
    await process.communicate()
    await eventually(lambda: Space.open(Path(directory), userns=False) is None, "the holder ended")
    await eventually(lambda: not Path(directory).exists(), "its files are gone")
