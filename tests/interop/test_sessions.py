"""How sessions are opened, guarded and ended: TCP MD5, GTSM, multihop, shutdown with words, hold time, errors."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.support import bgp_probe as wire
from tests.support.bgp_ours import Ours
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]

NETWORKS = ((Network("10.1.0.0/24"),), (Network("10.2.0.0/24"),))


async def both_have(ours: Router, other: Router) -> None:
    await other.has("10.1.0.0/24")
    await ours.has("10.2.0.0/24")


def unsigned(router: Router) -> int:
    """Segments that its kernel has dropped because their MD5 signature was missing, not wanted or wrong."""
    names, values = router.space.call(Path("/proc/thread-self/net/netstat").read_text).splitlines()[:2]
    counters = dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
    return sum(counters.get(f"TCPMD5{kind}", 0) for kind in ("Failure", "NotFound", "Unexpected"))


@pytest.mark.parametrize("active", ["ours", "theirs"])
async def test_md5(routers: Routers, theirs: type[Router], active: str) -> None:
    """The right password, whoever connects."""
    passive = ({"passive": active == "theirs"}, {"passive": active == "ours"})
    ours, other = await routers.pair(
        (Ours, 65001), (theirs, 65002), networks=NETWORKS, options=passive, password="s3cret"
    )
    await both_have(ours, other)


async def test_md5_with_a_wrong_password(routers: Routers, theirs: type[Router]) -> None:
    """No session; and with the right one after a reload there is one: nothing else was in the way."""
    ours, other = await routers.pair(
        (Ours, 65001),
        (theirs, 65002),
        networks=NETWORKS,
        options=({"password": "wrong"}, {"password": "right"}),
        established=False,
    )

    async def dropped() -> bool:
        return unsigned(ours) + unsigned(other) > 1

    await ours.until("segments with a wrong signature", dropped)
    assert not (await other.peer(ours.site.address)).established
    assert isinstance(ours, Ours)

    async def told() -> bool:
        why = (await ours.view(other.site.address)).get("why_down", "")
        return re.search(r"this host has dropped \d+ wrongly signed segments?: the passwords differ", why) is not None

    await ours.until("a reason that names the passwords", told)
    (peering,) = ours.site.peerings
    ours.site.peerings = (Peering(peering.address, peering.asn, password="right"),)
    await ours.announce(Network("10.1.1.0/24"))  # writes the configuration and has it read
    await ours.established()
    await both_have(ours, other)


@pytest.mark.parametrize("active", ["ours", "theirs"])
async def test_gtsm(routers: Routers, theirs: type[Router], active: str) -> None:
    """RFC 5082 on both sides, eBGP, where what is sent has TTL 1 otherwise."""
    passive = ({"passive": active == "theirs"}, {"passive": active == "ours"})
    ours, other = await routers.pair(
        (Ours, 65001), (theirs, 65002), networks=NETWORKS, options=passive, ttl_security=True
    )
    await both_have(ours, other)


async def test_gtsm_keeps_out_who_is_far(routers: Routers) -> None:
    """A connection with a TTL below 255 never comes about; one with 255 does."""
    site, far = routers.site(65001), routers.site(65002)
    site.peerings = (Peering(far.address, 65002, ("ipv4",), passive=True, ttl_security=True),)
    await routers.add(Ours(site))
    far.space.sysctl("net/ipv4/tcp_syn_retries", "1")
    probe = wire.Probe(far.space, far.address, site.address, 65002, ttl=254)
    with pytest.raises(TimeoutError):
        await probe.connect_once(2.0)
    async with wire.Probe(far.space, far.address, site.address, 65002, ttl=255) as probe:
        await probe.establish()


async def test_multihop(routers: Routers, theirs: type[Router]) -> None:
    """eBGP between loopback addresses, two hops apart."""
    sites = routers.site(65001), routers.site(65002)
    between = routers.site(0)
    middle = between.space
    middle.sysctl("net/ipv4/ip_forward", "1")
    for number, site in enumerate(sites):
        site.space.ip(f"address add 10.99.0.{number + 1}/32 dev lo")
        site.space.ip(f"route add 10.99.0.{2 - number}/32 via {between.address}")
        middle.ip(f"route add 10.99.0.{number + 1}/32 via {site.address}")
    for number, site in enumerate(sites):
        site.address = f"10.99.0.{number + 1}"
        site.networks = NETWORKS[number]
    for number, site in enumerate(sites):
        far = sites[1 - number]
        site.peerings = (Peering(far.address, far.asn, ("ipv4",), multihop=4),)
    ours, other = Ours(sites[0]), theirs(sites[1])
    await asyncio.gather(routers.add(ours), routers.add(other))
    await asyncio.gather(ours.established(), other.established())
    await both_have(ours, other)
    # without multihop what we send dies on the way
    ours.site.peerings = (Peering(sites[1].address, 65002, ("ipv4",)),)
    await ours.announce(Network("10.1.1.0/24"))
    await ours.down(sites[1].address)

    async def unreachable() -> bool:
        return "cannot connect" in (await ours.peer(sites[1].address)).why

    await ours.until("word that the peer is not reached", unreachable)
    assert not (await ours.peer(sites[1].address)).established


TEXT = "maintenance until 18:00, ticket 4711"


async def test_our_shutdown_text_reaches_them(routers: Routers, theirs: type[Router]) -> None:
    """RFC 9003: each shows the words to its operator, in its view of the neighbour or in its log."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=NETWORKS)
    await both_have(ours, other)
    await ours.shut(other.site.address, TEXT)
    await other.down(ours.site.address)

    async def words() -> bool:
        return TEXT in (await other.peer(ours.site.address)).why or TEXT in other.log()

    await other.until("the text of the shutdown", words)
    await other.lacks("10.1.0.0/24")
    # and it stays down until it is started
    await ours.command("start-peer", peer=other.site.address)
    await asyncio.gather(ours.established(), other.established())


