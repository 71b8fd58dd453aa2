"""LinuxHost on the real kernel: ownership, what the kernel does silently, thousands of objects, lost events."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from netagent.kernel import events
from netagent.kernel.base import Change, Op
from netagent.kernel.host import NEXTHOP_IDS, LinuxHost
from netagent.model import (
    KINDS,
    Address,
    FdbEntry,
    Hop,
    Link,
    Neighbour,
    NextHop,
    NftElement,
    Object,
    Route,
    Sysctl,
    VxlanAttrs,
)
from tests.support.netns import Namespace, Namespaces, eventually, need_device

pytestmark = pytest.mark.netns

VXLAN = VxlanAttrs(vni=1, port=8472, local="192.168.50.11", dev="eth0")
DEVICE = Link(kind="vxlan", name="na-vx1", mtu=1450, mac="02:00:00:00:00:01", vxlan=VXLAN)
TUN = Link(kind="tun", name="na-tun", mtu=1472, tun_vnet_hdr=True)
PLAIN = Route("10.5.82.0/24", (Hop("eth0", "192.168.50.12"),))


class Bench:
    """A host in a namespace, on a switch."""

    def __init__(self, namespaces: Namespaces) -> None:
        need_device("vxlan")
        self.space: Namespace = namespaces.make("host")
        self.switch = namespaces.switch("switch", {self.space: "192.168.50.11/16 fd50::11/64"})
        self.host: LinuxHost

    def ip(self, command: str) -> str:
        return self.space.ip(command)

    def put(self, *objects: Object) -> None:
        assert self.host.apply([Op("put", obj) for obj in objects]) == []

    def delete(self, *objects: Object) -> None:
        assert self.host.apply([Op("delete", obj) for obj in objects]) == []

    def dump(self, *kinds: str) -> set[Object]:
        found = self.host.dump(kinds or KINDS)
        assert len(set(found)) == len(found)
        return set(found)


@pytest.fixture
def bench(namespaces: Namespaces) -> Iterator[Bench]:
    bench = Bench(namespaces)
    with bench.space.entered():
        bench.host = LinuxHost()
        yield bench
        bench.host.close()


@contextlib.asynccontextmanager
async def listening(bench: Bench) -> AsyncIterator[list[Change]]:
    """The hints from here on."""
    heard: list[Change] = []

    async def listen() -> None:
        async for batch in bench.host.changes():
            heard.extend(batch)

    task = asyncio.create_task(listen())
    try:
        bench.ip(f"link set lo alias listening-{os.urandom(4).hex()}")
        await eventually(lambda: Change("facts") in heard, "the first hint")
        heard.clear()
        yield heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_host_without_any_route_has_nothing_of_ours() -> None:
    """The kernel makes its table with the first route, and refuses to list a table that it has not."""
    bare = Namespace("bare")  # not even lo is up
    with contextlib.closing(bare), bare.entered():
        host = LinuxHost()
        try:
            assert host.dump(KINDS) == []
            assert host.facts().routes == ()
        finally:
            host.close()


# ------------------------------------------------------------------------------------------- ownership


def test_what_only_carries_our_number_stays(bench: Bench) -> None:
    bench.put(DEVICE)
    bench.ip("nexthop add id 7 via 192.168.50.12 dev eth0 protocol 110")
    bench.ip(f"nexthop add id {NEXTHOP_IDS[0] + 5} via 192.168.50.13 dev eth0 protocol 110")
    bench.ip("nexthop add id 9 via 10.5.82.0 dev na-vx1 onlink protocol 110")
    bench.ip("route add 10.9.1.0/24 nhid 7 proto 110")
    bench.ip("route add 10.9.2.0/24 via 192.168.50.12 proto static")
    bench.ip("route add 10.9.3.0/24 via 192.168.50.12 proto 110 table 100")
    bench.ip("neighbour add 192.168.50.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    assert bench.dump() == {DEVICE}


def test_what_the_kernel_learnt_is_not_ours(bench: Bench) -> None:
    bench.put(DEVICE)
    bench.ip("neighbour add 10.5.82.0 lladdr 02:00:00:00:00:99 dev na-vx1 nud reachable")
    bench.space.run("bridge", "fdb", "add", "02:00:00:00:00:99", "dev", "na-vx1", "dst", "192.168.50.12", "dynamic")
    assert bench.dump("neighbour", "fdb") == set()
    bench.ip("neighbour add 10.5.83.0 lladdr 02:00:00:00:00:99 dev na-vx1 nud permanent")
    assert bench.dump("neighbour") == {Neighbour("na-vx1", "10.5.83.0", "02:00:00:00:00:99")}


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        ("10.5.82.0/24 via 192.168.50.99 proto static", "10.5.82.0/24 via 192.168.50.99 dev eth0 proto static"),
        ("10.5.82.0/24 dev eth0 proto bird", "10.5.82.0/24 dev eth0 proto bird"),
        ("unreachable 10.5.82.0/24", "unreachable 10.5.82.0/24 proto boot"),
    ],
)
def test_a_foreign_route_is_described_as_ip_route_would(bench: Bench, foreign: str, words: str) -> None:
    bench.ip(f"route add {foreign}")
    before = bench.ip("route show 10.5.82.0/24")
    (failure,) = bench.host.apply([Op("put", PLAIN)])
    assert (failure.errno, failure.foreign) == (errno.EEXIST, words)
    assert bench.ip("route show 10.5.82.0/24") == before


def test_ours_behind_a_foreign_one_of_the_same_metric_is_never_replaced_through_it(bench: Bench) -> None:
    """`ip route prepend` puts another route before ours: NLM_F_REPLACE would now hit that one."""
    bench.put(PLAIN)
    bench.ip("route prepend 10.5.82.0/24 via 192.168.50.77 proto static")
    changed = Route("10.5.82.0/24", (Hop("eth0", "192.168.50.13"),))
    (failure,) = bench.host.apply([Op("put", changed)])
    assert "192.168.50.77" in failure.foreign
    assert "192.168.50.77" in bench.ip("route show 10.5.82.0/24")
    bench.delete(PLAIN)
    assert bench.ip("route show 10.5.82.0/24").split()[2] == "192.168.50.77"


def test_routes_that_win_over_ours_are_told(bench: Bench) -> None:
    """Only those: another prefix, another length, another table or a higher metric takes nothing from ours."""
    six = Route("fd05:0:0:82::/64", (Hop("eth0", "fd50::12"),))
    bench.put(msgspec.structs.replace(PLAIN, metric=300), six)
    assert bench.host.outranking() == []
    for harmless in (
        "10.5.82.0/24 via 192.168.50.77 metric 301",
        "10.5.82.0/25 via 192.168.50.77",
        "10.5.83.0/24 via 192.168.50.77",
        "10.5.82.0/24 via 192.168.50.77 table 100",
        "default via 192.168.50.77",
    ):
        bench.ip(f"route add {harmless}")
    assert bench.host.outranking() == []
    bench.ip("route add 10.5.82.0/24 via 192.168.50.77 proto static")
    bench.ip("-6 route add fd05:0:0:82::/64 via fd50::77 metric 9")
    assert bench.host.outranking() == [
        "10.5.82.0/24 via 192.168.50.77 dev eth0 proto static",
        "fd05:0:0:82::/64 via fd50::77 dev eth0 proto boot metric 9",
    ]


def test_many_replacements_at_once_spare_a_foreign_route_among_them(bench: Bench) -> None:
    routes = [Route(f"10.6.{i}.0/24", (Hop("eth0", "192.168.50.12"),)) for i in range(100)]
    bench.put(*routes)
    bench.ip("route replace 10.6.40.0/24 via 192.168.50.77 proto static")
    changed = [Route(route.dst, (Hop("eth0", "192.168.50.13"),)) for route in routes]
    (failure,) = bench.host.apply([Op("put", route) for route in changed])
    assert failure.op.object == changed[40]
    assert bench.dump("route") == set(changed) - {changed[40]}
    assert "192.168.50.77" in bench.ip("route show 10.6.40.0/24")


def test_replacing_under_policy_routing_still_finds_what_stands(bench: Bench) -> None:
    """A rule sends lookups to another table: the answer is not the route in question."""
    bench.put(PLAIN)
    bench.ip("rule add pref 100 lookup 100")
    bench.ip("route add default via 192.168.50.1 table 100")
    bench.ip("route add 10.5.82.0/25 via 192.168.50.77 proto static")
    changed = Route("10.5.82.0/24", (Hop("eth0", "192.168.50.13"),))
    bench.put(changed)
    assert bench.dump("route") == {changed}


def test_a_nexthop_id_that_somebody_took_is_left_to_him(bench: Bench) -> None:
    bench.put(DEVICE)
    bench.ip(f"nexthop add id {NEXTHOP_IDS[0]} via 192.168.50.12 dev eth0")
    bench.put(NextHop("na-vx1", "10.5.82.0"), Route("10.5.82.0/24", nexthop=("na-vx1", "10.5.82.0")))
    assert "192.168.50.12" in bench.ip(f"nexthop show id {NEXTHOP_IDS[0]}")
    assert "10.5.82.0" in bench.ip(f"nexthop show id {NEXTHOP_IDS[0] + 1}")
    assert "na-vx1" in bench.ip("route show 10.5.82.0/24")


def test_a_second_host_knows_the_ids_of_the_first(bench: Bench) -> None:
    objects = (
        DEVICE,
        *(NextHop("na-vx1", f"10.5.{i}.0") for i in (3, 1, 2)),
        Route("10.5.1.0/24", nexthop=("na-vx1", "10.5.1.0")),
    )
    bench.put(*objects)
    bench.delete(objects[1])
    bench.host.close()
    bench.host = LinuxHost()
    bench.put(Route("10.5.2.0/24", nexthop=("na-vx1", "10.5.2.0")))
    bench.put(NextHop("na-vx1", "10.5.9.0"))
    assert f"id {NEXTHOP_IDS[0]} via 10.5.9.0" in bench.ip("nexthop show")  # the lowest free one
    assert bench.dump() == {
        *objects[:1],
        *objects[2:],
        Route("10.5.2.0/24", nexthop=("na-vx1", "10.5.2.0")),
        NextHop("na-vx1", "10.5.9.0"),
    }


def test_a_device_of_our_name_without_our_mark_is_foreign(bench: Bench) -> None:
    bench.ip("link add na-vx1 type vxlan id 1 dstport 8472")
    (failure,) = bench.host.apply([Op("put", DEVICE)])
    assert failure.errno == errno.EEXIST
    assert failure.foreign == "device na-vx1, VXLAN with VNI 1 on port 8472, without alias"
    bench.delete(DEVICE)
    assert "na-vx1" in bench.ip("link show na-vx1")


@pytest.mark.parametrize("extra", ["", "gbp"])
def test_vni_and_port_held_by_another_owner(bench: Bench, extra: str) -> None:
    """flannel's own device, or one that cannot share the port with ours."""
    bench.ip(f"link add flannel.1 type vxlan id 1 local 192.168.50.11 dev eth0 dstport 8472 nolearning {extra}")
    bench.ip("link set flannel.1 up")
    (failure,) = bench.host.apply([Op("put", DEVICE)])
    assert failure.errno in (errno.EEXIST, errno.EADDRINUSE)
    assert failure.foreign == "device flannel.1, VXLAN with VNI 1 on port 8472, without alias"
    assert "flannel.1" in bench.ip("link show flannel.1")


