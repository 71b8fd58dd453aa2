"""Two BFD machines joined without sockets, under a time of the test's own; the wire between them is as bad as asked.

Rule: all that is in flight is a list here: a test sees each packet, and may lose, hold or repeat it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from math import inf
from random import Random

from bfd.packet import Packet, decode_packet
from bfd.session import Session, Timing
from bfd.sessions import Place, Sessions

NEAR, FAR = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
FAST = Timing(100_000, 100_000, 3)

Wire = Callable[[int, Packet], "list[float]"]
"""From the sender (0 or 1) and its packet to the delays with which it arrives; none: it is lost."""


def straight(sender: int, packet: Packet) -> list[float]:
    return [0.001]


class Two:
    """`ends[0]` has NEAR's session with FAR, `ends[1]` the other one; both by key 1."""

    def __init__(self, *timings: Timing, wire: Wire = straight, seed: int = 1, multihop: bool = False) -> None:
        self.ends = [Sessions(Random(seed * 2 + number).random) for number in (0, 1)]
        self.wire = wire
        self.now = 0.0
        self.seen: list[tuple[float, int, Packet]] = []
        """Every packet that was sent: when, by whom."""
        self.multihop = multihop
        self._flying: list[tuple[float, int, int, bytes]] = []
        self._order = count()
        for number, timing in enumerate((timings * 2)[:2]):
            self.ends[number].set(1, Place((FAR, NEAR)[number], multihop=multihop), timing, self.now)

    def session(self, number: int) -> Session:
        return self.ends[number].members[1].session

    def retime(self, number: int, timing: Timing) -> None:
        self.ends[number].set(1, Place((FAR, NEAR)[number], multihop=self.multihop), timing, self.now)

    def run(self, until: float, *, done: Callable[[], bool] = lambda: False, stopped: tuple[int, ...] = ()) -> None:
        """Let time pass. An end that is `stopped` does nothing; what arrives for it waits."""
        while not done():
            nexts = [self.ends[number].deadline() for number in (0, 1) if number not in stopped]
            arrivals = [at for at, _, to, _ in self._flying if to not in stopped]
            at = min((*nexts, *arrivals), default=inf)
            if at > until:
                self.now = max(self.now, until)
                return
            self.now = max(self.now, at)
            self._step(stopped)

    def _step(self, stopped: tuple[int, ...]) -> None:
        late = []
        while self._flying and self._flying[0][0] <= self.now:
            arrived = heapq.heappop(self._flying)
            if arrived[2] in stopped:
                late.append(arrived)
                continue
            at, _, to, octets = arrived
            self.ends[to].receive(octets, (FAR, NEAR)[to], 255, at, multihop=self.multihop)
        for each in late:
            heapq.heappush(self._flying, each)
        for number in (0, 1):
            if number in stopped:
                continue
            for _, _, octets in self.ends[number].expire(self.now, self.now):
                packet = decode_packet(octets)
                self.seen.append((self.now, number, packet))
                for delay in self.wire(number, packet):
                    heapq.heappush(self._flying, (self.now + delay, next(self._order), 1 - number, octets))
