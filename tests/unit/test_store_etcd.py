"""The store against real etcd processes that are stopped, killed, cut off, full of users, or behind TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netagent.errors import (
    StoreAuthError,
    StoreError,
    StorePermissionDenied,
    StoreTLSError,
    StoreUnavailable,
    StoreUnknownOutcome,
)
from netagent.store.base import Batch, Compare, Put
from netagent.store.endpoints import TLS
from netagent.store.etcd import EtcdStore
from tests.support.certs import Authority
from tests.support.etcd import Cluster, Etcd, ServerTLS, etcd, etcd_cluster
from tests.support.proxy import proxy

pytestmark = pytest.mark.etcd

DEADLINE = 30.0


@contextlib.asynccontextmanager
async def opened(*endpoints: str, **options: object) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints, **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def watching(store: EtcdStore, prefix: str = "/", revision: int = 1) -> AsyncIterator[asyncio.Task[StoreError]]:
    """A watch that stands; the task ends with the error that ends the watch."""
    accepted = asyncio.Event()

    async def read() -> StoreError:
        try:
            async with contextlib.aclosing(store.watch(prefix, revision)) as batches:
                async for _ in batches:
                    accepted.set()
        except StoreError as error:
            return error
        raise AssertionError("the watch ended without an error")

    task = asyncio.create_task(read())
    try:
        async with asyncio.timeout(DEADLINE):
            await accepted.wait()
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def in_use(store: EtcdStore, cluster: Cluster) -> Etcd:
    await store.get("/")
    return next(member for member in cluster.members if member.endpoint == store.health().endpoint)


async def until_down(store: EtcdStore) -> str:
    async with asyncio.timeout(DEADLINE):
        while store.health().connected:
            await asyncio.sleep(0.02)
    return store.health().error


# ----------------------------------------------------------------------- 1. a stopped server is found by pings


async def test_a_stopped_server_is_found_without_a_call() -> None:
    async with etcd() as server, opened(server.endpoint, progress=60.0) as store, watching(store) as watch:
        server.pause()
        async with asyncio.timeout(DEADLINE):
            error = await watch
        assert isinstance(error, StoreUnavailable)
        assert "ping timeout" in str(error)
        assert not store.health().connected
        with pytest.raises(StoreUnavailable, match="no answer within"):
            await store.get("/", timeout=0.3)
        server.resume()
        assert await store.get("/") is None
        assert store.health().connected


# ----------------------------------------------------------------------------------------------- 2. failover


async def test_failover_after_sigkill_and_sigstop() -> None:
    async with etcd_cluster() as cluster, opened(*cluster.endpoints, timeout=3.0) as store:
        await store.put("/k", b"v")
        first = await in_use(store, cluster)
        await first.kill()
        assert await store.get("/k") is not None  # within its own time-out
        second = await in_use(store, cluster)
        assert second is not first
        await first.start()
        second.pause()
        kv = await store.get("/k")  # half of the deadline here, half elsewhere
        assert kv is not None and kv.value == b"v"
        assert await in_use(store, cluster) is not second
        second.resume()


async def test_an_idle_client_notices_a_killed_server_and_its_return() -> None:
    async with etcd() as server, opened(server.endpoint) as store:
        await store.put("/k", b"v")
        await server.kill()
        assert "the connection is lost" in await until_down(store)
        with pytest.raises(StoreUnavailable, match="connection refused"):
            await store.put("/k", b"w")  # it was not sent, and that is known
        await server.start()
        kv = await store.get("/k")
        assert kv is not None and kv.value == b"v"


async def test_an_endpoint_that_accepts_and_never_answers_costs_its_share_only() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with etcd() as server:
            dead = f"http://127.0.0.1:{silent.getsockname()[1]}"
            for endpoints in ((dead, server.endpoint), (server.endpoint, dead)):
                async with opened(*endpoints, timeout=2.0) as store:
                    assert await store.put("/k", b"v") > 1
                    assert store.health().endpoint == server.endpoint


# ------------------------------------------------------------------------------------------------- 3, 4. TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def server_tls(
    authority: Authority, *, client_cert: bool = False, name: str = "server", **kwargs: object
) -> ServerTLS:
    pair = authority.issue(name, **{"hosts": ("127.0.0.1", "localhost"), **kwargs})  # type: ignore[arg-type]
    return ServerTLS(authority, pair, client_cert)


async def test_several_tls_endpoints_with_failover(authority: Authority) -> None:
    tls = server_tls(authority)
    async with etcd_cluster(tls=tls) as cluster, opened(*cluster.endpoints, tls=TLS(ca=authority.ca)) as store:
        await store.put("/k", b"v")
        used = await in_use(store, cluster)
        await used.kill()
        assert await store.get("/k") is not None
        assert await in_use(store, cluster) is not used


async def test_tls_by_host_name_and_by_another_name(authority: Authority) -> None:
    tls = ServerTLS(authority, authority.issue("named", hosts=("localhost", "etcd.example")))
    async with etcd(tls=tls) as server:
        async with opened(f"https://localhost:{server.port}", tls=TLS(ca=authority.ca)) as store:
            await store.put("/k", b"v")
        async with opened(server.endpoint, tls=TLS(ca=authority.ca, server_name="etcd.example")) as store:
            await store.put("/k", b"v")
        async with opened(server.endpoint, tls=TLS(ca=authority.ca)) as store:
            with pytest.raises(StoreTLSError, match=r"not trusted.*127\.0\.0\.1"):
                await store.get("/k")


async def test_client_certificate(authority: Authority) -> None:
    async with etcd(tls=server_tls(authority, client_cert=True)) as server:
        client = authority.issue("client")
        async with opened(server.endpoint, tls=TLS(authority.ca, client.cert, client.key)) as store:
            await store.put("/k", b"v")
        async with opened(server.endpoint, tls=TLS(authority.ca)) as store:
            with pytest.raises(StoreTLSError) as caught:
                await store.get("/k")
            assert "demands a client certificate and none is given" in str(caught.value)
            assert "etcd_certfile" in caught.value.remedy
            assert store.health().error == str(caught.value)
            (status,) = await store.probe()
            assert "demands a client certificate" in status.error
        stranger = Authority(authority.directory / "other", "another CA").issue("stranger")
        async with opened(server.endpoint, tls=TLS(authority.ca, stranger.cert, stranger.key)) as store:
            with pytest.raises(StoreTLSError, match="refuses our client certificate"):
                await store.get("/k")


async def test_what_tls_mistakes_look_like(authority: Authority, tmp_path: Path) -> None:
    async with etcd(tls=server_tls(authority)) as server:
        other = Authority(tmp_path / "other", "another CA")
        async with opened(server.endpoint, tls=TLS(ca=other.ca)) as store:
            with pytest.raises(StoreTLSError, match="not trusted") as caught:
                await store.get("/k")
            assert "etcd_cafile" in caught.value.remedy
        async with opened(server.endpoint.replace("https", "http")) as store:
            with pytest.raises(StoreTLSError, match="speaks TLS") as caught:
                await store.get("/k")
            assert "https://" in caught.value.remedy
        async with opened(server.endpoint, tls=TLS(ca=tmp_path / "none.pem")) as store:
            with pytest.raises(StoreTLSError, match=r"none\.pem: cannot be read"):
                await store.get("/k")
    expired = server_tls(authority, name="expired", expired=True)
    async with etcd(tls=expired) as server, opened(server.endpoint, tls=TLS(ca=authority.ca)) as store:
        with pytest.raises(StoreTLSError, match="expired"):
            await store.get("/k")
    async with etcd() as server, opened(server.endpoint.replace("http", "https"), tls=TLS(ca=authority.ca)) as store:
        with pytest.raises(StoreTLSError, match="speaks plain http"):
            await store.get("/k")


async def test_renewed_certificates_are_read_at_the_next_connection(authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority(tmp_path / "old").ca.read_bytes())
    async with etcd(tls=server_tls(authority)) as server, opened(server.endpoint, tls=TLS(ca=ca)) as store:
        with pytest.raises(StoreTLSError):
            await store.get("/k")
        ca.write_bytes(authority.ca.read_bytes())
        assert await store.get("/k") is None
        assert store.health().error == ""


# ---------------------------------------------------------------------------- 6. quorum, and proof of life


async def test_a_watch_on_a_member_without_quorum_ends() -> None:
    async with etcd_cluster() as cluster, opened(*cluster.endpoints, timeout=3.0) as store, watching(store) as watch:
        survivor = await in_use(store, cluster)
        for member in cluster.members:
            if member is not survivor:
                await member.kill()
        async with asyncio.timeout(DEADLINE):
            error = await watch
        assert isinstance(error, StoreUnavailable)
        with pytest.raises(StoreUnavailable, match=r"no leader|no quorum"):
            await store.get("/k")
        with pytest.raises(StoreUnavailable):
            await store.put("/k", b"v")
        assert not store.health().connected
        statuses = {status.endpoint: status for status in await store.probe()}
        assert statuses[survivor.endpoint].version and not statuses[survivor.endpoint].has_leader
        assert sum("connection refused" in status.error for status in statuses.values()) == 2
        for member in cluster.members:
            if member is not survivor:
                await member.start(wait=False)
        async with asyncio.timeout(DEADLINE):
            while True:
                with contextlib.suppress(StoreUnavailable, StoreUnknownOutcome):
                    await store.put("/k", b"v")
                    break
        kv = await store.get("/k")
        assert kv is not None and kv.value == b"v"


async def test_a_member_cut_off_from_the_quorum_is_left_for_another() -> None:
    async with etcd_cluster() as cluster, opened(*cluster.endpoints, timeout=4.0) as store:
        await store.put("/k", b"v")
        lone = await in_use(store, cluster)
        others = [member for member in cluster.members if member is not lone]
        for member in others:  # the lone member loses its leader, then the others come back without it
            await member.kill()
        with pytest.raises(StoreError):
            await store.get("/k", timeout=1.0)
        lone.pause()
        for member in others:
            await member.start(wait=False)
        for member in others:
            await member.serving()
        kv = await store.get("/k")
        assert kv is not None
        assert store.health().endpoint in {member.endpoint for member in others}
        lone.resume()


async def test_progress_proves_an_idle_watch() -> None:
    async with etcd() as server, opened(server.endpoint, progress=0.2, timeout=3) as store:
        revision = await store.put("/elsewhere", b"")
        async with contextlib.aclosing(store.watch("/s/", revision)) as batches, asyncio.timeout(DEADLINE):
            for _ in range(4):  # accepted, then proofs of life; none may claim a revision that was not complete
                assert await anext(batches) == Batch(revision - 1, ())
            await store.put("/s/a", b"")
            while not (batch := await anext(batches)).events:
                pass
            assert batch.revision == revision + 1
            server.pause()
            with pytest.raises(StoreUnavailable, match="no sign of life"):
                while True:
                    await anext(batches)
        server.resume()


# ----------------------------------------------------------------------------------- 7. users and passwords

USERS = {"agent": ("secret", {"/net/": "readwrite"}), "reader": ("r", {"/net/": "read"})}


async def test_authentication_and_permissions() -> None:
    async with etcd() as server:
        await server.ctl("put", "/net/a", "1")
        await server.enable_auth(users=USERS)
        async with opened(server.endpoint, user="agent", password_source=lambda: "secret") as store:
            await store.put("/net/k", b"v")
            assert len((await store.list("/net/")).items) == 2
            grant = await store.grant(60)
            assert await store.keepalive(grant.id) == 60
            for call in (store.get("/other"), store.list("/"), store.put("/other", b""), store.delete("/other")):
                with pytest.raises(StorePermissionDenied) as caught:
                    await call
                assert "grant-permission" in caught.value.remedy
            with pytest.raises(StorePermissionDenied):
                await anext(store.watch("/other/", 1))
            assert store.health().connected  # the connection is not at fault
            async with watching(store, "/net/") as watch:
                await store.put("/net/k", b"w")
                assert not watch.done()
        async with opened(server.endpoint, user="reader", password_source=lambda: "r") as store:
            with pytest.raises(StorePermissionDenied):
                await store.txn([Compare("/net/k", "create", "=", 0)], [Put("/net/k", b"")])
        async with opened(server.endpoint) as store:
            with pytest.raises(StoreAuthError, match="demands a user"):
                await store.get("/net/k")
        async with opened(server.endpoint, user="agent", password_source=lambda: "wrong") as store:
            with pytest.raises(StoreAuthError, match="refuses user or password"):
                await store.get("/net/k")
            assert "refuses user or password" in store.health().error


async def test_a_user_where_etcd_wants_none_and_later_does() -> None:
    async with etcd() as server, opened(server.endpoint, user="agent", password_source=lambda: "secret") as store:
        await store.put("/net/k", b"v")
        await server.enable_auth(users=USERS)
        await store.put("/net/k", b"w")
        assert (await store.list("/net/")).items[0].value == b"w"


async def test_an_expired_token_is_renewed_unseen() -> None:
    async with etcd(token_ttl=1) as server:
        await server.enable_auth(users=USERS)
        asked: list[None] = []

        def password() -> str:
            asked.append(None)
            return "secret"

        async with opened(server.endpoint, user="agent", password_source=password) as store:
            await store.put("/net/k", b"v")
            assert len(asked) == 1
            await asyncio.sleep(2.5)
            await store.put("/net/k", b"w")  # a write: refused for its token it was not carried out
            assert len(asked) == 2
            await asyncio.sleep(2.5)
            async with watching(store, "/net/"):  # etcd 3.4 calls an expired token "permission denied" here
                assert len(asked) == 3
            await server.restart()
            assert (await store.get("/net/k")) is not None


async def test_a_changed_password_is_read_anew() -> None:
    async with etcd() as server:
        await server.enable_auth(users=USERS)
        current = "secret"
        async with opened(server.endpoint, user="agent", password_source=lambda: current) as store:
            await store.put("/net/k", b"v")
            await server.ctl("user", "delete", "agent", user="root:root")  # its tokens go with it
            await server.ctl("user", "add", "agent:fresh", user="root:root")
            await server.ctl("user", "grant-role", "agent", "agent", user="root:root")
            with pytest.raises(StoreAuthError):
                await store.get("/net/k")
            current = "fresh"
            assert await store.get("/net/k") is not None


async def test_many_calls_share_one_authentication() -> None:
    async with etcd() as server:
        await server.enable_auth(users=USERS)
        asked: list[None] = []

        def password() -> str:
            asked.append(None)
            return "secret"

        async with opened(server.endpoint, user="agent", password_source=password) as store:
            await asyncio.gather(*(store.put(f"/net/{i}", b"") for i in range(20)))
            assert len(asked) == 1


# ------------------------------------------------------------------------------ 8. writes of unknown outcome


async def test_a_write_whose_reply_is_lost_has_an_unknown_outcome() -> None:
    async with etcd() as server, proxy("127.0.0.1", server.port) as middle:
        endpoint = f"http://127.0.0.1:{middle.port}"
        async with opened(endpoint) as store, opened(server.endpoint) as direct:
            await store.put("/k", b"0")
            middle.hold()
            with pytest.raises(StoreUnknownOutcome):
                await store.put("/k", b"1", timeout=0.5)
            kv = await direct.get("/k")
            assert kv is not None and kv.value == b"1"  # it did happen

            write = asyncio.create_task(store.txn([], [Put("/k", b"2")]))
            async with asyncio.timeout(DEADLINE):
                while (kv := await direct.get("/k")) is None or kv.value != b"2":
                    await asyncio.sleep(0.01)
            middle.cut()
            with pytest.raises(StoreUnknownOutcome):
                await write
            middle.release()
            kv = await store.get("/k")  # read back
            assert kv is not None and kv.value == b"2"


async def test_a_read_is_repeated_after_a_broken_connection() -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(etcd())
        middle = await stack.enter_async_context(proxy("127.0.0.1", server.port))
        store = await stack.enter_async_context(opened(f"http://127.0.0.1:{middle.port}"))
        await store.put("/k", b"0")
        middle.hold()
        sent = middle.forwarded
        read = asyncio.create_task(store.get("/k"))
        async with asyncio.timeout(DEADLINE):
            await middle.sent(sent + 1)
        middle.cut()
        middle.release()
        kv = await read
        assert kv is not None and kv.value == b"0"


async def test_a_write_to_a_stopped_server_is_unknown_until_read_back() -> None:
    async with etcd() as server, opened(server.endpoint) as store:
        await store.put("/k", b"0")
        server.pause()
        with pytest.raises(StoreUnknownOutcome):
            await store.put("/k", b"1", timeout=0.3)
        server.resume()
        kv = await store.get("/k")
        assert kv is not None and kv.value in (b"0", b"1")


# --------------------------------------------------------------------------------- 9. and what else is owned


async def test_subprocesses_beside_grpc_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    async with etcd() as server, opened(server.endpoint) as store, watching(store):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
        assert await process.wait() == 0
        assert await store.get("/k") is None
    assert capfd.readouterr().err == ""


async def test_failed_connections_print_nothing(capfd: pytest.CaptureFixture[str], authority: Authority) -> None:
    tls = server_tls(authority, client_cert=True)
    async with etcd(tls=tls) as server, opened(server.endpoint, tls=TLS(authority.ca)) as store:
        with pytest.raises(StoreTLSError):
            await store.get("/k")
    assert capfd.readouterr().err == ""


async def test_cancelling_a_call_is_a_cancellation() -> None:
    async with etcd() as server, opened(server.endpoint) as store:
        await store.get("/k")
        server.pause()
        for call in (store.get("/k"), store.keepalive(1), anext(store.watch("/", 1))):
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        server.resume()
        assert await store.get("/k") is None


async def test_closing_while_it_dials() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = EtcdStore([f"http://127.0.0.1:{silent.getsockname()[1]}"], timeout=60.0)
        calls = [asyncio.ensure_future(store.get("/k")), asyncio.ensure_future(anext(store.watch("/", 1)))]
        await asyncio.sleep(0.05)
        await store.close()
        async with asyncio.timeout(DEADLINE):
            for call in calls:
                with pytest.raises(StoreUnavailable, match="closed"):
                    await call


async def test_unresolvable_host_and_no_etcd_at_all() -> None:
    async with opened("http://no-such-host.invalid:2379", timeout=3.0) as store:
        with pytest.raises(StoreUnavailable, match=r"no-such-host|no answer"):
            await store.get("/k")
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    async with server, opened(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=2.0) as store:
        with pytest.raises(StoreUnavailable, match="closes the connection"):
            await store.get("/k")


async def test_probe_tells_version_leader_and_revision() -> None:
    async with etcd_cluster() as cluster, opened(*cluster.endpoints) as store:
        revision = await store.put("/k", b"v")
        leader = await cluster.leader()
        statuses = await store.probe()
        assert [status.endpoint for status in statuses] == cluster.endpoints
        assert [status.leader for status in statuses] == [member is leader for member in cluster.members]
        assert all(status.version and status.has_leader and not status.error for status in statuses)
        assert max(status.revision for status in statuses) == revision
