"""What the kernel should hold, as a value: objects by owner, merged by rank. Pure.

Rules: an object's identity is its `key`. Where owners want one key with different contents the lowest rank wins,
then the owner's name; the others are remembered and take over when the winner goes. `put` and `drop` return what
changed in effect, in time proportional to the objects of those owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from netagent.model import Key, Object


class Delta(NamedTuple):
    """Keys whose effective content is new or changed, with it, and keys that nobody wants any more."""

    put: dict[Key, Object]
    gone: dict[Key, Object]


class Claim(NamedTuple):
    rank: int
    owner: str
    object: Object


class Desired:
    """The merged wishes. Reads like a mapping from key to the effective object."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[int, tuple[Object, ...]]] = {}
        self._effective: dict[Key, Object] = {}
        # Only keys that more than one owner wants: a lone claim costs an entry in `_single` and no more.
        self._contested: dict[Key, list[Claim]] = {}
        self._single: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._effective)

    def __contains__(self, key: Key) -> bool:
        return key in self._effective

    def get(self, key: Key) -> Object | None:
        return self._effective.get(key)

    def values(self) -> Iterable[Object]:
        return self._effective.values()

    def items(self) -> Iterable[tuple[Key, Object]]:
        return self._effective.items()

    def owners(self, prefix: str = "") -> list[str]:
        return [owner for owner in self._owners if owner.startswith(prefix)]

    def keys_of(self, owner: str) -> Iterable[Key]:
        """Keys of all that the owner wants."""
        return [obj.key for obj in self._owners[owner][1]] if owner in self._owners else ()

    def claims(self, key: Key) -> list[Claim]:
        """Who wants the key, winner first."""
        if key in self._contested:
            return list(self._contested[key])
        owner = self._single.get(key)
        if owner is None:
            return []
        return [Claim(self._owners[owner][0], owner, self._effective[key])]

    def put(self, owner: str, objects: Iterable[Object], rank: int = 0) -> Delta:
        """Make `objects` all that `owner` wants."""
        return self.put_all({owner: objects}, rank)

    def put_all(self, wishes: Mapping[str, Iterable[Object]], rank: int = 0) -> Delta:
        """Make its objects all that each of these owners wants."""
        delta = Delta({}, {})
        for owner, objects in wishes.items():
            wanted = tuple(objects)
            standing = self._owners.get(owner)
            if wanted:
                self._owners[owner] = (rank, wanted)
            if standing is None:
                for obj in wanted:
                    self._claim(obj.key, rank, owner, obj, delta)
                continue
            if not wanted:
                del self._owners[owner]
            old_rank, before = standing
            old = {obj.key: obj for obj in before}
            for obj in wanted:
                key = obj.key
                was = old.pop(key, None)
                if rank != old_rank or was != obj:
                    self._claim(key, rank, owner, obj, delta)
            for key, obj in old.items():
                self._release(key, owner, obj, delta)
        return delta

    def drop(self, owner: str) -> Delta:
        return self.put(owner, ())

    def _claim(self, key: Key, rank: int, owner: str, obj: Object, delta: Delta) -> None:
        holder = self._single.get(key)
        if (holder is None or holder == owner) and key not in self._contested:
            self._single[key] = owner
            self._set(key, obj, delta)
            return
        claim = Claim(rank, owner, obj)
        claims = self._contested.get(key)
        if claims is None:
            assert holder is not None
            claims = [Claim(self._owners[holder][0], holder, self._effective[key])]
            del self._single[key]
        claims = [c for c in claims if c.owner != claim.owner]
        claims.append(claim)
        claims.sort(key=lambda c: (c.rank, c.owner))
        self._contested[key] = claims
        self._set(key, claims[0].object, delta)

    def _release(self, key: Key, owner: str, obj: Object, delta: Delta) -> None:
        claims = self._contested.get(key)
        if claims is None:
            del self._single[key]
            del self._effective[key]
            delta.put.pop(key, None)
            delta.gone[key] = obj
            return
        claims = [c for c in claims if c.owner != owner]
        if len(claims) == 1:
            del self._contested[key]
            self._single[key] = claims[0].owner
        else:
            self._contested[key] = claims
        self._set(key, claims[0].object, delta)

    def _set(self, key: Key, obj: Object, delta: Delta) -> None:
        if self._effective.get(key) != obj:
            self._effective[key] = obj
            delta.put[key] = obj
            delta.gone.pop(key, None)
