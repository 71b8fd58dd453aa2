"""Answers as text for people.

Rule: a line a thing; columns as wide as what is in them; nothing that --json does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_UNITS = (("d", 86400), ("h", 3600), ("m", 60))


def lines(command: str, one: bool, items: Iterable[Any]) -> Iterator[str]:
    """The lines of an answer; `one`: about a single peer."""
    if command == "peers" and not one:
        return _peers(items)
    if command == "routes":
        return _routes(items)
    if command in ("received", "advertised"):
        return _table_of_routes(items)
    if command == "log":
        return (_entry(item) for item in items)
    return (line for item in items for line in _tree(item, ""))


def span(seconds: float) -> str:
    """1d2h, 3m20s, 4.2s."""
    for unit, size in _UNITS:
        if seconds >= size:
            smaller = {"d": ("h", 3600), "h": ("m", 60), "m": ("s", 1)}[unit]
            return f"{int(seconds // size)}{unit}{int(seconds % size // smaller[1])}{smaller[0]}"
    return f"{seconds:.1f}s"


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _peers(items: Iterable[Any]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        ("peer", "address", "AS", "kind", "state", "since", "received", "accepted", "best", "told", "remark")
    ]
    for peer in items:
        totals = {
            name: sum(counts[name] for counts in peer["prefixes"].values())
            for name in ("received", "accepted", "best", "advertised")
        }
        remark = peer.get("why_down", "")
        if "next_retry" in peer:
            remark += f"; next try in {span(peer['next_retry'])}"
        if "restart_ends" in peer:
            remark += f"; its routes are kept for {span(peer['restart_ends'])}"
        if "long_lived_ends" in peer:
            remark += f"; its routes are the last choice for {span(max(peer['long_lived_ends'].values()))}"
        if "bfd" in peer:
            remark += f"; {_bfd(peer['bfd'])}"
        if peer.get("held"):
            remark += "; does not read what it is sent"
        rows.append(
            (
                *(peer["name"], peer["address"], str(peer.get("asn", "any")), peer["kind"], peer["state"]),
                span(peer["since"]),
                *(str(totals[name]) for name in ("received", "accepted", "best", "advertised")),
                remark.removeprefix("; "),
            )
        )
    yield from _columns(rows)


def _bfd(bfd: dict[str, Any]) -> str:
    """A few words: whether it is up and how soon it notices, or why it is not."""
    if bfd["state"] == "up":
        return f"BFD up, {bfd['detection']:g} ms"
    why = bfd.get("problem") or ("" if bfd["diag"] == "none" else bfd["diag"])
    return f"BFD {bfd['state'].replace('_', ' ')}" + (f": {why}" if why else "")


def _routes(items: Iterable[Any]) -> Iterator[str]:
    for entry in items:
        yield entry["prefix"]
        for route in entry["routes"]:
            mark = "*" if route["best"] else "+" if route["used"] else " "
            origin = f"{route['from']}{_path(route)}"
            yield f"  {mark} from {origin}: {_attributes(route)}  ({route['why']}){_stale(route)}"
        if entry["advertised_to"]:
            yield f"    told to {', '.join(entry['advertised_to'])}"


def _table_of_routes(items: Iterable[Any]) -> Iterator[str]:
    for route in items:
        mark = "*" if route.get("best") else "+" if route.get("used") else " "
        rejected = f"  (not used: {route['rejected']})" if "rejected" in route else ""
        changed = f"  (policy made it: {_attributes(route['after_policy'])})" if "after_policy" in route else ""
        yield f"{mark} {route['prefix']}{_path(route)} {_attributes(route)}{rejected}{changed}{_stale(route)}"


def _stale(route: dict[str, Any]) -> str:
    """A route that a peer has not announced anew since its session went."""
    if route.get("long_lived_stale"):
        return "  (long-lived stale)"
    return "  (stale)" if route.get("stale") else ""


def _path(route: dict[str, Any]) -> str:
    return f" id {route['path_id']}" if "path_id" in route else ""


_NAMES = {
    "next_hop": "via",
    "as_path": "path",
    "origin": "origin",
    "local_pref": "local-pref",
    "med": "med",
    "metric": "metric",
    "communities": "communities",
    "large_communities": "large",
    "originator_id": "originator",
    "cluster_list": "clusters",
    "aggregator": "aggregator",
}


def _attributes(route: dict[str, Any]) -> str:
    parts = []
    for key, name in _NAMES.items():
        value = route.get(key)
        if value not in (None, "", []):
            shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{name} {shown}")
    return " ".join(parts)


def _entry(entry: dict[str, Any]) -> str:
    ago = f"{span(entry['ago'])} ago".rjust(12)
    if "event" in entry:
        return f"{ago}  {entry['event']}"
    way = "sent" if "sent" in entry else "received"
    rest = " ".join(f"{key}={_inline(each)}" for key, each in entry.items() if key not in ("ago", way))
    return f"{ago}  {way} {entry[way]} {rest}".rstrip()


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + " ".join(f"{key}={_inline(each)}" for key, each in value.items() if each not in ("", [], {})) + "}"
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(each) for each in value) + "]"
    return str(value)


def _tree(value: Any, indent: str) -> Iterator[str]:
    for key, each in value.items():
        if isinstance(each, dict) and each:
            yield f"{indent}{key}:"
            yield from _tree(each, indent + "  ")
        elif each not in ({}, []):
            yield f"{indent}{key}: {_inline(each)}"
