"""The password files of this host, and what was read from each.

Rule: a file that cannot be read any more takes no session away: what was read from it last is used on, and that is a
finding. What is no file, or is too long, is not read: a pipe would never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping

from backends.bgp.sessions import Secret, read_secret

LONGEST = 4096  # octets that are looked at


class Secrets:
    """By path. `read` blocks."""

    def __init__(self) -> None:
        self.known: Mapping[str, Secret] = {}

    def read(self, paths: Iterable[str]) -> bool:
        """Read these files, and forget others. Whether anything is not as it was."""
        found = {path: self._again(path) for path in sorted(paths)}
        changed = found != self.known
        self.known = found
        return changed

    def _again(self, path: str) -> Secret:
        secret, before = _read(path), self.known.get(path)
        if secret.problem and before is not None:
            return secret._replace(password=before.password)
        return secret


def _read(path: str) -> Secret:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return Secret(problem="is no file")
            return read_secret(os.read(file, LONGEST))
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        return Secret(problem=f"cannot be read: {(reason or str(error)).lower()}")
