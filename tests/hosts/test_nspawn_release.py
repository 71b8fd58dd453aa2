"""The other Debian release, booted: its own package on its systemd and Python, at work, in trouble, and removed."""

from __future__ import annotations

import pytest

from tests.hosts.test_nspawn_package import installed_and_removed
from tests.hosts.test_nspawn_service import engines, restarted
from tests.support.nspawn import Machines
from tests.support.package import image, other_release, package

pytestmark = [pytest.mark.nspawn, pytest.mark.etcd, pytest.mark.slow, pytest.mark.timeout(900)]

# What distinguishes a release here: VERSION_CODENAME, systemd, Python.
VERSIONS = {"trixie": ("257", "3.13"), "bookworm": ("252", "3.11")}


async def test_the_service_on_another_release(capsys: pytest.CaptureFixture[str]) -> None:
    """Active is ready; crash, hang and restart lose no packet; after a reboot it is who it was."""
    suite = other_release()
    async with Machines(image(suite), nodes=2, backend="udp", ipv6=True, watchdog=3) as lab:
        await lab.ready(backend="udp")
        with capsys.disabled():
            print(f"\n{suite}: two systemd hosts ready after {lab.ready_after:.1f} s", end=" ")
        h1, h2 = lab.machines
        assert suite in await h1.sh("cat /etc/os-release")
        found = (await h1.sh("systemctl --version")).split()[1], await h1.sh("/opt/netagent/bin/python3 --version")
        assert (found[0].split(".")[0], VERSIONS[suite][1] in found[1]) == (VERSIONS[suite][0], True)
        assert (await lab.ping(hosts=True)).ok
        for machine in lab.machines:
            status = await machine.answers()
            assert status.verdict.state == "healthy", (status.verdict, status.findings)
            assert await machine.sh("journalctl -u netagent -p warning -q --no-pager") == ""
        carried = await engines(h1)
        async with lab.flow() as flow:
            before = await h1.property("MainPID")
            await h1.exec("kill", "-STOP", before)
            await restarted(h1, before)
            assert "watchdog" in (await h1.journal(100)).lower()
            before = await h2.property("MainPID")
            await h2.kill_agent()
            await restarted(h2, before)
            before = await h1.property("MainPID")
            await h1.restart_agent()
            await restarted(h1, before)
            await h1.exec("systemctl", "reload", "netagent")
            await lab.ready(attach=False)
        assert flow.sent > 100
        assert flow.lost == 0, flow
        assert await engines(h1) == carried
        env = h1.subnet_env()
        await h1.reboot()
        await lab.ready()
        assert h1.subnet_env() == env
        assert (await lab.ping()).ok


async def test_removal_from_another_release() -> None:
    await installed_and_removed(image(other_release()), package(suite=other_release()), "vxlan")
