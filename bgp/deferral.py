"""Our own restart (RFC 4724 section 4.1): nothing is decided until the peers that were there have sent all they have.

Rule: only peers that are named are awaited, those that stood before the restart; one that cannot restart gracefully,
restarts itself, or does not carry a family any more, is awaited no longer, nor one that is kept down, here or by its
own operator, or is no peer any more; and nobody when the time is over.
"""

from __future__ import annotations

from collections.abc import Iterable

from bgp.message import Family


class Deferral:
    """Which peers each family still waits for."""

    def __init__(self, families: Iterable[Family], names: Iterable[str], ends: float) -> None:
        awaited = frozenset(names)
        self._awaited = {family: set(awaited) for family in families} if awaited else {}
        self._ends = ends

    def __bool__(self) -> bool:
        """Whether anything is awaited."""
        return bool(self._awaited)

    def __contains__(self, family: Family) -> bool:
        """Whether that family is."""
        return family in self._awaited

    @property
    def names(self) -> set[str]:
        """Who is awaited in some family."""
        return set().union(*self._awaited.values())

    @property
    def ends(self) -> float | None:
        """When it is over in any case."""
        return self._ends if self._awaited else None

    def awaited(self) -> dict[Family, list[str]]:
        """For people."""
        return {family: sorted(names) for family, names in self._awaited.items()}

    def heard(self, name: str, family: Family | None = None) -> bool:
        """The peer has sent all of a family (None: of each), or never will. Whether that was the last one awaited."""
        before = bool(self._awaited)
        for each in (family,) if family else tuple(self._awaited):
            names = self._awaited.get(each)
            if names is not None:
                names.discard(name)
                if not names:
                    del self._awaited[each]
        return before and not self._awaited

    def expire(self, now: float) -> bool:
        """Whether the time is over and somebody was still awaited."""
        if not self._awaited or now < self._ends:
            return False
        self._awaited.clear()
        return True
