"""`cd vagrant && vagrant up`, as typed, on libvirt: the scenario that a user can run too, on a host made for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from netagent.lab import topology

ROOT = Path(__file__).resolve().parents[2]
VAGRANT = ROOT / "vagrant"


def test_the_machines_are_those_of_the_lab() -> None:
    """One description for every rung: topology.json is the lab's own, for Ruby to read."""
    plan = topology.build("racks", 3, "vxlan", ipv6=True)
    assert json.loads((VAGRANT / "topology.json").read_text()) == json.loads(msgspec.json.encode(plan))


@pytest.mark.vagrant
@pytest.mark.timeout(2400)
def test_the_whole_cycle() -> None:
    """Up, pings over each backend, status on each node, destroy; nothing of it is left on this machine."""
    if os.geteuid() != 0:
        pytest.skip("libvirt's own host is made of files that belong to root: run as root")
    done = subprocess.run(
        [ROOT / "scripts" / "vagrant-host", "run", VAGRANT / "scenario"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
    said = [line.split("ok: ", 1)[1] for line in done.stdout.splitlines() if "  ok: " in line]
    assert said[0] == "up"
    for backend in ("vxlan", "udp", "ipip", "host-gw"):
        assert any(f"reach each other over {backend}, IPv4 and IPv6" in line for line in said)
    assert said[-2:] == ["status on each node", "destroyed"]
