"""Which etcd member to talk to: dialling, failover, and what is known of the connection.

Rule: one connection is in use at a time. When it breaks, or a call on it fails in a way that another member may
not, it is left, and the next call dials the endpoints in turn, beginning with the next one. A member without a
leader is the last choice. Calls and watches under way on a connection that was left go on undisturbed.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import NamedTuple

from netagent.errors import StoreAuthError, StoreError, StoreTLSError, StoreUnavailable
from netagent.store.base import Health
from netagent.store.connection import Connection, grpc, pb
from netagent.store.diagnose import NO_ANSWER, Diagnosis, diagnose
from netagent.store.endpoints import TLS, Endpoint
from netagent.store.grpc_errors import broken, elsewhere, store_error

_SHARE = 2.0  # seconds that one endpoint has to connect, where there are several
_DIAGNOSE_AGAIN = 10.0  # seconds for which the reason of a failed handshake is believed


class EndpointStatus(NamedTuple):
    """What one endpoint said of itself. `error` is "" when it answered, in an operator's words otherwise."""

    endpoint: str
    version: str = ""
    revision: int = 0
    leader: bool = False  # this member leads
    has_leader: bool = False  # it knows of a leader, so there is a quorum
    error: str = ""


class Dialler:
    def __init__(self, endpoints: tuple[Endpoint, ...], tls: TLS) -> None:
        self._endpoints = endpoints
        self._tls = tls
        self._next = random.randrange(len(endpoints))  # noqa: S311 - spreads agents over the members
        self._current: Connection | None = None
        self._open: set[Connection] = set()
        self._lock = asyncio.Lock()
        self._diagnoses: dict[Endpoint, tuple[float, Diagnosis]] = {}
        self.closed = False
        self.health = Health(endpoints=tuple(map(str, endpoints)), since=time.time())

    @property
    def several(self) -> bool:
        return len(self._endpoints) > 1

    def uses(self, connection: Connection) -> bool:
        return self._current is connection

    async def connect(self, deadline: float) -> Connection:
        """The connection in use, or a new one before `deadline` (loop time). StoreUnavailable, StoreTLSError."""
        current = self._current
        if current is not None and current.alive:
            return current
        try:
            async with asyncio.timeout_at(deadline):
                await self._lock.acquire()
        except TimeoutError:
            raise StoreUnavailable(self.health.error or "no endpoint answers") from None
        try:
            current = self._current
            if current is not None and current.alive:
                return current
            return await self._dial(deadline)
        finally:
            self._lock.release()

    async def close(self) -> None:
        self.closed = True
        self._current = None
        await asyncio.gather(*(connection.close() for connection in self._open))
        self._down("closed")

    # ------------------------------------------------------------------------------------------ dialling

    async def _dial(self, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        if self._current is not None:
            self.leave(self._current)
        count = len(self._endpoints)
        reasons: list[tuple[Endpoint, Diagnosis]] = []
        opened: list[Connection] = []
        leaderless: Connection | None = None
        try:
            for position in range(count):
                left = deadline - loop.time()
                if left <= 0:
                    break
                endpoint = self._endpoints[(self._next + position) % count]
                share = left if position == count - 1 else min(_SHARE, left / (count - position))
                connection = self._new(endpoint)
                opened.append(connection)
                ready = await connection.ready(share)
                if ready and (await self._has_leader(connection, deadline) or not self.several):
                    return self._use(connection)
                if ready:
                    leaderless = leaderless or connection
                elif not self.closed:
                    reasons.append((endpoint, await self._reason(endpoint, ready, deadline, share)))
            if leaderless is not None:
                return self._use(leaderless)
            raise self._unreachable(reasons)
        finally:
            for connection in opened:
                if connection is not self._current:
                    connection.retire()

    def _new(self, endpoint: Endpoint) -> Connection:
        if self.closed:
            raise StoreUnavailable("the store is closed")
        try:
            connection = Connection(endpoint, self._tls)
        except StoreTLSError as error:
            self._down(str(error))
            raise
        self._open = {c for c in self._open if not c.closed}
        self._open.add(connection)
        return connection

    async def _has_leader(self, connection: Connection, deadline: float) -> bool:
        """Learn the member's version, and whether it knows of a leader."""
        left = min(_SHARE, max(0.01, deadline - asyncio.get_running_loop().time()))
        with connection.used():
            try:
                reply = await connection.call("status")(pb.StatusRequest(), timeout=left)
            except grpc.aio.AioRpcError:
                return False  # the call to come will say what is wrong
        connection.version = reply.version
        return bool(reply.leader)

    def _use(self, connection: Connection) -> Connection:
        if self.closed:
            raise StoreUnavailable("the store is closed")
        self._current = connection
        self._next = self._endpoints.index(connection.endpoint)
        connection.on_broken(lambda: self._broken(connection))
        return connection

    def leave(self, connection: Connection) -> None:
        """Dial the next endpoint at the next call."""
        if self._current is connection:
            self._current = None
            self._next = (self._endpoints.index(connection.endpoint) + 1) % len(self._endpoints)
        connection.retire()

    # -------------------------------------------------------------------------------------------- health

    def working(self, connection: Connection) -> None:
        """The endpoint has just answered as it should."""
        known = self.health
        if known.connected and known.endpoint == connection.name:
            return
        self._diagnoses.pop(connection.endpoint, None)
        self.health = Health(
            endpoints=known.endpoints,
            connected=True,
            endpoint=connection.name,
            version=connection.version,
            since=known.since if known.connected else time.time(),
        )

    def failed(self, connection: Connection, code: str, error: StoreError, details: str = "") -> None:
        """Note what a failed call says of the connection, and leave it where another may do better."""
        if elsewhere(code):
            in_use = self._current is None or self._current is connection
            if self.several or broken(code, details) or not connection.alive:
                self.leave(connection)
            if in_use:
                self._down(str(error))
        elif isinstance(error, StoreAuthError):
            self._down(str(error))

    def _broken(self, connection: Connection) -> None:
        if self._current is connection and not self.closed:
            self.leave(connection)
            self._down(f"{connection.name}: the connection is lost")

    def _down(self, reason: str) -> None:
        known = self.health
        self.health = Health(
            endpoints=known.endpoints,
            version=known.version,
            error=reason,
            since=time.time() if known.connected else known.since,
        )

    # ----------------------------------------------------------------------------------------- diagnosis

    async def _reason(self, endpoint: Endpoint, ready: bool | None, deadline: float, waited: float) -> Diagnosis:
        if ready is None:
            return Diagnosis(f"no answer within {waited:.2g} s", remedy=NO_ANSWER)
        now = asyncio.get_running_loop().time()
        at, known = self._diagnoses.get(endpoint, (0.0, None))
        if known is None or not known.tls or now - at > _DIAGNOSE_AGAIN:
            known = await diagnose(endpoint, self._tls, max(0.05, min(1.0, deadline - now)))
            self._diagnoses[endpoint] = (now, known)
        return known

    def _unreachable(self, reasons: list[tuple[Endpoint, Diagnosis]]) -> StoreError:
        if self.closed:
            return StoreUnavailable("the store is closed")
        text = "; ".join(f"{endpoint}: {reason.text}" for endpoint, reason in reasons) or "no time left to connect"
        tls = [reason for _, reason in reasons if reason.tls]
        told = tls or [reason for _, reason in reasons]
        remedy = next((reason.remedy for reason in told if reason.remedy), "")
        error: StoreError = (StoreTLSError if tls else StoreUnavailable)(text, remedy=remedy)
        self._down(str(error))
        return error

    async def probe(self, timeout: float) -> tuple[EndpointStatus, ...]:
        """Ask every endpoint for itself, all at once, over connections of their own."""
        return tuple(await asyncio.gather(*(self._probe(endpoint, timeout) for endpoint in self._endpoints)))

    async def _probe(self, endpoint: Endpoint, timeout: float) -> EndpointStatus:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        name = str(endpoint)
        connection = None
        try:
            connection = Connection(endpoint, self._tls)
            ready = await connection.ready(timeout)
            if not ready:
                reason = await self._reason(endpoint, ready, deadline, timeout)
                return EndpointStatus(name, error=f"{reason.text}. {reason.remedy}" if reason.remedy else reason.text)
            left = max(0.01, deadline - loop.time())
            reply = await connection.call("status")(pb.StatusRequest(), timeout=left)
        except StoreError as error:
            return EndpointStatus(name, error=str(error))
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
            return EndpointStatus(name, error=str(store_error(code, details, write=False, where="", timeout=timeout)))
        finally:
            if connection is not None:
                await connection.close()
        return EndpointStatus(
            name,
            version=reply.version,
            revision=reply.header.revision,
            leader=bool(reply.leader) and reply.leader == reply.header.member_id,
            has_leader=bool(reply.leader),
        )
