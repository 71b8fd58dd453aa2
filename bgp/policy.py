"""Policy: which routes are taken or given, and with what changed.

Rule: a policy is a list of rules read from the top; the first that matches decides. A rule without conditions
matches everything. Policies are compared by identity: sessions that share one share the work.

Without a policy of its own a peer is given what we originate and what we reflect, nothing else (export.py): nobody
becomes a transit by leaving something out (RFC 8212). EVERYTHING is the policy of who wants to be one.
"""

from __future__ import annotations

from dataclasses import dataclass

from bgp.message import Attributes, Family, nlri


@dataclass(frozen=True, slots=True)
class PrefixRange:
    """Prefixes inside `prefix` whose lengths lie between `shortest` and `longest`."""

    family: Family
    prefix: bytes
    shortest: int
    longest: int

    @classmethod
    def parse(cls, text: str) -> PrefixRange:
        """ "10.0.0.0/8" means that prefix alone, "10.0.0.0/8{24,28}" those inside it of these lengths,
        "10.0.0.0/8+" all inside it. Raises ValueError.
        """
        base, brace, lengths = text.partition("{")
        everything = base.endswith("+")
        family, prefix = nlri.parse(base.removesuffix("+"))
        longest_possible = 32 if family is Family.IPV4 else 128
        shortest = longest = prefix[0]
        if everything:
            longest = longest_possible
        if brace:
            low, comma, high = lengths.removesuffix("}").partition(",")
            if everything or not (lengths.endswith("}") and comma and low.isdecimal() and high.isdecimal()):
                raise ValueError(f"{text!r}: write lengths like 10.0.0.0/8{{24,28}}")
            shortest, longest = int(low), int(high)
        if not prefix[0] <= shortest <= longest <= longest_possible:
            raise ValueError(f"{text!r}: lengths must lie between {prefix[0]} and {longest_possible}, in order")
        return cls(family, prefix, shortest, longest)

    def matches(self, family: Family, prefix: bytes) -> bool:
        if family is not self.family or not self.shortest <= prefix[0] <= self.longest:
            return False
        bits = self.prefix[0]
        whole, rest = bits >> 3, bits & 7
        if prefix[1 : 1 + whole] != self.prefix[1 : 1 + whole]:
            return False
        return not rest or prefix[1 + whole] >> (8 - rest) == self.prefix[1 + whole] >> (8 - rest)


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions that must all hold; an empty one always does."""

    prefixes: tuple[PrefixRange, ...] = ()
    """Any of them."""
    communities: frozenset[int] = frozenset()
    """Any of them."""
    large_communities: frozenset[tuple[int, int, int]] = frozenset()
    through: frozenset[int] = frozenset()
    """An AS that stands anywhere in the path."""
    neighbour: frozenset[int] = frozenset()
    """The AS that the route came from: the leftmost."""
    originator: frozenset[int] = frozenset()
    """The AS that the route began in: the rightmost."""
    longest_path: int | None = None
    own: bool | None = None
    """Whether we originate it; None: either way."""

    def matches(self, family: Family, prefix: bytes, attributes: Attributes, *, own: bool = False) -> bool:
        path = attributes.as_path
        return (
            (self.own is None or self.own is own)
            and (not self.prefixes or any(entry.matches(family, prefix) for entry in self.prefixes))
            and (not self.communities or not self.communities.isdisjoint(attributes.communities))
            and (not self.large_communities or not self.large_communities.isdisjoint(attributes.large_communities))
            and (not self.through or not self.through.isdisjoint(path.numbers()))
            and (not self.neighbour or path.first in self.neighbour)
            and (not self.originator or (bool(path) and path[-1][1][-1] in self.originator))
            and (self.longest_path is None or path.length <= self.longest_path)
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What to set; None and empty leave an attribute as it is."""

    local_pref: int | None = None
    med: int | None = None
    next_hop: bytes = b""
    """Only where it fits the family: 4 octets for IPv4, 16 for IPv6."""
    prepend: tuple[int, ...] = ()
    clear_communities: bool = False
    """Remove all standard and large communities before adding."""
    remove_communities: frozenset[int] = frozenset()
    add_communities: tuple[int, ...] = ()
    add_large_communities: tuple[tuple[int, int, int], ...] = ()

    def apply(self, family: Family, attributes: Attributes) -> Attributes:
        changed: dict[str, object] = {}
        if self.local_pref is not None:
            changed["local_pref"] = self.local_pref
        if self.med is not None:
            changed["med"] = self.med
        if len(self.next_hop) == (4 if family is Family.IPV4 else 16):
            changed["next_hop"] = self.next_hop
        if self.prepend:
            path = attributes.as_path
            for number in reversed(self.prepend):
                path = path.prepend(number)
            changed["as_path"] = path
        if self.clear_communities or self.remove_communities or self.add_communities:
            kept = () if self.clear_communities else attributes.communities
            added = (*(value for value in kept if value not in self.remove_communities), *self.add_communities)
            changed["communities"] = tuple(dict.fromkeys(added))
        if self.clear_communities or self.add_large_communities:
            large = () if self.clear_communities else attributes.large_communities
            changed["large_communities"] = tuple(dict.fromkeys((*large, *self.add_large_communities)))
        return attributes._replace(**changed) if changed else attributes  # type: ignore[arg-type]


_ANYTHING = Match()
_NOTHING = Change()


@dataclass(frozen=True, slots=True)
class Rule:
    accept: bool
    match: Match = _ANYTHING
    change: Change = _NOTHING


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """Rules in order, and what happens to a route that none of them matches."""

    rules: tuple[Rule, ...] = ()
    accept: bool = True

    def apply(
        self,
        family: Family,
        prefix: bytes,
        attributes: Attributes,
        base: Attributes | None = None,
        *,
        own: bool = False,
    ) -> Attributes | None:
        """The attributes to go on with, or None to reject.

        Conditions look at `attributes`; changes are made to `base`, which for export already has what the protocol
        demands (next hop, AS path). `own`: the route is one that we originate.
        """
        base = attributes if base is None else base
        for rule in self.rules:
            if rule.match.matches(family, prefix, attributes, own=own):
                return rule.change.apply(family, base) if rule.accept else None
        return base if self.accept else None


EVERYTHING = Policy()
