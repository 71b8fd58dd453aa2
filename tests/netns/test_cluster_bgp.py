"""Whole clusters whose routes come from BGP: mesh, reflectors, tunnels, restarts, etcd away. Packets are counted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from netagent.lab.lab import Lab
from netagent.lab.node import Node
from tests.netns.test_cluster_etcd import until_status

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

REFLECTED = {"Type": "bgp", "Mesh": False, "Reflectors": ["h1", "h2"]}


async def service(node: Node) -> dict[str, Any]:
    return dict((await node.status()).backend.service)


async def plays(lab: Lab, name: str, role: str, sessions: int) -> str:
    """ "" once the node plays that part and has so many sessions, all of them up."""
    said = await service(lab[name])
    gauges = said.get("gauges", {})
    found = (said.get("role"), gauges.get("sessions"), gauges.get("sessions_established"))
    return "" if found == (role, sessions, sessions) else f"{name}: {said.get('summary')}"


async def all_play(lab: Lab, wanted: dict[str, tuple[str, int]], timeout: float = 40) -> None:
    async def look() -> str:
        missing = [await plays(lab, name, role, sessions) for name, (role, sessions) in wanted.items()]
        return "; ".join(filter(None, missing))

    await lab.until(look, "the topology stands", timeout)


async def routes(node: Node) -> set[str]:
    """The subnets that the kernel has routes of ours to."""
    found = json.loads(await node.ip("-j route show proto 110"))
    return {route["dst"] for route in found if route.get("type", "unicast") == "unicast"}


def subnet(node: Node) -> str:
    return node.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")


@pytest.mark.slow
async def test_a_mesh_of_ten() -> None:
    async with Lab(nodes=10, backend="bgp") as lab:
        await lab.ready(backend="bgp")
        await all_play(lab, dict.fromkeys(lab.nodes, ("mesh", 9)))
        matrix = await lab.ping()
        assert matrix.ok, matrix.failed
        for node in lab.nodes.values():
            assert await routes(node) == {subnet(other) for other in lab.nodes.values() if other is not node}
        status = await lab["h1"].status()
        assert status.verdict.state == "healthy", status.verdict
        assert status.peers.states == {"up": 9}
        assert "9 of 9 BGP sessions up" in (await lab["h1"].exec("netagent", "status")).out


@pytest.mark.slow
async def test_of_two_reflectors_one_is_killed() -> None:
    async with Lab(nodes=4, backend=REFLECTED, extra=("--alive-ttl", "3")) as lab:
        await lab.ready(backend="bgp")
        shape = {"h1": ("reflector", 3), "h2": ("reflector", 3), "h3": ("client", 2), "h4": ("client", 2)}
        await all_play(lab, shape)
        async with lab.flow() as flow:
            await lab["h1"].kill_agent()

            async def down() -> str:
                gauges = (await service(lab["h3"]))["gauges"]
                return "" if gauges["sessions_established"] == 1 else f"{gauges} at h3"

            await lab.until(down, "h3 sees that a reflector is gone", 15)
            # Who changes now is told of by the other one.
            new = await lab.add_node()
            await until_status(lab, new.name, "ready", lambda s: s.verdict.ready)

            async def known() -> str:
                lacking = [n for n in ("h2", "h3", "h4") if subnet(new) not in await routes(lab[n])]
                return f"{lacking} have no route to {new.name}" if lacking else ""

            await lab.until(known, "everybody is told of the new node", 15)
            await lab["h1"].start_agent()
            await lab.ready(attach=False)
        assert flow.lost == 0, flow
        await lab.attach()
        assert (await lab.ping()).ok


SERVICE = "10.96.0.0/24"


def announced_by(*names: str) -> dict[str, Any]:
    """h1 reflects; these nodes announce the service's prefix."""
    rules = [{"Match": name, "Announce": [SERVICE]} for name in names]
    return {"Type": "bgp", "Mesh": False, "Reflectors": ["h1"], "Nodes": rules}


