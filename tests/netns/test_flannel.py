"""One cluster of real flanneld and netagent nodes, by `make test-flannel FLANNELD=/path/to/flanneld`.

No flanneld comes with this project, so the mixed cluster is skipped, with that reason, unless one is given; only its
command line and the skipping itself are always tested. h1 and h3 run netagent, h2 and h4 flanneld: every pair of
kinds is there. Nodes start one at a time: flanneld 0.20 misses keys that are written close together. Newer ones want
br_netfilter loaded on the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from netagent.errors import AgentUnavailable
from netagent.lab.lab import Lab
from netagent.lab.node import Node
from tests.conftest import ROOT

OURS, THEIRS = ("h1", "h3"), ("h2", "h4")

# Those flags of flanneld that are used here; all of them exist in 0.20 and since.
FLAGS = {"-etcd-endpoints", "-etcd-prefix", "-iface", "-subnet-file", "-iptables-forward-rules"}


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


async def start(node: Node) -> None:
    """The node's daemon, whichever it is, until it has its subnet."""
    if node.name in THEIRS:
        # flanneld leaves forwarding to the container engine.
        await node.exec("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        await node.start_agent(command=command(os.environ["FLANNELD"], node))
    else:
        await node.start_agent()

    async def leased() -> str:
        if (code := await node.agent_code()) is not None:
            pytest.fail(f"{node.name}'s daemon ended with code {code}:\n{node.log_tail()}")
        return "" if node.subnet_env() else f"{node.name} has no subnet.env"

    await node.lab.until(leased, f"{node.name} has a subnet", 30)


async def reached(lab: Lab, timeout: float = 30.0) -> None:
    async def look() -> str:
        matrix = await lab.ping(timeout=0.5, hosts=True)
        return "" if matrix.ok else f"{len(matrix.failed)} pairs without a reply"

    await lab.until(look, "everybody reaches everybody", timeout)


async def peers_known(lab: Lab) -> None:
    """netagent's nodes have a path to every other, and know no more of flanneld's than that."""

    async def look() -> str:
        for name in OURS:
            try:
                states = {peer.v4: peer.state for peer in await lab[name].peers()}
            except AgentUnavailable as error:
                return str(error)
            want = {subnet(lab[o]): "unknown" if o in THEIRS else "up" for o in lab.nodes if o != name}
            if states != want:
                return f"{name} has {states}"
        return ""

    await lab.until(look, "netagent knows every peer", 20)


def subnet(node: Node) -> str:
    return node.subnet_env()["FLANNEL_SUBNET"].replace(".1/", ".0/")


@pytest.mark.flannel
@pytest.mark.netns
@pytest.mark.etcd
@pytest.mark.parametrize("backend", ["udp", "vxlan", "host-gw"])
async def test_a_mixed_cluster(backend: str) -> None:
    lab = Lab(nodes=len(OURS) + len(THEIRS), backend=backend)
    try:
        await lab.up(ephemeral=True, agents=False)
        for node in lab.nodes.values():
            await start(node)
        await lab.attach()
        await peers_known(lab)
        await reached(lab)
        subnets = {name: subnet(node) for name, node in lab.nodes.items()}
        # Each reads what the other wrote, or nothing would have been reached; both write the same fields, in order.
        leases = await lab.etcd.leases()
        assert {key.replace("-", "/") for key in leases} == set(subnets.values())
        assert len({tuple(json.loads(value)) for value in leases.values()}) == 1, leases

        for name in ("h2", "h1"):  # flanneld first, then netagent; both by SIGTERM
            await lab[name].stop_agent()
            await start(lab[name])
            await reached(lab)
        await peers_known(lab)
        assert {name: subnet(node) for name, node in lab.nodes.items()} == subnets
        for name in OURS:
            assert "Traceback" not in lab[name].log.read_text()
    finally:
        await lab.down()


# ------------------------------------------------------------------------------------ what needs no flanneld


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
