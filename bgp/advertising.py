"""What the peers are told: which group a peer belongs to, and how it comes up to what its group has been told.

Rule: a group's octets are made once. A member is up to date and gets them as they are made, or it is behind: it has
just come, has asked for all again, does not read, or has moved here from another group. Who is behind is told by and
by, by `step`, a slice at a time and only while it reads; what changes meanwhile is noted, and told at the end. So
what waits for a peer is bounded, and a table of any size is sent without anybody having to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from bgp.adj_rib_out import SLICE, Snapshot, UpdateGroup
from bgp.export import ExportSettings
from bgp.identifiers import Identifiers
from bgp.message import Family, RefreshKind, encode_end_of_rib, encode_route_refresh
from bgp.rib import Chosen, Rib
from bgp.route import Source

Send = Callable[[Source, bytes, int], None]
"""To a member: messages joined, and how many."""


class _Behind:
    """What a member has still to be told."""

    def __init__(self, everything: Iterable[Family], *, joins: bool = False, held: bool = False) -> None:
        self.everything = dict.fromkeys(everything)
        """Families of which it is to be told all; the first is under way if there is a snapshot."""
        self.snapshot: Snapshot | None = None
        self.position = 0
        self.changed: dict[Family, dict[bytes, None]] = {}
        self.joins = joins
        """End-of-RIB is to follow."""
        self.held = held
        """It does not read."""
        self.was: UpdateGroup | None = None
        """The group that it has moved here from, until the two are compared."""
        self.unlike: dict[Family, list[bytes]] | None = None
        """What is left to be compared; None: that is not begun."""
        self.bracketed: dict[Family, None] = {}
        """Families whose beginning and end it is told (RFC 7313)."""

    def note(self, family: Family, prefixes: Iterable[bytes]) -> None:
        self.changed.setdefault(family, {}).update(dict.fromkeys(prefixes))

    def ask(self, family: Family) -> None:
        """All of a family, from its beginning."""
        if self.snapshot is not None and self.snapshot.family is family:
            self.snapshot = None
        self.everything[family] = None


class Advertising:
    """All groups of a speaker."""

    def __init__(self, ribs: Mapping[Family, Rib], send: Send) -> None:
        self.groups: dict[ExportSettings, UpdateGroup] = {}
        self._ribs = ribs
        self._identifiers = {family: Identifiers() for family in ribs}
        self._send = send
        self._group_of: dict[Source, UpdateGroup] = {}
        self._behind: dict[Source, _Behind] = {}
        self._asked: dict[tuple[Source, Family], bool] = {}
        self._again: dict[Family, list[bytes]] = {}

    def group_of(self, member: Source) -> UpdateGroup | None:
        """None while its session does not stand or nothing is told yet."""
        return self._group_of.get(member)

    def is_held(self, member: Source) -> bool:
        behind = self._behind.get(member)
        return behind is not None and behind.held

    @property
    def telling(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._again) or any(not behind.held for behind in self._behind.values())

    # -------------------------------------------------------------------------------------------- coming and going

    def join(self, member: Source, settings: ExportSettings) -> None:
        """The session has come up: the member is to be told all, then End-of-RIB."""
        self._group_of[member] = self._group(settings)
        self._behind[member] = _Behind(settings.families, joins=True)

    def leave(self, member: Source) -> None:
        """The session is over."""
        group = self._group_of.pop(member, None)
        self._behind.pop(member, None)
        for family in Family:
            self._asked.pop((member, family), None)
        if group is not None:
            group.members.pop(member, None)
            self._drop_if_empty(group)

    def move(self, member: Source, settings: ExportSettings) -> None:
        """The member's settings are others now: it is to be told what differs between the two groups."""
        old = self._group_of.get(member)
        if old is None or old.settings == settings:
            return
        behind = self._behind.get(member)
        if behind is None:
            old.members.pop(member)
            behind = self._behind[member] = _Behind(())
        for family in behind.everything:
            behind.ask(family)
        # One that moves on before it was compared still knows what the first told.
        behind.was = behind.was or old
        behind.unlike = None
        self._group_of[member] = self._group(settings)
        self._drop_if_empty(old)

    def _group(self, settings: ExportSettings) -> UpdateGroup:
        group = self.groups.get(settings)
        if group is None:
            group = self.groups[settings] = UpdateGroup(settings)
            for family in settings.families:
                group.begin(self._ribs[family])
            self._watch()
        return group

    def _drop_if_empty(self, group: UpdateGroup) -> None:
        if group not in self._group_of.values():
            del self.groups[group.settings]
            self._watch()

    def _watch(self) -> None:
        """Have the tables say which prefixes were decided, where somebody takes several routes of each."""
        for family, rib in self._ribs.items():
            several = any(family in group.several for group in self.groups.values())
            rib.watch(several)
            if not several:
                self._identifiers[family].clear()

    # ------------------------------------------------------------------------------------------------------ telling

    def tell(self, family: Family, changes: Mapping[bytes, Chosen], decided: Iterable[bytes]) -> None:
        """Loc-RIB has changed: all groups and their members are told; of those who are behind it is noted.

        `decided` are the prefixes with a route that may be another one now, chosen or not (Rib.take_decided).
        """
        for group in self.groups.values():
            if family in group.several:
                batch = group.apply_several(self._ribs[family], self._identifiers[family], decided)
            else:
                batch = group.apply(family, changes)
            for member in group.members:
                for data, count in batch.octets(member):
                    self._send(member, data, count)
            for member, behind in self._behind.items():
                if self._group_of[member] is group or behind.was is group:
                    for prefixes in batch.changed:
                        behind.note(family, prefixes)

    def tell_again(self, family: Family, prefixes: Iterable[bytes]) -> None:
        """Who may have these routes is another question now: told by `step`, and what is the same is not sent."""
        self._again[family] = list(dict.fromkeys((*self._again.get(family, ()), *prefixes)))

    def ask(self, member: Source, family: Family, *, bracketed: bool = False) -> None:
        """The member wants all of a family again (RFC 2918): told by `step`, once, however often it asks before.

        `bracketed`: it is told where that begins and ends (RFC 7313), unless End-of-RIB is still to come, which says
        as much: before it there is no BoRR (section 4).
        """
        if family in self._ribs:
            self._asked[member, family] = bracketed

    def hold(self, member: Source) -> None:
        """The member does not read what it is sent."""
        group = self._group_of.get(member)
        if group is None:
            return
        behind = self._behind.get(member)
        if behind is None:
            group.members.pop(member)
            behind = self._behind[member] = _Behind(())
        behind.held = True

    def release(self, member: Source) -> None:
        """The member has read what it was sent."""
        behind = self._behind.get(member)
        if behind is not None:
            behind.held = False

    def step(self, most: int) -> None:
        """Tell those who are behind of some `most` prefixes in all, each in its turn."""
        for (member, family), bracketed in self._asked.items():
            group = self._group_of.get(member)
            if group is None or family not in group.settings.families:
                continue  # it will be told all when it joins
            group.members.pop(member, None)
            behind = self._behind.setdefault(member, _Behind(()))
            behind.ask(family)
            if bracketed and not behind.joins:
                behind.bracketed[family] = None
        self._asked.clear()
        most -= self._tell_some_again(most)
        for group in self.groups.values():
            while most > 0 and (filled := group.fill(self._ribs, self._identifiers, most)):
                most -= filled
        for member, behind in list(self._behind.items()):
            if behind.held:
                continue
            group = self._group_of[member]
            while most > 0 and (told := self._tell_some(group, member, behind)):
                most -= told
            if most <= 0:
                # The next step begins with those who have not had their turn.
                if self._behind.pop(member, None):
                    self._behind[member] = behind
                break
            del self._behind[member]
            group.members[member] = None
            if behind.joins:
                for family in group.settings.families:
                    self._send(member, encode_end_of_rib(family), 1)
            for family in behind.bracketed:
                self._send(member, encode_route_refresh(family, RefreshKind.ENDS), 1)

    def _tell_some_again(self, most: int) -> int:
        for family, left in self._again.items():
            some, left[-most:] = left[-most:], []
            if not left:
                del self._again[family]
            chosen = self._ribs[family].chosen
            self.tell(family, {prefix: chosen.get(prefix, ()) for prefix in some}, some)
            return len(some)
        return 0

    def _compare_some(self, group: UpdateGroup, member: Source, behind: _Behind) -> int:
        """What a member that has moved here must be told for it; how many paths were looked at.

        The group has all of the tables by now. What changes in either group meanwhile `tell` notes.
        """
        assert behind.was is not None
        if behind.unlike is None:
            behind.unlike = {}
            for family in group.settings.families:
                if family in behind.everything:
                    behind.note(family, behind.was.paths(family))  # it may know of what is not told here
                else:
                    ours, theirs = group.paths(family), behind.was.paths(family)
                    behind.unlike[family] = [*ours, *(path for path in theirs if path not in ours)]
        for family, left in behind.unlike.items():
            some, left[-SLICE:] = left[-SLICE:], []
            if not left:
                del behind.unlike[family]
            behind.note(family, group.differing(family, behind.was, some, member))
            return max(len(some), 1)
        behind.was = behind.unlike = None
        return 1

    def _tell_some(self, group: UpdateGroup, member: Source, behind: _Behind) -> int:
        """Tell a member of a slice; about how many prefixes that were, 0 when it is up to date."""
        if behind.was is not None:
            return self._compare_some(group, member, behind)
        for family in behind.everything:
            if behind.snapshot is None:
                if family in behind.bracketed:
                    self._send(member, encode_route_refresh(family, RefreshKind.BEGINS), 1)
                behind.snapshot, behind.position = group.snapshot(family), 0
            batch = behind.snapshot.batch(behind.position)
            if batch is not None:
                behind.position += 1
                for data, count in batch.octets(member):
                    self._send(member, data, count)
                return min(SLICE, len(behind.snapshot))
            behind.snapshot = None
            del behind.everything[family]
            return 1
        for family, changed in behind.changed.items():
            some = list(islice(changed, SLICE))
            for prefix in some:
                del changed[prefix]
            if not changed:
                del behind.changed[family]
            messages = group.about(family, some, member)
            if messages:
                self._send(member, b"".join(messages), len(messages))
            return max(len(some), 1)
        return 0
