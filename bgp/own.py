"""Prefixes that are taken from nobody: ours, those inside what is ours alone, and the default route.

Rule: a peer's route to one of them stays in Adj-RIB-In with the reason and is never chosen; two nodes that announce
one prefix each go on using their own.
"""

from __future__ import annotations

from collections.abc import Iterable

from bgp.message import Family, nlri
from bgp.policy import PrefixRange


class OwnPrefixes:
    """What we originate, by family."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._own: dict[Family, set[bytes]] = {family: set() for family in families}
        self._guarded: dict[Family, dict[bytes, PrefixRange]] = {family: {} for family in families}

    def add(self, family: Family, prefix: bytes, *, guard: bool) -> bool:
        """A prefix is ours; with `guard` all inside it too. Whether that is news."""
        news = prefix not in self._own[family] or guard is not (prefix in self._guarded[family])
        self._own[family].add(prefix)
        if guard:
            longest = 32 if family is Family.IPV4 else 128
            self._guarded[family][prefix] = PrefixRange(family, prefix, prefix[0], longest)
        else:
            self._guarded[family].pop(prefix, None)
        return news

    def remove(self, family: Family, prefix: bytes) -> bool:
        """It is ours no longer; whether it was guarded."""
        self._own[family].discard(prefix)
        return self._guarded[family].pop(prefix, None) is not None

    def concern(self, family: Family, prefixes: Iterable[bytes]) -> bool:
        """Whether one of them is to be looked at: a default route, ours, inside ours. The answer is mostly no."""
        own = self._own[family]
        for prefix in prefixes:
            if not prefix[0] or prefix in own:
                return True
        return bool(self._guarded[family]) and any(self.refused(family, prefix) for prefix in prefixes)

    def refused(self, family: Family, prefix: bytes) -> str:
        """Why a peer's route to it may not be used; empty where it may."""
        if prefix in self._own[family]:
            return "our own prefix"
        for each in self._guarded[family].values():
            if each.matches(family, prefix):
                return f"inside our own {nlri.text(family, each.prefix)}"
        return ""
