"""Calls that meet a cluster without a leader, against a member that is made of nothing but its answers.

Real elections are met in test_store_etcd.py, which cannot choose the moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from netagent.errors import StoreUnavailable, StoreUnknownOutcome
from netagent.store import etcd
from netagent.store.connection import grpc, pb
from netagent.store.etcd import EtcdStore

CHANGED, NONE = "etcdserver: leader changed", "etcdserver: no leader"


class Member:
    """Answers calls with what is left of `refusals`, the last of them for ever if it is `stubborn`, else properly."""

    def __init__(self, *refusals: str, stubborn: bool = False) -> None:
        self.refusals = list(refusals)
        self.stubborn = stubborn
        self.calls: list[str] = []

    def handlers(self) -> list[Any]:
        return [
            grpc.method_handlers_generic_handler(
                f"etcdserverpb.{service}",
                {
                    method: grpc.unary_unary_rpc_method_handler(
                        self._answer(method, answer), getattr(pb, request).FromString, _serialized
                    )
                },
            )
            for service, method, request, answer in (
                ("KV", "Range", "RangeRequest", pb.RangeResponse(kvs=[pb.KeyValue(key=b"/k", value=b"v")])),
                ("KV", "Put", "PutRequest", pb.PutResponse(header=pb.ResponseHeader(revision=7))),
                ("Maintenance", "Status", "StatusRequest", pb.StatusResponse(version="3.5.0", leader=1)),
            )
        ]

    def _answer(self, method: str, answer: Any) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answered(request: Any, context: Any) -> Any:
            if method == "Status":
                return answer
            self.calls.append(method)
            if self.refusals:
                details = self.refusals[0] if self.stubborn and len(self.refusals) == 1 else self.refusals.pop(0)
                await context.abort(grpc.StatusCode.UNAVAILABLE, details)
            return answer

        return answered


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


@contextlib.asynccontextmanager
async def joined(*members: Member, timeout: float = 30.0) -> AsyncIterator[EtcdStore]:
    """A store with these as its endpoints."""
    async with contextlib.AsyncExitStack() as stack:
        endpoints = []
        for member in members:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers(member.handlers())
            endpoints.append(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            stack.push_async_callback(server.stop, None)
        store = EtcdStore(endpoints, timeout=timeout)
        stack.push_async_callback(store.close)
        yield store


@pytest.mark.parametrize("refusals", [(CHANGED,), (NONE,), (NONE, CHANGED), (NONE, NONE, NONE)])
@pytest.mark.parametrize("members", [1, 2])
async def test_a_read_waits_for_the_leader(refusals: tuple[str, ...], members: int) -> None:
    cluster = [Member(*refusals) for _ in range(members)]
    async with joined(*cluster) as store:
        found = await store.get("/k")
        assert found is not None and found.value == b"v"
        assert store.health().connected
    assert sum(len(member.calls) for member in cluster) > len(refusals)


async def test_a_write_waits_only_where_it_cannot_have_been_carried_out() -> None:
    async with joined(member := Member(NONE, NONE)) as store:
        assert await store.put("/k", b"v") == 7
    assert member.calls == ["Put"] * 3
    async with joined(member := Member(CHANGED)) as store:
        with pytest.raises(StoreUnknownOutcome, match="leader changed"):
            await store.put("/k", b"v")
    assert member.calls == ["Put"]


@pytest.mark.parametrize("timeout", [0.5, 30.0])
async def test_a_cluster_that_stays_without_one_is_told_of(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "ELECTION", 0.5)
    members = [Member(NONE, stubborn=True) for _ in range(2)]
    async with joined(*members, timeout=timeout) as store:
        with pytest.raises(StoreUnavailable, match="no leader: the cluster has no quorum"):
            await store.get("/k")
        assert not store.health().connected
    assert all(member.calls for member in members)


async def test_other_failures_are_met_elsewhere_once() -> None:
    members = [Member("etcdserver: request timed out", stubborn=True) for _ in range(3)]
    async with joined(*members) as store:
        with pytest.raises(StoreUnavailable, match="request timed out"):
            await store.get("/k")
    assert sum(len(member.calls) for member in members) == 2
