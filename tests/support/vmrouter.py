"""BIRD on the router between the racks of virtual machines, as the data centre's: a BGP peer of every node.

Rule: the router's own kernel forwards by what BIRD exports to it; nothing is configured there by hand.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

from netagent.lab.space import environment, find_program
from tests.support.vmlab import VmLab

ASN, NODES = 65100, 64512


class RackRouter:
    """`await start()`, await what is wanted, `await stop()`. Its neighbours are the hosts of the lab's topology."""

    def __init__(self, lab: VmLab) -> None:
        self.lab = lab
        self.name = lab.topology.routers[0].name
        self.daemon = f"{self.name}/bird"

    def leg(self, rack: str) -> tuple[str, str]:
        """Its IPv4 and IPv6 address in a rack."""
        number = self.lab.topology.routers[0].number
        four, six = self.lab.topology.rack(rack).address(number)
        return four.partition("/")[0], six.partition("/")[0]

    def nodes(self) -> list[dict[str, object]]:
        """`Nodes` of the bgp backend: each host is told of the router by the leg in its rack."""
        return [
            {"Match": host.name, "Routers": [{"Name": self.name, "Address": self.leg(host.rack)[0], "AS": ASN,
                                              "TTLSecurity": 1, "AllowOwnAS": 1}]}
            for host in self.lab.topology.hosts
        ]  # fmt: skip

    async def start(self) -> None:
        directory = self.lab.directory / "bird"
        directory.mkdir(exist_ok=True)
        (directory / "bird.conf").write_text("\n".join(self._configuration()) + "\n")
        command = [find_program("bird"), "-f", "-c", str(directory / "bird.conf"), "-s", str(directory / "ctl")]
        command += ["-P", str(directory / "pid")]
        await self.lab.core.space.spawn(self.daemon, self.name, command, directory / "bird.log", environment())

    async def stop(self) -> None:
        """An orderly end; its routes leave the kernel."""
        await self.lab.core.space.signal(self.daemon, signal.SIGTERM)
        await self.lab.core.space.wait(self.daemon)

    async def routes(self) -> set[str]:
        """The containers' subnets that its kernel forwards to."""
        found: set[str] = set()
        for family in ("-4", "-6"):
            said = await self.lab.core.space.run(self.name, ["ip", family, "-j", "route", "show", "proto", "bird"])
            found |= {route["dst"] for route in json.loads(said.out or "[]")}
        return found

    def _configuration(self) -> Iterator[str]:
        yield f'log "{self.lab.directory}/bird/messages" all;'
        yield f"router id {self.leg(self.lab.topology.hosts[0].rack)[0]};"
        yield "protocol device { scan time 10; }"
        yield "protocol direct { ipv4; ipv6; }"
        for family in ("ipv4", "ipv6"):
            yield f"protocol kernel k{family[-1]} {{ {family} {{ import none; export where source = RTS_BGP; }}; }}"
        for host in self.lab.topology.hosts:
            (four, six), peer = self.leg(host.rack), host.v4.partition("/")[0]
            yield f"protocol bgp {host.name} {{"
            yield f"  local {four} as {ASN}; neighbor {peer} as {NODES}; direct; ttl security on;"
            yield "  connect retry time 1; connect delay time 1; error wait time 1, 2;"
            for family, own in (("ipv4", four), ("ipv6", six)):
                yield f"  {family} {{ import all; export where source = RTS_BGP; next hop address {own}; }};"
            yield "}"
