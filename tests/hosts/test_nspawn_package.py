"""The package on systemd hosts: upgraded and downgraded under traffic, with etcd away, removed without a trace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from netagent import __version__
from tests.hosts.test_nspawn_service import engines, restarted
from tests.support.nspawn import Machine, Machines
from tests.support.package import LATER, image, package

pytestmark = [pytest.mark.nspawn, pytest.mark.etcd, pytest.mark.timeout(900)]

DPKG = ("env", "DEBIAN_FRONTEND=noninteractive", "dpkg")


async def install(machine: Machine, deb: Path) -> str:
    shutil.copy(deb, machine.disk / "root" / "new.deb")
    return (await machine.exec(*DPKG, "--install", "/root/new.deb", timeout=60)).out


@pytest.mark.parametrize("backend", ["host-gw", "vxlan", "udp"])
async def test_upgrade_and_downgrade_lose_no_packet(backend: str) -> None:
    async with Machines(image(), nodes=2, backend=backend) as lab:
        await lab.ready()
        h1 = lab["h1"]
        carried = await engines(h1)
        async with lab.flow() as flow:
            before = await h1.property("MainPID")
            await install(h1, package(LATER))
            await restarted(h1, before)
            await lab.ready(attach=False)
            assert (await h1.answers()).node.version == LATER
            newer = await engines(h1)
            assert len(newer) == len(carried)
            assert not set(newer) & set(carried)  # the engine is handed over, too

            await lab.etcd.kill()  # a package manager must not wait for etcd, and neither must the agent
            before = await h1.property("MainPID")
            await install(h1, package())
            await restarted(h1, before)
            assert (await h1.answers()).node.version == __version__
            await lab.etcd.start()
            await lab.ready(attach=False)
        assert flow.sent > 300
        assert flow.lost == 0, flow
        assert (await h1.sh("netagent --version")).split()[-1] == __version__


# What a host is, line by line: its network as the kernel has it, its processes that could be ours, its files.
NETWORK = """
ip -o link | sed 's/ state [A-Z]*//; s/qlen [0-9]*//'; ip -o address
for f in -4 -6; do ip $f route show table all; ip $f rule; done
ip nexthop; ip neighbour show nud permanent; nft list ruleset; pgrep -af '[n]etagent|[b]ackends' || true
"""
SYSCTLS = "grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv4/ip_forward | sort"
FILES = (
    "find / -xdev \\( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache -o -path /root \\) -prune -o -print"
)


async def lines(machine: Machine, script: str) -> set[str]:
    return set((await machine.sh(script)).splitlines())


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
async def test_removal_leaves_the_host_as_it_was(backend: str) -> None:
    await installed_and_removed(image(), package(), backend)


async def installed_and_removed(image: str, deb: Path, backend: str) -> None:
    """What `dpkg --purge` leaves of a node that was at work is what was there before it was installed."""
    async with Machines(image, nodes=2, backend=backend, ipv6=True, enable=False) as lab:
        h1, h2 = lab.machines
        await h1.exec(*DPKG, "--purge", "netagent", timeout=60)
        network, sysctls, files = await lines(h1, NETWORK), await lines(h1, SYSCTLS), await lines(h1, FILES)

        await install(h1, deb)
        await h1.sh(f"echo 'etcd_endpoints = [\"{lab.etcd.endpoint}\"]' >>/etc/netagent/netagent.toml")
        for machine in (h1, h2):
            await machine.sh("systemctl enable --now netagent")
        await lab.ready(attach=False)
        assert await lines(h1, NETWORK) > network
        assert await lines(h1, SYSCTLS) != sysctls

        await h1.exec(*DPKG, "--remove", "netagent", timeout=60)
        assert await lines(h1, NETWORK) ^ network == set()
        assert await lines(h1, SYSCTLS) ^ sysctls == set()
        assert (await h1.sh("cat /etc/netagent/netagent.toml")).endswith(f'["{lab.etcd.endpoint}"]\n')

        await h1.exec(*DPKG, "--purge", "netagent", timeout=60)
        assert await lines(h1, FILES) ^ files <= {"/run/xtables.lock"}
        assert (await h1.exec("getent", "group", "netagent", check=False)).code == 2


async def test_a_first_installation_starts_nothing() -> None:
    """Where etcd is the administrator must say first; and what starts by itself would wait for ever."""
    async with Machines(image(), nodes=1, backend="vxlan", enable=False) as lab:
        h1 = lab["h1"]
        await h1.exec(*DPKG, "--purge", "netagent", timeout=60)
        await install(h1, package())
        assert await h1.property("ActiveState") == "inactive"
        assert await h1.property("UnitFileState") == "disabled"
        assert (
            await h1.exec("netagent", "config", "check", "/dev/null", check=False)
        ).code != 0  # it runs, and says so
