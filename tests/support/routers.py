"""Routing daemons in network namespaces for interop tests: what they have in common.

Rule: a test speaks of peerings, networks and views, never of a daemon's own configuration, so that one test runs
against each. Every file of a daemon lies in a directory of its own, every process is started by us with a parent
death signal and ended by its pid. One daemon a module: bird.py, frr.py, gobgp.py, and ours in bgp_ours.py.

    with Namespaces() as net, directory() as path:
        routers = Routers(net, path)
        ours, bird = await routers.start(("ours", 65001), ("bird", 65002))   # neighbours of each other
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import pytest

from tests.support.netns import Namespace, Namespaces, unable

T = TypeVar("T")

START_TIMEOUT = 30.0
COMMAND_TIMEOUT = 20.0
TIMEOUT = 40.0
"""Seconds for anything that a session or a route may take on a busy machine; it stays far below a test's own."""
FAMILIES = ("ipv4", "ipv6")


@dataclass(frozen=True)
class Bfd:
    """BFD with a neighbour, intervals in milliseconds. `multihop` goes with that of the peering."""

    min_tx: int = 100
    min_rx: int = 100
    multiplier: int = 3
    graceful: bool = False
    """BIRD only: its failing begins a graceful restart."""


class BfdView(NamedTuple):
    """What a daemon says of a BFD session; interval (ours) and detection time in milliseconds."""

    state: str
    interval: float = 0
    detection: float = 0

    @property
    def up(self) -> bool:
        return self.state == "up"


@dataclass(frozen=True)
class Peering:
    """A neighbour as one side sees it. Times in seconds; 0 and "" leave a thing out."""

    address: str
    asn: int
    families: tuple[str, ...] = FAMILIES
    client: bool = False
    """It is a client of ours (RFC 4456)."""
    passive: bool = False
    password: str = ""
    ttl_security: bool = False
    multihop: int = 0
    hold_time: int = 90
    most_prefixes: int = 0
    restart_time: int = 0
    """Graceful restart, with this restart time."""
    long_lived: int = 0
    """Long-lived graceful restart for so long after it."""
    extended_messages: bool = False
    """Messages of more than 4096 octets. Ours and FRR always have them."""
    local_asn: int = 0
    several: bool = False
    """ADD-PATH in every family: all routes to a prefix, both ways."""
    extended: bool = False
    """IPv4 with next hops of IPv6, over a session of IPv6."""
    bfd: Bfd | None = None


@dataclass(frozen=True)
class Network:
    """A prefix to announce, with communities in text ("65000:1", "65000:1:2")."""

    prefix: str
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    med: int | None = None

    @property
    def family(self) -> str:
        return "ipv6" if ":" in self.prefix else "ipv4"


class PeerView(NamedTuple):
    """What a daemon says of a neighbour."""

    established: bool
    state: str
    why: str
    """Why it was down last, in the daemon's words; "" when it says nothing."""


class RouteView(NamedTuple):
    """What a daemon says of a route."""

    next_hop: str
    as_path: tuple[int, ...] = ()
    local_pref: int | None = None
    med: int | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    originator: str = ""
    clusters: tuple[str, ...] = ()
    stale: bool = False


Table = dict[str, list[RouteView]]
"""Routes by prefix, the best first. A daemon's own networks are in it too."""


@dataclass
class Site:
    """Where a router stands."""

    space: Namespace
    directory: Path
    asn: int
    address: str
    address6: str
    peerings: tuple[Peering, ...] = ()
    networks: tuple[Network, ...] = ()
    cluster_id: str = ""
    options: dict[str, object] = field(default_factory=dict)
    """What only one kind of daemon understands."""

    @property
    def identifier(self) -> str:
        return self.address


