"""What commands that talk to etcd themselves share: its settings, a connection, and the records as a view."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from netagent import config
from netagent.cli import output

if TYPE_CHECKING:
    from netagent.plan.cluster import Cluster
    from netagent.store.base import Store

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where etcd is: the settings that `netagent run` has, under the same names."""
    config.add_arguments(parser, ("etcd",))


def ask(args: argparse.Namespace, work: Callable[[Store, config.Settings], Awaitable[T]]) -> T:
    """The result of `work` on the store that the settings name. Errors of the store are for the operator."""
    import asyncio

    settings = config.load(args)
    for finding in config.unknown_variables():  # perhaps what should have said which etcd is meant
        output.warn(finding)

    async def connected() -> T:
        store = open_store(settings)
        try:
            return await work(store, settings)
        finally:
            await store.close()

    return asyncio.run(connected())


def open_store(settings: config.Settings) -> Store:
    """Replaced in tests by a store in memory."""
    from netagent.store import etcd

    return etcd.open_store(settings)


async def view(store: Store, prefix: str) -> Cluster:
    """All records under the prefix, read once."""
    from netagent.plan.cluster import Cluster
    from netagent.store.resume import Resync

    cluster = Cluster(prefix)
    cluster.apply(Resync(await store.list(cluster.keys.root)))
    return cluster
