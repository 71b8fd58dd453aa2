"""What the kernel has dropped for its TCP MD5 signature: the counters of this network namespace.

The names are of net/ipv4/proc.c. Rule: they are for a hint, so where they cannot be read there is none.
"""

from __future__ import annotations

import time
from pathlib import Path

from bgp.transport import Dropped

_COUNTERS = Path("/proc/thread-self/net/netstat")
_FRESH = 1.0
"""Seconds for which an answer is good enough: a hundred peers may ask at once."""
_NAMES = ("TCPMD5Failure", "TCPMD5NotFound", "TCPMD5Unexpected")

_known: dict[Path, tuple[float, Dropped]] = {}


def dropped(path: Path = _COUNTERS) -> Dropped:
    """Since the namespace began."""
    at, known = _known.get(path, (-_FRESH, Dropped()))
    now = time.monotonic()
    if now - at >= _FRESH:
        known = _look(path)
        _known[path] = now, known
    return known


def _look(path: Path) -> Dropped:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return Dropped()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:") and values.startswith("TcpExt:"):
            counters = dict(zip(names.split(), values.split(), strict=False))
            found = [counters.get(name, "") for name in _NAMES]
            return Dropped(*(int(each) if each.isdecimal() else 0 for each in found))
    return Dropped()
