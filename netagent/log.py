"""Logging: one handler on stderr, as text or as JSON lines, with a limit on repetition.

Rules: under journald a line carries its priority (sd-daemon(3)) and no time of its own, which the journal has;
nothing floods the log: in a WINDOW one message appears REPEATS times and one place in the code speaks BURST times,
and the first line after that says how many were left out.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import IO, TypeVar

import msgspec

K = TypeVar("K")

WINDOW = 30.0  # seconds
REPEATS = 5
BURST = 100
MAX_MESSAGES = 1000  # that are remembered

# syslog's priorities (sd-daemon(3)): 3 error, 4 warning, 6 informational, 7 debug.
_PRIORITY = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def setup(
    level: str = "info", *, json: bool = False, stream: IO[str] | None = None, environ: Mapping[str, str] = os.environ
) -> None:
    """Replace the root logger's handlers. `level` is "debug", "info", "warning" or "error"."""
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    if json:
        handler.setFormatter(_Json())
    elif under_journald(out, environ):
        handler.setFormatter(_Journal())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.addFilter(Limit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio tells of its selector, grpc of its forks; neither helps an operator.
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, root.level))
    logging.getLogger("grpc").setLevel(max(logging.WARNING, root.level))


def under_journald(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Whether this very stream goes to the journal: $JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


class Limit(logging.Filter):
    """Lets through what is not yet too much of the same."""

    def __init__(self) -> None:
        super().__init__()
        # When the window began, and how many since. Places are as many as the code has; messages are bounded below.
        self._places: dict[tuple[str, int], tuple[float, int]] = {}
        self._messages: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, message = time.monotonic(), record.getMessage()
        place = (record.pathname, record.lineno)
        if len(self._messages) >= MAX_MESSAGES:
            self._messages.clear()
        burst, more = _count(self._places, place, BURST, now)
        same, left_out = _count(self._messages, (*place, message), REPEATS, now)
        if not (burst and same) and record.levelno < logging.CRITICAL:
            return False
        if left_out or more:
            record.msg, record.args = f"{message} ({max(left_out, more)} like it were left out)", None
        return True


def _count(seen: dict[K, tuple[float, int]], key: K, most: int, now: float) -> tuple[bool, int]:
    """Whether one more of `key` may pass, and how many of the window before were left out."""
    began, count = seen.get(key, (now, 0))
    left_out = 0
    if now - began >= WINDOW:
        began, count, left_out = now, 0, max(0, count - most)
    seen[key] = (began, count + 1)
    return count < most, left_out


class _Journal(logging.Formatter):
    """Every line of a record, a traceback's too, with its priority."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def priority(level: int) -> int:
    return next((number for least, number in _PRIORITY if level >= least), 7)
