"""Following a prefix: the decisions, the driver over the twin, and both over etcd's accidents."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from netagent.errors import StoreCompacted, StoreError, StorePermissionDenied, StoreUnavailable
from netagent.store.base import Batch, Delete, Event, KeyValue, Listing, Put, Store
from netagent.store.etcd import EtcdStore
from netagent.store.follow import Delta, Follower, Resync, follow
from netagent.store.memory import MemoryCluster, MemoryStore
from netagent.store.resume import BACKOFF, Follow, Step
from tests.support.etcd import etcd
from tests.support.proxy import proxy

DEADLINE = 15.0
FIRST, LAST = BACKOFF
DOWN = StoreUnavailable("no answer")


def put(key: str, revision: int) -> Event:
    return Event(False, KeyValue(key, b"", revision, revision, 1))


def listing(revision: int, **keys: int) -> Listing:
    return Listing(revision, tuple(put(key, at).kv for key, at in keys.items()))


def machine(*, jitter: float = 1.0) -> Follow:
    return Follow("/", lambda: jitter)


# ---------------------------------------------------------------------------------------------- decisions


def test_lists_then_watches_from_the_next_revision() -> None:
    follow = machine()
    assert follow.step() == Step("list", "/")
    assert follow.listed(listing(7, a=3), 0.0) == Resync(listing(7, a=3))
    assert follow.step() == Step("watch", "/", 8)
    assert (follow.state.connected, follow.state.alive, follow.state.event) == (False, 0.0, 0.0)
    assert follow.batch(Batch(7, ()), 1.0) is None
    assert (follow.state.connected, follow.state.alive, follow.state.event) == (True, 1.0, 0.0)
    batch = Batch(9, (put("b", 9),))
    assert follow.batch(batch, 2.0) == Delta(9, batch.events)
    assert (follow.state.revision, follow.state.event) == (9, 2.0)


def test_resumes_after_the_last_revision_once_the_history_is_checked() -> None:
    follow = machine()
    follow.listed(listing(7, a=3), 0.0)
    follow.batch(Batch(9, (put("b", 9),)), 1.0)
    follow.failed(DOWN, 2.0)
    assert not follow.state.connected and follow.state.error == "no answer"
    assert follow.step().do == "wait"
    follow.waited()
    assert follow.step() == Step("check", "b", 9)
    follow.checked(listing(9, b=9))
    assert follow.step() == Step("watch", "/", 10)
    follow.batch(Batch(9, ()), 3.0)
    assert follow.state.error == ""


@pytest.mark.parametrize("found", [listing(9), listing(9, b=8), listing(9, bb=9)])
def test_another_history_is_listed_again(found: Listing) -> None:
    follow = machine()
    follow.listed(listing(9, b=9), 0.0)
    follow.failed(DOWN, 1.0)
    follow.waited()
    follow.checked(found)
    assert follow.step() == Step("list", "/")
    assert follow.listed(listing(20, c=20), 2.0).rewound
    assert not follow.listed(listing(21, c=20), 3.0).rewound


def test_a_deleted_key_is_no_anchor() -> None:
    follow = machine()
    follow.listed(listing(7, a=3), 0.0)
    follow.batch(Batch(8, (put("b", 8),)), 1.0)
    follow.batch(Batch(9, (Event(True, KeyValue("b", b"", mod_revision=9)),)), 1.0)
    follow.failed(DOWN, 2.0)
    follow.waited()
    assert follow.step() == Step("check", "a", 9)
    follow.checked(listing(9, a=3))
    assert follow.step() == Step("watch", "/", 10)


def test_an_empty_prefix_must_still_be_empty() -> None:
    follow = machine()
    follow.listed(listing(7), 0.0)
    follow.failed(DOWN, 2.0)
    follow.waited()
    assert follow.step() == Step("check", "/", 7)
    follow.checked(listing(7))
    assert follow.step() == Step("watch", "/", 8)
    follow.failed(DOWN, 2.0)
    follow.waited()
    follow.checked(listing(7, x=6))
    assert follow.step() == Step("list", "/")


def test_compaction_lists_again() -> None:
    follow = machine()
    follow.listed(listing(7, a=3), 0.0)
    follow.failed(StoreCompacted("gone", compact_revision=20), 1.0)
    follow.waited()
    assert follow.step() == Step("list", "/")
    assert follow.listed(listing(25, a=22), 2.0) == Resync(listing(25, a=22), rewound=False)
    assert follow.state.resyncs == 2


def test_a_listing_of_a_lower_revision_is_a_rewind() -> None:
    follow = machine()
    follow.listed(listing(7, a=3), 0.0)
    follow.failed(StoreCompacted("future", compact_revision=0), 1.0)
    follow.waited()
    assert follow.listed(listing(2, a=2), 2.0).rewound
    assert follow.step() == Step("watch", "/", 3)


def test_back_off_grows_to_a_limit_and_success_resets_it() -> None:
    follow = machine()
    delays = []
    for _ in range(12):
        follow.failed(DOWN, 0.0)
        delays.append(follow.step().seconds)
        follow.waited()
    assert delays[0] == FIRST
    assert delays == sorted(delays)
    assert delays[-1] == LAST
    follow.listed(listing(7), 0.0)
    follow.batch(Batch(8, (put("a", 8),)), 0.0)
    follow.failed(DOWN, 0.0)
    assert follow.step().seconds == FIRST


def test_a_watch_that_is_dropped_at_once_is_not_retried_in_a_tight_loop() -> None:
    follow = machine()
    follow.listed(listing(7), 0.0)
    for _ in range(10):
        follow.batch(Batch(7, ()), 0.0)
        follow.failed(DOWN, 0.1)
    assert follow.step().seconds == LAST
    follow.batch(Batch(7, ()), 1.0)
    follow.failed(DOWN, 1.0 + LAST)  # this one lived
    assert follow.step().seconds == FIRST


def test_jitter_halves_at_most() -> None:
    for jitter in (0.0, 0.5, 1.0):
        follow = machine(jitter=jitter)
        follow.failed(DOWN, 0.0)
        assert FIRST / 2 <= follow.step().seconds <= FIRST


# ------------------------------------------------------------------------------------- driver over the twin


async def following(items: Follower, mirror: dict[str, bytes], until: dict[str, bytes]) -> list[Resync | Delta]:
    """Apply what comes to `mirror` until it equals `until`; what came."""
    seen: list[Resync | Delta] = []
    async with asyncio.timeout(DEADLINE):
        while not seen or mirror != until:
            item = await anext(items)
            seen.append(item)
            if isinstance(item, Resync):
                mirror.clear()
                mirror.update({kv.key: kv.value for kv in item.listing.items})
            else:
                assert item.events
                for event in item.events:
                    assert event.kv.mod_revision <= item.revision
                    if event.deleted:
                        mirror.pop(event.kv.key, None)
                    else:
                        mirror[event.kv.key] = event.kv.value
    return seen


@contextlib.asynccontextmanager
async def followed(store: Store) -> AsyncIterator[Follower]:
    items = follow(store, "/s/", backoff=(0.002, 0.05))
    try:
        yield items
    finally:
        await items.aclose()


async def test_a_listing_and_then_changes() -> None:
    store = MemoryStore()
    await store.put("/s/a", b"1")
    await store.put("/t", b"")
    mirror: dict[str, bytes] = {}
    async with followed(store) as items:
        first = await anext(items)
        assert first == Resync(await store.list("/s/"))
        await store.put("/s/b", b"2")
        await store.delete("/s/a")
        await store.put("/t", b"")
        await following(items, mirror, {"/s/b": b"2"})
        assert items.state.connected and items.state.resyncs == 1
    assert store.calls["list"] == 2  # the follower's and the test's


async def test_a_cut_watch_loses_nothing_and_lists_nothing() -> None:
    store = MemoryStore()
    mirror: dict[str, bytes] = {}
    states: list[tuple[bool, str]] = []
    items = follow(store, "/s/", on_state=lambda s: states.append((s.connected, s.error)))
    await store.put("/s/a", b"1")
    await following(items, mirror, {"/s/a": b"1"})
    await store.put("/s/b", b"2")
    await following(items, mirror, {"/s/a": b"1", "/s/b": b"2"})
    store.cut_watches()
    await store.put("/s/c", b"3")
    await store.delete("/s/a")
    seen = await following(items, mirror, {"/s/b": b"2", "/s/c": b"3"})
    assert all(isinstance(item, Delta) for item in seen)
    assert states == [(True, ""), (False, "the watch was cut"), (True, "")]
    assert items.state.failures == 1
    await items.aclose()


async def test_an_outage_of_every_kind_is_ridden_out() -> None:
    cluster = MemoryCluster()
    store, other = MemoryStore(cluster), MemoryStore(cluster)
    mirror: dict[str, bytes] = {}
    async with followed(store) as items:
        await other.put("/s/a", b"1")
        await following(items, mirror, {"/s/a": b"1"})
        store.partition()
        await other.put("/s/b", b"2")
        rejoined = asyncio.get_running_loop().call_later(0.2, store.partition, False)
        assert [type(item) for item in await following(items, mirror, {"/s/a": b"1", "/s/b": b"2"})] == [Delta]
        rejoined.cancel()
        store.fail(StorePermissionDenied("denied"), method="watch", times=2)
        store.fail(DOWN, method="list")
        store.cut_watches()
        await other.put("/s/c", b"3")
        await following(items, mirror, {"/s/a": b"1", "/s/b": b"2", "/s/c": b"3"})
        assert items.state.connected and items.state.error == ""


async def test_compaction_while_cut_off_brings_a_resync() -> None:
    cluster = MemoryCluster()
    store, other = MemoryStore(cluster), MemoryStore(cluster)
    mirror: dict[str, bytes] = {}
    async with followed(store) as items:
        await other.put("/s/a", b"1")
        await following(items, mirror, {"/s/a": b"1"})
        store.partition()
        await other.delete("/s/a")
        await other.put("/s/b", b"2")
        cluster.compact()
        await other.put("/s/c", b"3")
        store.partition(False)
        seen = await following(items, mirror, {"/s/b": b"2", "/s/c": b"3"})
        assert isinstance(seen[0], Resync) and not seen[0].rewound


async def test_a_store_that_is_down_at_the_start() -> None:
    store = MemoryStore()
    store.fail(DOWN, times=3)
    async with followed(store) as items, asyncio.timeout(DEADLINE):
        assert isinstance(await anext(items), Resync)
        assert items.state.failures == 3


@pytest.mark.parametrize("overtaken", [False, True])
async def test_a_wiped_store_brings_a_resync(overtaken: bool) -> None:
    cluster = MemoryCluster()
    store, other = MemoryStore(cluster), MemoryStore(cluster)
    mirror: dict[str, bytes] = {}
    async with followed(store) as items:
        for i in range(20):
            await other.put(f"/s/{i}", b"")
        await following(items, mirror, {f"/s/{i}": b"" for i in range(20)})
        store.partition()
        cluster.wipe()
        wanted = {f"/s/new{i}": b"" for i in range(50 if overtaken else 2)}
        for key in wanted:
            await other.put(key, b"")
        store.partition(False)
        seen = await following(items, mirror, wanted)
        assert isinstance(seen[0], Resync) and seen[0].rewound


async def test_a_burst_comes_as_few_deltas_and_in_order() -> None:
    store = MemoryStore()
    async with followed(store) as items:
        await anext(items)
        await store.put("/s/first", b"")
        assert isinstance(await anext(items), Delta)
        for i in range(500):
            await store.put(f"/s/{i}", b"")
        deltas: list[Delta] = []
        async with asyncio.timeout(DEADLINE):
            while sum(len(delta.events) for delta in deltas) < 500:
                delta = await anext(items)
                assert isinstance(delta, Delta)
                deltas.append(delta)
        assert len(deltas) < 20
        events = [event.kv.key for delta in deltas for event in delta.events]
        assert events == [f"/s/{i}" for i in range(500)]
        assert deltas[-1].revision == items.state.revision == 502


async def test_closing_leaves_no_watch_behind() -> None:
    store = MemoryStore()
    items = follow(store, "/")
    await anext(items)
    await store.put("/a", b"")
    await anext(items)
    waiting = asyncio.create_task(items.__anext__())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await items.aclose()
    assert store.cluster.watches == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_fault_in_the_store_itself_is_not_hidden() -> None:
    class Broken(MemoryStore):
        async def watch(self, prefix: str, revision: int):  # type: ignore[no-untyped-def]
            yield Batch(revision - 1, ())
            raise ZeroDivisionError

    items = follow(Broken(), "/")
    await anext(items)
    with pytest.raises(ZeroDivisionError):
        await anext(items)


async def test_errors_of_the_consumer_are_its_own() -> None:
    store = MemoryStore()
    items = follow(store, "/")
    with pytest.raises(StoreError, match="mine"):
        async for _ in items:
            raise StoreUnavailable("mine")
    await items.aclose()


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_the_mirror_ends_equal(seed: int) -> None:
    """Random writes and accidents: what is followed equals what is stored in the end."""
    dice = random.Random(seed)
    cluster = MemoryCluster()
    store, other = MemoryStore(cluster), MemoryStore(cluster)
    mirror: dict[str, bytes] = {}

    async def accidents() -> dict[str, bytes]:
        for _ in range(60):
            key = f"/s/{dice.randrange(8)}"
            match dice.randrange(9):
                case 0:
                    store.cut_watches()
                case 1:
                    store.partition()
                case 2:
                    store.partition(False)
                case 3:
                    store.fail(DOWN)
                case 4 if dice.random() < 0.3:
                    cluster.wipe()
                case 5 if dice.random() < 0.3:
                    cluster.compact()
                case 6:
                    await other.delete(key)
                case 7:
                    await other.txn([], [Put(key, b"t"), Delete("/s/x"), Put("/s/y", key.encode())])
                case _:
                    await other.put(key, b"%d" % dice.randrange(100))
            await asyncio.sleep(dice.choice((0, 0, 0.001, 0.01)))
        store.partition(False)
        await other.put("/s/end", b"")
        return {kv.key: kv.value for kv in (await other.list("/s/")).items}

    async with followed(store) as items:
        task = asyncio.create_task(accidents())
        pump = asyncio.create_task(following(items, mirror, {"/s/never": b""}))
        wanted = await task
        async with asyncio.timeout(DEADLINE):
            while mirror != wanted:
                assert not pump.done()
                await asyncio.sleep(0.005)
        pump.cancel()
        await asyncio.wait([pump])


# -------------------------------------------------------------------------------------------- over real etcd


@pytest.mark.etcd
async def test_etcd_killed_compacted_and_wiped_under_a_follower() -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(etcd())
        middle = await stack.enter_async_context(proxy("127.0.0.1", server.port))
        store, other = EtcdStore([middle.endpoint]), EtcdStore([server.endpoint])
        stack.push_async_callback(store.close)
        stack.push_async_callback(other.close)
        items = await stack.enter_async_context(followed(store))
        mirror: dict[str, bytes] = {}

        await other.put("/s/a", b"1")
        await following(items, mirror, {"/s/a": b"1"})

        wanted = {"/s/a": b"1", "/s/b": b"2"}
        waiting = asyncio.create_task(following(items, mirror, wanted))
        await server.restart()
        await other.put("/s/b", b"2")
        assert {type(item) for item in await waiting} == {Delta}  # nothing was listed again

        waiting = asyncio.create_task(following(items, mirror, {"/s/b": b"2", "/s/c": b"3"}))
        middle.block()
        await other.delete("/s/a")
        await server.compact(await other.put("/s/c", b"3"))
        middle.unblock()
        (resync,) = await waiting
        assert isinstance(resync, Resync) and not resync.rewound

        waiting = asyncio.create_task(following(items, mirror, {"/s/new": b"1"}))
        await server.wipe()
        await other.put("/s/new", b"1")
        assert any(isinstance(item, Resync) and item.rewound for item in await waiting)

        # wiped, and written to beyond the revision that the follower knows, before it is back
        wanted = {f"/s/{i}": b"" for i in range(20)}
        waiting = asyncio.create_task(following(items, mirror, wanted))
        middle.block()
        known = items.state.revision
        await server.wipe()
        for key in wanted:
            await other.put(key, b"")
        assert (await other.list("/")).revision > known + 1
        middle.unblock()
        seen = await waiting
        assert isinstance(seen[0], Resync) and seen[0].rewound
