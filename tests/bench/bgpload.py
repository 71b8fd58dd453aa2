"""The load of the BGP benchmark: neutral senders and receivers, made of bytes, with nothing of `bgp/` in them.

Rule: what is sent is ready before the clock starts, and what comes is only put aside with the time at which it
came; it is read, route by route, after the clock has stopped. So the load costs every speaker the same, and little.
"""

from __future__ import annotations

import errno
import fcntl
import selectors
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.bgp_probe import KEEPALIVE, UPDATE, attributes, capabilities, message, open_message, update
from tests.support.netns import Namespace

ASN = 65000
HOLD_TIME = 240
NEXT_HOPS = 16384
_RECEIVE = 1 << 18


class Incomplete(Exception):
    """Not everything came before the patience was over."""


def address(number: int) -> str:
    """The peer `number`: 0 is the sender, then the receivers."""
    return f"10.98.1.{number + 1}"


def prefix(number: int) -> str:
    value = (10 << 24 | 128 << 16) + number * 64
    return f"{socket.inet_ntoa(value.to_bytes(4, 'big'))}/26"


def next_hop(number: int) -> str:
    value = (10 << 24 | 98 << 16 | 64 << 8) + number % NEXT_HOPS
    return socket.inet_ntoa(value.to_bytes(4, "big"))


def routes(count: int) -> tuple[bytes, dict[bytes, bytes]]:
    """So many distinct routes, one an UPDATE, as octets; and what a receiver must have: {prefix: next hop}."""
    octets = b"".join(update(attributes(next_hop=next_hop(number)), prefix(number)) for number in range(count))
    return octets, read(octets)[0]


def read(octets: bytes) -> tuple[dict[bytes, bytes], int]:
    """A stream of messages as {prefix: next hop}, and where its last UPDATE with a route or withdrawal ends."""
    table: dict[bytes, bytes] = {}
    position = last = 0
    end = len(octets)
    while position + 19 <= end:
        size = octets[position + 16] << 8 | octets[position + 17]
        following = position + size
        if following > end:
            break
        if octets[position + 18] == UPDATE and size > 23:
            last = following
            at = position + 19
            stop = at + 2 + (octets[at] << 8 | octets[at + 1])
            at += 2
            while at < stop:
                width = 1 + (octets[at] + 7 >> 3)
                table.pop(octets[at : at + width], None)
                at += width
            stop = at + 2 + (octets[at] << 8 | octets[at + 1])
            at += 2
            hop = b""
            while at < stop:
                if octets[at] & 0x10:
                    width, head = octets[at + 2] << 8 | octets[at + 3], 4
                else:
                    width, head = octets[at + 2], 3
                if octets[at + 1] == 3:
                    hop = octets[at + head : at + head + width]
                at += head + width
            while at < following:
                width = 1 + (octets[at] + 7 >> 3)
                table[octets[at : at + width]] = hop
                at += width
        position = following
    return table, last


class Peer:
    """One session of the load."""

    def __init__(self, number: int) -> None:
        self.address = address(number)
        self.sock: socket.socket | None = None
        self.pieces: list[bytes] = []
        self.times: list[float] = []
        self.waiting: list[memoryview] = []
        self.state = "down"

    def octets(self) -> bytes:
        """All that came since the session stood."""
        return b"".join(self.pieces)

    def forget(self) -> None:
        """Begin a new stream: what has come is read and done with. It must end with a whole message."""
        self.pieces.clear()
        self.times.clear()

    def at(self, position: int) -> float:
        """When the octet before this position had come."""
        seen = 0
        for piece, moment in zip(self.pieces, self.times, strict=True):
            seen += len(piece)
            if seen >= position:
                return moment
        raise ValueError(position)


