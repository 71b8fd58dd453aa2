"""The network's configuration under running agents: missing, bad, changed, gone; and two agents on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netagent.errors import AgentUnavailable
from netagent.lab.lab import Lab
from netagent.status import Status
from tests.netns.test_cluster_etcd import until_status

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

GOOD = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}


async def test_without_a_configuration_the_agent_waits_and_is_not_ready() -> None:
    async with Lab(nodes=1, config={}, backend="vxlan") as lab:
        await lab.etcd.ctl("del", f"{lab.etcd.prefix}/config")
        node = lab["h1"]
        await node.restart_agent()

        async def answers() -> str:
            try:
                return "" if (await node.status()).at else "no time"
            except AgentUnavailable as error:
                return str(error)

        await lab.until(answers, "the agent answers", 15)
        ready = await readyz(lab)
        assert ready.startswith("503"), ready
        assert "netagent init" in ready
        result = await node.exec("netagent", "status", check=False)
        assert result.code == 2
        assert result.out.startswith("down: ")
        assert node.subnet_env() == {}
        await node.exec("netagent", "init", "--network", "10.5.0.0/16")
        await lab.ready(backend="vxlan")
        assert (await readyz(lab)).startswith("200")
        assert (await node.exec("netagent", "status")).out.startswith("healthy: ")


async def readyz(lab: Lab) -> str:
    """Status code and body of /readyz."""
    ask = (
        "import http.client, socket, sys\n"
        "class Unix(http.client.HTTPConnection):\n"
        "    def connect(self):\n"
        "        self.sock = socket.socket(socket.AF_UNIX); self.sock.connect(sys.argv[1])\n"
        "c = Unix('netagent'); c.request('GET', '/readyz'); r = c.getresponse(); print(r.status, r.read().decode())\n"
    )
    return (await lab["h1"].exec("python3", "-c", ask, str(lab["h1"].run_dir / "netagent.sock"))).out


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ("{", "config"),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "nonesuch"}}', "nonesuch"),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": "seven"}}', "VNI"),
        ('{"Network": "10.5.0.0/33"}', "Network"),
        ('{"Network": "10.5.0.0/16", "SubnetLen": 40}', "SubnetLen"),
    ],
    ids=["no JSON", "backend", "option", "network", "length"],
)
async def test_a_bad_configuration_is_told_and_the_last_good_one_stays(bad: str, word: str) -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        async with lab.flow() as flow:
            await lab.etcd.put_config(bad)
            status = await until_status(lab, "h1", "it is told", lambda s: not s.network.valid)
            assert word in status.network.error
            assert status.verdict.state == "degraded"
            assert status.network.backend == "vxlan"
            await lab["h1"].restart_agent()
            await until_status(lab, "h1", "ready all the same", lambda s: bool(s.lease.v4))
            await lab.etcd.put_config(GOOD)
            await until_status(lab, "h1", "valid again", lambda s: s.network.valid and s.verdict.ready)
        assert flow.lost == 0, flow


async def test_a_network_that_no_longer_holds_our_subnet_changes_nothing() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        routes = await lab["h1"].ip("route show")
        async with lab.flow() as flow:
            await lab.etcd.put_config({**GOOD, "Network": "10.99.0.0/16"})
            codes = lambda s: {f.code for f in s.findings}  # noqa: E731
            await until_status(lab, "h1", "it is told", lambda s: "network-excludes-subnet" in codes(s))
            assert await lab["h1"].ip("route show") == routes
            await lab.etcd.put_config(GOOD)
            await until_status(lab, "h1", "all is well", lambda s: s.verdict.state == "healthy")
        assert flow.lost == 0, flow


async def test_a_changed_option_is_applied_at_once() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        assert "dev na-vx1" in await lab["h1"].route_to(lab["h2"].container_ip())
        async with lab.flow() as flow:
            await lab.set_backend({"Type": "vxlan", "DirectRouting": True})

            async def direct() -> str:
                route = await lab["h1"].route_to(lab["h2"].container_ip())
                return "" if route.endswith("dev eth0") else route

            await lab.until(direct, "the route is direct", 10)
        assert flow.lost == 0, flow


async def test_unknown_keys_and_other_cases_are_read_as_flannel_does() -> None:
    config = {
        "network": "10.5.0.0/16",
        "Comment": "ours",
        "BACKEND": {"type": "vxlan", "directrouting": True, "X": 1},
    }
    async with Lab(nodes=1, backend="vxlan") as lab:
        await lab.ready(attach=False)
        await lab.etcd.put_config(json.dumps(config))

        def look(status: Status) -> bool:
            subjects = [f.subject for f in status.findings if f.code == "config-unknown-key"]
            return len(subjects) == 2

        status = await until_status(lab, "h1", "both keys are told", look)
        assert status.verdict.state == "healthy"


async def test_a_variable_that_sets_nothing_is_told() -> None:
    async with Lab(nodes=1, backend="host-gw") as lab:
        await lab.ready(attach=False)
        node = lab["h1"]
        await node.stop_agent()
        await node.start_agent(command=["env", "NETAGENT_ETCD_PREFX=/x", *node.agent_command()])

        def look(status: Status) -> bool:
            return [f.remedy for f in status.findings if f.code == "unknown-variable"] == [
                "did you mean NETAGENT_ETCD_PREFIX?"
            ]

        status = await until_status(lab, "h1", "the mistaken variable is told", look)
        assert status.verdict.state == "healthy"


async def test_plan_shows_what_would_change_and_changes_nothing() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        node = lab["h1"]
        assert "nothing" in (await node.exec("netagent", "plan")).out
        await node.signal_agent(19)  # SIGSTOP: the agent does not repair what we delete
        await node.ip("route del unreachable 10.5.0.0/16 metric 4294967295")
        await node.signal_agent(18)
        await lab.ready(attach=False)
        for words in (("routes",), ("objects",), ("peers",), ("status", "--all")):
            assert (await node.exec("netagent", *words)).out
            assert json.loads((await node.exec("netagent", *words, "--json")).out)


async def test_two_agents_on_one_host(tmp_path: Path) -> None:
    """Other directories, another network and VNI: each keeps its own."""
    async with Lab(nodes=1, backend="vxlan") as lab:
        await lab.ready(attach=False)
        node, other = lab["h1"], "/second"
        config = {"Network": "10.6.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}
        await lab.etcd.ctl("put", f"{other}/config", json.dumps(config))
        words = ["netagent", "run", "--etcd-prefix", other, "--node-name", "second", "--route-protocol", "111"]
        words += ["--firewall-table", "netagent2", "--state-dir", str(tmp_path / "state")]
        words += ["--run-dir", str(tmp_path / "run"), "--subnet-file", str(tmp_path / "run" / "subnet.env")]
        process = await node.start(*words)
        try:

            async def up() -> str:
                return "" if (tmp_path / "run" / "subnet.env").exists() else "no subnet.env of the second"

            await lab.until(up, "the second agent is ready", 15)
            links = await node.ip("-br link show")
            assert "na-vx1" in links
            assert "na-vx2" in links
            assert (await node.status()).verdict.state == "healthy", (await node.status()).verdict
        finally:
            process.terminate()
            await process.wait()
