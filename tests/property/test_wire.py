"""The netlink codec: what is encoded is decoded again, and nothing that comes in can crash it."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from netagent.kernel.wire import addresses, links, message, neighbours, netconf, nexthops, routes
from netagent.model import FdbEntry, Hop, Neighbour, NextHop, Route, TunnelAttrs, VxlanAttrs

DECODERS: tuple[Callable[[bytes, int, int], object], ...] = (
    links.decode,
    addresses.decode,
    routes.decode,
    routes.protocol_of,
    routes.is_default_or_direct,
    routes.destination_of,
    nexthops.decode,
    neighbours.decode,
    netconf.decode,
)
DEVICES = {"na-vx1": 7, "eth0": 2, "na-tun": 1 << 30}
NAMES = {number: name for name, number in DEVICES.items()}
PROTOCOL = 110

u32 = st.integers(1, 0xFFFFFFFF)
v4 = st.integers(1, 0xFFFFFFFE).map(lambda n: str(ipaddress.IPv4Address(n)))
# Below lie IPv4-compatible and IPv4-mapped addresses, which Python and inet_ntop write in different ways.
v6 = st.integers(1 << 112, (1 << 128) - 1).map(lambda n: str(ipaddress.IPv6Address(n)))
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
devices = st.sampled_from(sorted(DEVICES))


@st.composite
def plain_routes(draw: Any) -> tuple[Route, int]:
    """A route, and the number of its nexthop object (0: none)."""
    six = draw(st.booleans())
    ips = v6 if six else v4
    length = draw(st.integers(0, 128 if six else 32))
    network = ipaddress.ip_network(f"{draw(ips)}/{length}", strict=False)
    common = {
        "metric": draw(st.one_of(st.just(0), u32.filter(lambda n: n != 1024))),
        "src": draw(st.one_of(st.none(), ips)),
        "mtu": draw(st.one_of(st.just(0), st.integers(68, 65535))),
    }
    form = draw(st.sampled_from(["hops", "nexthop", "reject"]))
    if form == "reject":
        return Route(str(network), type=draw(st.sampled_from(["unreachable", "blackhole"])), **common), 0
    if form == "nexthop":
        return Route(str(network), nexthop=(draw(devices), draw(ips)), **common), draw(u32)
    hop = st.builds(Hop, devices, st.one_of(st.none(), ips), st.booleans(), st.just(1))
    hops = draw(st.lists(hop, min_size=1, max_size=4))
    if len(hops) > 1:
        hops = [each._replace(weight=draw(st.integers(1, 256))) for each in hops]
    return Route(str(network), tuple(hops), **common), 0


def only(data: bytes) -> message.Message:
    """The one message that a request is; checks the header."""
    (found,) = message.messages(data)
    assert found.end == len(data) == int.from_bytes(data[:4], "little" if struct.pack("=H", 1)[0] else "big")
    assert found.flags & message.REQUEST
    assert (found.seq, found.port) == (0, 0)
    return found


@given(plain_routes())
def test_routes_come_back(case: tuple[Route, int]) -> None:
    route, number = case
    data = routes.put(route, message.EXCL, PROTOCOL, number, DEVICES)
    found = only(data)
    assert found.flags & (message.CREATE | message.EXCL) == message.CREATE | message.EXCL
    told = routes.decode(data, found.start, found.end)
    assert told is not None
    hops = tuple(Hop(NAMES[leg.ifindex], leg.gateway, leg.onlink, leg.weight) for leg in told.legs)
    assert told.nexthop == number
    assert (told.table, told.protocol) == (routes.TABLE_MAIN, PROTOCOL)
    kind = routes.TYPE_NAMES[told.type]
    assert Route(told.dst, hops, route.nexthop, kind, told.metric, told.src, told.mtu) == route


@given(plain_routes())
def test_a_route_is_deleted_by_what_identifies_it(case: tuple[Route, int]) -> None:
    route, _ = case
    data = routes.delete(route, PROTOCOL)
    found = only(data)
    told = routes.decode(data, found.start, found.end)
    assert told is not None
    assert (told.dst, told.metric, told.protocol, told.legs) == (route.dst, route.metric, PROTOCOL, ())
    assert routes.TYPE_NAMES[told.type] == route.type


@given(st.builds(NextHop, devices, v4 | v6), u32)
def test_nexthops_come_back(obj: NextHop, number: int) -> None:
    data = nexthops.put(number, DEVICES[obj.dev], obj.gateway, PROTOCOL)
    found = only(data)
    assert not found.flags & message.REPLACE
    assert nexthops.decode(data, found.start, found.end) == nexthops.NexthopMessage(
        number, PROTOCOL, DEVICES[obj.dev], obj.gateway, True
    )


@given(st.builds(Neighbour, devices, v4 | v6, macs), st.builds(FdbEntry, devices, macs, v4 | v6))
def test_neighbours_and_forwarding_entries_come_back(neighbour: Neighbour, fdb: FdbEntry) -> None:
    data = neighbours.put(DEVICES[neighbour.dev], neighbour.ip, neighbour.mac)
    told = neighbours.decode(data, only(data).start, len(data))
    family = message.AF_INET6 if ":" in neighbour.ip else message.AF_INET
    assert told == (family, DEVICES[neighbour.dev], neighbours.PERMANENT, 0, neighbour.ip, neighbour.mac)
    data = neighbours.put_fdb(DEVICES[fdb.dev], fdb.mac, fdb.dst)
    told = neighbours.decode(data, only(data).start, len(data))
    state = neighbours.PERMANENT | neighbours.NOARP
    assert told == (message.AF_BRIDGE, DEVICES[fdb.dev], state, neighbours.SELF, fdb.dst, fdb.mac)


@given(v4 | v6, st.data(), st.sampled_from(sorted(addresses.SCOPES)))
def test_addresses_come_back(ip: str, data: st.DataObject, scope: str) -> None:
    full = 128 if ":" in ip else 32
    length = data.draw(st.integers(0, full))
    raw = addresses.put(7, ip, length, scope)
    told = addresses.decode(raw, only(raw).start, len(raw))
    assert told is not None
    assert (told.ifindex, told.ip, told.length, told.scope) == (7, ip, length, scope)
    assert bool(told.flags & addresses.NOPREFIXROUTE) is (length == full)


vxlans = st.builds(
    VxlanAttrs,
    vni=st.integers(1, 0xFFFFFF),
    port=st.integers(1, 65535),
    local=st.one_of(st.none(), v4, v6),
    learning=st.booleans(),
    gbp=st.booleans(),
)


@given(
    st.text("abcdefgh-0123", min_size=1, max_size=15), st.integers(68, 65535), macs, vxlans, st.integers(0, 1 << 30)
)
def test_vxlan_devices_come_back(name: str, mtu: int, mac: str, vxlan: VxlanAttrs, parent: int) -> None:
    data = links.create("vxlan", name, mtu, mac, vxlan, parent)
    told = links.decode(data, only(data).start, len(data))
    assert told is not None
    assert (told.name, told.kind, told.mtu, told.mac, told.parent) == (name, "vxlan", mtu, mac, parent)
    assert told.vxlan == vxlan


some4 = v4.filter(lambda ip: ip != "0.0.0.0")


@given(
    st.integers(68, 65535),
    st.sampled_from(("ipip", "sit")),
    st.builds(TunnelAttrs, local=some4, remote=st.none() | some4),
)
def test_ip_in_ip_devices_come_back(mtu: int, kind: str, tunnel: TunnelAttrs) -> None:
    data = links.create(kind, "na-ipip", mtu, None, tunnel=tunnel)
    told = links.decode(data, only(data).start, len(data))
    assert told is not None
    assert (told.name, told.kind, told.mtu, told.tunnel, told.vxlan) == ("na-ipip", kind, mtu, tunnel, None)


# ----------------------------------------------------------------------------------------------- hostile input


def decode_all(data: bytes) -> None:
    for found in message.messages(data):
        assert 0 <= found.start <= found.end <= len(data)
        message.refusal(data, found)
        for decode in DECODERS:
            decode(data, found.start, found.end)


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_and_decoded_without_an_exception(data: bytes) -> None:
    decode_all(data)
    for decode in DECODERS:
        decode(data, 0, len(data))
    message.attributes(data, 0, len(data))


ORIGINALS = (
    routes.put(Route("10.5.0.0/24", (Hop("eth0", "10.0.0.1"), Hop("eth0", "10.0.0.2"))), 0, 110, 0, DEVICES),
    routes.put(Route("fc00::/64", nexthop=("eth0", "fd50::1"), mtu=1400, src="fd50::2"), 0, 110, 9, DEVICES),
    routes.put(Route("10.5.0.0/24", (Hop("eth0", "fd50::1"),)), 0, 110, 0, DEVICES),
    nexthops.put(9, 7, "fc00::1", 110),
    neighbours.put_fdb(7, "02:00:00:00:00:01", "fd50::1"),
    addresses.put(7, "10.5.0.1", 24, "global"),
    links.create("vxlan", "na-vx1", 1450, "02:00:00:00:00:01", VxlanAttrs(vni=1, port=8472, local="fd50::1"), 2),
    links.create("ipip", "na-ipip", 1480, None, tunnel=TunnelAttrs(local="192.168.50.11")),
    links.create("sit", "na-sit", 1480, None, tunnel=TunnelAttrs(local="192.168.50.11")),
    message.message(
        message.ERROR, message.CAPPED | message.ACK_TLVS, struct.pack("=i16x", -22) + b"\x08\0\x01\0no\0\0"
    ),
)


@given(
    st.sampled_from(ORIGINALS),
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
)
def test_torn_and_twisted_messages_are_decoded_without_an_exception(
    data: bytes, cut: int, twists: list[tuple[int, int]]
) -> None:
    torn = bytearray(data)
    for position, value in twists:
        torn[position % len(torn)] = value
    torn = torn[: max(cut, 1)]
    decode_all(bytes(torn))
    if len(torn) >= 16:  # the header in order, the rest not
        struct.pack_into("=I", torn, 0, len(torn))
        decode_all(bytes(torn))


@given(plain_routes(), st.integers(31, 0x3FFF), st.binary(max_size=40))
def test_attributes_that_nobody_knows_change_nothing(case: tuple[Route, int], kind: int, value: bytes) -> None:
    route, number = case
    data = routes.put(route, 0, PROTOCOL, number, DEVICES)
    longer = bytearray(data + message.attribute(kind, value))
    struct.pack_into("=I", longer, 0, len(longer))
    assert routes.decode(bytes(longer), 16, len(longer)) == routes.decode(data, 16, len(data))
