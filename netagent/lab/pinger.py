"""Pings many pairs from many namespaces in one process. Runs inside a lab: python -m netagent.lab.pinger

Rules: standard library only, and no ping(1) needed: a raw ICMP socket is opened in each namespace (setns), then one
loop sends an echo request, takes in replies, and goes on to the next pair, so that a round-trip time is not that of
a burst. Standard input: {"pairs": [[netns, address], ...], "count": 3, "timeout": 1.0, "size": 56, "whole": false}
(`size` in bytes of ICMP payload, `whole`: never fragment). Standard output: for each pair the round-trip times of
the replies, in seconds: [[0.000081, ...], ...].

With "interval" (seconds) in place of "count" the pairs are pinged on and on: a line {"flowing": true} is printed once
every pair was answered, and the count starts; when standard input ends, the result: for each pair
{"sent": N, "lost": N, "gap": SECONDS, "when": [UNIX TIME, ...]} (`gap`: the longest time between two requests that
were answered; `when`: when the lost ones were sent, the first few).
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any

CLONE_NEWNET = 0x40000000
MAGIC = b"netagent"
HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence (RFC 792, RFC 4443)
BODY = struct.Struct("!8sI")  # MAGIC, index of the probe
ECHO = {4: (8, 0), 6: (128, 129)}
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE = 23, 3
SHOWN = 5  # lost requests of one pair whose times are told
GRACE = 0.02  # how long the loop stays with one pair before it goes on (seconds)


class Pinger:
    def __init__(self, *, size: int, whole: bool) -> None:
        self.size = max(size, BODY.size)
        self.whole = whole
        self.identifier = os.getpid() & 0xFFFF
        self.sockets: dict[tuple[str, int], socket.socket] = {}
        self.poll = select.poll()
        self.by_fd: dict[int, tuple[socket.socket, int]] = {}
        self.sent: dict[int, float] = {}  # probe -> when
        self.times: dict[int, float] = {}  # probe -> round-trip time

    def open(self, netns: str, family: int) -> None:
        """A raw socket in a namespace; it stays there when this thread moves on."""
        if (netns, family) in self.sockets:
            return
        fd = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), netns)
        finally:
            os.close(fd)
        if family == 4:
            made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            if self.whole:
                made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        else:
            made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            if self.whole:
                made.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
        made.setblocking(False)
        self.sockets[netns, family] = made
        self.by_fd[made.fileno()] = (made, family)
        self.poll.register(made, select.POLLIN)

    def send(self, probe: int, netns: str, address: str) -> bool:
        family = 6 if ":" in address else 4
        payload = BODY.pack(MAGIC, probe).ljust(self.size, b"\0")
        request, _ = ECHO[family]
        packet = HEADER.pack(request, 0, 0, self.identifier, probe & 0xFFFF) + payload
        if family == 4:  # of ICMPv6 the kernel makes the checksum
            packet = HEADER.pack(request, 0, _checksum(packet), self.identifier, probe & 0xFFFF) + payload
        self.sent[probe] = time.perf_counter()
        try:
            self.sockets[netns, family].sendto(packet, (address, 0))
        except OSError:
            del self.sent[probe]  # no route, or larger than the interface takes: nothing to wait for
            return False
        return True

    def receive(self, until: float, probe: int | None = None) -> None:
        """Take in replies until that time, or until `probe` (None: every probe sent) has its own."""
        while True:
            if (probe in self.times) if probe is not None else (len(self.times) == len(self.sent)):
                return
            left = until - time.perf_counter()
            events = self.poll.poll(max(0.0, left * 1000))
            now = time.perf_counter()
            for fd, _ in events:
                self._take(*self.by_fd[fd], now)
            if now >= until:
                return

    def _take(self, source: socket.socket, family: int, now: float) -> None:
        try:
            packet = source.recv(65536)
        except OSError:
            return  # an ICMP error that arrived for this socket
        if family == 4:
            packet = packet[(packet[0] & 15) * 4 :]
        if len(packet) < HEADER.size + BODY.size:
            return
        kind, _, _, identifier, _ = HEADER.unpack_from(packet)
        magic, probe = BODY.unpack_from(packet, HEADER.size)
        if (kind, identifier, magic) == (ECHO[family][1], self.identifier, MAGIC) and probe in self.sent:
            self.times.setdefault(probe, now - self.sent[probe])


def ping(request: dict[str, Any]) -> list[list[float]]:
    pairs: list[tuple[str, str]] = [(netns, address) for netns, address in request["pairs"]]
    pinger = Pinger(size=request["size"], whole=request["whole"])
    for netns, address in pairs:
        pinger.open(netns, 6 if ":" in address else 4)
    late: set[int] = set()
    for turn in range(request["count"]):
        for index, (netns, address) in enumerate(pairs):
            probe = turn * len(pairs) + index
            if pinger.send(probe, netns, address):
                # A pair that was late once is not waited for again: its replies are taken in beside the others.
                pinger.receive(time.perf_counter() + (0 if index in late else GRACE), probe)
            if probe not in pinger.times:
                late.add(index)
    pinger.receive(time.perf_counter() + request["timeout"])
    return [
        [pinger.times[p] for p in range(i, len(pairs) * request["count"], len(pairs)) if p in pinger.times]
        for i in range(len(pairs))
    ]


def flow(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Ping on and on until standard input ends. What was sent before every pair was answered does not count."""
    pairs: list[tuple[str, str]] = [(netns, address) for netns, address in request["pairs"]]
    pinger = Pinger(size=request["size"], whole=request["whole"])
    for netns, address in pairs:
        pinger.open(netns, 6 if ":" in address else 4)
    probe = counted = 0
    due = time.perf_counter()
    while not select.select([sys.stdin], [], [], 0)[0]:
        for netns, address in pairs:
            if not pinger.send(probe, netns, address):
                pinger.sent[probe] = time.perf_counter()  # not even a route: as lost as lost can be
            probe += 1
        due += request["interval"]
        while (now := time.perf_counter()) < due:
            pinger.receive(due)
            if len(pinger.times) == len(pinger.sent):  # all in: nothing to poll for until the next turn
                time.sleep(max(0.0, due - time.perf_counter()))
        if not counted and {p % len(pairs) for p in pinger.times} == set(range(len(pairs))):
            counted = probe
            print(json.dumps({"flowing": True}), flush=True)
        due = max(due, now - request["interval"])  # after a stall of this process go on from now, not in a burst
    pinger.receive(time.perf_counter() + request["timeout"])
    return [_flowed(pinger, range(counted + i, probe, len(pairs))) for i in range(len(pairs))]


def _flowed(pinger: Pinger, probes: range) -> dict[str, Any]:
    answered = [pinger.sent[p] for p in probes if p in pinger.times]
    ends = [pinger.sent[p] for p in probes[:1]] + answered + [pinger.sent[p] for p in probes[-1:]]
    gap = max((after - before for before, after in itertools.pairwise(ends)), default=0.0)
    epoch = time.time() - time.perf_counter()
    lost = [round(epoch + pinger.sent[p], 3) for p in probes if p not in pinger.times]
    return {"sent": len(probes), "lost": len(lost), "gap": gap, "when": lost[:SHOWN]}


def _checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


_libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    asked = json.loads(sys.stdin.readline())
    json.dump(flow(asked) if "interval" in asked else ping(asked), sys.stdout)
