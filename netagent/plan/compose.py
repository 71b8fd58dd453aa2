"""Composes the node's plan from its backends. Pure: values in, values out.

Rules: the active backend is the configured one. While the cluster moves from one backend (or VNI) to another, each
previous one stands beside it for as long as some peer is reached by it, and each peer is planned by the backend
that its own lease announces: so a change drops no packet, in whatever order the nodes follow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from netagent.contract import RANK_BASE, Backend, Context, Ip, Plan, Port, Tcp, Udp
from netagent.model import TCP, UDP, Finding, Inbound, Lease, Link, Object


class Use(NamedTuple):
    """A backend, and the options that it is used with."""

    backend: Backend
    options: Any


class Standing(NamedTuple):
    """A backend with the context that it plans from."""

    backend: Backend
    context: Context

    @property
    def use(self) -> Use:
        return Use(self.backend, self.context.options)


class Base(NamedTuple):
    """The base plan of one standing backend, under its owner and rank (the active one wins over the previous)."""

    owner: str
    plan: Plan
    rank: int


class Peer(NamedTuple):
    """What one remote lease needs, and which backend planned it.

    `previous`: which of the previous backends reaches it.
    """

    backend: str
    objects: tuple[Object, ...]
    findings: tuple[Finding, ...]
    previous: Use | None = None


class Announced(NamedTuple):
    """What a lease says of its node's backend, as it is stored."""

    backend: str
    data: bytes
    data6: bytes

    @classmethod
    def by(cls, lease: Lease) -> Announced:
        return cls(lease.backend, lease.data, lease.data6)


def announced(lease: Lease) -> str:
    """The backend type that a lease announces: flannel's udp writes none."""
    return lease.backend or "udp"


def failed(backend: str, lease: Lease, error: Exception) -> Peer:
    """A peer that the backend could not plan: a mistake of its own, said instead of raised."""
    finding = Finding(
        code="peer-plan-failed",
        subject=lease.key,
        severity="error",
        message=f"no path to {lease.label}: the {backend} backend failed on its record",
        evidence=f"{type(error).__name__}: {error}",
        remedy="report it with the record: etcdctl get .../subnets/" + lease.key,
    )
    return Peer(backend, (), (finding,))


class Composer:
    """The plan of a node with one backend, or with several while a change is under way."""

    def __init__(self, active: Standing, previous: tuple[Standing, ...] = (), coming: Standing | None = None) -> None:
        self.active = active
        self.previous = previous
        self.coming = coming
        self._bases: tuple[Base, ...] | None = None
        # What only peers may send to: ports, and devices that take packets of anybody.
        self.guarded = bool(self.ports or self.tcp_ports) or any(
            isinstance(obj, Link) and obj.tunnel is not None for base in self.base() for obj in base.plan.objects
        )

    @property
    def standing(self) -> tuple[Standing, ...]:
        """The active backend first. A coming one has its base and its service, but plans no peer yet."""
        return (self.active, *((self.coming,) if self.coming is not None else ()), *self.previous)

    @property
    def ports(self) -> tuple[int, ...]:
        """UDP ports that peers must reach, sorted."""
        return _udp_ports(self.standing)

    @property
    def tcp_ports(self) -> tuple[int, ...]:
        """TCP ports that peers must reach, sorted."""
        return tuple(sorted({port.port for port in _ports(self.standing) if isinstance(port, Tcp)}))

    @property
    def inbound(self) -> tuple[Inbound, ...]:
        """All that peers must be able to send to this host, sorted."""
        families = self.active.context.network.families
        found = [Inbound(UDP, port) for port in self.ports]
        found += [Inbound(TCP, port) for port in self.tcp_ports]
        found += [
            Inbound(port.protocol)
            for port in _ports(self.standing)
            if isinstance(port, Ip) and port.family in families
        ]
        return tuple(sorted(set(found)))

    def base(self) -> tuple[Base, ...]:
        """The base plans. Where two want one key the active backend wins, then the coming one, then the latest."""
        if self._bases is None:
            self._bases = self._plan()
        return self._bases

    def _plan(self) -> tuple[Base, ...]:
        roles = [("", self.active)]
        if self.coming is not None:
            roles.append(("/coming", self.coming))
        roles += [("/previous" + (str(n) if n > 1 else ""), s) for n, s in enumerate(self.previous, 1)]
        return tuple(
            Base(f"base/{s.backend.name}{role}", s.backend.base(s.context), RANK_BASE + rank)
            for rank, (role, s) in enumerate(roles)
        )

    def listening(self, bases: Iterable[Base]) -> tuple[int, ...]:
        """Those of `ports` that are ours to guard, given the base plans. A backend without base objects was refused
        its place: the port is another's, who may have peers that are none of ours."""
        pairs = tuple(zip(self.standing, bases, strict=True))
        services = {port.port for port in _ports(self.standing) if isinstance(port, Udp)}
        return tuple(sorted(services.union(_udp_ports(s for s, base in pairs if base.plan.objects))))

    def peer(self, lease: Lease) -> Peer:
        """Plan one remote lease."""
        kind = announced(lease)
        first: Plan | None = None
        for standing in (self.active, *self.previous):
            if standing.backend.name == kind:
                plan = standing.backend.peer(standing.context, lease)
                if plan.objects:
                    previous = standing.use if standing is not self.active else None
                    return Peer(kind, plan.objects, plan.findings, previous)
                first = first or plan
        if first is not None:
            return Peer(kind, (), first.findings)
        active = self.active
        plan = active.backend.peer(active.context, lease)
        return Peer(active.backend.name, plan.objects, plan.findings)


def _udp_ports(standing: Iterable[Standing]) -> tuple[int, ...]:
    found = (port.port if isinstance(port, Udp) else port for port in _ports(standing))
    return tuple(sorted({port for port in found if isinstance(port, int)}))


def _ports(standing: Iterable[Standing]) -> list[Port]:
    return [port for s in standing for port in s.backend.ports(s.context.options)]
