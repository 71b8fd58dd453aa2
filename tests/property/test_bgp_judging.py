"""Judging and telling by slices, with things happening between any two, end where doing it at once ends.

Two speakers live through the same: one decides a prefix a turn and has few turns, one finishes before the next event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.connection import Close, Direction, Send, Settings
from bgp.message import (
    AsPath,
    Attributes,
    Capabilities,
    Family,
    GracefulRestart,
    Update,
    encode_announcement,
    encode_end_of_rib,
    encode_withdrawal,
)
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import EVERYTHING, Change, Match, Policy, PrefixRange, Rule
from bgp.session import Session
from bgp.speaker import Speaker

V4 = Family.IPV4
NOW = 1000.0
NAMES = ("client", "node", "router")
ASNS = {"client": 65001, "node": 65001, "router": 65003}
ADDRESSES = {name: bytes((192, 0, 2, number)) for number, name in enumerate(NAMES, 1)}
PREFIXES = [bytes((24, 10, 0, number)) for number in range(8)]
LOW, WIDE = PrefixRange.parse("10.0.0.0/22+"), bytes((22, 10, 0, 0))
POLICIES: tuple[Policy | None, ...] = (
    None,
    Policy((Rule(False, Match(prefixes=(LOW,))), Rule(True))),
    Policy((Rule(True, Match(prefixes=(LOW,)), Change(local_pref=300)),)),
    Policy((Rule(True, Match(), Change(add_communities=(7,))),)),
    EVERYTHING,
)
GIVEN = [Attributes(0, AsPath(), bytes((192, 0, 2, 9)), local_pref=pref) for pref in (90, 100, 110)]
RESTART = GracefulRestart(60, False, ((V4, True),))


class Bench:
    """A speaker and what is at the far ends of its sessions, joined without a network: nothing is on its way."""

    def __init__(self, turns: Callable[[], int | None], restarts: Iterable[str]) -> None:
        self._turns = turns
        self._restarts = set(restarts)
        own = bytes((192, 0, 2, 100))
        config = SpeakerConfig(65001, own, (V4,), ((V4, own),), restart_time=60, stale_time=60)
        self.speaker = Speaker(config, lambda: 0.5, now=NOW)
        self.sessions: dict[str, Session] = {}
        self.told: dict[str, dict[bytes, Attributes]] = {name: {} for name in NAMES}
        self.speaker.set_peers(
            [
                PeerConfig(
                    name,
                    ADDRESSES[name],
                    ASNS[name],
                    client=name == "client",
                    passive=True,
                    export_policy=EVERYTHING if name == "router" else None,
                )
                for name in NAMES
            ],
            NOW,
        )
        for name in NAMES:
            self.up(name)
        self.turn(None)

    def happens(self, what: str, *about: Any) -> None:
        getattr(self, what)(*about)
        self.turn(self._turns())

    def turn(self, most: int | None) -> None:
        """Some turns, or as many as it takes."""
        while most is None or most > 0:
            most = None if most is None else most - 1
            outputs = self.speaker.take(NOW)
            for name, output in outputs:
                session = self.sessions.get(name)
                if session is None:
                    continue
                if isinstance(output, Send):
                    session.receive(Direction.OUTGOING, output.data, NOW)
                    self._hear(name, session)
                elif isinstance(output, Close):
                    del self.sessions[name]
            if not (outputs or self.speaker.pending or self.speaker.telling):
                break

    def _hear(self, name: str, session: Session) -> None:
        for output in session.take():
            if isinstance(output, Send):
                self.speaker.receive(name, Direction.INCOMING, output.data, NOW)
            elif isinstance(output, Update):
                for _, gone in output.withdrawn:
                    for prefix in gone:
                        self.told[name].pop(prefix, None)
                for _, some, attributes in output.announced:
                    self.told[name].update(dict.fromkeys(some, attributes))

    def _say(self, name: str, messages: list[bytes]) -> None:
        session = self.sessions.get(name)
        if session is not None and session.negotiated is not None:
            session.send(b"".join(messages))
            self._hear(name, session)

    # ------------------------------------------------------------------------------------------ what may happen

    def up(self, name: str) -> None:
        if name in self.sessions:
            return
        self.turn(1)  # as the driver does: a Close left over would be for the wrong connection
        restart = RESTART if name in self._restarts else None
        capabilities = Capabilities((V4,), graceful_restart=restart)
        session = Session(Settings(ASNS[name], ADDRESSES[name], 65001, capabilities, hold_time=90), lambda: 0.5)
        assert self.speaker.accepted(name, NOW)
        self.sessions[name] = session
        self.told[name].clear()
        session.start(NOW)
        session.connected(NOW)
        self._hear(name, session)
        self.turn(4)  # the two OPENs and KEEPALIVEs

    def lose(self, name: str) -> None:
        if self.sessions.pop(name, None):
            self.speaker.failed(name, Direction.INCOMING, NOW)

    def announce(self, name: str, some: list[bytes], attributes: Attributes) -> None:
        if name == "router":
            attributes = replace_path(attributes)
        self._say(name, encode_announcement(V4, attributes, some, as4=True) if some else [])

    def withdraw(self, name: str, some: list[bytes]) -> None:
        self._say(name, encode_withdrawal(V4, some))

    def complete(self, name: str) -> None:
        self._say(name, [encode_end_of_rib(V4)])

    def configure(self, name: str, **changed: Any) -> None:
        configs = [
            replace(peer.config, **changed) if peer.name == name else peer.config
            for peer in self.speaker.peers.values()
        ]
        self.speaker.set_peers(configs, NOW)

    def imports(self, name: str, policy: Policy | None) -> None:
        self.configure(name, import_policy=policy)

    def exports(self, name: str, policy: Policy | None) -> None:
        self.configure(name, export_policy=policy)

    def role(self, name: str, client: bool) -> None:
        self.configure(name, client=client)

    def cluster(self, number: int) -> None:
        self.speaker.set_config(replace(self.speaker.config, cluster_id=bytes((0, 0, 0, number))), NOW)

    def ours(self, prefix: bytes, guard: bool) -> None:
        self.speaker.originate(V4, prefix, guard=guard)

    def not_ours(self, prefix: bytes) -> None:
        self.speaker.retract(V4, prefix)

    # --------------------------------------------------------------------------------------------- what came of it

    def outcome(self) -> dict[str, Any]:
        rib = self.speaker.ribs[V4]
        sources = {name: self.speaker.peers[name].source for name in NAMES}
        return {
            "received": {
                name: {
                    prefix: (route.received, route.attributes, route.rejected)
                    for prefix, route in rib.received(source).items()
                }
                for name, source in sources.items()
            },
            "stale": {name: rib.stale(source) for name, source in sources.items()},
            "chosen": {
                prefix: [(route.source.name, route.attributes) for route in routes]
                for prefix, routes in rib.chosen.items()
            },
            "told": {name: self.told[name] for name in self.sessions},
        }


def replace_path(attributes: Attributes) -> Attributes:
    return attributes._replace(as_path=AsPath.sequence(65003), local_pref=None)


names, policies = st.sampled_from(NAMES), st.sampled_from(POLICIES)
some = st.lists(st.sampled_from(PREFIXES), unique=True, min_size=1)
own = st.sampled_from([*PREFIXES[:2], WIDE])
events = st.one_of(
    st.tuples(st.just("announce"), names, some, st.sampled_from(GIVEN)),
    st.tuples(st.just("announce"), names, st.just(PREFIXES), st.sampled_from(GIVEN)),
    st.tuples(st.just("imports"), names, policies),
    st.tuples(st.just("exports"), names, policies),
    st.tuples(st.just("role"), st.sampled_from(NAMES[:2]), st.booleans()),
    st.tuples(st.just("withdraw"), names, some),
    st.tuples(st.just("complete"), names),
    st.tuples(st.just("lose"), names),
    st.tuples(st.just("up"), names),
    st.tuples(st.just("cluster"), st.integers(0, 2)),
    st.tuples(st.just("ours"), own, st.booleans()),
    st.tuples(st.just("not_ours"), own),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=25), st.data(), st.sets(names))
def test_by_slices_as_at_once(happened: list[tuple[Any, ...]], data: st.DataObject, restarts: set[str]) -> None:
    at_once = Bench(lambda: None, restarts)
    for event in happened:
        at_once.happens(*event)
    few = st.integers(0, 3)
    with pytest.MonkeyPatch.context() as patch:
        for place in ("bgp.adj_rib_out.SLICE", "bgp.advertising.SLICE", "bgp.speaker.AT_ONCE"):
            patch.setattr(place, 1)
        by_slices = Bench(lambda: data.draw(few), restarts)
        for event in happened:
            by_slices.happens(*event)
        by_slices.turn(None)
    assert by_slices.outcome() == at_once.outcome()
    for name, peer in by_slices.speaker.peers.items():
        for prefix, route in by_slices.speaker.ribs[V4].received(peer.source).items():
            ((_, attributes, rejected),) = peer.judge(V4, [prefix], route.received)
            assert (attributes, rejected) == (route.attributes, route.rejected), name
