"""Speakers through anything: when it is quiet again, everybody knows what is there, and nothing else."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.message import Family, LocalError
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.speaker import Speaker
from tests.support.bgp import Network

V4 = Family.IPV4
NUMBERS = range(1, 6)
numbers = st.sampled_from(NUMBERS)
events = st.lists(
    st.one_of(
        st.tuples(st.just("originate"), numbers, st.integers(10, 14)),
        st.tuples(st.just("retract"), numbers, st.integers(10, 14)),
        st.tuples(st.just("crash"), numbers, st.just(0)),
        st.tuples(st.just("start"), numbers, st.just(0)),
        st.tuples(st.just("break"), numbers, numbers),
        st.tuples(st.just("cut"), numbers, numbers),
        st.tuples(st.just("heal"), numbers, numbers),
        st.tuples(st.just("hold"), numbers, numbers),
        st.tuples(st.just("release"), numbers, numbers),
        st.tuples(st.just("ask"), numbers, numbers),
        st.tuples(st.just("client"), numbers, numbers),
        st.tuples(st.just("wait"), numbers, st.integers(0, 12)),
    ),
    max_size=25,
)


def prefix(owner: int, number: int) -> bytes:
    return bytes((32, 10, 0, owner, number))


def begin(network: Network, number: int, seed: int, reflectors: set[int], restart_time: int) -> Speaker:
    """Everybody peers with everybody, or with the reflectors only where there are some."""
    own = bytes((192, 0, 2, number))
    config = SpeakerConfig(65001, own, (V4,), ((V4, own),), restart_time=restart_time, stale_time=60)
    speaker = Speaker(config, Random(seed + number).random, now=network.now)
    for other in NUMBERS:
        if other == number or (reflectors and not {number, other} & reflectors):
            continue
        client = number in reflectors and other not in reflectors
        peer = PeerConfig(str(other), bytes((192, 0, 2, other)), 65001, client=client, hold_time=9, connect_retry=5)
        speaker.add_peer(peer, network.now)
    network.add(str(number), speaker)
    return speaker


@settings(max_examples=15, deadline=None)
@given(events, st.integers(0, 1000), st.sampled_from(((), (1,), (1, 2))), st.sampled_from((0, 20)), st.booleans())
def test_when_it_is_quiet_everybody_knows_what_is_there(
    happened: list[tuple[str, int, int]], seed: int, reflecting: tuple[int, ...], restart_time: int, slowly: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if slowly:  # one prefix at a time, so that things happen between any two
            for name in ("bgp.adj_rib_out.SLICE", "bgp.advertising.SLICE", "bgp.speaker.AT_ONCE"):
                patch.setattr(name, 1)
        _they_know(happened, seed, reflecting, restart_time)


def _they_know(
    happened: list[tuple[str, int, int]], seed: int, reflecting: tuple[int, ...], restart_time: int
) -> None:
    reflectors = set(reflecting)
    network = Network(seed)
    speakers = {number: begin(network, number, seed, reflectors, restart_time) for number in NUMBERS}
    owned: dict[int, set[bytes]] = {number: set() for number in NUMBERS}
    for what, number, other in happened:
        pair = frozenset((str(number), str(other)))
        speaker = speakers.get(number)
        if what == "start" and speaker is None:
            speakers[number] = begin(network, number, seed, reflectors, restart_time)
        elif what == "crash" and speaker is not None:
            network.remove(str(number))
            del speakers[number]
            owned[number].clear()
        elif what == "originate" and speaker is not None:
            speaker.originate(V4, prefix(number, other))
            owned[number].add(prefix(number, other))
        elif what == "retract" and speaker is not None:
            speaker.retract(V4, prefix(number, other))
            owned[number].discard(prefix(number, other))
        elif what == "break" and number != other:
            network.break_connections(str(number), str(other))
        elif what == "cut" and number != other:
            network.cut.add(pair)
        elif what == "heal":
            network.cut.discard(pair)
        elif what in ("hold", "release") and speaker is not None:
            getattr(speaker, what)(str(other))
        elif what == "ask" and speaker is not None and str(other) in speaker.peers:
            with contextlib.suppress(LocalError):  # the session does not stand
                speaker.ask_again(str(other), V4)
        elif what == "client" and speaker is not None and not reflectors:
            # Its role changes; in a mesh that makes no difference to what anybody knows in the end.
            configs = [
                replace(peer.config, client=not peer.config.client) if peer.name == str(other) else peer.config
                for peer in speaker.peers.values()
            ]
            speaker.set_peers(configs, network.now)
        elif what == "wait":
            network.run(float(other))
    network.cut.clear()
    for speaker in speakers.values():
        for name in speaker.peers:
            speaker.release(name)
    network.run(400)
    joined = not reflectors or bool(reflectors & set(speakers))
    everything = set().union(*(owned[number] for number in speakers))
    for number, speaker in speakers.items():
        assert set(speaker.ribs[V4].chosen) == (everything if joined else owned[number]), number
        for name, peer in speaker.peers.items():
            assert (peer.session.negotiated is not None) == (int(name) in speakers)
        for wire, routes in speaker.ribs[V4].chosen.items():
            assert wire[3] == number or routes[0].attributes.next_hop == bytes((192, 0, 2, wire[3]))
