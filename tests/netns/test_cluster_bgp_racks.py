"""Two racks with FRR as their top-of-rack routers, an AS for each rack: containers reach each other, no overlay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netagent.lab import topology
from netagent.lab.lab import Lab
from netagent.lab.space import LabError
from netagent.lab.topology import Router
from tests.netns.test_cluster_bgp import routes, service, subnet
from tests.netns.test_cluster_etcd import until_status
from tests.support.netns import unable

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.interop]

SECRET = "between-rack-and-router"
# Name, host number in each rack, AS, the rack that it stands on top of, the AS of that rack's nodes.
TORS = (("tor1", 1, 65101, "rack1", 65001), ("tor2", 3, 65102, "rack2", 65002))


def leg(rack: str, number: int, *, over_ipv6: bool) -> str:
    """A router's address in a rack."""
    return f"fd00:{topology.RACKS[rack]}::{number}" if over_ipv6 else f"192.168.{topology.RACKS[rack]}.{number}"


def options(password: Path, *, over_ipv6: bool = False, **more: Any) -> dict[str, Any]:
    """The backend: no mesh, each rack's nodes are told of its router."""
    nodes = []
    for name, number, asn, rack, nodes_asn in TORS:
        router = {"Name": name, "Address": leg(rack, number, over_ipv6=over_ipv6), "AS": asn, "TTLSecurity": 1}
        if over_ipv6:
            router |= {"ExtendedNextHop": True}
        # The other nodes of the rack are of our own AS, and come back by way of the router.
        router |= {"PasswordFile": str(password), "AllowOwnAS": 1}
        nodes.append({"Match": f"rack={rack}", "AS": nodes_asn, "Routers": [router]})
    return {"Type": "bgp", "Mesh": False, "Nodes": nodes, **more}


def plan(backend: dict[str, Any], *, ipv6: bool = False) -> topology.Topology:
    """Each router has a leg in every rack; here each is used by its own rack alone, and by the other over core."""
    built = topology.build("racks", 4, backend, ipv6=ipv6)
    return msgspec.structs.replace(built, routers=tuple(Router(name, number) for name, number, *_ in TORS))


