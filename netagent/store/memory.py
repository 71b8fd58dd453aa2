"""etcd's twin in memory, for tests: revisions, history, compaction, leases, watches, faults.

Rules: deterministic, with a clock that only `advance` moves; a MemoryCluster is the data, a MemoryStore one client
of it with faults of its own, so that two nodes of a test share a cluster and lose it one by one. Where this and etcd
differ this is wrong: tests/unit/test_store_contract.py holds both to one contract.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Sequence

from netagent.errors import LeaseNotFound, StoreCompacted, StoreError, StoreUnavailable, StoreUnknownOutcome
from netagent.store.base import (
    Batch,
    Compare,
    Delete,
    Event,
    Get,
    Grant,
    Health,
    KeyValue,
    Listing,
    Put,
    Request,
    TxnResult,
)

MAX_TXN_OPERATIONS = 128  # etcd's --max-txn-ops


class _Lease:
    def __init__(self, ttl: int, expires: float) -> None:
        self.ttl = ttl
        self.expires = expires
        self.keys: set[str] = set()


class _Watcher:
    def __init__(self, client: MemoryStore, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.queue: asyncio.Queue[Batch | StoreError] = asyncio.Queue()


class MemoryCluster:
    """The data of one cluster. `now` is its clock in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._watchers: list[_Watcher] = []
        self._lease_ids = 0x1000
        self._clear()

    def _clear(self) -> None:
        self.revision = 1  # as a new etcd
        self.compacted = 0
        self._live: dict[str, KeyValue] = {}
        self._base: dict[str, KeyValue] = {}  # what lived at the compacted revision
        self.history: list[Batch] = []  # one for each revision after it
        self._leases: dict[int, _Lease] = {}

    @property
    def watches(self) -> int:
        """How many watches are open."""
        return len(self._watchers)

    # ----------------------------------------------------------------------------------- what tests do

    def advance(self, seconds: float) -> None:
        """Let time pass; leases that expire take their keys with them."""
        self.now += seconds
        for number, lease in sorted(self._leases.items(), key=lambda item: item[1].expires):
            if lease.expires <= self.now:
                self.drop_lease(number)

    def compact(self, revision: int = 0) -> None:
        """Forget the history up to `revision` (0: all of it)."""
        revision = revision or self.revision
        self._base = self._at(revision)
        self.history = [batch for batch in self.history if batch.revision > revision]
        self.compacted = revision

    def wipe(self) -> None:
        """A new, empty cluster at the same place: watches break, revisions start again."""
        self._clear()
        self.cut_watches()

    def cut_watches(self, error: StoreError | None = None, client: MemoryStore | None = None) -> None:
        """End the watches (of one client, or all) with an error."""
        for watcher in self._watchers:
            if client is None or watcher.client is client:
                watcher.queue.put_nowait(error or StoreUnavailable("the watch was cut"))

    # ------------------------------------------------------------------------------------------- reads

    def range(self, prefix: str, revision: int) -> Listing:
        if revision > self.revision:
            raise StoreCompacted("required revision is a future revision", compact_revision=0)
        if revision and revision < self.compacted:
            raise StoreCompacted(
                "required revision has been compacted",
                compact_revision=self.compacted,
            )
        keys = self._at(revision) if revision else self._live
        found = sorted((kv for key, kv in keys.items() if key.startswith(prefix)), key=lambda kv: kv.key)
        return Listing(revision or self.revision, tuple(found))

    def get(self, key: str) -> KeyValue | None:
        return self._live.get(key)

    def _at(self, revision: int) -> dict[str, KeyValue]:
        keys = dict(self._base)
        for batch in self.history:
            if batch.revision > revision:
                break
            for deleted, kv in batch.events:
                keys.pop(kv.key, None)
                if not deleted:
                    keys[kv.key] = kv
        return keys

    # ------------------------------------------------------------------------------------------ writes

    def txn(self, compares: Sequence[Compare], success: Sequence[Request], failure: Sequence[Request]) -> TxnResult:
        for branch in (success, failure):
            if len(branch) > MAX_TXN_OPERATIONS:
                raise StoreError("too many operations in txn request")
            puts = [operation.key for operation in branch if isinstance(operation, Put)]
            deletes = [operation for operation in branch if isinstance(operation, Delete)]
            if len(set(puts)) < len(puts) or any(_covers(delete, key) for delete in deletes for key in puts):
                raise StoreError("duplicate key given in txn request")
        succeeded = all(self._holds(compare) for compare in compares)
        operations = success if succeeded else failure
        for operation in operations:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise LeaseNotFound("requested lease not found")
        gets: list[tuple[KeyValue, ...]] = []
        events: list[Event] = []
        for operation in operations:
            if isinstance(operation, Put):
                events.append(self._put(operation))
            elif isinstance(operation, Delete):
                events += self._delete(operation)
            else:
                gets.append(self._get(operation))
        self._commit(events)
        return TxnResult(succeeded, self.revision, tuple(gets))

    def _holds(self, compare: Compare) -> bool:
        kv = self._live.get(compare.key, KeyValue(compare.key, b""))
        if compare.target == "value" and compare.key not in self._live:
            return False  # etcd: a missing key has no value to compare with
        fields = {"create": "create_revision", "mod": "mod_revision"}
        have = getattr(kv, fields.get(compare.target, compare.target))
        want = compare.value
        return bool({"=": have == want, "!=": have != want, "<": have < want, ">": have > want}[compare.op])

    def _put(self, put: Put) -> Event:
        old = self._live.get(put.key)
        revision = self.revision + 1
        if old is not None and old.lease in self._leases:
            self._leases[old.lease].keys.discard(put.key)
        if put.lease:
            self._leases[put.lease].keys.add(put.key)
        created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        kv = KeyValue(put.key, put.value, created, revision, version, put.lease)
        self._live[put.key] = kv
        return Event(False, kv)

    def _delete(self, delete: Delete) -> list[Event]:
        gone = self._get(Get(delete.key, delete.prefix))
        for kv in gone:
            del self._live[kv.key]
            if kv.lease in self._leases:
                self._leases[kv.lease].keys.discard(kv.key)
        return [Event(True, KeyValue(kv.key, b"", mod_revision=self.revision + 1)) for kv in gone]

    def _get(self, get: Get) -> tuple[KeyValue, ...]:
        if get.prefix:
            return self.range(get.key, 0).items
        kv = self._live.get(get.key)
        return (kv,) if kv else ()

    def _commit(self, events: list[Event]) -> None:
        if not events:
            return
        self.revision += 1
        batch = Batch(self.revision, tuple(events))
        self.history.append(batch)
        for watcher in self._watchers:
            self._tell(watcher, batch)

    @staticmethod
    def _tell(watcher: _Watcher, batch: Batch) -> None:
        events = tuple(event for event in batch.events if event.kv.key.startswith(watcher.prefix))
        if events:
            watcher.queue.put_nowait(Batch(batch.revision, events))

    # ------------------------------------------------------------------------------------------ leases

    def grant(self, ttl: int) -> Grant:
        self._lease_ids += 1
        self._leases[self._lease_ids] = _Lease(ttl, self.now + ttl)
        return Grant(self._lease_ids, ttl)

    def lease(self, number: int) -> _Lease:
        if number not in self._leases:
            raise LeaseNotFound("requested lease not found")
        return self._leases[number]

    def drop_lease(self, number: int) -> None:
        lease = self.lease(number)
        events = [event for key in sorted(lease.keys) for event in self._delete(Delete(key))]
        del self._leases[number]
        self._commit(events)

    # ------------------------------------------------------------------------------------------- watch

    def watch(self, client: MemoryStore, prefix: str, revision: int) -> _Watcher:
        if revision <= self.compacted:
            raise StoreCompacted(
                f"the history before revision {self.compacted} is compacted", compact_revision=self.compacted
            )
        if revision > self.revision + 1:
            raise StoreCompacted(
                f"etcd is at revision {self.revision}, below {revision - 1}: it was wiped or restored",
                compact_revision=0,
            )
        watcher = _Watcher(client, prefix)
        watcher.queue.put_nowait(Batch(revision - 1, ()))
        for batch in self.history:
            if batch.revision >= revision:
                self._tell(watcher, batch)
        self._watchers.append(watcher)
        return watcher

    def unwatch(self, watcher: _Watcher) -> None:
        self._watchers.remove(watcher)


