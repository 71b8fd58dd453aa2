"""flannel's masquerade rules, one by one, with packets; and the guard of the backend's port."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from netagent.kernel.base import Op
from netagent.kernel.firewall import Firewall
from netagent.model import Link, Network, NftElement, NftTable, Node, VxlanAttrs
from netagent.plan import hostplan
from tests.support.netns import Namespace, Namespaces, need_tool

pytestmark = pytest.mark.netns

NETWORK = Network(v4="10.5.0.0/16", subnet_len=24, v6="fd05::/48", subnet_len6=64)
NODE = Node(name="a", id="0" * 32, uplink="eth0", mtu=1500, v4="10.5.59.0/24", v6="fd05:0:0:59::/64")
PORT, GUARDED = 9999, 8285


class Site:
    """This node, a container of its own, a container of another node, and somebody outside the network."""

    def __init__(self, net: Namespaces) -> None:
        self.node, self.own, self.remote, self.outside = (net.make(n) for n in ("node", "own", "remote", "outside"))
        self.address = {
            4: {self.own: "10.5.59.2", self.remote: "10.5.60.2", self.outside: "192.168.50.99"},
            6: {self.own: "fd05:0:0:59::2", self.remote: "fd05:0:0:60::2", self.outside: "fd50::99"},
        }
        self.gateway = {
            4: {self.own: "10.5.59.1", self.remote: "10.5.60.1", self.outside: "192.168.50.11"},
            6: {self.own: "fd05:0:0:59::1", self.remote: "fd05:0:0:60::1", self.outside: "fd50::11"},
        }
        for name, space in (("own", self.own), ("remote", self.remote), ("outside", self.outside)):
            net.veth(space, "eth0", self.node, name)
            for family, length in ((4, 24), (6, 64)):
                space.ip(f"address add {self.address[family][space]}/{length} dev eth0")
                self.node.ip(f"address add {self.gateway[family][space]}/{length} dev {name}")
                space.ip(f"-{family} route add default via {self.gateway[family][space]}")
        self.node.sysctl("net/ipv4/ip_forward", "1")
        self.node.sysctl("net/ipv6/conf/all/forwarding", "1")
        self.wall = self.node.call(Firewall)

    def put(self, *objects: NftTable | NftElement) -> None:
        assert self.node.call(self.wall.apply, [Op("put", obj) for obj in objects]) == []

    def seen(self, sender: Namespace, receiver: Namespace, family: int, *, source: str = "", mark: int = 0) -> str:
        """The source address that the receiver sees of a datagram."""
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        with receiver.call(socket.socket, kind, socket.SOCK_DGRAM) as inlet:
            inlet.bind(("", PORT))
            inlet.settimeout(5)
            with sender.call(socket.socket, kind, socket.SOCK_DGRAM) as outlet:
                outlet.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                outlet.bind((source, 0))
                outlet.sendto(b"x", (self.address[family][receiver], PORT))
                address: str = inlet.recvfrom(100)[1][0]
                return address


@pytest.fixture
def site(namespaces: Namespaces) -> Iterator[Site]:
    need_tool("nft")
    site = Site(namespaces)
    yield site
    site.wall.close()


def table(*, ip_masq: bool = True, ports: tuple[int, ...] = ()) -> NftTable:
    return NftTable("inet", "netagent", hostplan.table_body(NETWORK, NODE, ip_masq=ip_masq, ports=ports))


@pytest.mark.parametrize("family", [4, 6])
def test_who_sees_which_source(site: Site, family: int) -> None:
    address, gateway = site.address[family], site.gateway[family]
    site.put(table())
    # Inside the network sources are kept.
    assert site.seen(site.own, site.remote, family) == address[site.own]
    assert site.seen(site.remote, site.own, family) == address[site.remote]
    # What leaves it is masqueraded ...
    assert site.seen(site.own, site.outside, family) == gateway[site.outside]
    # ... unless it is marked.
    inside = gateway[site.own]
    assert site.seen(site.node, site.outside, family, source=inside) == gateway[site.outside]
    assert site.seen(site.node, site.outside, family, source=inside, mark=0x4000) == inside
    assert site.seen(site.node, site.outside, family, source=inside, mark=0xC001) == inside
    assert site.seen(site.node, site.outside, family, source=inside, mark=0x8000) == gateway[site.outside]
    # From outside: to this node's own containers the source is kept, on the way to another node it is not.
    assert site.seen(site.outside, site.own, family) == address[site.outside]
    assert site.seen(site.outside, site.remote, family) == gateway[site.remote]


@pytest.mark.parametrize("family", [4, 6])
def test_without_masquerade_every_source_is_kept(site: Site, family: int) -> None:
    site.put(table())
    site.put(table(ip_masq=False))
    for sender in site.address[family]:
        for receiver in site.address[family]:
            if sender is not receiver:
                assert site.seen(sender, receiver, family) == site.address[family][sender]


def test_multicast_keeps_its_source(site: Site) -> None:
    site.put(table())
    group = "224.0.0.251"
    with site.outside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as inlet:
        inlet.bind(("", PORT))
        inlet.settimeout(5)
        member = socket.inet_aton(group) + socket.inet_aton(site.address[4][site.outside])
        inlet.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        with site.node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as outlet:
            outlet.bind((site.gateway[4][site.own], 0))
            by = socket.inet_aton(site.gateway[4][site.outside])
            outlet.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, by)
            outlet.sendto(b"x", (group, PORT))
        assert inlet.recvfrom(100)[1][0] == site.gateway[4][site.own]


@pytest.mark.parametrize("family", [4, 6])
def test_only_known_peers_reach_the_port(site: Site, family: int) -> None:
    """A datagram that is dropped is followed by one that is not: what comes first tells."""
    peer, stranger = site.outside, site.remote
    site.put(table(ports=(GUARDED,)), NftElement(f"peers{family}", site.address[family][peer]))
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with site.node.call(socket.socket, kind, socket.SOCK_DGRAM) as inlet:
        inlet.bind(("", GUARDED))
        inlet.settimeout(5)
        for sender in (stranger, peer):
            with sender.call(socket.socket, kind, socket.SOCK_DGRAM) as outlet:
                outlet.sendto(b"x", (site.gateway[family][sender], GUARDED))
        assert inlet.recvfrom(100)[1][0] == site.address[family][peer]
        site.put(NftElement(f"peers{family}", site.address[family][stranger]))
        with stranger.call(socket.socket, kind, socket.SOCK_DGRAM) as outlet:
            outlet.sendto(b"x", (site.gateway[family][stranger], GUARDED))
        assert inlet.recvfrom(100)[1][0] == site.address[family][stranger]


def test_two_agents_share_a_port_by_their_vni(site: Site) -> None:
    """The guard of one agent lets the other's VXLAN packets be: they carry another VNI."""
    links = [Link(kind="vxlan", name="na-vx7", mtu=1450, vxlan=VxlanAttrs(vni=7, port=8472))]
    body = hostplan.table_body(NETWORK, NODE, ip_masq=False, ports=(8472,), links=links)
    site.put(NftTable("inet", "netagent", body))
    with site.node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as inlet:
        inlet.bind(("", 8472))
        inlet.settimeout(5)
        with site.outside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as outlet:
            for vni in (7, 8):
                header = bytes.fromhex("08000000") + vni.to_bytes(3, "big") + b"\0"
                outlet.sendto(header + bytes([vni]), (site.gateway[4][site.outside], 8472))
        assert inlet.recv(100)[-1] == 8
