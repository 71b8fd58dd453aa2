"""Network namespaces for tests: made, wired, entered and cleaned up.

Rule: nothing here touches the namespace the tests were started in. A namespace has no name on the machine: it is
held by a descriptor of this process, so that it is gone with everything in it when the process ends, however it
ends; `Namespace.path` is what `ip link set ... netns` and `nsenter --net=` take. Works as root and as root of an
unprivileged user namespace (`unshare --map-root-user --net --mount`).

    with Namespaces() as net:
        a, b = net.make("a"), net.make("b")
        net.veth(a, "eth0", b, "eth0")
        a.ip("address add 192.168.50.1/24 dev eth0")
        with a.entered():           # this thread, its new threads, sockets and child processes are in a
            ...
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import queue
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def unable(reason: str) -> NoReturn:
    """Skip the test for want of an ability of this machine; where CI=true such a lack is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need_tool(name: str) -> str:
    """The path of a program that the test needs."""
    path = shutil.which(name)
    if path is None:
        unable(f"{name} is not installed (make tools fetches it)")
    return path


def need_device(kind: str) -> None:
    """Skip unless links of that kind can be made here ("vxlan", "ipip", "bridge", "veth", "tun")."""
    lack = _lack_of(kind)
    if lack:
        unable(lack)


def lacks_device(kind: str) -> bool:
    """Whether this kernel makes no such device. For tests of what then happens."""
    return bool(_lack_of(kind))


@functools.cache
def _lack_of(kind: str) -> str:
    if kind == "tun":
        return "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "/dev/net/tun cannot be opened"
    options = {
        "vxlan": "id 1 dstport 8472",
        "veth": "peer name probe1",
        "ipip": "local 192.0.2.1",
        "sit": "local 192.0.2.1",
    }.get(kind, "")
    with Namespaces() as net:
        result = net.make("probe").run(*shlex.split(f"ip link add probe0 type {kind} {options}"), check=False)
    return f"this kernel makes no {kind} device: {result.stderr.strip()}" if result.returncode else ""


def set_namespace(fd: int) -> None:
    """Move the calling thread into the network namespace behind a descriptor (setns(2))."""
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def current_namespace() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """One network namespace with a worker thread inside. Made by `Namespaces.make`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.fd = -1
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        made: Future[int] = Future()
        self._worker = threading.Thread(target=self._serve, args=(made,), name=f"netns-{label}", daemon=True)
        self._worker.start()
        self.fd = made.result()
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def _serve(self, made: Future[int]) -> None:
        if _libc.unshare(CLONE_NEWNET):
            number = ctypes.get_errno()
            made.set_exception(OSError(number, f"unshare: {os.strerror(number)}"))
            return
        made.set_result(current_namespace())
        while (item := self._calls.get()) is not None:
            future, function = item
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def __repr__(self) -> str:
        return f"<Namespace {self.label} {self.path}>"

    # ------------------------------------------------------------------------------------- doing things inside

    def call(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call a function in this namespace's own thread; sockets that it opens stay in the namespace."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: function(*args, **keywords)))
        return future.result()

    @contextlib.contextmanager
    def entered(self) -> Iterator[Namespace]:
        """The calling thread is in this namespace while the context lasts (async code included: one thread)."""
        before = current_namespace()
        try:
            set_namespace(self.fd)
            yield self
        finally:
            set_namespace(before)
            os.close(before)

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` in here, for subprocesses started from any thread (nsenter execs)."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self, *argv: str, check: bool = True, input: str | None = None, timeout: float = 20.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and wait for it. A failure says what the command said."""
        result = self.call(
            subprocess.run, argv, capture_output=True, text=True, input=input, timeout=timeout, check=False
        )
        if check and result.returncode:
            raise AssertionError(
                f"{self.label}: {shlex.join(argv)}: exit {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result

    def ip(self, command: str, *, check: bool = True) -> str:
        """`ip` with these words ("route add 10.0.0.0/8 via 192.168.50.1"); its standard output."""
        return self.run("ip", *shlex.split(command), check=check).stdout

    def give(self, *addresses: str, dev: str = "lo") -> None:
        """Give the device these addresses (with their lengths), ready for use."""
        for address in addresses:
            nodad = (
                "nodad" if ":" in address else ""
            )  # else it is tentative for a moment, on lo and with accept_dad=0 too
            self.ip(f"address add {address} dev {dev} {nodad}")

    async def spawn(self, *argv: str, **keywords: Any) -> asyncio.subprocess.Process:
        """Start a process inside. Whatever still runs when the namespace closes is killed."""
        return await asyncio.create_subprocess_exec(*self.command(*argv), **keywords)

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Read, or write and read back, a setting ("net/ipv4/ip_forward") as seen in here."""

        def access() -> str:
            path = Path("/proc/sys") / name
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()

        return self.call(access)

    # --------------------------------------------------------------------------------------------- end of it

    def processes(self) -> list[int]:
        """Ids of the processes in here, this one left out."""
        mine = os.fstat(self.fd).st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if (entry / "ns/net").stat().st_ino == mine:
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Kill what runs inside, and let the namespace go."""
        if self.fd < 0:
            return
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._calls.put(None)
        self._worker.join()
        os.close(self.fd)
        self.fd = -1


class Namespaces:
    """All the namespaces of one test, and the wires between them."""

    def __init__(self) -> None:
        self._all: list[Namespace] = []
        self._wires = 0

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._all:
            self._all.pop().close()

    def make(self, label: str) -> Namespace:
        """A new namespace, loopback up, IPv6 addresses usable at once (no duplicate address detection)."""
        try:
            space = Namespace(label)
        except PermissionError:
            unable("network namespaces need root, or `unshare --map-root-user --net --mount`")
        self._all.append(space)
        if Path("/proc/sys/net/ipv6").exists():
            for scope in ("all", "default"):
                space.sysctl(f"net/ipv6/conf/{scope}/accept_dad", "0")
        space.ip("link set lo up")
        return space

    def veth(self, a: Namespace, a_dev: str, b: Namespace, b_dev: str, *, mtu: int = 1500) -> None:
        """A cable: device `a_dev` in `a` and `b_dev` in `b`, both up."""
        a.ip(f"link add {a_dev} mtu {mtu} type veth peer name {b_dev} mtu {mtu} netns {b.path}")
        a.ip(f"link set {a_dev} up")
        b.ip(f"link set {b_dev} up")

    def switch(self, label: str, hosts: Mapping[Namespace, str], *, dev: str = "eth0", mtu: int = 1500) -> Namespace:
        """A bridge in a namespace of its own, cabled to `dev` of each host.

        The values of `hosts` are addresses to set there, blank-separated ("192.168.50.11/24 fd00::11/64").
        The port of the host at position i is called p<i>: setting it down takes the carrier from that host.
        """
        space = self.make(label)
        space.ip(f"link add br0 mtu {mtu} type bridge")
        space.ip("link set br0 up")
        for position, (host, addresses) in enumerate(hosts.items()):
            self.veth(host, dev, space, f"p{position}", mtu=mtu)
            space.ip(f"link set p{position} master br0")
            host.give(*addresses.split(), dev=dev)
        return space


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """An empty set of namespaces, closed after the test whatever happens."""
    with Namespaces() as net:
        yield net


async def eventually(condition: Callable[[], T], what: str = "", *, timeout: float = 5.0) -> T:
    """Await a condition that nothing announces; its first true value. Fails with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what or condition}", pytrace=False)
        await asyncio.sleep(0.01)
    return value
