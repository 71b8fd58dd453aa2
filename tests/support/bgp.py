"""A network in memory for BGP under simulated time: connections with latency, nodes that vanish, links that break.

Rule: nothing here waits. Time jumps to the next delivery or timer; equal seeds give equal runs.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from bgp.connection import Close, Connect, Direction, Send
from bgp.session import Session


class Node(Protocol):
    """What the network drives: a speaker, or one session. Peers are named by the nodes' names."""

    def superseded(self, peer: str, now: float) -> bool: ...
    def accepted(self, peer: str, now: float) -> bool: ...
    def connected(self, peer: str, now: float) -> None: ...
    def failed(self, peer: str, direction: Direction, now: float, reason: str = "") -> None: ...
    def receive(self, peer: str, direction: Direction, data: bytes, now: float) -> None: ...
    def deadline(self) -> float | None: ...
    def expire(self, now: float) -> None: ...
    def take(self, now: float) -> list[tuple[str, Any]]: ...


class OneSession:
    """A session as a node with one peer."""

    def __init__(self, session: Session, peer: str) -> None:
        self.session = session
        self.peer = peer

    def superseded(self, peer: str, now: float) -> bool:
        return False

    def accepted(self, peer: str, now: float) -> bool:
        return self.session.accepted(now)

    def connected(self, peer: str, now: float) -> None:
        self.session.connected(now)

    def failed(self, peer: str, direction: Direction, now: float, reason: str = "") -> None:
        self.session.failed(direction, now, reason)

    def receive(self, peer: str, direction: Direction, data: bytes, now: float) -> None:
        self.session.receive(direction, data, now)

    def deadline(self) -> float | None:
        return self.session.deadline()

    def expire(self, now: float) -> None:
        self.session.expire(now)

    def take(self, now: float) -> list[tuple[str, Any]]:
        return [(self.peer, output) for output in self.session.take()]


_RETRANSMISSION = 0.3
_TURN = 0.001
"""Seconds that a node takes for a slice of its work."""

End = tuple[str, str, Direction]
"""One end of a TCP connection: the node, its peer, who began."""


class _Tcp:
    """A TCP connection: its two ends, and when what each has sent last arrives."""

    def __init__(self, one: End, two: End, stands: float) -> None:
        self.other = {one: two, two: one}
        self.unsent: dict[End, list[bytes]] = {one: [], two: []}
        """What waits to be sent again: it was sent while the two could not reach each other."""
        self.arrival = {one: 0.0, two: stands}


