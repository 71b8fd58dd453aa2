"""Prefixes that are taken from nobody: those that are ours alone and what is inside them, and the default route.

Rule: a peer's route to one of them stays in Adj-RIB-In with the reason and is never chosen. A prefix that others may
announce beside us (anycast) is not among them: our own route to it is always the best one, so ours is what we use,
and a reflector still tells its clients of the others' where they take several.
"""

from __future__ import annotations

from collections.abc import Iterable

from bgp.message import Family, nlri
from bgp.policy import PrefixRange


class OwnPrefixes:
    """What we originate and is ours alone, by family."""

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
        """Whether one of them is to be looked at: a default route, ours, inside ours. The answer is mostly no."""
        for path in paths:
            if not path[0]:
                return True
        return bool(self._guarded[family]) and any(
            self.refused(family, nlri.prefix_of(family, path)) for path in paths
        )

    def refused(self, family: Family, prefix: bytes) -> str:
        """Why a peer's route to it may not be used; empty where it may."""
        if prefix in self._guarded[family]:
            return "our own prefix"
        for each in self._guarded[family].values():
            if each.matches(family, prefix):
                return f"inside our own {nlri.text(family, each.prefix)}"
        return ""
