"""Accepts of ours where other tools offer a place for them: Docker's chain DOCKER-USER, firewalld's trusted zone.

Rules: only with `firewall_integrate`; every rule carries the comment "netagent", and only rules with it are removed;
a place that its tool makes anew (dockerd restarts) gets the accept again, because its chain is watched. What was put
is journalled, so that a host on which nothing was never pays for a listing of somebody else's thousand rules.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from netagent.errors import KernelError
from netagent.kernel import foreign
from netagent.kernel.base import Failure, Op
from netagent.kernel.firewall import Firewall
from netagent.kernel.journal import Journal
from netagent.kernel.ruleset import Ruleset
from netagent.model import Family, ForeignAccept, Object

COMMENT = "netagent"
DOCKER, FIREWALLD = "docker-user", "firewalld"
ZONE = "trusted"
_PREFIX = "accept:"  # of keys in the journal
DEADLINE = 10.0  # seconds, for firewall-cmd

_TABLE: dict[Family, str] = {4: "ip", 6: "ip6"}


class Places:
    """Writes and dumps ForeignAccept objects. `firewall` runs nft and tells our own transactions from others'."""

    def __init__(self, firewall: Firewall, journal: Journal) -> None:
        self._firewall = firewall
        self._journal = journal

    def found(self) -> list[tuple[str, Family]]:
        """Where an accept can be put now."""
        ruleset = self._firewall.nft.ruleset()
        places: list[tuple[str, Family]] = [
            (DOCKER, family)
            for family, table in _TABLE.items()
            if foreign.has_chain(ruleset, table, "filter", "DOCKER-USER")
        ]
        if shutil.which("firewall-cmd") is not None and _has_firewalld(ruleset):
            places += [(FIREWALLD, 4), (FIREWALLD, 6)]
        return places

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        failures = []
        for op in ops:
            assert isinstance(op.object, ForeignAccept)
            put, key = op.verb == "put", _key(op.object)
            try:
                if op.object.place == FIREWALLD and self._journal.get(key) is None and (not put or _zoned(op.object)):
                    continue  # a source carries no mark: what the journal does not know is somebody else's
                if put:
                    self._journal.record(key, None, "accept")
                if op.object.place == FIREWALLD:
                    self._firewalld(op.object, add=put)
                elif put:
                    self._put(op.object)
                else:
                    self._delete(op.object)
                if not put:
                    self._journal.forget(key)
            except KernelError as error:
                failures.append(Failure(op, error.errno or errno.EIO, error.message))
        return failures

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]:
        """The accepts that stand, of ours."""
        asked = {obj for obj in wanted if isinstance(obj, ForeignAccept)}
        known = {_accept(key) for key in self._journal.entries(_PREFIX)}
        if not asked | known:
            return []
        ruleset = self._firewall.nft.ruleset()
        objects: list[Object] = []
        for family, table in _TABLE.items():
            directions: dict[str, set[str]] = {}
            for rule in _rules(ruleset, table):
                for direction, prefix in _accepted(rule):
                    directions.setdefault(prefix, set()).add(direction)
            for prefix, seen in directions.items():
                accept = ForeignAccept(DOCKER, family, prefix)
                # Half of a wanted accept is none, so that it is put again whole; half of another is to go.
                if len(seen) == 2 or accept not in asked:
                    objects.append(accept)
        return objects + [accept for accept in asked | known if accept.place == FIREWALLD and _zoned(accept)]

    def _put(self, accept: ForeignAccept) -> None:
        table = _TABLE[accept.family]
        insert = f"insert rule {table} filter DOCKER-USER {table}"
        self._delete(accept)
        self._firewall.own_transaction(
            "".join(
                f'{insert} {way} {accept.prefix} counter accept comment "{COMMENT}"\n' for way in ("saddr", "daddr")
            )
        )

    def _delete(self, accept: ForeignAccept) -> None:
        table = _TABLE[accept.family]
        handles = [
            rule["handle"]
            for rule in _rules(self._firewall.nft.ruleset(), table)
            if any(prefix == accept.prefix for _, prefix in _accepted(rule))
        ]
        if handles:
            self._firewall.own_transaction(
                "".join(f"delete rule {table} filter DOCKER-USER handle {handle}\n" for handle in handles)
            )

    def _firewalld(self, accept: ForeignAccept, *, add: bool) -> None:
        verb = "add" if add else "remove"
        if not _firewalld(f"--zone={ZONE}", f"--{verb}-source={accept.prefix}") and add:
            raise KernelError(f"firewalld did not take {accept.prefix} into its zone {ZONE}", errno=errno.EIO)


def _has_firewalld(ruleset: Ruleset) -> bool:
    """Whether firewalld runs: its table is there, or on its older iptables back end its chains."""
    chains = [entry["chain"] for entry in ruleset if "chain" in entry]
    return any(chain["table"] == "firewalld" or chain["name"] == "FORWARD_direct" for chain in chains)


def _zoned(accept: ForeignAccept) -> bool:
    return _firewalld(f"--zone={ZONE}", f"--query-source={accept.prefix}")


def _key(accept: ForeignAccept) -> str:
    return f"{_PREFIX}{accept.place}:{accept.family}:{accept.prefix}"


def _accept(key: str) -> ForeignAccept:
    """The accept of a journal's key."""
    place, family, prefix = key.removeprefix(_PREFIX).split(":", 2)
    return ForeignAccept(place, 4 if family == "4" else 6, prefix)


def _rules(ruleset: Ruleset, table: str) -> list[dict[str, Any]]:
    """Rules of ours in DOCKER-USER."""
    return [
        rule
        for entry in ruleset
        if (rule := entry.get("rule")) is not None
        and (rule["family"], rule["table"], rule["chain"]) == (table, "filter", "DOCKER-USER")
        and rule.get("comment") == COMMENT
    ]


def _accepted(rule: dict[str, Any]) -> list[tuple[str, str]]:
    """("saddr" or "daddr", prefix) of each address that the rule matches."""
    found = []
    for expression in rule.get("expr", []):
        match = expression.get("match", {})
        payload = match.get("left", {}).get("payload", {})
        right = match.get("right")
        if payload.get("field") in ("saddr", "daddr") and isinstance(right, dict) and "prefix" in right:
            found.append((payload["field"], f"{right['prefix']['addr']}/{right['prefix']['len']}"))
    return found


def _firewalld(*arguments: str) -> bool:
    """Whether firewall-cmd says yes; no where it is not there or does not run."""
    program = shutil.which("firewall-cmd")
    if program is None:
        return False
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=DEADLINE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
