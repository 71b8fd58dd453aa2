"""Who this node is: a name, and an id that stays the same while the state directory does.

Rule: the id is created once, atomically, and never replaced by us; a damaged file is an error with a remedy, because
a new id would make the node a stranger to its own lease.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import msgspec

from netagent import files
from netagent.errors import ConfigError

ID = re.compile(r"[0-9a-f]{32}\Z")


class Identity(msgspec.Struct, frozen=True):
    name: str
    id: str  # 32 hex digits


def load_identity(state_dir: Path, name: str) -> Identity:
    """The node's identity; its id is made on the first start. ConfigError when it cannot be read or written."""
    path = state_dir / "id"
    try:
        if not path.exists():
            _create(path)
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise ConfigError(
            f"the node's id cannot be kept: {error.strerror}",
            where=str(path),
            remedy="Make the state directory writable for this user, or choose another with --state-dir",
        ) from None
    if not ID.match(text):
        raise ConfigError(
            "the file does not hold a node's id (32 hexadecimal digits)",
            where=str(path),
            remedy="Restore it from a backup, or delete it: the node then gets a new id and, if its address is the "
            "same, keeps its subnet",
        )
    return Identity(name, text)


def _create(path: Path) -> None:
    """Written aside and linked into place, so that of two agents that start at once one wins and both read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    files.replace(aside, f"{secrets.token_hex(16)}\n".encode(), mode=0o600)
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        aside.unlink()
