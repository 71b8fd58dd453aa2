"""The driver of the lease session: carries out its requests on the store, keeps the subnet on disk, tells the agent.

Rules: all decisions are in plan/lease_session.py, also what a store error means. A subnet is on disk before it is
announced, with the host's boot id: on the same boot containers may still be using it, after another it is but a wish.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from netagent import files, subnet_env
from netagent.config import Settings
from netagent.errors import LeaseNotFound, StoreError, StoreUnknownOutcome
from netagent.identity import Identity
from netagent.model import Finding, Network, NodeRecord
from netagent.plan.cluster import Cluster, ClusterChange
from netagent.plan.lease_requests import (
    Answer,
    Claim,
    Drop,
    Failed,
    Gone,
    Inspect,
    Move,
    Record,
    Renew,
    Renewed,
    Request,
    Rewrite,
    Write,
    Written,
    reads,
    record,
    transaction,
)
from netagent.plan.lease_session import Attributes, LeaseSession, LeaseState, Subnets
from netagent.presence import Presence
from netagent.status import LeaseStatus
from netagent.store import schema
from netagent.store.base import Store

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STATE_FILE = "lease.json"


class Leasing:
    """Holds this node's subnet. `state` and `findings` may be read at any time; `on_change` is called, in the event
    loop, whenever the state or the subnets changed."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        identity: Identity,
        cluster: Cluster,
        on_change: Callable[[], None],
        *,
        rng: random.Random | None = None,
        boot_id: str | None = None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._store = store
        self._cluster = cluster
        self._on_change = on_change
        self._path = settings.state_dir / STATE_FILE
        self._boot_id = _boot_id() if boot_id is None else boot_id
        self._findings: dict[str, Finding] = {}
        self._kept: Kept | None = self._read()
        remembered = Subnets()
        if self._kept is not None:
            live = self._kept.boot == self._boot_id
            remembered = Subnets(self._kept.v4, self._kept.v6, live)
        env = subnet_env.read(settings.subnet_file)
        self._session = LeaseSession(
            cluster,
            identity.name,
            identity.id,
            ttl=settings.lease_ttl,
            rng=rng,
            remembered=remembered,
            env=Subnets(env.v4, env.v6),
        )
        self._presence = Presence(store, cluster, identity, ttl=settings.alive_ttl, rng=rng)
        self._told: tuple[str | None, ...] = ()
        self._problem = ""  # the last one logged
        self._news = asyncio.Event()

    # ------------------------------------------------------------------------------------------- for the agent

    @property
    def state(self) -> LeaseState:
        return self._session.state

    @property
    def holds(self) -> bool:
        """Whether there is a subnet that containers may use."""
        return self._session.holds

    @property
    def network(self) -> Network | None:
        """The newest network that holds our subnet, or the newest of all while we hold none: the one to plan by."""
        return self._session.network

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (*self._session.findings, *self._findings.values(), *self._presence.findings)

    def publish(self, attributes: Attributes) -> None:
        """What this node writes into its lease. Until it is called nothing is claimed."""
        self._session.publish(attributes, _now())
        self._news.set()

    def describe(self, record: NodeRecord) -> None:
        """The node's own record (`<prefix>/netagent/nodes/<name>`)."""
        self._presence.describe(record)

    def observe(self, change: ClusterChange) -> None:
        """The cluster's view changed; it has been folded already."""
        self._session.observe(change, _now())
        self._presence.observe(change)
        self._news.set()

    def presume(self) -> None:
        """etcd does not answer: use the subnet of an earlier run, after a reboot too."""
        self._session.presume()
        self._tell()

    def set_ttl(self, lease_ttl: int, alive_ttl: int) -> None:
        """Other TTLs (seconds), after the settings were read again."""
        self._session.set_ttl(lease_ttl)
        self._presence.set_ttl(alive_ttl)
        self._news.set()

    def status(self) -> LeaseStatus:
        state = self.state
        offset = time.time() - _now()
        return LeaseStatus(
            state=state.state,
            key=state.key,
            v4=state.v4 or "",
            v6=state.v6 or "",
            ttl=state.ttl,
            expires=state.expires + offset if state.expires else 0.0,
            renewed=state.renewed + offset if state.renewed else 0.0,
            reservation=state.reservation,
            problem=state.problem,
        )

    async def run(self) -> None:
        """Until cancelled. The lease is left to its TTL: traffic outlives the agent."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._presence.run(), name="presence")
            tasks.create_task(self._run(), name="lease session")

    async def _run(self) -> None:
        session = self._session
        while True:
            self._news.clear()
            request = session.next(_now())
            self._keep()
            self._tell()
            if request is None:
                wake = session.wake()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(wake):
                        await self._news.wait()
                continue
            log.debug("%s", request)
            answer = await self._carry_out(request)
            log.debug("%s", answer)
            session.done(answer, _now())

    # ---------------------------------------------------------------------------------------------- requests

    async def _carry_out(self, request: Request) -> Answer:
        try:
            match request:
                case Inspect(key):
                    return await self._inspect(key)
                case Renew(lease):
                    return Renewed(await self._store.keepalive(lease))
                case Claim() | Rewrite() | Move() | Drop():
                    return await self._write(request)
        except LeaseNotFound:
            return Gone()
        except StoreUnknownOutcome as error:
            return Failed(str(error), unknown=True)
        except StoreError as error:
            return Failed(str(error))

    async def _inspect(self, key: str) -> Record:
        result = await self._store.txn((), reads(self._cluster.keys, key))
        return record(key, result)

    async def _write(self, request: Write) -> Answer:
        lease, ttl = request.lease, 0
        if lease is None:
            try:
                lease, ttl = await self._store.grant(request.ttl)
            except StoreUnknownOutcome as error:
                return Failed(str(error))  # an etcd lease without keys goes by itself
        guards, writes, shown = transaction(self._cluster.keys, request, lease)
        result = await self._store.txn(guards, writes, reads(self._cluster.keys, shown))
        if result.succeeded:
            return Written(result.revision, lease, ttl)
        if ttl:
            with contextlib.suppress(StoreError):
                await self._store.revoke(lease)
        return record(shown, result)

    # ------------------------------------------------------------------------------------- telling and keeping

    def _tell(self) -> None:
        state = self.state
        if state.problem != self._problem and state.state not in ("lost", "conflict"):
            self._problem = state.problem
            if state.problem:
                log.warning("the subnet lease: %s", state.problem)
        now = (state.state, state.key, state.v4, state.v6)
        if now == self._told:
            return
        self._told = now
        match state.state:
            case "held":
                kind = "reservation" if state.reservation else "lease"
                log.info("this node holds %s (%s, %s)", _subnets(state), kind, state.source or "own")
            case "restored":
                log.info("this node had %s before; etcd has not confirmed it yet", _subnets(state))
            case "lost" | "conflict":
                log.error("%s", state.problem)
        self._on_change()

    def _keep(self) -> None:
        """Remember the subnet. Only one that etcd has given: what is in conflict was kept when it was held."""
        state = self.state
        if state.state != "held":
            return
        kept = Kept(boot=self._boot_id, v4=state.v4, v6=state.v6)
        if kept == self._kept:
            return
        try:
            files.replace(self._path, msgspec.json.encode(kept) + b"\n", mode=0o600)
        except OSError as error:
            self._findings["lease-not-kept"] = Finding(
                code="lease-not-kept",
                subject=str(self._path),
                message=f"the subnet cannot be kept on disk, so a restart may change it: {error.strerror}",
                remedy="make the state directory writable, or free space on its file system",
            )
            return
        self._findings.pop("lease-not-kept", None)
        self._kept = kept

    def _read(self) -> Kept | None:
        try:
            return read_kept(self._path)
        except (OSError, ValueError) as error:
            self._findings["lease-file-damaged"] = Finding(
                code="lease-file-damaged",
                subject=str(self._path),
                message=f"the subnet of an earlier run cannot be read and is ignored: {error}",
                remedy="nothing needs to be done: it is written anew when the subnet is held",
            )
            return None


class Kept(msgspec.Struct, frozen=True):
    """state_dir/lease.json: the subnets that the node held, and the boot of the host in which it did."""

    boot: str
    v4: str | None = None
    v6: str | None = None


def read_kept(path: Path) -> Kept | None:
    """The subnets of an earlier run, None if there are none. OSError or ValueError if the file is unusable."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        kept = msgspec.json.decode(data, type=Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    for subnet in (kept.v4, kept.v6):
        if subnet is not None and schema.canonical_subnet(subnet) != subnet:
            raise ValueError(f"{subnet} is no subnet")
    return kept


def _subnets(state: LeaseState) -> str:
    return " and ".join(subnet for subnet in (state.v4, state.v6) if subnet)


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _now() -> float:
    return asyncio.get_running_loop().time()
