"""What every Host must do, on the real kernel inside a namespace and on its twin in memory.

A `World` is a host, an uplink eth0 with 192.168.50.11/16 and fd50::11/64, and somebody else who meddles.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import msgspec
import pytest

from netagent.kernel.base import Change, Host, Op
from netagent.kernel.fake import UPLINK, FakeHost
from netagent.kernel.host import LinuxHost
from netagent.model import (
    Address,
    AddressFact,
    FdbEntry,
    Hop,
    Link,
    Neighbour,
    NextHop,
    Object,
    Route,
    TunnelAttrs,
    VxlanAttrs,
)
from tests.support.netns import Namespace, Namespaces, eventually, lacks_device, need_device

DEVICE = Link(
    kind="vxlan",
    name="na-vx7",
    mtu=1450,
    mac="02:00:00:00:07:01",
    vxlan=VxlanAttrs(vni=7, port=8472, local="192.168.50.11", dev="eth0"),
)
TUN = Link(kind="tun", name="na-tun", mtu=1472, tun_vnet_hdr=True)
BRIDGE = Link(kind="bridge", name="na-br", mtu=1400, mac="02:00:00:00:07:02")
IPIP = Link(kind="ipip", name="na-ipip", mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11"))
VTEP = Address("na-vx7", "10.5.59.0", 32)
VTEP6 = Address("na-vx7", "fc00:0:0:59::", 128)
NEXTHOP = NextHop("na-vx7", "10.5.82.0")
NEXTHOP6 = NextHop("na-vx7", "fc00:0:0:82::")
BASE = (DEVICE, VTEP, VTEP6, NEXTHOP, NEXTHOP6)

# Everything that a planner may want, each put alone on top of BASE.
OBJECTS: dict[str, Object] = {
    "tun": TUN,
    "tun-plain": Link(kind="tun", name="na-tun", mtu=1400),
    "bridge": BRIDGE,
    "vxlan6": Link(
        kind="vxlan",
        name="na-vx6-7",
        mtu=1430,
        mac="02:00:00:00:07:06",
        vxlan=VxlanAttrs(vni=7, port=8472, local="fd50::11", dev="eth0"),
    ),
    "vxlan-options": Link(
        kind="vxlan",
        name="na-vx8",
        mtu=1450,
        mac="02:00:00:00:08:01",
        vxlan=VxlanAttrs(vni=8, port=8473, local="192.168.50.11", dev="eth0", learning=True, gbp=True),
    ),
    "vxlan-bare": Link(
        kind="vxlan", name="na-vx9", mtu=1400, mac="02:00:00:00:09:01", vxlan=VxlanAttrs(vni=9, port=4789)
    ),
    "ipip": IPIP,
    "sit": Link(
        kind="sit", name="na-sit", mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11", remote="192.168.50.12")
    ),
    "address": Address("na-vx7", "10.5.59.1", 24),
    "address6": Address("na-vx7", "fc00:0:0:59::1", 64),
    "address-link": Address("na-vx7", "10.5.59.2", 32, "host"),
    "nexthop": NextHop("na-vx7", "10.5.83.0"),
    "nexthop6": NextHop("na-vx7", "fc00:0:0:83::"),
    "neighbour": Neighbour("na-vx7", "10.5.82.0", "02:00:00:00:82:01"),
    "neighbour6": Neighbour("na-vx7", "fc00:0:0:82::", "02:00:00:00:82:06"),
    "fdb": FdbEntry("na-vx7", "02:00:00:00:82:01", "192.168.50.12"),
    "route-gateway": Route("10.5.82.0/24", (Hop("eth0", "192.168.50.12"),)),
    "route-nexthop": Route("10.5.82.0/24", nexthop=("na-vx7", "10.5.82.0")),
    "route-onlink": Route("10.5.82.0/24", (Hop("na-vx7", "10.5.82.0", onlink=True),)),
    "route-device": Route("10.5.82.0/24", (Hop("na-vx7"),)),
    "route-metric": Route("10.5.82.0/24", (Hop("eth0", "192.168.50.12"),), metric=50),
    "route-all": Route("10.5.82.0/24", (Hop("eth0", "192.168.50.12"),), metric=7, src="192.168.50.11", mtu=1400),
    "route-ecmp": Route(
        "10.5.82.0/24", (Hop("eth0", "192.168.50.12"), Hop("eth0", "192.168.50.13", weight=3)), metric=9
    ),
    "route-unreachable": Route("10.5.0.0/16", type="unreachable", metric=4294967295),
    "route-blackhole": Route("10.5.0.0/16", type="blackhole"),
    "route6-gateway": Route("fc00:0:0:82::/64", (Hop("eth0", "fd50::12"),)),
    "route6-nexthop": Route("fc00:0:0:82::/64", nexthop=("na-vx7", "fc00:0:0:82::")),
    "route6-onlink": Route("fc00:0:0:82::/64", (Hop("na-vx7", "fc00:0:0:82::", onlink=True),)),
    "route6-device": Route("fc00:0:0:82::/64", (Hop("na-vx7"),)),
    "route6-metric": Route("fc00:0:0:82::/64", (Hop("eth0", "fd50::12"),), metric=50),
    "route6-all": Route("fc00:0:0:82::/64", (Hop("eth0", "fd50::12"),), metric=7, src="fd50::11", mtu=1400),
    "route6-ecmp": Route("fc00:0:0:82::/64", (Hop("eth0", "fd50::12"), Hop("eth0", "fd50::13"))),
    "route6-unreachable": Route("fc00::/48", type="unreachable", metric=4294967295),
    "route6-blackhole": Route("fc00::/48", type="blackhole"),
}

# A change of content: what there is, and what takes its place under the same key.
CHANGES: dict[str, tuple[Object, Object]] = {
    "mtu": (DEVICE, msgspec.structs.replace(DEVICE, mtu=1400)),
    "mac": (DEVICE, msgspec.structs.replace(DEVICE, mac="02:00:00:00:07:ff")),
    "vni": (
        DEVICE,
        msgspec.structs.replace(DEVICE, vxlan=VxlanAttrs(vni=17, port=8472, local="192.168.50.11", dev="eth0")),
    ),
    "ipip-mtu": (IPIP, msgspec.structs.replace(IPIP, mtu=1400)),
    "ipip-local": (IPIP, msgspec.structs.replace(IPIP, tunnel=TunnelAttrs(local="192.168.50.12"))),
    "tun-mtu": (TUN, msgspec.structs.replace(TUN, mtu=1300)),
    "tun-header": (TUN, msgspec.structs.replace(TUN, tun_vnet_hdr=False)),
    "bridge-mtu": (BRIDGE, msgspec.structs.replace(BRIDGE, mtu=1300)),
    "address": (VTEP, Address("na-vx7", "10.5.59.0", 24)),
    "address6": (VTEP6, Address("na-vx7", "fc00:0:0:59::", 64)),
    "neighbour": (OBJECTS["neighbour"], Neighbour("na-vx7", "10.5.82.0", "02:00:00:00:82:99")),
    "neighbour6": (OBJECTS["neighbour6"], Neighbour("na-vx7", "fc00:0:0:82::", "02:00:00:00:82:99")),
    "fdb": (OBJECTS["fdb"], FdbEntry("na-vx7", "02:00:00:00:82:01", "192.168.50.99")),
} | {
    f"{before} to {after}": (OBJECTS[before], OBJECTS[after])
    for before, after in (
        ("route-gateway", "route-nexthop"),
        ("route-nexthop", "route-gateway"),
        ("route-gateway", "route-device"),
        ("route-nexthop", "route-onlink"),
        ("route6-gateway", "route6-nexthop"),
        ("route6-nexthop", "route6-gateway"),
        ("route6-gateway", "route6-ecmp"),
        ("route6-ecmp", "route6-gateway"),
        ("route6-ecmp", "route6-nexthop"),
        ("route6-nexthop", "route6-ecmp"),
        ("route6-device", "route6-gateway"),
    )
}

# What somebody else may delete, change, or be in the way of.
DRIFTS = (
    "tun",
    "ipip",
    "sit",
    "address",
    "address6",
    "nexthop",
    "nexthop6",
    "neighbour",
    "neighbour6",
    "fdb",
    "route-gateway",
    "route-nexthop",
    "route-ecmp",
    "route-unreachable",
    "route6-gateway",
    "route6-nexthop",
    "route6-unreachable",
)


class World(Protocol):
    host: Host

    def delete(self, obj: Object) -> None:
        """Somebody else deletes an object of ours."""

    def occupy(self, obj: Object) -> None:
        """Another owner's object takes the key of this one."""

    def vacate(self, obj: Object) -> None:
        """And goes."""

    def touch(self) -> None:
        """Something happens that changes the facts and nothing of ours."""


