"""Composes the node's plan from its backends. Pure: values in, values out.

Rules: the active backend is the configured one. While the cluster moves from one backend to another, the previous
one stands beside it for as long as some peer still announces it, and each peer is planned by the backend that its
own lease announces: so a change of backend drops no packet, in whatever order the nodes follow. A peer that
announces a backend which does not stand here yet keeps the path it had (`Peer.keep`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from netagent.contract import Backend, Context, Plan
from netagent.model import Finding, Lease, Object


class Standing(NamedTuple):
    """A backend with the context that it plans from."""

    backend: Backend
    context: Context


class Peer(NamedTuple):
    """What one remote lease needs. `backend` planned it; `keep`: leave what was planned for it earlier."""

    backend: str
    objects: tuple[Object, ...]
    findings: tuple[Finding, ...]
    keep: bool = False


def announced(lease: Lease) -> str:
    """The backend type that a lease announces: flannel's udp writes none."""
    return lease.backend or "udp"


class Composer:
    """The plan of a node with one backend, or with two while a change is under way."""

    def __init__(self, active: Standing, previous: Standing | None = None) -> None:
        self.active = active
        self.previous = previous

    @property
    def standing(self) -> tuple[Standing, ...]:
        return (self.active,) if self.previous is None else (self.active, self.previous)

    @property
    def ports(self) -> tuple[int, ...]:
        """UDP ports that peers must reach, sorted."""
        ports = {port for s in self.standing for port in s.backend.ports(s.context.options)}
        return tuple(sorted(ports))

    def base(self) -> dict[str, Plan]:
        """The base plan of each standing backend, by its name."""
        return {s.backend.name: s.backend.base(s.context) for s in self.standing}

    def peer(self, lease: Lease) -> Peer:
        """Plan one remote lease."""
        kind = announced(lease)
        for standing in self.standing:
            if standing.backend.name == kind:
                plan = standing.backend.peer(standing.context, lease)
                return Peer(kind, plan.objects, plan.findings)
        active = self.active
        plan = active.backend.peer(active.context, lease)
        return Peer(active.backend.name, plan.objects, plan.findings, keep=not plan.objects)

    def previous_needed(self, leases: Iterable[Lease]) -> bool:
        """Whether some peer still announces the previous backend."""
        if self.previous is None:
            return False
        name = self.previous.backend.name
        return any(announced(lease) == name for lease in leases)
