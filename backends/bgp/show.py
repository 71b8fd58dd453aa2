"""What `netagent bgp` asks of the speaker, as JSON values or as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from backends.bgp.publishing import Publisher
from bgp import views
from bgp.daemon import show
from bgp.message import LocalError
from bgp.speaker import Speaker
from netagent.contract import Answer
from netagent.errors import UsageError
from netagent.status import describe

VIEWS = ("peers", "routes", "received", "advertised", "log")


def view(
    name: str,
    arguments: Mapping[str, str],
    speaker: Speaker | None,
    now: float,
    publisher: Publisher,
) -> Answer:
    """The answer. UsageError."""
    if name not in VIEWS:
        raise UsageError(f"BGP has no view {name!r}", remedy=f"There are {', '.join(VIEWS)}")
    if speaker is None:
        raise UsageError("the speaker does not run yet", remedy="`netagent status` tells what it waits for")
    peer = arguments.get("peer", "")
    if not peer and name in ("received", "advertised", "log"):
        raise UsageError(f"{name} of which peer?", remedy="`netagent bgp peers` lists them")
    values = _values(name, peer, arguments, speaker, now, publisher)
    nothing = _nothing(name, peer, arguments.get("prefix", ""))
    return Answer(values, lambda items: show.lines(name, bool(peer), items) if items else [nothing])


def _values(
    name: str, peer: str, arguments: Mapping[str, str], speaker: Speaker, now: float, publisher: Publisher
) -> Iterator[dict[str, Any]]:
    try:
        for item in _items(name, peer, arguments, speaker, now):
            if name == "routes":
                route = publisher.routes.get(item["prefix"])
                item["installed"] = describe(route) if route is not None else ""
                if item["prefix"] in publisher.refused:
                    item["not_installed"] = publisher.refused[item["prefix"]]
            yield item
    except LocalError as error:
        raise UsageError(str(error), remedy="`netagent bgp peers` lists the peers") from None


def _nothing(name: str, peer: str, prefix: str) -> str:
    """Why there is nothing to read."""
    if name == "routes":
        return f"no route to {prefix}" if prefix else "no routes"
    return {
        "peers": "no peers",
        "received": f"{peer} has sent no route",
        "advertised": f"{peer} was told of no route",
    }.get(name, f"no message yet from or to {peer}")


def _items(
    name: str, peer: str, arguments: Mapping[str, str], speaker: Speaker, now: float
) -> Iterator[dict[str, Any]] | list[dict[str, Any]]:
    if name == "peers":
        return views.peers(speaker, now, peer)
    if name == "routes":
        return views.routes(speaker, arguments.get("prefix", ""), more_specific=bool(arguments.get("more_specific")))
    if name == "received":
        return views.received(speaker, peer)
    if name == "advertised":
        return views.advertised(speaker, peer)
    return views.log(speaker, peer, now)
