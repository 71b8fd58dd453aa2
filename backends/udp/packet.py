"""Inner packets as bytes: the header fields of IPv4 (RFC 791) and IPv6 (RFC 8200) that a forwarder needs.

Rule: pure functions on buffers. A *batch* is a stretch of a buffer that holds packets of one family back to back,
all of `size` bytes but the last, which may be shorter: what UDP segmentation offload takes and gives. Because the
packets stand at a fixed stride, one header byte of all of them is one extended slice, which is how a batch is
aged without a loop.
"""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

IPV4_HEADER = 20  # bytes, without options
IPV6_HEADER = 40
IPV6_MIN_MTU = 1280  # what any link must carry (RFC 8200 5)

# Outer IP and UDP header, by outer family (bytes).
OUTER_HEADERS = {4: IPV4_HEADER + 8, 6: IPV6_HEADER + 8}

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

# Extension headers that may stand before the upper layer: hop-by-hop, routing, fragment, destination options.
_EXTENSIONS = (0, 43, 44, 60)
_FRAGMENT = 44

_MINUS_ONE = bytes((value - 1) & 0xFF for value in range(256))
_PLUS_ONE = bytes((value + 1) & 0xFF for value in range(256))


def sum16(data: Buffer) -> int:
    """The sum of `data` as big-endian 16-bit words modulo 65535 (RFC 1071), an odd last byte padded with zero.

    Halving by folding is cheaper than one long division: 2^16 is 1 modulo 65535, so halves may be added.
    """
    value = int.from_bytes(data, "big") << (len(data) % 2 * 8)
    words = (len(data) + 1) // 2
    while words > 256:
        words -= words // 2
        value = (value & ((1 << words * 16) - 1)) + (value >> words * 16)
    return value % 65535


def checksum(data: Buffer, start: int = 0) -> int:
    """The internet checksum of `data` whose checksum field is zero; `start` is a pseudo header's sum."""
    return -(sum16(data) + start) % 65535


def pseudo_sum(addresses: Buffer, protocol: int, length: int) -> int:
    """The sum of a pseudo header: source and destination, protocol, and the upper layer's length in bytes."""
    return sum16(addresses) + protocol + length


def total_length(packet: Buffer) -> int:
    """How long the packet says it is; 0 if it is neither IPv4 nor IPv6 or too short to say."""
    size = len(packet)
    if size >= IPV4_HEADER and 0x45 <= packet[0] <= 0x4F:
        return packet[2] << 8 | packet[3]
    if size >= IPV6_HEADER and packet[0] >> 4 == 6:
        return (packet[4] << 8 | packet[5]) + IPV6_HEADER
    return 0


def dont_fragment(packet: Buffer) -> bool:
    """Whether a router may not fragment it: the DF bit, and always in IPv6."""
    return packet[0] >> 4 == 6 or bool(packet[6] & 0x40)


def upper_layer(packet: Buffer) -> tuple[int, int, bool]:
    """(protocol, its offset, whether this is the first fragment or no fragment) of a well-formed packet."""
    if packet[0] >> 4 == 4:
        return packet[9], (packet[0] & 0x0F) * 4, not (packet[6] & 0x1F or packet[7])
    protocol, offset, first = packet[6], IPV6_HEADER, True
    while protocol in _EXTENSIONS and offset + 8 <= len(packet):
        if protocol == _FRAGMENT:
            first = not (packet[offset + 2] or packet[offset + 3] & 0xF8)
            protocol, offset = packet[offset], offset + 8
            if not first:
                break
        else:
            protocol, offset = packet[offset], offset + 8 + packet[offset + 1] * 8
    return protocol, offset, first


def age(buffer: bytearray, start: int, end: int, size: int) -> None:
    """Decrement TTL or hop limit of each packet of the batch in `buffer[start:end]`; none of them may be 0.

    The IPv4 checksum is patched as RFC 1624 says: a TTL that falls by one raises the checksum by 0x0100 with the
    carry brought round, and 0xFFFF is written as 0, as a full computation would.
    """
    if buffer[start] >> 4 == 6:
        limit = slice(start + 7, end, size)
        buffer[limit] = buffer[limit].translate(_MINUS_ONE)
        return
    ttl, high = slice(start + 8, end, size), slice(start + 10, end, size)
    buffer[ttl] = buffer[ttl].translate(_MINUS_ONE)
    before = buffer[high]
    buffer[high] = before.translate(_PLUS_ONE)
    if 0xFF in before or 0xFE in before:
        for field, value in zip(range(start + 10, end, size), before, strict=True):
            if value >= 0xFE:
                raised = ((value << 8) + buffer[field + 1]) + 0x0100
                raised = (raised + (raised >= 0xFFFF)) & 0xFFFF
                buffer[field], buffer[field + 1] = raised >> 8, raised & 0xFF
