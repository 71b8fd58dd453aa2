"""One contract for every store: the same tests on the twin in memory and on a real etcd.

`store` is a client of an empty store; `admin` does to it what no client can: compact, wipe, let a lease expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Iterable

import pytest

from netagent.errors import LeaseNotFound, StoreCompacted, StoreError
from netagent.store.base import Batch, Compare, Delete, Event, Get, KeyValue, Put, Store
from netagent.store.etcd import EtcdStore
from netagent.store.memory import MemoryStore
from tests.support.etcd import Etcd, etcd

DEADLINE = 10.0


class MemoryAdmin:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    async def compact(self, revision: int) -> None:
        self.store.compact(revision)

    async def wipe(self) -> None:
        self.store.wipe()

    async def expire(self, ttl: int) -> None:
        self.store.advance(ttl)


class EtcdAdmin:
    def __init__(self, server: Etcd) -> None:
        self.server = server

    async def compact(self, revision: int) -> None:
        await self.server.compact(revision)

    async def wipe(self) -> None:
        await self.server.wipe()

    async def expire(self, ttl: int) -> None:
        await asyncio.sleep(ttl)


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, MemoryAdmin | EtcdAdmin]]:
    if request.param == "memory":
        memory = MemoryStore()
        yield memory, MemoryAdmin(memory)
        await memory.close()
        return
    async with etcd() as server:
        store = EtcdStore([server.endpoint])
        yield store, EtcdAdmin(server)
        await store.close()


@pytest.fixture
def store(pair: tuple[Store, MemoryAdmin | EtcdAdmin]) -> Store:
    return pair[0]


@pytest.fixture
def admin(pair: tuple[Store, MemoryAdmin | EtcdAdmin]) -> MemoryAdmin | EtcdAdmin:
    return pair[1]


async def events(store: Store, prefix: str, revision: int, count: int) -> list[Event]:
    """The first `count` events of a watch, with the rules of batches checked on the way."""
    found: list[Event] = []
    last = revision - 1
    async with asyncio.timeout(DEADLINE), contextlib.aclosing(store.watch(prefix, revision)) as batches:
        assert await anext(batches) == Batch(revision - 1, ())
        async for batch in batches:
            assert batch.revision >= last
            assert all(last < event.kv.mod_revision <= batch.revision for event in batch.events)
            last = batch.revision
            found += batch.events
            if len(found) >= count:
                return found
    raise AssertionError("the watch ended")


async def until_gone(store: Store, key: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while await store.get(key) is not None:
            await asyncio.sleep(0.02)


def keys(items: Iterable[KeyValue]) -> list[str]:
    return [kv.key for kv in items]


async def test_a_new_store_is_empty_and_at_revision_1(store: Store) -> None:
    listing = await store.list("/")
    assert listing == (1, ())
    assert await store.get("/a") is None


async def test_put_counts_revisions_and_versions(store: Store) -> None:
    assert await store.put("/a", b"1") == 2
    assert await store.put("/b", b"2") == 3
    assert await store.put("/a", b"3") == 4
    assert await store.get("/a") == KeyValue("/a", b"3", 2, 4, 2, 0)
    assert await store.list("/") == (4, (KeyValue("/a", b"3", 2, 4, 2, 0), KeyValue("/b", b"2", 3, 3, 1, 0)))


async def test_a_key_deleted_and_put_again_is_created_anew(store: Store) -> None:
    await store.put("/a", b"1")
    assert await store.delete("/a") == 1
    await store.put("/a", b"2")
    assert await store.get("/a") == KeyValue("/a", b"2", 4, 4, 1, 0)


async def test_list_takes_a_prefix_and_sorts(store: Store) -> None:
    for key in ("/s/b", "/s/a", "/s", "/t", "/s/a/x"):
        await store.put(key, b"")
    assert keys((await store.list("/s/")).items) == ["/s/a", "/s/a/x", "/s/b"]
    assert keys((await store.list("/s")).items) == ["/s", "/s/a", "/s/a/x", "/s/b"]
    assert keys((await store.list("")).items) == ["/s", "/s/a", "/s/a/x", "/s/b", "/t"]


async def test_list_at_an_old_revision(store: Store, admin: MemoryAdmin | EtcdAdmin) -> None:
    await store.put("/a", b"1")
    await store.put("/b", b"1")
    await store.delete("/a")
    await store.put("/b", b"2")
    assert await store.list("/", revision=3) == (
        3,
        (KeyValue("/a", b"1", 2, 2, 1), KeyValue("/b", b"1", 3, 3, 1)),
    )
    await admin.compact(4)
    assert keys((await store.list("/", revision=4)).items) == ["/b"]
    with pytest.raises(StoreCompacted):
        await store.list("/", revision=3)


async def test_list_at_a_revision_still_to_come_says_that_the_history_is_gone(store: Store) -> None:
    with pytest.raises(StoreCompacted):
        await store.list("/", revision=99)


async def test_values_are_any_bytes_and_keys_any_text(store: Store) -> None:
    value = bytes(range(256)) * 300
    await store.put("/subnets/10.5.1.0-24&fc00::-64 \N{SNOWMAN}", value)
    (kv,) = (await store.list("/subnets/")).items
    assert kv.key == "/subnets/10.5.1.0-24&fc00::-64 \N{SNOWMAN}"
    assert kv.value == value


async def test_delete_of_a_prefix_is_one_revision(store: Store) -> None:
    for key in ("/s/a", "/s/b", "/t"):
        await store.put(key, b"")
    assert await store.delete("/s/", prefix=True) == 2
    assert await store.list("/") == (5, (KeyValue("/t", b"", 4, 4, 1),))
    assert await store.delete("/s/", prefix=True) == 0
    assert (await store.list("/")).revision == 5  # nothing deleted, nothing happened


async def test_txn_claims_a_key_once(store: Store) -> None:
    absent = Compare("/lease", "create", "=", 0)
    won = await store.txn([absent], [Put("/lease", b"me"), Put("/owner", b"me")], [Get("/lease")])
    assert (won.succeeded, won.revision, won.gets) == (True, 2, ())
    lost = await store.txn([absent], [Put("/lease", b"you")], [Get("/lease"), Get("/", prefix=True)])
    assert (lost.succeeded, lost.revision) == (False, 2)
    assert [keys(found) for found in lost.gets] == [["/lease"], ["/lease", "/owner"]]
    assert lost.gets[0][0].value == b"me"


async def test_txn_puts_share_a_revision(store: Store) -> None:
    await store.txn([], [Put("/a", b"1"), Put("/b", b"1"), Delete("/none")])
    a, b = (await store.list("/")).items
    assert (a.mod_revision, b.mod_revision) == (2, 2)


@pytest.mark.parametrize(
    ("target", "equal", "less"),
    [("create", 2, 1), ("mod", 3, 2), ("version", 2, 1), ("value", b"two", b"abc"), ("lease", 0, -1)],
)
async def test_every_guard_compares(store: Store, target: str, equal: int | bytes, less: int | bytes) -> None:
    await store.put("/k", b"one")
    await store.put("/k", b"two")

    async def holds(op: str, value: int | bytes, key: str = "/k") -> bool:
        return (await store.txn([Compare(key, target, op, value)], [], [])).succeeded

    assert await holds("=", equal)
    assert not await holds("=", less)
    assert await holds("!=", less)
    assert not await holds("!=", equal)
    assert await holds(">", less)
    assert not await holds(">", equal)
    assert not await holds("<", equal)
    absent = b"" if target == "value" else 0
    assert await holds("=", absent, "/none") is (target != "value")


async def test_txn_guards_are_all_needed(store: Store) -> None:
    await store.put("/a", b"")
    guards = [Compare("/a", "create", ">", 0), Compare("/b", "create", ">", 0)]
    assert not (await store.txn(guards, [Put("/c", b"")])).succeeded
    assert await store.get("/c") is None


async def test_txn_refuses_what_etcd_refuses(store: Store) -> None:
    with pytest.raises(StoreError, match="duplicate key"):
        await store.txn([], [Put("/a", b"1"), Put("/a", b"2")])
    with pytest.raises(StoreError, match="duplicate key"):
        await store.txn([], [Put("/a/b", b"1"), Delete("/a/", prefix=True)])
    with pytest.raises(StoreError, match="too many operations"):
        await store.txn([], [Put(f"/{i}", b"") for i in range(129)])
    assert (await store.list("/")).revision == 1


async def test_a_lease_takes_its_keys_with_it(store: Store, admin: MemoryAdmin | EtcdAdmin) -> None:
    grant = await store.grant(1)
    assert grant.id
    await store.txn([], [Put("/a", b"", grant.id), Put("/b", b"", grant.id), Put("/c", b"")])
    kv = await store.get("/a")
    assert kv is not None and kv.lease == grant.id
    await admin.expire(grant.ttl)
    await until_gone(store, "/a")
    assert keys((await store.list("/")).items) == ["/c"]
    with pytest.raises(LeaseNotFound):
        await store.keepalive(grant.id)
    with pytest.raises(LeaseNotFound):
        await store.time_to_live(grant.id)
    with pytest.raises(LeaseNotFound):
        await store.put("/d", b"", lease=grant.id)


async def test_keepalive_renews(store: Store) -> None:
    grant = await store.grant(60)
    assert grant.ttl == 60
    assert await store.keepalive(grant.id) == 60
    assert 55 <= await store.time_to_live(grant.id) <= 60


async def test_revoke_deletes_at_once_and_in_one_revision(store: Store) -> None:
    grant = await store.grant(60)
    await store.put("/a", b"", lease=grant.id)
    await store.put("/b", b"", lease=grant.id)
    await store.revoke(grant.id)
    assert await store.list("/") == (4, ())
    with pytest.raises(LeaseNotFound):
        await store.revoke(grant.id)
    with pytest.raises(LeaseNotFound):
        await store.keepalive(12345)


async def test_a_key_put_without_lease_leaves_its_lease(store: Store) -> None:
    grant = await store.grant(60)
    await store.put("/a", b"", lease=grant.id)
    await store.put("/a", b"")
    await store.revoke(grant.id)
    assert await store.get("/a") == KeyValue("/a", b"", 2, 3, 2, 0)


async def test_watch_gives_the_past_and_the_present(store: Store) -> None:
    await store.put("/s/a", b"1")
    await store.put("/t", b"")
    await store.put("/s/a", b"2")
    task = asyncio.create_task(events(store, "/s/", 2, 5))
    await asyncio.sleep(0)
    await store.delete("/s/a")
    await store.txn([], [Put("/s/b", b"3"), Put("/s/c", b"4"), Put("/u", b"")])
    found = await task
    assert [(e.deleted, e.kv.key, e.kv.value, e.kv.mod_revision) for e in found] == [
        (False, "/s/a", b"1", 2),
        (False, "/s/a", b"2", 4),
        (True, "/s/a", b"", 5),
        (False, "/s/b", b"3", 6),
        (False, "/s/c", b"4", 6),
    ]
    assert found[1].kv == KeyValue("/s/a", b"2", 2, 4, 2, 0)


async def test_watch_starts_after_a_listing(store: Store) -> None:
    await store.put("/a", b"")
    listing = await store.list("/")
    await store.put("/b", b"")
    assert [event.kv.key for event in await events(store, "/", listing.revision + 1, 1)] == ["/b"]


async def test_several_watches_see_all(store: Store) -> None:
    tasks = [asyncio.create_task(events(store, "/", 2, 50)) for _ in range(5)]
    for i in range(50):
        await store.put(f"/{i:02}", b"")
    for task in tasks:
        assert [event.kv.key for event in await task] == [f"/{i:02}" for i in range(50)]


async def test_watch_of_an_expiring_lease(store: Store, admin: MemoryAdmin | EtcdAdmin) -> None:
    grant = await store.grant(1)
    await store.put("/a", b"", lease=grant.id)
    task = asyncio.create_task(events(store, "/", 3, 1))
    await asyncio.sleep(0)
    await admin.expire(grant.ttl)
    (event,) = await task
    assert event.deleted and event.kv.key == "/a"


async def test_watch_of_a_compacted_revision(store: Store, admin: MemoryAdmin | EtcdAdmin) -> None:
    for i in range(5):
        await store.put("/a", b"%d" % i)
    await admin.compact(4)
    with pytest.raises(StoreCompacted) as caught:
        await events(store, "/", 3, 1)
    assert caught.value.compact_revision == 4
    assert len(await events(store, "/", 5, 2)) == 2


async def test_watch_notices_that_the_store_was_wiped(store: Store, admin: MemoryAdmin | EtcdAdmin) -> None:
    for _ in range(5):
        await store.put("/a", b"")
    watch = store.watch("/", 7)
    async with contextlib.aclosing(watch), asyncio.timeout(DEADLINE):
        assert await anext(watch) == (6, ())
        await admin.wipe()
        with pytest.raises(StoreError):
            await anext(watch)
    with pytest.raises(StoreCompacted, match="wiped"):
        await events(store, "/", 7, 1)


async def test_health_follows_the_calls(store: Store) -> None:
    assert not store.health().connected
    await store.get("/a")
    health = store.health()
    assert health.connected and health.error == "" and health.endpoint in health.endpoints and health.version
    await store.close()
    assert not store.health().connected
    with pytest.raises(StoreError, match="closed"):
        await store.get("/a")


async def test_close_ends_watches(store: Store) -> None:
    watch = store.watch("/", 2)
    async with contextlib.aclosing(watch), asyncio.timeout(DEADLINE):
        await anext(watch)
        reading = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreError):
            await reading


async def test_ten_thousand_keys_in_one_listing(store: Store) -> None:
    names = [f"/s/{i:05}" for i in range(10_500)]
    for i in range(0, len(names), 125):
        await store.txn([], [Put(name, name.encode() * 10) for name in names[i : i + 125]])
    listing = await store.list("/s/")
    assert keys(listing.items) == names
    assert listing.revision == 85
    assert all(kv.value == kv.key.encode() * 10 for kv in listing.items)


@pytest.mark.etcd
@pytest.mark.parametrize("seed", range(3))
async def test_the_twin_and_etcd_agree_on_any_history(seed: int) -> None:
    """The same random operations on both: every answer, the listings of every revision and the watch are equal."""
    dice = random.Random(seed)
    names = [f"/s/{letter}" for letter in "abcdef"]

    def compare() -> Compare:
        target = dice.choice(("create", "mod", "version", "value"))
        value: int | bytes = dice.choice((b"0", b"1")) if target == "value" else dice.randrange(12)
        return Compare(dice.choice(names), target, dice.choice(("=", "!=", "<", ">")), value)

    def request() -> Put | Delete | Get:
        match dice.randrange(4):
            case 0:
                return Delete(dice.choice(names))
            case 1:
                return Get(dice.choice((*names, "/s/")), prefix=dice.random() < 0.5)
            case _:
                return Put(dice.choice(names), b"%d" % dice.randrange(2))

    async def outcome(call: Awaitable[object]) -> object:
        try:
            return await call
        except StoreError as error:
            return type(error)

    async with etcd() as server:
        real, twin = EtcdStore([server.endpoint]), MemoryStore()
        for _ in range(120):
            guards = [compare() for _ in range(dice.randrange(3))]
            success, failure = ([request() for _ in range(dice.randrange(4))] for _ in range(2))
            name = dice.choice(names)
            match dice.randrange(4):
                case 0:
                    calls = [store.put(name, b"p") for store in (real, twin)]
                case 1:
                    calls = [store.delete("/s/", prefix=True) for store in (real, twin)]
                case _:
                    calls = [store.txn(guards, success, failure) for store in (real, twin)]  # type: ignore[misc]
            assert await outcome(calls[0]) == await outcome(calls[1]), (guards, success, failure)
        last = (await twin.list("/")).revision
        for revision in range(1, last + 1):
            assert await real.list("/", revision=revision) == await twin.list("/", revision=revision)
        count = sum(1 for batch in twin.cluster.history for _ in batch.events)
        assert await events(real, "/", 2, count) == await events(twin, "/", 2, count)
        await real.close()
