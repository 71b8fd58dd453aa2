"""The udp backend between hosts in network namespaces: what must pass passes, the rest is dropped and counted."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netagent.model import Lease
from tests.support.netns import Namespace, Namespaces, eventually, need_device, need_tool
from tests.support.udp import FLANNEL, FLANNEL_INNER, Lab, UdpHost, join

pytestmark = [pytest.mark.netns, pytest.mark.timeout(60)]

FAMILIES = pytest.mark.parametrize(
    "families",
    [{"v4": True}, {"v4": True, "v6": True}, {"v4": False, "v6": True}, {"v4": True, "v6": True, "outer6": False}],
    ids=["v4", "dual", "v6", "v6-over-v4"],
)


@pytest.fixture(autouse=True)
def needs() -> None:
    need_device("tun")
    need_tool("ping")


@pytest.fixture
async def lab(namespaces: Namespaces, tmp_path: Path) -> AsyncIterator[Lab]:
    async with Lab(namespaces, tmp_path) as lab:
        yield lab


def targets(host: UdpHost) -> list[str]:
    network = host.context.network
    return [*([host.address4] if network.v4 else []), *([host.address6] if network.v6 else [])]


def ping(source: Namespace, target: str, *options: str) -> str:
    """One ping that must be answered; a second try, because neighbours may be resolved first."""
    return source.run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", *options, target).stdout


def refused(source: Namespace, target: str, *options: str) -> str:
    """What a ping that must not be answered says."""
    result = source.run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", *options, target, check=False)
    assert result.returncode != 0, result.stdout
    return result.stdout + result.stderr


@FAMILIES
async def test_all_pairs(lab: Lab, families: dict[str, bool]) -> None:
    hosts = await lab.cluster(3, **families)
    for one in hosts:
        for other in hosts:
            if one is not other:
                for target in targets(other):
                    ping(one.container, target)
                    ping(one.space, target)


@FAMILIES
async def test_sizes_up_to_and_above_the_mtu(lab: Lab, families: dict[str, bool]) -> None:
    """A packet of the MTU passes, one more byte with DF is refused with the MTU, without DF it is fragmented."""
    one, other = await lab.cluster(2, **families)
    mtu = 1452 if families.get("v6") else 1472
    for target in targets(other):
        headers = 48 if ":" in target else 28
        ping(one.container, target, "-M", "do", "-s", str(mtu - headers))
        # The first packet above it tells the sender, who then refuses the rest by itself.
        told = refused(one.container, target, "-M", "do", "-s", str(mtu - headers + 1))
        assert f"mtu = {mtu}" in told or f"mtu={mtu}" in told
        ping(one.container, target, "-M", "dont", "-s", "4000")
        ping(one.container, target, "-M", "dont", "-s", "20000")


async def test_a_narrow_path_is_told_to_the_sender(lab: Lab) -> None:
    """A router between the hosts with a smaller MTU: frag-needed and packet-too-big come back with what is left."""
    hosts = [lab.host(number, v4=True, v6=True) for number in (1, 2)]
    routers = [lab.net.make(f"router{number}") for number in (1, 2)]
    lab.net.veth(routers[0], "narrow", routers[1], "narrow", mtu=1400)
    for host, router in zip(hosts, routers, strict=True):
        number, other = host.number, 3 - host.number
        router.sysctl("net/ipv4/ip_forward", "1")
        router.sysctl("net/ipv6/conf/all/forwarding", "1")
        lab.net.veth(host.space, "eth0", router, "eth0")
        for near, length, link in (("192.168.50.1", 32, "10.0.0."), ("fd50::1", 128, "fd00::")):
            host.space.ip(f"address add {near}{number}/{length} dev eth0")
            host.space.ip(f"route add {near} dev eth0")
            host.space.ip(f"route add {near}{other} via {near}")
            router.ip(f"address add {near}/{length} dev eth0")
            router.ip(f"address add {link}{number}/{length - 8} dev narrow")
            router.ip(f"route add {near}{number} dev eth0")
            router.ip(f"route add {near}{other} via {link}{other}")
    await join(hosts)
    one, other = hosts
    # The outer packet is refused by the router first; the kernel learns, the engine asks it and tells the sender.
    for target, left, headers in ((other.address4, 1372, 28), (other.address6, 1352, 48)):
        told = one.container.run(
            "ping",
            "-n",
            "-c",
            "4",
            "-i",
            "0.2",
            "-W",
            "1",
            "-M",
            "do",
            "-s",
            str(1440 - headers),
            target,
            check=False,
        )
        assert f"mtu = {left}" in told.stdout or f"mtu={left}" in told.stdout, told.stdout
        ping(one.container, target, "-M", "do", "-s", str(left - headers))
    ping(one.container, other.address4, "-M", "dont", "-s", "1400")
    assert transfer(one.container, other.container, other.address4, 1 << 20)
    assert transfer(one.container, other.container, other.address6, 1 << 20)


@FAMILIES
async def test_tcp_and_udp_arrive_whole(lab: Lab, families: dict[str, bool]) -> None:
    one, other = await lab.cluster(2, **families)
    for target in targets(other):
        assert transfer(one.container, other.container, target, 8 << 20)
        echo_datagrams(one.container, other.container, target, (0, 1, 100, 1400, 1401, 1424, 9000))


def transfer(source: Namespace, sink: Namespace, target: str, size: int) -> bool:
    """Whether `size` random bytes arrive as they were sent, both ways at once."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    payload = os.urandom(size)

    def open_listener() -> socket.socket:
        return socket.create_server((target, 0), family=family)

    def open_client() -> socket.socket:
        return socket.create_connection(listener.getsockname()[:2], timeout=10)

    with sink.call(open_listener) as listener:
        listener.settimeout(10)
        with source.call(open_client) as client, listener.accept()[0] as server:
            server.settimeout(10)
            digests: dict[socket.socket, bytes] = {}

            def receive(sock: socket.socket) -> None:
                seen = hashlib.sha256()
                left = size
                while left:
                    data = sock.recv(min(left, 1 << 18))
                    if not data:
                        break
                    seen.update(data)
                    left -= len(data)
                digests[sock] = seen.digest()

            threads = [
                threading.Thread(target=work, args=(sock, *rest))
                for sock in (client, server)
                for work, *rest in ((socket.socket.sendall, payload), (receive,))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wanted = hashlib.sha256(payload).digest()
            return digests == {client: wanted, server: wanted}


def echo_datagrams(source: Namespace, sink: Namespace, target: str, sizes: tuple[int, ...]) -> None:
    """Datagrams of these sizes come back byte for byte; the large ones travel as fragments."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET

    def bound(address: str) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(5)
        if address:
            sock.bind((address, 0))
        return sock

    with sink.call(bound, target) as server, source.call(bound, "") as client:
        for size in sizes:
            payload = os.urandom(size)
            client.sendto(payload, server.getsockname()[:2])
            data, sender = server.recvfrom(65535)
            assert data == payload
            server.sendto(data, sender)
            assert client.recv(65535) == payload


async def test_traceroute_sees_the_tunnel(lab: Lab) -> None:
    """A TTL that ends in the engine is told, from the address of the peer's end of the tunnel."""
    one, other = await lab.cluster(2, v4=True, v6=True)
    assert "From 10.5.2.0 " in refused(one.container, other.address4, "-t", "2")
    assert "From fc00:0:0:2::" in refused(one.container, other.address6, "-t", "2")


async def test_a_peer_that_left_is_unreachable(lab: Lab) -> None:
    """While its route still stands the sender is told; with its lease back it is reached again."""
    one, other = await lab.cluster()
    assert one.service is not None
    ping(one.container, other.address4)
    await one.service.ask(peers=[], removed=[other.lease.key])
    assert "Net Unreachable" in refused(one.container, other.address4)
    await one.start([other.lease])
    ping(one.container, other.address4)


def inner_udp(source: str, target: str, port: int, payload: bytes) -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.packet import Raw

    return bytes(IP(src=source, dst=target) / UDP(sport=4000, dport=port) / Raw(payload))


async def test_spoofed_packets_are_dropped_and_counted(lab: Lab) -> None:
    """Only a known peer's address is heard, only with inner sources of that peer, only for this node's subnet."""
    one, other, third = await lab.cluster(3)
    assert one.service is not None
    await one.service.ask(peers=[], removed=[third.lease.key])  # h3 is no peer any more

    def send(host: UdpHost, packet: bytes) -> None:
        def inject() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(packet, ("192.168.50.11", 8285))

        host.space.call(inject)

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((one.address4, 5000))
        sock.settimeout(5)
        return sock

    with one.container.call(listen) as sock:
        send(third, inner_udp("10.5.2.2", one.address4, 5000, b"unknown sender"))
        send(third, inner_udp("10.5.3.2", one.address4, 5000, b"unknown sender, its own source"))
        send(other, inner_udp("10.5.3.2", one.address4, 5000, b"another's source"))
        send(other, inner_udp("192.168.50.12", one.address4, 5000, b"a source outside of the network"))
        send(other, inner_udp("10.5.2.2", "10.5.3.2", 5000, b"not for this node"))
        send(other, b"short")
        send(other, inner_udp("10.5.2.2", one.address4, 5000, bytes(1473 - 28)))
        send(other, inner_udp("10.5.2.2", one.address4, 5000, b"torn")[:-2])
        send(other, inner_udp("10.5.2.2", one.address4, 5000, b"good"))
        assert sock.recv(2000) == b"good"
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(2000)
    want = {"unknown-sender": 2, "source": 2, "destination": 1, "too-short": 1, "too-large": 1, "malformed": 1}
    async with asyncio.timeout(20):
        while True:
            status = await one.status()
            drops = {reason: count for reason, count in status["drops"].items() if reason != "multicast"}
            if drops == want:
                break
            assert all(want.get(reason, 0) >= count for reason, count in drops.items()), drops
            await asyncio.sleep(0.1)
    assert status["peers"]["10.5.2.0-24"]["drops"] == 6


async def test_a_flannel_peer_is_spoken_to_in_its_own_format(lab: Lab) -> None:
    """A stand-in for flanneld v0.20.2: the datagram of its dump in, and the answer held against that dump."""
    host = lab.host(72, outer4="192.168.50.12")
    flanneld = lab.net.make("flanneld")
    lab.net.switch("switch", {host.space: host.outer, flanneld: "192.168.50.11/24"})
    lease = Lease(key="10.5.62.0-24", v4="10.5.62.0/24", v6=None, public_ip="192.168.50.11")
    host.lay([lease])
    await host.start([lease])
    await host.until_running()

    def bound() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("192.168.50.11", 8285))
        return sock

    def tapped() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        sock.bind(("eth0", 0x0800))
        sock.settimeout(5)
        return sock

    with flanneld.call(bound) as proxy, flanneld.call(tapped) as tap:
        proxy.sendto(FLANNEL_INNER, ("192.168.50.12", 8285))
        seen = tap.recv(2000)
    # Version and length; DF, TTL and protocol; addresses and ports, source and destination changed; UDP length.
    assert (seen[:4], seen[6:10]) == (FLANNEL[:4], FLANNEL[6:10])
    assert (seen[12:16], seen[16:20], seen[20:24]) == (FLANNEL[16:20], FLANNEL[12:16], FLANNEL[20:24])
    assert seen[24:26] == FLANNEL[24:26]
    inner, sent = seen[28:], FLANNEL_INNER
    assert (inner[:4], inner[8:10]) == (sent[:4], sent[8:10])  # TTL 62 here too: one hop, and the tunnel
    assert (inner[12:16], inner[16:20]) == (sent[16:20], sent[12:16])
    assert (inner[20:22], inner[24:]) == (b"\0\0", sent[24:])  # the echo reply


async def test_a_device_that_is_deleted_is_taken_up_again(lab: Lab) -> None:
    one, other = await lab.cluster()
    one.space.ip("link delete na-tun")
    one.lay([other.lease])
    await eventually(
        lambda: one.container.run("ping", "-c", "1", "-W", "1", other.address4, check=False).returncode == 0,
        "a ping after the device came back",
    )
