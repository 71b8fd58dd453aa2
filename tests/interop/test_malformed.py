"""Malformed UPDATEs (RFC 7606) from a probe, while BIRD, FRR or GoBGP watches from behind ours.

Rule: what costs only a route must not cost a session: the route goes at the watcher, the session of the probe stays
and carries on, and nothing malformed is ever passed on (the watcher's own session would not survive that).
"""

from __future__ import annotations

import asyncio

import pytest

from tests.support import bgp_probe as wire
from tests.support.bgp_ours import Ours
from tests.support.routers import Network, Peering, Router, Routers

pytestmark = [pytest.mark.interop, pytest.mark.netns]

GOOD, BAD, LAST = "10.9.0.0/24", "10.9.1.0/24", "10.9.2.0/24"
OPTIONAL_TRANSITIVE = wire.OPTIONAL | wire.TRANSITIVE
ASN, HOP = 65009, "10.98.0.3"
PATH = wire.attribute(wire.AS_PATH, wire.as_path(ASN))
ORIGIN = wire.attribute(wire.ORIGIN, b"\0")
NEXT_HOP = wire.attribute(wire.NEXT_HOP, wire.packed(HOP))
BASE = ORIGIN + PATH + NEXT_HOP

WITHDRAWN = {
    "origin out of range": wire.attribute(wire.ORIGIN, b"\7") + PATH + NEXT_HOP,
    "origin of two octets": wire.attribute(wire.ORIGIN, b"\0\0") + PATH + NEXT_HOP,
    "origin missing": PATH + NEXT_HOP,
    "origin with wrong flags": wire.attribute(wire.ORIGIN, b"\0", OPTIONAL_TRANSITIVE) + PATH + NEXT_HOP,
    "path with an unknown segment": ORIGIN + wire.attribute(wire.AS_PATH, b"\7\1\0\0\0\1") + NEXT_HOP,
    "path cut off": ORIGIN + wire.attribute(wire.AS_PATH, b"\2\5\0\0\0\1") + NEXT_HOP,
    "path with an empty segment": ORIGIN + wire.attribute(wire.AS_PATH, b"\2\0") + NEXT_HOP,
    "path missing": ORIGIN + NEXT_HOP,
    "next hop missing": ORIGIN + PATH,
    "next hop of three octets": ORIGIN + PATH + wire.attribute(wire.NEXT_HOP, b"\1\2\3"),
    "MED of three octets": BASE + wire.attribute(wire.MED, b"\0\0\1", wire.OPTIONAL),
    "communities of five octets": BASE + wire.attribute(wire.COMMUNITIES, bytes(5), OPTIONAL_TRANSITIVE),
    "large communities of eleven octets": BASE + wire.attribute(32, bytes(11), OPTIONAL_TRANSITIVE),
    "an attribute over the end": BASE + wire.attribute(wire.COMMUNITIES, bytes(4), OPTIONAL_TRANSITIVE, length=40),
    "an attribute without its length": BASE + bytes((OPTIONAL_TRANSITIVE, wire.COMMUNITIES)),
}
"""Attribute blocks whose routes are treated as withdrawn."""

DISCARDED = {
    "atomic aggregate with a value": BASE + wire.attribute(wire.ATOMIC, b"\1"),
    "aggregator of five octets": BASE + wire.attribute(wire.AGGREGATOR, bytes(5), OPTIONAL_TRANSITIVE),
    "the same attribute twice": BASE + ORIGIN,
    "local preference from another AS": BASE + wire.attribute(wire.LOCAL_PREF, b"\0\0\0\7"),
    "originator from another AS": BASE + wire.attribute(wire.ORIGINATOR_ID, b"\1\2\3\4", wire.OPTIONAL),
    "cluster list of five octets from another AS": BASE + wire.attribute(wire.CLUSTER_LIST, bytes(5), wire.OPTIONAL),
    "AS4_PATH on a session of four octets": BASE + wire.attribute(17, wire.as_path(1, 2), OPTIONAL_TRANSITIVE),
}
"""Blocks that lose one attribute, and nothing more."""


async def stage(routers: Routers, watcher: type[Router], asn: int) -> tuple[Ours, Router, wire.Probe]:
    """Ours with the watcher as an iBGP client on one side and the probe, of the AS, on the other; all stand."""
    site, behind, before = routers.site(65001), routers.site(65001), routers.site(asn)
    assert before.address == HOP
    site.options["transit"] = True
    site.peerings = (
        Peering(behind.address, 65001, client=True),
        Peering(before.address, asn, passive=True, client=asn == 65001),
    )
    behind.peerings = (Peering(site.address, 65001),)
    ours, third = Ours(site), watcher(behind)
    await asyncio.gather(routers.add(ours), routers.add(third))
    probe = wire.Probe(before.space, before.address, site.address, asn)
    await asyncio.gather(probe.establish(), third.established())
    return ours, third, probe


async def test_treated_as_withdrawn(routers: Routers, theirs: type[Router]) -> None:
    """Each kind: the route is there, a malformed UPDATE of it comes, and it goes; the session carries on."""
    ours, third, probe = await stage(routers, theirs, ASN)
    async with probe:
        for number, (what, block) in enumerate(WITHDRAWN.items()):
            bad, last = f"10.9.{number}.0/24", f"10.10.{number}.0/24"
            probe.send(wire.update(BASE, bad))
            await third.has(bad)
            probe.send(wire.update(block, bad), wire.update(BASE, last))
            await third.has(last)
            await third.lacks(bad)
            assert not probe.of(wire.NOTIFICATION), what
        view = await ours.view(HOP)
        assert view["flaps"] == 0
        assert view["malformed"] == len(WITHDRAWN)
        assert (await ours.view(third.site.address))["flaps"] == 0
        assert (await third.peer(ours.site.address)).established


