"""Inner packets: checksums, ageing and the ICMP errors about them, against scapy and against plain definitions."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.packet import Raw

from backends.udp import icmp, packet
from backends.udp.icmp import Reason

addresses4 = st.ip_addresses(v=4).map(str)
addresses6 = st.ip_addresses(v=6).map(str)


def plain_sum(data: bytes) -> int:
    """RFC 1071 by the letter."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=3000))
def test_checksum_is_rfc_1071s(data: bytes) -> None:
    assert packet.checksum(data) in {~plain_sum(data) & 0xFFFF, *([0] if not any(data) else [])}


@given(seed=st.integers(), size=st.integers(1000, 66000))
@settings(max_examples=30, deadline=None)
def test_checksum_of_long_data(seed: int, size: int) -> None:
    data = random.Random(seed).randbytes(size)
    assert packet.checksum(data) == ~plain_sum(data) & 0xFFFF


@given(
    ttls=st.lists(st.integers(1, 255), min_size=1, max_size=6),
    ids=st.integers(0, 65535),
    source=addresses4,
    size=st.integers(0, 40),
    short=st.integers(0, 40),
)
def test_ageing_a_batch_is_what_scapy_computes(ttls: list[int], ids: int, source: str, size: int, short: int) -> None:
    def build(by: int) -> list[bytes]:
        last = len(ttls) - 1
        return [
            bytes(
                IP(src=source, dst="10.5.72.2", ttl=ttl - by, id=ids + i & 0xFFFF)
                / Raw(b"x" * (min(size, short) if i == last else size))
            )
            for i, ttl in enumerate(ttls)
        ]

    buffer = bytearray(b"before" + b"".join(build(0)) + b"after")
    packet.age(buffer, 6, len(buffer) - 5, 20 + size if len(ttls) > 1 else 20 + min(size, short))
    assert bytes(buffer) == b"before" + b"".join(build(1)) + b"after"


@pytest.mark.parametrize("before", [0xFEFF, 0xFF00, 0xFFFE, 0xFEFE, 0x0000, 0x00FF, 0xFD00])
def test_ageing_at_the_edges_of_the_checksum(before: int) -> None:
    """The patch of every carry case leaves a header that sums to zero, and never writes 0xFFFF."""
    header = bytearray(bytes(IP(src="10.5.62.2", dst="10.5.72.2", ttl=64, id=0, chksum=before)))
    header[4:6] = b"\0\0"
    header[10:12] = b"\0\0"
    header[4:6] = ((packet.checksum(header) - before) % 65535).to_bytes(2, "big")  # an id that gives this checksum
    header[10:12] = before.to_bytes(2, "big")
    assert packet.sum16(header) == 0
    packet.age(header, 0, len(header), len(header))
    assert packet.sum16(header) == 0
    assert header[10:12] != b"\xff\xff"


@given(limits=st.lists(st.integers(1, 255), min_size=1, max_size=5))
def test_ageing_ipv6(limits: list[int]) -> None:
    one = [bytes(IPv6(src="fc00::1", dst="fc00:0:0:1::1", hlim=limit) / UDP()) for limit in limits]
    two = [bytes(IPv6(src="fc00::1", dst="fc00:0:0:1::1", hlim=limit - 1) / UDP()) for limit in limits]
    buffer = bytearray(b"".join(one))
    packet.age(buffer, 0, len(buffer), len(one[0]))
    assert bytes(buffer) == b"".join(two)


# ------------------------------------------------------------------------------------------------- ICMP

CASES4 = [
    (Reason.TTL_EXCEEDED, 11, 0),
    (Reason.NO_ROUTE, 3, 0),
    (Reason.HOST_UNREACHABLE, 3, 1),
    (Reason.TOO_BIG, 3, 4),
]
CASES6: list[tuple[Reason, Any, int]] = [
    (Reason.TTL_EXCEEDED, ICMPv6TimeExceeded, 0),
    (Reason.NO_ROUTE, ICMPv6DestUnreach, 0),
    (Reason.HOST_UNREACHABLE, ICMPv6DestUnreach, 3),
    (Reason.TOO_BIG, ICMPv6PacketTooBig, 0),
]


@pytest.mark.parametrize(("reason", "kind", "code"), CASES4)
@given(size=st.integers(0, 2000))
def test_an_icmp_error_reads_back_and_sums_right(reason: Reason, kind: int, code: int, size: int) -> None:
    offending = bytes(IP(src="10.5.62.2", dst="10.5.72.2") / TCP() / Raw(b"z" * size))
    answer = icmp.error(offending, reason, mtu=1372 if reason is Reason.TOO_BIG else 0)
    assert answer is not None
    quoted = offending[: 576 - 28]
    header = ICMP(type=kind, code=code, nexthopmtu=1372) if reason is Reason.TOO_BIG else ICMP(type=kind, code=code)
    outer = IP(src="10.5.72.2", dst="10.5.62.2", ttl=64, tos=0xC0, flags="DF", id=0)
    assert answer == bytes(outer / header / Raw(quoted))
    assert IP(answer)[IPerror].src == "10.5.62.2"