async def ways(node: Node) -> set[str]:
    """The gateways of the kernel's route to the service."""
    (route,) = json.loads(await node.ip(f"-j route show {SERVICE} proto 110")) or [{}]
    return {hop["gateway"] for hop in route.get("nexthops", [route] if route else [])}


async def echoes(node: Node) -> int:
    """How many pings the node itself has been asked."""
    lines = (await node.exec("cat", "/proc/net/snmp")).out.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(values[names.index("InEchos")])


@pytest.mark.slow
async def test_two_nodes_with_one_prefix_are_both_used_through_a_reflector() -> None:
    async with Lab(nodes=4, backend=announced_by("h2", "h3")) as lab:
        await lab.ready(backend="bgp")
        addresses = {name: node.host.v4.partition("/")[0] for name, node in lab.nodes.items()}
        for name in ("h1", "h2", "h3"):
            await lab[name].ip(f"route add local {SERVICE} dev lo")

        async def reached_by(*names: str) -> None:
            wanted = {addresses[name] for name in names}

            async def look() -> str:
                found = await ways(lab["h4"])
                return "" if found == wanted else f"{found} at h4 instead of {wanted}"

            await lab.until(look, "h4 has these ways", 20)

        await reached_by("h2", "h3")
        before = {name: await echoes(lab[name]) for name in ("h2", "h3")}
        for number in range(1, 33):
            await lab["h4"].exec("ping", "-c1", "-W2", f"10.96.0.{number}")
        for name in before:
            assert await echoes(lab[name]) > before[name], f"nothing came to {name}"
        shown = json.loads((await lab["h4"].exec("netagent", "bgp", "routes", SERVICE, "--json")).out)
        assert sum(route["used"] for route in shown[0]["routes"]) == 2, shown
        assert all("path_id" in route for route in shown[0]["routes"]), shown

        await lab.set_backend(announced_by("h2"))
        await reached_by("h2")
        # the reflector may be one of them
        await lab.set_backend(announced_by("h1", "h2"))
        await reached_by("h1", "h2")
        await lab["h2"].kill_agent()
        await reached_by("h1", "h2")  # kept: it may be back in a moment
        await lab["h2"].start_agent()
        await lab.ready(attach=False)
        await reached_by("h1", "h2")


async def test_from_mesh_to_reflectors_and_back_loses_no_packet() -> None:
    async with Lab(nodes=5, backend="bgp") as lab:
        await lab.ready(backend="bgp")
        await all_play(lab, dict.fromkeys(lab.nodes, ("mesh", 4)))
        async with lab.flow() as flow:
            await lab.set_backend(REFLECTED)
            shape = {"h1": ("reflector", 4), "h2": ("reflector", 4)}
            await all_play(lab, shape | dict.fromkeys(("h3", "h4", "h5"), ("client", 2)))
            assert (await lab.ping()).ok
            await lab.set_backend("bgp")
            await all_play(lab, dict.fromkeys(lab.nodes, ("mesh", 4)))
        assert flow.sent > 1000
        assert flow.lost == 0, flow
        assert (await lab["h1"].status()).verdict.state == "healthy"


@pytest.mark.parametrize(
    "backend",
    [
        "bgp",
        pytest.param({"Type": "bgp", "Encapsulation": "vxlan"}, marks=pytest.mark.slow),
        pytest.param(REFLECTED, marks=pytest.mark.slow),
    ],
    ids=str,
)
async def test_restart_and_crash_of_the_agent_lose_no_packet(backend: Any) -> None:
    async with Lab(nodes=3, backend=backend) as lab:
        await lab.ready(backend="bgp")
        async with lab.flow() as flow:
            await lab["h1"].restart_agent()
            await lab.ready(attach=False)
            await lab["h3"].kill_agent()
            await asyncio.sleep(0.5)
            await lab["h3"].start_agent()
            await lab.ready(attach=False)
        assert flow.sent > 300
        assert flow.lost == 0, flow
        for node in lab.nodes.values():
            assert (await node.exec("netagent", "plan")).out.strip() == "nothing to do"