def test_a_port_held_by_a_program(bench: Bench) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", 8472))
        (failure,) = bench.host.apply([Op("put", DEVICE)])
    assert failure.errno == errno.EADDRINUSE
    bench.put(DEVICE)
    assert bench.dump() == {DEVICE}


def test_a_tun_that_a_process_holds_stays_his(bench: Bench) -> None:
    need_device("tun")
    bench.put(TUN)
    from backends.udp.tun import attach

    descriptor = attach("na-tun", 10)
    try:
        bench.put(Link(kind="tun", name="na-tun", mtu=1400, tun_vnet_hdr=True))
        assert "mtu 1400" in bench.ip("link show na-tun")
        os.write(descriptor, bytes(10) + b"\x45" + bytes(19))  # still attached
    finally:
        os.close(descriptor)
    assert bench.dump() == {Link(kind="tun", name="na-tun", mtu=1400, tun_vnet_hdr=True)}


def test_our_devices_have_no_address_of_the_kernels_making(bench: Bench) -> None:
    bridge = Link(kind="bridge", name="na-br", mtu=1400)
    bench.put(DEVICE, bridge, Address("na-vx1", "fc00::1", 128))
    assert "fe80" not in bench.ip("-6 address show dev na-vx1") + bench.ip("-6 address show dev na-br")
    assert bench.space.sysctl("net/ipv6/conf/na-vx1/accept_ra") == "0"
    assert "na-vx1" not in bench.ip("-6 route show")