class Router(ABC):
    """One daemon. `start` returns when it takes commands; sessions come later (`established`)."""

    kind: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]

    def __init__(self, site: Site) -> None:
        self.site = site
        self.space = site.space
        self.directory = site.directory
        self.processes: list[asyncio.subprocess.Process] = []

    def __repr__(self) -> str:
        return f"<{self.kind} {self.site.address} AS {self.site.asn}>"

    # --------------------------------------------------------------------------------------- what differs

    @abstractmethod
    async def launch(self, *, recovering: bool) -> None:
        """Write the configuration and start the processes."""

    @abstractmethod
    async def answers(self) -> bool:
        """Whether it takes commands."""

    @abstractmethod
    async def peer(self, address: str) -> PeerView:
        """A neighbour."""

    @abstractmethod
    async def routes(self, family: str = "ipv4") -> Table:
        """Its table."""

    @abstractmethod
    async def announce(self, network: Network) -> None:
        """One more network of its own."""

    @abstractmethod
    async def withdraw(self, prefix: str) -> None:
        """One less."""

    @abstractmethod
    async def ask_again(self, address: str) -> None:
        """Have the neighbour send its routes again (route refresh)."""

    @abstractmethod
    async def shut(self, address: str, text: str) -> None:
        """End the session administratively, with a text for the neighbour's operator (RFC 9003)."""

    # ----------------------------------------------------------------------------------- life of the process

    async def start(self, *, recovering: bool = False) -> None:
        """Start it; `recovering` as after a crash, where the daemon must be told so for graceful restart."""
        for program in self.programs:
            need_daemon(program)
        self.directory.mkdir(parents=True, exist_ok=True)
        await self.launch(recovering=recovering)
        deadline = time.monotonic() + START_TIMEOUT
        while not await self.answers():
            if time.monotonic() > deadline or any(p.returncode is not None for p in self.processes):
                pytest.fail(f"{self} does not start:\n{self.log()}", pytrace=False)
            await asyncio.sleep(0.02)

    async def spawn(self, *argv: str, mounts: Sequence[tuple[Path, str]] = (), **environment: str) -> None:
        """Start a process in the router's namespace; `mounts` are bound (what, where) for it alone."""
        inside = list(argv)
        if mounts:
            binds = "".join(f'mount --bind "{what}" "{where}" && ' for what, where in mounts)
            inside = ["unshare", "--mount", "sh", "-c", f'{binds}exec "$@"', "sh", *argv]
        with (self.directory / "output").open("ab") as output:
            process = await self.space.spawn(
                *("setpriv", "--pdeathsig", "KILL", *inside),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env={**os.environ, **environment},
            )
        self.processes.append(process)

    async def kill(self) -> None:
        """SIGKILL: a crash. Its sockets are closed by the kernel, without a word to its peers' operators."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM: an orderly end."""
        await self._end(signal.SIGTERM)

    async def clean(self) -> None:
        """End what is meant to outlive it, when it is gone for good."""
        assert not self.processes

    def freeze(self) -> None:
        """SIGSTOP: sockets stay open, nothing answers. Returns when every process has stopped."""
        for process in self.processes:
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        for process in self.processes:
            os.kill(process.pid, signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> None:
        processes, self.processes = self.processes, []
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.send_signal(number)
        for process in processes:
            try:
                await asyncio.wait_for(process.wait(), COMMAND_TIMEOUT)
            except TimeoutError:
                process.kill()
                await process.wait()

    def log(self) -> str:
        """The end of what it has written."""
        files = [path for path in sorted(self.directory.glob("*")) if path.suffix == ".log" or path.name == "output"]
        return "\n".join(f"--- {path.name}\n{_end_of(path)}" for path in files)

    # -------------------------------------------------------------------------------------------- waiting

    async def until(self, what: str, condition: Callable[[], Awaitable[T]], timeout: float = TIMEOUT) -> T:
        """The first true value of a condition that nothing announces."""
        deadline = time.monotonic() + timeout
        while not (value := await condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"{self}: not within {timeout:.0f} s: {what}\n{await self.told()}", pytrace=False)
            await asyncio.sleep(0.03)
        return value

    async def told(self) -> str:
        """All it says of itself, for a failure's message."""
        lines: list[str] = []
        with contextlib.suppress(Exception):
            lines += [f"{each.address}: {await self.peer(each.address)}" for each in self.site.peerings]
            lines += [f"{family}: {await self.routes(family)}" for family in FAMILIES]
        return "\n".join([*lines, self.log()])

    async def established(self, *addresses: str, timeout: float = TIMEOUT) -> None:
        """Until the sessions with these neighbours stand; without any, all that it has."""
        for address in addresses or [peering.address for peering in self.site.peerings]:

            async def up(address: str = address) -> bool:
                return (await self.peer(address)).established

            await self.until(f"session with {address}", up, timeout)

    async def down(self, address: str, timeout: float = TIMEOUT) -> PeerView:
        """Until the session with the neighbour does not stand."""

        async def gone() -> PeerView | None:
            view = await self.peer(address)
            return None if view.established else view

        view = await self.until(f"end of the session with {address}", gone, timeout)
        assert view is not None
        return view

    async def has(
        self, prefix: str, like: Callable[[RouteView], bool] = lambda route: True, timeout: float = TIMEOUT
    ) -> RouteView:
        """Until it has a route to the prefix that is so; the route."""
        family = "ipv6" if ":" in prefix else "ipv4"

        async def found() -> RouteView | None:
            return next((route for route in (await self.routes(family)).get(prefix, []) if like(route)), None)

        route = await self.until(f"a route to {prefix}", found, timeout)
        assert route is not None
        return route

    async def bfd(self, address: str) -> BfdView:
        """BFD with a neighbour; only some kinds of daemon have it."""
        raise NotImplementedError

    async def retime(self, bfd: Bfd) -> None:
        """Other timers towards every neighbour with BFD."""
        raise NotImplementedError

    async def bfd_is(
        self, address: str, state: str, like: Callable[[BfdView], bool] = lambda view: True, timeout: float = TIMEOUT
    ) -> BfdView:
        """Until BFD with the neighbour is in that state, and so."""

        async def found() -> BfdView | None:
            view = await self.bfd(address)
            return view if view.state == state and like(view) else None

        view = await self.until(f"BFD {state} with {address}", found, timeout)
        assert view is not None
        return view

    async def lacks(self, prefix: str, timeout: float = TIMEOUT) -> None:
        """Until it has no route to the prefix."""
        family = "ipv6" if ":" in prefix else "ipv4"

        async def gone() -> bool:
            return prefix not in await self.routes(family)

        await self.until(f"no route to {prefix}", gone, timeout)


def _end_of(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-40:])


