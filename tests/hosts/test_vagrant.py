"""`cd vagrant && vagrant up`, as typed, on libvirt: the scenario that a user can run too, on a host made for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from netagent.lab import topology
from tests.support.netns import unable

ROOT = Path(__file__).resolve().parents[2]
VAGRANT = ROOT / "vagrant"
HOST = ROOT / "scripts" / "vagrant-host"
CASES = ("vxlan", "udp", "ipip", "host-gw", "bgp", "bgp-reflector", "bgp-router")


def on_host(*words: str | Path) -> list[str]:
    """What a script saw to be so ("ok: ...") on the host with Vagrant; its output is passed on as it comes."""
    if os.geteuid() != 0:
        unable("libvirt's own host is made of files that belong to root: run as root")
    command = [HOST, "run", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            if "Progress: " in line:  # a box that is copied, one percent at a time
                continue
            print(line, end="", flush=True)
            said.append(line.strip())
    assert process.returncode == 0, "\n".join(said[-60:])
    return [line.split("ok: ", 1)[1] for line in said if "  ok: " in line]


def test_the_machines_are_those_of_the_lab() -> None:
    """One description for every rung: topology.json is the lab's own, for Ruby to read."""
    plan = topology.build("racks", 3, "vxlan", ipv6=True)
    assert json.loads((VAGRANT / "topology.json").read_text()) == json.loads(msgspec.json.encode(plan))


@pytest.mark.vagrant
@pytest.mark.timeout(2400)
def test_the_whole_cycle() -> None:
    """Up, pings over each backend, status on each node, destroy; nothing of it is left on this machine."""
    said = on_host(VAGRANT / "scenario")
    assert said[0] == "up"
    for case in CASES:
        assert any(f"reach each other over {case}, IPv4 and IPv6" in line for line in said)
    assert said[-2:] == ["status on each node", "destroyed"]


@pytest.fixture
def copy() -> Iterator[Path]:
    """The source as it is now, as from an archive; with the trees and tools that were fetched, and nothing built."""
    top = ROOT / ".tools" / "cache" / "vagrant" / "first"
    shutil.rmtree(top, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, top / name)
    cache = top / ".tools" / "cache"
    cache.mkdir(parents=True)
    for tree in (ROOT / ".tools" / "cache").glob("debian-*"):
        (cache / tree.name).symlink_to(tree)
    for folder in ("bin", "lib", "root"):
        if (source := ROOT / ".tools" / folder).exists():
            shutil.copytree(source, top / ".tools" / folder, symlinks=True, copy_function=os.link)
    yield top
    shutil.rmtree(top)


@pytest.mark.vagrant
@pytest.mark.timeout(1800)
def test_vagrant_up_where_nothing_is_built_yet(copy: Path) -> None:
    """`vagrant up` makes a package and a box by itself; a public box is taken where there is one (a stand-in)."""
    said = on_host("--online", ROOT / "tests" / "hosts" / "vagrant-first", copy)
    assert len(said) == 4
    assert said[-1] == "destroyed"