def test_flannels_settings_of_a_vxlan_device(bench: Bench) -> None:
    bench.put(DEVICE)
    said = bench.ip("-d link show na-vx1")
    for words in (
        "vxlan id 1 local 192.168.50.11 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300",
        "udpcsum noudp6zerocsumtx noudp6zerocsumrx",
        "alias netagent",
    ):
        assert words in said


def test_a_small_mtu_leaves_a_device_without_ipv6(bench: Bench) -> None:
    bench.put(Link(kind="vxlan", name="na-vx1", mtu=1200, mac=DEVICE.mac, vxlan=VXLAN))
    bench.put(Address("na-vx1", "10.5.59.0", 32))


def test_kinds_that_nobody_writes_here_fail(bench: Bench) -> None:
    ops = [Op("put", Sysctl("net/ipv4/ip_forward", "1")), Op("put", NftElement("peers4", "192.168.50.12"))]
    failures = bench.host.apply([ops[0], Op("put", DEVICE), ops[1]])
    assert [failure.op for failure in failures] == ops
    assert bench.dump() == {DEVICE}


@pytest.mark.parametrize(
    "obj",
    [
        Route("10.5.999.0/24", type="unreachable"),
        Route("10.5.82.0/33", type="unreachable"),
        Route("10.5.82.0", type="unreachable"),
        Route("10.5.82.1/24", type="unreachable"),
        Route("10.5.82.0/24"),
        Route("10.5.82.0/24", (Hop("eth0", "nowhere"),)),
        Route("10.5.82.0/24", type="unreachable", metric=-1),
        Route("10.5.82.0/24", (Hop("eth0", "192.168.50.12", weight=0), Hop("eth0", "192.168.50.13"))),
        Neighbour("na-vx1", "10.5.82.0", "02:00"),
        Neighbour("na-vx1", "10.5.82.0", "zz"),
        FdbEntry("na-vx1", "02:00:00:00:00:02", "x"),
        NextHop("na-vx1", ""),
        Address("na-vx1", "10.5.82.0", 99),
        Address("na-vx1", "10.5.82.0", 24, "galaxy"),
        Link(kind="vxlan", name="na-vx1", mtu=-1),
        Link(kind="vxlan", name="na-vx2-with-far-too-long-a-name", mtu=1400),
        Link(kind="wormhole", name="na-x", mtu=1400),
        Link(kind="vxlan", name="na-vx2", mtu=1400, vxlan=VxlanAttrs(vni=1 << 24, port=8472)),
        Link(kind="vxlan", name="na-vx2", mtu=1400, vxlan=VxlanAttrs(vni=2, port=8472, dev="nonesuch")),
    ],
    ids=repr,
)
def test_nonsense_fails_and_is_never_raised(bench: Bench, obj: Object) -> None:
    bench.put(DEVICE)
    (failure,) = bench.host.apply([Op("put", obj)])
    assert failure.errno > 0
    assert failure.message
    assert bench.dump("link", "route") == {DEVICE}
    bench.host.apply([Op("delete", obj)])


