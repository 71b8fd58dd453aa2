"""Who listens on a TCP port, for the sentence that says why we cannot.

Rule: a help and nothing more: where /proc does not tell, the answer is empty.
"""

from __future__ import annotations

from pathlib import Path

_LISTEN = "0A"


def holder_of(port: int) -> str:
    """ "bird (process 417)", or "" where it cannot be found: another user's process, another namespace."""
    sockets = {f"socket:[{inode}]" for name in ("tcp", "tcp6") for inode in _inodes(name, port)}
    if not sockets:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(entry.readlink()) in sockets for entry in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return ""


def _inodes(name: str, port: int) -> list[str]:
    """Columns of /proc/net/tcp: number, local address:port, remote, state, ..., inode the tenth."""
    try:
        lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [each[9] for each in fields if each[3] == _LISTEN and int(each[1].rpartition(":")[2], 16) == port]
