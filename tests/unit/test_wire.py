"""The netlink codec byte for byte, and what it makes of the kernel's answers."""

import errno
import struct
import sys

import pytest

from netagent.kernel.netlink import CHUNK
from netagent.kernel.wire import links, message, neighbours, nexthops, routes
from netagent.model import Hop, Route, TunnelAttrs, VxlanAttrs

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the dumps below were taken on a little-endian host"
)

DEVICES = {"eth0": 1, "na-vx1": 2}


def hexed(data: bytes) -> str:
    return data.hex(" ", 4)


# What `ip` and `bridge` (iproute2 6.1) send for the command of each docstring, taken with strace. The sequence number
# and the flag that asks for an acknowledgement are left out: both are the socket's to set.


def test_a_route_by_nexthop_object() -> None:
    """ip route add 10.5.82.0/24 metric 300 nhid 0x6e000000 proto 110"""
    route = Route("10.5.82.0/24", nexthop=("na-vx1", "10.5.82.0"), metric=300)
    assert hexed(routes.put(route, message.EXCL, 110, 0x6E000000, DEVICES)) == (
        "34000000 18000106 00000000 00000000 02180000 fe6e0001 00000000 08000100 0a055200 08000600 2c010000 "
        "08001e00 0000006e"
    )


def test_a_route_by_gateway_on_link() -> None:
    """ip route replace 10.5.82.0/24 metric 0 via 10.5.82.0 dev na-vx1 onlink proto 110"""
    route = Route("10.5.82.0/24", (Hop("na-vx1", "10.5.82.0", onlink=True),))
    assert hexed(routes.put(route, message.REPLACE, 110, 0, DEVICES)) == (
        "3c000000 18000105 00000000 00000000 02180000 fe6e0001 04000000 08000100 0a055200 08000600 00000000 "
        "08000500 0a055200 08000400 02000000"
    )


def test_a_nexthop_object() -> None:
    """ip nexthop add id 0x6e000000 via 10.5.82.0 dev na-vx1 onlink proto 110"""
    assert hexed(nexthops.put(0x6E000000, 2, "10.5.82.0", 110)) == (
        "30000000 68000106 00000000 00000000 02006e00 04000000 08000100 0000006e 08000600 0a055200 08000500 02000000"
    )


def test_a_permanent_neighbour() -> None:
    """ip neighbour replace 10.5.82.0 lladdr ba:d2:d9:65:1e:87 dev na-vx1 nud permanent"""
    assert hexed(neighbours.put(2, "10.5.82.0", "ba:d2:d9:65:1e:87")) == (
        "30000000 1c000105 00000000 00000000 02000000 02000000 80000000 08000100 0a055200 0a000200 bad2d965 1e870000"
    )


def test_a_forwarding_entry() -> None:
    """bridge fdb replace ba:d2:d9:65:1e:87 dev na-vx1 dst 192.168.50.12 self permanent"""
    assert hexed(neighbours.put_fdb(2, "ba:d2:d9:65:1e:87", "192.168.50.12")) == (
        "30000000 1c000105 00000000 00000000 07000000 02000000 c0000200 0a000200 bad2d965 1e870000 08000100 c0a8320c"
    )


def test_the_vxlan_port_is_in_network_order() -> None:
    data = links.create("vxlan", "na-vx1", 1450, None, VxlanAttrs(vni=1, port=8472))
    assert struct.pack("=HH", 6, 15) + b"\x21\x18" in data


def test_an_ip_in_ip_device() -> None:
    """ip link add na-ipip mtu 1480 type ipip local 192.168.50.11 ttl 64 pmtudisc"""
    assert hexed(links.create("ipip", "na-ipip", 1480, None, tunnel=TunnelAttrs(local="192.168.50.11"))) == (
        "68000000 10000106 00000000 00000000 00000000 00000000 00000000 00000000 0c000300 6e612d69 70697000 08000400 "
        "c8050000 34001280 09000100 69706970 00000000 24000280 08000200 c0a8320b 05000400 40000000 05000900 04000000 "
        "05000a00 01000000"
    )


def test_the_local_address_of_a_tunnel_is_no_mac() -> None:
    data = links.create("ipip", "na-ipip", 1480, None, tunnel=TunnelAttrs(local="192.168.50.11"))
    data += message.attribute(1, bytes((192, 168, 50, 11)))  # IFLA_ADDRESS, as Linux tells it
    told = links.decode(data, message.HEADER.size, len(data))
    assert told is not None
    assert (told.name, told.mac) == ("na-ipip", "")