class FakeWorld:
    def __init__(self) -> None:
        addresses = (
            AddressFact(dev="eth0", ip="192.168.50.11", length=16),
            AddressFact(dev="eth0", ip="fd50::11", length=64),
        )
        self.host = self._fake = FakeHost((UPLINK,), addresses)

    def delete(self, obj: Object) -> None:
        self._fake.meddle_delete(obj.key)

    def occupy(self, obj: Object) -> None:
        self._fake.foreign_put(obj.key, "another owner's")

    def vacate(self, obj: Object) -> None:
        self._fake.foreign_delete(obj.key)

    def touch(self) -> None:
        self._fake.hint("facts")


class LinuxWorld:
    def __init__(self, space: Namespace) -> None:
        self.space = space
        self.host = LinuxHost()
        self._touched = 0

    def delete(self, obj: Object) -> None:
        match obj:
            case Link():
                self.space.ip(f"link delete {obj.name}")
            case Address():
                self.space.ip(f"address delete {obj.ip}/{obj.length} dev {obj.dev}")
            case NextHop():
                self.space.ip(f"nexthop delete id {self._id(obj)}")
            case Neighbour():
                self.space.ip(f"neighbour delete {obj.ip} dev {obj.dev}")
            case FdbEntry():
                self.space.run("bridge", "fdb", "delete", obj.mac, "dev", obj.dev, "dst", obj.dst, "self")
            case Route():
                kind = "" if obj.type == "unicast" else obj.type
                metric = f"metric {obj.metric}" if obj.metric else ""
                self.space.ip(f"route delete {kind} {obj.dst} {metric}")

    def _id(self, obj: NextHop) -> str:
        for line in self.space.ip(f"nexthop show dev {obj.dev}").splitlines():
            words = line.split()
            if obj.gateway in words:
                return words[1]
        raise AssertionError(f"no nexthop {obj}")

    def occupy(self, obj: Object) -> None:
        match obj:
            case Route():
                metric = f"metric {obj.metric}" if obj.metric else ""
                self.space.ip(f"route replace {obj.dst} dev eth0 {metric} proto static")
            case Link():
                self.space.ip(f"link add {obj.name} type bridge")

    def vacate(self, obj: Object) -> None:
        if isinstance(obj, Route):
            self.space.ip(f"route delete {obj.dst} dev eth0 proto static")
        else:
            self.delete(obj)

    def touch(self) -> None:
        self._touched += 1
        self.space.ip(f"link set eth0 alias touched-{self._touched}")


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
def world(request: pytest.FixtureRequest, namespaces: Namespaces) -> Iterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    need_device("vxlan")
    space = namespaces.make("host")
    namespaces.switch("switch", {space: "192.168.50.11/16 fd50::11/64"})
    with space.entered():
        linux = LinuxWorld(space)
        yield linux
        linux.host.close()


