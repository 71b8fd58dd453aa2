"""Many BFD sessions: whose packet it is, whose turn it is, and who leaves (RFC 5880 section 6.3, 5881, 5883).

Rule: a packet that names our discriminator belongs to that session, and only one that names none is told by its
sender's address, and while a session is Up by the sender's discriminator as well: addresses can be forged. On the
link nothing counts that has crossed a router: its TTL would not be 255 any more. Discriminators are random: who
cannot see packets cannot name one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from bfd.packet import PacketError, State, decode_packet
from bfd.session import SLOW, Resumed, Session, Timing

PORT, MULTIHOP_PORT = 3784, 4784
"""UDP, for one hop (RFC 5881) and for several (RFC 5883)."""
ON_LINK_TTL = 255
FAREWELLS = 3
"""Packets that say AdminDown, if the neighbour does not answer."""
LONGEST_FAREWELL = 1.0
"""Seconds; beyond that a neighbour with slow timers is not waited for."""
MOST_PACKETS = 12_000
"""Packets a second that all sessions together send at most; what many of them ask for is slowed down to that."""
_FILLED = 0.9
_FEW = 64
"""Turns that are no more, beside four a session, until they are taken out: some lie days ahead."""
_STEP = 1.25


class Place(NamedTuple):
    """Whom a session is with, addresses packed. Two sessions never have the same `remote` and `multihop`."""

    remote: bytes
    local: bytes = b""
    """Empty leaves it to the kernel."""
    multihop: bool = False
    least_ttl: int = 0
    """What a packet over several hops must have left of its TTL; on the link it is 255 whatever stands here."""


class Wanted(NamedTuple):
    """A session to have."""

    place: Place
    timing: Timing


class Member:
    """A session and what is kept beside it."""

    __slots__ = ("farewell_until", "farewells", "key", "place", "port", "scheduled", "session", "wanted")

    def __init__(self, key: int, place: Place, wanted: Timing, session: Session, port: int) -> None:
        self.key = key
        self.place = place
        self.port = port
        """Where our packets came from before this process; 0: not known."""
        self.wanted = wanted
        """The timing that was asked for; the session's own may be slower."""
        self.session = session
        self.scheduled = inf
        self.farewells: list[float] = []
        """When AdminDown is said again."""
        self.farewell_until = 0.0


