"""Adj-RIB-In and Loc-RIB of one address family (RFC 4271 section 3.2).

Rule: an announcement or withdrawal only marks its prefix; `take_changes` decides each marked prefix once. So work
is done per prefix and batch, however often a peer changes its mind in between.

Adj-RIB-In is kept by path (nlri.py): a source that identifies its routes may have several to a prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from bgp.decision import Metric, decide
from bgp.message import Attributes, Family, nlri
from bgp.policy import PrefixRange
from bgp.route import Route, Source

Chosen = tuple[Route, ...]
"""The best route, then its equals for multipath; empty when there is none."""


class Rib:
    """All routes of a family: as received, by source, and as chosen.

    `metric` tells what it costs to reach a next hop; `paths` how many equally good routes are chosen.
    """

    def __init__(self, family: Family, metric: Metric | None = None, paths: int = 1) -> None:
        self.family = family
        self._sizes = nlri.sizes(family)
        self.paths = paths
        self.metric: Metric = metric or (lambda next_hop: 0)
        self.chosen: dict[bytes, Chosen] = {}
        """Loc-RIB."""
        self._received: dict[Source, dict[bytes, Route]] = {}
        """Adj-RIB-In, by source and path."""
        self._candidates: dict[bytes, list[Route]] = {}
        self._stale: dict[Source, dict[bytes, None]] = {}
        self._marked: dict[bytes, None] = {}
        self._decided: dict[bytes, None] | None = None

    # --------------------------------------------------------------------------------------------- what comes in

    def announce(
        self,
        source: Source,
        paths: Sequence[bytes],
        attributes: Attributes,
        received: Attributes,
        rejected: str = "",
    ) -> None:
        """The source gives these paths one and the same attributes."""
        mine = self._received.get(source)
        if mine is None:
            mine = self._received[source] = {}
        if paths and len(paths[0]) != self._sizes[paths[0][0]]:
            self._announce_identified(source, mine, paths, attributes, received, rejected)
            return
        stale = self._stale.get(source)
        candidates, marked = self._candidates, self._marked
        route = Route(source, attributes, received, rejected)
        for prefix in paths:  # which have no identifiers: the common case, kept short
            old = mine.get(prefix)
            mine[prefix] = route
            known = candidates.get(prefix)
            if known is None:
                candidates[prefix] = [route]
            elif old is None:
                known.append(route)
            else:
                known[known.index(old)] = route
            if stale:
                stale.pop(prefix, None)
            marked[prefix] = None

    def _announce_identified(
        self,
        source: Source,
        mine: dict[bytes, Route],
        paths: Sequence[bytes],
        attributes: Attributes,
        received: Attributes,
        rejected: str,
    ) -> None:
        stale = self._stale.get(source)
        routes: dict[bytes, Route] = {}
        for path in paths:
            prefix, identifier = nlri.cut(self.family, path)
            route = routes.get(identifier)
            if route is None:
                route = routes[identifier] = Route(source, attributes, received, rejected, identifier)
            old = mine.get(path)
            mine[path] = route
            known = self._candidates.setdefault(prefix, [])
            if old is None:
                known.append(route)
            else:
                known[known.index(old)] = route
            if stale:
                stale.pop(path, None)
            self._marked[prefix] = None

    def replace(self, source: Source, path: bytes, attributes: Attributes, rejected: str) -> None:
        """Another judgement of what the source has said; whether that is stale is another matter."""
        old = self._received[source][path]
        route = Route(source, attributes, old.received, rejected, old.identifier)
        self._received[source][path] = route
        prefix = nlri.prefix_of(self.family, path)
        known = self._candidates[prefix]
        known[known.index(old)] = route
        self._marked[prefix] = None

    def withdraw(self, source: Source, paths: Sequence[bytes]) -> None:
        """The source takes these paths back; those that it has not given are passed over."""
        mine = self._received.get(source)
        if not mine:
            return
        stale = self._stale.get(source)
        family = self.family
        for path in paths:
            route = mine.pop(path, None)
            if route is None:
                continue
            if stale:
                stale.pop(path, None)
            prefix = nlri.prefix_of(family, path)
            known = self._candidates[prefix]
            if len(known) == 1:
                del self._candidates[prefix]
            else:
                known.remove(route)
            self._marked[prefix] = None

    def remove(self, source: Source) -> None:
        """The source is gone, and its routes with it."""
        self.withdraw(source, list(self._received.get(source, ())))
        self._received.pop(source, None)
        self._stale.pop(source, None)

    # ------------------------------------------------------------------------------------------ graceful restart

    def mark_stale(self, source: Source) -> None:
        """The source restarts: its routes stay until it has announced them anew (RFC 4724 section 4.2)."""
        self._stale[source] = dict.fromkeys(self._received.get(source, ()))

    def sweep(self, source: Source) -> None:
        """The source has announced all it has: what is still stale goes."""
        self.withdraw(source, list(self._stale.pop(source, ())))

    # --------------------------------------------------------------------------------------------- what comes out

    @property
    def pending(self) -> bool:
        """Whether a prefix is marked."""
        return bool(self._marked)

    def take_changes(self, most: int | None = None) -> dict[bytes, Chosen]:
        """Each prefix whose choice has changed since the last call, with what is chosen now.

        At most so many are decided, those marked first; the others stay marked.
        """
        changes: dict[bytes, Chosen] = {}
        candidates, chosen = self._candidates, self.chosen
        metric, paths = self.metric, self.paths
        marked = self._marked
        if most is None or most >= len(marked):
            self._marked = {}
        else:
            marked = dict.fromkeys(islice(marked, most))
            for prefix in marked:
                del self._marked[prefix]
        if self._decided is not None:
            self._decided.update(marked)
        for prefix in marked:
            known = candidates.get(prefix)
            new = decide(known, metric, paths) if known else ()
            if new == chosen.get(prefix, ()):
                continue
            changes[prefix] = new
            if new:
                chosen[prefix] = new
            else:
                del chosen[prefix]
        return changes

    def watch(self, wanted: bool) -> None:
        """Whether somebody will ask `take_decided`."""
        if wanted is (self._decided is None):
            self._decided = {} if wanted else None

    def take_decided(self) -> dict[bytes, None]:
        """The prefixes that `take_changes` has decided since the last call, with or without a change."""
        if not self._decided:
            return {}
        decided, self._decided = self._decided, {}
        return decided

    def next_hops_changed(self, next_hops: Iterable[bytes]) -> None:
        """The metric of these next hops is another one now: their prefixes are decided anew."""
        changed = set(next_hops)
        for prefix, routes in self._candidates.items():
            if any(route.attributes.next_hop in changed for route in routes):
                self._marked[prefix] = None

    def decide_anew(self) -> None:
        """Decide every prefix again, for example after `paths` was changed."""
        self._marked.update(dict.fromkeys(self._candidates))

    # ------------------------------------------------------------------------------------------------------ views

    def received(self, source: Source) -> dict[bytes, Route]:
        """Adj-RIB-In of a source by path, rejected routes included. Not to be changed."""
        return self._received.get(source, {})

    def prefixes(self) -> Iterable[bytes]:
        """All that somebody has a route to, used or not."""
        return self._candidates

    def candidates(self, prefix: bytes) -> tuple[Route, ...]:
        """All routes of a prefix, in no order."""
        return tuple(self._candidates.get(prefix, ()))

    def within(self, prefix: bytes) -> Iterator[tuple[Source, bytes, Route]]:
        """Each route to what lies inside, the prefix itself included: its source and path, and the route."""
        longest = 32 if self.family is Family.IPV4 else 128
        inside = PrefixRange(self.family, prefix, prefix[0], longest)
        for each, routes in self._candidates.items():
            if inside.matches(self.family, each):
                for route in routes:
                    yield route.source, each + route.identifier, route

    def stale(self, source: Source) -> int:
        """How many routes of a source that restarts it has not announced anew yet."""
        return len(self._stale.get(source, ()))

    def is_stale(self, source: Source, path: bytes) -> bool:
        """Whether the source has not announced this path anew since it restarted."""
        return path in self._stale.get(source, ())

    def best(self) -> Iterator[tuple[bytes, Route]]:
        """Each prefix with its best route."""
        for prefix, routes in self.chosen.items():
            yield prefix, routes[0]
