"""Taking over from a running engine: its peers first, at leisure, then its descriptors, in one small message.

Rule: the predecessor stops reading only when it passes the descriptors, and goes on if this process dies before it
sends release. Uses only the requests that never change (control.py), so any two releases can do it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.udp import control
from backends.udp.control import Config, ControlError, Decoder
from backends.udp.table import Entry, digest

_DEADLINE = 5.0  # seconds for one answer
_TRIES = 5  # exports, while the table keeps changing
_MAX_DESCRIPTORS = 8


class Inheritance:
    """What a successor got. `sockets` is by outer family."""

    def __init__(self, connection: socket.socket, export: Mapping[str, Any], descriptors: Mapping[str, int]) -> None:
        self.config: Config | None = control.config_of(export) if export.get("config") is not None else None
        self.peers: list[Entry] = control.peers_of(export)
        self.traffic: Mapping[str, Sequence[float]] = control.traffic_of(export)
        self.listener = socket.socket(fileno=descriptors["listener"])
        self.tun = descriptors.get("tun")
        self.sockets = {
            family: socket.socket(fileno=descriptors[f"socket{family}"])
            for family in (4, 6)
            if f"socket{family}" in descriptors
        }
        self._connection = connection

    def close(self) -> None:
        """Give it all back: the predecessor goes on."""
        self._connection.close()
        for sock in (self.listener, *self.sockets.values()):
            sock.close()
        if self.tun is not None:
            os.close(self.tun)

    def release(self) -> None:
        """Tell the predecessor that it can end: whoever calls this reads the descriptors from now on."""
        with contextlib.suppress(OSError), self._connection:
            self._connection.sendall(control.encode({"do": control.DO_RELEASE}))


def take_over(path: Path) -> Inheritance:
    """Ask the engine that listens at `path` for all it has. OSError or ControlError: it goes on as before."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_DEADLINE)
    try:
        connection.connect(str(path))
        for attempt in range(_TRIES):
            export = _ask(connection, {"do": control.DO_EXPORT})
            request = {"do": control.DO_HANDOVER, "digest": digest(control.peers_of(export))}
            try:
                return Inheritance(connection, export, _descriptors(connection, request))
            except ControlError:
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError
    except BaseException:
        connection.close()
        raise


def _ask(connection: socket.socket, request: Mapping[str, Any]) -> dict[str, Any]:
    connection.sendall(control.encode(request))
    decoder = Decoder()
    while True:
        data = connection.recv(1 << 18)
        if not data:
            raise ControlError("the engine closed the connection")
        for answer in decoder.feed(data):
            return _checked(answer)


def _descriptors(connection: socket.socket, request: Mapping[str, Any]) -> dict[str, int]:
    connection.sendall(control.encode(request))
    data, received, _, _ = socket.recv_fds(connection, 1 << 16, _MAX_DESCRIPTORS)
    try:
        for answer in Decoder().feed(data):
            names = control.texts(_checked(answer), "descriptors")
            if len(names) != len(received) or "listener" not in names:
                raise ControlError("the handover came without its descriptors")
            for descriptor in received:
                os.set_inheritable(descriptor, False)
            return dict(zip(names, received, strict=True))
        raise ControlError("the handover came in pieces")
    except BaseException:
        for descriptor in received:
            os.close(descriptor)
        raise


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("ok") is not True:
        raise ControlError(str(answer.get("error", "refused without a reason"))[:200])
    return answer