# ------------------------------------------------------------------------------------------- what goes silently


async def test_carrier_loss_of_the_uplink_keeps_plain_routes_and_what_stands_on_the_vtep(bench: Bench) -> None:
    objects = {
        DEVICE,
        Address("na-vx1", "10.5.59.0", 32),
        NextHop("na-vx1", "10.5.83.0"),
        Neighbour("na-vx1", "10.5.83.0", "02:00:00:00:00:83"),
        FdbEntry("na-vx1", "02:00:00:00:00:83", "192.168.50.12"),
        PLAIN,
        Route("10.5.83.0/24", nexthop=("na-vx1", "10.5.83.0")),
    }
    bench.put(*sorted(objects, key=lambda obj: KINDS.index(obj.KIND)))
    async with listening(bench) as heard:
        bench.switch.ip("link set p0 down")
        await eventually(lambda: Change("facts") in heard and Change("route") in heard, "hints at the loss")
        assert not bench.host.facts().links["eth0"].carrier
        assert bench.dump() == objects
        heard.clear()
        bench.switch.ip("link set p0 up")
        await eventually(lambda: Change("facts") in heard and Change("route") in heard, "hints at the return")
    assert bench.dump() == objects


async def test_uplink_down_takes_plain_routes_and_says_so(bench: Bench) -> None:
    six = Route("fc00:0:0:82::/64", (Hop("eth0", "fd50::12"),))
    bench.put(PLAIN, six)
    async with listening(bench) as heard:
        bench.ip("link set eth0 down")
        await eventually(lambda: Change("route") in heard, "a hint at routes")
        assert Change("facts", ("link", "eth0")) in heard
    assert bench.dump("route") == set()
    (failure,) = bench.host.apply([Op("put", PLAIN)])
    assert failure.errno in (errno.ENETDOWN, errno.ENETUNREACH)
    async with listening(bench) as heard:
        bench.ip("link set eth0 up")
        await eventually(lambda: Change("route") in heard, "a hint at routes")
    bench.put(PLAIN)


