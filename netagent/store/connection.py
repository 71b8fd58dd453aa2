"""One gRPC connection to one etcd member.

Rule: a connection lives once. gRPC's own reconnecting, balancing and back-off are not used: when the connection
breaks it is thrown away and the store dials again, at a moment and at an endpoint of its own choosing. That makes
failover prompt, lets each endpoint be verified by its own name, and reads renewed certificates.

A server that is stopped (SIGSTOP, a hung host) keeps its sockets open; only HTTP/2 pings with `ping_timeout_ms`
find it, after KEEPALIVE + PING_TIMEOUT seconds. etcd allows a ping every 5 s and only while a call is open.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netagent.errors import StoreTLSError
from netagent.store.endpoints import TLS, Endpoint

# gRPC's core prints failed handshakes and broken connections to stderr; they reach the operator as errors instead.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio

from netagent.store.proto import etcd_pb2 as pb

__all__ = ["Connection", "grpc", "pb"]

KEEPALIVE = 6.0  # seconds between pings
PING_TIMEOUT = 3.0

_OPTIONS = (
    ("grpc.keepalive_time_ms", int(KEEPALIVE * 1000)),
    ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT * 1000)),
    ("grpc.http2.ping_timeout_ms", int(PING_TIMEOUT * 1000)),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment is for the web, not for the cluster's store
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
)
_SYSTEM_AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")

_UNARY: dict[str, tuple[str, Any, Any]] = {
    "range": ("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse),
    "put": ("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse),
    "delete": ("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest, pb.DeleteRangeResponse),
    "txn": ("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse),
    "grant": ("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse),
    "revoke": ("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
    "ttl": ("/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse),
    "authenticate": ("/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse),
    "status": ("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse),
}
_STREAM: dict[str, tuple[str, Any, Any]] = {
    "watch": ("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse),
    "keepalive": ("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse),
}


class Connection:
    """A channel to `endpoint`. Closed when it is retired and its last user is gone."""

    def __init__(self, endpoint: Endpoint, tls: TLS) -> None:
        self.endpoint = endpoint
        self.name = str(endpoint)
        self.version = ""
        self.users = 0
        self.retired = False
        self._watcher: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        if endpoint.secure:
            options = (*_OPTIONS, *((("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()))
            self._channel = grpc.aio.secure_channel(endpoint.target, _credentials(tls), options=options)
        else:
            self._channel = grpc.aio.insecure_channel(endpoint.target, options=_OPTIONS)
        self._calls: dict[str, Any] = {}

    async def ready(self, timeout: float) -> bool | None:
        """Connect. True: ready; False: failed (refused, TLS ...); None: no answer within `timeout` seconds."""
        states = grpc.ChannelConnectivity
        try:
            async with asyncio.timeout(timeout):
                state = self._channel.get_state(try_to_connect=True)
                while state is not states.READY:
                    if state in (states.TRANSIENT_FAILURE, states.SHUTDOWN):
                        return False
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            return None
        return True

    @property
    def closed(self) -> bool:
        return self._closing is not None and self._closing.done()

    @property
    def alive(self) -> bool:
        return not self.retired and self._channel.get_state() is grpc.ChannelConnectivity.READY

    def on_broken(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection breaks, also while nobody makes a call."""

        async def watch() -> None:
            await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            callback()

        self._watcher = asyncio.create_task(watch(), name=f"etcd connection {self.endpoint}")

    @contextmanager
    def used(self) -> Iterator[None]:
        """Around every call: closing a channel would cancel it."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            if self.retired and not self.users:
                self._close_soon()

    def call(self, name: str) -> Any:
        """The gRPC multi-callable: of request, timeout and metadata."""
        found = self._calls.get(name)
        if found is None:
            make = self._channel.unary_unary if name in _UNARY else self._channel.stream_stream
            path, request, response = _UNARY.get(name) or _STREAM[name]
            found = make(path, request.SerializeToString, response.FromString)
            self._calls[name] = found
        return found

    def retire(self) -> None:
        """No new calls here; those under way may end."""
        if not self.retired:
            self.retired = True
            if not self.users:
                self._close_soon()

    async def close(self) -> None:
        """Cancels what is under way."""
        self.retired = True
        self._close_soon()
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _close_soon(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"etcd close {self.endpoint}")

    async def _close(self) -> None:
        if self._watcher is not None and not self._watcher.done():
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._channel.close(None)


def _credentials(tls: TLS) -> Any:
    ca = tls.ca or next((Path(path) for path in _SYSTEM_AUTHORITIES if Path(path).exists()), None)
    return grpc.ssl_channel_credentials(
        _read(ca, "etcd_cafile") if ca else None,
        _read(tls.key, "etcd_keyfile") if tls.key else None,
        _read(tls.cert, "etcd_certfile") if tls.cert else None,
    )


def _read(path: Path, setting: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        remedy = "Run it as root, or correct its permissions" if isinstance(error, PermissionError) else ""
        raise StoreTLSError(
            f"cannot be read: {error.strerror}", where=str(path), remedy=remedy or f"Correct {setting}"
        ) from None
    if b"-----BEGIN " not in data:
        raise StoreTLSError("is not a PEM file", where=str(path), remedy=f"Correct {setting}")
    return data
