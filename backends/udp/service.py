"""The service beside the udp plan: an engine that runs, is this release's, and has the agent's table.

Rules: an engine that runs already is adopted, and told only what differs; one of another release hands over to a
new one; one that dies is started again at once. Cancelling `run` leaves it running, only `stop` ends it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

from backends.udp import client, control, launch
from backends.udp.client import Client
from backends.udp.control import Config, ControlError
from backends.udp.planner import Udp, entry_of
from backends.udp.table import Entry, digest
from netagent import __version__
from netagent.contract import Context, ServicePort
from netagent.model import Finding, Lease, NodeRecord

log = logging.getLogger(__name__)

SOCKET = "udp.sock"  # in the run directory

STATS_EVERY = 5.0  # seconds
STATS_SOON = 0.25  # while something is wrong
STATS_NOW = 0.02  # while it may be one of starting up, which others wait for
STATS_PAGE = 500  # peers an answer: one page is one short pause of the packets
CHUNK = 1000  # peers in one change, for the same reason

# A problem younger than this is one of starting up: the device and the engine come at the same time.
PATIENCE = 1.0

_BACKOFF_FIRST, _BACKOFF_MAX = 0.05, 5.0
_LIVED = 5.0  # an engine that ran this long before it died is started again without waiting

_REMEDIES = {
    "device": "find the process that holds it (`ip -d tuntap list`), or wait for the agent to create it",
    "socket": "stop what uses the port (`ss -ulpn`; flanneld?), or set another Port in the configuration",
}


class UdpService:
    """Implements contract.Service. `tag` is the release that its engines carry in their hello."""

    def __init__(self, port: ServicePort, *, tag: str = __version__) -> None:
        self.path = port.run_dir / SOCKET
        self._port = port
        self._tag = tag
        self._context: Context | None = None
        self._config: Config | None = None
        self._leases: dict[str, Lease] = {}
        self._entries: dict[str, Entry] = {}  # what the engine should have
        self._sent: dict[str, Entry] = {}  # what it has, as far as this connection told it
        self._sent_config: Config | None = None
        self._dirty: set[str] = set()  # keys whose entry may differ between the two
        self._told = 0  # counts what the agent told
        self._synced = 0  # up to which of these the engine has all
        self._done = 0  # and up to which it carries them
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._state = "starting"
        self._hello: dict[str, Any] = {}
        self._greeted = 0.0  # when it said so
        self._stats: dict[str, Any] = {}
        self._traffic: dict[str, Any] = {}
        self._restarts = 0
        self._problems: dict[str, float] = {}  # text -> since when
        self._trouble: Finding | None = None  # with the process itself

    # ------------------------------------------------------------------------------------- told by the agent

    def configure(self, context: Context) -> None:
        before, self._context = self._context, context
        if (
            before is not None
            and (before.node, before.network) == (context.node, context.network)
            and before.options == context.options
        ):
            return
        node = context.node
        self._config = Config(
            device=context.options.device,
            mtu=Udp().mtu(context),
            port=context.options.port,
            addresses=tuple(filter(None, (node.local_ip, node.local_ip6))),
            subnets=tuple(s for f in context.network.families if (s := node.subnet(f)) is not None),
        )
        for lease in self._leases.values():
            self._plan(lease)
        self._tell()

    def peers(self, changed: Mapping[str, Lease], removed: Iterable[str], *, whole: bool) -> None:
        gone = self._leases.keys() - changed.keys() if whole else set(removed)
        for key in gone:
            self._leases.pop(key, None)
            self._entries.pop(key, None)
        self._dirty |= gone
        self._leases.update(changed)
        for lease in changed.values():
            self._plan(lease)
        self._tell()

    def nodes(self, nodes: Mapping[str, NodeRecord]) -> None:
        """The engine needs nothing of them."""

    async def settled(self) -> None:
        """The engine has all it was told, and carries packets, unless it was given time enough to begin with it."""
        told = self._told
        async with self._progress:
            await self._progress.wait_for(lambda: self._done >= told)

    async def stop(self) -> None:
        await client.stop(self.path)
        self._state = "stopped"

    def status(self) -> Mapping[str, Any]:
        return {
            "state": self._state,
            "engine": self._engine_status(),
            "restarts": self._restarts,
            "problems": sorted(self._problems),
            "drops": self._stats.get("drops", {}),
            "peers": {key: dict(zip(_COUNTERS, numbers, strict=True)) for key, numbers in self._traffic.items()},
        }

    def _engine_status(self) -> dict[str, Any]:
        status: dict[str, Any] = {
            key: self._hello[key] for key in ("pid", "tag", "protocol", "uptime") if key in self._hello
        }
        if "uptime" in status:
            status["uptime"] += time.monotonic() - self._greeted
        return status

    def _plan(self, lease: Lease) -> None:
        if self._context is None:
            return
        entry = entry_of(self._context, lease)
        if isinstance(entry, Entry) and entry.subnets:
            self._entries[lease.key] = entry
        else:
            self._entries.pop(lease.key, None)
        self._dirty.add(lease.key)

    def _tell(self) -> None:
        self._told += 1
        self._wake.set()

    # ------------------------------------------------------------------------------------- running

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        delay = _BACKOFF_FIRST
        while True:
            started = loop.time()
            connection: Client | None = None
            try:
                connection = await self._engine()
                await self._feed(connection)
            except (OSError, ControlError) as error:  # TimeoutError is an OSError
                self._state = "starting"
                log.warning("the udp engine at %s: %s", self.path, error)
                if connection is None:
                    self._failed(error)
            finally:
                if connection is not None:
                    connection.close()
            if loop.time() - started > _LIVED:
                delay = _BACKOFF_FIRST
            else:
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311
                delay = min(delay * 2, _BACKOFF_MAX)

    async def _engine(self) -> Client:
        """A connection to an engine of this release: the one that runs, its successor, or a new one."""
        try:
            connection = await self._connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if self._hello:
                self._restarts += 1
            await launch.start(self.path, self._tag)
            connection = await self._connect()
        self._trouble = None
        if (self._hello.get("protocol"), self._hello.get("tag")) == (control.PROTOCOL, self._tag):
            return connection
        try:
            upgraded = await self._upgrade(connection)
        except BaseException:
            connection.close()
            raise
        if upgraded is not connection:
            connection.close()
        return upgraded

    async def _connect(self) -> Client:
        """Connect and learn who answers. One that does not is ended: its packets are stuck anyway."""
        connection = await client.connect(self.path)
        try:
            self._hello = await connection.ask(control.DO_HELLO)
            self._greeted = time.monotonic()
        except TimeoutError:
            launch.kill(connection.pid)
            raise
        except BaseException:
            connection.close()
            raise
        return connection

    async def _upgrade(self, connection: Client) -> Client:
        """Start this release's engine as successor of the one that runs; that one again if it does not hand over."""
        old = self._hello
        try:
            await launch.start(self.path, self._tag, takeover=True)
        except (OSError, ControlError) as error:
            log.warning("the udp engine %s does not hand over: %s", old.get("tag"), error)
            if old.get("protocol") == control.PROTOCOL:
                self._trouble = Finding(
                    code="udp-engine-old",
                    subject="udp engine",
                    message=f"the engine of release {old.get('tag')} carries on: it did not hand over",
                    evidence=str(error),
                    remedy=f"end process {old.get('pid')}: the agent starts a new one at once",
                )
                return connection
            await connection.ask(control.DO_STOP)
            await launch.start(self.path, self._tag)
        log.info("the udp engine was upgraded from %s to %s", old.get("tag"), self._tag)
        return await self._connect()

    async def _feed(self, connection: Client) -> None:
        """Keep one engine up to date until its connection ends."""
        loop = asyncio.get_running_loop()
        await self._adopt(connection)
        log.info("the udp engine runs (process %s, %s peers)", self._hello.get("pid"), len(self._sent))
        due = loop.time()
        while True:
            self._wake.clear()
            await self._sync(connection)
            if loop.time() >= due:
                await self._poll(connection)
                due = loop.time() + (STATS_SOON if self._problems else STATS_EVERY)
            if self._starting():
                due = min(due, loop.time() + STATS_NOW)
            wake = asyncio.create_task(self._wake.wait())
            try:
                await asyncio.wait(
                    (wake, connection.closed),
                    timeout=max(0.0, due - loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                wake.cancel()
            if connection.closed.done():
                raise ConnectionResetError("it ended")

    async def _adopt(self, connection: Client) -> None:
        """Compare tables; a whole table is sent only to an engine that has another."""
        self._sent_config = None
        while self._config is None:  # told before `run`, by contract
            await self._wake.wait()
            self._wake.clear()
        wanted = dict(self._entries)
        self._dirty.clear()
        if self._hello.get("digest") != digest(wanted.values()):
            await connection.ask(control.DO_SET_PEERS, peers=list(wanted.values()))
        self._sent = wanted
        self._state = "running"

    async def _sync(self, connection: Client) -> None:
        """Tell the engine what changed since."""
        told, config = self._told, self._config
        if config is not None and config != self._sent_config:
            answer = await connection.ask(control.DO_CONFIGURE, config=config.to_json())
            self._sent_config = config
            self._note(answer.get("problems"))
        dirty, self._dirty = self._dirty, set()
        wanted = {key: self._entries.get(key) for key in dirty}
        changed = [entry for key, entry in wanted.items() if entry is not None and self._sent.get(key) != entry]
        gone = [key for key, entry in wanted.items() if entry is None and key in self._sent]
        for start in range(0, len(gone), CHUNK):
            await connection.ask(control.DO_REMOVE_PEERS, keys=gone[start : start + CHUNK])
        for key in gone:
            del self._sent[key]
        for start in range(0, len(changed), CHUNK):
            chunk = changed[start : start + CHUNK]
            await connection.ask(control.DO_ADD_PEERS, peers=chunk)
            self._sent.update((entry.key, entry) for entry in chunk)
        self._synced = told
        await self._settle()

    async def _settle(self) -> None:
        """What the engine was told is done when it has no problem, or has had it for longer than a start takes."""
        if self._synced > self._done and not self._starting():
            async with self._progress:
                self._done = self._synced
                self._progress.notify_all()

    def _starting(self) -> bool:
        now = time.monotonic()
        return any(now - since < PATIENCE for since in self._problems.values())

    async def _poll(self, connection: Client) -> None:
        """Read counters and problems. Changes go between the pages: they do not wait for all of them."""
        traffic: dict[str, Any] = {}
        offset, more = 0, True
        while more:
            if self._wake.is_set():
                self._wake.clear()
                await self._sync(connection)
            self._stats = await connection.ask(control.DO_STATS, offset=offset, limit=STATS_PAGE)
            traffic.update(control.traffic_of(self._stats))
            offset += STATS_PAGE
            more = bool(self._stats.get("more"))
        self._traffic = traffic
        self._note(self._stats.get("problems"))
        await self._settle()

    # ------------------------------------------------------------------------------------- telling the operator

    def _note(self, problems: Any) -> None:
        """Problems that the engine has now, and a finding for each that lasts."""
        texts = {str(k): str(v) for k, v in problems.items()} if isinstance(problems, dict) else {}
        now = time.monotonic()
        self._problems = {text: self._problems.get(text, now) for text in texts.values()}
        findings = [
            Finding(
                code="udp-port" if name.startswith("socket") else "udp-device",
                subject=text,
                severity="error",
                message=f"the udp engine carries nothing: {text}",
                evidence=f"process {self._hello.get('pid')}, for {now - self._problems[text]:.0f} s",
                remedy=_REMEDIES["socket" if name.startswith("socket") else "device"],
            )
            for name, text in texts.items()
            if now - self._problems[text] >= PATIENCE
        ]
        self._port.report([*findings, *([self._trouble] if self._trouble else [])])

    def _failed(self, error: Exception) -> None:
        self._trouble = Finding(
            code="udp-engine-failed",
            subject="udp engine",
            severity="error",
            message="the process that carries the udp backend's packets does not start or does not answer",
            evidence=str(error),
            remedy=f"try `netagent-udp --foreground --control {self.path}` as the agent's user",
        )
        self._note({})


_COUNTERS = ("tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "drops", "last_heard")