async def test_their_shutdown_text_reaches_us(routers: Routers, theirs: type[Router]) -> None:
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=NETWORKS)
    await both_have(ours, other)
    await other.shut(ours.site.address, TEXT)

    async def words() -> bool:
        view = await ours.view(other.site.address)
        return TEXT in str(view.get("last_down"))

    await ours.until("the text of the shutdown", words)
    assert "administrative shutdown" in str((await ours.view(other.site.address))["last_down"]).lower()
    await ours.lacks("10.2.0.0/24")


async def test_their_silence_ends_the_session(routers: Routers, theirs: type[Router]) -> None:
    """A frozen peer: hold time over, NOTIFICATION 4, its routes gone; thawed, it comes back."""
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=NETWORKS, hold_time=3)
    await both_have(ours, other)
    assert (await ours.view(other.site.address))["hold_time"] == 3
    other.freeze()
    await ours.down(other.site.address)
    assert re.search(r"hold", str((await ours.view(other.site.address))["last_down"]), re.I)
    await ours.lacks("10.2.0.0/24")
    other.thaw()
    await asyncio.gather(ours.established(), other.established())
    await both_have(ours, other)


async def test_our_silence_ends_the_session(routers: Routers, theirs: type[Router]) -> None:
    ours, other = await routers.pair((Ours, 65001), (theirs, 65001), networks=NETWORKS, hold_time=3)
    await both_have(ours, other)
    ours.freeze()
    await other.down(ours.site.address)
    await other.lacks("10.1.0.0/24")
    ours.thaw()
    await asyncio.gather(ours.established(), other.established())
    await both_have(ours, other)


