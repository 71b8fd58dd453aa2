"""What netagent changed that carries no mark of ours: the old value, so that cleanup can put it back.

Rules: an entry is on disk before the change is made, and its old value is the one from before the first change,
whatever happens later; an entry goes only when the old value stands again, or when somebody else has changed the
value since: then it is theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from netagent import files

log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """`old` is None where there was nothing before."""

    old: str | None
    ours: str


class Journal:
    """Entries by key ("sysctl net/ipv4/ip_forward"), kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = self._read()

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._entries))

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def record(self, key: str, old: str | None, ours: str) -> None:
        """About to change `key` from `old` to `ours`. OSError if that cannot be remembered: then do not."""
        before = self._entries.get(key)
        entry = Entry(old if before is None else before.old, ours)
        if entry != before:
            self._entries[key] = entry
            self._write()

    def forget(self, key: str) -> None:
        if self._entries.pop(key, None) is not None:
            self._write()

    def _read(self) -> dict[str, Entry]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Entry])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.error("%s cannot be read, so what it lists will not be put back: %s", self._path, error)
            return {}

    def _write(self) -> None:
        files.replace(self._path, msgspec.json.format(msgspec.json.encode(self._entries)) + b"\n", mode=0o600)
