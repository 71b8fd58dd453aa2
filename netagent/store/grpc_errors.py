"""What a failed call to etcd means: gRPC code and text to netagent's errors.

Rules: pure (codes are the names of grpc.StatusCode); the one question that matters for a write, whether it may
have been carried out, is answered "yes" unless the answer excludes it.

Texts are etcd's (api/v3rpc/rpctypes/error.go) and stable since 3.1, except where gRPC's own are named.
"""

from __future__ import annotations

from netagent.errors import (
    LeaseNotFound,
    StoreAuthError,
    StoreCompacted,
    StoreError,
    StorePermissionDenied,
    StoreUnavailable,
    StoreUnknownOutcome,
)

# UNAVAILABLE from these was never put to the vote: gRPC had no connection, or the member knew no leader.
_NOT_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "etcdserver: no leader",
    "etcdserver: not capable",
)
_BROKEN = "Stream removed"  # gRPC's words
# The token has expired or the member has restarted; none was sent; users or roles have changed since.
_TOKEN = ("invalid auth token", "user name is empty", "revision of auth store is old")


def wants_token(code: str, details: str) -> bool:
    """Would a fresh authentication help?"""
    return code in ("UNAUTHENTICATED", "INVALID_ARGUMENT") and any(text in details for text in _TOKEN)


def not_carried_out(code: str, details: str) -> bool:
    """Is it certain that the request changed nothing?"""
    if code == "UNAVAILABLE":
        return details.startswith(_NOT_SENT)
    return code not in ("DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "ABORTED", "DATA_LOSS")


def elsewhere(code: str) -> bool:
    """May another member answer what this one could not?"""
    return code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL", "CANCELLED")


def between_leaders(code: str, details: str) -> bool:
    """Has the cluster lost its leader this moment, so that the same call will be answered in the next?"""
    return code == "UNAVAILABLE" and ("no leader" in details or "leader changed" in details)


def broken(code: str, details: str) -> bool:
    """Is the connection gone under the call? gRPC's own state of the channel may lag behind that."""
    return code != "DEADLINE_EXCEEDED" and details.startswith(_BROKEN)


def store_error(code: str, details: str, *, write: bool, where: str, timeout: float) -> StoreError:
    """The error for a call that failed at endpoint `where`; `timeout` is the deadline that it had (seconds)."""
    text = details.removeprefix("etcdserver: ") or code.lower().replace("_", " ")
    if "compacted" in details:
        return StoreCompacted(f"{where}: {text}", compact_revision=0)
    if "future revision" in details:
        return StoreCompacted(f"{where}: {text}: etcd was wiped or restored", compact_revision=0)
    if "lease not found" in details:
        return LeaseNotFound(text, where=where)
    if code == "PERMISSION_DENIED":
        return StorePermissionDenied(
            "etcd denies this key to the user",
            where=where,
            remedy="Grant its role the prefix: etcdctl role grant-permission --prefix ROLE readwrite PREFIX",
        )
    if wants_token(code, details):
        if "user name is empty" in details:
            return StoreAuthError(
                "etcd demands a user and password", where=where, remedy="Set etcd_username and the password"
            )
        return StoreAuthError(text, where=where)
    if "authentication failed" in details or code == "UNAUTHENTICATED":
        return StoreAuthError(
            "etcd refuses user or password", where=where, remedy="Check etcd_username and the password"
        )
    if "database space exceeded" in details:
        return StoreUnavailable(
            "etcd's database is full, it takes no writes",
            where=where,
            remedy="Compact and defragment it, then `etcdctl alarm disarm`",
        )
    if code == "RESOURCE_EXHAUSTED":
        return StoreUnavailable(text, where=where)
    if code == "UNIMPLEMENTED" or "HTTP status" in details:
        return StoreError(
            f"no etcd v3 answers here ({text})", where=where, remedy="Check the endpoint's address and port"
        )
    if code == "DEADLINE_EXCEEDED":
        text = f"no answer within {timeout:.3g} s"
    elif broken(code, details):
        text = f"the connection broke{details.removeprefix(_BROKEN)}"
    elif "no leader" in details or "timed out" in details:
        text = f"{text}: the cluster has no quorum, or is overloaded"
    elif not elsewhere(code):
        return StoreError(text, where=where)
    if write and not not_carried_out(code, details):
        return StoreUnknownOutcome(f"{text}; the write may or may not have happened", where=where)
    return StoreUnavailable(text, where=where)