def put(world: World, *objects: Object) -> None:
    kinds = {obj.kind for obj in objects if isinstance(obj, Link)} if isinstance(world, LinuxWorld) else set()
    if "tun" in kinds:
        need_device("tun")
    for kind in kinds & {"ipip", "sit"}:
        if lacks_device(kind):
            pytest.skip(f"this kernel makes no {kind} device: the VMs' tests run this there")
    assert world.host.apply([Op("put", obj) for obj in objects]) == []


def dump(world: World, *wanted: Object) -> dict[object, Object]:
    kinds = {"link", "address", "nexthop", "neighbour", "fdb", "route"}
    found = world.host.dump(kinds, wanted)
    assert len({obj.key for obj in found}) == len(found)
    return {obj.key: obj for obj in found}


@contextlib.asynccontextmanager
async def listening(world: World) -> AsyncIterator[list[Change]]:
    """Hints as they come. Those of before are left out: the list begins with what happens inside."""
    heard: list[Change] = []

    async def listen() -> None:
        async for batch in world.host.changes():
            heard.extend(batch)

    task = asyncio.create_task(listen())
    try:
        world.touch()
        await eventually(lambda: Change("facts") in heard, "the first hint")
        heard.clear()
        yield heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def concerns(heard: list[Change], obj: Object) -> bool:
    return any(change.kind == obj.KIND and change.key in (None, obj.key) for change in heard)


