"""The cluster store in etcd v3, over gRPC.

Rules that hold here, each learnt from a real server:
- every call has a deadline; `hasleader` goes with each, so that a member cut off from its quorum says so;
- a call is repeated at most once after a fresh authentication and at most once at another endpoint, then while the
  cluster chooses a leader; a write only if it certainly was not carried out, else its outcome is unknown and the
  caller reads back;
- a watch never resumes by itself and never passes over a gap; watch_stream.py proves that it lives;
- reads are linearizable; foreign errors are mapped here, once, to netagent.errors.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from netagent.errors import (
    LeaseNotFound,
    StoreAuthError,
    StoreCompacted,
    StoreError,
    StorePermissionDenied,
    StoreUnavailable,
)
from netagent.store.base import Batch, Compare, Get, Grant, Health, KeyValue, Listing, Request, TxnResult
from netagent.store.connection import Connection, grpc, pb
from netagent.store.dial import Dialler, EndpointStatus
from netagent.store.endpoints import TLS, parse_endpoints, password_from
from netagent.store.grpc_errors import between_leaders, elsewhere, not_carried_out, store_error, wants_token
from netagent.store.messages import (
    cancel_reason,
    compare_message,
    event_of,
    key_bytes,
    key_value,
    operation_message,
    range_of,
)
from netagent.store.watch_stream import WatchStream

PAGE = 10_000  # keys in one answer
ELECTION = 2.0  # seconds for which a call waits for a leader; etcd takes one or two with its own settings
PAUSE = 0.05, 0.15  # seconds between two looks at who leads


class EtcdStore:
    """`netagent.store.base.Store` on real etcd.

    `endpoints` are texts as in parse_endpoints. `timeout` is the default deadline of a call, `progress` the
    interval of a watch's proof of life (both seconds). `password_source` is asked anew at each authentication.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        tls: TLS | None = None,
        user: str = "",
        password_source: Callable[[], str] | None = None,
        timeout: float = 5.0,
        progress: float = 10.0,
    ) -> None:
        self._dialler = Dialler(parse_endpoints(endpoints, tls), tls or TLS())
        self._user = user
        self._password_source = password_source or password_from(None)
        self._timeout = timeout
        self._progress = progress
        self._authenticating = asyncio.Lock()
        self._token: str | None = None  # None: not yet asked for; "": etcd wants none

    def health(self) -> Health:
        return self._dialler.health

    async def probe(self, *, timeout: float = 2.0) -> tuple[EndpointStatus, ...]:
        """Version, revision and leader of every endpoint, or why it does not answer; for `netagent status`."""
        return await self._dialler.probe(timeout)

    async def close(self) -> None:
        await self._dialler.close()

    # ------------------------------------------------------------------------------------ reads and writes

    async def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        reply = await self._call("range", pb.RangeRequest(key=key_bytes(key)), timeout=timeout)
        return key_value(reply.kvs[0]) if reply.kvs else None

    async def list(self, prefix: str, *, revision: int = 0, timeout: float | None = None) -> Listing:
        start, end = range_of(prefix)
        items: tuple[KeyValue, ...] = ()
        while True:
            request = pb.RangeRequest(key=start, range_end=end, revision=revision, limit=PAGE)
            reply = await self._call("range", request, timeout=timeout)
            revision = revision or reply.header.revision
            items += tuple(map(key_value, reply.kvs))
            if not reply.more:
                return Listing(revision, items)
            start = reply.kvs[-1].key + b"\0"

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Request],
        failure: Sequence[Request] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        request = pb.TxnRequest(
            compare=map(compare_message, compares),
            success=map(operation_message, success),
            failure=map(operation_message, failure),
        )
        write = not all(isinstance(operation, Get) for operation in (*success, *failure))
        reply = await self._call("txn", request, write=write, timeout=timeout)
        gets = tuple(
            tuple(map(key_value, response.response_range.kvs))
            for response in reply.responses
            if response.HasField("response_range")
        )
        return TxnResult(reply.succeeded, reply.header.revision, gets)

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        request = pb.PutRequest(key=key_bytes(key), value=value, lease=lease)
        reply = await self._call("put", request, write=True, timeout=timeout)
        return int(reply.header.revision)

    async def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        start, end = range_of(key) if prefix else (key_bytes(key), b"")
        request = pb.DeleteRangeRequest(key=start, range_end=end)
        reply = await self._call("delete", request, write=True, timeout=timeout)
        return int(reply.deleted)

    # --------------------------------------------------------------------------------------------- leases

    async def grant(self, ttl: int, *, timeout: float | None = None) -> Grant:
        reply = await self._call("grant", pb.LeaseGrantRequest(TTL=ttl), write=True, timeout=timeout)
        if reply.error:
            raise StoreError(f"etcd grants no lease: {reply.error}")
        return Grant(reply.ID, reply.TTL)

    async def keepalive(self, lease: int, *, timeout: float | None = None) -> int:
        # renewing twice is renewing once: as repeatable as a read
        reply = await self._call("keepalive", pb.LeaseKeepAliveRequest(ID=lease), timeout=timeout)
        return _seconds(reply.TTL, lease)

    async def time_to_live(self, lease: int, *, timeout: float | None = None) -> int:
        reply = await self._call("ttl", pb.LeaseTimeToLiveRequest(ID=lease), timeout=timeout)
        return _seconds(reply.TTL, lease)

    async def revoke(self, lease: int, *, timeout: float | None = None) -> None:
        await self._call("revoke", pb.LeaseRevokeRequest(ID=lease), write=True, timeout=timeout)

    # ---------------------------------------------------------------------------------------------- watch

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Batch, None]:
        """As the protocol says. The first batch is empty and comes when etcd has accepted the watch.

        An empty batch repeats the last revision that is complete. The revision of a progress answer is not
        handed on: etcd up to 3.4.24 and 3.5.7 may send one that is ahead of events still to come.
        """
        start, end = range_of(prefix)
        following = revision
        authenticated = False
        while True:
            deadline = asyncio.get_running_loop().time() + self._timeout
            connection = await self._dialler.connect(deadline)
            token = await self._authenticate(connection, deadline)
            with connection.used():
                call = connection.call("watch")(metadata=_metadata(token))
                stream = WatchStream(call, interval=self._progress, deadline=self._timeout)
                try:
                    await stream.open(start, end, following)
                    while not (reply := await stream.read()).canceled:
                        self._dialler.working(connection)
                        if reply.header.revision < following - 1:
                            await self._check_history(following - 1)
                        if reply.events:
                            following = reply.events[-1].kv.mod_revision + 1
                        yield Batch(following - 1, tuple(map(event_of, reply.events)))
                    error, details = cancel_reason(reply, connection.name), ""
                    code = "CANCELLED" if isinstance(error, StoreUnavailable) else "PERMISSION_DENIED"
                except StoreUnavailable as silence:
                    code, error, details = "DEADLINE_EXCEEDED", silence, ""
                except grpc.aio.AioRpcError as failure:
                    code, details = failure.code().name, failure.details() or ""
                    error = store_error(code, details, write=False, where=connection.name, timeout=self._timeout)
                finally:
                    stream.close()
            # etcd 3.4 reports an expired token on a watch as "permission denied"
            denied = isinstance(error, StoreAuthError | StorePermissionDenied)
            if not (denied and self._user and not authenticated):
                self._dialler.failed(connection, code, error, details)
                raise error
            authenticated = True
            self._forget(token)

    async def _check_history(self, revision: int) -> None:
        """StoreCompacted if etcd as a whole, not only a lagging member, has not reached `revision`."""
        reply = await self._call("range", pb.RangeRequest(key=b"\0"))
        if reply.header.revision < revision:
            raise StoreCompacted(
                f"etcd is at revision {reply.header.revision}, below {revision}: it was wiped or restored",
                compact_revision=0,
            )

    # ------------------------------------------------------------------------------------------- one call

    async def _call(self, name: str, request: Any, *, write: bool = False, timeout: float | None = None) -> Any:
        loop = asyncio.get_running_loop()
        allowed = self._timeout if timeout is None else timeout
        deadline = loop.time() + allowed
        authenticated = moved = False
        patience = 0.0
        while True:
            connection = await self._dialler.connect(deadline)
            token = await self._authenticate(connection, deadline)
            left = deadline - loop.time()
            if not write and not moved and self._dialler.several:
                left /= 2  # keep the other half for another endpoint
            try:
                reply = await self._once(connection, name, request, token, max(0.001, left))
            except grpc.aio.AioRpcError as failure:
                code, details = failure.code().name, failure.details() or ""
            else:
                self._dialler.working(connection)
                return reply
            if wants_token(code, details) and self._user and not authenticated:
                authenticated = True
                self._forget(token)
                continue
            error = store_error(code, details, write=write, where=connection.name, timeout=allowed)
            self._dialler.failed(connection, code, error, details)
            again = elsewhere(code) and (not write or not_carried_out(code, details))
            if not again or deadline - loop.time() < 0.01:
                raise error
            if not (moved or self._dialler.uses(connection)):
                moved = True
                continue
            patience = patience or min(loop.time() + ELECTION, deadline - PAUSE[1])
            if not between_leaders(code, details) or loop.time() >= patience:
                raise error
            await asyncio.sleep(random.uniform(*PAUSE))  # noqa: S311 - no secret

    async def _once(self, connection: Connection, name: str, request: Any, token: str, timeout: float) -> Any:
        call = connection.call(name)
        with connection.used():
            try:
                if name != "keepalive":
                    return await call(request, timeout=timeout, metadata=_metadata(token))
                stream = call(timeout=timeout, metadata=_metadata(token))
                await stream.write(request)
                reply = await stream.read()
                stream.cancel()
            except asyncio.CancelledError:
                # close() cancels calls under way, which looks like the cancellation of our task
                task = asyncio.current_task()
                if self._dialler.closed and task is not None and not task.cancelling():
                    raise StoreUnavailable("the store is closed") from None
                raise
        if reply is grpc.aio.EOF:
            raise StoreUnavailable("the server has ended the call", where=connection.name)
        return reply

    # --------------------------------------------------------------------------------------------- token

    def _forget(self, token: str) -> None:
        if self._token == token:
            self._token = None

    async def _authenticate(self, connection: Connection, deadline: float) -> str:
        """The token to send; asks etcd for one where there is none. One request at a time."""
        token = self._token if self._user else ""
        if token is not None:
            return token
        async with self._authenticating:
            token = self._token  # another call may have asked meanwhile
            if token is not None:
                return token
            try:
                request = pb.AuthenticateRequest(name=self._user, password=self._password_source())
            except StoreAuthError as missing:
                self._dialler.failed(connection, "UNAUTHENTICATED", missing)
                raise
            left = max(0.01, deadline - asyncio.get_running_loop().time())
            try:
                with connection.used():
                    reply = await connection.call("authenticate")(request, timeout=left, metadata=_metadata(""))
            except grpc.aio.AioRpcError as failure:
                code, details = failure.code().name, failure.details() or ""
                if "authentication is not enabled" in details:
                    self._token = ""
                    return ""
                error = store_error(code, details, write=False, where=connection.name, timeout=left)
                self._dialler.failed(connection, code, error, details)
                raise error from None
            self._token = str(reply.token)
            return self._token


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("hasleader", "true"), ("token", token)) if token else (("hasleader", "true"),)


def _seconds(ttl: int, lease: int) -> int:
    if ttl <= 0:
        raise LeaseNotFound(f"etcd lease {lease:x} is gone")
    return int(ttl)


class StoreSettings(Protocol):
    """What open_store reads of the node's settings."""

    @property
    def etcd_endpoints(self) -> Sequence[str]: ...
    @property
    def etcd_cafile(self) -> Path | None: ...
    @property
    def etcd_certfile(self) -> Path | None: ...
    @property
    def etcd_keyfile(self) -> Path | None: ...
    @property
    def etcd_username(self) -> str: ...
    @property
    def etcd_password_file(self) -> Path | None: ...


def open_store(settings: StoreSettings) -> EtcdStore:
    """The store that the settings name. ConfigError when they make no sense; nothing is connected yet."""
    return EtcdStore(
        settings.etcd_endpoints,
        tls=TLS(settings.etcd_cafile, settings.etcd_certfile, settings.etcd_keyfile),
        user=settings.etcd_username,
        password_source=password_from(settings.etcd_password_file),
    )
