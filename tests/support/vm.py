"""One virtual machine: QEMU with Debian's kernel, its disk, and a channel on which commands are run in it.

Rules: QEMU runs inside the lab's namespaces, as one of its daemons, so that it ends with the lab however that ends.
Commands go by a virtio port and not by the network, which the tests break. The disk outlives power cuts and reboots.
KVM is used only where scripts/vm-accel has seen a guest boot under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from netagent.api import SOCKET_NAME
from netagent.lab.space import LabError, Result, Space, Unable, environment, find_program
from netagent.lab.topology import Host
from netagent.status import Status

ROOT = Path(__file__).resolve().parents[2]
CHANNEL = "org.netagent.exec"
API_SOCKET = f"/run/netagent/{SOCKET_NAME}"
BOOT_TIMEOUT = 400.0  # seconds, for a guest that is emulated on a machine with other work
MEMORY = 288  # MiB
KERNEL_ARGUMENTS = (
    "console=ttyS0 root=/dev/vda quiet net.ifnames=0 mitigations=off nokaslr tsc=reliable no_timer_check "
    "random.trust_cpu=on systemd.show_status=0"
)


class Image(NamedTuple):
    """What scripts/vm-image made, and how it is run."""

    folder: Path
    accel: str  # "tcg" or "kvm"

    @property
    def kernel(self) -> list[str]:
        return ["-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd")]

    @property
    def accelerator(self) -> list[str]:
        return ["-accel", "kvm" if self.accel == "kvm" else "tcg,thread=multi,tb-size=128"]


def image() -> Image:
    """The image, made if it is not in the cache. Unable where this machine cannot make or run one."""
    if os.geteuid() != 0:
        raise Unable("virtual machines need root here: the files of their image belong to root")
    for program in ("qemu-system-x86_64", "qemu-img"):
        try:
            find_program(program)
        except LabError:
            raise Unable(f"{program} is not here: make test-vms fetches it") from None
    deb = os.environ.get("NETAGENT_DEB") or max(map(str, (ROOT / "dist").glob("netagent_*.deb")), default="")
    if not deb:
        raise Unable("no package to install in the virtual machines: make deb")
    made = subprocess.run(
        [str(ROOT / "scripts" / "vm-image"), deb], stdout=subprocess.PIPE, text=True, check=True, timeout=900
    )
    folder = Path(made.stdout.strip())
    accel = subprocess.run(
        [str(ROOT / "scripts" / "vm-accel"), folder], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return Image(folder, accel.stdout.strip())


class Vm:
    """A host of a lab as a virtual machine. `start` it, await `booted`, then `exec` in it."""

    def __init__(self, space: Space, image: Image, host: Host, directory: Path, number: int) -> None:
        self.space = space
        self.image = image
        self.host = host
        self.directory = directory / host.name
        self.number = number
        self.boots: list[str] = []  # boot ids, in order
        self._changed = asyncio.Event()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def daemon(self) -> str:
        """The name that the lab's holder knows its QEMU by."""
        return f"{self.name}/vm"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    # ------------------------------------------------------------------------------------------------ power

    async def start(self) -> None:
        """Power on. Its tap is made in the namespace of its rack and plugged into the rack's bridge."""
        self.directory.mkdir(exist_ok=True)
        disk = self.directory / "disk.qcow2"
        if not disk.exists():
            base = ["-b", str(self.image.folder / "root.raw"), "-F", "raw"]
            await self.space.run("", [find_program("qemu-img"), "create", "-q", "-f", "qcow2", *base, str(disk)])
        rack = self.host.rack
        await self.space.run(rack, ["ip", "tuntap", "add", self.name, "mode", "tap"])
        await self.space.run(rack, ["ip", "link", "set", self.name, "master", "br0", "up"])
        channel = self.directory / "exec.sock"
        channel.unlink(missing_ok=True)
        await self.space.spawn(self.daemon, rack, self._command(disk, channel), self.directory / "qemu.log", _plain())
        await self._connect(channel)

    def _command(self, disk: Path, channel: Path) -> list[str]:
        return [
            find_program("qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-nographic", "-monitor", "none"),
            *("-M", "q35", "-cpu", "max", "-smp", "1", "-m", str(MEMORY)),
            *self.image.accelerator,
            *self.image.kernel,
            *("-append", KERNEL_ARGUMENTS),
            *("-drive", f"file={disk},if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", f"tap,id=net,ifname={self.name},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac=52:54:00:6e:61:{self.number:02x}"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=exec,path={channel},server=on,wait=off"),
            *("-device", f"virtserialport,chardev=exec,name={CHANNEL}"),
            *("-serial", f"file:{self.console}"),
        ]

    async def cut_power(self) -> None:
        """As pulling the plug: what the guest had not written to its disk is lost."""
        await self.space.signal(self.daemon, signal.SIGKILL)
        await self.space.wait(self.daemon)
        await self._disconnect()
        await self.space.run(self.host.rack, ["ip", "link", "delete", self.name])

    async def booted(self, count: int = 1, timeout: float = BOOT_TIMEOUT) -> float:
        """Until it has booted `count` times in its life; how long that took from now (seconds)."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                while len(self.boots) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise LabError(f"{self.name} did not boot within {timeout:g} s:\n{self.tail()}") from None
        return time.monotonic() - begun

    async def reboot(self) -> float:
        """An orderly reboot of its operating system; how long it took (seconds)."""
        expected = len(self.boots) + 1
        await self.exec("systemctl", "--no-block", "reboot")
        return await self.booted(expected)

    def tail(self) -> str:
        """The end of what the guest printed on its console, and of what QEMU said."""
        texts = []
        for path in (self.console, self.directory / "qemu.log"):
            with contextlib.suppress(OSError):
                texts.append(f"--- {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:]))
        return "\n".join(texts)

    # ---------------------------------------------------------------------------------------------- channel

    async def _connect(self, path: Path) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(str(path), limit=1 << 24)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise LabError(f"QEMU of {self.name} did not start:\n{self.tail()}") from None
                await asyncio.sleep(0.05)
        self._reader = asyncio.create_task(self._read(reader), name=f"channel of {self.name}")

    async def _disconnect(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._fail("its power was cut")

    close = _disconnect

    def _fail(self, reason: str) -> None:
        for future in self._answers.values():
            if not future.done():
                future.set_exception(LabError(f"{self.name}: {reason}"))
        self._answers.clear()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            try:
                told = json.loads(line)
            except ValueError:  # half a line, from before a reset
                continue
            if boot := told.get("boot"):
                if boot not in self.boots:  # else only the channel's own end was started anew
                    self.boots.append(boot)
                self._changed.set()
            elif (future := self._answers.pop(told.get("id"), None)) is not None and not future.done():
                future.set_result(told)
        self._fail("QEMU ended")

    async def _ask(self, request: dict[str, Any], timeout: float) -> Result:
        if self._writer is None:
            raise LabError(f"{self.name} is off")
        number = next(self._ids)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "timeout": timeout, **request}).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout + 30):
                told = await future
        except TimeoutError:
            raise LabError(f"{self.name} does not answer: {str(request)[:200]}\n{self.tail()}") from None
        finally:
            self._answers.pop(number, None)
        return Result(told["code"], told["out"], told["err"])

    async def exec(self, *argv: str, input: str = "", timeout: float = 180.0, check: bool = True) -> Result:
        """Run a command in the guest, as root. `check`: LabError when it fails."""
        result = await self._ask({"argv": argv, "input": input}, timeout)
        if check and result.code:
            said = (result.err or result.out).strip()
            raise LabError(f"{' '.join(argv)[:300]}: exit code {result.code}: {said}", where=self.name)
        return result

    async def sh(self, script: str, **options: Any) -> str:
        """Run a shell script in the guest (set -eu); what it printed."""
        return (await self.exec("sh", "-eu", "-s", input=script, **options)).out

    async def write(self, path: str, text: str) -> None:
        """Write a file in the guest, through to its disk."""
        await self.exec("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1" && sync "$1"', "sh", path, input=text)

    async def status(self) -> Status | None:
        """What its agent says of itself; None while it does not answer."""
        result = await self._ask({"get": "/v1/status?peers=all", "socket": API_SOCKET}, 20)
        return msgspec.json.decode(result.out, type=Status) if result.code == 200 else None


def _plain() -> dict[str, str]:
    """QEMU's wrapper sets its own libraries."""
    return {name: value for name, value in environment().items() if name != "LD_LIBRARY_PATH"}