# ------------------------------------------------------------------------------------------------- one object


def test_nothing_is_ours_at_first(world: World) -> None:
    assert dump(world) == {}


@pytest.mark.parametrize("name", OBJECTS)
def test_put_is_dumped_equal_and_deleted(world: World, name: str) -> None:
    obj = OBJECTS[name]
    put(world, *BASE)
    put(world, obj)
    assert dump(world, obj)[obj.key] == obj
    put(world, obj)  # again
    assert dump(world, obj)[obj.key] == obj
    before = dump(world)
    assert world.host.apply([Op("delete", obj)]) == []
    assert dump(world) == {key: have for key, have in before.items() if key != obj.key}


@pytest.mark.parametrize("name", OBJECTS)
def test_delete_of_what_is_not_there_is_no_failure(world: World, name: str) -> None:
    assert world.host.apply([Op("delete", OBJECTS[name])]) == []
    put(world, *BASE)
    assert world.host.apply([Op("delete", OBJECTS[name])]) == []
    assert dump(world) == {obj.key: obj for obj in BASE}


@pytest.mark.parametrize("name", CHANGES)
def test_put_replaces_the_content_of_its_key(world: World, name: str) -> None:
    before, after = CHANGES[name]
    assert before.key == after.key
    put(world, *BASE)
    put(world, before)
    put(world, after)
    assert dump(world, after)[after.key] == after


def test_a_base_of_many_kinds_stands_in_one_call(world: World) -> None:
    objects = (*BASE, OBJECTS["neighbour"], OBJECTS["fdb"], OBJECTS["route-nexthop"], OBJECTS["route6-nexthop"])
    put(world, *objects)
    assert dump(world) == {obj.key: obj for obj in objects}
    assert world.host.apply([Op("delete", obj) for obj in reversed(objects)]) == []
    assert dump(world) == {}


def test_a_device_takes_along_what_stands_on_it(world: World) -> None:
    put(world, *BASE, OBJECTS["neighbour"], OBJECTS["fdb"], OBJECTS["route-nexthop"], OBJECTS["route6-onlink"])
    assert world.host.apply([Op("delete", DEVICE)]) == []
    assert dump(world) == {}
    put(world, *BASE, OBJECTS["route-nexthop"])
    assert OBJECTS["route-nexthop"].key in dump(world)


# ------------------------------------------------------------------------------------------------- failures


def test_a_failing_object_holds_up_no_other(world: World) -> None:
    bad = [
        Route("10.5.90.0/24", nexthop=("na-vx7", "10.5.90.0")),
        Route("10.5.91.0/24", (Hop("nonesuch", "192.168.50.12"),)),
        Route("10.5.92.0/24", (Hop("eth0", "172.31.0.1"),)),
        Neighbour("nonesuch", "10.5.82.0", "02:00:00:00:82:01"),
        FdbEntry("eth0", "02:00:00:00:82:01", "192.168.50.12"),
        NextHop("eth0", "192.168.50.12"),
        Address("nonesuch", "10.5.59.1", 32),
    ]
    good = [OBJECTS["neighbour"], OBJECTS["fdb"], OBJECTS["route-nexthop"], OBJECTS["route6-unreachable"]]
    put(world, *BASE)
    failures = world.host.apply([Op("put", obj) for pair in zip(bad, good * 2, strict=False) for obj in pair])
    assert sorted(repr(failure.op.object) for failure in failures) == sorted(map(repr, bad))
    assert all(failure.errno > 0 and failure.message and not failure.foreign for failure in failures)
    present = dump(world)
    assert all(present.get(obj.key) == obj for obj in good)


