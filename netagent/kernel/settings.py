"""Settings of the host that carry no mark: values under /proc/sys, and offloads of devices.

Rules: a value that is already as it should be is left alone and is not ours; a value that we change is journalled
before; removing one puts its old value back, but only while the present value is still the one that we wrote.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from netagent.kernel import ethtool
from netagent.kernel.base import Failure, Op
from netagent.kernel.journal import Journal
from netagent.model import Object, Offload, Sysctl

PROC_SYS = Path("/proc/sys")


class HostSettings:
    """Writes and dumps Sysctl and Offload objects in the network namespace of the calling thread."""

    def __init__(self, journal: Journal, root: Path = PROC_SYS) -> None:
        self._journal = journal
        self._root = root

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        failures = []
        for op in ops:
            try:
                if op.verb == "put":
                    self._put(op.object)
                else:
                    self._take_back(op.object)
            except OSError as error:
                failures.append(Failure(op, error.errno or errno.EIO, error.strerror or str(error)))
        return failures

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]:
        """The present values of what is wanted and of what we changed at some time."""
        asked: dict[str, Object] = {}
        for key in self._journal:
            obj = _object(key)
            if obj is not None and obj.KIND in kinds:
                asked[key] = obj
        asked |= {_key(obj): obj for obj in wanted if obj.KIND in kinds}
        found = []
        for obj in asked.values():
            value = self._read(obj)
            if value is not None:
                found.append(_with_value(obj, value))
        return found

    def _put(self, obj: Object) -> None:
        value = _value(obj)
        present = self._read(obj)
        if present is None:
            raise OSError(errno.ENOENT, "this kernel has no such setting")
        if present != value:
            self._journal.record(_key(obj), present, value)
            self._write(obj, value)

    def _take_back(self, obj: Object) -> None:
        entry = self._journal.get(_key(obj))
        if entry is None:
            return
        if entry.old is not None and self._read(obj) == entry.ours:
            self._write(obj, entry.old)
        self._journal.forget(_key(obj))

    def _read(self, obj: Object) -> str | None:
        """The present value, None where there is no such setting (any more)."""
        try:
            if isinstance(obj, Sysctl):
                return (self._root / obj.name).read_text().strip()
            assert isinstance(obj, Offload)
            return "on" if ethtool.get(obj.dev, obj.feature) else "off"
        except OSError:
            return None

    def _write(self, obj: Object, value: str) -> None:
        if isinstance(obj, Sysctl):
            (self._root / obj.name).write_text(value)
        else:
            assert isinstance(obj, Offload)
            ethtool.set(obj.dev, obj.feature, value == "on")


def _key(obj: Object) -> str:
    if isinstance(obj, Sysctl):
        return f"sysctl {obj.name}"
    assert isinstance(obj, Offload)
    return f"offload {obj.dev} {obj.feature}"


def _object(key: str) -> Object | None:
    """The object of a journal's key, with no value; None if it is of another kind."""
    kind, _, rest = key.partition(" ")
    if kind == "sysctl":
        return Sysctl(rest, "")
    if kind == "offload":
        dev, _, feature = rest.partition(" ")
        return Offload(dev, feature, False)
    return None


def _value(obj: Object) -> str:
    if isinstance(obj, Sysctl):
        return obj.value
    assert isinstance(obj, Offload)
    return "on" if obj.on else "off"


def _with_value(obj: Object, value: str) -> Object:
    if isinstance(obj, Sysctl):
        return Sysctl(obj.name, value)
    assert isinstance(obj, Offload)
    return Offload(obj.dev, obj.feature, value == "on")
