"""Settings of the host that carry no mark of ours: sysctls and offload features, with the way back.

Rules: a value is written only where it differs, and its old value is in the journal before; it is put back only
where ours still stands. The kernel announces changes of forwarding and rp_filter (RTM_NEWNETCONF); everything
else is found by `recheck`, which reads a handful of files and may be called every half minute.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from netagent.errors import KernelError
from netagent.kernel import ethtool
from netagent.kernel.base import Change, Failure, Op
from netagent.kernel.journal import Journal, Value
from netagent.model import Key, Object, Offload, Sysctl

KINDS = frozenset(("sysctl", "offload"))

# Turning this on makes the kernel drop the default routes that came from router advertisements, on devices whose
# accept_ra is not 2 by then: so it is written last, and put back first.
_FORWARD6 = "net/ipv6/conf/all/forwarding"

_RTNLGRP_IPV4_NETCONF, _RTNLGRP_IPV6_NETCONF = 24, 25


class Settings:
    """Sysctls and offloads of the network namespace in which this is made."""

    def __init__(self, journal: Journal, *, root: Path = Path("/proc/sys")) -> None:
        self._journal = journal
        self._root = root
        self._held: dict[Key, tuple[Sysctl | Offload, Value]] = {}  # what we want to stay, and its value
        groups = 1 << (_RTNLGRP_IPV4_NETCONF - 1) | 1 << (_RTNLGRP_IPV6_NETCONF - 1)
        self._events = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._events.bind((0, groups))

    def close(self) -> None:
        self._events.close()

    # ------------------------------------------------------------------------------------------- write

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out operations on Sysctl and Offload. A delete puts the old value back."""
        puts = [op for op in ops if op.verb == "put"]
        deletes = [op for op in ops if op.verb == "delete"]
        puts.sort(key=_is_forward6)
        deletes.sort(key=_is_forward6, reverse=True)
        return [*self._delete(deletes), *self._put(puts)]

    def restore(self) -> list[Failure]:
        """Put back every setting in the journal that is still ours."""
        return self.apply([Op("delete", obj) for obj in self._journalled()])

    def _put(self, ops: Sequence[Op]) -> list[Failure]:
        failures: list[Failure] = []
        writes: list[tuple[Op, Value, Value]] = []
        for op in ops:
            wanted = _wanted(op.object)
            try:
                present = self._read(op.object)
            except OSError as error:
                failures.append(_failure(op, error))
                continue
            self._hold(op.object, wanted)
            if present != wanted:
                writes.append((op, present, wanted))
        if not writes:
            return failures
        new = [op for op, _, _ in writes if self._journal.get(journal_key(op.object)) is None]
        try:
            with self._journal.batch():
                for op, present, wanted in writes:
                    self._journal.record(journal_key(op.object), present, wanted)
        except KernelError as error:
            return failures + [Failure(op, error.errno, str(error)) for op, _, _ in writes]
        for op, _, wanted in writes:
            try:
                self._write(op.object, wanted)
            except OSError as error:
                failures.append(_failure(op, error))
                if op in new:
                    self._journal.forget(journal_key(op.object))
        return failures

    def _delete(self, ops: Sequence[Op]) -> list[Failure]:
        failures: list[Failure] = []
        with contextlib.suppress(KernelError), self._journal.batch():
            for op in ops:
                self._held.pop(op.object.key, None)
                entry = self._journal.get(journal_key(op.object))
                if entry is None:
                    continue
                try:
                    if self._read(op.object) == entry.new:
                        self._write(op.object, entry.old)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENODEV):  # gone with its device
                        failures.append(_failure(op, error))
                        continue
                self._journal.forget(journal_key(op.object))
        return failures

    # ------------------------------------------------------------------------------------------- read

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]:
        """Present values of the settings in `wanted` and in the journal; those that do not exist are left out."""
        asked: dict[Key, Sysctl | Offload] = {obj.key: obj for obj in self._journalled()}
        asked.update((obj.key, obj) for obj in wanted if isinstance(obj, Sysctl | Offload))
        found: list[Object] = []
        for obj in asked.values():
            if obj.KIND in kinds:
                with contextlib.suppress(OSError):
                    present = self._read(obj)
                    found.append(
                        Sysctl(obj.name, str(present))
                        if isinstance(obj, Sysctl)
                        else Offload(obj.dev, obj.feature, bool(present))
                    )
        return found

    def fileno(self) -> int:
        """Readable when `read` has something."""
        return self._events.fileno()

    def read(self) -> list[Change]:
        """Sysctls that somebody changed since we put them, after a notification; never waits."""
        told = False
        while True:
            try:
                told |= bool(self._events.recv(1 << 16))
            except BlockingIOError:
                return self.recheck(("sysctl",)) if told else []
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(
                        f"notifications of settings end: {error.strerror}", errno=error.errno or errno.EIO
                    ) from error
                told = True

    def recheck(self, kinds: Collection[str] = KINDS) -> list[Change]:
        """Settings of these kinds that are no longer as we put them."""
        changes = []
        for key, (obj, value) in self._held.items():
            if obj.KIND not in kinds:
                continue
            try:
                differs = self._read(obj) != value
            except OSError:
                differs = True
            if differs:
                changes.append(Change(obj.KIND, key))
        return changes

    # ------------------------------------------------------------------------------------------- the kernel

    def _hold(self, obj: Object, value: Value) -> None:
        assert isinstance(obj, Sysctl | Offload)
        self._held[obj.key] = (obj, value)

    def _journalled(self) -> list[Sysctl | Offload]:
        found: list[Sysctl | Offload] = []
        for name, entry in self._journal.entries().items():
            kind, _, rest = name.partition(":")
            if kind == "sysctl":
                found.append(Sysctl(rest, str(entry.new)))
            elif kind == "offload":
                dev, _, feature = rest.rpartition(":")
                found.append(Offload(dev, feature, bool(entry.new)))
        return found

    def _read(self, obj: Object) -> Value:
        if isinstance(obj, Sysctl):
            return self._read_sysctl(obj.name)
        assert isinstance(obj, Offload)
        found = ethtool.features(obj.dev)
        if obj.feature not in found:
            raise OSError(errno.EINVAL, f"this kernel knows no feature {obj.feature!r}")
        return found[obj.feature].on

    def _write(self, obj: Object, value: Value) -> None:
        if isinstance(obj, Sysctl):
            # Not Path.write_text: the kernel takes a setting in one write, and says no in that write.
            fd = os.open(self._path(obj.name), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"{value}\n".encode())
            finally:
                os.close(fd)
        else:
            assert isinstance(obj, Offload)
            ethtool.set_feature(obj.dev, obj.feature, bool(value))

    def _read_sysctl(self, name: str) -> str:
        """The value on one line, blanks between its fields."""
        return " ".join(self._path(name).read_text().split())

    def _path(self, name: str) -> Path:
        if name.startswith("/") or ".." in name.split("/"):
            raise OSError(errno.EINVAL, f"{name!r} is no name under /proc/sys")
        return self._root / name


def journal_key(obj: Object) -> str:
    """The setting's key in the journal."""
    if isinstance(obj, Sysctl):
        return f"sysctl:{obj.name}"
    assert isinstance(obj, Offload)
    return f"offload:{obj.dev}:{obj.feature}"


def _wanted(obj: Object) -> Value:
    if isinstance(obj, Sysctl):
        return obj.value
    assert isinstance(obj, Offload)
    return obj.on


def _is_forward6(op: Op) -> bool:
    return isinstance(op.object, Sysctl) and op.object.name == _FORWARD6


def _failure(op: Op, error: OSError) -> Failure:
    code = error.errno or errno.EIO
    what = op.object.name if isinstance(op.object, Sysctl) else journal_key(op.object)
    return Failure(op, code, f"{what}: {error.strerror or os.strerror(code)}")
