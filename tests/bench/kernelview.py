"""What a benchmark sees of the kernel, with nothing of netagent in it: counts by dump, arrival by notification.

Rule: the observer shares no code with what it measures; it walks netlink messages by their headers alone.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from typing import NamedTuple

SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
RTM_NEWNEXTHOP, RTM_GETNEXTHOP = 104, 106
REQUEST_DUMP = 0x301
GROUPS = 1 << 6 | 1 << 10 | 1 << 2  # IPv4 routes, IPv6 routes, neighbours (rtnetlink.h: RTMGRP_*)
GROUP_NEXTHOP = 32
NUD_PERMANENT, NDA_DST = 0x80, 1
RTN_UNICAST = 1
NOT_OURS = frozenset((2, 4))  # rtnetlink.h: RTPROT_KERNEL, RTPROT_STATIC


def has_attribute(message: bytes, at: int, kind: int) -> bool:
    """Whether a message has an attribute, looking from `at` on."""
    while at + 4 <= len(message):
        length, found = struct.unpack_from("=HH", message, at)
        if found == kind:
            return True
        at += max(4, (length + 3) & ~3)
    return False


class Counts(NamedTuple):
    """Objects in the kernel: routes of a daemon, permanent neighbours, FDB entries of VXLAN, nexthops."""

    routes: int
    neighbours: int
    fdb: int
    nexthops: int


class Kernel:
    """Counts by dump. Make it in the namespace to look at."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((0, 0))

    def counts(self) -> Counts:
        return Counts(
            self.routes(), self._neighbours(socket.AF_INET), self._neighbours(socket.AF_BRIDGE), self.nexthops()
        )

    def routes(self) -> int:
        """Unicast routes of the main table that neither the kernel nor an administrator made."""
        ask = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 0, 0, RTN_UNICAST, 0)
        dump = self._dump(RTM_GETROUTE, ask, RTM_NEWROUTE)
        # rtm_protocol and rtm_type: the `unreachable` route of the whole network is not a peer's
        return sum(message[21] not in NOT_OURS and message[23] == RTN_UNICAST for message in dump)

    def nexthops(self) -> int:
        return len(self._dump(RTM_GETNEXTHOP, bytes(8), RTM_NEWNEXTHOP))

    def _neighbours(self, family: int) -> int:
        ask = struct.pack("=BBHiHBB", family, 0, 0, 0, 0, 0, 0)
        count = 0
        for message in self._dump(RTM_GETNEIGH, ask, RTM_NEWNEIGH):
            (state,) = struct.unpack_from("=H", message, 24)
            # every device has FDB entries for its own groups; those with a destination are VXLAN's
            count += bool(state & NUD_PERMANENT) and (
                family != socket.AF_BRIDGE or has_attribute(message, 28, NDA_DST)
            )
        return count

    def _dump(self, kind: int, body: bytes, answer: int) -> list[bytes]:
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST_DUMP, 1, 0) + body)
        found: list[bytes] = []
        while True:
            data = self._socket.recv(1 << 20)
            at = 0
            while at < len(data):
                length, message = struct.unpack_from("=IH", data, at)
                if message == 3:
                    return found
                if message == 2:
                    raise OSError(-struct.unpack_from("=i", data, at + 16)[0], f"netlink dump {kind}")
                if message == answer:
                    found.append(data[at : at + length])
                at += (length + 3) & ~3


class Arrivals:
    """The time at which each kind of object arrives in the kernel, by notification."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._socket.bind((0, GROUPS))
        self._socket.setsockopt(SOL_NETLINK, 1, GROUP_NEXTHOP)  # NETLINK_ADD_MEMBERSHIP

    def drain(self) -> None:
        """Forget what has arrived so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(1 << 20)
        except BlockingIOError:
            pass

    def wait(self, counts: Mapping[int, int], timeout: float) -> float:
        """time.monotonic() when the last of so many messages of these types came in. TimeoutError."""
        left = dict(counts)
        deadline = time.monotonic() + timeout
        self._socket.settimeout(timeout)
        # Each notification comes alone: who takes longer over one than the kernel over a route sees the last late.
        data = bytearray(1 << 16)
        receive, header = self._socket.recv_into, struct.Struct("=IH").unpack_from
        while left:
            try:
                size = receive(data)
            except TimeoutError:
                size = 0
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError(f"still missing after {timeout} s: {left}")
            at = 0
            while at < size:
                length, message = header(data, at)
                at += (length + 3) & ~3
                if message in left:
                    left[message] -= 1
                    if left[message] <= 0:
                        del left[message]
        return now


class Usage(NamedTuple):
    cpu: float  # seconds, children that ended included
    rss: float  # MiB
    peak: float  # MiB


def usage(pid: int) -> Usage:
    """CPU seconds and memory of a process, with its children's CPU."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    ticks = sum(int(fields[i]) for i in (11, 12, 13, 14))
    sizes = {"VmRSS": 0.0, "VmHWM": 0.0}
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        for line in file:
            name, _, rest = line.partition(":")
            if name in sizes:
                sizes[name] = int(rest.split()[0]) / 1024
    return Usage(ticks / 100, sizes["VmRSS"], sizes["VmHWM"])


def ip(*words: str, batch: str = "", tool: str = "ip") -> str:
    """Run `ip` (or `bridge`), with a batch on standard input if one is given."""
    argv = [tool, *(["-batch", "-"] if batch else []), *words]
    return subprocess.run(argv, input=batch or None, capture_output=True, text=True, check=True).stdout
