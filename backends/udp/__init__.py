"""udp: flannel's user-space tunnel, one bare inner packet a datagram, for hosts where nothing else passes.

`planner` is what the agent plans with, `service` starts and feeds the engine, and `engine` is the process
`netagent-udp` that carries the packets. Rule: the engine's modules import only the standard library, so that the
process is small and starts at once; for its sake `Udp` is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.udp.planner import Udp

__all__ = ["Udp"]


def __getattr__(name: str) -> Any:
    if name == "Udp":
        from backends.udp.planner import Udp

        return Udp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
