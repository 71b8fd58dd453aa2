"""What a lease session asks of etcd, as transactions, and what can be answered.

The words between lease_session.py, which decides, and leasing.py, which carries out.

Rule: keys here are the last part of a lease key ("10.5.59.0-24"), and each write puts the owner record beside it, on
the same etcd lease and in the same transaction.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from netagent.model import Finding, Lease
from netagent.store import schema
from netagent.store.base import Compare, Delete, Get, Put, TxnResult
from netagent.store.base import Request as StoreRequest


class Claim(NamedTuple):
    """Put `key` on a new etcd lease of `ttl` seconds, if it does not exist."""

    key: str
    value: bytes
    owner: bytes
    ttl: int
    lease: None = None


class Rewrite(NamedTuple):
    """Put `key` if it is at `mod_revision`. `lease` 0: on no etcd lease; None: on a new one of `ttl` seconds."""

    key: str
    value: bytes
    owner: bytes
    mod_revision: int
    lease: int | None
    ttl: int


class Move(NamedTuple):
    """Delete `old` if it is at `mod_revision`, and put `key`, if it does not exist, in its place."""

    old: str
    mod_revision: int
    key: str
    value: bytes
    owner: bytes
    lease: int | None
    ttl: int


class Drop(NamedTuple):
    """Delete `key` if it is at `mod_revision`."""

    key: str
    mod_revision: int
    lease: int = 0
    ttl: int = 0


class Renew(NamedTuple):
    """Keep the etcd lease alive."""

    lease: int


class Inspect(NamedTuple):
    """Read `key`."""

    key: str


Write: TypeAlias = Claim | Rewrite | Move | Drop
Request: TypeAlias = Write | Renew | Inspect


class Written(NamedTuple):
    """The write was carried out. `lease` is the etcd lease it is on; `ttl` is 0 unless that was granted for it."""

    revision: int
    lease: int
    ttl: int = 0


class Record(NamedTuple):
    """The record as etcd has it, with its owner: the answer to Inspect and to a write whose guard failed.

    A refused write shows `key`, but a Move `old`. `unreadable`: there is one, but it is no lease.
    """

    lease: Lease | None
    unreadable: bool = False


class Renewed(NamedTuple):
    ttl: int  # seconds


class Gone(NamedTuple):
    """The etcd lease does not exist any more."""


class Failed(NamedTuple):
    """The request failed. `unknown`: the write may have been carried out."""

    error: str
    unknown: bool = False


Answer: TypeAlias = Written | Record | Renewed | Gone | Failed


def transaction(
    keys: schema.Keys, request: Write, lease: int
) -> tuple[tuple[Compare, ...], tuple[StoreRequest, ...], str]:
    """(guards, writes, the key to show when a guard fails) of a write on this etcd lease."""
    subnet = keys.subnet(request.key)
    owner = keys.owner(request.key)
    if isinstance(request, Drop):
        return (Compare(subnet, "mod", "=", request.mod_revision),), (Delete(subnet), Delete(owner)), request.key
    puts = Put(subnet, request.value, lease), Put(owner, request.owner, lease)
    match request:
        case Claim():
            return (Compare(subnet, "create", "=", 0),), puts, request.key
        case Rewrite():
            return (Compare(subnet, "mod", "=", request.mod_revision),), puts, request.key
        case Move():
            old = keys.subnet(request.old)
            guards = Compare(old, "mod", "=", request.mod_revision), Compare(subnet, "create", "=", 0)
            # The deletions first: flannel follows the events one by one, and both keys may be of one IPv4 subnet.
            return guards, (Delete(old), Delete(keys.owner(request.old)), *puts), request.old


def reads(keys: schema.Keys, key: str) -> tuple[Get, Get]:
    """What shows a record, at one revision."""
    return Get(keys.subnet(key)), Get(keys.owner(key))


def record(key: str, result: TxnResult) -> Record:
    """What `reads` found."""
    subnet, owner = result.gets
    if not subnet:
        return Record(None)
    lease = schema.joined_lease(key, subnet[0], owner[0] if owner else None)
    return Record(None, unreadable=True) if isinstance(lease, Finding) else Record(lease)