@pytest.mark.parametrize("act", ["link set na-vx1 down", "link delete na-vx1", "link set na-vx1 alias stranger"])
async def test_own_device_meddled_with(bench: Bench, act: str) -> None:
    route = Route("10.5.83.0/24", nexthop=("na-vx1", "10.5.83.0"))
    bench.put(DEVICE, NextHop("na-vx1", "10.5.83.0"), route)
    async with listening(bench) as heard:
        bench.ip(act)
        await eventually(lambda: Change("link", DEVICE.key) in heard, "a hint at the device")
    if "alias" in act:
        (failure,) = bench.host.apply([Op("put", DEVICE)])
        assert failure.foreign.endswith("alias stranger")
        return
    assert DEVICE not in bench.dump()
    assert {Change("route"), Change("nexthop")} <= set(heard)
    bench.put(DEVICE, NextHop("na-vx1", "10.5.83.0"), route)
    assert bench.dump() == {DEVICE, NextHop("na-vx1", "10.5.83.0"), route}


async def test_own_device_changed(bench: Bench) -> None:
    bench.put(DEVICE)
    for act in ("mtu 1300", "address 02:00:00:00:00:ee"):
        async with listening(bench) as heard:
            bench.ip(f"link set na-vx1 {act}")
            await eventually(lambda: Change("link", DEVICE.key) in heard, "a hint at the device")
        assert bench.dump() != {DEVICE}
        bench.put(DEVICE)
        assert bench.dump() == {DEVICE}


async def test_the_last_address_of_the_uplink_takes_routes_along(bench: Bench) -> None:
    bench.put(PLAIN, Route("10.5.83.0/24", (Hop("eth0"),), src="192.168.50.11"))
    async with listening(bench) as heard:
        bench.ip("address delete 192.168.50.11/16 dev eth0")
        await eventually(lambda: {Change("route"), Change("facts")} <= set(heard), "hints at routes and facts")
    assert bench.dump("route") == set()


async def test_a_nexthop_deleted_takes_its_routes_along(bench: Bench) -> None:
    bench.put(DEVICE, NextHop("na-vx1", "10.5.83.0"), Route("10.5.83.0/24", nexthop=("na-vx1", "10.5.83.0")))
    async with listening(bench) as heard:
        bench.ip(f"nexthop delete id {NEXTHOP_IDS[0]}")
        await eventually(
            lambda: {Change("nexthop", ("nexthop", "na-vx1", "10.5.83.0")), Change("route")} <= set(heard), "hints"
        )
    assert bench.dump() == {DEVICE}


async def test_containers_that_come_and_go_hint_at_facts_alone(bench: Bench) -> None:
    bench.put(DEVICE, PLAIN)
    async with listening(bench) as heard:
        bench.ip("link add veth1 type veth peer name veth2")
        bench.ip("link set veth1 up")
        bench.ip("address add 172.17.0.1/24 dev veth1")
        bench.ip("link delete veth1")
        bench.ip("route add 203.0.113.0/24 via 192.168.50.99")
        await eventually(lambda: "veth1" not in bench.host.facts().links)
        heard_before = len(heard)
        bench.ip("link set eth0 alias last")
        await eventually(lambda: len(heard) > heard_before, "the last hint")
    assert set(heard) == {Change("facts")}


