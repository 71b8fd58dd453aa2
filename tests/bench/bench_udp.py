"""TCP through the udp backend beside kernel VXLAN made by hand, in the same run: `python -m tests.bench.bench_udp`.

Two pairs of hosts, each on a switch of its own, alike but for the tunnel; one stream from container to container,
the pairs in turn, so that whatever else the machine does meets both. The figure is the median of the rounds' ratios.
veth and VXLAN keep the kernel's default offloads, which is asserted: the VXLAN pair then hands on super-packets of
64 KiB, the hardest thing to be measured against. Exit status 1 if the ratio is below the bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support.netns import Namespace, Namespaces
from tests.support.udp import DEADLINE, Lab, UdpHost, join

BAR = 0.04
VXLAN_MTU, UDP_MTU = 1450, 1472


class Round(NamedTuple):
    vxlan: float  # Gbit/s
    udp: float

    @property
    def ratio(self) -> float:
        return self.udp / self.vxlan


async def tcp(source: UdpHost, sink: UdpHost, seconds: float) -> float:
    """Gbit/s of one TCP stream between the containers, as the receiver counts."""
    server = await sink.container.spawn("iperf3", "-s", "-1", "--forceflush", stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    async with asyncio.timeout(DEADLINE):
        while b"listening" not in await server.stdout.readline():
            pass
    client = await source.container.spawn(
        "iperf3", "-c", sink.address4, "-t", f"{seconds:.0f}", "-J", stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(seconds + DEADLINE):
        out, _ = await client.communicate()
        await server.communicate()
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9


def lay_vxlan(host: UdpHost, other: UdpHost) -> None:
    """What the vxlan backend lays, by hand."""
    space, local = host.space, host.context.node.local_ip
    mac = "02:00:00:00:00:{:02x}".format
    space.ip(f"link add vx0 type vxlan id 1 dstport 8472 local {local} dev eth0 nolearning")
    space.ip(f"link set vx0 address {mac(host.number)} mtu {VXLAN_MTU} up")
    gateway = f"10.5.{other.number}.0"
    space.ip(f"neighbour add {gateway} lladdr {mac(other.number)} dev vx0 nud permanent")
    remote = str(other.context.node.local_ip)
    space.run("bridge", "fdb", "add", mac(other.number), "dev", "vx0", "dst", remote, "self", "permanent")
    space.ip(f"route add 10.5.{other.number}.0/24 via {gateway} dev vx0 onlink")


def features(space: Namespace, device: str) -> str:
    return space.run("ethtool", "-k", device).stdout.partition("\n")[2]


def assert_default_offloads(net: Namespaces, hosts: list[UdpHost]) -> None:
    """Every veth and VXLAN device has the features that the kernel gives to a new one."""
    plain = net.make("plain")
    net.veth(plain, "v0", plain, "v1")
    plain.ip("link add x0 type vxlan id 1 dstport 8472 dev v0")
    for host in hosts:
        devices = [(host.space, "eth0"), (host.space, "c0"), (host.container, "eth0")]
        for space, device in devices:
            assert features(space, device) == features(plain, "v0"), f"{space.label} {device}: offloads were changed"
        if "vx0" in host.space.ip("-o link show"):
            assert features(host.space, "vx0") == features(plain, "x0"), (
                f"{host.space.label} vx0: offloads were changed"
            )


async def measure(rounds: int, seconds: float) -> list[Round]:
    """Run the rounds, the pairs in turn."""
    with Namespaces() as net, tempfile.TemporaryDirectory(prefix="bench-udp-") as directory:
        async with Lab(net, Path(directory)) as lab:
            udp = [lab.host(1), lab.host(2)]
            vxlan = [lab.host(3), lab.host(4)]
            for pair, mtu in ((udp, UDP_MTU), (vxlan, VXLAN_MTU)):
                net.switch("switch", {host.space: host.outer for host in pair})
                for host in pair:
                    host.space.ip(f"link set c0 mtu {mtu}")
                    host.container.ip(f"link set eth0 mtu {mtu}")
            await join(udp)
            lay_vxlan(vxlan[0], vxlan[1])
            lay_vxlan(vxlan[1], vxlan[0])
            assert_default_offloads(net, [*udp, *vxlan])
            return [Round(await tcp(*vxlan, seconds), await tcp(*udp, seconds)) for _ in range(rounds)]


def report(results: list[Round]) -> str:
    lines = ["TCP, one stream      VXLAN      udp    ratio", "                    Gbit/s   Gbit/s"]
    lines += [
        f"round {n:<2}            {r.vxlan:7.2f}  {r.udp:7.2f}   {r.ratio:6.3f}" for n, r in enumerate(results, 1)
    ]
    vxlan, udp = (statistics.median(r[i] for r in results) for i in (0, 1))
    ratio = statistics.median(r.ratio for r in results)
    lines.append(f"median              {vxlan:7.2f}  {udp:7.2f}   {ratio:6.3f}   (bar {BAR})")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (whole ones)")
    options = parser.parse_args()
    for tool in ("iperf3", "ethtool", "ip"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed: run make tools")
    results = asyncio.run(measure(options.rounds, options.seconds))
    print(report(results))
    return 0 if statistics.median(r.ratio for r in results) >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