def need_daemon(program: str) -> None:
    """Skip unless the daemon was fetched; where CI=true that is a failure."""
    if not shutil.which(program):
        unable(f"{program} is missing: make tools-interop fetches it")


async def output_of(*argv: str, check: bool = True) -> str:
    """What a command prints."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if check and process.returncode:
        raise AssertionError(f"{' '.join(argv)}: {(out + err).decode().strip()}")
    return out.decode()


class Routers:
    """The routers of one test, on one network: router i has 10.98.0.i and fd98::i, and announces what it is told."""

    def __init__(self, net: Namespaces, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.all: list[Router] = []
        self.bridge: Namespace | None = None

    def site(self, asn: int, number: int = 0) -> Site:
        """A new place on the network, cabled up."""
        if self.bridge is None:
            self.bridge = self.net.switch("bridge", {})
        number = number or len(self.net._all)
        space = self.net.make(f"r{number}")
        self.net.veth(space, "eth0", self.bridge, f"p{number}")
        self.bridge.ip(f"link set p{number} master br0")
        space.ip(f"address add 10.98.0.{number}/24 dev eth0")
        space.ip(f"address add fd98::{number}/64 dev eth0")
        return Site(space, self.directory / f"r{number}", asn, f"10.98.0.{number}", f"fd98::{number}")

    async def add(self, router: Router, *, start: bool = True) -> Router:
        self.all.append(router)
        if start:
            await router.start()
        return router

    async def pair(
        self,
        first: tuple[type[Router], int],
        second: tuple[type[Router], int],
        *,
        networks: tuple[Sequence[Network], Sequence[Network]] = ((), ()),
        options: tuple[dict[str, object], dict[str, object]] = ({}, {}),
        established: bool = True,
        **both: object,
    ) -> tuple[Router, Router]:
        """Two routers that are neighbours. `both` holds fields of Peering for both sides, `options` for one each."""
        sites = [self.site(asn) for _, asn in (first, second)]
        routers = []
        for mine, (kind, _), own, networks_ in zip((0, 1), (first, second), options, networks, strict=True):
            other = sites[1 - mine]
            peering = replace(Peering(other.address, other.asn), **{**both, **own})  # type: ignore[arg-type]
            sites[mine].peerings = (peering,)
            sites[mine].networks = tuple(networks_)
            routers.append(kind(sites[mine]))
        await asyncio.gather(*(self.add(router) for router in routers))
        if established:
            await asyncio.gather(*(router.established() for router in routers))
        return routers[0], routers[1]

    async def close(self) -> None:
        await asyncio.gather(*(router.kill() for router in self.all))
        await asyncio.gather(*(router.clean() for router in self.all))


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory with a short path: sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="na-bgp-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
