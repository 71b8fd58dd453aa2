"""The choice among the routes of one prefix (RFC 4271 section 9.1.2.2, RFC 4456 section 9), and of its equals.

Rule: the choice depends on the routes alone, never on the order in which they came. MED counts only between routes
of one neighbouring AS, so the steps up to it must come before those that look at all routes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from bgp.message.codes import WellKnownCommunity
from bgp.route import EXTERNAL, LOCAL, Route

DEFAULT_LOCAL_PREF = 100
LLGR_STALE = int(WellKnownCommunity.LLGR_STALE)

Metric = Callable[[bytes], int | None]
"""What it costs to reach a next hop; None when it cannot be reached."""


def decide(routes: Sequence[Route], metric: Metric, paths: int = 1) -> tuple[Route, ...]:
    """The best route, then up to `paths` - 1 others that are as good up to the metric and go another way.

    Rejected routes and those with an unreachable next hop do not take part; empty when none is left.
    """
    if len(routes) == 1:
        only = routes[0]
        return () if only.rejected or not _reachable(only, metric) else (only,)
    able = usable(routes, metric)
    if len(able) < 2:
        return tuple(able)
    able = _least_med(_minimal(able, _preference))
    able.sort(key=lambda route: (_distance(route, metric), _tie(route)))
    best = able[0]
    chosen = [best]
    ways = {best.attributes.next_hop}
    for route in able[1:]:
        if len(chosen) >= paths or _distance(route, metric) != _distance(best, metric):
            break
        if route.attributes.next_hop not in ways:
            ways.add(route.attributes.next_hop)
            chosen.append(route)
    return tuple(chosen)


def usable(routes: Iterable[Route], metric: Metric) -> list[Route]:
    """Those that take part in the choice."""
    return [route for route in routes if not route.rejected and _reachable(route, metric)]


def ranked(routes: Iterable[Route], metric: Metric) -> Iterator[Route]:
    """The usable ones, each the best of those that are left: MED allows no other order."""
    left = usable(routes, metric)
    while left:
        best = decide(left, metric)[0]
        left.remove(best)
        yield best


def why(best: Route, other: Route, metric: Metric) -> str:
    """The first step at which `best` beats `other`, for people."""
    if other.rejected:
        return other.rejected
    if not _reachable(other, metric):
        return "the next hop cannot be reached"
    for name, key in _STEPS:
        if key(best) != key(other):
            return name
    one, two = best.attributes, other.attributes
    if one.as_path.first == two.as_path.first and (one.med or 0) != (two.med or 0):
        return "lower MED"
    if _distance(best, metric)[0] != _distance(other, metric)[0]:
        return "external over internal"
    if _distance(best, metric) != _distance(other, metric):
        return "lower metric to the next hop"
    ours, theirs = _tie(best), _tie(other)
    for name, mine, its in zip(
        ("lower router id", "shorter cluster list", "lower peer address", "lower path identifier"),
        ours,
        theirs,
        strict=True,
    ):
        if mine != its:
            return name
    return "the same"


def _reachable(route: Route, metric: Metric) -> bool:
    return route.source.kind is LOCAL or metric(route.attributes.next_hop) is not None


def _preference(route: Route) -> tuple[bool, bool, int, int, int]:
    attributes = route.attributes
    local_pref = attributes.local_pref
    return (
        route.source.kind is not LOCAL,
        LLGR_STALE in attributes.communities,
        -(DEFAULT_LOCAL_PREF if local_pref is None else local_pref),
        attributes.as_path.length,
        attributes.origin,
    )


_STEPS: tuple[tuple[str, Callable[[Route], object]], ...] = (
    ("originated here", lambda route: _preference(route)[0]),
    ("not long-lived stale", lambda route: _preference(route)[1]),  # RFC 9494 section 4.3
    ("higher local preference", lambda route: _preference(route)[2]),
    ("shorter AS path", lambda route: _preference(route)[3]),
    ("lower origin", lambda route: _preference(route)[4]),
)


def _minimal(routes: list[Route], key: Callable[[Route], tuple[bool, bool, int, int, int]]) -> list[Route]:
    keys = [key(route) for route in routes]
    least = min(keys)
    return [route for route, mine in zip(routes, keys, strict=True) if mine == least]


def _least_med(routes: list[Route]) -> list[Route]:
    """Of each neighbouring AS those with the least MED; a route without one has 0 (RFC 4271 section 9.1.2.2 c)."""
    least: dict[int, int] = {}
    for route in routes:
        neighbour, med = route.attributes.as_path.first, route.attributes.med or 0
        least[neighbour] = min(med, least.get(neighbour, med))
    return [route for route in routes if (route.attributes.med or 0) == least[route.attributes.as_path.first]]


def _distance(route: Route, metric: Metric) -> tuple[bool, int]:
    """eBGP before iBGP, then the metric to the next hop."""
    if route.source.kind is LOCAL:
        return False, 0
    return route.source.kind is not EXTERNAL, metric(route.attributes.next_hop) or 0


def _tie(route: Route) -> tuple[bytes, int, bytes, bytes]:
    """RFC 4456 section 9: ORIGINATOR_ID stands for the router id; then the shorter CLUSTER_LIST.

    Two that one source gives are told apart by their identifiers in the end, lest their order counts.
    """
    attributes = route.attributes
    return (
        attributes.originator_id or route.source.identifier,
        len(attributes.cluster_list),
        route.source.address,
        route.identifier,
    )
