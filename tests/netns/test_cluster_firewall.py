"""Firewalls of other tools: found, told with the command that mends it, and joined on request.

No Docker, ufw or firewalld runs here: their chains are set up by hand as the named stand-ins (Docker 20.10's filter
chains by iptables-nft, Docker 28's raw rule, ufw's chain names, a firewall-cmd that records what it is asked).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netagent.lab.lab import Lab
from netagent.lab.node import Node
from netagent.model import Finding
from netagent.status import Status
from tests.support.firewalls import firewall_cmd

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

DOCKER = """
iptables -N DOCKER-USER
iptables -A DOCKER-USER -j RETURN
iptables -N DOCKER
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables -P FORWARD DROP
"""

NFT_POLICY = """
nft 'add table inet site; add chain inet site pass { type filter hook forward priority 0; policy drop; }'
"""

UFW = """
iptables -N ufw-before-forward
iptables -A FORWARD -j ufw-before-forward
iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -P FORWARD DROP
"""

INPUT = """
nft 'add table ip site; add chain ip site in { type filter hook input priority 0; policy accept; }'
nft 'add rule ip site in meta l4proto udp udp dport { 8000-9000 } drop'
"""


async def shell(node: Node, script: str) -> None:
    await node.exec("sh", "-ec", script)


async def told(lab: Lab, node: Node, look: Callable[[Status], bool], what: str) -> Status:
    seen: list[Status] = []

    async def check() -> str:
        seen[:] = [await node.status()]
        return "" if look(seen[0]) else f"findings: {[f.code for f in seen[0].findings]}"

    await lab.until(check, what, 15)
    return seen[0]


def firewall(status: Status) -> list[Finding]:
    return [f for f in status.findings if f.code.startswith("firewall-")]


@pytest.mark.parametrize(
    ("script", "code", "remedy"),
    [
        (DOCKER, "firewall-drops-forward", "iptables -I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT"),
        (NFT_POLICY, "firewall-drops-forward", "nft insert rule inet site pass ip saddr 10.5.0.0/16 accept"),
        (UFW, "firewall-drops-forward", "ufw route allow from 10.5.0.0/16"),
        (INPUT, "firewall-drops-port", "nft insert rule ip site in udp dport 8472 accept"),
    ],
    ids=["docker 20.10", "nft", "ufw", "input"],
)
async def test_a_drop_is_told_and_its_remedy_works(script: str, code: str, remedy: str) -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        node = lab["h1"]
        await shell(node, script)
        assert not (await lab.ping(timeout=0.3)).ok
        status = await told(lab, node, lambda s: bool(firewall(s)), "the drop is told")
        (finding,) = firewall(status)
        assert finding.code == code
        assert remedy in finding.remedy, finding.remedy
        assert status.verdict.state == "degraded"
        if not remedy.startswith("ufw"):
            await shell(node, finding.remedy.partition(" (")[0])
            assert (await lab.ping()).ok
            await told(lab, node, lambda s: not firewall(s), "the finding goes")


async def test_a_drop_of_bgp_connections_is_told_and_its_remedy_works() -> None:
    async with Lab(nodes=2, backend="bgp") as lab:
        await lab.ready(backend="bgp")
        node = lab["h1"]
        await shell(node, INPUT.replace("meta l4proto udp udp dport { 8000-9000 }", "tcp dport 1-1023"))
        status = await told(lab, node, lambda s: bool(firewall(s)), "the drop is told")
        (finding,) = firewall(status)
        assert (finding.code, finding.subject) == ("firewall-drops-port", "ip site in tcp 179")
        assert status.verdict.state == "degraded"
        await shell(node, finding.remedy.partition(" (")[0])
        await told(lab, node, lambda s: not firewall(s), "the finding goes")


async def test_dockers_raw_rule_is_told() -> None:
    """Docker 28: -A PREROUTING -d 10.5.1.2/32 ! -i docker0 -j DROP in table raw."""
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        address = lab["h1"].container_ip()
        await shell(lab["h1"], f"iptables -t raw -A PREROUTING -d {address}/32 ! -i docker0 -j DROP")
        status = await told(lab, lab["h1"], lambda s: bool(firewall(s)), "the drop is told")
        assert [f.code for f in firewall(status)] == ["firewall-drops-direct"]
        assert "trusted_host_interfaces" in firewall(status)[0].remedy


async def test_integration_with_docker_follows_it_and_is_removed_in_cleanup() -> None:
    async with Lab(nodes=2, backend="vxlan", extra=("--firewall-integrate",)) as lab:
        await lab.ready()
        node = lab["h1"]
        await shell(node, DOCKER)
        await reached(lab)
        assert (await user_chain(node)).count("netagent") == 2
        await told(lab, node, lambda s: not firewall(s), "nothing drops")
        # dockerd flushes and fills its chain anew.
        await shell(node, "iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN")
        await reached(lab)
        await node.stop_agent()
        await node.exec("netagent", "cleanup", "--yes")
        assert "netagent" not in await user_chain(node)
        assert "RETURN" in await user_chain(node)


async def user_chain(node: Node) -> str:
    return (await node.exec("iptables", "-S", "DOCKER-USER")).out


async def reached(lab: Lab) -> None:
    async def look() -> str:
        matrix = await lab.ping(timeout=0.3)
        return "" if matrix.ok else f"{len(matrix.failed)} pairs without a reply"

    await lab.until(look, "everybody reaches everybody", 15)


async def test_integration_with_firewalld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in keeps the sources of zone trusted in a file, as firewalld does in its memory."""
    sources = firewall_cmd(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with Lab(nodes=1, backend="vxlan", extra=("--firewall-integrate",)) as lab:
        await lab.ready(attach=False)
        await shell(lab["h1"], "nft 'table inet firewalld { chain filter_FORWARD { }; }'")

        async def added() -> str:
            return "" if sources.read_text() == "10.5.0.0/16\n" else sources.read_text() or "no source"

        await lab.until(added, "the zone has the network", 15)
        await lab["h1"].stop_agent()
        await lab["h1"].exec("netagent", "cleanup", "--yes")
        assert sources.read_text() == ""


async def test_only_known_peers_reach_the_backends_port() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        stranger = await lab.add_node(agent=False)
        before = await dropped(lab["h1"])
        # A VXLAN header with our VNI, and nothing behind it.
        datagram = "bytes.fromhex('0800000000000100') + bytes(60)"
        send = f"import socket; socket.socket(2, 2).sendto({datagram}, ('192.168.50.11', 8472))"
        await stranger.exec("python3", "-c", send)

        async def counted() -> str:
            return "" if await dropped(lab["h1"]) > before else "nothing was dropped"

        await lab.until(counted, "the stranger's datagram is dropped", 5)
        assert (await lab.ping(only=["h1", "h2"])).ok


async def dropped(node: Node) -> int:
    out = (await node.exec("nft", "list", "chain", "inet", "netagent", "input")).out
    words = out.split()
    return sum(int(words[i + 1]) for i, word in enumerate(words) if word == "packets")
