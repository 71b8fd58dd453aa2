"""The store's values as etcd's messages, and back.

Rule: pure, and total: a key that is not UTF-8 (somebody else's) is carried through, not refused.
"""

from __future__ import annotations

from typing import Any

from netagent.errors import StoreCompacted, StoreError, StoreUnavailable
from netagent.store.base import Compare, Delete, Event, KeyValue, Put, Request
from netagent.store.grpc_errors import store_error, wants_token
from netagent.store.proto import etcd_pb2 as pb

_RESULT = {"=": pb.Compare.EQUAL, "!=": pb.Compare.NOT_EQUAL, "<": pb.Compare.LESS, ">": pb.Compare.GREATER}
_TARGET = {
    "version": (pb.Compare.VERSION, "version"),
    "create": (pb.Compare.CREATE, "create_revision"),
    "mod": (pb.Compare.MOD, "mod_revision"),
    "value": (pb.Compare.VALUE, "value"),
    "lease": (pb.Compare.LEASE, "lease"),
}


def key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def range_of(prefix: str) -> tuple[bytes, bytes]:
    """First key, and end (exclusive) of the range of all keys that begin with `prefix`."""
    start = key_bytes(prefix)
    end = start.rstrip(b"\xff")
    if not end:
        return start or b"\0", b"\0"  # an end of "\0" is etcd's "to the last key"
    return start, end[:-1] + bytes((end[-1] + 1,))


def key_value(kv: Any) -> KeyValue:
    key = kv.key.decode("utf-8", "surrogateescape")
    return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def event_of(event: Any) -> Event:
    return Event(event.type == pb.Event.DELETE, key_value(event.kv))


def compare_message(compare: Compare) -> Any:
    target, field = _TARGET[compare.target]
    return pb.Compare(result=_RESULT[compare.op], target=target, key=key_bytes(compare.key), **{field: compare.value})


def operation_message(operation: Request) -> Any:
    if isinstance(operation, Put):
        put = pb.PutRequest(key=key_bytes(operation.key), value=operation.value, lease=operation.lease)
        return pb.RequestOp(request_put=put)
    start, end = range_of(operation.key) if operation.prefix else (key_bytes(operation.key), b"")
    if isinstance(operation, Delete):
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=start, range_end=end))
    return pb.RequestOp(request_range=pb.RangeRequest(key=start, range_end=end))


def cancel_reason(reply: Any, where: str) -> StoreError:
    """Why the server ended a watch: it says so in band, in a WatchResponse that is `canceled`."""
    if reply.compact_revision:
        return StoreCompacted(
            f"{where}: the history before revision {reply.compact_revision} is compacted",
            compact_revision=reply.compact_revision,
        )
    reason = reply.cancel_reason or "watch cancelled"
    if "permission denied" in reason:
        return store_error("PERMISSION_DENIED", reason, write=False, where=where, timeout=0)
    if wants_token("UNAUTHENTICATED", reason):
        return store_error("UNAUTHENTICATED", reason, write=False, where=where, timeout=0)
    return StoreUnavailable(reason.removeprefix("etcdserver: "), where=where)