def test_a_device_that_puts_ipv6_into_ipv4() -> None:
    """ip link add na-sit mtu 1480 type sit mode ip6ip local 192.168.50.11 ttl 64 pmtudisc"""
    data = links.create("sit", "na-sit", 1480, None, tunnel=TunnelAttrs(local="192.168.50.11"))
    assert struct.pack("=HH", 5, 9) + b"\x29\0\0\0" in data
    assert struct.pack("=HH", 8, 2) + b"\xc0\xa8\x32\x0b" in data


# --------------------------------------------------------------------------------------------------- answers


def answer(code: int, *, flags: int = 0, rest: bytes = b"") -> tuple[bytes, message.Message]:
    data = message.HEADER.pack(16 + 4 + len(rest), message.ERROR, flags, 7, 0) + struct.pack("=i", -code) + rest
    (found,) = message.messages(data)
    return data, found


def test_a_refusal_with_the_kernels_words_behind_a_capped_request() -> None:
    words = message.attribute_text(1, "Nexthop has invalid gateway")
    rest = message.HEADER.pack(100, 24, 0, 7, 0) + words
    data, found = answer(errno.ENETUNREACH, flags=message.CAPPED | message.ACK_TLVS, rest=rest)
    assert message.refusal(data, found) == (errno.ENETUNREACH, "Nexthop has invalid gateway")


def test_a_refusal_with_the_kernels_words_behind_the_whole_request() -> None:
    request = routes.put(Route("10.5.82.0/24", type="unreachable"), 0, 110, 0, DEVICES)
    data, found = answer(
        errno.EEXIST, flags=message.ACK_TLVS, rest=request + message.attribute_text(1, "File exists")
    )
    assert message.refusal(data, found) == (errno.EEXIST, "File exists")


def test_an_acknowledgement_and_one_cut_short() -> None:
    data, found = answer(0, rest=message.HEADER.pack(16, 24, 0, 7, 0))
    assert message.refusal(data, found) == (0, "")
    assert message.refusal(data, found._replace(end=found.start + 2)) == (0, "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x10\0\0",
        message.HEADER.pack(0, 24, 0, 0, 0),  # would stand still
        message.HEADER.pack(15, 24, 0, 0, 0),
        message.HEADER.pack(17, 24, 0, 0, 0),  # points outside
    ],
)
def test_a_length_that_cannot_be_ends_the_walk(data: bytes) -> None:
    assert list(message.messages(data)) == []


def test_several_messages_with_padding_between_them() -> None:
    first = message.HEADER.pack(17, 24, 0, 1, 0) + b"x" + bytes(3)
    second = message.HEADER.pack(16, 25, 0, 2, 0)
    assert [(found.type, found.end - found.start) for found in message.messages(first + second)] == [(24, 1), (25, 0)]


def test_attributes_stop_at_nonsense_and_forget_the_nested_flag() -> None:
    good = message.nest(8, message.attribute_u32(2, 1400))
    assert message.attributes(good + b"\x02\0\x05\0", 0, len(good) + 4) == {8: message.attribute_u32(2, 1400)}
    assert message.attributes(good + b"\xff\0\x05\0", 0, len(good) + 4) == {8: message.attribute_u32(2, 1400)}


def test_the_metric_of_an_ipv6_route_is_the_kernels_own_on_the_wire() -> None:
    plain, explicit = (
        routes.put(Route("fc00::/64", type="unreachable", metric=metric), 0, 110, 0, DEVICES) for metric in (0, 1024)
    )
    assert plain == explicit
    told = routes.decode(plain, 16, len(plain))
    assert told is not None
    assert told.metric == 0


@pytest.mark.parametrize("mac", ["", "02:00", "02:00:00:00:00:00:01", "zz:00:00:00:00:00", "020000000001 "])
def test_what_is_no_mac_address(mac: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        neighbours.mac_bytes(mac)


def test_a_device_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match="nonesuch"):
        routes.put(Route("10.5.82.0/24", (Hop("nonesuch", "10.0.0.1"),)), 0, 110, 0, DEVICES)


def test_a_chunk_of_the_largest_bulk_requests_fits_a_datagram() -> None:
    largest = routes.put(Route("fc00::/64", (Hop("eth0", "fd50::1"),)), 0, 110, 0, DEVICES)
    assert CHUNK * len(largest) < 65536
