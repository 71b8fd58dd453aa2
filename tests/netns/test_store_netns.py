"""A follower on one host, etcd on another, and the cable between them pulled: packets vanish, nothing is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support.etcd import etcd
from tests.support.netns import Namespace, Namespaces

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

DEADLINE = 20.0

# Prints one JSON line for each change of state and for each key that comes.
FOLLOWER = """
import asyncio, json, sys
from netagent.store.etcd import EtcdStore
from netagent.store.follow import Resync, follow

async def main():
    def say(**words):
        print(json.dumps(words), flush=True)
    store = EtcdStore([sys.argv[1]])
    items = follow(store, "/", on_state=lambda state: say(connected=state.connected))
    async for item in items:
        if isinstance(item, Resync):
            say(resync=[kv.key for kv in item.listing.items])
        else:
            say(keys=[event.kv.key for event in item.events])

asyncio.run(main())
"""


class Lines:
    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream

    async def until(self, **words: object) -> None:
        async with asyncio.timeout(DEADLINE):
            while (line := await self._stream.readline()) and json.loads(line) != words:
                pass
        assert line, "the follower ended"


@contextlib.asynccontextmanager
async def follower(space: Namespace, endpoint: str) -> AsyncIterator[Lines]:
    process = await space.spawn(sys.executable, "-c", FOLLOWER, endpoint, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield Lines(process.stdout)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("address", ["192.168.50.1", "fd00::1"])
async def test_a_pulled_cable_is_noticed_and_nothing_is_missed(namespaces: Namespaces, address: str) -> None:
    server, host = namespaces.make("server"), namespaces.make("host")
    switch = namespaces.switch("switch", {server: "192.168.50.1/24 fd00::1/64", host: "192.168.50.2/24 fd00::2/64"})
    async with etcd(netns=server.path, host=address) as store, follower(host, store.endpoint) as lines:
        await lines.until(resync=[])
        await lines.until(connected=True)
        await store.ctl("put", "/a", "1")
        await lines.until(keys=["/a"])
        switch.ip("link set p1 down")
        await lines.until(connected=False)
        await store.ctl("put", "/b", "2")
        switch.ip("link set p1 up")
        await lines.until(connected=True)
        await lines.until(keys=["/b"])
