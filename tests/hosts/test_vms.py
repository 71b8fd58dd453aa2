"""Three virtual machines with Debian's own kernel, in two racks with a router between: every backend, what a network
does to packets, what power and kernel do to a host.

Rule: one cluster for this file and test_vms_bgp.py (conftest.py), in the order of the file, because a boot of an
emulated machine takes a minute; each test leaves all hosts ready on the backend that it names, and waits for what it
needs at its start. No throughput is asserted: the machines are emulated.
"""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from netagent.lab import topology
from tests.support.vmlab import VmLab

pytestmark = [pytest.mark.vms, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
ALL = ["h1", "h2", "h3"]


async def test_host_gw_within_a_segment(lab: VmLab) -> None:
    statuses = await lab.healthy()
    assert statuses["h1"].interface.name == "eth0"
    await lab.carries()
    kernel = (await lab["h1"].exec("uname", "-r")).out
    assert kernel.startswith("6.1.")


async def test_vlan_uplinks(lab: VmLab) -> None:
    """The uplink is a VLAN on eth0: the agent is told its name, and the peers move to the addresses there."""
    await lab.ready()
    for number, name in enumerate(ALL, 1):
        vlan = f"""
        ip link add eth0.7 link eth0 type vlan id 7
        ip address add 192.168.77.1{number}/24 dev eth0.7
        ip link set eth0.7 up
        """
        await lab[name].sh(vlan)
        await lab.settings(lab[name], iface=["eth0.7"])

    async def on_vlan() -> str:
        told = [await lab[name].status() for name in ALL]
        where = [(s.interface.name, [p.endpoint for p in s.peers.shown]) if s else None for s in told]
        return (
            "" if all(w and w[0] == "eth0.7" and all("192.168.77." in e for e in w[1]) for w in where) else f"{where}"
        )

    await lab.until(on_vlan, "every host on its VLAN", 90)
    await lab.ready()
    await lab.carries()
    assert "dev eth0.7" in (await lab["h1"].exec("ip", "route", "get", lab.container_ip("h2", 4))).out
    for name in ALL:
        await lab.settings(lab[name])

    async def off_vlan() -> str:
        told = [await lab[name].status() for name in ALL]
        ends = [p.endpoint for s in told if s for p in s.peers.shown]
        return "" if None not in told and len(ends) == 6 and not any("192.168.77." in e for e in ends) else f"{ends}"

    await lab.until(off_vlan, "every host on eth0 again", 90)
    for name in ALL:
        await lab[name].exec("ip", "link", "delete", "eth0.7")


async def test_an_address_family_added_at_run_time(lab: VmLab) -> None:
    before = await lab.ready()
    await lab.set_config(**topology.IPV6_NETWORK)
    after = await lab.ready()
    assert {n: s.lease.v4 for n, s in after.items()} == {n: s.lease.v4 for n, s in before.items()}
    assert all(status.lease.v6 for status in after.values())
    await lab.carries()


async def test_a_host_carried_to_another_rack_keeps_its_subnet(lab: VmLab) -> None:
    before = await lab.ready()
    await lab.set_backend("vxlan")
    await lab.ready()
    await lab.move("h2", "rack2")

    async def moved() -> str:
        told = [await lab[name].status() for name in ("h1", "h3")]
        ends = {p.endpoint for s in told if s for p in s.peers.shown if p.node == "h2"}
        return "" if ends == {lab["h2"].host.v4.partition("/")[0]} else f"h2 is at {ends}"

    await lab.until(moved, "the others know where h2 is", 90)
    after = await lab.ready()
    assert after["h2"].lease.v4 == before["h2"].lease.v4
    await lab.carries()


async def test_host_gw_across_a_router_is_a_finding(lab: VmLab) -> None:
    await lab.set_backend("host-gw")
    finding = await lab.finding("h1", "hostgw-not-on-link")
    assert finding is not None
    assert "vxlan" in finding.remedy
    await lab.ready(["h1", "h3"])
    await lab.carries(["h1", "h3"])


@pytest.mark.parametrize(
    "backend",
    [
        *("vxlan", "udp", "ipip"),
        {"Type": "vxlan", "DirectRouting": True},
        {"Type": "ipip", "DirectRouting": True},
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value['Type']}-direct",
)
async def test_backends_across_racks(lab: VmLab, backend: str | dict[str, Any]) -> None:
    await lab.set_backend(backend)
    direct = isinstance(backend, dict)

    async def paths() -> str:
        status = await lab["h1"].status()
        path = {p.node: p.path for p in status.peers.shown} if status else {}
        return "" if path.get("h3", "").startswith("direct") is direct else f"{path}"

    await lab.until(paths, "h1's path to its neighbour", 90)
    statuses = await lab.healthy()
    paths = {peer.node: peer.path for peer in statuses["h1"].peers.shown}
    assert not paths["h2"].startswith("direct")
    await lab.carries()


async def test_the_kernel_made_the_ip_in_ip_devices_that_were_asked_for(lab: VmLab) -> None:
    """iproute2 as the oracle of what our own codec asked the kernel for."""
    await lab.set_config(**topology.IPV6_NETWORK)
    await lab.set_backend("ipip")
    await lab.ready()
    links = {link["ifname"]: link for link in json.loads((await lab["h1"].exec("ip", "-d", "-j", "link")).out)}
    host = lab["h1"].host
    four = links["na-ipip"]
    sixes = {six["linkinfo"]["info_data"]["remote"]: six for name, six in links.items() if name.startswith("na-s")}
    assert set(sixes) == {lab[name].host.v4.partition("/")[0] for name in ("h2", "h3")}
    assert four["linkinfo"]["info_data"]["remote"] == "any"
    for link in (four, *sixes.values()):
        data = link["linkinfo"]["info_data"]
        assert (link["mtu"], link["ifalias"]) == (1480, "netagent")
        assert (data["local"], data["ttl"], data["pmtudisc"]) == (host.v4.partition("/")[0], 64, True)
    for name in ("na-ipip", *(name for name in links if name.startswith("na-s"))):
        # udev runs here: what it does to a device is in our file, which leaves name and address alone.
        said = await lab["h1"].exec("udevadm", "info", "--query=property", f"--path=/sys/class/net/{name}")
        assert "ID_NET_LINK_FILE=/usr/lib/systemd/network/10-netagent.link" in said.out, said
    assert "UP" not in links["tunl0"]["flags"]
    assert "UP" not in links["sit0"]["flags"]
    await lab["h1"].sh("ip link delete na-ipip; ip route flush proto 110")
    await lab.ready()
    await lab.carries()


# NET_BIND_SERVICE, NET_ADMIN, NET_RAW (linux/capability.h): what the package's unit leaves to the agent.
CAPABILITIES = 1 << 10 | 1 << 12 | 1 << 13


async def test_ip_in_ip_under_the_hardened_unit(lab: VmLab) -> None:
    """The agent makes devices, routes and guard with what the unit leaves it, modules included; and a restart of it
    loses no packet."""
    await lab.set_backend("ipip")
    await lab.ready()
    unit = (await lab["h1"].exec("systemctl", "show", "netagent", "--property=FragmentPath,DropInPaths")).out
    own = ["/lib/systemd/system/netagent.service", "/lib/systemd/system/netagent.service.d/10-group.conf"]
    assert [
        line.partition("=")[2].removeprefix("/usr") for line in unit.splitlines()
    ] == own  # the package's, no other
    limits = (await lab["h1"].sh("cat /proc/$(systemctl show --value -p MainPID netagent)/status")).splitlines()
    values = dict(line.split(":\t", 1) for line in limits if ":\t" in line)
    assert int(values["CapBnd"], 16) == int(values["CapEff"], 16) == CAPABILITIES
    assert (values["NoNewPrivs"], values["Seccomp"]) == ("1", "2")
    async with lab.flow() as flow:
        await lab["h1"].exec("systemctl", "restart", "netagent", timeout=120)
        await lab.ready()
    assert flow.lost == 0, flow
    # From nothing, the modules not loaded: as at the first start on a host.
    gone = "systemctl stop netagent; for path in /sys/class/net/na-*; do ip link delete ${path##*/}; done"
    await lab["h1"].sh(f"{gone}; rmmod ipip sit", timeout=120)
    await lab["h1"].exec("systemctl", "start", "netagent", timeout=120)
    await lab.healthy()
    await lab.carries()


@pytest.mark.parametrize(("protocol", "family"), [(4, 4), (41, 6)])
async def test_another_firewall_that_drops_the_protocol_is_told(lab: VmLab, protocol: int, family: int) -> None:
    """The command that is told lets the packets in again."""
    await lab.set_config(**topology.IPV6_NETWORK)
    await lab.set_backend("ipip")
    await lab.ready()
    h1 = lab["h1"]
    head = "type filter hook input priority 0; policy drop;"
    others = ", ".join(str(number) for number in (1, 6, 17, 58, 4, 41) if number != protocol)
    await h1.sh(f"nft 'table inet site {{ chain in {{ {head} meta l4proto {{ {others} }} accept; }}; }}'")
    finding = await lab.finding("h1", "firewall-drops-protocol")
    assert finding is not None
    assert finding.subject == f"inet site in protocol {protocol}"
    assert {cell.family for cell in (await lab.ping(count=1)).failed} == {family}
    await h1.sh(finding.remedy.partition(" (")[0])
    await lab.carries()
    await lab.finding("h1", "firewall-drops-protocol", gone=True)
    await h1.exec("nft", "delete", "table", "inet", "site")


async def test_only_peers_reach_the_ip_in_ip_device(lab: VmLab) -> None:
    """An IP-in-IP packet that etcd's host forges is dropped; the same from a peer's address is let in."""
    await lab.set_backend("ipip")
    await lab.ready()
    rule = "ip protocol"
    dropped = "nft -j list chain inet netagent input"

    async def count() -> int:
        rules = json.loads(await lab["h1"].sh(dropped))["nftables"]
        found = [e["counter"]["packets"] for r in rules for e in r.get("rule", {}).get("expr", []) if "counter" in e]
        return sum(found)

    assert rule in await lab["h1"].sh("nft list chain inet netagent input")
    before = await count()
    target = lab["h1"].host.v4.partition("/")[0]
    forged = (
        "import socket, struct\n"
        f"inner = bytes.fromhex('4500001c00000000400100000a0500010a050002') + bytes(8)\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 4)\n"
        f"[s.sendto(inner, ('{target}', 0)) for _ in range(3)]\n"
    )
    await lab.core.space.run("etcd", ["python3", "-c", forged])

    async def seen() -> str:
        return "" if (now := await count()) == before + 3 else f"{now - before} packets dropped"

    await lab.until(seen, "three forged packets dropped", 20)
    assert (await lab.ping()).ok


@pytest.mark.parametrize("backend", ["vxlan", "udp", "ipip"])
async def test_delay_loss_and_reordering(lab: VmLab, backend: str) -> None:
    """TCP arrives whole, agents stay ready, and a change of backend goes through."""
    await lab.ready()
    netem = "tc qdisc replace dev eth0 root netem delay 30ms 10ms loss 5% reorder 25% 50%"
    try:
        for name in ALL:
            await lab[name].sh(netem)
        await lab.set_backend(backend)
        await lab.ready()
        assert await lab.tcp(size=1 << 16) == {}
        matrix = await lab.ping(count=10)
        # Of a hundred packets ten are lost on the way there or back: ten in a row by no chance.
        assert all(cell.times for cell in matrix.cells), matrix.failed
        assert matrix.median is not None
        assert matrix.median > 0.04
    finally:
        for name in ALL:
            await lab[name].sh("tc qdisc delete dev eth0 root")
    statuses = await lab.ready()
    assert all(status.etcd.connected for status in statuses.values())
    await lab.carries()


async def test_a_reboot(lab: VmLab) -> None:
    """Its subnet and its service return, with nobody's help."""
    await lab.set_backend("ipip")
    before = await lab.ready()
    took = await lab["h3"].reboot()
    print(f"h3 rebooted in {took:.0f} s")
    lab.forget_container("h3")
    after = await lab.ready()
    assert (after["h3"].lease.v4, after["h3"].lease.v6) == (before["h3"].lease.v4, before["h3"].lease.v6)
    await lab.carries()


async def test_power_off(lab: VmLab) -> None:
    """The others lose nothing and say that it is down; it returns as who it was."""
    await lab.set_backend("vxlan")
    before = await lab.ready()
    await lab["h2"].cut_power()
    others = ["h1", "h3"]
    await lab.carries(others)

    async def seen() -> str:
        told = [await lab[name].status() for name in others]
        states = [p.state for s in told if s for p in s.peers.shown if p.node == "h2"]
        return "" if states == ["down", "down"] else f"{states}"

    await lab.until(seen, "the others say that h2 is down", 120)
    statuses = [await lab[name].status() for name in others]
    assert {s.verdict.state for s in statuses if s} == {"healthy"}  # another host's power is not this host's fault
    boots = len(lab["h2"].boots)
    await lab["h2"].start()
    await lab["h2"].booted(boots + 1)
    lab.forget_container("h2")
    after = await lab.ready()
    assert (after["h2"].lease.v4, after["h2"].lease.v6) == (before["h2"].lease.v4, before["h2"].lease.v6)
    await lab.carries()


@pytest.mark.parametrize(
    ("backend", "module", "kind", "instead"),
    [("ipip", "ipip", "ipip", "vxlan"), ("vxlan", "vxlan", "vxlan", "ipip")],
    ids=["ipip", "vxlan"],
)
async def test_a_kernel_that_lacks_a_module(lab: VmLab, backend: str, module: str, kind: str, instead: str) -> None:
    """A finding that names the next best backend; the others are not touched; with the module all is well."""
    other = "udp"
    await lab.set_backend(other)
    await lab.ready()

    async def unloaded() -> str:
        """Possible only once the agent has given up the device."""
        return await lab["h1"].sh(f"test ! -e /sys/module/{module} || rmmod {module} 2>&1 || true")

    await lab.until(unloaded, f"h1 without {module}", 60)
    await lab["h1"].write("/etc/modprobe.d/blocked.conf", f"install {module} /bin/false\n")
    await lab.set_backend(backend)
    finding = await lab.finding("h1", "kernel-lacks-device")
    assert finding is not None
    assert finding.subject == kind
    assert f'use "{instead}"' in finding.remedy
    await lab.ready(["h2", "h3"])
    await lab.carries(["h2", "h3"])
    await lab["h1"].exec("rm", "/etc/modprobe.d/blocked.conf")
    await lab.finding("h1", "kernel-lacks-device", gone=True)
    await lab.ready()
    await lab.carries()


async def test_the_kernel_edge_keeps_its_contract_here(lab: VmLab) -> None:
    """tests/netns/test_host_contract.py in the guest, for the devices that the kernel under the tests may lack."""
    site = Path(pytest.__file__).parents[1]
    names = (
        "pytest",
        "_pytest",
        "pluggy",
        "iniconfig",
        "packaging",
        "pygments",
        "pytest_asyncio",
        "pytest_timeout.py",
        "py.py",
        "typing_extensions.py",
        "hypothesis",  # conftest.py sets its profile
        "sortedcontainers",
        *(path.name for path in site.glob("_hypothesis_*.py")),
    )
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in (*names, *(path.name for path in site.glob("pytest[-_][0-9at]*.dist-info"))):
            tar.add(
                site / name, f"site/{name}", filter=lambda member: None if "__pycache__" in member.name else member
            )
        for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/support", "tests/netns"):
            tar.add(ROOT / name, name, filter=lambda member: None if "__pycache__" in member.name else member)
    vm = lab["h1"]
    await vm.exec(
        "sh", "-c", "mkdir -p /root/repo && base64 -d | tar -xz -C /root/repo",
        input=base64.b64encode(archive.getvalue()).decode(), timeout=120,
    )  # fmt: skip
    await vm.exec("modprobe", "--all", "ipip", "sit")  # with them come tunl0 and sit0, before the tests look
    done = await vm.exec(
        *(
            "env",
            "-C",
            "/root/repo",
            "PYTHONPATH=/root/repo/site",
            "CI=true",
            "/opt/netagent/bin/python3",
            "-m",
            "pytest",
        ),
        *("-q", "-p", "no:cacheprovider", "-o", "timeout=400", "-k", "linux and (ipip or sit)"),
        "tests/netns/test_host_contract.py",
        timeout=500,
        check=False,
    )
    assert done.code == 0, done.out[-3000:] + done.err
    assert re.search(r"[1-9]\d* passed", done.out)
    assert "skipped" not in done.out
