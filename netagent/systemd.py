"""What systemd wants to hear: readiness, status line, reload, stop and the watchdog (sd_notify(3)).

Rule: outside systemd ($NOTIFY_SOCKET unset) every call does nothing, and no call ever blocks or raises: a service
manager that does not listen must not stop the network.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends notifications. `environ` is where $NOTIFY_SOCKET and the watchdog's settings are read, once."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval = _watchdog(environ)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is complete."""
        self._send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """The line in `systemctl status`."""
        self._send(*_status(text))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. systemd wants the time to tell it from an earlier one."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", *_status(status))

    def watchdog(self) -> None:
        """A sign of life, to be given every `watchdog_interval` seconds."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("systemd is not notified of %s: %s", lines[0], error)


def _address(text: str) -> str | None:
    """A path, or "@name" for the abstract namespace. Anything else (vsock: of containers' managers) is not for us."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Seconds between signs of life: half of what systemd allows (sd_watchdog_enabled(3)); None: none are wanted."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        seconds = int(environ.get("WATCHDOG_USEC", "0")) / 2_000_000
    except ValueError:
        return None
    return seconds if seconds > 0 else None
