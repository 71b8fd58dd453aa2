"""Dump against desired: what differs, in the order in which it can be applied."""

from __future__ import annotations

import random

from netagent.kernel.base import Op
from netagent.model import (
    KINDS,
    Address,
    FdbEntry,
    ForeignAccept,
    Link,
    Neighbour,
    NextHop,
    NftElement,
    NftTable,
    Object,
    Offload,
    Route,
    Sysctl,
    VxlanAttrs,
)
from netagent.plan.diff import diff, order, satisfied

LINK = Link(kind="vxlan", name="na-vx1", mtu=1450, vxlan=VxlanAttrs(vni=1, port=8472, dev="eth0"))
WITH_MAC = Link(kind="vxlan", name="na-vx1", mtu=1450, mac="02:00:00:00:00:01", vxlan=LINK.vxlan)
ONE_OF_EACH: list[Object] = [
    Sysctl("net/ipv4/ip_forward", "1"),
    LINK,
    Offload("na-vx1", "tx-checksum-ip-generic", False),
    Address("na-vx1", "10.5.1.0", 32),
    NftTable("inet", "netagent", ""),
    NftElement("peers4", "192.168.50.12"),
    NextHop("na-vx1", "10.5.2.0"),
    Neighbour("na-vx1", "10.5.2.0", "02:00:00:00:00:02"),
    FdbEntry("na-vx1", "02:00:00:00:00:02", "192.168.50.12"),
    Route("10.5.2.0/24", nexthop=("na-vx1", "10.5.2.0")),
    ForeignAccept("docker-user", 4, "10.5.0.0/16"),
]


def by_key(*objects: Object) -> dict[object, Object]:
    return {obj.key: obj for obj in objects}


def test_every_kind_is_here() -> None:
    assert [obj.KIND for obj in ONE_OF_EACH] == list(KINDS)


def test_puts_follow_the_kinds_then_deletes_in_reverse() -> None:
    ops = [Op(verb, obj) for obj in ONE_OF_EACH for verb in ("put", "delete")]  # type: ignore[arg-type]
    random.Random(1).shuffle(ops)
    ops.sort(key=order)
    assert [op.object.KIND for op in ops] == [*KINDS, *reversed(KINDS)]
    assert [op.verb for op in ops] == ["put"] * len(KINDS) + ["delete"] * len(KINDS)


def test_nothing_to_do_where_all_is_equal() -> None:
    assert diff(by_key(*ONE_OF_EACH), reversed(ONE_OF_EACH)) == []


def test_what_is_missing_changed_and_unwanted() -> None:
    old, new = Route("10.5.1.0/24", type="blackhole"), Route("10.5.1.0/24", type="unreachable")
    missing, unwanted = Address("na-vx1", "10.5.1.0", 32), NextHop("na-vx1", "10.5.9.0")
    assert diff(by_key(missing, new), [old, unwanted]) == [Op("put", missing), Op("put", new), Op("delete", unwanted)]


def test_replacements_come_before_removals() -> None:
    old, new = Route("10.5.1.0/24", type="blackhole"), Route("10.5.1.0/24", type="blackhole", metric=5)
    assert [op.verb for op in diff(by_key(new), [old])] == ["put", "delete"]


def test_a_mac_that_nobody_asked_for_is_no_difference() -> None:
    assert satisfied(LINK, WITH_MAC)
    assert diff(by_key(LINK), [WITH_MAC]) == []


def test_a_mac_that_was_asked_for_is_one() -> None:
    other = Link(kind="vxlan", name="na-vx1", mtu=1450, mac="02:00:00:00:00:09", vxlan=LINK.vxlan)
    assert not satisfied(WITH_MAC, other)
    assert not satisfied(WITH_MAC, LINK)


def test_another_mtu_is_a_difference_whatever_the_mac() -> None:
    assert not satisfied(Link(kind="vxlan", name="na-vx1", mtu=1400, vxlan=LINK.vxlan), WITH_MAC)


def test_nothing_satisfies_what_is_absent() -> None:
    assert not any(satisfied(obj, None) for obj in ONE_OF_EACH)