def _covers(delete: Delete, key: str) -> bool:
    return key.startswith(delete.key) if delete.prefix else key == delete.key


class MemoryStore:
    """`netagent.store.base.Store` on a MemoryCluster (one of its own unless given).

    `calls` counts what was asked, by method. Faults are one-sided: they are this client's, not the cluster's.
    """

    def __init__(self, cluster: MemoryCluster | None = None) -> None:
        self.cluster = cluster or MemoryCluster()
        self.calls: Counter[str] = Counter()
        self._faults: deque[tuple[str, StoreError]] = deque()
        self._lost: deque[bool] = deque()
        self._partitioned = False
        self._closed = False
        self._health = Health(endpoints=("memory://",), since=time.time())

    # ---------------------------------------------------------------------------------- faults, for tests

    def fail(self, error: StoreError, *, times: int = 1, method: str = "") -> None:
        """The next calls (of that method, or any) raise `error` and change nothing. "watch" is a method too."""
        self._faults.extend([(method, error)] * times)

    def lose_reply(self, *, happened: bool, times: int = 1) -> None:
        """The next writes raise StoreUnknownOutcome, carried out or not."""
        self._lost.extend([happened] * times)

    def partition(self, on: bool = True) -> None:
        """Cut this client off: calls raise StoreUnavailable, its watches end. False joins it again."""
        self._partitioned = on
        if on:
            self.cluster.cut_watches(StoreUnavailable("partitioned"), self)
            self._note("partitioned")

    def cut_watches(self, error: StoreError | None = None) -> None:
        self.cluster.cut_watches(error, self)

    def advance(self, seconds: float) -> None:
        self.cluster.advance(seconds)

    def compact(self, revision: int = 0) -> None:
        self.cluster.compact(revision)

    def wipe(self) -> None:
        self.cluster.wipe()

    # -------------------------------------------------------------------------------------------- Store

    async def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        await self._begin("get")
        return self.cluster.get(key)

    async def list(self, prefix: str, *, revision: int = 0, timeout: float | None = None) -> Listing:
        await self._begin("list")
        return self.cluster.range(prefix, revision)

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Request],
        failure: Sequence[Request] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        lost = await self._begin_write("txn")
        result = self.cluster.txn(compares, success, failure)
        self._end_write(lost)
        return result

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        lost = await self._begin_write("put")
        result = self.cluster.txn((), (Put(key, value, lease),), ())
        self._end_write(lost)
        return result.revision

    async def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        lost = await self._begin_write("delete")
        found = self.cluster.txn((), (Get(key, prefix), Delete(key, prefix)), ())
        self._end_write(lost)
        return len(found.gets[0])

    async def grant(self, ttl: int, *, timeout: float | None = None) -> Grant:
        lost = await self._begin_write("grant")
        result = self.cluster.grant(ttl)
        self._end_write(lost)
        return result

    async def keepalive(self, lease: int, *, timeout: float | None = None) -> int:
        await self._begin("keepalive")
        found = self.cluster.lease(lease)
        found.expires = self.cluster.now + found.ttl
        return found.ttl

    async def time_to_live(self, lease: int, *, timeout: float | None = None) -> int:
        await self._begin("time_to_live")
        return math.ceil(self.cluster.lease(lease).expires - self.cluster.now)

    async def revoke(self, lease: int, *, timeout: float | None = None) -> None:
        lost = await self._begin_write("revoke")
        self.cluster.drop_lease(lease)
        self._end_write(lost)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Batch, None]:
        await self._begin("watch")
        watcher = self.cluster.watch(self, prefix, revision)
        try:
            while True:
                batch = await watcher.queue.get()
                if isinstance(batch, StoreError):
                    self._note(str(batch))
                    raise batch
                yield batch
        finally:
            self.cluster.unwatch(watcher)

    def health(self) -> Health:
        return self._health

    async def close(self) -> None:
        self._closed = True
        self.cluster.cut_watches(StoreUnavailable("the store is closed"), self)
        self._note("closed")

    # ------------------------------------------------------------------------------------------- inside

    async def _begin(self, method: str) -> None:
        """Count the call, let others run as a real call would, and raise the fault that is due."""
        self.calls[method] += 1
        await asyncio.sleep(0)
        error: StoreError | None = None
        if self._closed:
            error = StoreUnavailable("the store is closed")
        elif self._partitioned:
            error = StoreUnavailable("partitioned")
        else:
            for fault in self._faults:
                if fault[0] in ("", method):
                    self._faults.remove(fault)
                    error = fault[1]
                    break
        self._note(str(error) if error else "")
        if error is not None:
            raise error

    async def _begin_write(self, method: str) -> bool:
        await self._begin(method)
        if not self._lost:
            return False
        if not self._lost.popleft():
            raise StoreUnknownOutcome("the reply is lost; the write may or may not have happened")
        return True

    @staticmethod
    def _end_write(lost: bool) -> None:
        if lost:
            raise StoreUnknownOutcome("the reply is lost; the write may or may not have happened")

    def _note(self, error: str) -> None:
        connected = not error
        known = self._health
        self._health = Health(
            endpoints=known.endpoints,
            connected=connected,
            endpoint="memory://" if connected else "",
            version="memory",
            error=error,
            since=known.since if connected == known.connected else time.time(),
        )
