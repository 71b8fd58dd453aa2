"""ICMP (RFC 792, 1122, 1812) and ICMPv6 (RFC 4443) errors for packets that the tunnel cannot carry.

Rule: pure; an error is never sent in answer to an error, to a fragment but the first, to a packet that goes to or
comes from more than one host, and never oftener than the limiter allows. The source of an error is an address
behind the tunnel, because the host would drop one that is its own as a martian: the destination of the packet
itself, as the kernel's own tunnels do, or the peer's first address where a hop is meant (Time Exceeded).
"""

from __future__ import annotations

import struct
from enum import Enum

from backends.udp import packet as ip
from backends.udp.packet import Buffer

# What of the offending packet is quoted: RFC 1812 4.3.2.3, RFC 4443 2.4 (c).
_MAX_ERROR4 = 576
_MAX_ERROR6 = 1280

_ERRORS4 = (3, 4, 5, 11, 12)  # unreachable, source quench, redirect, time exceeded, parameter problem
_REDIRECT6 = 137
_TOO_BIG6 = 2

_HEADER4 = struct.Struct(">BBHHHBBH4s4s")
_HEADER6 = struct.Struct(">IHBB16s16s")
_ICMP = struct.Struct(">BBHI")


class Reason(Enum):
    """Why a packet is refused, as (type, code) in ICMP and in ICMPv6."""

    TTL_EXCEEDED = ((11, 0), (3, 0))
    NO_ROUTE = ((3, 0), (1, 0))
    HOST_UNREACHABLE = ((3, 1), (1, 3))
    TOO_BIG = ((3, 4), (2, 0))


class Limiter:
    """A token bucket: `burst` errors at once, `rate` a second in the long run. Linux's icmp_msgs_* defaults."""

    def __init__(self, rate: float = 1000.0, burst: float = 50.0) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._since = burst, 0.0

    def allow(self, now: float) -> bool:
        """Whether one more may go at `now` (seconds of a monotonic clock)."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def error(packet: Buffer, reason: Reason, *, mtu: int = 0, source: bytes | None = None) -> bytes | None:
    """The error to give back for a well-formed inner packet, or None where none may be sent.

    `mtu` is the greatest inner packet that fits (bytes, for TOO_BIG only). `source` is the packed address that
    the error comes from; None means the destination of the packet.
    """
    if packet[0] >> 4 == 4:
        return _error4(packet, reason, mtu, source)
    return _error6(packet, reason, mtu, source)


def _error4(packet: Buffer, reason: Reason, mtu: int, source: bytes | None) -> bytes | None:
    sender, target = bytes(packet[12:16]), bytes(packet[16:20])
    protocol, offset, first = ip.upper_layer(packet)
    if not first or _many_hosts4(sender) or _many_hosts4(target):
        return None
    if protocol == ip.ICMP and (offset >= len(packet) or packet[offset] in _ERRORS4):
        return None
    body = bytes(packet[: _MAX_ERROR4 - ip.IPV4_HEADER - _ICMP.size])
    kind, code = reason.value[0]
    message = bytearray(_ICMP.pack(kind, code, 0, mtu) + body)
    message[2:4] = ip.checksum(message).to_bytes(2, "big")
    size = ip.IPV4_HEADER + len(message)
    # TOS 0xC0 is internetwork control, which RFC 1812 4.3.2.5 asks for; DF, TTL 64.
    header = bytearray(_HEADER4.pack(0x45, 0xC0, size, 0, 0x4000, 64, ip.ICMP, 0, source or target, sender))
    header[10:12] = ip.checksum(header).to_bytes(2, "big")
    return bytes(header + message)


def _error6(packet: Buffer, reason: Reason, mtu: int, source: bytes | None) -> bytes | None:
    sender, target = bytes(packet[8:24]), bytes(packet[24:40])
    kind, code = reason.value[1]
    protocol, offset, first = ip.upper_layer(packet)
    if not first or sender[0] == 0xFF or not any(sender):
        return None
    if target[0] == 0xFF and kind != _TOO_BIG6:
        return None
    if protocol == ip.ICMPV6 and (offset >= len(packet) or packet[offset] < 128 or packet[offset] == _REDIRECT6):
        return None
    origin = source or target
    if origin[0] == 0xFF:
        return None
    body = bytes(packet[: _MAX_ERROR6 - ip.IPV6_HEADER - _ICMP.size])
    message = bytearray(_ICMP.pack(kind, code, 0, mtu) + body)
    start = ip.pseudo_sum(origin + sender, ip.ICMPV6, len(message))
    message[2:4] = ip.checksum(message, start).to_bytes(2, "big")
    return _HEADER6.pack(0x6 << 28, len(message), ip.ICMPV6, 64, origin, sender) + message


def _many_hosts4(address: bytes) -> bool:
    """Unspecified, loopback, multicast, reserved or broadcast: nobody to answer, or too many."""
    return address[0] in (0, 127) or address[0] >= 224