class Network:
    """The nodes, the connections between them, and the time."""

    def __init__(self, seed: int = 0, latency: tuple[float, float] = (0.001, 0.02), *, cuts: bool = True) -> None:
        self.now = 1000.0
        self.nodes: dict[str, Node] = {}
        self.news: dict[str, list[tuple[str, Any]]] = {}
        self.sent: dict[str, int] = {}
        self.octets = 0
        """Sent by all."""
        self.cut: set[frozenset[str]] = set()
        """Pairs that cannot reach each other. TCP sends again what was lost, if it still stands when they can."""
        self._random = Random(seed)
        self._latency = latency
        self._cuts = cuts
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._tcp: dict[End, _Tcp] = {}
        self._alarms: dict[str, float] = {}
        self._attempt: dict[tuple[str, str], object] = {}

    def add(self, name: str, node: Node) -> None:
        self.nodes[name] = node
        self.news.setdefault(name, [])
        self.sent.setdefault(name, 0)

    def remove(self, name: str) -> None:
        """The node's process dies; the kernel closes its connections."""
        del self.nodes[name]
        self._alarms.pop(name, None)
        for end in [end for end in self._tcp if end[0] == name]:
            self._close(end)

    def break_connections(self, one: str, two: str) -> None:
        """Both ends see a reset."""
        for end in [end for end in self._tcp if end[:2] in ((one, two), (two, one))]:
            if self._tcp.pop(end, None):
                self._fail(end, "connection reset")

    def settle(self) -> None:
        """Carry out what the nodes ask for; to be called after a node was told something from outside."""
        for name in list(self.nodes):
            self._touched(name)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; true when `until` came true before the time was over."""
        end = self.now + seconds
        self.settle()
        while not until():
            if not self._queue or self._queue[0][0] > end:
                self.now = end
                return until()
            at, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            action()
        return True

    def _touched(self, name: str) -> None:
        """Something has happened to a node: do what it asks for, and have it woken when it wants."""
        node = self.nodes.get(name)
        if node is None:
            return
        for peer, output in node.take(self.now):
            self._carry_out(name, peer, output)
        if getattr(node, "pending", False) or getattr(node, "telling", False):
            self._later(lambda: self._touched(name), self.now + _TURN)
        deadline = node.deadline()
        if deadline is not None and self._alarms.get(name) != deadline:
            self._alarms[name] = deadline
            self._later(lambda: self._wake(name, node, deadline), deadline)

    def _wake(self, name: str, node: Node, deadline: float) -> None:
        if self._alarms.get(name) == deadline and self.nodes.get(name) is node:
            del self._alarms[name]
            node.expire(self.now)
            self._touched(name)

    def events(self, name: str, kind: type) -> list[Any]:
        return [output for _, output in self.news[name] if isinstance(output, kind)]

    # ------------------------------------------------------------------------------------------------ the wires

    def _later(self, action: Callable[[], None], at: float | None = None) -> None:
        at = self.now + self._random.uniform(*self._latency) if at is None else at
        heapq.heappush(self._queue, (at, next(self._order), action))

    def _carry_out(self, name: str, peer: str, output: Any) -> None:
        if isinstance(output, Connect):
            attempt = self._attempt[name, peer] = object()
            self._later(lambda: self._arrive(name, peer, attempt))
        elif isinstance(output, Send):
            self.sent[name] += 1
            self.octets += len(output.data)
            self._send((name, peer, output.direction), output.data)
        elif isinstance(output, Close):
            if output.direction is Direction.OUTGOING:
                self._attempt.pop((name, peer), None)
            self._close((name, peer, output.direction))
        else:
            self.news[name].append((peer, output))

    def _arrive(self, name: str, peer: str, attempt: object) -> None:
        if self._attempt.get((name, peer)) is not attempt or frozenset((name, peer)) in self.cut:
            return
        node, near = self.nodes.get(peer), (name, peer, Direction.OUTGOING)
        if node is not None and node.superseded(name, self.now):
            self._touched(peer)
        taken = node is not None and node.accepted(name, self.now)
        if not taken:
            self._touched(peer)
            self._later(lambda: self._refused(near, attempt))
            return
        far = (peer, name, Direction.INCOMING)
        # What the far end sends at once must not arrive before the connection stands here.
        stands = self.now + self._latency[0]
        tcp = self._tcp[near] = self._tcp[far] = _Tcp(near, far, stands)
        self._later(lambda: self._stands(tcp, near, attempt), stands)
        self._touched(peer)

    def _refused(self, near: End, attempt: object) -> None:
        if self._attempt.get(near[:2]) is attempt:
            self._fail(near, "connection refused")

    def _stands(self, tcp: _Tcp, near: End, attempt: object) -> None:
        if self._tcp.get(near) is not tcp:
            return
        if self._attempt.get(near[:2]) is attempt and near[0] in self.nodes:
            self.nodes[near[0]].connected(near[1], self.now)
            self._touched(near[0])
        else:
            self._close(near)

    def _send(self, end: End, data: bytes) -> None:
        tcp = self._tcp.get(end)
        if tcp is None:
            return
        unsent = tcp.unsent[end]
        if unsent or frozenset(end[:2]) in self.cut:
            if not unsent:
                self._later(lambda: self._send_again(end, tcp), self.now + _RETRANSMISSION)
            unsent.append(data)
            return
        tcp.arrival[end] = max(tcp.arrival[end], self.now + self._random.uniform(*self._latency))
        self._later(lambda: self._deliver(tcp, tcp.other[end], data), tcp.arrival[end])

    def _send_again(self, end: End, tcp: _Tcp) -> None:
        if self._tcp.get(end) is not tcp:
            return
        if frozenset(end[:2]) in self.cut:
            self._later(lambda: self._send_again(end, tcp), self.now + _RETRANSMISSION)
            return
        data = b"".join(tcp.unsent[end])
        tcp.unsent[end].clear()
        self._send(end, data)

    def _deliver(self, tcp: _Tcp, end: End, data: bytes) -> None:
        if self._tcp.get(end) is not tcp:
            self._closed(tcp, tcp.other[end], "connection reset")
            return
        size = self._random.randint(1, len(data)) if self._cuts else len(data)  # a stream knows no messages
        for piece in (data[:size], data[size:]):
            if piece and self._tcp.get(end) is tcp and end[0] in self.nodes:
                self.nodes[end[0]].receive(end[1], end[2], piece, self.now)
                self._touched(end[0])

    def _close(self, end: End) -> None:
        """Our end hears nothing more; the far end hears of it behind what was sent before."""
        tcp = self._tcp.pop(end, None)
        if tcp is None or frozenset(end[:2]) in self.cut:
            return
        at = max(tcp.arrival[end], self.now + self._latency[0])
        self._later(lambda: self._closed(tcp, tcp.other[end], "closed by the peer"), at)

    def _closed(self, tcp: _Tcp, end: End, reason: str) -> None:
        if self._tcp.get(end) is tcp:
            self._tcp.pop(end)
            self._fail(end, reason)

    def _fail(self, end: End, reason: str) -> None:
        node = self.nodes.get(end[0])
        if node is not None:
            node.failed(end[1], end[2], self.now, reason)
            self._touched(end[0])
