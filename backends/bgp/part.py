"""The part that this node plays (roles.py), as it goes on in time. Pure: `now` is given, nothing is asked.

Rule: it begins with what the node's record says of the run before, and the next part is played once it could be for
`SETTLE` seconds: what peers have sent arrives a moment after the record that says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.bgp import members, roles
from backends.bgp.members import Member
from backends.bgp.options import BgpOptions
from backends.bgp.roles import Seen
from netagent.model import Node, NodeRecord


class Part:
    """`role` is played, `wanted` is the options' target, `via` are the reflectors that have told us everything."""

    def __init__(self) -> None:
        self.role = ""
        self.wanted = ""
        self.via: tuple[str, ...] = ()
        self._wanted_since = 0.0
        self._able_since: float | None = None

    @property
    def settled(self) -> bool:
        return self.role == self.wanted

    def moves(self, options: BgpOptions, others: Mapping[str, Member], seen: Seen) -> bool:
        """Whether `update` has something to do."""
        return not self.settled or (
            bool(options.reflectors) and roles.via(options, self.via, others, seen) != self.via
        )

    def update(
        self,
        options: BgpOptions,
        node: Node,
        record: NodeRecord | None,
        others: Mapping[str, Member],
        seen: Seen,
        now: float,
    ) -> None:
        """Follow options, records and sessions. `record` is our own of the run before, if there was one."""
        wanted = roles.target(options, node.name, node.labels)
        if not self.role:
            said = members.role_in(record)
            self.role = said if said in roles.ROLES else wanted
            self.via = members.via_in(record)
        self.via = roles.via(options, self.via, others, seen)
        if wanted != self.wanted:
            self.wanted, self._wanted_since, self._able_since = wanted, now, None
        if not self.settled and self._due(options, others, seen, now):
            self.role, self._able_since = wanted, None

    def _due(self, options: BgpOptions, others: Mapping[str, Member], seen: Seen, now: float) -> bool:
        if not roles.may_play(options, self.role, self.wanted, others, seen):
            self._able_since = None
            return roles.impatient(self.role, self.wanted) and now - self._wanted_since >= roles.PATIENCE
        if self.wanted == roles.REFLECTOR:
            return True
        if self._able_since is None:
            self._able_since = now
        return now - self._able_since >= roles.SETTLE
