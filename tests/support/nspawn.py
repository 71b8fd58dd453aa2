"""A lab whose hosts are whole systems: systemd as process 1 (systemd-nspawn), the .deb installed, the unit running.

    async with Machines(image, backend="vxlan") as lab:
        await lab.ready()
        assert (await lab.ping()).ok
        await lab["h1"].reboot()

Rule: topology, wires, etcd and containers are the lab's own (netagent.lab); a host differs only in what runs in its
namespace. Disks are overlays on the image, in memory; everything ends with the lab, and its control groups are taken
away after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netagent.errors import NetagentError
from netagent.lab import wiring
from netagent.lab.lab import Lab
from netagent.lab.node import Node
from netagent.lab.space import LabError, Result, environment
from netagent.status import Status

CGROUPS = Path("/sys/fs/cgroup")
BOOT_TIMEOUT = 60.0
REBOOT = 133  # how systemd-nspawn ends when the guest asked for a reboot

# The cgroups are made before nspawn starts: without machined it lives in its caller's. Some hierarchies of version 1
# (cpuset) take no process without further settings; systemd needs none of those.
BOOT = """
set -eu
dir=$1 layers=$2 name=$3 group=$4
disk=$dir/disk
if [ ! -d "$disk/root" ]; then
    mkdir -p "$disk"
    mount -t tmpfs -o mode=755 disk "$disk"
    mkdir "$disk/up" "$disk/work" "$disk/root"
    mount -t overlay overlay -o "lowerdir=$layers,upperdir=$disk/up,workdir=$disk/work" "$disk/root"
    cp -R "$dir/files/." "$disk/root/"
