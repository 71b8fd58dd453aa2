"""The numbers of our nexthop objects: (device, gateway) to id, and the lowest free id.

Rules: ids come from a range of our own and the lowest free one is taken, so that they stay few and
small however often peers come and go; an id in the range that somebody else uses is left alone and skipped. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from netagent.errors import KernelError

Hop = tuple[str, str]  # device, gateway


class NexthopIds:
    """`first` and `count` are the range."""

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.count = count
        self._by_hop: dict[Hop, int] = {}
        self._by_id: dict[int, Hop] = {}
        self._taken: set[int] = set()  # by others
        self._released: list[int] = []  # a heap: free ids below `_next`
        self._next = first

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.first <= number < self.first + self.count

    def of(self, hop: Hop) -> int | None:
        return self._by_hop.get(hop)

    def hop(self, number: int) -> Hop | None:
        return self._by_id.get(number)

    def all_of(self, hop: Hop) -> list[int]:
        """Every id that stands for it: more than one only where somebody else made a second in our name."""
        if len(self._by_hop) == len(self._by_id):
            return [self._by_hop[hop]] if hop in self._by_hop else []
        return [number for number, known in self._by_id.items() if known == hop]

    def allocate(self, hop: Hop) -> int:
        """The id of this hop, a free one where it has none. KernelError when the range is full."""
        number = self._by_hop.get(hop)
        if number is not None:
            return number
        while self._released:
            number = heapq.heappop(self._released)
            if number not in self._taken and number not in self._by_id:
                break
        else:
            number = self._next
            while number in self._taken or number in self._by_id:
                number += 1
            if number >= self.first + self.count:
                raise KernelError(f"all {self.count} nexthop ids from {self.first} on are in use")
            self._next = number + 1
        self._by_hop[hop] = number
        self._by_id[number] = hop
        return number

    def release(self, hop: Hop) -> None:
        for number in self.all_of(hop):
            del self._by_id[number]
            heapq.heappush(self._released, number)
        self._by_hop.pop(hop, None)

    def release_device(self, dev: str) -> None:
        """The device went, and all nexthop objects on it."""
        for hop in [hop for hop in self._by_hop if hop[0] == dev]:
            self.release(hop)

    def rebuild(self, ours: Iterable[tuple[int, Hop]], taken: Iterable[int]) -> None:
        """Start again from what the kernel has: ours by id, and ids of the range that others use."""
        self._by_id = dict(sorted(ours))
        self._by_hop = {}
        for number, hop in self._by_id.items():
            self._by_hop.setdefault(hop, number)
        self._taken = set(taken)
        self._released = []
        self._next = self.first
