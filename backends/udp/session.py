"""The control socket of the engine: listening, and one client's connection without ever blocking on it.

Rule: nothing here may hold up the packets. A connection is read when it has something and written when it takes
something; a client that does not read its answers is not read from. Only root and the engine's own user may speak.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.udp.control import ControlError, Decoder, encode
from netagent import unix

_READ = 1 << 18  # bytes a turn
_UCRED = struct.Struct("=iII")  # pid, uid, gid: SO_PEERCRED, unix(7)


def listen(path: Path) -> socket.socket:
    """Listen at `path`, mode 0600. OSError EADDRINUSE if an engine answers there; a dead one's socket is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or unix.answers(path):
                raise
            path.unlink(missing_ok=True)
            listener.bind(str(path))
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def process_at(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel knows it."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


class Session:
    """One client's connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = Decoder()
        self._pending = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether answers wait to be sent: then wait for the socket to be writable, and do not read."""
        return bool(self._pending)

    def read(self) -> Iterator[dict[str, Any]]:
        """Requests that have arrived. ControlError or OSError: the connection is to be closed."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the client")
        yield from self._decoder.feed(data)

    def answer(self, message: Mapping[str, Any]) -> None:
        self._pending += encode(message)
        self.flush()

    def answer_with(self, message: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Answer with descriptors attached, at once or not at all."""
        if self._pending:
            raise ControlError("read the answers before asking for a handover")
        data = encode(message)
        if socket.send_fds(self.sock, [data], descriptors) != len(data):
            raise ControlError("the handover did not pass in one piece")

    def flush(self) -> None:
        """Send what waits, as far as the client takes it."""
        try:
            while self._pending:
                del self._pending[: self.sock.send(self._pending)]
        except BlockingIOError:
            pass

    def close(self) -> None:
        self.sock.close()
