"""Unix sockets: whether somebody is there.

Rule: a socket is only taken for a dead one's when the kernel says that nobody listens on it.
"""

from __future__ import annotations

import socket
from pathlib import Path

PATIENCE = 0.5  # seconds


def answers(path: Path) -> bool:
    """Whether somebody listens at `path`, or may: who is too busy to take another connection is there, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PATIENCE)
        try:
            probe.connect(str(path))
        except (BlockingIOError, TimeoutError):
            return True
        except OSError:
            return False
        return True
