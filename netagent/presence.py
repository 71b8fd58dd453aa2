"""Who is alive, and what the node says of itself: `alive/<name>` on a short etcd lease, and `nodes/<name>`.

Rules: liveness is never the cause of a change to routes. The liveness key is left to its TTL when the agent ends, so
that a restart is no death. A name that another id is alive under is a finding, and nothing is written over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

from netagent.errors import LeaseNotFound, StoreError
from netagent.identity import Identity
from netagent.model import Finding, NodeRecord
from netagent.plan.cluster import Cluster, ClusterChange
from netagent.store import schema
from netagent.store.base import Compare, Get, KeyValue, Put, Store

log = logging.getLogger(__name__)

BACKOFF_FIRST, BACKOFF_LAST = 0.5, 10.0  # seconds


class Presence:
    """Keeps both keys as they should be. `findings` may be read at any time."""

    def __init__(self, store: Store, cluster: Cluster, identity: Identity, *, ttl: int, rng: random.Random) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._store = store
        self._cluster = cluster
        self._identity = identity
        self._ttl = ttl
        self._rng = rng
        self._record: NodeRecord | None = None
        self._written = b""  # the node record as etcd has it
        self._lease = 0  # the etcd lease that the liveness key is on; 0: to be put
        self._news = asyncio.Event()

    def describe(self, record: NodeRecord) -> None:
        if record != self._record:
            self._record = record
            self._news.set()

    def set_ttl(self, ttl: int) -> None:
        if ttl != self._ttl:
            self._ttl, self._lease = ttl, 0
            self._news.set()

    def observe(self, change: ClusterChange) -> None:
        """Put back what somebody else removed or changed."""
        name = self._identity.name
        if not self._cluster.confirmed:
            return
        if change.whole or name in change.alive_changed:
            alive = self._cluster.alive.get(name)
            if self._lease and (alive is None or alive.id != self._identity.id):
                self._lease = 0
                self._news.set()
        if change.whole or name in change.nodes_changed:
            node = self._cluster.nodes.get(name)
            if self._written and node != self._record:
                self._written = b""
                self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        failures, told = 0, ""
        while True:
            self._news.clear()
            try:
                clash = await self._step()
                failures, told = 0, ""
                pause = self._ttl / 3
                self.findings = (_clash(self._identity.name, clash),) if clash else ()
            except LeaseNotFound:
                self._lease, pause = 0, 0.05
            except StoreError as error:
                failures += 1
                # Each reason once: an outage may last for days.
                level = logging.DEBUG if str(error) == told else logging.WARNING
                log.log(level, "this node cannot be shown as alive: %s", error)
                told = str(error)
                pause = min(BACKOFF_LAST, self._ttl / 3, BACKOFF_FIRST * 2.0 ** min(failures - 1, 10))
            pause *= 0.8 + self._rng.random() / 5
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()

    async def _step(self) -> str:
        """Renew or put what is to be; the id of another node that is alive under our name, "" if none is."""
        if self._lease:
            await self._store.keepalive(self._lease)
        elif other := await self._appear():
            return other
        if self._record is not None and schema.node_value(self._record) != self._written:
            await self._describe(self._record)
        return ""

    async def _appear(self) -> str:
        """Put the liveness key, unless another id is alive under our name: then that id."""
        key = self._cluster.keys.alive(self._identity.name)
        value = schema.owner_value(schema.Owner(self._identity.name, self._identity.id))
        found = await self._store.get(key)
        if found is not None and (other := _id_of(found)) not in ("", self._identity.id):
            return other
        grant = await self._store.grant(self._ttl)
        guard = Compare(key, "mod", "=", found.mod_revision if found is not None else 0)
        result = await self._store.txn((guard,), (Put(key, value, grant.id),), (Get(key),))
        if not result.succeeded:
            with contextlib.suppress(StoreError):
                await self._store.revoke(grant.id)
            return next((_id_of(kv) for kv in result.gets[0] if _id_of(kv) != self._identity.id), "")
        self._lease = grant.id
        return ""

    async def _describe(self, record: NodeRecord) -> None:
        """Nobody else is alive under our name, so a record of another id is of an earlier installation."""
        value = schema.node_value(record)
        await self._store.put(self._cluster.keys.node(self._identity.name), value)
        self._written = value


def _id_of(kv: KeyValue) -> str:
    owner = schema.parse_alive(kv)
    return owner.id if isinstance(owner, schema.Owner) else ""


def _clash(name: str, other: str) -> Finding:
    return Finding(
        code="node-name-taken",
        subject=name,
        severity="error",
        message=f"another node is alive under this node's name {name}",
        evidence=f"its id is {other}",
        remedy="give one of the two another name with --node-name",
    )
