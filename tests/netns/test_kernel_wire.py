"""The decoders beside iproute2's own: what `ip -json` says of the kernel's objects is what we read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from netagent.kernel.netlink import RequestSocket
from netagent.kernel.wire import addresses, links, neighbours, nexthops, routes
from netagent.kernel.wire.message import AF_BRIDGE, AF_INET, AF_INET6
from tests.support.netns import Namespace, Namespaces, need_device

pytestmark = pytest.mark.netns

T = TypeVar("T")

SETUP = """
link add br0 type bridge
link set br0 up
link add eth1 type veth peer name eth2
link set eth1 mtu 9000 master br0 alias some-uplink up
link set eth2 up
link add vx4 type vxlan id 5 local 192.168.50.11 dev eth0 dstport 8472 nolearning gbp
link add vx6 type vxlan id 6 local fd50::11 dstport 4789 learning
link set vx4 up
address add 192.168.50.99/16 dev eth0
address add 10.1.1.1/32 dev eth0 scope link
address add fd50::99/64 dev eth0 preferred_lft 0
address add 10.2.2.1 peer 10.2.2.2/32 dev eth1
route add default via 192.168.50.1 metric 100
route add default via fd50::1 proto ra metric 1024
route add 10.9.1.0/24 via 192.168.50.2 proto static src 192.168.50.99 mtu 1400
route add 10.9.2.0/24 nexthop via 192.168.50.2 weight 3 nexthop dev eth2
route add 10.9.3.0/24 via inet6 fd50::2 dev eth0 onlink
route add unreachable 10.9.4.0/24 metric 4294967295
route add blackhole fc00:9::/48
route add prohibit 10.9.5.0/24
route add fc00:1::/64 nexthop via fd50::2 nexthop via fd50::3
nexthop add id 7 via 192.168.50.7 dev eth0 proto 110
nexthop add id 8 via fd50::8 dev eth0 onlink proto static
nexthop add id 9 blackhole
nexthop add id 10 group 7
route add 10.9.6.0/24 nhid 7
neighbour add 10.9.9.9 lladdr 02:00:00:00:00:09 dev vx4 nud permanent
neighbour add fd99::9 lladdr 02:00:00:00:00:09 dev vx4 nud permanent
neighbour add 10.9.9.8 lladdr 02:00:00:00:00:08 dev vx4 nud stale
"""


class Setting:
    def __init__(self, space: Namespace) -> None:
        self.space = space
        self.netlink = RequestSocket()
        self.names = {link.ifindex: link.name for link in self.ours(links.dump(), links.NEWLINK, links.decode)}
        self.numbers = {name: number for number, name in self.names.items()}

    def ip(self, *words: str) -> list[dict[str, Any]]:
        """What `ip -json -details` says."""
        found: list[dict[str, Any]] = json.loads(self.space.run("ip", "-N", "-j", "-d", *words).stdout)
        return found

    def ours(self, request: bytes, kind: int, decode: Callable[[bytes, int, int], T | None]) -> list[T]:
        return self.netlink.dump(request, kind, decode)


@pytest.fixture
def setting(namespaces: Namespaces) -> Iterator[Setting]:
    need_device("vxlan")
    space = namespaces.make("host")
    namespaces.switch("switch", {space: "192.168.50.11/16 fd50::11/64"})
    space.run("ip", "-batch", "-", input=SETUP)
    with space.entered():
        setting = Setting(space)
        yield setting
        setting.netlink.close()


def test_links(setting: Setting) -> None:
    said = {link["ifname"]: link for link in setting.ip("link", "show")}
    told = {link.name: link for link in setting.ours(links.dump(), links.NEWLINK, links.decode)}
    assert said.keys() == told.keys() >= {"lo", "eth0", "br0", "eth1", "vx4", "vx6"}
    for name, link in told.items():
        other = said[name]
        info = other.get("linkinfo", {})
        assert link.ifindex == other["ifindex"]
        assert (link.mtu, link.mac) == (other["mtu"], other.get("address", ""))
        assert link.alias == other.get("ifalias", "")
        assert link.kind == info.get("info_kind", "")
        assert setting.names.get(link.master, "") == other.get("master", "")
        flags = other["flags"]
        bits = (links.IFF_UP, links.IFF_LOWER_UP, links.IFF_LOOPBACK)
        assert [bool(link.flags & bit) for bit in bits] == ["UP" in flags, "LOWER_UP" in flags, "LOOPBACK" in flags]
        data = info.get("info_data", {})
        if link.vxlan is not None:
            assert (link.vxlan.vni, link.vxlan.port) == (data["id"], data["port"])
            assert link.vxlan.local == data.get("local", data.get("local6"))
            assert (link.vxlan.learning, link.vxlan.gbp) == (data["learning"], data.get("gbp", False))
            assert setting.names.get(link.parent) == data.get("link")


def test_tun_and_tap(setting: Setting) -> None:
    need_device("tun")
    setting.space.ip("tuntap add mode tun name tun0 vnet_hdr")
    setting.space.ip("tuntap add mode tun name tun1")
    setting.space.ip("tuntap add mode tap name tap0")
    told = {link.name: link for link in setting.ours(links.dump(), links.NEWLINK, links.decode)}
    assert [(told[name].kind, told[name].tap, told[name].vnet_hdr) for name in ("tun0", "tun1", "tap0")] == [
        ("tun", False, True),
        ("tun", False, False),
        ("tun", True, False),
    ]


def test_addresses(setting: Setting) -> None:
    told = setting.ours(addresses.dump(), addresses.NEWADDR, addresses.decode)
    said = [
        (
            link["ifname"],
            address["local"],
            address["prefixlen"],
            int(address["scope"]),
            address.get("secondary", False),
            address.get("deprecated", False),
        )
        for link in setting.ip("address", "show")
        for address in link["addr_info"]
    ]
    assert len(said) > 8
    assert sorted(said) == sorted(
        (
            setting.names[each.ifindex],
            each.ip,
            each.length,
            addresses.SCOPES[each.scope],
            bool(each.flags & addresses.TEMPORARY),
            bool(each.flags & addresses.DEPRECATED),
        )
        for each in told
    )


@pytest.mark.parametrize(("option", "family"), [("-4", AF_INET), ("-6", AF_INET6)])
def test_routes(setting: Setting, option: str, family: int) -> None:
    said = {}
    for route in setting.ip(option, "route", "show", "table", "main"):
        dst = route["dst"]
        if dst == "default":
            dst = "0.0.0.0/0" if family == AF_INET else "::/0"
        if "/" not in dst:
            dst += "/32" if family == AF_INET else "/128"
        legs = [
            (
                hop["dev"],
                hop.get("gateway") or hop.get("via", {}).get("host"),
                "onlink" in hop.get("flags", ()),
                hop.get("weight", 1),
            )
            for hop in (route.get("nexthops") or [route])
            if "dev" in hop and route.get("type", "unicast") in ("1", "unicast")
        ]
        metric = route.get("metric", 0)
        said[dst, 0 if family == AF_INET6 and metric == 1024 else metric] = (
            int(route["protocol"]),
            route.get("prefsrc"),
            next((metrics["mtu"] for metrics in route.get("metrics", ()) if "mtu" in metrics), 0),
            route.get("nhid", 0),
            legs,
        )
    told = {
        (route.dst, route.metric): (
            route.protocol,
            route.src,
            route.mtu,
            route.nexthop,
            [(setting.names[leg.ifindex], *leg[1:]) for leg in route.legs],
        )
        for route in setting.ours(routes.dump(family), routes.NEWROUTE, routes.decode)
        if route.table == routes.TABLE_MAIN
    }
    assert said == told
    assert len(told) >= 4


def test_nexthops(setting: Setting) -> None:
    said = {
        each["id"]: (
            int(each.get("protocol", 0)),
            each.get("dev"),
            each.get("gateway"),
            "onlink" in each["flags"],
        )
        for each in setting.ip("nexthop", "show")
    }
    told = {
        each.id: (each.protocol, setting.names.get(each.ifindex), each.gateway, each.onlink)
        for each in setting.ours(nexthops.dump(), nexthops.NEWNEXTHOP, nexthops.decode)
    }
    assert told == said
    assert told.keys() == {7, 8, 9, 10}


def test_neighbours(setting: Setting) -> None:
    said = {
        (each["dst"], each["lladdr"], "PERMANENT" in each["state"])
        for each in setting.ip("neighbour", "show", "dev", "vx4", "nud", "all")
        if "lladdr" in each
    }
    told = {
        (each.ip, each.mac, bool(each.state & neighbours.PERMANENT))
        for family in (AF_INET, AF_INET6)
        for each in setting.ours(
            neighbours.dump(family, setting.numbers["vx4"]), neighbours.NEWNEIGH, neighbours.decode
        )
        if each.mac and each.ifindex == setting.numbers["vx4"]
    }
    assert {("10.9.9.9", "02:00:00:00:00:09", True), ("10.9.9.8", "02:00:00:00:00:08", False)} <= told
    assert {each for each in told if not each[0].startswith("ff02")} == {
        each for each in said if not each[0].startswith("ff02")
    }


def test_forwarding_entries(setting: Setting) -> None:
    add = ("bridge", "fdb", "add")
    setting.space.run(*add, "02:00:00:00:00:07", "dev", "vx4", "dst", "192.168.50.7", "self", "permanent")
    setting.space.run(*add, "02:00:00:00:00:08", "dev", "vx6", "dst", "fd50::8", "self", "dynamic")
    said = {
        (each["ifname"], each["mac"], each["dst"], each["state"] == "permanent")
        for each in json.loads(setting.space.run("bridge", "-j", "fdb", "show").stdout)
        if "dst" in each
    }
    told = {
        (dev, each.mac, each.ip, bool(each.state & neighbours.PERMANENT))
        for dev in ("vx4", "vx6")
        for each in setting.ours(
            neighbours.dump(AF_BRIDGE, setting.numbers[dev]), neighbours.NEWNEIGH, neighbours.decode
        )
        if each.ip is not None
    }
    assert (
        told
        == said
        == {
            ("vx4", "02:00:00:00:00:07", "192.168.50.7", True),
            ("vx6", "02:00:00:00:00:08", "fd50::8", False),
        }
    )
