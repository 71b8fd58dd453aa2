"""Routes of others that the kernel takes instead of ours: told, and left alone.

Of two routes to one prefix the lower metric wins. A route of another owner with the metric of ours keeps ours out,
which is told where ours is refused; one with a lower metric stands beside it, and nobody refuses anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from netagent.model import Finding

_SHOWN = 3


def findings(outranking: Sequence[str]) -> list[Finding]:
    """`outranking`: those routes, as `ip route` prints them."""
    if not outranking:
        return []
    count = len(outranking)
    many = count > 1
    return [
        Finding(
            code="foreign-route-wins",
            subject=outranking[0].partition(" ")[0] if not many else f"{count} prefixes",
            message=(
                f"{count} routes that are not netagent's win over netagent's own to the same prefixes"
                if many
                else "a route that is not netagent's wins over netagent's own to the same prefix"
            ),
            evidence="; ".join(outranking[:_SHOWN]) + ("; ..." if count > _SHOWN else ""),
            remedy="if traffic is to take netagent's way, remove it: `ip route del` and the words of the evidence",
        )
    ]
