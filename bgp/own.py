"""Prefixes that are taken from nobody: those that are ours alone, what no host can be reached at, default routes.

Rule: a peer's route to one of them stays in Adj-RIB-In with the reason and is never chosen. A prefix that others may
announce beside us (anycast) is not among them: our own route to it is always the best one, so ours is what we use,
and a reflector still tells its clients of the others' where they take several.

Two halves of a default route are one (0.0.0.0/1 and 128.0.0.0/1), and so are a few more pieces of it: whatever is
shorter than /8 counts as a default route. No registry has given anybody more than a /8, of either family.
"""

from __future__ import annotations

from collections.abc import Iterable

from bgp.message import Family, nlri
from bgp.policy import PrefixRange

SHORTEST = 8
"""Bits of a prefix that is no default route."""

_MARTIANS = {
    Family.IPV4: ("0.0.0.0/8+", "127.0.0.0/8+", "224.0.0.0/4+", "255.255.255.255/32"),
    Family.IPV6: ("::/16+", "fe80::/10+", "ff00::/8+"),
}
"""This network, loopback, groups, broadcast, links, and IPv4 inside IPv6 (RFC 4271 section 6.3: such a prefix is
ignored; RFC 6890). Not 240.0.0.0/4, which networks use as a private range, nor 64:ff9b::/96 (NAT64).
"""
_RANGES = {family: tuple(map(PrefixRange.parse, texts)) for family, texts in _MARTIANS.items()}
_SUSPECT = {
    Family.IPV4: frozenset((0, 127, *range(224, 240), 255)),
    Family.IPV6: frozenset((0, 0xFE, 0xFF)),
}
"""The first octets of martians."""


def too_short(prefix: bytes) -> str:
    """Why a prefix of fewer bits is not used."""
    return f"shorter than /{SHORTEST}, as good as a default route" if prefix[0] else "a default route"


class OwnPrefixes:
    """What we originate and is ours alone, by family, beside what nobody can announce."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._guarded: dict[Family, dict[bytes, PrefixRange]] = {family: {} for family in families}

    def add(self, family: Family, prefix: bytes, *, guard: bool) -> bool:
        """A prefix is ours, with `guard` ours alone. Whether peers' routes are to be judged anew for it."""
        before = prefix in self._guarded[family]
        if guard:
            longest = 32 if family is Family.IPV4 else 128
            self._guarded[family][prefix] = PrefixRange(family, prefix, prefix[0], longest)
        else:
            self._guarded[family].pop(prefix, None)
        return guard is not before

    def remove(self, family: Family, prefix: bytes) -> bool:
        """It is ours no longer; whether peers' routes are to be judged anew for it."""
        return self._guarded[family].pop(prefix, None) is not None

    def concern(self, family: Family, paths: Iterable[bytes]) -> bool:
        """Whether one of them is to be looked at: a default route, a martian, ours. The answer is mostly no."""
        suspect = _SUSPECT[family]
        for path in paths:
            if path[0] < SHORTEST or path[1] in suspect:
                return True
        if self._guarded[family]:
            for path in paths:
                if self._ours(family, nlri.prefix_of(family, path)):
                    return True
        return False

    def refused(self, family: Family, prefix: bytes) -> str:
        """Why a peer's route to it may not be used; empty where it may."""
        if prefix[0] >= SHORTEST and prefix[1] in _SUSPECT[family]:
            for each in _RANGES[family]:
                if each.matches(family, prefix):
                    return f"inside {nlri.text(family, each.prefix)}, where no host is"
        return self._ours(family, prefix)

    def _ours(self, family: Family, prefix: bytes) -> str:
        if prefix in self._guarded[family]:
            return "our own prefix"
        for each in self._guarded[family].values():
            if each.matches(family, prefix):
                return f"inside our own {nlri.text(family, each.prefix)}"
        return ""