@pytest.mark.parametrize(("reason", "layer", "code"), CASES6)
@given(size=st.integers(0, 2000))
def test_an_icmpv6_error_reads_back_and_sums_right(reason: Reason, layer: Any, code: int, size: int) -> None:
    offending = bytes(IPv6(src="fc00:0:0:1::2", dst="fc00:0:0:2::2") / TCP() / Raw(b"z" * size))
    answer = icmp.error(offending, reason, mtu=1352 if reason is Reason.TOO_BIG else 0)
    assert answer is not None
    fields = {"mtu": 1352} if reason is Reason.TOO_BIG else {}
    outer = IPv6(src="fc00:0:0:2::2", dst="fc00:0:0:1::2", hlim=64)
    assert answer == bytes(outer / layer(code=code, **fields) / Raw(offending[: 1280 - 48]))
    assert IPv6(answer)[IPerror6].src == "fc00:0:0:1::2"


def test_the_source_can_be_chosen() -> None:
    answer = icmp.error(
        bytes(IP(src="10.5.62.2", dst="10.5.72.2") / UDP()), Reason.TTL_EXCEEDED, source=bytes([10, 5, 72, 0])
    )
    assert answer is not None
    assert IP(answer).src == "10.5.72.0"


SILENT4 = [
    IP(src="10.5.62.2", dst="10.5.72.2") / ICMP(type=3, code=1),
    IP(src="10.5.62.2", dst="10.5.72.2") / ICMP(type=11),
    IP(src="10.5.62.2", dst="10.5.72.2", proto=1),  # nothing there to tell what it is
    IP(src="10.5.62.2", dst="10.5.72.2", frag=3) / Raw(b"x" * 40),
    IP(src="10.5.62.2", dst="224.0.0.5") / UDP(),
    IP(src="10.5.62.2", dst="255.255.255.255") / UDP(),
    IP(src="0.0.0.0", dst="10.5.72.2") / UDP(),
    IP(src="127.0.0.1", dst="10.5.72.2") / UDP(),
    IP(src="224.0.0.5", dst="10.5.72.2") / UDP(),
]
SILENT6 = [
    IPv6(src="fc00::2", dst="fc00:0:0:2::2") / ICMPv6DestUnreach(),
    IPv6(src="fc00::2", dst="fc00:0:0:2::2", nh=58),
    IPv6(src="fc00::2", dst="fc00:0:0:2::2") / IPv6ExtHdrHopByHop() / ICMPv6TimeExceeded(),
    IPv6(src="fc00::2", dst="fc00:0:0:2::2") / IPv6ExtHdrFragment(offset=4) / Raw(b"x" * 40),
    IPv6(src="fc00::2", dst="ff02::1") / UDP(),
    IPv6(src="::", dst="fc00:0:0:2::2") / UDP(),
    IPv6(src="ff02::1", dst="fc00:0:0:2::2") / UDP(),
]


@pytest.mark.parametrize("offending", [*SILENT4, *SILENT6], ids=lambda p: p.summary())
def test_nothing_is_answered_to_errors_fragments_and_crowds(offending: Any) -> None:
    assert icmp.error(bytes(offending), Reason.NO_ROUTE) is None


@pytest.mark.parametrize(
    "offending",
    [
        IP(src="10.5.62.2", dst="10.5.72.2") / ICMP(),
        IP(src="10.5.62.2", dst="10.5.72.2", flags="MF") / Raw(b"x" * 40),
        IPv6(src="fc00::2", dst="fc00:0:0:2::2") / ICMPv6EchoRequest(),
        IPv6(src="fc00::2", dst="fc00:0:0:2::2") / IPv6ExtHdrFragment(offset=0, m=1) / Raw(b"x" * 40),
    ],
    ids=lambda p: p.summary(),
)
def test_queries_and_first_fragments_are_answered(offending: Any) -> None:
    assert icmp.error(bytes(offending), Reason.NO_ROUTE) is not None


@given(st.binary(min_size=1, max_size=200), st.sampled_from(list(Reason)))
def test_whatever_the_tun_gives_is_survived(data: bytes, reason: Reason) -> None:
    """The data path asks about packets of at least a header's length and nothing else is promised."""
    for first, least in ((0x45, 20), (0x4F, 20), (0x60, 40)):
        offending = bytes([first]) + data.ljust(least, b"\x2c")
        packet.total_length(offending)
        packet.dont_fragment(offending)
        icmp.error(offending, reason, mtu=1372)


def test_the_limiter_lets_a_burst_and_then_the_rate_through() -> None:
    limiter = icmp.Limiter(rate=10, burst=5)
    assert [limiter.allow(100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [limiter.allow(100.15), limiter.allow(100.15)] == [True, False]
    assert sum(limiter.allow(200.0) for _ in range(20)) == 5
