"""The cluster of virtual machines, one for all files that want it: a boot of an emulated machine takes a minute."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest_asyncio

from netagent.lab import topology
from netagent.lab.space import Unable
from tests.support.netns import unable
from tests.support.vm import image
from tests.support.vmlab import VmLab, hosts_in


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab() -> AsyncIterator[VmLab]:
    """All three hosts in rack1 at first, with IPv4 alone and host-gw."""
    plan = hosts_in(topology.build("racks", 1, "host-gw"), "rack1", "rack1", "rack1")
    begun = time.monotonic()
    try:
        made = image()
    except Unable as error:
        unable(str(error))
    print(f"image after {time.monotonic() - begun:.0f} s, {made.accel}")
    begun = time.monotonic()
    async with VmLab(plan, made) as lab:
        print(f"three machines booted and installed after {time.monotonic() - begun:.0f} s")
        yield lab
