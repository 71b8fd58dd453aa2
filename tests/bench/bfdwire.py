"""Whose fault a session's end was: BFD's packets as they pass on the wire, by the kernel's clock.

Rule: who is said to be down was silent for the detection time on the wire, or the one who says so did not listen. It
belongs to neither side and need not be in time: the kernel stamps the packets, and they wait in its buffer.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from bfd.packet import Diag, PacketError, State, decode_packet
from bfd.sessions import PORT
from tests.support.netns import Namespace

_ETH_P_ALL = 3
_SO_TIMESTAMPNS = 35
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_TIMESPEC = struct.Struct("@qq")
_UDP_HEADER = 8
_REMEMBERED = 2.0
"""Seconds: who does not listen may say so that much later."""


class Down(NamedTuple):
    """`finder` has told `found` that its detection time has run out."""

    at: float
    finder: str
    found: str
    silence: float
    """The longest gap in what `found` sent, in seconds, of those that can be meant."""


@dataclass
class _Direction:
    sent: deque[float] = field(default_factory=deque)
    state: State = State.DOWN
    longest: float = 0.0
    """The longest gap while it said that it was up."""


class Wire:
    """What passes a device in a namespace between IPv4 neighbours of one hop."""

    def __init__(self, space: Namespace, device: str, detection: float) -> None:
        self.detection = detection
        self.downs: list[Down] = []
        self._directions: dict[tuple[str, str], _Direction] = {}
        self._sock = space.call(socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        _only_bfd(self._sock)
        self._sock.bind((device, _ETH_P_ALL))

    def close(self) -> None:
        self._sock.close()

    def longest(self, source: str, destination: str) -> float:
        """Seconds of the longest gap in what one sent to the other while it was up."""
        return self._directions[source, destination].longest

    def blame(self) -> Counter[tuple[str, str, bool]]:
        """How often (finder, found, whether the found one had been silent)."""
        return Counter((down.finder, down.found, down.silence >= self.detection) for down in self.downs)

    def read(self) -> None:
        """Take what has passed since the last time."""
        for at, source, destination, octets in self._packets():
            try:
                packet = decode_packet(octets)
            except PacketError:
                continue
            there = self._directions.setdefault((source, destination), _Direction())
            back = self._directions.setdefault((destination, source), _Direction())
            if packet.state is State.UP and there.state is State.UP and there.sent:
                there.longest = max(there.longest, at - there.sent[-1])
            expired = packet.state is State.DOWN and packet.diag == Diag.DETECTION_TIME_EXPIRED
            if expired and there.state is State.UP:
                self.downs.append(Down(at, source, destination, _longest_gap([*back.sent, at])))
            there.state = packet.state
            there.sent.append(at)
            while there.sent[0] < at - _REMEMBERED:
                there.sent.popleft()

    def _packets(self) -> Iterator[tuple[float, str, str, bytes]]:
        while True:
            try:
                octets, ancillary, _, _ = self._sock.recvmsg(256, 64)
            except BlockingIOError:
                return
            ((_, _, stamp),) = ancillary
            seconds, nanoseconds = _TIMESPEC.unpack_from(stamp)
            header = 4 * (octets[0] & 0x0F)
            addresses = socket.inet_ntoa(octets[12:16]), socket.inet_ntoa(octets[16:20])
            yield seconds + nanoseconds * 1e-9, *addresses, octets[header + _UDP_HEADER :]


def _longest_gap(times: list[float]) -> float:
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def _only_bfd(sock: socket.socket) -> None:
    """Keep off all but IPv4 with UDP to BFD's port (a classic BPF program, linux/filter.h)."""
    instructions = (
        (0x30, 0, 0, 0),  # octet 0
        (0x54, 0, 0, 0xF0),
        (0x15, 0, 6, 0x40),  # IPv4
        (0x30, 0, 0, 9),  # its protocol
        (0x15, 0, 4, socket.IPPROTO_UDP),
        (0xB1, 0, 0, 0),  # X: the header's length
        (0x48, 0, 0, 2),  # the port there
        (0x15, 0, 1, PORT),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )
    program = b"".join(struct.pack("@HBBI", *each) for each in instructions)
    held = ctypes.create_string_buffer(program)
    attached = struct.pack("@HP", len(instructions), ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
