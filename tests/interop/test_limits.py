"""Maximum prefixes (RFC 4486): a warning, then the end of the session, until it is started again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import bgp_probe as wire
from tests.support.bgp_ours import Ours
from tests.support.bgp_service import Host, until
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]

TEN = tuple(Network(f"10.2.{number}.0/24") for number in range(10))


async def test_our_limit_ends_their_session(routers: Routers, theirs: type[Router]) -> None:
    ours, other = await routers.pair(
        (Ours, 65001), (theirs, 65001), networks=((), TEN), options=({"most_prefixes": 10}, {})
    )
    assert isinstance(ours, Ours)
    await ours.has("10.2.9.0/24")
    assert "the limit is 10: a warning" in ours.log()
    assert (await ours.peer(other.site.address)).established
    await other.announce(Network("10.2.10.0/24"))
    await ours.down(other.site.address)
    view = await ours.view(other.site.address)
    assert "maximum prefixes" in view["last_down"].lower()
    assert view["admin"] == "down"
    await ours.lacks("10.2.0.0/24")
    await other.down(ours.site.address)
    # it stays down however often the peer tries, and comes back when it keeps the limit and is started
    await other.withdraw("10.2.10.0/24")
    assert not (await ours.peer(other.site.address)).established
    await ours.command("start-peer", peer=other.site.address)
    await ours.established()
    await ours.has("10.2.9.0/24")


async def test_another_limit_while_it_runs(routers: Routers, theirs: type[Router]) -> None:
    """A higher one after the session has ended brings it back by itself, one below what has come ends it again."""
    ours, other = await routers.pair(
        (Ours, 65001),
        (theirs, 65002),
        networks=((), TEN),
        options=({"most_prefixes": 9}, {}),
        established=False,
    )
    assert isinstance(ours, Ours)
    there = other.site.address

    async def limit(most: int, network: str) -> None:
        ours.site.peerings = tuple(replace(each, most_prefixes=most) for each in ours.site.peerings)
        await ours.announce(Network(network))  # writes the configuration and has it read

    async def ended() -> bool:
        return bool((await ours.view(there))["admin"] == "down")

    await ours.until("the end by the first limit", ended)
    await limit(20, "10.1.1.0/24")
    await ours.established()
    await ours.has("10.2.9.0/24")
    await other.has("10.1.1.0/24")
    await limit(5, "10.1.2.0/24")
    await ours.until("the end by the last limit", ended)
    assert "maximum prefixes" in (await ours.view(there))["last_down"].lower()
    await ours.lacks("10.2.9.0/24")
    await limit(0, "10.1.3.0/24")
    await ours.established()
    await other.has("10.1.3.0/24")


async def test_another_limit_of_a_router_in_the_cluster(
    routers: Routers, theirs: type[Router], tmp_path: Path
) -> None:
    """The same for a node of a cluster: MaxPrefixes of a router, and what the finding says meanwhile."""
    here, there = routers.site(65001), routers.site(65002)
    there.peerings, there.networks = (Peering(here.address, 65001, families=("ipv4",)),), TEN
    await routers.add(theirs(there))
    block, _, number = here.address.rpartition(".")
    host = Host(tmp_path, f"{block}.", int(number), {"AS": 65001})

    def limit(most: int) -> None:
        router = {"Name": "tor", "Address": there.address, "AS": 65002, "MaxPrefixes": most}
        host.raw = {**host.raw, "Routers": [router]}
        host.service.configure(host.context())

    def severities() -> list[str]:
        return [each.severity for each in host.port.findings if each.code == "bgp-prefix-limit"]

    with here.space.entered():
        try:
            limit(9)
            host.start()
            await until(lambda: severities() == ["error"], "the limit is reached", 60)
            assert not host.up
            limit(11)
            await until(lambda: host.up and severities() == ["warning"], "up again, and near the limit", 60)
            limit(5)
            await until(lambda: not host.up and severities() == ["error"], "beyond the new limit", 60)
            limit(100)
            await until(lambda: host.up and not host.port.findings, "up again, and far from the limit", 60)
        finally:
            await host.leave()


async def test_their_limit_ends_our_session(routers: Routers, theirs: type[Router]) -> None:
    """Ours says what the peer's NOTIFICATION said."""
    ours, other = await routers.pair(
        (Ours, 65001),
        (theirs, 65001),
        networks=(tuple(Network(f"10.1.{number}.0/24") for number in range(10)), ()),
        options=({}, {"most_prefixes": 10}),
    )
    assert isinstance(ours, Ours)
    await other.has("10.1.9.0/24")
    await ours.announce(Network("10.1.10.0/24"))
    await ours.announce(Network("10.1.11.0/24"))  # FRR counts a prefix only after it has looked at the limit

    async def told() -> bool:
        return "maximum prefixes" in str((await ours.view(other.site.address)).get("last_down")).lower()

    await ours.until("Maximum Number of Prefixes Reached", told)


async def test_the_notification_carries_family_and_limit(routers: Routers) -> None:
    """RFC 4486 section 4, for each family on its own; and the routes go at once at a third peer."""
    site, far, watcher = routers.site(65001), routers.site(65001), routers.site(65001)
    site.peerings = (
        Peering(far.address, 65001, passive=True, client=True, most_prefixes=3),
        Peering(watcher.address, 65001, passive=True, client=True),
    )
    await routers.add(Ours(site))
    async with (
        wire.Probe(far.space, far.address, site.address, 65001) as probe,
        wire.Probe(watcher.space, watcher.address, site.address, 65001) as third,
    ):
        await asyncio.gather(probe.establish(), third.establish())
        block = wire.attributes(next_hop=far.address)
        probe.send(wire.update(block, "10.2.0.0/24", "10.2.1.0/24", "10.2.2.0/24"))
        v6 = [f"fd02:{number}::/64" for number in range(1, 4)]
        probe.send(wire.update(wire.reach(v6, "fd98::9") + wire.attributes()))
        await third.knows("10.2.2.0/24", *(v6))
        probe.send(wire.update(wire.reach(["fd02:9::/64"], "fd98::9") + wire.attributes()))
        assert await probe.notification() == (6, 1, b"\0\2\1" + (3).to_bytes(4, "big"))
        await third.forgets("10.2.0.0/24", "10.2.1.0/24", "10.2.2.0/24", *v6)
