"""Which part each node plays, who has a session with whom, and how that changes without a lost packet. Pure.

A node plays one of four parts: `mesh` (a session with every node), `client` (sessions with the reflectors),
`reflector` (sessions with all, and it passes on what one says to the others), `edge` (only with its routers).

Rule: what the options ask for is the target; what a node plays is what its record says, and that follows the target
only when nobody loses a route by it: a node leaves the mesh when a reflector (or its router) has told it everything,
it enters the mesh for good when the others have, and a reflector goes on reflecting as long as it has a client.
A session stands as long as either end needs it by its target or by the part that it plays. So nodes may learn of a
change in any order and at any time: while one lags, the sessions of both topologies stand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from backends.bgp.members import Member
from backends.bgp.options import BgpOptions

MESH, CLIENT, REFLECTOR, EDGE = "mesh", "client", "reflector", "edge"
ROLES = (MESH, CLIENT, REFLECTOR, EDGE)

# What a peer has been sent arrives a moment after the record that says so: so long the next part waits (seconds).
SETTLE = 1.0
# A node that enters the mesh waits no longer than this for nodes that do not answer (seconds).
PATIENCE = 10.0

# More sessions than this a node are no mesh for anybody: each change is told N times by everyone.
LARGE_MESH = 100


def target(options: BgpOptions, name: str, labels: Collection[str]) -> str:
    """The part that the options give to a node."""
    if options.reflects(name, labels):
        return REFLECTOR
    if options.mesh:
        return MESH
    return CLIENT if options.reflectors else EDGE


class Seen(NamedTuple):
    """What a node sees of its sessions: the names of members, and of routers, that have told it everything."""

    members: Collection[str] = ()
    routers: Collection[str] = ()


def may_play(options: BgpOptions, role: str, wanted: str, others: Mapping[str, Member], seen: Seen) -> bool:
    """Whether a node that plays `role` can play `wanted` now, as far as sessions and records tell."""
    if role == wanted:
        return True
    if wanted == REFLECTOR:
        return True  # reflecting takes nothing from anybody
    if role == REFLECTOR and not all(_served(options, member, others) for member in others.values()):
        return False  # somebody has nobody else
    if wanted == MESH:
        meshed = (name for name, m in others.items() if MESH in (m.role, target(options, name, m.labels)))
        return all(name in seen.members for name in meshed)
    if wanted == CLIENT:
        return any(name in seen.members for name, member in others.items() if _reflecting(options, member))
    return bool(seen.routers) or not others


def impatient(role: str, wanted: str) -> bool:
    """Whether `PATIENCE` is enough for that change: nobody loses by it but through nodes that do not answer."""
    return wanted == MESH and role != REFLECTOR


def partners(options: BgpOptions, role: str, wanted: str, others: Mapping[str, Member]) -> dict[str, bool]:
    """The members to have a session with, and whether we reflect for each.

    `role` is the part that we play and `wanted` our target. Reflectors are each other's clients: who plays what is
    heard late, two that take each other for reflectors would tell neither of the other, and CLUSTER_LIST ends loops.
    """
    ours = {role, wanted}
    found: dict[str, bool] = {}
    for name, member in others.items():
        theirs = {target(options, name, member.labels), member.role}
        both = ours | theirs
        if MESH in both or REFLECTOR in both:
            found[name] = REFLECTOR in ours
    return found


def via(options: BgpOptions, before: Collection[str], others: Mapping[str, Member], seen: Seen) -> tuple[str, ...]:
    """The reflectors by our options that have told us everything at some time: what our record says of them."""
    return tuple(
        sorted(
            name
            for name, member in others.items()
            if options.reflects(name, member.labels) and (name in seen.members or name in before)
        )
    )


def _served(options: BgpOptions, member: Member, others: Mapping[str, Member]) -> bool:
    """Whether a node can do without us as its reflector."""
    return member.role != CLIENT or any(name in others and _reflecting(options, others[name]) for name in member.via)


def _reflecting(options: BgpOptions, member: Member) -> bool:
    """A reflector by the options, and by what it says itself."""
    return member.role == REFLECTOR and options.reflects(member.name, member.labels)