async def test_wrong_as_is_told(routers: Routers, theirs: type[Router]) -> None:
    """Ours says which AS it met instead of which, and the session comes up when that is put right."""
    ours, other = await routers.pair(
        (Ours, 65001), (theirs, 65002), networks=NETWORKS, options=({"asn": 65009}, {}), established=False
    )

    async def told() -> bool:
        view = await ours.view(other.site.address)
        return "AS 65002 instead of 65009" in str(view.get("why_down"))

    await ours.until("word of the wrong AS", told)
    ours.site.peerings = (Peering(other.site.address, 65002),)
    await ours.announce(Network("10.1.1.0/24"))
    await asyncio.gather(ours.established(), other.established())
    await both_have(ours, other)


async def test_a_changed_neighbour_leaves_the_others_alone(routers: Routers, theirs: type[Router]) -> None:
    """A reload changes only the session that changed: the other one has not flapped."""
    site, far, probe_site = routers.site(65001), routers.site(65002), routers.site(65003)
    site.networks, far.networks = NETWORKS
    theirs_peering = Peering(far.address, 65002)
    site.peerings = (theirs_peering, Peering(probe_site.address, 65003, passive=True))
    far.peerings = (Peering(site.address, 65001),)
    ours, other = Ours(site), theirs(far)
    await asyncio.gather(routers.add(ours), routers.add(other))
    await asyncio.gather(ours.established(far.address), other.established())
    async with wire.Probe(probe_site.space, probe_site.address, site.address, 65003) as probe:
        await probe.establish()
        site.peerings = (theirs_peering, Peering(probe_site.address, 65003, passive=True, hold_time=30))
        await ours.announce(Network("10.1.1.0/24"))
        assert (await probe.notification())[:2] == (6, 6)  # other configuration change
    await other.has("10.1.1.0/24")
    assert (await ours.view(far.address))["flaps"] == 0


# --------------------------------------------------------------------------- what we say of wrong messages, and where


CASES = {
    "version": (wire.open_message(65002, "10.98.0.2", version=3), (2, 1, b"\0\4")),
    "peer AS": (wire.open_message(65009, "10.98.0.2"), (2, 2, None)),
    "identifier": (wire.open_message(65002, "0.0.0.0"), (2, 3, None)),
    "hold time": (wire.open_message(65002, "10.98.0.2", 2), (2, 6, None)),
    "marker": (wire.message(wire.OPEN, bytes(10), marker=bytes(16)), (1, 1, None)),
    "length": (wire.message(wire.OPEN, bytes(10), length=18), (1, 2, b"\0\x12")),
    "long": (wire.message(wire.OPEN, bytes(10), length=4097), (1, 2, b"\x10\x01")),
    "type": (wire.message(77), (1, 3, b"\x4d")),
    "keepalive first": (wire.message(wire.KEEPALIVE), (5, 1, None)),
    "update first": (wire.update(), (5, 1, None)),
}


@pytest.mark.parametrize("case", CASES)
async def test_notifications_for_wrong_openings(routers: Routers, case: str) -> None:
    """Code, subcode and data as RFC 4271 section 6 and RFC 6608 say."""
    octets, (code, subcode, data) = CASES[case]
    site, far = routers.site(65001), routers.site(65002)
    site.peerings = (Peering(far.address, 65002, passive=True),)
    await routers.add(Ours(site))
    async with wire.Probe(far.space, far.address, site.address, 65002) as probe:
        await probe.connect()
        probe.send(octets)
        found = await probe.notification()
        assert found[:2] == (code, subcode)
        assert data is None or found[2] == data
        await probe.until_closed()
    async with wire.Probe(far.space, far.address, site.address, 65002) as probe:
        await probe.establish()


async def test_hold_timer_notification_reaches_the_probe(routers: Routers) -> None:
    site, far = routers.site(65001), routers.site(65002)
    site.peerings = (Peering(far.address, 65002, passive=True, hold_time=3),)
    await routers.add(Ours(site))
    async with wire.Probe(far.space, far.address, site.address, 65002) as probe:
        await probe.establish()
        probe.stop_keepalives()
        assert (await probe.notification())[:2] == (4, 0)
        await probe.until_closed()
