"""BFD: one packet, and a set of sessions under packets, time and orders in any order."""

from __future__ import annotations

from random import Random

from bfd.packet import Packet, PacketError, State, decode_packet
from bfd.session import GAP, LEAST_INTERVAL, Timing
from bfd.sessions import Place, Sessions
from tests.fuzz.target import Input, pieces, target

PEERS = [bytes((10, 0, 0, number)) for number in range(3)]
FAST = Timing(100_000, 100_000, 3)


def _seeds() -> dict[str, bytes]:
    up = Packet(State.UP, 7, 9, 3, 100_000, 100_000, 0, 1, poll=True, independent=True)
    return {
        "up": up.encode(),
        "down": Packet(State.DOWN, 7, 0, 3, 1_000_000, 50_000).encode(),
        "admin-down": Packet(State.ADMIN_DOWN, 7, 9, 3, 1_000_000, 50_000, 0, 7).encode(),
        "demand": Packet(State.UP, 7, 9, 1, 0, 0, 5, 31, final=True, demand=True).encode(),
        "authenticated": up.encode()[:1] + b"\xec" + up.encode()[2:3] + b"\x1c" + up.encode()[4:] + b"\1\4\1x",
        "long": up.encode() + bytes(40),
    }


@target("bfd-packet", covers=("bfd.packet:decode_packet",), seeds=_seeds, longest=128)
def packets(data: bytes) -> None:
    """A packet, or the reason why it is none; what is read is what is written."""
    try:
        packet = decode_packet(data)
    except PacketError as error:
        assert str(error)
        return
    assert decode_packet(packet.encode()) == packet
    assert packet.mine
    assert packet.multiplier
    assert packet.encode()[4:] == data[4:24]


# What an input is made of: the high bits of an octet say what happens, the low ones to whom.
PACKET, TIME, PAUSE, SET, REMOVE, RESET, NAMED, ORPHAN = range(8)


def _histories() -> dict[str, bytes]:
    down, init = (Packet(state, 7, 0, 3, 100_000, 100_000).encode() for state in (State.DOWN, State.INIT))
    up = Packet(State.UP, 7, 0, 3, 100_000, 100_000, poll=True).encode()
    return {
        "up": pieces(
            PACKET << 4, down, TIME << 4, 10, NAMED << 4, init, TIME << 4, 200, NAMED << 4, up, TIME << 4, 255
        ),
        "late": pieces(NAMED << 4, init, PAUSE << 4, 250, NAMED << 4, up, TIME << 4, 100),
        "changes": pieces(NAMED << 4, init, SET << 4, 50, TIME << 4, 20, NAMED << 4, up, SET << 4, 1, REMOVE << 4, 0),
        "next-owner": pieces(NAMED << 4, init, ORPHAN << 4, 0, SET << 4, 9, TIME << 4, 90, RESET << 4, 0),
    }


@target("bfd-sessions", covers=("bfd.sessions:Sessions",), seeds=_histories, longest=2048)
def histories(data: bytes) -> None:
    """Whatever comes, we never send faster than GAP, hold no more than was asked for, and read what we send."""
    steps, made, now = Input(data), Sessions(Random(len(data)).random), 0.0
    sent: dict[int, float] = {}
    for number in range(2):
        made.set(number + 1, Place(PEERS[number], multihop=number == 1), FAST, now)
    for _ in range(200):
        if not steps:
            break
        kind, who = divmod(steps.byte(), 16)
        key = who % 3 + 1
        if kind in (PACKET, NAMED):
            octets = steps.piece()
            if kind == NAMED and key in made.members and len(octets) >= 24:
                octets = octets[:8] + made.members[key].session.mine.to_bytes(4, "big") + octets[12:]
            made.receive(octets, PEERS[who % 3], 255 - (who >> 3), now, multihop=bool(who & 1))
        elif kind in (TIME, PAUSE):
            span = steps.byte() / 100
            until = now + span
            while kind == TIME and made.deadline() < until:
                now = max(now, made.deadline())
                _send(made, now, sent)
            now = until
        elif kind == SET:
            interval = LEAST_INTERVAL * (1 + steps.byte())
            made.set(key, Place(PEERS[key - 1], multihop=key == 2), Timing(interval, interval, 1 + who), now)
        elif kind == REMOVE and key in made.members:
            made.remove(key, now)
        elif kind == ORPHAN:
            made.orphan()
        elif kind == RESET:
            made.forsake(now)
        _send(made, now, sent)
        assert len(made.members) + made.leaving <= 6
        for changed in made.take_changes():
            assert made.members[changed].session.state in State
    made.stop(now)
    for _ in range(100):
        now += 0.1
        _send(made, now, sent)
    assert made.leaving == 0
    assert not made.members
    assert made.expire(now + 9, now + 9) == []


def _send(made: Sessions, now: float, sent: dict[int, float]) -> None:
    for _, mine, octets in made.expire(now, now):
        packet = decode_packet(octets)
        assert packet.mine == mine
        assert packet.state is State.UP or packet.desired_tx >= 1_000_000
        assert now - sent.get(mine, -1.0) >= GAP * 0.999
        sent[mine] = now