@pytest.mark.slow
@pytest.mark.parametrize("encapsulation", ["none", "vxlan"])
async def test_a_node_cut_off_from_etcd_alone_keeps_its_sessions(encapsulation: str) -> None:
    """For three TTLs of its lease, which ends meanwhile: packets flow on, and nobody drops a session."""
    ttl = 5
    backend = {"Type": "bgp", "Encapsulation": encapsulation}
    async with Lab(nodes=3, backend=backend, extra=("--lease-ttl", str(ttl), "--alive-ttl", "3")) as lab:
        await lab.ready(backend="bgp")
        etcd = lab.topology.etcd.v4.partition("/")[0]
        key = subnet(lab["h3"]).replace("/", "-")
        async with lab.flow() as flow:
            await lab["h3"].ip(f"route add unreachable {etcd}")
            await lab["h3"].exec("ss", "-K", "dst", etcd, check=False)
            await until_status(lab, "h3", "etcd is lost", lambda s: not s.etcd.connected, 30)

            async def ended() -> str:
                return f"etcd has {key} still" if key in await lab.etcd.leases() else ""

            await lab.until(ended, "its lease has ended", 60)
            await asyncio.sleep(3 * ttl)
            for node in lab.nodes.values():
                assert (await service(node))["gauges"]["sessions_established"] == 2, node
            assert subnet(lab["h3"]) in await routes(lab["h1"])
            await lab["h3"].ip(f"route del unreachable {etcd}")
            await until_status(lab, "h3", "etcd is found again", lambda s: s.verdict.state == "healthy", 30)
        assert flow.lost == 0, flow
        assert key in await lab.etcd.leases()


async def test_the_backend_changes_to_bgp_and_on() -> None:
    async with Lab(nodes=3, backend="vxlan") as lab:
        await lab.ready(backend="vxlan")
        async with lab.flow() as flow:
            await lab.set_backend("bgp")
            await lab.ready(backend="bgp")
            await lab.until(lambda: lacks_device(lab, "na-vx1"), "na-vx1 is gone", 30)
            assert "dev eth0" in await lab["h1"].route_to(lab["h2"].container_ip())
            await lab.set_backend({"Type": "bgp", "Encapsulation": "vxlan"})

            async def tunnelled() -> str:
                way = await lab["h1"].route_to(lab["h2"].container_ip())
                return "" if "dev na-vx1" in way else way

            await lab.until(tunnelled, "the tunnel is used", 30)
            await lab.set_backend("host-gw")
            await lab.ready(backend="host-gw")
            await lab.until(lambda: lacks_device(lab, "na-vx1"), "na-vx1 is gone again", 30)
        assert flow.lost == 0, flow
        for node in lab.nodes.values():
            assert "tcp dport 179" not in (await node.exec("nft", "list", "table", "inet", "netagent")).out
            assert not (await node.exec("ss", "-Hltn", "sport = 179")).out


async def lacks_device(lab: Lab, name: str) -> str:
    left = [node.name for node in lab.nodes.values() if name in (await node.ip("-br link show")).split()]
    return f"{name} is still on {left}" if left else ""


async def test_a_dead_nodes_routes_go_with_its_lease() -> None:
    async with Lab(nodes=3, backend="bgp", extra=("--alive-ttl", "3")) as lab:
        await lab.ready(backend="bgp")
        dead = subnet(lab["h3"])
        await lab.remove_node("h3")
        await until_status(lab, "h1", "h3 is down", lambda s: s.peers.states.get("down") == 1)
        assert dead in await routes(lab["h1"]), "it may come back: its routes are kept meanwhile"
        await lab["h1"].exec("netagent", "lease", "release", "--node", "h3")

        async def gone() -> str:
            left = [node.name for node in lab.nodes.values() if dead in await routes(node)]
            return f"{left} have a route to it" if left else ""

        await lab.until(gone, "its routes are gone", 15)
        assert (await lab.ping()).ok


