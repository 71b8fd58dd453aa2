"""The service on systemd hosts: readiness, watchdog, crashes, restarts, reboots, journal, who may ask.

Three hosts and etcd, each host a system of its own with the package installed; the same lab and the same questions as
in namespaces.
"""

from __future__ import annotations

import json

import pytest

from tests.support.nspawn import Machine, Machines
from tests.support.package import image

pytestmark = [pytest.mark.nspawn, pytest.mark.etcd, pytest.mark.timeout(900)]

BACKENDS = ("host-gw", "vxlan", "udp", "bgp")


async def restarted(machine: Machine, before: str) -> None:
    """Until another process is the service's and the node is ready."""

    async def look() -> str:
        now = await machine.property("MainPID")
        return "" if now not in ("0", before) else f"main process is {now}"

    await machine.lab.until(look, f"a new agent on {machine.name}", 60)
    await machine.active()


async def engines(machine: Machine) -> list[str]:
    found = await machine.sh("pgrep -f '[b]ackends.udp.engine' || true")
    return found.split()


# ------------------------------------------------------------------------------------------------ every backend


@pytest.mark.parametrize("backend", BACKENDS)
async def test_every_backend_under_the_unit(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All that the unit forbids is needed by none; and whatever ends the agent, the traffic goes on."""
    async with Machines(image(), nodes=3, backend=backend, ipv6=True) as lab:
        await lab.ready(backend=backend)
        with capsys.disabled():
            print(f"\n{backend}: three systemd hosts ready after {lab.ready_after:.1f} s", end=" ")
        assert (await lab.ping(hosts=True)).ok
        for machine in lab.machines:
            status = await machine.answers()
            assert status.verdict.state == "healthy", (status.verdict, status.findings)
            assert await machine.sh("journalctl -u netagent -p warning -q --no-pager") == ""
        h1, h2, h3 = lab.machines
        carried = [await engines(machine) for machine in lab.machines]
        assert all(len(pids) == (backend == "udp") for pids in carried)
        async with lab.flow() as flow:
            before = await h1.property("MainPID")
            await h1.restart_agent()
            await restarted(h1, before)
            before = await h2.property("MainPID")
            await h2.kill_agent()
            await restarted(h2, before)
            await h3.stop_agent()
            await h3.start_agent()
            await h3.active()
            await h3.exec("systemctl", "reload", "netagent")
            await lab.ready(attach=False)
        assert flow.sent > 300
        assert flow.lost == 0, flow
        assert [await engines(machine) for machine in lab.machines] == carried


async def test_a_hung_agent_is_restarted_and_loses_no_packet() -> None:
    async with Machines(image(), nodes=2, backend="udp", watchdog=3) as lab:
        await lab.ready()
        h1 = lab["h1"]
        carried = await engines(h1)
        before = await h1.property("MainPID")
        async with lab.flow() as flow:
            await h1.exec("kill", "-STOP", before)
            await restarted(h1, before)
        assert (flow.lost, await engines(h1)) == (0, carried)
        assert "watchdog" in (await h1.journal(100)).lower()


# ---------------------------------------------------------------------------------------------------- readiness

DEPENDANT = """
[Unit]
Requires=netagent.service
After=netagent.service
[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile=/run/netagent/subnet.env
ExecStart=/bin/sh -c 'echo "$FLANNEL_SUBNET $FLANNEL_MTU" >/run/engine'
"""


async def test_active_means_ready_and_what_needs_the_subnet_starts_after_it() -> None:
    async with Machines(image(), nodes=2, backend="vxlan", enable=False) as lab:
        h1 = lab["h1"]
        await lab.etcd.kill()
        await h1.sh(f"cat >/etc/systemd/system/engine.service <<'END'{DEPENDANT}END\nsystemctl daemon-reload")
        await h1.exec("systemctl", "start", "--no-block", "engine")

        verdict = (await h1.answers()).verdict
        assert (verdict.ready, bool(verdict.blockers)) == (False, True)
        assert await h1.property("ActiveState") == "activating"
        assert await h1.property("ActiveState", "engine") == "inactive"
        assert (await h1.exec("test", "-e", "/run/engine", check=False)).code == 1
        await lab.etcd.start()
        await h1.active()

        async def follows() -> str:
            return "" if await h1.property("ActiveState", "engine") == "active" else "not yet"

        await lab.until(follows, "the service that needs the subnet", 30)
        env = h1.subnet_env()
        assert (await h1.sh("cat /run/engine")).split() == [env["FLANNEL_SUBNET"], env["FLANNEL_MTU"]]
        assert (await h1.property("StatusText")).startswith(env["FLANNEL_SUBNET"].replace(".1/", ".0/"))


# ------------------------------------------------------------------------------------------------------ reboots


async def test_reboot_with_and_without_etcd() -> None:
    async with Machines(image(), nodes=3, backend="vxlan") as lab:
        await lab.ready()
        h1 = lab["h1"]
        env = h1.subnet_env()
        await h1.reboot()
        await lab.ready()
        assert (await lab.ping()).ok
        assert h1.subnet_env() == env

        await lab.etcd.kill()
        await h1.reboot()
        await h1.active()
        assert h1.subnet_env() == env
        await h1.attach()

        async def reaches() -> str:
            return "" if (await lab.ping()).ok else "not every container reaches every other"

        await lab.until(reaches, "pings without etcd", 30)
        assert not (await h1.answers()).etcd.connected
        await lab.etcd.start()
        await lab.ready()
        assert h1.subnet_env() == env


# --------------------------------------------------------------------------------------------- journal, socket


async def test_what_the_journal_holds() -> None:
    """Each line with its priority and its origin, so that `journalctl -u netagent -p warning` is what is wrong."""
    async with Machines(image(), nodes=1, backend="vxlan") as lab:
        h1 = lab["h1"]
        await h1.sh("echo 'log_level = \"loud\"' >>/etc/netagent/netagent.toml; systemctl reload netagent || true")

        async def warned() -> str:
            out = await h1.sh("journalctl -u netagent -p warning -o json -q --no-pager")
            return "" if "loud" in out else "nothing said of the setting"

        await lab.until(warned, "a warning in the journal", 30)
        lines = (await h1.sh("journalctl _SYSTEMD_UNIT=netagent.service -o json -q --no-pager")).splitlines()
        entries = [json.loads(line) for line in lines]
        assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"netagent"}
        assert {entry["_EXE"].rpartition("/")[2][:7] for entry in entries} == {"python3"}
        priority = {entry["MESSAGE"]: entry["PRIORITY"] for entry in entries}
        (ready,) = [text for text in priority if "ready: containers can be started" in text]
        (loud,) = [text for text in priority if "loud" in text]
        assert (priority[ready], priority[loud]) == ("6", "4")
        assert not any("<" in text[:3] for text in priority)  # the prefix is systemd's, not the reader's


async def test_who_may_ask_the_agent() -> None:
    async with Machines(image(), nodes=1, backend="host-gw") as lab:
        h1 = lab["h1"]
        await h1.sh("useradd member; useradd stranger; usermod -aG netagent member")

        async def as_user(name: str) -> tuple[int, str]:
            done = await h1.exec("runuser", "-u", name, "--", "netagent", "status", check=False)
            return done.code, done.out + done.err

        await h1.answers()
        assert "healthy" in (await as_user("root"))[1]
        code, said = await as_user("member")
        assert (code, "healthy" in said) == (0, True), said
        code, said = await as_user("stranger")
        assert code != 0
        assert "this user may not ask the agent" in said
        assert "member of the group netagent" in said
        refused = await h1.sh(
            "runuser -u member -- python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); "
            's.connect("/run/netagent/netagent.sock"); '
            's.sendall(b"POST /v1/resync HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n"); '
            "print(s.recv(999).decode())'"
        )
        assert " 403 " in refused.splitlines()[0]