class Tor:
    """zebra and bgpd in a router's namespace; an unpacked package needs a group that the machine does not have."""

    def __init__(
        self, lab: Lab, name: str, number: int, asn: int, rack: str, nodes_asn: int, *, over_ipv6: bool = False
    ) -> None:
        self.lab = lab
        self.over_ipv6 = over_ipv6
        self.name = name
        self.directory = lab.path / f"frr-{name}"
        self.number, self.asn, self.rack, self.nodes_asn = number, asn, rack, nodes_asn
        self.processes: list[asyncio.subprocess.Process] = []

    def configuration(self) -> str:
        other = next(tor for tor in TORS if tor[0] != self.name)
        core = leg("core", other[1], over_ipv6=self.over_ipv6)
        lines = [
            f"router bgp {self.asn}",
            f" bgp router-id 192.168.{topology.RACKS['core']}.{self.number}",
            " no bgp ebgp-requires-policy",
            " no bgp network import-check",
            " coalesce-time 0",
            f" neighbor {core} remote-as {other[2]}",
            f" neighbor {core} timers connect 1",
            f" neighbor {core} advertisement-interval 0",
        ]
        neighbours = [core]
        for host in self.lab.topology.hosts:
            if host.rack == self.rack:
                address = (host.v6 if self.over_ipv6 else host.v4).partition("/")[0]
                neighbours.append(address)
                lines += [
                    f" neighbor {address} remote-as {self.nodes_asn}",
                    f" neighbor {address} password {SECRET}",
                    f" neighbor {address} ttl-security hops 1",
                    f" neighbor {address} timers connect 1",
                    f" neighbor {address} advertisement-interval 0",
                ]
        # What a node must never take: a default route, and a part of its own subnet.
        if self.over_ipv6:
            lines += [f" neighbor {each} capability extended-nexthop" for each in neighbours]
        lines += [" address-family ipv4 unicast", "  network 203.0.113.0/24", "  network 0.0.0.0/0"]
        if self.over_ipv6:
            lines += [f"  neighbor {each} activate" for each in neighbours]
            lines += [" exit-address-family", " address-family ipv6 unicast"]
            lines += [f"  neighbor {each} activate" for each in neighbours]
        return "\n".join(lines) + "\n"

    async def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "group").write_text("root:x:0:\nfrrvty:x:0:\n")
        (self.directory / "zebra.conf").write_text("hostname zebra\n")
        (self.directory / "bgpd.conf").write_text(self.configuration())
        for daemon, flags in (("zebra", ["--user", "root", "--group", "root"]), ("bgpd", ["--skip_runas"])):
            await self._spawn(
                *(daemon, *flags, "-P", "0", "--vty_socket", str(self.directory)),
                *("-z", str(self.directory / "zserv.api"), "-i", str(self.directory / f"{daemon}.pid")),
                *("-f", str(self.directory / f"{daemon}.conf"), "--log", f"file:{self.directory}/{daemon}.log"),
            )
            if daemon == "zebra":
                await self.lab.until(self._zebra, "zebra stands", 30)

    async def _zebra(self) -> str:
        return "" if (self.directory / "zserv.api").exists() else "its socket"

    async def _spawn(self, *argv: str) -> None:
        binds = f'mount --bind "{self.directory}/group" /etc/group && mount --bind "{self.directory}" /var/tmp'
        inside = ("unshare", "--mount", "sh", "-c", f'{binds} && exec "$@"', "sh", *argv)
        process = await self.lab.space.start(
            self.name, inside, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        self.processes.append(process)

    async def stop(self, *, kill: bool = False) -> None:
        processes, self.processes = self.processes, []
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                process.kill() if kill else process.terminate()
        for process in processes:
            await asyncio.wait_for(process.wait(), 20)

    async def table(self) -> dict[str, Any]:
        """Its routes, as its kernel has them."""
        found = json.loads((await self.lab.space.run(self.name, ["ip", "-j", "route"])).out)
        return {route["dst"]: route for route in found}


@contextlib.asynccontextmanager
async def racks(tmp_path: Path, *, over_ipv6: bool = False, **more: Any) -> AsyncIterator[tuple[Lab, dict[str, Tor]]]:
    for program in ("zebra", "bgpd"):
        if not shutil.which(program):
            unable(f"{program} is missing: make tools-interop fetches it")
    password = tmp_path / "password"
    password.write_text(SECRET + "\n")
    backend = options(password, over_ipv6=over_ipv6, **more)
    async with Lab(plan(backend, ipv6=over_ipv6), agent=None) as lab:
        tors = {tor[0]: Tor(lab, *tor, over_ipv6=over_ipv6) for tor in TORS}
        try:
            for tor in TORS if over_ipv6 else ():
                for rack in (tor[3], "core"):  # zebra waits for such an address
                    await lab.space.run(tor[0], ["ip", "address", "add", f"fe80::{tor[1]}/64", "dev", rack, "nodad"])
            for node in lab.nodes.values():
                await node.stop_agent()
                # FRR begins to send router advertisements, and an address made from one would be the node's
                await node.exec("sysctl", "-qw", "net.ipv6.conf.all.accept_ra=0", "net.ipv6.conf.eth0.accept_ra=0")
                node.settings_file.write_text(f'labels = ["rack={node.host.rack}"]\n')
            await asyncio.gather(*(tor.start() for tor in tors.values()))
            for node in lab.nodes.values():
                await node.start_agent()
            yield lab, tors
        except LabError as error:
            logs = [path.read_text()[-1500:] for tor in tors.values() for path in tor.directory.glob("*.log")]
            raise AssertionError("\n".join([str(error), *logs])) from error
        finally:
            for tor in tors.values():
                await tor.stop(kill=True)


async def test_containers_of_both_racks_reach_each_other_with_no_overlay(tmp_path: Path) -> None:
    async with racks(tmp_path, Communities=["65000:7"], Announce=["172.31.0.0/16"]) as (lab, tors):
        await lab.ready(backend="bgp")
        matrix = await lab.ping(count=2, hosts=True)
        assert matrix.ok, matrix.failed
        for node in lab.nodes.values():
            said = await service(node)
            assert said["role"] == "edge"
            assert (said["gauges"]["sessions"], said["gauges"]["sessions_established"]) == (1, 1)
            status = await node.status()
            assert status.verdict.state == "healthy", status.verdict
            assert "na-" not in await node.ip("-br link show"), "there is no overlay"
            mine = {subnet(other) for other in lab.nodes.values() if other is not node}
            # What the router has besides is taken too, but for the default route and what is ours.
            assert await routes(node) == mine | {"203.0.113.0/24"}
        near = lab.topology.hosts[0]
        far = next(host for host in lab.topology.hosts if host.rack != near.rack)
        assert "192.168.60.1" in await lab[near.name].route_to(lab[far.name].container_ip())
        told = (await lab["h1"].exec("netagent", "bgp", "advertised", "tor1", "--json")).out
        assert {route["prefix"]: route["communities"] for route in json.loads(told)} == {
            subnet(lab["h1"]): ["65000:7"],
            "172.31.0.0/16": ["65000:7"],
        }
        refused = json.loads((await lab["h1"].exec("netagent", "bgp", "received", "tor1", "--json")).out)
        assert "default" in {route["prefix"]: route.get("rejected", "") for route in refused}["0.0.0.0/0"]
        # Both nodes of a rack announce the extra prefix: its router uses both at once, or one of them.
        assert "172.31.0.0/16" in await tors["tor1"].table()


async def test_racks_whose_routers_speak_ipv6_alone(tmp_path: Path) -> None:
    """Sessions and next hops are of IPv6 (RFC 8950); containers reach each other by IPv4 all the same."""
    async with racks(tmp_path, over_ipv6=True) as (lab, tors):
        await lab.ready(backend="bgp")
        matrix = await lab.ping(count=2)
        assert matrix.ok, matrix.failed
        near = lab.topology.hosts[0]
        far = next(host for host in lab.topology.hosts if host.rack != near.rack)
        gateway = leg(near.rack, TORS[0][1], over_ipv6=True)
        (route,) = json.loads(await lab[near.name].ip(f"-j route show {subnet(lab[far.name])}"))
        assert route["via"] == {"family": "inet6", "host": gateway}
        assert (await tors["tor1"].table())[subnet(lab[near.name])]["via"]["family"] == "inet6"
        told = (await lab[near.name].exec("netagent", "bgp", "advertised", "tor1", "--json")).out
        mine = {route["prefix"]: route["next_hop"] for route in json.loads(told)}
        assert mine[subnet(lab[near.name])] == near.v6.partition("/")[0]
        assert (await lab[near.name].exec("netagent", "plan")).out.strip() == "nothing to do"
        async with lab.flow((near.name, far.name)) as flow:
            await lab[near.name].restart_agent()
            await lab.ready(attach=False)
        assert flow.lost == 0, flow


async def test_an_agent_restarts_and_a_router_goes_and_returns(tmp_path: Path) -> None:
    async with racks(tmp_path) as (lab, tors):
        await lab.ready(backend="bgp")
        far = next(host.name for host in lab.topology.hosts if host.rack == "rack2")
        async with lab.flow(("h1", far), (far, "h1")) as flow:
            await lab["h1"].restart_agent()
            await lab.ready(attach=False)
        assert flow.lost == 0, flow
        await tors["tor1"].stop()
        status = await until_status(lab, "h1", "told", lambda s: bool(s.peers.states.get("unreachable")), 40)
        assert status.verdict.state == "degraded"
        await tors["tor1"].start()

        async def lost() -> str:
            failed = (await lab.ping(timeout=0.5)).failed
            return ", ".join(f"{cell.source} to {cell.target}" for cell in failed)

        await lab.until(lost, "everybody reaches everybody again", 60)
        await until_status(lab, "h1", "all is well", lambda s: s.verdict.state == "healthy")
