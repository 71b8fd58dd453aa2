"""A BGP session under any order of events: it keeps its promises and always comes up again."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bgp.connection import Close, Connect, Direction, Down, Established, Send, Settings
from bgp.fsm import State
from bgp.message import KEEPALIVE, Family, Framer, Notification, Open, encode_end_of_rib, encode_route_refresh
from bgp.session import Session

PEER = Open(65002, 9, b"\x0a\0\0\2")
directions = st.sampled_from(Direction)
messages = st.sampled_from(
    (
        PEER.encode(),
        Open(65003, 9, b"\x0a\0\0\2").encode(),
        KEEPALIVE,
        encode_end_of_rib(Family.IPV4),
        encode_route_refresh(Family.IPV4),
        Notification.shutdown().encode(),
        bytes(19),
    )
)


class AnyOrder(RuleBasedStateMachine):
    """Events at random, some of which make no sense; the connections are tracked as the outside world sees them."""

    @initialize(seed=st.integers(0, 2**16), ours=st.sampled_from((b"\x0a\0\0\1", b"\x0a\0\0\3")))
    def begin(self, seed: int, ours: bytes) -> None:
        self.now = 0.0
        self.session = Session(Settings(65001, ours, 65002), Random(seed).random)
        self.open: set[Direction] = set()
        self.connecting = False
        self.standing = False

    def drain(self) -> None:
        for output in self.session.take():
            if isinstance(output, Connect):
                assert Direction.OUTGOING not in self.open
                self.connecting = True
            elif isinstance(output, Send):
                assert output.direction in self.open, "sent on a connection that is not there"
                assert 19 <= len(output.data) <= 4096
            elif isinstance(output, Close):
                self.open.discard(output.direction)
                if output.direction is Direction.OUTGOING:
                    self.connecting = False
            elif isinstance(output, Established):
                assert not self.standing
                self.standing = True
            elif isinstance(output, Down) and output.was is State.ESTABLISHED:
                assert self.standing
                self.standing = False

    @rule()
    def start(self) -> None:
        self.session.start(self.now)
        self.drain()

    @rule()
    def stop(self) -> None:
        self.session.stop(self.now)
        self.drain()
        assert not self.open
        assert self.session.deadline() is None

    @rule()
    def reset(self) -> None:
        self.session.reset(self.now)
        self.drain()

    @rule(hold_time=st.sampled_from((0, 9, 90)), retry=st.sampled_from((1.0, 30.0)), passive=st.booleans())
    def renew(self, hold_time: int, retry: float, passive: bool) -> None:
        """Other settings; the peer is only told where a connection has come as far as an OPEN."""
        other = replace(self.session.settings, hold_time=hold_time, connect_retry=retry, passive=passive)
        self.session.renew(other, Notification(6, 6), self.now)
        self.drain()
        assert not self.open
        assert not self.connecting
        assert (self.session.deadline() is not None) == self.session.started

    @rule(retry=st.sampled_from((1.0, 30.0)))
    def retry_sooner_or_later(self, retry: float) -> None:
        self.session.change(replace(self.session.settings, connect_retry=retry), self.now)
        self.drain()

    @rule()
    def connected(self) -> None:
        if self.connecting:
            self.connecting = False
            self.open.add(Direction.OUTGOING)
            self.session.connected(self.now)
            self.drain()

    @rule()
    def refused(self) -> None:
        if self.connecting:
            self.connecting = False
            self.session.failed(Direction.OUTGOING, self.now, "refused")
            self.drain()

    @rule()
    def accepted(self) -> None:
        if Direction.INCOMING not in self.open and self.session.accepted(self.now):
            self.open.add(Direction.INCOMING)
            self.drain()

    @rule(direction=directions)
    def broken(self, direction: Direction) -> None:
        if direction in self.open:
            self.open.discard(direction)
            self.session.failed(direction, self.now, "reset")
            self.drain()

    @rule(direction=directions, data=messages)
    def receive(self, direction: Direction, data: bytes) -> None:
        if direction in self.open:
            self.session.receive(direction, data, self.now)
            self.drain()

    @rule(direction=directions, several=st.lists(messages, max_size=4))
    def receive_several(self, direction: Direction, several: list[bytes]) -> None:
        if direction in self.open:
            self.session.receive(direction, b"".join(several), self.now)
            self.drain()

    @rule(seconds=st.floats(0, 300))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.session.deadline()) is not None and deadline <= end:
            assert deadline >= self.now or self.now == 0
            self.now = max(self.now, deadline)
            self.session.expire(self.now)
            self.drain()
        self.now = end

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "session"):
            return
        assert self.standing == (self.session.state is State.ESTABLISHED) == (self.session.negotiated is not None)
        if self.standing:
            assert len(self.open) == 1
            assert not self.connecting

    def teardown(self) -> None:
        """Whatever has happened: a peer that behaves gets its session."""
        if not hasattr(self, "session"):
            return
        self.session.start(self.now)
        self.renew(9, 1.0, False)
        for direction in list(self.open):
            self.broken(direction)
        for _ in range(20):
            if self.connecting:
                break
            deadline = self.session.deadline()
            assert deadline is not None, "nothing is tried any more"
            self.now = max(self.now, deadline)
            self.session.expire(self.now)
            self.drain()
        self.connected()
        for data in (PEER.encode(), KEEPALIVE):
            self.receive(Direction.OUTGOING, data)
        assert self.standing


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            messages,
            st.binary(max_size=80),
            st.builds(
                lambda kind, body: b"\xff" * 16 + (19 + len(body)).to_bytes(2, "big") + bytes((kind,)) + body,
                st.integers(0, 6),
                st.binary(max_size=80),
            ),
        ),
        max_size=8,
    ),
    st.integers(0, 2),
)
def test_no_octets_break_a_session(pieces: list[bytes], progress: int) -> None:
    """Whatever comes in whatever state: what is answered is a BGP message, and a session that was ended says why."""
    session = Session(Settings(65001, b"\x0a\0\0\1", 65002), lambda: 0.5)
    session.start(0)
    session.connected(0)
    for data in (PEER.encode(), KEEPALIVE)[:progress]:
        session.receive(Direction.OUTGOING, data, 0)
    for piece in pieces:
        session.receive(Direction.OUTGOING, piece, 1)
        session.expire(1)
    for output in session.take():
        if isinstance(output, Send):
            assert [kind for kind, _ in Framer().receive(output.data)]
        elif isinstance(output, Down) and output.was >= State.OPEN_SENT:
            assert output.reason
            assert output.sent or output.received
