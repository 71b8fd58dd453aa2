"""One cluster of flanneld and netagent nodes, over each backend.

No flanneld comes with this project. `make test` runs the cluster with the **stand-in** tests/support/flanneld.py, a
second reading of flannel's formats and ways that shares no line with netagent: what passes with it shows that two
readings agree, not that flanneld does. `make test-flannel FLANNELD=/path/to/flanneld` runs the same with a real one;
without it those are skipped, with that reason.

h1 and h3 run netagent, h2 and h4 flanneld: every pair of kinds is there. Nodes start one at a time: flanneld 0.20
misses keys that are written close together. Newer ones want br_netfilter loaded on the machine.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from netagent.errors import AgentUnavailable
from netagent.lab.lab import Lab
from netagent.lab.node import Node
from tests.conftest import ROOT
from tests.netns.test_cluster_traffic import tcp

OURS, THEIRS = ("h1", "h3"), ("h2", "h4")
STAND_IN = ROOT / "tests" / "support" / "flanneld.py"

# Those flags of flanneld that are used here; all of them exist in 0.20 and since.
FLAGS = {"-etcd-endpoints", "-etcd-prefix", "-iface", "-subnet-file", "-iptables-forward-rules"}

# The records, byte for byte.
RECORDS = {
    "udp": r'\{"PublicIP":"192\.168\.50\.1\d","PublicIPv6":null\}',
    "host-gw": r'\{"PublicIP":"192\.168\.50\.1\d","PublicIPv6":null,"BackendType":"host-gw"\}',
    "vxlan": r'\{"PublicIP":"192\.168\.50\.1\d","PublicIPv6":null,"BackendType":"vxlan",'
    r'"BackendData":\{"VNI":1,"VtepMAC":"[0-9a-f]{2}(:[0-9a-f]{2}){5}"\}\}',
}

IN_THE_WAY = {"vxlan": "vxlan-vni-taken", "host-gw": "foreign-in-the-way"}  # of what flanneld leaves


def command(flanneld: str, node: Node) -> list[str]:
    """flanneld's command line on a host of the lab. Without its iptables rules: the lab's hosts drop nothing."""
    return [
        flanneld,
        f"-etcd-endpoints={node.lab.etcd.endpoint}",
        f"-etcd-prefix={node.lab.etcd.prefix}",
        "-iface=eth0",
        f"-subnet-file={node.subnet_file}",
        "-iptables-forward-rules=false",
    ]


async def start(node: Node, flanneld: str) -> None:
    """The node's daemon, whichever it is, until it has its subnet: flanneld has then written its file anew."""
    before = node.subnet_file.stat().st_ino if node.name in THEIRS and node.subnet_file.exists() else 0
    if node.name in THEIRS:
        # flanneld leaves forwarding to the container engine.
        await node.exec("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        await node.start_agent(command=command(flanneld, node))
    else:
        await node.start_agent()

    async def leased() -> str:
        if (code := await node.agent_code()) is not None:
            pytest.fail(f"{node.name}'s daemon ended with code {code}:\n{node.log_tail()}")
        there = node.subnet_file.exists() and node.subnet_file.stat().st_ino != before
        return "" if there else f"{node.name} has no new subnet.env"

    await node.lab.until(leased, f"{node.name} has a subnet", 30)


async def reached(lab: Lab, timeout: float = 30.0) -> None:
    """Containers and hosts reach each other's containers, with packets as large as the MTU and no larger."""
    size = int(lab["h1"].subnet_env()["FLANNEL_MTU"]) - 28

    async def look() -> str:
        matrix = await lab.ping(timeout=0.5, hosts=True, size=size, whole=True)
        return "" if matrix.ok else f"{len(matrix.failed)} pairs without a reply"

    await lab.until(look, "everybody reaches everybody", timeout)


async def peers_known(lab: Lab, theirs: tuple[str, ...] = THEIRS, gone: str = "") -> None:
    """netagent's nodes have a path to every other but `gone`, and know no more of flanneld's than that."""
    nodes = lab.nodes.keys() - {gone}

    async def look() -> str:
        for name in nodes - set(theirs):
            try:
                states = {peer.v4: peer.state for peer in await lab[name].peers()}
            except AgentUnavailable as error:
                return str(error)
            want = {subnet(lab[other]): "unknown" if other in theirs else "up" for other in nodes - {name}}
            if states != want:
                return f"{name} has {states}"
        return ""

    await lab.until(look, "netagent knows every peer", 30)


async def routes_gone(lab: Lab, gone: str) -> None:
    """Nobody has a route to the subnet of a node any more, and netagent does not know it."""

    async def look() -> str:
        others = [node for node in lab.nodes.values() if node.name != gone]
        have = [node.name for node in others if subnet(lab[gone]) in await node.ip("-4 route show")]
        return f"{', '.join(have)} have a route" if have else ""

    await lab.until(look, f"no route to {gone}", 30)
    await peers_known(lab, gone=gone)


async def finding(node: Node, code: str) -> None:
    async def look() -> str:
        try:
            found = {each.code for each in (await node.status()).findings}
        except AgentUnavailable as error:
            return str(error)
        return "" if code in found else f"{node.name} finds {sorted(found)}"

    await node.lab.until(look, f"{node.name} finds {code}", 30)


async def healthy(node: Node) -> None:
    async def look() -> str:
        verdict = (await node.status()).verdict
        return "" if verdict.state == "healthy" else verdict.reason

    await node.lab.until(look, f"{node.name} is healthy", 30)


def subnet(node: Node) -> str:
    return node.subnet_env()["FLANNEL_SUBNET"].replace(".1/", ".0/")


def key(node: Node) -> str:
    return f"{node.lab.etcd.prefix}/subnets/{subnet(node).replace('/', '-')}"


@pytest.mark.netns
@pytest.mark.etcd
@pytest.mark.parametrize("backend", RECORDS)
@pytest.mark.parametrize(
    "program", [pytest.param(STAND_IN, id="stand-in"), pytest.param(None, id="flanneld", marks=pytest.mark.flannel)]
)
async def test_a_mixed_cluster(program: Path | None, backend: str) -> None:
    flanneld = str(program or Path(os.environ["FLANNELD"]).resolve())
    lab = Lab(nodes=len(OURS) + len(THEIRS), backend=backend)
    try:
        await lab.up(ephemeral=True, agents=False)
        for node in lab.nodes.values():
            await start(node, flanneld)
        await lab.attach()
        await peers_known(lab)
        await reached(lab)
        for source, target in (("h1", "h2"), ("h2", "h3")):
            await tcp(lab, source, target, 4)

        # Each reads what the other wrote, or nothing would have been reached; both write the same bytes.
        subnets = {name: subnet(node) for name, node in lab.nodes.items()}
        leases = await lab.etcd.leases()
        assert {name.replace("-", "/") for name in leases} == set(subnets.values())
        for record in leases.values():
            assert re.fullmatch(RECORDS[backend], record), record
        files = [node.subnet_env() for node in lab.nodes.values()]
        assert {tuple(env) for env in files} == {tuple(files[0])}
        assert len({env["FLANNEL_MTU"] for env in files}) == 1

        await lab["h2"].stop_agent()
        await start(lab["h2"], flanneld)
        await peers_known(lab)
        await reached(lab)

        # A node of each kind leaves, and comes back with its subnet. flanneld takes the loss of its lease for an
        # order to end; with its device gone it comes back with another MAC.
        await lab["h3"].stop_agent()
        await lab.etcd.ctl("del", key(lab["h3"]))
        await routes_gone(lab, "h3")
        await start(lab["h3"], flanneld)
        await peers_known(lab)
        await lab.etcd.ctl("del", key(lab["h4"]))
        await lab.space.wait("h4/agent", 20)
        await routes_gone(lab, "h4")
        if backend == "vxlan":
            await lab["h4"].ip("link delete flannel.1")
        await start(lab["h4"], flanneld)
        await peers_known(lab)
        await reached(lab)

        after = await lab.etcd.leases()
        assert after.keys() == leases.keys()
        changed = {name for name, record in after.items() if leases[name] != record}
        assert changed == ({key(lab["h4"]).rpartition("/")[2]} if backend == "vxlan" else set())

        # A flanneld's node becomes netagent's, with its subnet, as docs/howto/flannel.md says. What flanneld left
        # behind is in the way, which is said, and carries the traffic until it is removed.
        await lab["h4"].stop_agent()
        await lab["h4"].start_agent()
        if backend != "udp":
            await finding(lab["h4"], IN_THE_WAY[backend])
            await reached(lab)
        if backend == "vxlan":
            await lab["h4"].ip("link delete flannel.1")
        elif backend == "host-gw":
            await lab["h4"].ip("route flush root 10.5.0.0/16 proto boot")
        await peers_known(lab, theirs=("h2",))
        await reached(lab)
        await healthy(lab["h4"])

        assert {name: subnet(node) for name, node in lab.nodes.items()} == subnets
        for name in (*OURS, "h4"):
            assert "Traceback" not in lab[name].log.read_text()
        for name in THEIRS:  # a key that it cannot parse would have emptied its tables
            assert "not a subnet" not in lab[name].log.read_text()
    finally:
        await lab.down()


# ------------------------------------------------------------------------- the command line and the stand-in itself


def test_flanneld_is_given_flags_that_it_has() -> None:
    lab = Lab(nodes=2, directory=ROOT)
    words = command("/opt/flanneld", lab["h2"])
    assert words[0] == "/opt/flanneld"
    given = dict(word.split("=", 1) for word in words[1:])  # Go's flags: a boolean's value only after "="
    assert given.keys() == FLAGS
    assert given["-etcd-endpoints"] == "http://192.168.50.2:2379"
    assert given["-etcd-prefix"] == "/coreos.com/network"
    assert given["-subnet-file"].endswith("/h2/run/subnet.env")


def test_without_a_flanneld_it_is_skipped_and_says_why() -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("FLANNELD", "CI")}
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "flannel", "-rs", __file__]
    out = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False).stdout
    assert "no flanneld given: make test-flannel FLANNELD=/path" in out
    assert "3 skipped" in out


def test_the_stand_in_is_a_program_of_its_own() -> None:
    """Nothing of netagent, of its backends or of what needs a package is in it."""
    for path in (STAND_IN, *(STAND_IN.parent / "flannel").glob("*.py")):
        for statement in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names or name.startswith("tests.support.flannel."), (
                    name
                )
