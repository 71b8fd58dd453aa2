"""Received TCP segments that follow one another, joined into one packet for the TUN to take whole.

This is the kernel's generic receive offload done where the kernel cannot: behind a user-space decapsulation. A batch
(see packet.py) as UDP_GRO gives it is cut into runs; a run is joined with a virtio-net header
(linux/virtio_net.h) that says how to cut it again. Rules, which are the kernel's own in tcp_gro_receive: same flow,
same header but for sequence number and checksum, contiguous payload, plain ACKs of which the last may carry PSH,
only the last shorter; not fragments, not IPv4 with options or without DF. A run whose checksums do not hold is not
joined: joining replaces them, and damage must stay visible to whoever checks next. They are asked for in one sum over
the run, which takes two thirds of the time of a sum for each packet: damage in one packet always shows in it, and in
several unless it cancels, which is one case in 65,535, as it is for damage within one packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from backends.udp import packet as ip

# struct virtio_net_hdr, in the host's byte order, as a TUN has it by default.
_VNET = struct.Struct("=BBHHHH")
VNET_SIZE = _VNET.size
PLAIN = bytes(VNET_SIZE)  # one packet, its checksums complete

_NEEDS_CSUM = 1
_ACK, _PSH = 0x10, 0x08
_TCP_HEADER = 20
_TCP_CHECKSUM = 16  # offset in the TCP header
_DF = b"\x40\x00"

# A joined packet's length must fit its header's 16 bits.
_MAX_JOINED = 65535


class Family(NamedTuple):
    """What differs between the two families for one who reads TCP headers."""

    header: int  # bytes of the IP header
    fields: str  # struct format from its start to the TCP ports, see _row
    uncounted: int  # bytes that its length field does not count
    gso: int  # VIRTIO_NET_HDR_GSO_*


IPV4 = Family(ip.IPV4_HEADER, ">2sH2x4s2x12s", 0, 1)
IPV6 = Family(ip.IPV6_HEADER, ">4sH2s36s", ip.IPV6_HEADER, 4)


class Run(NamedTuple):
    """`view[start:end]`: one packet, or several that may be joined."""

    start: int
    end: int
    packets: int


@lru_cache(maxsize=512)
def _row(family: Family, size: int, options: int) -> struct.Struct:
    """One TCP packet of `size` bytes, as the fields that decide: version and class, length, fragment and protocol
    (or next header) and TTL, addresses and ports, sequence number, acknowledgement and data offset, flags,
    window, options."""
    payload = size - family.header - _TCP_HEADER - options
    return struct.Struct(f"{family.fields}I5sB2s4x{options}s{payload}x")


def runs(view: memoryview, size: int) -> Iterator[Run]:
    """Cut the batch that fills `view` into runs, in order. Packets that join no run are runs of one.

    Only a packet's own consistency is looked at here; the runs of one may be anything.
    """
    length = len(view)
    family = _tcp_family(view, size) if length > size else None
    if family is None:
        for start in range(0, length, size):
            yield Run(start, min(start + size, length), 1)
        return
    header, _, uncounted, _ = family
    headers = header + (view[header + 12] >> 4) * 4
    options = headers - header - _TCP_HEADER
    whole = length - length % size
    rows = _row(family, size, options).iter_unpack(view[:whole])
    if length - whole > headers:
        last = _row(family, length - whole, options).unpack_from(view, whole)
        rows = chain(rows, (last,))
    begin = count = expected = start = 0
    lead: tuple[bytes, ...] | None = None  # what the run's headers share; None: it takes no more
    offset = view[header + 12] >> 4
    for start, row in zip(range(0, length, size), rows, strict=False):
        first, told, middle, flow, sequence, ack, flags, window, tail = row
        shared = (first, middle, flow, ack, window, tail)
        end = min(start + size, length)
        plain = flags & ~_PSH == _ACK and told + uncounted == end - start
        if plain and sequence == expected and shared == lead:
            count += 1
        else:
            if count:
                yield Run(begin, start, count)
            begin, count, lead = start, 1, None
            if plain and ack[4] >> 4 == offset and _joinable(family, first, middle):
                lead = shared
        expected = (sequence + (end - start) - headers) & 0xFFFFFFFF
        if flags & _PSH:
            lead = None
    yield Run(begin, min(start + size, length), count)
    if length - whole and length - whole <= headers:  # a last packet without payload
        yield Run(whole, length, 1)


def join(view: memoryview, run: Run, size: int) -> list[bytes | bytearray | memoryview] | None:
    """Buffers to write to the TUN for a run of several, virtio-net header first; None if a checksum is wrong."""
    start, end, count = run
    family = IPV4 if view[start] >> 4 == 4 else IPV6
    header = family.header
    headers = header + (view[start + header + 12] >> 4) * 4
    if end - start - (count - 1) * headers > _MAX_JOINED or not _intact(view, run, size, family):
        return None
    lead = bytearray(view[start : start + headers])
    last = start + (count - 1) * size
    lead[header + 13] = view[last + header + 13]  # PSH, if the last has it
    total = end - start - (count - 1) * headers
    if family is IPV4:
        lead[2:4] = total.to_bytes(2, "big")
        lead[10:12] = b"\0\0"
        lead[10:12] = ip.checksum(lead[:header]).to_bytes(2, "big")
        addresses = lead[12:20]
    else:
        lead[4:6] = (total - header).to_bytes(2, "big")
        addresses = lead[8:40]
    # NEEDS_CSUM: the field holds the pseudo header's sum, whoever cuts the packet completes it.
    partial = ip.pseudo_sum(addresses, ip.TCP, total - header) % 65535
    field = header + _TCP_CHECKSUM
    lead[field : field + 2] = partial.to_bytes(2, "big")
    vnet = _VNET.pack(_NEEDS_CSUM, family.gso, headers, size - headers, header, _TCP_CHECKSUM)
    payloads = [view[at + headers : min(at + size, end)] for at in range(start, end, size)]
    return [vnet, lead, *payloads]


def _tcp_family(view: memoryview, size: int) -> Family | None:
    """The family of a batch whose first packet is TCP with room for payload, else None."""
    if size > ip.IPV4_HEADER + _TCP_HEADER and view[0] == 0x45 and view[9] == ip.TCP:
        family = IPV4
    elif size > ip.IPV6_HEADER + _TCP_HEADER and view[0] >> 4 == 6 and view[6] == ip.TCP:
        family = IPV6
    else:
        return None
    tcp = (view[family.header + 12] >> 4) * 4
    return family if _TCP_HEADER <= tcp < size - family.header else None


def _joinable(family: Family, first: bytes, middle: bytes) -> bool:
    if family is IPV4:
        return first[0] == 0x45 and middle[:2] == _DF and middle[3] == ip.TCP
    return first[0] >> 4 == 6 and middle[0] == ip.TCP


def _intact(view: memoryview, run: Run, size: int, family: Family) -> bool:
    """Whether the checksums of the run hold together: one sum over all of it where packets stand at even offsets.

    With each packet's TCP checksum right, its TCP segment and pseudo header sum to zero, and so does an IPv4
    header; what an IPv6 header has beyond its pseudo header is the same in each packet of a run.
    """
    start, end, count = run
    steps = [(start, end, count)]
    if size % 2:
        steps = [(at, min(at + size, end), 1) for at in range(start, end, size)]
    for low, high, packets in steps:
        total = ip.sum16(view[low:high])
        if family is IPV4:
            each = ip.sum16(view[low + 12 : low + 20]) + ip.TCP - family.header
            total += packets * each + (high - low)
        else:
            extra = ip.sum16(view[low : low + 4]) + ip.sum16(view[low + 6 : low + 8]) - ip.TCP
            total -= packets * extra
        if total % 65535:
            return False
    return True
