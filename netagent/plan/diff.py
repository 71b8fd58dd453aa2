"""The difference between what is desired and what is there, and the order to apply it in. Pure.

Rules: creation follows model.KINDS, so that what others stand on comes first; removal is its reverse and comes after
all creation, so that traffic never finds nothing where a replacement exists. What the kernel adds by itself (a MAC
that nobody asked for) is no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netagent.kernel.base import Op
from netagent.model import KINDS, Key, Link, Object

_RANK = {kind: number for number, kind in enumerate(KINDS)}


def satisfied(want: Object, have: Object | None) -> bool:
    """Whether what is there is what is wanted."""
    if have == want:
        return True
    if isinstance(want, Link) and isinstance(have, Link) and want.mac is None:
        return Link(**{**{f: getattr(have, f) for f in have.__struct_fields__}, "mac": None}) == want
    return False


def turn(kind: str, verb: str) -> int:
    """Where an operation belongs in a pass: puts in the order of kinds, then deletes in reverse."""
    rank = _RANK[kind]
    return rank if verb == "put" else 2 * len(KINDS) - rank


def order(op: Op) -> int:
    return turn(op.object.KIND, op.verb)


def diff(desired: Mapping[Key, Object], actual: Iterable[Object]) -> list[Op]:
    """What makes `actual` equal to `desired`."""
    ops: list[Op] = []
    there: set[Key] = set()
    for have in actual:
        key = have.key
        there.add(key)
        want = desired.get(key)
        if want is None:
            ops.append(Op("delete", have))
        elif not satisfied(want, have):
            ops.append(Op("put", want))
    ops += [Op("put", want) for key, want in desired.items() if key not in there]
    return sorted(ops, key=order)
