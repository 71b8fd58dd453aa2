"""Adj-RIB-Out of an update group: what its peers have been told, and the octets that tell them what changed.

Rule: everything is encoded once for the whole group. A peer is not told of a route that came from it; that is the
only thing in which the members of a group differ, so each piece of a batch carries the source that must not get it.

Where the members take several routes to a prefix (RFC 7911), what is told is kept by path (nlri.py) instead of by
prefix, and each path is told, changed and taken back like a prefix of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bgp.decision import ranked, usable
from bgp.export import ExportSettings, Several, export
from bgp.identifiers import Identifiers
from bgp.message import Attributes, Family, LocalError, encode_announcement, encode_withdrawal
from bgp.rib import Chosen, Rib
from bgp.route import Route, Source

_Told = tuple[Attributes, Source]
Piece = tuple[Source, list[bytes]]
"""Messages, and the source whose routes they are of, which must not get them."""

Octets = tuple[bytes, int]
"""Messages joined, and how many."""

_CHUNK = 65536
"""Octets from which on the next message begins another chunk."""

SLICE = 1000
"""Paths of a snapshot that are encoded at once."""


class _Chunk:
    """Pieces joined once for all who get every one of them."""

    __slots__ = ("_pieces", "count", "data", "sources")

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self.sources = {source for source, _ in pieces}
        self.data = b"".join(message for _, messages in pieces for message in messages)
        self.count = sum(len(messages) for _, messages in pieces)

    def without(self, source: Source) -> Octets:
        kept = [message for other, messages in self._pieces if other is not source for message in messages]
        return b"".join(kept), len(kept)


class Batch:
    """What the members of a group are to be sent."""

    def __init__(
        self,
        pieces: Iterable[Piece],
        only: Mapping[Source, list[bytes]] | None = None,
        changed: Iterable[list[bytes]] = (),
    ) -> None:
        self.changed = changed
        """The paths that it is about, in lists."""
        self._only = only or {}
        self._chunks: list[_Chunk] = []
        some: list[Piece] = []
        size = 0
        for piece in pieces:
            some.append(piece)
            size += sum(map(len, piece[1]))
            if size >= _CHUNK:
                self._chunks.append(_Chunk(some))
                some, size = [], 0
        if some:
            self._chunks.append(_Chunk(some))

    def octets(self, member: Source) -> Iterator[Octets]:
        """Whole messages for a member, in pieces of some 64 KiB; the same objects for all that differ in nothing."""
        if member in self._only:
            yield b"".join(self._only[member]), len(self._only[member])
        for chunk in self._chunks:
            if member not in chunk.sources:
                yield chunk.data, chunk.count
            elif len(chunk.sources) > 1:
                yield chunk.without(member)


class Snapshot:
    """All that a group has told of a family, slice by slice, for those who come up to it at the same time.

    A slice is encoded when the first of them gets there, with what is told then: who uses a snapshot must be told
    anew of what has changed since it was made (advertising.py).
    """

    def __init__(self, group: UpdateGroup, family: Family, prefixes: list[bytes]) -> None:
        self.family = family
        self._group = group
        self._prefixes = prefixes
        self._batches: list[Batch] = []

    def __len__(self) -> int:
        """How many paths there are in all."""
        return len(self._prefixes)

    def batch(self, number: int) -> Batch | None:
        """The slice of that number, which are asked for in order; None behind the last."""
        if number == len(self._batches):
            some = self._prefixes[number * SLICE : (number + 1) * SLICE]
            if not some:
                return None
            self._batches.append(self._group.encode(self.family, some))
        return self._batches[number]


class UpdateGroup:
    """Peers with equal ExportSettings."""

    def __init__(self, settings: ExportSettings) -> None:
        self.settings = settings
        self.members: dict[Source, None] = {}
        self.failures: dict[Family, dict[bytes, str]] = {family: {} for family in settings.families}
        """Paths whose attributes do not fit into a message, and why: nobody is told of them."""
        self.several = dict(settings.several)
        self._told: dict[Family, dict[bytes, _Told]] = {family: {} for family in settings.families}
        self._offered: dict[Family, dict[bytes, tuple[bytes, ...]]] = {family: {} for family in self.several}
        self._snapshots: dict[Family, Snapshot] = {}
        self._unfilled: dict[Family, list[bytes]] = {}
        self._counts: dict[Family, Counter[Source]] = {}

    def begin(self, rib: Rib) -> None:
        """Take in a table, by and by: for a new group, which has no members yet."""
        self._unfilled[rib.family] = list(rib.chosen)

    def fill(self, ribs: Mapping[Family, Rib], identifiers: Mapping[Family, Identifiers], most: int) -> int:
        """Take in so many prefixes of what is left; how many it were, 0 when the group is as it should be."""
        for family, left in self._unfilled.items():
            chosen = ribs[family].chosen
            some, left[-most:] = left[-most:], []
            if family in self.several:
                self.apply_several(ribs[family], identifiers[family], some)
            else:
                self.apply(family, {prefix: chosen[prefix] for prefix in some if prefix in chosen})
            if not left:
                del self._unfilled[family]
            return max(len(some), 1)
        return 0

    def apply_several(self, rib: Rib, identifiers: Identifiers, prefixes: Iterable[bytes]) -> Batch:
        """Prefixes whose routes may have changed, as what the members are to be sent, who take several of each."""
        offered = self._offered[rib.family]
        changes: dict[bytes, Chosen] = {}
        for prefix in prefixes:
            candidates = rib.candidates(prefix)
            given = identifiers.assign(prefix, candidates)
            changes.update(dict.fromkeys(offered.pop(prefix, ()), ()))
            paths = {prefix + given[route]: (route,) for route in self._choice(rib, prefix, candidates)}
            if paths:
                offered[prefix] = tuple(paths)
                changes.update(paths)
        return self.apply(rib.family, changes)

    def _choice(self, rib: Rib, prefix: bytes, candidates: Sequence[Route]) -> Iterable[Route]:
        several = self.several[rib.family]
        if several == Several() or len(candidates) == 1:
            return usable(candidates, rib.metric)
        found: list[Route] = []
        next_hops = set()
        for route in ranked(candidates, rib.metric):
            if several.most is not None and len(found) == several.most:
                break
            attributes = export(self.settings, rib.family, prefix, route)
            if attributes is None or (several.by_next_hop and attributes.next_hop in next_hops):
                continue  # counted are those that the members may have
            next_hops.add(attributes.next_hop)
            found.append(route)
        return found

    def apply(self, family: Family, changes: Mapping[bytes, Chosen]) -> Batch:
        """Changes of Loc-RIB, or of each path where the members take several, as what they are to be sent."""
        told = self._told.get(family)
        if told is None:
            return Batch(())
        groups: dict[_Told, list[bytes]] = {}
        alone: dict[Source, list[bytes]] = {}
        gone: dict[Source, list[bytes]] = {}
        only: dict[Source, list[bytes]] = {}
        heard: dict[Source, bool] = {}
        settings = self.settings
        for prefix, chosen in changes.items():
            old = told.get(prefix)
            attributes = export(settings, family, prefix, chosen[0]) if chosen else None
            if attributes is None:
                if old is not None:
                    del told[prefix]
                    self.failures[family].pop(prefix, None)
                    gone.setdefault(old[1], []).append(prefix)
                continue
            new = (attributes, chosen[0].source)
            if old is not None:
                if old[1] is new[1]:
                    if old[0] == attributes:
                        continue
                elif new[1] in self.members:
                    only.setdefault(new[1], []).append(prefix)  # it had the old route, and must not get its own
            told[prefix] = new
            others = heard.get(new[1])
            if others is None:
                others = heard[new[1]] = self._others(new[1])
            # Equal attributes are looked for (and hashed, which costs the most here) only where they share a message.
            (groups.setdefault(new, []) if others else alone.setdefault(new[1], [])).append(prefix)
        pieces: list[Piece] = []
        for source, prefixes in gone.items():
            if self._others(source):
                pieces.append((source, encode_withdrawal(family, prefixes, settings.longest)))
        pieces.extend(self._encode(family, groups))
        changed = (*gone.values(), *groups.values(), *alone.values(), *only.values())
        if changed:
            self._snapshots.pop(family, None)
            self._counts.pop(family, None)
        withdrawals = {source: encode_withdrawal(family, some, settings.longest) for source, some in only.items()}
        return Batch(pieces, withdrawals, changed)

    def snapshot(self, family: Family) -> Snapshot:
        """All that is told of a family now; the same one until something changes."""
        snapshot = self._snapshots.get(family)
        if snapshot is None:
            snapshot = self._snapshots[family] = Snapshot(self, family, list(self._told[family]))
        return snapshot

    def encode(self, family: Family, prefixes: Iterable[bytes]) -> Batch:
        """The announcements of what is told of these paths."""
        told = self._told[family]
        groups: dict[_Told, list[bytes]] = {}
        for prefix in prefixes:
            if prefix in told:
                groups.setdefault(told[prefix], []).append(prefix)
        return Batch(self._encode(family, groups))

    def about(self, family: Family, prefixes: Iterable[bytes], member: Source) -> list[bytes]:
        """Messages that bring a member up to what is told of these paths, whatever it knows of them."""
        told = self._told[family]
        groups: dict[_Told, list[bytes]] = {}
        gone = []
        for prefix in prefixes:
            what = told.get(prefix)
            if what is None or what[1] is member:
                gone.append(prefix)
            else:
                groups.setdefault(what, []).append(prefix)
        messages = encode_withdrawal(family, gone, self.settings.longest)
        for _, some in self._encode(family, groups):
            messages += some
        return messages

    def differing(self, family: Family, other: UpdateGroup, paths: Iterable[bytes], member: Source) -> list[bytes]:
        """Those of the paths of which this group and another tell a member differently."""
        ours, theirs = self._told.get(family, {}), other._told.get(family, {})
        changed = []
        for path in paths:
            what, was = ours.get(path), theirs.get(path)
            # What came from the member it is not told of, by neither.
            if (what if what and what[1] is not member else None) != (was if was and was[1] is not member else None):
                changed.append(path)
        return changed

    def paths(self, family: Family) -> Mapping[bytes, object]:
        """All that something is told of."""
        return self._told.get(family, {})

    def advertised(self, family: Family, member: Source) -> Iterator[tuple[bytes, Attributes]]:
        """What a member has been told, by path."""
        for prefix, (attributes, source) in self._told.get(family, {}).items():
            if source is not member and prefix not in self.failures[family]:
                yield prefix, attributes

    def has_told(self, family: Family, prefix: bytes, member: Source) -> bool:
        """Whether a member has been told of a prefix."""
        told = self._told.get(family, {})
        paths = self._offered[family].get(prefix, ()) if family in self.several else (prefix,)
        return any(
            path in told and told[path][1] is not member and path not in self.failures[family] for path in paths
        )

    def count(self, family: Family, member: Source) -> int:
        """Of how many paths a member has been told."""
        told = self._told.get(family, {})
        by_source = self._counts.get(family)
        if by_source is None:
            failed = self.failures.get(family, {})
            by_source = Counter(source for prefix, (_, source) in told.items() if prefix not in failed)
            self._counts[family] = by_source
        return by_source.total() - by_source[member]

    def _others(self, source: Source) -> bool:
        """Whether anybody is to be told of what comes from `source`."""
        if not self.members:
            return False
        return len(self.members) > (source in self.members)

    def _encode(self, family: Family, groups: Mapping[_Told, Sequence[bytes]]) -> Iterator[Piece]:
        as4, longest, failures = self.settings.as4, self.settings.longest, self.failures[family]
        for (attributes, source), prefixes in groups.items():
            try:
                messages = encode_announcement(family, attributes, prefixes, as4=as4, most=longest)
            except LocalError as error:
                # RFC 4271 section 9.2: such a route is not announced; what was announced before is taken back.
                failures.update(dict.fromkeys(prefixes, str(error)))
                messages = encode_withdrawal(family, prefixes, longest)
            else:
                if failures:
                    for prefix in prefixes:
                        failures.pop(prefix, None)
            yield source, messages
