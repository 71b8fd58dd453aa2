"""What every interop test has: a network of routers, and each foreign daemon in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.bird import Bird
from tests.support.frr import Frr
from tests.support.gobgp import GoBgp
from tests.support.netns import Namespaces, namespaces
from tests.support.routers import Router, Routers, directory

__all__ = ["namespaces"]

THEIRS: tuple[type[Router], ...] = (Bird, Frr, GoBgp)


@pytest.fixture
async def routers(namespaces: Namespaces) -> AsyncIterator[Routers]:
    """An empty network of routers; what is added is killed after the test."""
    with directory() as path:
        network = Routers(namespaces, path)
        try:
            yield network
        finally:
            await network.close()


@pytest.fixture(params=THEIRS, ids=lambda kind: kind.kind)
def theirs(request: pytest.FixtureRequest) -> type[Router]:
    """Each foreign daemon."""
    kind: type[Router] = request.param
    return kind