fi
for place in /sys/fs/cgroup /sys/fs/cgroup/*; do
    if [ -e "$place/cgroup.procs" ] && mkdir -p "$place/$group" 2>/dev/null; then
        echo $$ 2>/dev/null >"$place/$group/cgroup.procs" || rmdir "$place/$group"
    fi
done
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network # /proc/sys/net belongs to the host
exec systemd-nspawn --quiet --directory="$disk/root" --boot --machine="$group" --hostname="$name" --register=no \\
    --keep-unit --network-namespace-path="/run/netns/$name" --capability=all \\
    --system-call-filter="bpf perf_event_open @keyring" --bind=/dev/net/tun --console=pipe --resolv-conf=off \\
    --timezone=off --link-journal=no
"""


class Machine(Node):
    """One host. What `Node` asks of an agent is asked of its service."""

    lab: Machines

    @property
    def disk(self) -> Path:
        """The host's files, as process 1 sees them."""
        return Path(f"/proc/{self.leader()}/root")

    @property
    def run_dir(self) -> Path:
        with contextlib.suppress(LabError):
            return self.disk / "run/netagent"
        return self.directory / "off"  # where nothing is

    @property
    def log(self) -> Path:
        return self.directory / "console.log"

    # --------------------------------------------------------------------------------------------- the machine

    @property
    def group(self) -> str:
        """Of control groups, and the machine's name for nspawn, which takes no underscores."""
        return f"{self.lab.path.name}-{self.name}".replace("_", "-")

    def prepare(self, files: Mapping[str, str]) -> None:
        """Files that are laid over the image before the first start."""
        for name, text in files.items():
            path = self.directory / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def enabled(self, unit: str) -> None:
        """The unit starts with the host, as `systemctl enable` makes it."""
        wanted = self.directory / f"files/etc/systemd/system/multi-user.target.wants/{unit}.service"
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.symlink_to(f"/usr/lib/systemd/system/{unit}.service")

    async def power_on(self) -> None:
        """Start it; returns when systemd answers."""
        arguments = (str(self.directory), self.lab.image, self.name, self.group)
        command = ["sh", "-c", BOOT, "boot", *arguments]
        await self.lab.space.spawn(f"{self.name}/machine", "", command, self.log, environment())
        self.nspawn = await self.lab.space.pid_of(f"{self.name}/machine")

        async def look() -> str:
            if (code := (await self.lab.space.daemons())[f"{self.name}/machine"]) is not None:
                raise LabError(f"{self.name} ended with code {code}:\n{self.log_tail()}", where=str(self.log))
            with contextlib.suppress(LabError):
                done = await self.exec("systemctl", "list-jobs", check=False)
                return "" if done.code == 0 else "systemd does not answer yet"
            return "not started yet"

        await self.lab.until(look, f"{self.name} up", BOOT_TIMEOUT)

    async def power_off(self) -> None:
        """An orderly shutdown."""
        await self.exec("systemctl", "poweroff", check=False)
        await self.lab.space.wait(f"{self.name}/machine", BOOT_TIMEOUT)

    async def reboot(self) -> None:
        """`systemctl reboot`: as on metal the disk stays, and all that the kernel held is gone."""
        await self.exec("systemctl", "reboot", check=False)
        code = await self.lab.space.wait(f"{self.name}/machine", BOOT_TIMEOUT)
        assert code == REBOOT, f"{self.name} ended with {code}"
        await self.lab.change(wiring.unplug(self.host))
        (self.directory / "container.json").unlink(missing_ok=True)
        await self.lab.change(wiring.host(self.lab.topology, self.host))
        await self.power_on()

    def leader(self) -> int:
        """Its process 1, as seen from here."""
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{self.nspawn}/task/{self.nspawn}/children").read_text().split():
                ids = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("NSpid:"))
                if ids.split()[-1] == "1":
                    return int(pid)
        raise LabError(f"{self.name} is not up")

    def command(self, *argv: str, container: bool = False) -> list[str]:
        if container:
            return super().command(*argv, container=True)
        enter = ["nsenter", f"--target={self.leader()}", *["-m", "-u", "-i", "-n", "-p", "-r"], "-w"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"]
        return [*enter, "--", *clean, *argv]

    async def exec(
        self, *argv: str, container: bool = False, input: str | None = None, timeout: float = 30.0, check: bool = True
    ) -> Result:
        if container:
            return await super().exec(*argv, container=True, input=input, timeout=timeout, check=check)
        process = await asyncio.create_subprocess_exec(
            *self.command(*argv),
            stdin=asyncio.subprocess.DEVNULL if input is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            given = None if input is None else input.encode()
            out, err = await asyncio.wait_for(process.communicate(given), timeout)
        except TimeoutError:
            raise LabError(f"no end after {timeout:g} s: {' '.join(argv)}", where=self.name) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        result = Result(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
        if check and result.code:
            said = (result.err or result.out).strip()
            raise LabError(f"{' '.join(argv)}: exit code {result.code}: {said}", where=self.name)
        return result

    async def sh(self, script: str, **options: Any) -> str:
        """A shell script on the host; what it printed."""
        return (await self.exec("sh", "-euc", script, **options)).out

    # ---------------------------------------------------------------------------------------------- the service

    async def start_agent(self, *extra: str, command: Sequence[str] | None = None) -> None:
        assert not extra
        assert command is None
        await self.exec("systemctl", "start", "--no-block", "netagent")

    async def stop_agent(self, number: int = signal.SIGTERM, *, timeout: float = BOOT_TIMEOUT) -> int:
        if number == signal.SIGTERM:
            await self.exec("systemctl", "stop", "netagent", timeout=timeout)
        else:
            await self.signal_agent(number)
        return int(await self.property("ExecMainStatus"))

    async def restart_agent(self, *extra: str) -> None:
        assert not extra
        await self.exec("systemctl", "restart", "netagent", timeout=BOOT_TIMEOUT)

    async def signal_agent(self, number: int) -> None:
        await self.exec("systemctl", "kill", "--kill-who=main", f"--signal={number}", "netagent")

    async def agent_code(self) -> int | None:
        return None  # what ends is started again; `active` tells

    async def property(self, name: str, unit: str = "netagent") -> str:
        """What systemd knows of a unit ("ActiveState", "MainPID", "NRestarts")."""
        return (await self.exec("systemctl", "show", "--value", f"--property={name}", unit)).out.strip()

    async def active(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Until the unit is active, which is until the node is ready."""

        async def look() -> str:
            with contextlib.suppress(LabError):
                state = await self.property("ActiveState")
                return "" if state == "active" else f"{self.name} is {state}"
            return f"{self.name} does not answer"

        try:
            await self.lab.until(look, f"netagent active on {self.name}", timeout)
        except LabError as error:
            raise LabError(f"{error}\n{await self.journal()}") from None

    async def answers(self, timeout: float = BOOT_TIMEOUT) -> Status:
        """What the agent says of itself, as soon as its socket is there: that comes a little after readiness."""
        found: list[Status] = []

        async def look() -> str:
            try:
                found.append(await self.status())
            except NetagentError as error:
                return str(error)
            return ""

        await self.lab.until(look, f"an answer of the agent on {self.name}", timeout)
        return found[0]

    async def journal(self, lines: int = 30, unit: str = "netagent") -> str:
        return (await self.exec("journalctl", "-u", unit, f"-n{lines}", "--no-pager", check=False)).out


class Machines(Lab):
    """`image`: the layers that hosts start from (scripts/host-image). `settings` goes into each netagent.toml,
    `enable`: the service starts with its host, `watchdog`: after how many seconds instead of the unit's,
    `networkd`: eth0 has its addresses from systemd-networkd."""

    def __init__(
        self,
        image: str,
        *args: Any,
        settings: str = "",
        enable: bool = True,
        watchdog: int = 0,
        networkd: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.image = image
        self.settings = settings
        self.enable = enable
        self.watchdog = watchdog
        self.networkd = networkd
        self.nodes = {host.name: Machine(self, host.name) for host in self.topology.hosts}
        self.ready_after: float | None = None  # seconds from the first host's start until every unit was active

    def __getitem__(self, name: str) -> Machine:
        node = super().__getitem__(name)
        assert isinstance(node, Machine)
        return node

    @property
    def machines(self) -> list[Machine]:
        return [self[name] for name in self.nodes]

    async def up(self, *, ephemeral: bool, agents: bool = True) -> None:
        """Wires and etcd as in any lab, then the hosts; `enable`: their service starts with them."""
        await super().up(ephemeral=ephemeral, agents=False)
        begun = time.monotonic()
        for machine in self.machines:
            machine.prepare(self.files(machine))
            if self.enable:
                machine.enabled("netagent")
            if self.networkd:
                machine.enabled("systemd-networkd")
                await self.change([wiring.Step(machine.name, ("address flush dev eth0 scope global",))])
        await asyncio.gather(*(machine.power_on() for machine in self.machines))
        if self.enable:
            for machine in self.machines:
                await machine.active()
            self.ready_after = time.monotonic() - begun

    def files(self, machine: Machine) -> dict[str, str]:
        toml = Path(self.image.partition(":")[0], "etc/netagent/netagent.toml").read_text()
        toml += f'\netcd_endpoints = ["{self.etcd.endpoint}"]\nip_masq = true\n{self.settings}'
        files = {"etc/netagent/netagent.toml": toml, "etc/hostname": f"{machine.name}\n"}
        if self.watchdog:
            files["etc/systemd/system/netagent.service.d/watchdog.conf"] = f"[Service]\nWatchdogSec={self.watchdog}\n"
        if self.networkd:
            uplink = machine.host
            gateway = self.topology.rack(uplink.rack).address(self.topology.routers[0].number)[0].partition("/")[0]
            network = f"Address={uplink.v4}\nAddress={uplink.v6}\nGateway={gateway}\nIPv6AcceptRA=no\n"
            files["etc/systemd/network/50-uplink.network"] = f"[Match]\nName=eth0\n[Network]\n{network}"
        return files

    async def down(self) -> None:
        groups = [machine.group for machine in self.machines] if self.directory is not None else []
        await super().down()
        for group in groups:
            await asyncio.to_thread(_remove_groups, group)

    def tails(self) -> str:
        return "\n".join(f"--- {m.log}\n{m.log_tail(4)}" for m in self.machines)


def _remove_groups(name: str) -> None:
    """Take an ended machine's control groups away. Its last processes may still be dying."""
    end = time.monotonic() + 10
    for place in (CGROUPS, *CGROUPS.iterdir()):
        top = place / name
        while top.is_dir():
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if time.monotonic() > end:
                break
            if top.is_dir():
                time.sleep(0.05)