@pytest.mark.parametrize("name", ["route-gateway", "route-metric", "route-nexthop", "route6-gateway", "tun"])
def test_another_owners_object_in_the_way_is_reported_and_stays(world: World, name: str) -> None:
    obj = OBJECTS[name]
    put(world, *BASE)
    world.occupy(obj)
    (failure,) = world.host.apply([Op("put", obj)])
    assert failure.op == Op("put", obj)
    assert failure.errno == errno.EEXIST
    assert failure.foreign or isinstance(world, FakeWorld)
    assert obj.key not in dump(world)
    assert world.host.apply([Op("delete", obj)]) == []
    (failure,) = world.host.apply([Op("put", obj)])  # it is still there
    assert failure.errno == errno.EEXIST
    world.vacate(obj)
    put(world, obj)
    assert dump(world)[obj.key] == obj


async def test_room_made_by_another_owner_is_hinted_at(world: World) -> None:
    obj = OBJECTS["route-gateway"]
    world.occupy(obj)
    assert len(world.host.apply([Op("put", obj)])) == 1
    async with listening(world) as heard:
        world.vacate(obj)
        await eventually(lambda: concerns(heard, obj), f"a hint at {obj.key}")


async def test_another_owners_route_in_place_of_ours_is_hinted_at_and_not_taken_back_by_force(world: World) -> None:
    obj = OBJECTS["route-gateway"]
    put(world, obj)
    async with listening(world) as heard:
        world.occupy(obj)
        await eventually(lambda: concerns(heard, obj), f"a hint at {obj.key}")
    (failure,) = world.host.apply([Op("put", obj)])
    assert failure.errno == errno.EEXIST


# ------------------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize("name", DRIFTS)
async def test_somebody_elses_deletion_is_hinted_at(world: World, name: str) -> None:
    obj = OBJECTS[name]
    put(world, *BASE)
    put(world, obj)
    async with listening(world) as heard:
        world.delete(obj)
        await eventually(lambda: concerns(heard, obj), f"a hint at {obj.key}")
    assert obj.key not in dump(world)
    put(world, obj)
    assert dump(world)[obj.key] == obj


async def test_own_changes_cause_no_hints(world: World) -> None:
    bulk = [OBJECTS[name] for name in ("neighbour", "neighbour6", "fdb", "route-nexthop", "route6-nexthop")]
    put(world, *BASE)
    replacements = [CHANGES["fdb"][1], CHANGES["neighbour"][1], OBJECTS["route-gateway"]]
    async with listening(world) as heard:
        for step in (
            [Op("put", obj) for obj in bulk],
            [Op("put", obj) for obj in replacements],
            [Op("delete", obj) for obj in reversed(bulk)],
        ):
            assert world.host.apply(step) == []
            world.touch()
            await eventually(lambda: Change("facts") in heard, "a hint at the facts")
            assert set(heard) == {Change("facts")}
            heard.clear()


# ------------------------------------------------------------------------------------------------- reading


def test_facts_know_the_uplink_and_our_device(world: World) -> None:
    put(world, DEVICE, VTEP)
    facts = world.host.facts()
    assert facts.links["eth0"].up
    assert facts.links["eth0"].alias != "netagent"
    ours = facts.links["na-vx7"]
    assert (ours.kind, ours.alias, ours.mtu, ours.mac) == ("vxlan", "netagent", 1450, DEVICE.mac)
    assert ours.vxlan == DEVICE.vxlan
    assert {("eth0", "192.168.50.11", 16), ("na-vx7", "10.5.59.0", 32)} <= {
        (fact.dev, fact.ip, fact.length) for fact in facts.addresses
    }
    assert facts.on_link("192.168.50.12") == "eth0"
    assert {"vxlan", "nexthop", "ipv6"} <= facts.abilities
    assert facts == world.host.facts()


def test_route_to(world: World) -> None:
    put(world, OBJECTS["route-gateway"])
    connected, gateway = world.host.route_to("192.168.50.12"), world.host.route_to("10.5.82.9")
    assert connected is not None
    assert (connected.dev, connected.gateway) == ("eth0", None)
    assert gateway is not None
    assert (gateway.dev, gateway.gateway) == ("eth0", "192.168.50.12")
    assert world.host.route_to("203.0.113.1") is None
