"""Our nft table and the elements of its sets, kept as the reconciler wants them and watched for meddling.

Rules: only our own table is touched, and never by `flush ruleset`. A table is replaced in one transaction that
keeps the elements of its sets; a table that is missing gets its sets and their elements before its first rule, so
that no packet of a known peer meets a guard with an empty set. What the kernel holds is compared by a fingerprint
of its rules, taken right after our own transaction: nft's listing of a text never equals the text. The pair of
text and fingerprint is kept in a file, so that a table left by an earlier run is known again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from netagent import files
from netagent.errors import KernelError
from netagent.kernel import nftwire as wire
from netagent.kernel.base import Change, Failure, Op
from netagent.kernel.nft import NftEvents, NftRunner, NftSocket, runner
from netagent.model import NftElement, NftTable, Object

# The body that a dump gives for a table which is not as we made it: equal to nothing that could be wanted.
CHANGED = "# not as netagent made it\n"

_SET = re.compile(r"^[ \t]*set[ \t]+(\S+)[ \t]*\{[^{}]*\}", re.MULTILINE)

# With one of these no element of the batch can go in: asking again one by one would tell nothing new.
_HOPELESS = frozenset((errno.ENOENT, errno.EPERM, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE))


class Firewall:
    """The table `family name` of the network namespace in which this is made.

    `state` is the file that remembers what text stands in the kernel; None: only this process remembers.
    """

    def __init__(
        self,
        name: str = "netagent",
        *,
        family: str = "inet",
        state: Path | None = None,
        nft: NftRunner | None = None,
    ) -> None:
        self.name = name
        self.family = family
        self._state = state
        self._nft = nft
        self._socket = NftSocket()
        self._events = NftEvents(self._socket.port)
        self._in_table = wire.text(wire.TABLE, name)
        self._body, self._fingerprint = self._recall()
        self._known: dict[str, dict[bytes, None]] = {}  # elements that we put, by set
        self._own: deque[int] = deque(maxlen=64)  # transactions of ours that did not come from our socket

    @property
    def nft(self) -> NftRunner:
        """What runs nft's text here; KernelError if there is nothing."""
        if self._nft is None:
            self._nft = runner()
        return self._nft

    def close(self) -> None:
        self._socket.close()
        self._events.close()

    # ------------------------------------------------------------------------------------------ write

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out operations on NftTable and NftElement, in order; neighbours of one kind in one transaction."""
        failures: list[Failure] = []
        for (kind, verb), group in groupby(ops, lambda op: (op.object.KIND, op.verb)):
            run = list(group)
            if kind == "element":
                failures += self._put_elements(run) if verb == "put" else self._delete_elements(run)
                continue
            for op in run:
                try:
                    self._check_name(op.object)
                    self._put_table(op.object) if verb == "put" else self._delete_table()
                except KernelError as error:
                    failures.append(Failure(op, error.errno or errno.EIO, str(error)))
        return failures

    def own_transaction(self, commands: str) -> None:
        """Run nft text such that its notifications are not taken for somebody else's."""
        before = self._socket.generation()
        self.nft.run(commands)
        after = self._socket.generation()
        if after == (before + 1) & 0xFFFFFFFF:
            self._own.append(after & 0xFFFF)

    def _check_name(self, obj: Object) -> None:
        if not isinstance(obj, NftTable) or (obj.family, obj.name) != (self.family, self.name):
            raise KernelError(f"this firewall keeps the table {self.family} {self.name} only", errno=errno.EINVAL)

    def _put_table(self, obj: Object) -> None:
        assert isinstance(obj, NftTable)
        address = f"{self.family} {self.name}"
        whole = f"table {address} {{\n{obj.body}}}\n"
        for _ in range(3):
            flags = self._flags()
            if flags is None:
                self._restore_sets(obj.body)
                self.own_transaction(whole)
            else:
                try:
                    self.own_transaction(self._cleared(obj.body) + whole)
                except KernelError as error:
                    if error.errno == errno.EPERM:
                        raise
                    # A set or the table itself is of another shape: in one transaction all of it anew.
                    self.own_transaction(f"delete table {address}\n{whole}{self._elements_text(obj.body)}")
            generation = self._socket.generation()
            fingerprint = self._present()
            if fingerprint is not None and generation == self._socket.generation() and self._was_own(generation):
                break
            # Somebody else's transaction came between: it may have changed our table before we looked.
        self._remember(obj.body, fingerprint or "")

    def _cleared(self, body: str) -> str:
        """Commands that empty the table of all but the sets that the new body has, too."""
        address = f"{self.family} {self.name}"
        kept = set(_SET.findall(body))
        lines = [f"flush table {address}"]
        lines += [f"delete chain {address} {chain.name}" for chain in self._chains()]
        lines += [f"delete set {address} {s.name}" for s in self._sets() if s.name not in kept]
        # As it was made awake: a table that somebody put to sleep wakes up.
        return "\n".join([f"add table {address} {{ }}", *lines]) + "\n"

    def _restore_sets(self, body: str) -> None:
        """A table with nothing but the body's sets, and in them the elements that we had put."""
        declarations = [found.group(0) for found in _SET.finditer(body)]
        self.own_transaction(f"table {self.family} {self.name} {{\n" + "\n".join(declarations) + "\n}\n")
        names = set(_SET.findall(body))
        known = [(name, sorted(keys)) for name, keys in self._known.items() if keys and name in names]
        if known:
            # What fails here is put again, and reported, when the reconciler compares.
            self._socket.elements(wire.NEWSETELEM, self.family, self.name, known)

    def _elements_text(self, body: str) -> str:
        lines = []
        names = set(_SET.findall(body))
        for found in self._sets():
            keys = [wire.unpack(key) for key in self._keys(found.name)] if found.name in names else []
            if keys:
                lines.append(f"add element {self.family} {self.name} {found.name} {{ {', '.join(keys)} }}\n")
        return "".join(lines)

    def _delete_table(self) -> None:
        errnos = [code for code in self._socket.delete_table(self.family, self.name) if code != errno.ENOENT]
        if errnos:
            raise KernelError(f"cannot delete the table: {os.strerror(errnos[0])}", errno=errnos[0])
        self._known.clear()
        self._remember(None, "")

    def _put_elements(self, ops: Sequence[Op]) -> list[Failure]:
        failures, keys = _packed(ops)
        errnos = self._elements(wire.NEWSETELEM, keys)
        if errnos and (errnos[0] in _HOPELESS or len(keys) == 1):
            return failures + [self._refused(op, errnos[0]) for op, _, _ in keys]
        for op, name, key in keys:
            if errnos and (own := self._elements(wire.NEWSETELEM, [(op, name, key)])):
                failures.append(self._refused(op, own[0]))
            else:
                self._known.setdefault(name, {})[key] = None
        return failures

    def _delete_elements(self, ops: Sequence[Op]) -> list[Failure]:
        failures, keys = _packed(ops)
        for _, name, key in keys:
            self._known.get(name, {}).pop(key, None)
        errnos = self._elements(wire.DELSETELEM, keys)
        if errno.ENOENT in errnos:
            # Some are not there, which is no failure, but the kernel took the whole batch back.
            present = {name: set(self._keys(name)) for name in {name for _, name, _ in keys}}
            keys = [entry for entry in keys if entry[2] in present[entry[1]]]
            errnos = self._elements(wire.DELSETELEM, keys)
        if errnos and errnos[0] != errno.ENOENT:
            failures += [self._refused(op, errnos[0]) for op, _, _ in keys]
        return failures

    def _elements(self, kind: int, keys: Sequence[tuple[Op, str, bytes]]) -> tuple[int, ...]:
        if not keys:
            return ()
        sets: dict[str, list[bytes]] = {}
        for _, name, key in keys:
            sets.setdefault(name, []).append(key)
        return self._socket.elements(kind, self.family, self.name, list(sets.items()))

    def _refused(self, op: Op, code: int) -> Failure:
        assert isinstance(op.object, NftElement)
        where = f"set {op.object.set} of table {self.family} {self.name}"
        words = f"there is no {where}" if code == errno.ENOENT else f"{where}: {os.strerror(code)}"
        return Failure(op, code, words)

    # ------------------------------------------------------------------------------------------ read

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]:
        """Our table and the elements of its address sets, as they are in the kernel now."""
        objects: list[Object] = []
        if "nft" in kinds:
            present = self._present()
            if present is not None:
                body = self._body if self._body is not None and present == self._fingerprint else CHANGED
                objects.append(NftTable(self.family, self.name, body))
        if "element" in kinds:
            for found in self._sets():
                if found.addresses and not found.anonymous:
                    objects += [NftElement(found.name, wire.unpack(key)) for key in self._keys(found.name)]
        return objects

    def fileno(self) -> int:
        """Readable when `read` has something."""
        return self._events.fileno()

    def read(self) -> list[Change]:
        """What other programs changed in the ruleset since the last call; never waits.

        Kind "nft" and "element": in our table. Kind "accept": in the rules or chains of somebody else's.
        """
        events, lost = self._events.read()
        if lost:
            return [Change("nft"), Change("element"), Change("accept")]
        changes: dict[Change, None] = {}
        for event in events:
            if event.generation in self._own:
                if event.type == wire.NEWGEN:
                    self._own.remove(event.generation)
            elif (event.family, event.table) == (self.family, self.name):
                if event.type not in (wire.NEWSETELEM, wire.DELSETELEM):
                    changes[Change("nft", ("nft", self.family, self.name))] = None
                if event.type in (wire.NEWSETELEM, wire.DELSETELEM, wire.DELSET, wire.DELTABLE):
                    changes[Change("element")] = None
            elif event.type <= wire.DELRULE:
                changes[Change("accept")] = None
        return list(changes)

    def _present(self) -> str | None:
        """The fingerprint of our table in the kernel; None if there is no table."""
        flags = self._flags()
        if flags is None:
            return None
        return wire.fingerprint(flags, self._dump(wire.GETCHAIN), self._dump(wire.GETRULE), self._dump(wire.GETSET))

    def _flags(self) -> int | None:
        for found in self._socket.dump(wire.GETTABLE, self.family):
            family, name, flags = wire.table(found)
            if (family, name) == (self.family, self.name):
                return flags
        return None

    def _chains(self) -> list[wire.Chain]:
        return [wire.chain(found) for found in self._dump(wire.GETCHAIN)]

    def _sets(self) -> list[wire.Set]:
        return [wire.set_(found) for found in self._dump(wire.GETSET)]

    def _keys(self, name: str) -> list[bytes]:
        payload = self._in_table + wire.text(wire.ELEM_LIST_SET, name)
        found = self._socket.dump(wire.GETSETELEM, self.family, payload)
        return [key for message in found for key in wire.keys(message)]

    def _dump(self, kind: int) -> list[wire.Message]:
        return [
            found
            for found in self._socket.dump(kind, self.family, self._in_table)
            if (event := wire.event(found)) is not None and event.table == self.name
        ]

    # ------------------------------------------------------------------------------------------ remember

    def _was_own(self, generation: int) -> bool:
        return bool(self._own) and self._own[-1] == generation & 0xFFFF

    def _recall(self) -> tuple[str | None, str]:
        if self._state is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                kept = json.loads(self._state.read_text())
                if kept["table"] == f"{self.family} {self.name}":
                    return str(kept["body"]), str(kept["fingerprint"])
        return None, ""

    def _remember(self, body: str | None, fingerprint: str) -> None:
        """Losing this file costs one replacement of the table: it is not synced to disk."""
        self._body, self._fingerprint = body, fingerprint
        if self._state is None:
            return
        with contextlib.suppress(OSError):
            if body is None:
                self._state.unlink(missing_ok=True)
                return
            kept = {"table": f"{self.family} {self.name}", "fingerprint": fingerprint, "body": body}
            files.replace(self._state, json.dumps(kept, indent=1).encode(), sync=False)


def _packed(ops: Sequence[Op]) -> tuple[list[Failure], list[tuple[Op, str, bytes]]]:
    """(operation, set, key) of each element, and the failures of those that are no addresses."""
    failures: list[Failure] = []
    keys: list[tuple[Op, str, bytes]] = []
    for op in ops:
        assert isinstance(op.object, NftElement)
        try:
            keys.append((op, op.object.set, wire.pack(op.object.element)))
        except ValueError as error:
            failures.append(Failure(op, errno.EINVAL, str(error)))
    return failures, keys
