"""The store as netagent sees it: etcd's model (revisions, leases, transactions, watch) and no more.

Rules: every call has a deadline (seconds) of its own; a write whose outcome is unknown raises
StoreUnknownOutcome and is read back by the caller; a watch never hides a gap: it raises. Two things implement
this, `etcd.EtcdStore` and `memory.MemoryStore`, and one contract suite runs on both.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

import msgspec


class KeyValue(NamedTuple):
    key: str
    value: bytes
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class Listing(NamedTuple):
    """All keys under a prefix at one revision, sorted by key."""

    revision: int
    items: tuple[KeyValue, ...]


class Event(NamedTuple):
    """A put, or a delete (then only `kv.key` and `kv.mod_revision` say anything)."""

    deleted: bool
    kv: KeyValue


class Batch(NamedTuple):
    """Events of a watch up to and including `revision`; none of them: proof that the watch lives (progress)."""

    revision: int
    events: tuple[Event, ...]


class Compare(NamedTuple):
    """One guard of a transaction. `target` is "create" (revision; 0: absent), "mod", "version", "value", "lease"."""

    key: str
    target: str
    op: str  # "=", "!=", "<", ">"
    value: int | bytes


class Put(NamedTuple):
    key: str
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    key: str
    prefix: bool = False


class Get(NamedTuple):
    key: str
    prefix: bool = False


Request = Put | Delete | Get


class TxnResult(NamedTuple):
    """`gets` holds, for each Get of the branch that ran, the keys found."""

    succeeded: bool
    revision: int
    gets: tuple[tuple[KeyValue, ...], ...] = ()


class Grant(NamedTuple):
    id: int
    ttl: int  # seconds


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the connection, for status: no call is made to answer it."""

    endpoints: tuple[str, ...] = ()
    connected: bool = False
    endpoint: str = ""  # the one in use, where known
    version: str = ""
    error: str = ""  # the last failure in an operator's words, "" when connected
    since: float = 0.0  # time.time() of the last change of `connected`


class Store(Protocol):
    """The cluster store. `timeout` None means the store's own default deadline."""

    async def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None: ...

    async def list(self, prefix: str, *, revision: int = 0, timeout: float | None = None) -> Listing: ...

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Request],
        failure: Sequence[Request] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult: ...

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """Unconditional put; the new revision."""
        ...

    async def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        """How many keys were deleted."""
        ...

    async def grant(self, ttl: int, *, timeout: float | None = None) -> Grant: ...

    async def keepalive(self, lease: int, *, timeout: float | None = None) -> int:
        """Renew; the new TTL in seconds. LeaseNotFound when it is gone."""
        ...

    async def time_to_live(self, lease: int, *, timeout: float | None = None) -> int:
        """Seconds left. LeaseNotFound when it is gone."""
        ...

    async def revoke(self, lease: int, *, timeout: float | None = None) -> None: ...

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Batch, None]:
        """Batches from `revision` on (inclusive). The first one is empty: the watch stands.

        Ends only by an exception: StoreCompacted, StoreUnavailable,
        StorePermissionDenied ... The caller resumes from the last revision seen + 1 (follow.py).
        """
        ...

    def health(self) -> Health: ...

    async def close(self) -> None: ...