class Sessions:
    """`random` gives numbers from 0 to 1."""

    def __init__(self, random: Callable[[], float]) -> None:
        self.members: dict[int, Member] = {}
        self.dropped: dict[str, int] = {}
        """Packets that were discarded, by reason."""
        self.slowdown = 1.0
        """By how much the intervals asked for are lengthened."""
        self.independent = False
        """Whether the sessions outlive our control plane (the C bit)."""
        self._random = random
        self._leaving: dict[int, Member] = {}  # by discriminator
        self._mine: dict[int, Member] = {}
        self._by_place: dict[tuple[bytes, bool], Member] = {}
        self._timers: list[tuple[float, int]] = []  # when, discriminator
        self._changed: dict[int, None] = {}
        self._asked = 0  # packets a second

    # --------------------------------------------------------------------------------------------- the operator

    def set(self, key: int, place: Place, timing: Timing, now: float, resumed: Resumed | None = None) -> None:
        """A session with that key. Other timers are told to the neighbour; at another place it begins anew."""
        member = self.members.get(key) or self._adopt(key, place)
        if member is not None and member.place == place:
            self._asked += _pace(timing) - _pace(member.wanted)
            member.wanted = timing
        else:
            if member is not None:
                self.remove(key, now)
            member = self._add(key, place, timing, now, resumed)
        if not self._share(now):
            member.session.retime(self._slowed(timing), now)
        self._touched(member)

    def orphan(self) -> None:
        """Nobody's any more: another owner may claim each by setting it again, whatever its key."""
        self.members = {-number: member for number, member in enumerate(self.members.values(), 1)}
        for key, member in self.members.items():
            member.key = key
        self._changed.clear()

    def forsake(self, now: float) -> None:
        """End those that nobody has claimed."""
        for key in [key for key in self.members if key < 0]:
            self.remove(key, now)

    def _adopt(self, key: int, place: Place) -> Member | None:
        """A session that is there already under another key, from another owner, who counts from none."""
        member = self._by_place.get((place.remote, place.multihop))
        if member is None or member.place != place:
            return None
        del self.members[member.key]
        self._changed.pop(member.key, None)
        member.key = key
        member.session.changed = True
        member.session.failures = 0
        self.members[key] = member
        return member

    def set_independent(self, independent: bool, now: float) -> None:
        """Whether they outlive our control plane."""
        self.independent = independent
        for member in self.members.values():
            member.session.set_independent(independent, now)
            self._touched(member)

    def _add(self, key: int, place: Place, timing: Timing, now: float, resumed: Resumed | None) -> Member:
        other = self._by_place.get((place.remote, place.multihop))
        if other is not None:  # the same neighbour from another address of ours
            del self.members[other.key], self._mine[other.session.mine]
            self._changed.pop(other.key, None)
            self._asked -= _pace(other.wanted)
        for number, leaving in list(self._leaving.items()):
            if (leaving.place.remote, leaving.place.multihop) == (place.remote, place.multihop):
                self._gone(number)
        mine = resumed.mine if resumed is not None and resumed.mine not in self._mine else self._draw()
        if resumed is not None and resumed.mine != mine:
            resumed = None
        port = resumed.port if resumed is not None else 0
        session = Session(mine, self._slowed(timing), self._random, now, resumed)
        session.independent = self.independent
        member = self.members[key] = self._mine[mine] = Member(key, place, timing, session, port)
        self._by_place[place.remote, place.multihop] = member
        self._asked += _pace(timing)
        return member

    def remove(self, key: int, now: float) -> None:
        """End a session, if there is one: a neighbour that has one with us is told AdminDown first."""
        member = self.members.pop(key, None)
        if member is None:  # another key has its neighbour now
            return
        self._changed.pop(key, None)
        self._asked -= _pace(member.wanted)
        if self._by_place.get((member.place.remote, member.place.multihop)) is member:
            del self._by_place[member.place.remote, member.place.multihop]
        session = member.session
        if not session.remote_discriminator:
            del self._mine[session.mine]
        else:
            spacing = min(max(session.interval, session.remote_interval), LONGEST_FAREWELL / FAREWELLS)
            session.disable(now)
            member.farewells = [now + spacing * number for number in range(FAREWELLS - 1, 0, -1)]
            member.farewell_until = now + spacing * FAREWELLS
            self._leaving[session.mine] = member
            self._touched(member)
        self._share(now)

    def stop(self, now: float) -> None:
        """End all of them. It is done when `leaving` is empty."""
        for key in list(self.members):
            self.remove(key, now)

    @property
    def leaving(self) -> int:
        """How many sessions have ended and are not acknowledged yet, nor given up."""
        return len(self._leaving)

    # ------------------------------------------------------------------------------------------------- the world

    def receive(self, data: bytes, source: bytes, ttl: int, at: float, *, multihop: bool) -> None:
        """A datagram from `source`, by the port for one hop or for several, that came at that time."""
        try:
            packet = decode_packet(data)
        except PacketError as error:
            self._drop(str(error))
            return
        member = self._mine.get(packet.yours) if packet.yours else self._by_place.get((source, multihop))
        if member is None:
            self._drop("of no session" if packet.yours else "of no neighbour")
            return
        if not packet.yours and not member.session.may_be_from(packet.mine):
            self._drop("of no session")
            return
        if member.place.multihop is not multihop:
            self._drop("on the other port")
            return
        if ttl < (member.place.least_ttl if multihop else ON_LINK_TTL):
            self._drop("its TTL is too low")
            return
        member.session.receive(packet, at)
        if member.farewells and packet.state <= State.DOWN:
            self._gone(member.session.mine)
            return
        self._touched(member)

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def deadline(self) -> float:
        """When `expire` is to be called next, or earlier."""
        return self._timers[0][0] if self._timers else inf

    def expire(self, now: float, heard_until: float) -> list[tuple[Place, int, bytes]]:
        """What is due: place, our discriminator, packet. `heard_until` as for a session."""
        due: list[tuple[Place, int, bytes]] = []
        timers = self._timers
        while timers and timers[0][0] <= now:
            at, mine = heapq.heappop(timers)
            member = self._mine.get(mine)
            if member is None or member.scheduled != at:
                continue
            member.scheduled = inf
            if mine in self._leaving:
                if member.farewell_until <= now:
                    self._gone(mine)
                    continue
                if member.farewells and member.farewells[-1] <= now:
                    member.farewells.pop()
                    member.session.say_again(now)
            packet = member.session.expire(now, heard_until)
            if packet is not None:
                due.append((member.place, mine, packet))
            self._touched(member, after=now)
        return due

    def take_changes(self) -> list[int]:
        """The keys of sessions of which there is something to tell since the last call."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def sessions(self) -> list[tuple[int, Session]]:
        """All that are kept, by key."""
        return [(key, member.session) for key, member in self.members.items()]

    def key_of(self, mine: int) -> int | None:
        """The key of the session with that discriminator; None where it is leaving or gone."""
        member = self._mine.get(mine)
        return member.key if member is not None and not member.farewell_until else None

    def port_of(self, mine: int) -> int:
        """Where packets of that session came from, by another process; 0: not known."""
        member = self._mine.get(mine)
        return member.port if member is not None else 0

    def known(self, mine: int) -> bool:
        """Whether there is something left to send with that discriminator."""
        return mine in self._mine

    # ------------------------------------------------------------------------------------------------ in detail

    def _touched(self, member: Member, after: float = -inf) -> None:
        session = member.session
        if session.changed and not member.farewell_until:
            session.changed = False
            self._changed[member.key] = None
        at = session.deadline()
        if member.farewell_until:
            at = min(at, member.farewells[-1] if member.farewells else inf, member.farewell_until)
        if at <= after:  # judged, and not silent: something is unread
            at = after + 0.001
        if at < member.scheduled:
            member.scheduled = at
            heapq.heappush(self._timers, (at, session.mine))
            if len(self._timers) > 4 * len(self._mine) + _FEW:
                self._timers[:] = [
                    (each.scheduled, mine) for mine, each in self._mine.items() if each.scheduled < inf
                ]
                heapq.heapify(self._timers)

    def _gone(self, mine: int) -> None:
        self._leaving.pop(mine, None)
        self._mine.pop(mine, None)

    def _draw(self) -> int:
        """A discriminator that is nobody's."""
        while True:
            number = int(self._random() * 0xFFFFFFFF) + 1 & 0xFFFFFFFF
            if number and number not in self._mine:
                return number

    # ------------------------------------------------------------------------------------------------ many of them

    def _slowed(self, timing: Timing) -> Timing:
        if self.slowdown == 1.0:
            return timing
        return Timing(_slower(timing.min_tx, self.slowdown), _slower(timing.min_rx, self.slowdown), timing.multiplier)

    def _share(self, now: float) -> bool:
        """Lengthen all intervals where there are too many sessions for one process; whether that has changed."""
        asked = self._asked
        wanted = 1.0
        while asked > MOST_PACKETS * wanted:
            wanted *= _STEP
        # Not back and forth with each session that comes and goes.
        if wanted == self.slowdown or (wanted < self.slowdown and asked > MOST_PACKETS * _FILLED * wanted):
            return False
        self.slowdown = wanted
        for member in self.members.values():
            member.session.retime(self._slowed(member.wanted), now)
            self._touched(member)
        return True


def _pace(timing: Timing) -> int:
    """Packets a second at most, each way."""
    return 1_000_000 // min(timing.min_tx, timing.min_rx)


def _slower(interval: int, by: float) -> int:
    return max(interval, min(int(interval * by), SLOW))
