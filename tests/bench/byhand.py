"""The peers of the data-path figures, laid with `ip` between two hosts of a lab: direct routing, and kernel VXLAN.

Rule: nothing of netagent in it, and alike but for the tunnel: each path has a container of its own on a bridge of
its own, as the lab gives one to the agent's subnet. Devices keep the offloads that the kernel gives to a new one,
and `assert_default_offloads` holds every veth and VXLAN device of the hosts to that, the agent's too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from netagent.lab.lab import Lab
from netagent.lab.wiring import Step
from tests.bench.traffic import End

VXLAN, VNI, PORT, OVERHEAD = "hand-vx", 99, 4789, 50
PLAIN = "plain"  # namespace with a new device of each kind

ROUTING, TUNNEL = "r", "v"
SUBNETS = {ROUTING: "10.8", TUNNEL: "10.9"}


async def lay(lab: Lab, kind: str) -> tuple[End, End]:
    """Lay a path of this kind between h1 and h2; its two containers."""
    await lab.change(list(_steps(lab, kind)))
    if kind == TUNNEL:
        for number in (1, 2):
            mac, endpoint = _mac(3 - number), _outer(lab, 3 - number)
            entry = ["fdb", "add", mac, "dev", VXLAN, "dst", endpoint, "self", "permanent"]
            await lab[f"h{number}"].exec("bridge", *entry)
    first, second = (End(lab, f"h{number}-{kind}", f"{SUBNETS[kind]}.{number}.2") for number in (1, 2))
    return first, second


def _steps(lab: Lab, kind: str) -> Iterator[Step]:
    mtu = lab.topology.racks[0].mtu - (OVERHEAD if kind == TUNNEL else 0)
    for number in (1, 2):
        host, inside, bridge, port = f"h{number}", f"h{number}-{kind}", f"{kind}0", f"{kind}-c"
        subnet, other = (f"{SUBNETS[kind]}.{n}" for n in (number, 3 - number))
        yield Step("", (f"netns add {inside}",))
        outside = [
            f"link add {bridge} type bridge mcast_snooping 0",
            f"link add {port} type veth peer name eth0 netns {inside}",
            f"link set {port} master {bridge} mtu {mtu} up",
            f"link set {bridge} mtu {mtu} up",
            f"address add {subnet}.1/24 dev {bridge}",
        ]
        if kind == TUNNEL:
            local = _outer(lab, number)
            outside += [
                f"link add {VXLAN} type vxlan id {VNI} dstport {PORT} local {local} dev eth0 nolearning",
                f"link set {VXLAN} address {_mac(number)} mtu {mtu} up",
                f"neighbour add {other}.0 lladdr {_mac(3 - number)} dev {VXLAN} nud permanent",
                f"route add {other}.0/24 via {other}.0 dev {VXLAN} onlink",
            ]
        else:
            outside += [f"route add {other}.0/24 via {_outer(lab, 3 - number)} dev eth0"]
        yield Step(host, tuple(outside), (("net/ipv4/ip_forward", "1"),))
        yield Step(
            inside,
            (
                "link set lo up",
                f"link set eth0 mtu {mtu} up",
                f"address add {subnet}.2/24 dev eth0",
                f"route add default via {subnet}.1",
            ),
        )


def _outer(lab: Lab, number: int) -> str:
    return lab.topology.host(f"h{number}").v4.partition("/")[0]


def _mac(number: int) -> str:
    return f"02:00:00:00:99:{number:02x}"


async def assert_default_offloads(lab: Lab) -> None:
    """AssertionError when a veth or VXLAN device of the lab has other features than a new one."""
    spaces = json.loads((await lab.space.run("", ["ip", "-j", "netns", "list"])).out)
    if PLAIN not in [space["name"] for space in spaces]:
        new = (
            "link add veth0 type veth peer name veth1",
            f"link add vxlan0 type vxlan id 1 dstport {PORT} dev veth0",
        )
        await lab.change([Step("", (f"netns add {PLAIN}",)), Step(PLAIN, new)])
    usual = {kind: await _features(lab, PLAIN, f"{kind}0") for kind in ("veth", "vxlan")}
    for space in spaces:
        if not space["name"].startswith(("h1", "h2")):
            continue
        links = json.loads((await lab.space.run("", ["ip", "-n", space["name"], "-j", "-d", "link", "show"])).out)
        for link in links:
            kind = link.get("linkinfo", {}).get("info_kind")
            if kind in usual:
                found = await _features(lab, space["name"], link["ifname"])
                changed = sorted(set(found) ^ set(usual[kind]))
                assert not changed, f"{space['name']} {link['ifname']}: not the kernel's default offloads: {changed}"


async def _features(lab: Lab, netns: str, device: str) -> list[str]:
    return (await lab.space.run(netns, ["ethtool", "-k", device])).out.splitlines()[1:]
