"""The process that keeps BFD's time: `python -m bfd --fd N`, started by bfd/client.py.

One thread, one loop: sockets, timers, and the socket N towards the owner. Rules: before anybody is declared silent,
all that had come by then has been read; who has just slept too long judges nobody, but looks again a moment later,
for the kernel may be as late as we were. The owner is never waited for.

An owner that goes without a word may come back: with `--path` the process goes on for as long as it was told to, and
waits there for the next owner, so that a restart is no event for any neighbour. Else, and after that time, every
neighbour is told AdminDown, and the process ends.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import socket
import time
from collections import deque
from math import inf
from pathlib import Path
from typing import Any

from bfd import orders, scheduling
from bfd.sessions import Member, Place, Sessions
from bfd.sockets import Receiver, SocketError, local_of, port_from, sender, text

_LATE = 0.020
"""Seconds of delay after which nobody is judged for as long."""
_AT_ONCE = 500
"""Packets that are read from a socket before what is due is sent."""
_RETRY = 0.5
"""Seconds between two attempts to open what could not be opened."""
_BROKEN = 1.0
"""Seconds after which a socket that only fails is opened anew."""
_TELL_AGAIN = 0.020
"""Seconds between two reports of one session: a neighbour that changes with each packet costs the owner no more."""
_COUNT_EVERY = 5.0
_COUNTS_IN_A_MESSAGE = 200

Where = tuple[bytes, bool]
"""What a receiver is bound to: an address, for several hops or one."""


class Sender:
    """A session's socket, opened when it is needed."""

    __slots__ = ("failing_since", "local", "next_try", "port", "problem", "sock")

    def __init__(self, port: int = 0) -> None:
        self.sock: socket.socket | None = None
        self.port = port
        self.local = ""
        self.problem = ""
        self.next_try = -inf
        self.failing_since: float | None = None

    def send(self, place: Place, packet: bytes, now: float) -> bool:
        """Send it if that is possible; whether `local` or `problem` has changed."""
        before = (self.local, self.problem)
        if self.sock is None and now >= self.next_try:
            self.next_try = now + _RETRY
            try:
                self.sock = sender(place.remote, place.local, multihop=place.multihop, port=self.port)
                self.local, self.port, self.problem = text(local_of(self.sock)), port_from(self.sock), ""
            except SocketError as error:
                self.problem = str(error)
        if self.sock is not None:
            try:
                try:
                    self.sock.send(packet)
                except ConnectionRefusedError:  # told of an earlier packet: nobody hears there yet
                    self.sock.send(packet)
                self.failing_since, self.problem = None, ""
            except OSError as error:
                self._failed(error, place, now)
        return (self.local, self.problem) != before

    def _failed(self, error: OSError, place: Place, now: float) -> None:
        if isinstance(error, (BlockingIOError, ConnectionRefusedError)):
            return
        if self.failing_since is None:
            self.failing_since = now
        elif now - self.failing_since > _BROKEN:  # our address may be another one now
            self.problem = f"cannot send to {text(place.remote)}: {os.strerror(error.errno or 0).lower()}"
            self.failing_since = None
            self.close()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class Engine:
    """`control` is the socket towards the owner (SOCK_SEQPACKET), `path` where the next one finds us, or empty."""

    def __init__(self, control: socket.socket, path: str = "", tag: str = "") -> None:
        self._path = path
        self._tag = tag
        self._listener: socket.socket | None = None
        self._listens_at: os.stat_result | None = None
        self._outlive = 0.0
        self._unclaimed_until = inf
        self.sessions = Sessions(random.SystemRandom().random)
        self._control: socket.socket | None = None
        self._poll = select.poll()
        self._receivers: dict[Where, Receiver] = {}
        self._problems: dict[Where, str] = {}
        self._open_again = inf
        self._senders: dict[int, Sender] = {}
        self._unreported: dict[int, None] = {}
        self._told: dict[int, float] = {}
        """When the owner heard of a session last."""
        self._tell_at = inf
        self._messages: deque[bytes] = deque()
        self._blocked = False  # the owner does not read
        self._places_changed = False
        self._stopping = False
        self._yielded = False
        self._judge_from = -inf
        self._latest = 0.0
        self._count_at = time.monotonic() + _COUNT_EVERY
        self._serve(control)
        if path:
            self._listen()
        self._scheduling = scheduling.got()
        self._tell({"scheduling": self._scheduling})

    def run(self) -> None:
        """Until the owner is gone and the neighbours know."""
        scheduling.settle()
        while not self._yielded and not (self._stopping and not self.sessions.leaving):
            planned = min(
                self.sessions.deadline(), self._open_again, self._count_at, self._unclaimed_until, self._tell_at
            )
            wait = min(max(planned - time.monotonic(), 0.0), 60.0)
            for descriptor, events in self._poll.poll(wait * 1000):
                if self._control is not None and descriptor == self._control.fileno():
                    self._owner(events)
                elif self._listener is not None and descriptor == self._listener.fileno():
                    self._accept()
            self._turn(planned)
        self._unlisten()
        self._tell({"stopped": True})
        self._report()

    def _turn(self, planned: float) -> None:
        now = time.monotonic()
        late = now - planned
        if late > self._latest:
            self._latest = late
        if late > _LATE:
            self._judge_from = now + _LATE
        heard_until = min((each.drain(_AT_ONCE, self._take) for each in self._receivers.values()), default=now)
        now = time.monotonic()
        for place, mine, packet in self.sessions.expire(now, heard_until if now >= self._judge_from else -inf):
            each = self._senders.get(mine)
            if each is None:
                each = self._senders[mine] = Sender(self.sessions.port_of(mine))
            if each.send(place, packet, now) and (key := self.sessions.key_of(mine)) is not None:
                self._unreported[key] = None
        if now >= self._unclaimed_until:
            self._unclaimed_until = inf
            if self._control is None:
                self._stop()
            self.sessions.forsake(now)
            self._places_changed = True
        if self._places_changed or now >= self._open_again:
            self._open(now)
        for key in self.sessions.take_changes():
            self._unreported[key] = None
        if now >= self._count_at:
            self._count(now)
        if (self._unreported or self._messages or self._tell_at < inf) and not self._blocked:
            self._report()

    def _take(self, data: bytes, source: bytes, ttl: int, at: float, multihop: bool) -> None:
        self.sessions.receive(data, source, ttl, at, multihop=multihop)

    # ------------------------------------------------------------------------------------------------ the owner

    def _serve(self, control: socket.socket) -> None:
        """A new owner; the newest counts."""
        self._hang_up()
        control.setblocking(False)
        self._control = control
        self._poll.register(control, select.POLLIN)
        self._unreported.clear()
        self._told.clear()
        self._messages.clear()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._poll.unregister(self._control)
            self._control.close()
            self._control = None
        self._blocked = False

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            with contextlib.suppress(FileNotFoundError):
                Path(self._path).unlink()  # of one that has crashed: the client has found nobody there
            listener.bind(self._path)
            listener.listen(4)
            self._listens_at = Path(self._path).stat()
        except OSError as error:
            listener.close()
            self._tell({"problem": f"{self._path}: {error.strerror}"})
            return
        finally:
            os.umask(before)
        self._listener = listener
        self._poll.register(listener, select.POLLIN)

    def _unlisten(self) -> None:
        if self._listener is not None:
            assert self._listens_at is not None
            self._poll.unregister(self._listener)
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                if os.path.samestat(Path(self._path).stat(), self._listens_at):  # it may be a successor's by now
                    Path(self._path).unlink()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            control, _ = self._listener.accept()
            self._serve(control)
            self.sessions.orphan()
            self._unclaimed_until = time.monotonic() + self._outlive

    def _introduce(self) -> None:
        """Tell a new owner who we are, and what we have."""
        self._tell({"hello": os.getpid(), "tag": self._tag})
        self._tell({"scheduling": self._scheduling})
        for member in self.sessions.members.values():
            self._messages.append(orders.message(orders.found(member.place, self._status(member))))
        self._messages.append(orders.message({"found_all": True}))

    def _owner(self, events: int) -> None:
        if events & select.POLLOUT:
            self._blocked = False
            self._watch_control()
        if not events & ~select.POLLOUT:
            return
        assert self._control is not None
        while True:
            try:
                octets = self._control.recv(orders.LONGEST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                octets = b""
            if not octets:
                self._hang_up()
                self._orphaned()
                return
            self._obey(octets)
            if self._yielded:
                return

    def _orphaned(self) -> None:
        if self._listener is not None and self._outlive:
            self.sessions.orphan()
            self._unclaimed_until = time.monotonic() + self._outlive
        else:
            self._stop()

    def _obey(self, octets: bytes) -> None:
        try:
            self._follow(orders.value_of(octets), time.monotonic())
        except (ValueError, KeyError, TypeError) as error:
            self._tell({"refused": f"{octets[:200]!r}: {error!r}"})

    def _follow(self, order: dict[str, Any], now: float) -> None:
        """Raises ValueError, KeyError or TypeError, and has done nothing, where the order is none."""
        if order["do"] == "set":
            key, place, timing, resumed = orders.set_of(order)
            self.sessions.set(key, place, timing, now, resumed)
            if key < 0:  # nobody's yet
                self._unclaimed_until = now + self._outlive
            self._places_changed = True
        elif order["do"] == "remove":
            self.sessions.remove(order["key"], now)
            self._unreported.pop(order["key"], None)
            self._told.pop(order["key"], None)
            self._places_changed = True
        elif order["do"] == "hello":
            self._introduce()
        elif order["do"] == "outlive":
            self._outlive = float(order["seconds"])
            self.sessions.set_independent(self._outlive > 0 and self._listener is not None, now)
        elif order["do"] == "yield":
            self._yielded = True
        elif order["do"] == "stop":
            self._stop()
        else:
            raise ValueError("there is no such order")

    def _stop(self) -> None:
        """Say goodbye to all. Nobody is to find us while we do."""
        self._unlisten()
        self._stopping = True
        self.sessions.stop(time.monotonic())

    def _report(self) -> None:
        """Tell the owner, as far as it reads."""
        self._tell_at = inf
        if self._control is None:
            self._unreported.clear()
            self._messages.clear()
            return
        try:
            while self._messages:
                self._control.send(self._messages[0])
                self._messages.popleft()
            now = time.monotonic()
            for key in list(self._unreported):
                again = self._told.get(key, -inf) + _TELL_AGAIN
                if now < again:
                    self._tell_at = min(self._tell_at, again)
                    continue
                member = self.sessions.members.get(key)
                if member is not None:
                    self._control.send(orders.message({"key": key, "status": self._status(member)}))
                    self._told[key] = now
                del self._unreported[key]
        except (BlockingIOError, InterruptedError):
            self._blocked = True
            self._tell_at = inf  # as soon as it reads
            self._watch_control()
        except OSError:
            self._messages.clear()  # it has gone: reading will tell

    def _status(self, member: Member) -> dict[str, Any]:
        each = self._senders.get(member.session.mine) or Sender(member.port)
        problem = each.problem or self._problems.get(self._where(member.place), "")
        return orders.status(member.session, each.local, each.port, problem)

    def _watch_control(self) -> None:
        if self._control is not None:
            self._poll.modify(self._control, select.POLLIN | (select.POLLOUT if self._blocked else 0))

    def _tell(self, value: dict[str, object]) -> None:
        if len(self._messages) < 100:
            self._messages.append(orders.message(value))

    def _count(self, now: float) -> None:
        """Counters, which nobody is to be told of at once."""
        self._count_at = now + _COUNT_EVERY
        if self._messages:
            return
        sessions = self.sessions.sessions()
        for start in range(0, len(sessions), _COUNTS_IN_A_MESSAGE):
            some = sessions[start : start + _COUNTS_IN_A_MESSAGE]
            counts = [[key, each.sent, each.received, each.heard_at if each.received else None] for key, each in some]
            self._tell({"counters": counts})
        if sessions:
            self._tell({"dropped": self.sessions.dropped, "latest": self._latest, "slowdown": self.sessions.slowdown})
        self._latest = 0.0
        if (scheduled := scheduling.got()) != self._scheduling:
            self._scheduling = scheduled
            self._tell({"scheduling": scheduled})

    # ---------------------------------------------------------------------------------------------- the sockets

    def _where(self, place: Place) -> Where:
        return (place.local or bytes(len(place.remote)), place.multihop)

    def _open(self, now: float) -> None:
        """Have the receivers that the sessions need, and no senders of sessions that are gone."""
        self._places_changed = False
        self._open_again = inf
        for mine in [mine for mine in self._senders if not self.sessions.known(mine)]:
            self._senders.pop(mine).close()
        wanted = dict.fromkeys(self._where(member.place) for member in self.sessions.members.values())
        if self.sessions.leaving:
            wanted.update(dict.fromkeys(self._receivers))  # their answers are awaited
            self._places_changed = True
        before = dict(self._problems)
        self._problems.clear()
        for where in self._receivers.keys() - wanted.keys():
            self._close(where)
        for where in sorted(wanted, key=lambda where: any(where[0])):
            everything = (bytes(len(where[0])), where[1])
            if where in self._receivers or everything in self._receivers:  # one that hears all is enough
                continue
            if where == everything:  # the kernel has no room for those beside it
                for each in list(self._receivers):
                    if (bytes(len(each[0])), each[1]) == everything:
                        self._close(each)
            try:
                receiver = self._receivers[where] = Receiver(where[0], multihop=where[1])
                self._poll.register(receiver.sock, select.POLLIN)
            except SocketError as error:
                self._problems[where] = str(error)
                self._open_again = now + _RETRY
        if before != self._problems:
            self._unreported.update(dict.fromkeys(self.sessions.members))

    def _close(self, where: Where) -> None:
        receiver = self._receivers.pop(where)
        self._poll.unregister(receiver.sock)
        receiver.close()


def serve(descriptor: int, path: str, tag: str) -> None:
    """Serve the owner whose socket is the descriptor, and those who come after it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # fs.nr_open may have been lowered since
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each session has a socket
    Engine(socket.socket(fileno=descriptor), path, tag).run()