async def test_the_same_on_ibgp(routers: Routers, theirs: type[Router]) -> None:
    """Where FRR 8.4 resets the session, ours does not."""
    ours, third, probe = await stage(routers, theirs, 65001)
    base = wire.attributes(next_hop=HOP)
    bad = {
        "originator of five octets": base + wire.attribute(wire.ORIGINATOR_ID, bytes(5), wire.OPTIONAL),
        "cluster list of five octets": base + wire.attribute(wire.CLUSTER_LIST, bytes(5), wire.OPTIONAL),
        "local preference of three octets": wire.attributes(next_hop=HOP, local_pref=None)
        + wire.attribute(wire.LOCAL_PREF, b"\0\0\1"),
        "origin out of range": base.replace(ORIGIN, wire.attribute(wire.ORIGIN, b"\7")),
    }
    async with probe:
        for what, block in bad.items():
            probe.send(wire.update(base, GOOD, BAD))
            await third.has(BAD)
            probe.send(wire.update(block, BAD))
            await third.lacks(BAD)
            assert GOOD in await third.routes(), what
            assert not probe.of(wire.NOTIFICATION), what
        assert (await ours.view(HOP))["flaps"] == 0


async def test_only_the_attribute_is_lost(routers: Routers, theirs: type[Router]) -> None:
    ours, third, probe = await stage(routers, theirs, ASN)
    async with probe:
        for number, (what, block) in enumerate(DISCARDED.items()):
            prefix = f"10.9.{number}.0/24"
            probe.send(wire.update(block, prefix))
            route = await third.has(prefix)
            assert (route.as_path, route.local_pref, route.originator, route.clusters) == ((ASN,), 100, "", ()), what
            assert not probe.of(wire.NOTIFICATION), what
        assert (await third.peer(ours.site.address)).established


async def test_unknown_attributes_go_through(routers: Routers, theirs: type[Router]) -> None:
    """Transitive ones with the partial bit, others not at all; an unknown well-known one ends the session (3/2)."""
    ours, third, probe = await stage(routers, theirs, ASN)
    watcher = routers.site(65001)
    async with probe:
        ours.site.peerings += (Peering(watcher.address, 65001, client=True, passive=True),)
        await ours.announce(Network("10.1.0.0/24"))
        async with wire.Probe(watcher.space, watcher.address, ours.site.address, 65001) as second:
            await second.establish()
            more = wire.attribute(200, b"through", OPTIONAL_TRANSITIVE) + wire.attribute(201, b"not", wire.OPTIONAL)
            probe.send(wire.update(BASE + more, GOOD))
            await second.knows(GOOD)
            (found,) = [each.attributes for each in second.updates if GOOD in each.announced]
            assert found[200] == (OPTIONAL_TRANSITIVE | wire.PARTIAL, b"through")
            assert 201 not in found
            await third.has(GOOD)
        unknown = wire.attribute(202, b"x")
        probe.send(wire.update(BASE + unknown, LAST))
        code, subcode, data = await probe.notification()
        assert (code, subcode, data) == (3, 2, unknown)
        await third.lacks(GOOD)


RESETS = {
    "withdrawn routes over the end": (wire.message(wire.UPDATE, b"\0\x30\0\0"), (3, 1)),
    "attributes over the end": (wire.message(wire.UPDATE, b"\0\0\0\x30\x40\1\1\0"), (3, 1)),
    "a prefix of 33 bits": (wire.update(BASE, raw=b"\x21\x0a\0\0\0\0"), (3, 10)),
    "a prefix cut off": (wire.update(BASE, raw=b"\x18\x0a"), (3, 10)),
    "an IPv6 prefix of 129 bits": (
        wire.update(
            ORIGIN
            + PATH
            + wire.attribute(
                wire.MP_REACH, b"\0\2\1\x10" + bytes.fromhex("fd98" + "0" * 28) + b"\0\x81" + bytes(17), wire.OPTIONAL
            )
        ),
        (3, 9),
    ),
    "an unknown type of message": (wire.message(9), (1, 3)),
    "a keepalive with a body": (wire.message(wire.KEEPALIVE, b"\0"), (1, 2)),
    "an OPEN in between": (wire.open_message(ASN, HOP), (5, 3)),
}
"""What leaves nothing to go on with, and the NOTIFICATION for it."""


async def test_resets_where_they_must_be(routers: Routers, theirs: type[Router]) -> None:
    """The session ends with the right words, its routes go at the watcher, and it comes back when it is tried."""
    ours, third, probe = await stage(routers, theirs, ASN)
    for what, (octets, expected) in RESETS.items():
        async with wire.Probe(probe.space, probe.address, probe.peer, ASN) as again:
            if not probe.closed:
                await probe.close()
            await again.establish()
            again.send(wire.update(BASE, GOOD))
            await third.has(GOOD)
            again.send(octets)
            assert (await again.notification())[:2] == expected, what
            await again.until_closed()
            await third.lacks(GOOD)
    assert (await third.peer(ours.site.address)).established
    assert (await ours.view(third.site.address))["flaps"] == 0