class Load:
    """All sessions of the load with one speaker."""

    def __init__(self, space: Namespace, target: str) -> None:
        self.space = space
        self.target = target
        self._selector = selectors.DefaultSelector()
        self._spoken = time.monotonic()
        self._up: list[Peer] = []

    def open(self, peers: Iterable[Peer], patience: float = 60.0) -> float:
        """Open all these sessions at once; seconds until the last one stands (our OPEN answered by a KEEPALIVE)."""
        peers = list(peers)
        start = time.monotonic()
        for peer in peers:
            self._connect(peer)
        self._turn_until(lambda: all(peer.state == "up" for peer in peers), start + patience, again=peers)
        return time.monotonic() - start

    def _connect(self, peer: Peer) -> None:
        peer.sock = self.space.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        peer.sock.setblocking(False)
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        peer.sock.bind((peer.address, 0))
        peer.forget()
        peer.state = "connecting"
        peer.sock.connect_ex((self.target, 179))
        offered = capabilities(ASN, ("ipv4",))
        peer.waiting = [memoryview(open_message(ASN, peer.address, HOLD_TIME, offered) + message(KEEPALIVE))]
        self._selector.register(peer.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def send(self, peer: Peer, octets: bytes) -> None:
        """Queue octets; the loop sends them."""
        assert peer.sock is not None
        peer.waiting.append(memoryview(octets))
        self._selector.modify(peer.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def reset(self, peer: Peer) -> None:
        """End a session by a TCP reset."""
        assert peer.sock is not None
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close(peer)

    def close(self) -> None:
        for peer in list(self._up):
            self._close(peer)
        self._selector.close()

    def unsent(self, peer: Peer) -> int:
        """Octets that the speaker's kernel has not acknowledged yet, those that wait in here included."""
        assert peer.sock is not None
        answer = fcntl.ioctl(peer.sock, termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", answer)[0]) + sum(map(len, peer.waiting))

    def run(self, seconds: float) -> None:
        """Serve the sessions for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._turn(left)

    def until_quiet(self, receivers: list[Peer], done: Callable[[], bool], patience: float) -> None:
        """Until `done` holds; it is asked each time that nothing has come for a while. Raises Incomplete."""
        end = time.monotonic() + patience
        while True:
            before = sum(len(peer.pieces) for peer in receivers)
            self.run(0.3)
            if sum(len(peer.pieces) for peer in receivers) == before and done():
                return
            if time.monotonic() > end:
                raise Incomplete

    def _turn_until(self, done: Callable[[], bool], end: float, again: Iterable[Peer] = ()) -> None:
        while not done():
            if time.monotonic() > end:
                raise Incomplete
            self._turn(0.05)
            for peer in again:
                if peer.state == "down":
                    self._connect(peer)

    def _turn(self, timeout: float) -> None:
        for key, events in self._selector.select(timeout):
            peer: Peer = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    self._write(peer)
                if events & selectors.EVENT_READ:
                    self._read(peer)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    self._close(peer)
        if time.monotonic() - self._spoken > HOLD_TIME / 4:
            self._spoken = time.monotonic()
            for peer in self._up:
                self.send(peer, message(KEEPALIVE))

    def _write(self, peer: Peer) -> None:
        assert peer.sock is not None
        while peer.waiting:
            sent = peer.sock.send(peer.waiting[0])
            if sent < len(peer.waiting[0]):
                peer.waiting[0] = peer.waiting[0][sent:]
                return
            del peer.waiting[0]
        self._selector.modify(peer.sock, selectors.EVENT_READ, peer)

    def _read(self, peer: Peer) -> None:
        assert peer.sock is not None
        octets = peer.sock.recv(_RECEIVE)
        if not octets:
            self._close(peer)
            return
        peer.pieces.append(octets)
        peer.times.append(time.monotonic())
        if peer.state != "up":
            self._opening(peer)

    def _opening(self, peer: Peer) -> None:
        """Past the speaker's OPEN and first KEEPALIVE the session stands; what follows is the stream."""
        octets, moment = peer.octets(), peer.times[-1]
        position = 0
        while position + 19 <= len(octets):
            following = position + (octets[position + 16] << 8 | octets[position + 17])
            if following > len(octets):
                return
            kind = octets[position + 18]
            position = following
            if kind == KEEPALIVE:
                peer.state = "up"
                self._up.append(peer)
                peer.pieces, peer.times = [octets[position:]], [moment]
                return

    def _close(self, peer: Peer) -> None:
        assert peer.sock is not None
        self._selector.unregister(peer.sock)
        peer.sock.close()
        peer.state = "down"
        if peer in self._up:
            self._up.remove(peer)


def cpu(pid: int) -> float:
    """CPU seconds of a process so far, over its living threads (schedstat: nanoseconds)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:  # it has just ended
            continue
    return total / 1e9
