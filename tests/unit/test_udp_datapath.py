"""The data path without privileges: a socket pair stands for the TUN, loopback addresses for hosts.

Replaying flannel's dump (tests/support/udp.py) byte for byte, in and out, stands in for a flanneld on the other side.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from backends.udp import datapath
from backends.udp.coalesce import PLAIN, VNET_SIZE
from backends.udp.datapath import DataPath, open_socket
from backends.udp.table import Entry, Table
from tests.support.udp import FLANNEL, FLANNEL_INNER

NEAR, FAR = "127.0.50.11", "127.0.50.12"


class Rig:
    """A data path on NEAR with one peer on FAR, and the test in the places of the kernel and of the peer."""

    def __init__(self) -> None:
        self.host, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inside.setblocking(False)
        self.host.settimeout(5)
        self.far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.far.bind((FAR, 0))
        self.far.settimeout(5)
        self.port: int = self.far.getsockname()[1]
        self.table = Table()
        self.table.own(["10.5.72.0/24", "fc00:0:0:72::/64"])
        self.entry = Entry("10.5.62.0-24", ("10.5.62.0/24", "fc00:0:0:62::/64"), (FAR,))
        self.table.set([self.entry])
        self.path = DataPath(self.table)
        self.path.port = self.port
        self.path.tun = inside.detach()
        self.path.sockets[4] = open_socket(NEAR, self.port)

    def close(self) -> None:
        self.path.detach()
        for sock in (*self.path.sockets.values(), self.far, self.host):
            sock.close()

    def out(self, *packets: bytes) -> list[bytes]:
        """What the peer gets when the host sends these."""
        for packet in packets:
            self.host.send(PLAIN + packet)
        assert self.path.outgoing()
        self.far.setblocking(False)
        got = []
        try:
            while True:
                got.append(self.far.recv(65535))
        except BlockingIOError:
            return got
        finally:
            self.far.settimeout(5)

    def into(self, *datagrams: bytes, sender: socket.socket | None = None) -> list[bytes]:
        """What the host gets, virtio-net headers and all, when the peer (or somebody else) sends these."""
        for datagram in datagrams:
            (sender or self.far).sendto(datagram, (NEAR, self.port))
        self.path.incoming(self.path.sockets[4])
        return self.given()

    def given(self) -> list[bytes]:
        """What the host was given."""
        self.host.setblocking(False)
        got = []
        try:
            while True:
                got.append(self.host.recv(1 << 17))
        except BlockingIOError:
            return got
        finally:
            self.host.settimeout(5)

    @property
    def drops(self) -> dict[str, int]:
        return dict(self.path.drops)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def v4(
    size: int = 0, *, source: str = "10.5.72.2", target: str = "10.5.62.2", ttl: int = 64, flags: str = "DF"
) -> bytes:
    return bytes(IP(src=source, dst=target, ttl=ttl, flags=flags) / UDP(sport=1, dport=2) / Raw(b"z" * size))


def v6(size: int = 0, *, target: str = "fc00:0:0:62::2", hlim: int = 64) -> bytes:
    return bytes(IPv6(src="fc00:0:0:72::2", dst=target, hlim=hlim) / UDP(sport=1, dport=2) / Raw(b"z" * size))


# ------------------------------------------------------------------------------------------- flannel's format


def test_flannels_datagram_reaches_the_host_byte_for_byte(rig: Rig) -> None:
    assert rig.into(FLANNEL_INNER) == [PLAIN + FLANNEL_INNER]


def test_our_datagram_is_flannels_byte_for_byte(rig: Rig) -> None:
    """The same packet from the other end: before the tunnel its TTL is one higher, and the checksum accordingly."""
    rig.table.set([Entry("10.5.72.0-24", ("10.5.72.0/24",), (FAR,))])
    before = IP(FLANNEL_INNER)
    before.ttl += 1
    del before.chksum
    assert rig.out(bytes(before)) == [FLANNEL_INNER]


def test_the_outer_header_is_asked_for_as_flannels_is() -> None:
    """DF and TTL 64 (socket options; the wire is looked at in tests/netns)."""
    with open_socket(NEAR, 0) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == FLANNEL[8] == 64
        assert sock.getsockopt(socket.IPPROTO_IP, datapath._IP_MTU_DISCOVER) == datapath._PMTUDISC_DO
        assert FLANNEL[6:8] == b"\x40\x00"


# -------------------------------------------------------------------------------------------------- outgoing


def test_batches_keep_packets_and_their_order(rig: Rig) -> None:
    """Equal sizes, a shorter last one, a longer one, two families, more than one batch: nothing merges or is lost."""
    sizes = [100] * 5 + [40] + [100, 200, 200, 10, 10] + [1444] * 100
    packets = [v4(size) for size in sizes] + [v6(60), v6(60), v4(80), v6(60)]
    want = []
    for packet in packets:
        aged = bytearray(packet)
        datapath.ip.age(aged, 0, len(aged), len(aged))
        want.append(bytes(aged))
    got = []
    for start in range(0, len(packets), 10):  # loopback's socket queue is not endless
        got += rig.out(*packets[start : start + 10])
    assert got == want
    peer = rig.table.get(rig.entry.key)
    assert peer is not None
    assert (peer.tx_packets, peer.tx_bytes) == (len(packets), sum(map(len, packets)))


def test_without_segmentation_offload_the_same_goes_out(rig: Rig) -> None:
    rig.path.segmentation = False
    assert len(rig.out(*[v4(100)] * 5)) == 5


def test_packets_for_nobody_are_told_and_counted(rig: Rig) -> None:
    assert rig.out(v4(target="10.5.99.2"), v4(target="224.0.0.251"), v6(target="ff02::2"), b"\x00" * 40) == []
    assert rig.drops == {"no-route": 1, "multicast": 2, "malformed": 1}
    (answer,) = rig.given()
    told = IP(answer[VNET_SIZE:])
    assert (told.src, told.dst, told[ICMP].type, told[ICMP].code) == ("10.5.99.2", "10.5.72.2", 3, 0)


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_ttl_that_ends_here_is_told_from_the_far_end(rig: Rig, ttl: int) -> None:
    assert rig.out(v4(ttl=ttl), v6(hlim=ttl)) == []
    four, six = rig.given()
    assert IP(four[VNET_SIZE:]).src == "10.5.62.0"
    assert IP(four[VNET_SIZE:])[ICMP].type == 11
    assert IPv6(six[VNET_SIZE:]).src == "fc00:0:0:62::"
    assert rig.drops == {"ttl": 2}


def test_icmp_errors_are_limited(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.udp.datapath.time.monotonic", lambda: 100.0)
    for _ in range(8):
        rig.out(*[v4(target="10.5.99.2")] * 10)
    told = len(rig.given())
    assert told == 50
    assert rig.drops == {"no-route": 80, "icmp-limited": 30}


def test_a_packet_too_big_for_the_path(rig: Rig) -> None:
    """Loopback takes 65,536 bytes: what is larger with its outer header is refused, or fragmented where it may be."""
    huge = v4(65535 - 28)
    assert rig.out(huge) == []
    assert rig.drops == {"too-big-for-path": 1}
    (answer,) = rig.given()
    assert IP(answer[VNET_SIZE:])[ICMP].code == 4
    assert IP(answer[VNET_SIZE:])[ICMP].nexthopmtu < 65535
    assert rig.out(v6(65480)) == []
    (answer,) = rig.given()
    assert IPv6(answer[VNET_SIZE:])[ICMPv6PacketTooBig].mtu >= 1280


def test_a_peer_without_a_way_to_it_is_counted(rig: Rig) -> None:
    rig.table.set([Entry("x", ("10.5.62.0/24",), ("fd50::12",))])
    assert rig.out(v4()) == []
    assert rig.drops == {"no-path": 1}


def test_a_device_that_is_gone_is_noticed(rig: Rig) -> None:
    rig.path.detach()
    assert not rig.path.outgoing()
    assert rig.into(v4(source="10.5.62.2", target="10.5.72.2")) == []
    assert rig.drops == {"no-device": 1}


# -------------------------------------------------------------------------------------------------- incoming


def inbound(size: int = 0, *, source: str = "10.5.62.2", target: str = "10.5.72.2") -> bytes:
    return v4(size, source=source, target=target)


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (inbound(source="10.5.63.2"), "source"),
        (inbound(target="10.5.73.2"), "destination"),
        (inbound(target="224.0.0.5"), "destination"),
        (inbound()[:-1], "malformed"),
        (b"\x45" + bytes(30), "malformed"),
        (b"\x05" * 60, "malformed"),
        (b"", "too-short"),
        (inbound()[:19], "too-short"),
        (inbound(1473 - 28), "too-large"),
        (bytes(IPv6(src="fc00:0:0:63::2", dst="fc00:0:0:72::2") / UDP()), "source"),
        (bytes(IPv6(src="fc00:0:0:62::2", dst="fc00:0:0:73::2") / UDP()), "destination"),
        (bytes(IPv6(src="fc00:0:0:62::2", dst="fc00:0:0:72::2") / UDP())[:39], "malformed"),
    ],
)
def test_what_is_dropped_and_why(rig: Rig, datagram: bytes, reason: str) -> None:
    assert rig.into(datagram, inbound(8)) == [PLAIN + inbound(8)]
    assert rig.drops == {reason: 1}
    peer = rig.table.get(rig.entry.key)
    assert peer is not None
    assert (peer.drops, peer.rx_packets, peer.rx_bytes) == (1, 1, 36)
    assert peer.heard > 0


def test_a_stranger_is_not_heard(rig: Rig) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.50.13", 0))
        assert rig.into(inbound(), sender=stranger) == []
    assert rig.drops == {"unknown-sender": 1}


def test_a_peer_may_not_speak_for_another(rig: Rig) -> None:
    other = Entry("10.5.63.0-24", ("10.5.63.0/24",), ("127.0.50.13",))
    rig.table.set([rig.entry, other])
    assert rig.into(inbound(source="10.5.63.2")) == []
    assert rig.drops == {"source": 1}


def test_two_leases_of_one_address_both_speak(rig: Rig) -> None:
    other = Entry("10.5.63.0-24", ("10.5.63.0/24",), (FAR,))
    rig.table.set([rig.entry, other])
    assert len(rig.into(inbound(), inbound(source="10.5.63.2"))) == 2


def test_segments_come_in_as_one_packet(rig: Rig) -> None:
    """What another engine sends with UDP_SEGMENT is one packet for the TUN."""
    segments = [
        bytes(
            IP(src="10.5.62.2", dst="10.5.72.2", id=i, flags="DF")
            / TCP(flags="A", seq=1 + i * 1000)
            / Raw(b"s" * 1000)
        )
        for i in range(20)
    ]
    batch = (datapath._SOL_UDP, datapath._UDP_SEGMENT, datapath._SEGMENT.pack(len(segments[0])))
    rig.far.sendmsg([b"".join(segments)], [batch], 0, (NEAR, rig.port))
    got = rig.into()
    assert b"".join(IP(packet[VNET_SIZE:])[TCP].payload.load for packet in got) == b"s" * 20000
    assert len(got) == 1
    peer = rig.table.get(rig.entry.key)
    assert peer is not None
    assert (peer.rx_packets, peer.rx_bytes) == (20, 20 * 1040)


def test_a_batch_from_a_foreign_source_is_dropped_whole(rig: Rig) -> None:
    segments = [
        bytes(
            IP(src="10.5.63.2", dst="10.5.72.2", id=i, flags="DF") / TCP(flags="A", seq=1 + i * 100) / Raw(b"s" * 100)
        )
        for i in range(5)
    ]
    batch = (datapath._SOL_UDP, datapath._UDP_SEGMENT, datapath._SEGMENT.pack(len(segments[0])))
    rig.far.sendmsg([b"".join(segments)], [batch], 0, (NEAR, rig.port))
    assert rig.into() == []
    assert rig.drops == {"source": 5}
