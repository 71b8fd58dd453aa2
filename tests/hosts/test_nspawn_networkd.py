"""Beside systemd-networkd and NetworkManager: the package keeps their hands off; what it cannot prevent is told."""

from __future__ import annotations

import pytest

from netagent.model import Finding
from tests.support.nspawn import Machine, Machines
from tests.support.package import image

pytestmark = [pytest.mark.nspawn, pytest.mark.etcd, pytest.mark.timeout(900)]


async def configured(machine: Machine) -> None:
    async def look() -> str:
        out = await machine.sh("networkctl list --no-legend --no-pager eth0")
        return "" if out.split()[-1] == "configured" else out.strip()

    await machine.lab.until(look, f"eth0 configured on {machine.name}", 30)


async def finding(machine: Machine, code: str, *, there: bool) -> Finding | None:
    """Until the agent reports a finding of that code, or none."""
    found: list[Finding] = []

    async def look() -> str:
        await machine.sh("nft add table ip nudge; nft delete table ip nudge")  # others' rules: the agent looks around
        found[:] = [f for f in (await machine.answers()).findings if f.code == code]
        return "" if bool(found) == there else f"findings: {[f.code for f in found]}"

    await machine.lab.until(look, f"{code} {'told' if there else 'gone'} on {machine.name}", 90)
    return found[0] if found else None


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
async def test_networkd_leaves_our_devices_alone(backend: str) -> None:
    async with Machines(image(), nodes=2, backend=backend, ipv6=True, networkd=True) as lab:
        await lab.ready()
        h1 = lab["h1"]
        await configured(h1)
        # A file that matches more than was meant.
        greedy = "[Match]\\nName=n*\\n[Network]\\nDHCP=yes\\n"
        await h1.sh(f"printf '{greedy}' >/etc/systemd/network/90-some.network; networkctl reload")
        async with lab.flow() as flow:
            await h1.exec("systemctl", "restart", "systemd-networkd")
            await configured(h1)
        assert flow.gap < 1, flow
        listed = (await h1.sh("networkctl list --no-legend --no-pager")).splitlines()
        ours = {line.split()[1]: line.split()[-1] for line in listed if line.split()[1].startswith("na-")}
        assert ours
        assert set(ours.values()) == {"unmanaged"}
        assert not [f for f in (await h1.answers()).findings if f.code.startswith("networkd")]


async def test_the_link_file_keeps_the_mac_of_our_devices() -> None:
    """What udev would do with one (it does not run in a container): our file is the one that matches."""
    async with Machines(image(), nodes=1, backend="vxlan") as lab:
        h1 = lab["h1"]
        await h1.sh("mkdir -p /run/own; mount -t sysfs sysfs /run/own; mount --bind /run/own /sys")
        script = "udevadm test-builtin net_setup_link /sys/class/net/{} 2>&1"
        assert "10-netagent.link" in (await h1.sh(script.format("na-vx1"))).partition("ID_NET_LINK_FILE=")[2]
        assert "10-netagent.link" not in (await h1.sh(script.format("eth0"))).partition("ID_NET_LINK_FILE=")[2]


async def test_networkd_and_routes_on_its_uplink() -> None:
    """They are put back at once, the operator is told, and the command that is told ends it."""

    async def again(machine: Machine) -> int:
        """Restart, and another file for the uplink; how many routes were put back. Its address goes for a moment."""
        before = (await machine.answers()).reconciler.drifts
        async with machine.lab.flow() as flow:
            await machine.exec("systemctl", "restart", "systemd-networkd")
            await configured(machine)
            file = "/etc/systemd/network/50-uplink.network"
            await machine.sh(f"printf '[Network]\\nDNS=192.0.2.53\\n' >>{file}; networkctl reload")
            await configured(machine)
        assert flow.gap < 1, flow
        return (await machine.answers()).reconciler.drifts - before

    async with Machines(image(), nodes=2, backend="host-gw", ipv6=True, networkd=True) as lab:
        await lab.ready()
        h1 = lab["h1"]
        await configured(h1)
        told = await finding(h1, "networkd-routes", there=True)
        assert told is not None
        assert told.subject == "eth0"
        assert await again(h1) > 0

        await h1.sh(told.remedy)
        await configured(h1)
        await finding(h1, "networkd-routes", there=False)
        assert await again(h1) == 0


async def test_networkmanager_leaves_our_devices_alone() -> None:
    async with Machines(image(), nodes=2, backend="vxlan", ipv6=True) as lab:
        await lab.ready()
        h1 = lab["h1"]
        async with lab.flow() as flow:
            await h1.exec("systemctl", "start", "NetworkManager", timeout=60)

            async def seen() -> str:
                out = (await h1.exec("nmcli", "-t", "-f", "DEVICE,STATE", "device", check=False)).out
                states = dict(line.split(":", 1) for line in out.splitlines() if ":" in line)
                return "" if states.get("na-vx1", "") == "unmanaged" else f"devices: {states}"

            await lab.until(seen, "na-vx1 unmanaged by NetworkManager", 60)
            await h1.exec("systemctl", "restart", "NetworkManager", timeout=60)
            await lab.until(seen, "na-vx1 unmanaged by NetworkManager", 60)
        assert flow.gap < 1, flow
