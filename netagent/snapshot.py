"""The cluster's records on disk, so that an agent that boots while etcd is down forwards from what it last knew.

Rule: written some time after a change and at most every SPACING seconds, never on the path of an event; a snapshot
is a memory aid, so a damaged one is reported and ignored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from netagent import files
from netagent.model import Finding

log = logging.getLogger(__name__)

DELAY, SPACING = 1.0, 10.0  # seconds


class SnapshotFile:
    """Keeps `path` equal to what `dump` returns. `spacing`: seconds between two writes, at least."""

    def __init__(self, path: Path, dump: Callable[[], bytes], spacing: float = SPACING) -> None:
        self.path = path
        self._dump = dump
        self._spacing = spacing
        self._written = 0  # hash of the last content
        self.findings: tuple[Finding, ...] = ()
        self._changed = asyncio.Event()

    def read(self) -> bytes | None:
        """The content, or None if there is none."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("snapshot %s: %s", self.path, error)
            return None

    def written(self) -> float:
        """When it was written, in unix seconds; 0.0 if that cannot be told."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0

    def touch(self) -> None:
        """Something changed: write before long."""
        self._changed.set()

    def write(self) -> None:
        """Write now."""
        self._changed.clear()
        data = self._dump()
        if hash(data) == self._written:
            return
        try:
            files.replace(self.path, data, mode=0o600)
        except OSError as error:
            self._changed.set()  # and again
            if not self.findings:
                log.warning("snapshot %s: %s", self.path, error)
            self.findings = (_not_kept(self.path, error),)
        else:
            self._written, self.findings = hash(data), ()

    async def run(self) -> None:
        """Until cancelled; what is still unwritten then is written."""
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(DELAY)
                self.write()
                await asyncio.sleep(self._spacing - DELAY)
        finally:
            if self._changed.is_set():
                self.write()


def _not_kept(path: Path, error: OSError) -> Finding:
    return Finding(
        code="state-not-kept",
        subject=str(path),
        message=f"what is known cannot be kept on disk, so a restart may begin with what is old: {error.strerror}",
        remedy="make the state directory writable, or free space on its file system",
    )
