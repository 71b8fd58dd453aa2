"""The identifiers under which peers are told of several routes to a prefix (RFC 7911 section 3).

Rule: a route keeps its identifier as long as its source gives it, whoever is told of it and whether it is good or
not. One that is free again is not given away in the same moment, so that a withdrawal and an announcement that go out
together are not about the same path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

from bgp.message.nlri import IDENTIFIER
from bgp.route import Route, Source

_Key = tuple[Source, bytes]


class Identifiers:
    """Of one family. Small numbers, given out by prefix."""

    def __init__(self) -> None:
        self._known: dict[bytes, dict[_Key, bytes]] = {}

    def assign(self, prefix: bytes, routes: Iterable[Route]) -> dict[Route, bytes]:
        """The identifier of each route; `routes` are all that the prefix has."""
        before = self._known.get(prefix, {})
        free = _free(frozenset(before.values()))
        after: dict[_Key, bytes] = {}
        given: dict[Route, bytes] = {}
        for route in routes:
            key = (route.source, route.identifier)
            given[route] = after[key] = before.get(key) or next(free)
        if after:
            self._known[prefix] = after
        else:
            self._known.pop(prefix, None)
        return given

    def clear(self) -> None:
        """Nobody is told of several routes any more."""
        self._known.clear()


def _free(taken: frozenset[bytes]) -> Iterator[bytes]:
    for number in count(1):
        identifier = number.to_bytes(IDENTIFIER, "big")
        if identifier not in taken:
            yield identifier
