"""The commands of docs/howto (install, change, remove), typed on systemd hosts as they stand there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.support.nspawn import Machine, Machines
from tests.support.package import LATER, ROOT, image, package

pytestmark = [pytest.mark.nspawn, pytest.mark.etcd, pytest.mark.timeout(900)]


def blocks(page: str, section: str) -> Iterator[str]:
    """The commands of a section, block by block."""
    text = (ROOT / "docs" / "howto" / page).read_text()
    whole = re.search(rf"^#+ {re.escape(section)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    assert whole is not None, section
    yield from re.findall(r"^```\n(.*?)^```", whole[1], re.M | re.S)


async def typed(machine: Machine, script: str) -> str:
    """In root's home directory; where apt asks, the answer is yes."""
    return await machine.sh(f"cd /root\n{script}", input="y\n", timeout=90)


async def bring(machine: Machine, version: str = "") -> None:
    """One package in root's home directory."""
    await machine.sh("rm -f /root/netagent_*.deb")
    shutil.copy(package(version), machine.disk / "root")


async def test_install_upgrade_and_remove_as_the_pages_say() -> None:
    make, install, init, start = blocks("install.md", "The first cluster")
    assert make == "make deb\n"
    assert len((make + install + init + start).splitlines()) <= 6  # a first real cluster in at most six commands
    upgrade, downgrade = blocks("change.md", "An upgrade")
    remove, purge, _release = blocks("remove.md", "Remove")
    async with Machines(image(), nodes=3, backend="vxlan", enable=False) as lab:
        await lab.etcd.ctl("del", f"{lab.etcd.prefix}/config")
        for machine in lab.machines:
            await machine.sh("dpkg --purge netagent")
            await bring(machine)
            await typed(machine, install)
        assert lab.etcd.endpoint in await lab["h1"].sh("cat /etc/netagent/netagent.toml")  # the page has the lab's
        await typed(lab["h2"], init)
        for machine in lab.machines:
            assert "healthy" in await typed(machine, start)
        await lab.ready()
        assert (await lab.ping()).ok

        h1 = lab["h1"]
        await bring(h1, LATER)
        assert "healthy" in await typed(h1, upgrade)
        assert (await h1.answers()).node.version == LATER
        await bring(h1)
        await typed(h1, downgrade)
        assert (await h1.sh("cat /etc/netagent/netagent.toml")).count("etcd_endpoints = ") >= 1
        await typed(h1, remove)
        assert "netagent" not in await h1.sh("nft list tables; ip route show proto 110")
        await typed(h1, purge)
        assert (await h1.exec("test", "-e", "/etc/netagent", check=False)).code == 1
