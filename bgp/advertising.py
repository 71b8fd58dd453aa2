"""What the peers are told: which group a peer belongs to, and how it comes up to what its group has been told.

Rule: a group's octets are made once. A member that does not read is held: it gets nothing, what it knows is
remembered, and when it reads again it is told the difference. So what waits for a slow peer is bounded by one table,
however much changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bgp.adj_rib_out import UpdateGroup
from bgp.export import ExportSettings
from bgp.message import Attributes, Family, encode_end_of_rib
from bgp.rib import Chosen, Rib
from bgp.route import Source

Send = Callable[[Source, bytes, int], None]
"""To a member: messages joined, and how many."""

_Known = dict[Family, Mapping[bytes, Attributes | None]]


class Advertising:
    """All groups of a speaker."""

    def __init__(self, ribs: Mapping[Family, Rib], send: Send) -> None:
        self.groups: dict[ExportSettings, UpdateGroup] = {}
        self._ribs = ribs
        self._send = send
        self._group_of: dict[Source, UpdateGroup] = {}
        self._held: dict[Source, _Known] = {}
        self._asked: dict[tuple[Source, Family], None] = {}

    def group_of(self, member: Source) -> UpdateGroup | None:
        """None while its session does not stand or nothing is told yet."""
        return self._group_of.get(member)

    def is_held(self, member: Source) -> bool:
        return member in self._held

    # -------------------------------------------------------------------------------------------- coming and going

    def join(self, member: Source, settings: ExportSettings) -> None:
        """The session has come up: the member is told all, then End-of-RIB."""
        group = self._group(settings)
        group.members[member] = None
        self._group_of[member] = group
        for family in settings.families:
            self._dump(group, family, member)
            self._send(member, encode_end_of_rib(family), 1)

    def leave(self, member: Source) -> None:
        """The session is over."""
        group = self._group_of.pop(member, None)
        self._held.pop(member, None)
        for family in Family:
            self._asked.pop((member, family), None)
        if group is not None:
            group.members.pop(member, None)
            self._drop_if_empty(group)

    def move(self, member: Source, settings: ExportSettings) -> None:
        """The member's settings are others now: it is told what differs between the two groups."""
        old = self._group_of.get(member)
        if old is None or old.settings == settings:
            return
        new = self._group(settings)
        known = self._held.get(member)
        if known is None:
            for family in settings.families:
                self._tell_difference(new, family, member, dict(old.advertised(family, member)))
            new.members[member] = None
        old.members.pop(member, None)
        self._group_of[member] = new
        self._drop_if_empty(old)

    def _group(self, settings: ExportSettings) -> UpdateGroup:
        group = self.groups.get(settings)
        if group is None:
            group = self.groups[settings] = UpdateGroup(settings)
            for family in settings.families:
                group.fill(self._ribs[family])
        return group

    def _drop_if_empty(self, group: UpdateGroup) -> None:
        if group not in self._group_of.values():
            del self.groups[group.settings]

    # ------------------------------------------------------------------------------------------------------ telling

    def tell(self, family: Family, changes: Mapping[bytes, Chosen]) -> None:
        """Loc-RIB has changed: all groups and their members are told."""
        for group in self.groups.values():
            batch = group.apply(family, changes)
            for member in group.members:
                for data, count in batch.octets(member):
                    self._send(member, data, count)

    def ask(self, member: Source, family: Family) -> None:
        """The member wants all of a family again (RFC 2918). Told by `answer`, once, however often it asks before."""
        if family in self._ribs:
            self._asked[member, family] = None

    def answer(self) -> None:
        """Tell those that have asked."""
        for member, family in self._asked:
            group = self._group_of.get(member)
            if group is None:
                continue  # it will be told all when it joins
            known = self._held.get(member)
            if known is None:
                self._dump(group, family, member)
            elif family in known:
                known[family] = dict.fromkeys(known[family])
        self._asked.clear()

    def hold(self, member: Source) -> None:
        """The member does not read what it is sent."""
        group = self._group_of.get(member)
        if group is not None and member not in self._held:
            self._held[member] = {
                family: dict(group.advertised(family, member)) for family in group.settings.families
            }
            group.members.pop(member)

    def release(self, member: Source) -> None:
        """The member has read what it was sent: it is told what has changed meanwhile."""
        known = self._held.pop(member, None)
        if known is None:
            return
        group = self._group_of[member]
        for family, before in known.items():
            self._tell_difference(group, family, member, before)
        group.members[member] = None

    def _dump(self, group: UpdateGroup, family: Family, member: Source) -> None:
        for data, count in group.everything(family).octets(member):
            self._send(member, data, count)

    def _tell_difference(
        self, group: UpdateGroup, family: Family, member: Source, known: Mapping[bytes, Attributes | None]
    ) -> None:
        messages = group.difference(family, member, known)
        if messages:
            self._send(member, b"".join(messages), len(messages))
