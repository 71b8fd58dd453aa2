"""One TCP connection: octets out in order and without waiting, octets in when they are asked for.

Rule: a channel never blocks and never loses what was given to it while the peer reads. How much may wait is the
driver's decision: it asks `waiting` and stops giving. A channel that is finished says what it has left, then FIN,
and goes when the peer has gone or when its time is over: closed at once, unread octets would make the kernel send a
reset, which can overtake a NOTIFICATION.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

READ_SIZE = 65536
"""Octets in one slice: about a thousand UPDATEs of one prefix, some 10 ms of work."""
_LINGER = 3.0
_BUFFERS_AT_ONCE = 64


class Channel:
    """A connected socket. `on_readable` is called when there is something to read, until it is read."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_readable: Callable[[Channel], None],
        on_progress: Callable[[Channel], None],
    ) -> None:
        self.sock = sock
        self.waiting = 0
        """Octets that the kernel has not taken yet."""
        self.taken_at = loop.time()
        """When it took some last, or when there was nothing to take."""
        self._loop = loop
        self._on_progress = on_progress
        self._queue: deque[memoryview] = deque()
        self._writing = False
        self._linger: asyncio.TimerHandle | None = None
        self._on_gone: Callable[[], None] | None = None
        loop.add_reader(sock, on_readable, self)

    def read(self) -> bytes | None:
        """A slice of what has come; empty when the peer has closed, None when nothing is there. Raises OSError."""
        try:
            return self.sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return None

    def write(self, data: bytes) -> None:
        """Take octets to send; `flush` sends them."""
        if not self._queue:
            self.taken_at = self._loop.time()
        self._queue.append(memoryview(data))
        self.waiting += len(data)

    def flush(self) -> None:
        """Give the kernel what it takes now; the rest follows when it takes more."""
        queue = self._queue
        try:
            while queue:
                some = [queue[position] for position in range(min(len(queue), _BUFFERS_AT_ONCE))]
                size = sum(map(len, some))
                sent = self.sock.sendmsg(some)
                self.waiting -= sent
                self.taken_at = self._loop.time()
                self._drop(sent)
                if sent < size:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # Reading finds out why, after what the peer said last.
            queue.clear()
            self.waiting = 0
        if bool(queue) is not self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self.sock, self._writable)
            else:
                self._loop.remove_writer(self.sock)
        if not queue and self._on_gone:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def _drop(self, sent: int) -> None:
        queue = self._queue
        while sent and sent >= len(queue[0]):
            sent -= len(queue.popleft())
        if sent:
            queue[0] = queue[0][sent:]

    def _writable(self) -> None:
        self.flush()
        if not self._on_gone:
            self._on_progress(self)

    # ------------------------------------------------------------------------------------------------ the end

    def finish(self, on_gone: Callable[[], None]) -> None:
        """Send what is left and close; `on_gone` is called when the socket is closed."""
        self._on_gone = on_gone
        self._linger = self._loop.call_later(_LINGER, self.abort)
        self._loop.remove_reader(self.sock)
        self._loop.add_reader(self.sock, self._discard)
        self.flush()

    def abort(self) -> None:
        """Close at once; what is left is lost."""
        if self._linger:
            self._linger.cancel()
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self._loop.remove_writer(self.sock)
            self.sock.close()
        self._queue.clear()
        self.waiting = 0
        on_gone, self._on_gone = self._on_gone, None
        if on_gone:
            on_gone()

    def _discard(self) -> None:
        """What still comes is for nobody; at its end the socket is closed."""
        try:
            if self.read() != b"":
                return
        except OSError:
            pass
        self.abort()
