"""FakeHost is worth testing against only if it refuses, and lets vanish, what the kernel does."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import msgspec
import pytest

from netagent.kernel.base import Change, Host, Op
from netagent.kernel.fake import UPLINK, FakeHost
from netagent.model import (
    KINDS,
    Address,
    Hop,
    Link,
    LinkFact,
    NextHop,
    NftElement,
    Object,
    Route,
    Sysctl,
    TunnelAttrs,
    VxlanAttrs,
)

DEVICE = Link(kind="vxlan", name="na-vx1", mtu=1450, vxlan=VxlanAttrs(vni=1, port=8472, dev="eth0"))
VTEP = Address("na-vx1", "10.5.59.0", 32)
NEXTHOP = NextHop("na-vx1", "10.5.82.0")
ROUTE = Route("10.5.82.0/24", nexthop=("na-vx1", "10.5.82.0"))
DIRECT = Route("10.5.83.0/24", (Hop("eth0", "192.168.50.12"),))
STACK = (DEVICE, VTEP, NEXTHOP, ROUTE, DIRECT)


def put(host: FakeHost, objects: Iterable[Object]) -> list[int]:
    """Errnos of what failed."""
    return [failure.errno for failure in host.apply([Op("put", obj) for obj in objects])]


@pytest.fixture
def host() -> FakeHost:
    host = FakeHost()
    assert put(host, STACK) == []
    return host


def test_is_a_host_and_reports_what_was_put(host: FakeHost) -> None:
    same: Host = host
    assert set(same.dump(KINDS)) == set(STACK)
    assert same.dump(("route",)) == [ROUTE, DIRECT]


@pytest.mark.parametrize(
    ("obj", "code"),
    [
        (NextHop("na-gone", "10.5.82.0"), errno.ENODEV),
        (NextHop("eth0", "192.168.50.12"), errno.ENODEV),  # only on devices of ours
        (Route("10.5.1.0/24", nexthop=("na-vx1", "10.5.1.0")), errno.EINVAL),
        (Route("10.5.1.0/24", (Hop("eth9", "10.5.1.1"),)), errno.ENODEV),
        (Route("10.5.1.0/24", (Hop("eth0", "172.16.0.1"),)), errno.ENETUNREACH),
        (NftElement("peers4", "192.168.50.12"), errno.ENOENT),
        (Sysctl("net/ipv4/none", "1"), errno.ENOENT),
        (msgspec.structs.replace(DEVICE, name="na-vx9"), errno.EEXIST),  # its VNI and port are taken
    ],
)
def test_refuses_what_the_kernel_refuses(host: FakeHost, obj: Object, code: int) -> None:
    before = dict(host.objects)
    assert put(host, [obj]) == [code]
    assert host.objects == before


def test_an_object_of_another_owner_is_never_replaced(host: FakeHost) -> None:
    host.foreign_put(ROUTE.key, "10.5.82.0/24 dev eth0 proto static")
    (failure,) = host.apply([Op("put", ROUTE)])
    assert (failure.errno, failure.foreign) == (errno.EEXIST, "10.5.82.0/24 dev eth0 proto static")
    host.foreign_delete(ROUTE.key)
    assert put(host, [ROUTE]) == []


def test_a_device_takes_all_that_stands_on_it_and_tells_of_itself_only(host: FakeHost) -> None:
    host.meddle_delete(DEVICE.key)
    assert set(host.objects) == {DIRECT.key}
    assert host.hints() == [Change("link", DEVICE.key)]


def test_ipv4_routes_go_silently_with_their_nexthop(host: FakeHost) -> None:
    host.meddle_delete(NEXTHOP.key)
    assert ROUTE.key not in host.objects
    assert host.hints() == [Change("nexthop", NEXTHOP.key)]


def test_ipv6_routes_tell_when_they_go_with_their_nexthop(host: FakeHost) -> None:
    nexthop = NextHop("na-vx1", "fc00:0:0:82::")
    route = Route("fc00:0:0:82::/64", nexthop=("na-vx1", "fc00:0:0:82::"))
    assert put(host, [nexthop, route]) == []
    host.meddle_delete(nexthop.key)
    assert set(host.hints()) == {Change("nexthop", nexthop.key), Change("route", route.key)}


def test_an_uplink_that_goes_down_loses_its_routes_silently(host: FakeHost) -> None:
    host.set_link(msgspec.structs.replace(UPLINK, up=False, carrier=False))
    assert DIRECT.key not in host.objects
    assert {change.kind for change in host.hints()} == {"link", "facts"}
    assert put(host, [DIRECT]) == [errno.ENETDOWN]


def test_another_vni_makes_the_device_anew(host: FakeHost) -> None:
    assert put(host, [msgspec.structs.replace(DEVICE, mtu=1400)]) == []
    assert NEXTHOP.key in host.objects
    assert put(host, [Link(kind="vxlan", name="na-vx1", mtu=1450, vxlan=VxlanAttrs(vni=2, port=8472))]) == []
    assert NEXTHOP.key not in host.objects


def test_a_kind_that_the_kernel_lacks_is_no_ability_until_it_comes(host: FakeHost) -> None:
    ipip = Link(kind="ipip", name="na-ipip", mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11"))
    host.lacks.add("ipip")
    assert "ipip" in host.facts().abilities  # only making one tells
    assert put(host, [ipip]) == [errno.EOPNOTSUPP]
    assert "ipip" not in host.facts().abilities
    host.lacks.clear()
    assert put(host, [ipip]) == []
    assert "ipip" in host.facts().abilities


def test_two_ip_in_ip_devices_with_one_address_are_refused(host: FakeHost) -> None:
    tunnel = TunnelAttrs(local="192.168.50.11")
    host.set_link(LinkFact(name="flannel.ipip", index=9, kind="ipip", tunnel=tunnel))
    assert put(host, [Link(kind="ipip", name="na-ipip", mtu=1480, tunnel=tunnel)]) == [errno.EEXIST]
    other = TunnelAttrs(local="192.168.50.12")
    assert put(host, [Link(kind="ipip", name="na-ipip", mtu=1480, tunnel=other)]) == []


def test_own_changes_cause_no_hint_and_deleting_what_is_absent_is_no_failure(host: FakeHost) -> None:
    assert host.apply([Op("delete", ROUTE), Op("delete", ROUTE)]) == []
    assert host.gone == [ROUTE.key]
    assert host.hints() == []


def test_what_carries_no_mark_gets_its_old_value_back(host: FakeHost) -> None:
    forward = Sysctl("net/ipv4/ip_forward", "1")
    assert host.dump(("sysctl",)) == []
    assert host.dump(("sysctl",), [forward]) == [Sysctl("net/ipv4/ip_forward", "0")]
    assert put(host, [forward]) == []
    assert host.dump(("sysctl",)) == [forward]
    host.apply([Op("delete", forward)])
    assert host.sysctls["net/ipv4/ip_forward"] == "0"


def test_injected_failures_strike_as_often_as_told(host: FakeHost) -> None:
    host.fail(ROUTE.key, errno.ENOBUFS, times=2)
    assert [put(host, [ROUTE]) for _ in range(3)] == [[errno.ENOBUFS], [errno.ENOBUFS], []]


async def test_an_overflow_hints_at_every_kind(host: FakeHost) -> None:
    host.hint("route", ROUTE.key)
    host.overflow()
    async for batch in host.changes():
        assert batch == [Change(kind) for kind in KINDS]
        break