async def test_forwarding_switched_off_is_heard_of(bench: Bench) -> None:
    bench.space.sysctl("net/ipv4/ip_forward", "1")
    async with listening(bench) as heard:
        bench.space.sysctl("net/ipv4/ip_forward", "0")
        await eventually(lambda: Change("sysctl") in heard, "a hint at settings")


async def test_lost_events_make_everything_stale(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put(DEVICE)
    bench.host._events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    batch = "".join(
        f"neighbour add 10.9.{i}.1 lladdr 02:00:00:00:00:01 dev na-vx1 nud permanent\n" for i in range(250)
    )
    bench.space.run("ip", "-batch", "-", input=batch)
    heard: set[Change] = set()
    async with asyncio.timeout(5):
        async for changes in bench.host.changes():
            heard.update(changes)
            if {Change(kind) for kind in KINDS} <= heard:
                break
    assert Change("facts") in heard


# ------------------------------------------------------------------------------------------- thousands


def thousands(count: int) -> list[Object]:
    """What so many vxlan peers need, in the order of kinds."""
    gateways = [f"10.{64 + (i >> 8)}.{i & 255}.0" for i in range(count)]
    macs = [f"02:00:00:01:{i >> 8:02x}:{i & 255:02x}" for i in range(count)]
    return [
        DEVICE,
        *(NextHop("na-vx1", gateway) for gateway in gateways),
        *(Neighbour("na-vx1", gateway, mac) for gateway, mac in zip(gateways, macs, strict=True)),
        *(FdbEntry("na-vx1", mac, "192.168.50.12") for mac in macs),
        *(Route(f"{gateway}/24", nexthop=("na-vx1", gateway)) for gateway in gateways),
    ]


async def test_five_thousand_peers(bench: Bench) -> None:
    objects = thousands(5000)
    bench.put(DEVICE)
    async with listening(bench) as heard:
        for start in range(0, len(objects), 256):  # as the reconciler does
            bench.put(*objects[start : start + 256])
            await asyncio.sleep(0)
        assert bench.dump() == set(objects)
        bench.ip("link set eth0 alias done")
        await eventually(lambda: Change("facts") in heard, "a hint at the facts")
        assert set(heard) == {Change("facts")}
    moved = [FdbEntry("na-vx1", obj.mac, "192.168.50.13") for obj in objects if isinstance(obj, FdbEntry)]
    bench.put(*moved)
    assert bench.dump("fdb") == set(moved)
    bench.delete(*reversed(objects[5001:]), *reversed(objects[1:5001]))
    assert bench.dump() == {DEVICE}


def test_refusals_find_their_operation_among_thousands(bench: Bench) -> None:
    bench.put(DEVICE)
    routes: list[Object] = [Route(f"10.{64 + (i >> 8)}.{i & 255}.0/24", (Hop("na-vx1"),)) for i in range(1000)]
    bad = {0, 255, 256, 257, 511, 777, 999}
    for i in bad:
        routes[i] = Route(f"10.{64 + (i >> 8)}.{i & 255}.0/24", (Hop("eth0", f"172.31.0.{i & 255}"),))
    failures = bench.host.apply([Op("put", route) for route in routes])
    assert [failure.op.object for failure in failures] == [routes[i] for i in sorted(bad)]
    assert {failure.errno for failure in failures} == {errno.ENETUNREACH}
    assert failures[0].message == "Nexthop has invalid gateway"
    assert len(bench.dump("route")) == 1000 - len(bad)


def test_a_dump_meets_interruptions_and_is_whole(bench: Bench) -> None:
    bench.put(*thousands(2000))
    churn = "".join(
        f"route add 198.51.{i & 255}.0/24 dev eth0\nroute del 198.51.{i & 255}.0/24\n" for i in range(2000)
    )

    async def run() -> None:
        process = await bench.space.spawn("ip", "-batch", "-", stdin=asyncio.subprocess.PIPE)
        feeding = asyncio.create_task(process.communicate(churn.encode()))
        while not feeding.done():
            assert len(bench.host.dump(["route"])) == 2000
            await asyncio.sleep(0)
        await feeding

    asyncio.run(run())


def test_every_own_kind_has_its_hint_of_what_depends(bench: Bench) -> None:
    """The hints of a device cover every kind that can stand on one."""
    assert {change.kind for change in events._ON_DEVICE} == {"address", "nexthop", "neighbour", "fdb", "route"}