@pytest.mark.slow
async def test_an_occupied_port_is_told_with_its_holder() -> None:
    async with Lab(nodes=2, backend="bgp") as lab:
        await lab.ready(backend="bgp")
        await lab["h2"].stop_agent()
        hold = "import socket, time; s = socket.create_server(('', 179)); print('ready', flush=True); time.sleep(99)"
        other = await lab["h2"].start("python3", "-c", hold, stdout=asyncio.subprocess.PIPE)
        try:
            assert other.stdout is not None
            assert await asyncio.wait_for(other.stdout.readline(), 20) == b"ready\n"
            async with lab.flow() as flow:
                await lab["h2"].start_agent()
                codes = lambda s: {f.code for f in s.findings}  # noqa: E731
                status = await until_status(lab, "h2", "it is told", lambda s: "bgp-port" in codes(s))
                (finding,) = [f for f in status.findings if f.code == "bgp-port"]
                assert "python3" in finding.message
                assert status.verdict.state == "degraded"
                other.kill()
                await other.wait()
                await until_status(lab, "h2", "all is well", lambda s: s.verdict.state == "healthy")
            assert flow.lost == 0, flow
        finally:
            if other.returncode is None:
                other.kill()
                await other.wait()


async def test_only_known_peers_reach_the_port() -> None:
    async with Lab(nodes=2, backend="bgp") as lab:
        await lab.ready(backend="bgp")
        await lab["h2"].ip("address add 192.168.50.77/24 dev eth0")
        ask = (
            "import socket\n"
            "s = socket.socket(); s.settimeout(1); s.bind(('{}', 0))\n"
            "try: s.connect(('192.168.50.11', 179)); print('in')\n"
            "except OSError: print('out')\n"
        )
        assert (await lab["h2"].exec("python3", "-c", ask.format("192.168.50.77"))).out == "out\n"
        assert (await lab["h2"].exec("python3", "-c", ask.format("192.168.50.12"))).out == "in\n"


async def bfd(node: Node, up: int) -> str:
    """ "" once BFD reaches so many peers of the node, as fast as was asked."""
    views = json.loads((await node.exec("netagent", "bgp", "peers", "--json")).out)
    found = sum(view["bfd"]["state"] == "up" and view["bfd"]["detection"] == 300 for view in views)
    return "" if found == up else f"{node.name}: {[view['bfd'] for view in views]}"


async def test_bfd_in_a_mesh() -> None:
    """A restarting agent is no event for it, nor for packets; a host that dies is found long before its hold time."""
    backend = {"Type": "bgp", "BFD": {"MinTx": 100, "MinRx": 100}}
    async with Lab(nodes=3, backend=backend) as lab:
        await lab.ready(backend="bgp")

        async def up() -> str:
            return "; ".join(filter(None, [await bfd(node, 2) for node in lab.nodes.values()]))

        await lab.until(up, "BFD is up between all", 40)
        assert "BFD with 2 of 2" in (await service(lab["h1"]))["summary"]
        async with lab.flow() as flow:
            for how in ("stop_agent", "kill_agent"):
                await getattr(lab["h2"], how)()
                await lab["h2"].start_agent()
                await lab.ready(attach=False)
                await lab.until(up, "BFD is up between all again", 40)
        assert flow.lost == 0, flow
        for name in ("h1", "h3"):
            (view,) = json.loads((await lab[name].exec("netagent", "bgp", "peers", "h2", "--json")).out)
            assert view["bfd"]["failures"] == 0, view
        gone = subnet(lab["h2"])
        await lab["h2"].ip("link set eth0 down")

        async def found() -> str:
            still = [name for name in ("h1", "h3") if gone in await routes(lab[name])]
            return f"{still} still have the route" if still else ""

        await lab.until(found, "the others have no route to it", 20)  # the hold time is 90 seconds
