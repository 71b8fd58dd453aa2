"""The journal of what we change and cannot mark: sysctls, offload flags, addresses on foreign links.

Rules: an entry is on disk before the change is made; the first old value stays however often we write again; an
entry holds only for the boot and the network namespace in which it was made, since a reboot has undone the change
by itself. A journal that cannot be read is put aside and reported, never guessed at.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from netagent import files
from netagent.errors import KernelError
from netagent.model import Finding

Value: TypeAlias = str | bool | None  # None: it was not there

_VERSION = 1


class Entry(NamedTuple):
    """What stood there before us, and what we put."""

    old: Value
    new: Value


class Journal:
    """Entries by key ("sysctl:net/ipv4/ip_forward"). `path` None: in memory only.

    Keys name things by names that outlive a boot (a device's name, never its index). `epoch` is "<boot>/<network
    namespace>", found out where it is not given. `finding` says what was wrong with the file, if anything.
    """

    def __init__(self, path: Path | None, *, epoch: str | None = None) -> None:
        self._path = path
        self._epoch = epoch or _present_epoch()
        self.finding: Finding | None = None
        self._all = self._load()
        self._entries = self._all.setdefault(self._epoch, {})
        self._batched = 0
        self._dirty = False

    def record(self, key: str, old: Value, new: Value) -> None:
        """Note that `new` is about to be written where `old` stands. On disk when this returns (see `batch`).

        KernelError if it cannot be stored: then nothing may be changed.
        """
        before = self._entries.get(key)
        entry = Entry(old if before is None else before.old, new)
        if entry == before:
            return
        self._entries[key] = entry
        try:
            self._save()
        except KernelError:
            if before is None:
                del self._entries[key]
            else:
                self._entries[key] = before
            raise

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Those whose key starts with `prefix`, oldest first."""
        return {key: entry for key, entry in self._entries.items() if key.startswith(prefix)}

    def forget(self, key: str) -> None:
        """It is as it was, or no longer ours. A failing disk is no reason to fail: the entry is looked at again."""
        if self._entries.pop(key, None) is not None:
            with contextlib.suppress(KernelError):
                self._save()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Write once for all that is recorded and forgotten inside. KernelError at the end if that fails."""
        before = dict(self._entries)
        self._batched += 1
        try:
            yield
        finally:
            self._batched -= 1
        if self._dirty and not self._batched:
            try:
                self._save()
            except KernelError:
                self._entries.clear()
                self._entries.update(before)
                raise

    # ------------------------------------------------------------------------------------------- the file

    def _load(self) -> dict[str, dict[str, Entry]]:
        """Entries by epoch, those of earlier boots left out."""
        if self._path is None:
            return {}
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            return self._put_aside(str(error))
        boot = self._epoch.partition("/")[0]
        try:
            content = json.loads(text)
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']!r}, this is version {_VERSION}")
            return {
                epoch: {key: Entry(_value(entry["old"]), _value(entry["new"])) for key, entry in entries.items()}
                for epoch, entries in content["entries"].items()
                if epoch.partition("/")[0] == boot
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return self._put_aside(f"{type(error).__name__}: {error}")

    def _put_aside(self, reason: str) -> dict[str, dict[str, Entry]]:
        assert self._path is not None
        aside = self._path.with_name(self._path.name + ".unreadable")
        with contextlib.suppress(OSError):
            self._path.replace(aside)
        self.finding = Finding(
            code="journal-unreadable",
            subject=str(self._path),
            message="the record of settings that were changed cannot be read: cleanup will not restore them",
            evidence=reason,
            remedy=f"Look at {aside} for the old values, and delete it",
        )
        return {}

    def _save(self) -> None:
        self._dirty = True
        if self._batched:
            return
        self._dirty = False
        if self._path is None:
            return
        content = {
            "version": _VERSION,
            "entries": {
                epoch: {key: entry._asdict() for key, entry in entries.items()}
                for epoch, entries in self._all.items()
                if entries
            },
        }
        try:
            files.replace(self._path, json.dumps(content, indent=1).encode(), mode=0o600)
        except OSError as error:
            raise KernelError(
                f"the journal cannot be written: {error.strerror}",
                errno=error.errno or 0,
                where=str(self._path),
                remedy="Free space or make the state directory writable; nothing is changed on the host until then",
            ) from error


def _value(found: Any) -> Value:
    if found is None or isinstance(found, str | bool):
        return found
    raise ValueError(f"{found!r} is no value of a setting")


def _present_epoch() -> str:
    """This boot and the network namespace of the calling thread."""
    boot = space = "unknown"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        space = str(Path("/proc/thread-self/ns/net").stat().st_ino)
    return f"{boot}/{space}"
