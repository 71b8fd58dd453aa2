"""BGP's machines under octets and events in any order: a session, and a speaker with a hostile peer beside good ones.

Rule: whatever one peer sends, what we send is well-formed, and the others lose nothing and learn nothing false.
"""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

from bgp import metrics, views
from bgp.connection import Close, Connect, Direction, Established, Send, Settings
from bgp.export import Several
from bgp.fsm import State
from bgp.message import (
    KEEPALIVE,
    AddPath,
    AttributeDecoder,
    Attributes,
    Capabilities,
    Family,
    Framer,
    GracefulRestart,
    LongLived,
    MessageType,
    Notification,
    Open,
    RefreshKind,
    Update,
    UpdateDecoder,
    decode_notification,
    decode_open,
    decode_route_refresh,
    encode_announcement,
    encode_end_of_rib,
    encode_route_refresh,
    encode_withdrawal,
)
from bgp.message.codes import EXTENDED_MESSAGE_SIZE, MAX_MESSAGE_SIZE
from bgp.message.framing import frame
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import EVERYTHING
from bgp.session import Session
from bgp.speaker import Speaker
from tests.fuzz.target import Input, pieces, target
from tests.fuzz.targets.bgp_messages import (
    HOP6,
    LONG,
    OPENS,
    PLAIN,
    PREFIXES4,
    PREFIXES6,
    RICH,
    V4,
    V6,
    body,
    check_update,
)

OUT, IN = Direction.OUTGOING, Direction.INCOMING
OURS, OURS6 = bytes((192, 0, 2, 1)), bytes((0xFD, 0)) + bytes(13) + b"\1"
CAPABILITIES = Capabilities((V4, V6), graceful_restart=GracefulRestart(120))
BOTH = AddPath.RECEIVE | AddPath.SEND
# Several routes to a prefix, and next hops of IPv6 for IPv4.
MORE = Capabilities((V4, V6), add_path=((V4, BOTH), (V6, BOTH)), extended_next_hop=True)

# What an input of a session is made of, one octet each; 0x80 added: on the incoming connection.
RAW, WHOLE, CONNECTED, ACCEPTED, FAILED, WAIT, OPERATOR = range(7)


def well_formed(data: bytes, *, several: bool = False) -> list[Update]:
    """The messages that we send, read as a peer would: none may be wrong. `several`: with all that MORE says."""
    framer, updates = Framer(), []
    attributes = AttributeDecoder(as4=True, internal=True)
    identified = (V4, V6) if several else ()
    decoder = UpdateDecoder((V4, V6), attributes, identified=identified, extended=several)
    for kind, message in framer.receive(data):
        if kind == MessageType.OPEN:
            decode_open(message)
        elif kind == MessageType.UPDATE:
            updates.append(decoder.decode(message))
        elif kind == MessageType.NOTIFICATION:
            decode_notification(message)
        elif kind == MessageType.ROUTE_REFRESH:
            assert decode_route_refresh(message) is not None
    assert not framer._rest
    return updates


def _session_seeds() -> dict[str, bytes]:
    hello = OPENS["all"].encode() + KEEPALIVE
    update = encode_announcement(V4, RICH, PREFIXES4, as4=True)[0] + encode_withdrawal(V6, PREFIXES6)[0]
    return {
        "up": pieces(0, CONNECTED, RAW, hello, RAW, update, RAW, encode_route_refresh(V6), WAIT, 200, WAIT, 200),
        "framed": pieces(0, CONNECTED, WHOLE, 1, body(OPENS["plain"].encode()), WHOLE, 4, b"", WHOLE, 2, bytes(4)),
        "collision": pieces(0, CONNECTED, ACCEPTED, RAW, hello, RAW | 0x80, hello, FAILED, WAIT, 255),
        "both-open": pieces(0, CONNECTED, ACCEPTED, RAW | 0x80, hello[:-19], RAW, hello[:-19], RAW, KEEPALIVE),
        "accepted": pieces(2, ACCEPTED, RAW | 0x80, hello, RAW | 0x80, update, OPERATOR, 1, WAIT, 90, OPERATOR, 0),
        "early": pieces(0, CONNECTED, RAW, update, WAIT, 90, CONNECTED, RAW, KEEPALIVE),
    }


@target("bgp-session", covers=("bgp.session:Session.receive",), seeds=_session_seeds)
def session(data: bytes) -> None:
    """Octets, time, connections and the operator in any order.

    Nothing is raised; what is sent is well-formed; nothing is sent on a connection that we have closed; a session is
    Established exactly when something was agreed on; of two connections one lives after the OPEN on both;
    no more than one incomplete message is kept.
    """
    given = Input(data)
    flags = given.byte()
    offered = replace(CAPABILITIES, extended_messages=bool(flags & 4))
    settings = Settings(65001, OURS, 65002 if flags & 1 else None, offered, 9, 5.0, bool(flags & 2), 30.0)
    found, now, closed = Session(settings, Random(0).random), 0.0, {OUT: True, IN: True}
    attempt = not settings.passive  # one to connect is under way
    found.start(now)
    found.take()
    while given:
        step = given.byte()
        direction = IN if step & 0x80 else OUT
        match step & 0x7F:
            case 0:
                found.receive(direction, given.piece(), now)
            case 1:
                kind, content = given.byte(), given.piece()[: EXTENDED_MESSAGE_SIZE - 19]
                found.receive(direction, frame(kind, content, EXTENDED_MESSAGE_SIZE), now)
            case 2:
                if attempt:
                    attempt, closed[OUT] = False, False
                    found.connected(now)
            case 3:
                if found.accepted(now):
                    closed[IN] = False
            case 4:
                closed[direction] = True
                attempt &= direction is IN
                found.failed(direction, now)
            case 5:
                now += given.byte() / 10
                found.expire(now)
            case 6:
                (found.stop, found.start, found.reset)[given.byte() % 3](now)
            case _:
                continue
        for output in found.take():
            if isinstance(output, Send):
                assert not closed[output.direction]
                well_formed(output.data)
            elif isinstance(output, Close):
                closed[output.direction] = True
                attempt &= output.direction is IN
            elif isinstance(output, Connect):
                attempt, closed[OUT] = True, True
            elif isinstance(output, Update):
                check_update(output)
        assert sum(connection.state >= State.OPEN_CONFIRM for connection in found._connections.values()) < 2
        assert (found.negotiated is not None) == (found.state is State.ESTABLISHED)
        deadline = found.deadline()
        assert deadline is None or deadline > now or step & 0x7F != WAIT
        for connection in found._connections.values():
            assert len(connection._framer._rest) < connection._framer.most
            assert connection._framer.most == MAX_MESSAGE_SIZE or connection.state >= State.OPEN_SENT


# ------------------------------------------------------------------------------------------------- the speaker


class Watcher:
    """A well-behaved peer: keeps what it is told, as routes by family."""

    def __init__(self) -> None:
        self.routes: dict[Family, dict[bytes, Attributes]] = {V4: {}, V6: {}}

    def hear(self, update: Update) -> None:
        assert not update.faults
        for family, prefixes in update.withdrawn:
            for prefix in prefixes:
                self.routes[family].pop(prefix, None)
        for family, prefixes, attributes in update.announced:
            self.routes[family].update(dict.fromkeys(prefixes, attributes))


# The peers: name, AS, whether we reflect for it. The first one is hostile, and of our AS if the input says so.
HOSTILE = "hostile"
WATCHERS = {"client": 65001, "neighbour": 65003}


def _bring_up(speaker: Speaker, name: str, asn: int, octet: int, offered: Capabilities) -> None:
    """Without a hold time: whoever is quiet stays."""
    speaker.connected(name, 0.0)
    hello = Open(asn, 0, bytes((10, 0, 1, octet)), offered).encode()
    speaker.receive(name, OUT, hello + KEEPALIVE, 0.0)


def _speaker_seeds() -> dict[str, bytes]:
    announced = encode_announcement(V4, PLAIN, PREFIXES4, as4=True)[0]
    rich = encode_announcement(V4, RICH, PREFIXES4, as4=True)[0]
    six = encode_announcement(V6, RICH._replace(next_hop=HOP6), PREFIXES6, as4=True)[0]
    # So long that what is added on the way does not fit any more.
    brim = encode_announcement(V4, LONG._replace(communities=tuple(range(1, 1008))), PREFIXES4[:1], as4=True)[0]
    wire = {
        "plain": (announced, encode_withdrawal(V4, PREFIXES4)[0]),
        "rich": (rich, announced, encode_route_refresh(V4), encode_end_of_rib(V4)),
        "six": (six, rich, encode_withdrawal(V6, PREFIXES6)[0]),
        "long": (encode_announcement(V4, LONG, PREFIXES4, as4=True)[0], announced),
        "brim": (announced, brim, announced),
        "restart": (announced, OPENS["all"].encode()),
    }
    kept = encode_announcement(V4, RICH._replace(communities=(0xFFFF0006,)), PREFIXES4[:1], as4=True)[0]
    not_kept = encode_announcement(V4, PLAIN._replace(communities=(0xFFFF0007,)), PREFIXES4[1:], as4=True)[0]
    begins, ends = (encode_route_refresh(V4, kind) for kind in (RefreshKind.BEGINS, RefreshKind.ENDS))
    restarting = {
        "away": (announced, six, not_kept, kept),
        "again": (announced, encode_end_of_rib(V4), begins, kept, ends, encode_route_refresh(V6)),
        "broken": (announced, encode_end_of_rib(V4), begins, Notification(6, 4).encode()),
        "for-good": (announced, Notification.shutdown("gone").hard().encode()),
    }
    paths = [prefix + bytes((0, 0, 0, number)) for prefix in PREFIXES4 for number in (1, 2)]
    over6 = PLAIN._replace(next_hop=HOP6)
    several = {
        "several": (
            encode_announcement(V4, PLAIN, paths, as4=True)[0],
            encode_announcement(V4, over6, paths[:3], as4=True)[0],
            encode_withdrawal(V4, paths[1:4])[0],
        ),
        "several6": (
            encode_announcement(V6, over6, [PREFIXES6[0] + bytes((0, 0, 0, n)) for n in (1, 2)], as4=True)[0],
            encode_route_refresh(V6),
            encode_withdrawal(V6, [PREFIXES6[0] + bytes((0, 0, 0, 1))])[0],
        ),
    }
    return {
        f"{name}-{flags}": bytes((flags,)) + b"".join(pieces(message[18], body(message)) for message in messages)
        for kinds, both in ((wire, (0, 1)), (several, (8, 13)), (restarting, (32, 33, 96)))
        for name, messages in kinds.items()
        for flags in both
    }


@target("bgp-speaker", covers=("bgp.speaker:Speaker.receive",), seeds=_speaker_seeds, longest=9000)
def speaker(data: bytes) -> None:
    """A hostile peer, a client that we reflect to, and a neighbour in another AS.

    What the two are told is well-formed and is what Adj-RIB-Out says; their sessions stand; when the hostile one goes
    away, nothing of it is left anywhere, in the end if it may restart. What an operator is shown of it is JSON.
    """
    given = Input(data)
    flags = given.byte()
    asn = 65001 if flags & 1 else 65002
    config = SpeakerConfig(65001, OURS, (V4, V6), ((V4, OURS), (V6, OURS6)), restart_time=60 if flags & 32 else 0)
    restarts = Capabilities(
        (V4, V6),
        graceful_restart=GracefulRestart(60, preserved=((V4, True), (V6, True)), notification=True),
        extended_messages=True,
        enhanced_refresh=True,
        long_lived=LongLived(((V4, True, 3600),)) if flags & 64 else None,
    )
    found = Speaker(config, Random(0).random)
    limit = 8 if flags & 2 else None
    # The hostile one may give several routes to a prefix, and the client takes them: each, or one a next hop.
    several = bool(flags & 8)
    wanted = Several(by_next_hop=bool(flags & 16)) if several else None
    more: dict[str, Any] = {"several_in": several, "extended_next_hop": several}
    hostile = PeerConfig(
        HOSTILE, bytes((10, 0, 1, 1)), asn, client=bool(flags & 4), most_prefixes=limit, several_out=None, **more
    )
    found.add_peer(hostile, 0.0)
    for octet, (name, number) in enumerate(WATCHERS.items(), 2):
        config = PeerConfig(name, bytes((10, 0, 1, octet)), number, export_policy=EVERYTHING)
        if name == "client":
            config = replace(config, client=True, several_out=wanted, **more)
        found.add_peer(config, 0.0)
    told = {name: Watcher() for name in WATCHERS}
    found.take(0.0)
    for octet, (name, number) in enumerate({HOSTILE: asn, **WATCHERS}.items(), 1):
        restarting = name == HOSTILE and flags & 32
        offered = restarts if restarting else Capabilities((V4, V6))
        if several and name in (HOSTILE, "client"):
            offered = replace(offered, add_path=MORE.add_path, extended_next_hop=MORE.extended_next_hop)
        _bring_up(found, name, number, octet, offered)
    assert sum(isinstance(output, Established) for _, output in found.take(0.0)) == 3
    while given:
        kind, content = given.byte(), given.piece()
        if kind == 0:
            found.receive(HOSTILE, OUT, content, 1.0)
        else:
            most = EXTENDED_MESSAGE_SIZE
            found.receive(HOSTILE, OUT, frame(kind, content[: most - 19], most), 1.0)
        _settle(found, told)
    json.dumps(
        [views.summary(found), *views.peers(found, 1.0), *views.routes(found), *views.log(found, HOSTILE, 1.0)]
    )
    json.dumps([*views.received(found, HOSTILE), *views.advertised(found, "client"), metrics.text(found, 1.0)])
    found.failed(HOSTILE, OUT, 2.0)
    _settle(found, told)
    for now in (100.0, 5000.0, 200_000.0) if flags & 32 else ():
        found.expire(now)
        _settle(found, told)
    assert all(not routes for watcher in told.values() for routes in watcher.routes.values())
    assert not any(rib.received(found.peers[HOSTILE].source) for rib in found.ribs.values())


def _settle(found: Speaker, told: dict[str, Watcher]) -> None:
    outputs: list[tuple[str, Any]] = found.take(1.0)
    for name, output in outputs:
        if isinstance(output, Send):
            negotiated = found.peers[name].session.negotiated
            for update in well_formed(output.data, several=bool(negotiated and negotiated.several_out)):
                if name in told:
                    told[name].hear(update)
        assert name not in told or not isinstance(output, Close)
    for name, watcher in told.items():
        peer = found.peers[name]
        assert peer.session.state is State.ESTABLISHED
        group = found.advertising.group_of(peer.source)
        assert group is not None
        for family, routes in watcher.routes.items():
            assert routes == dict(group.advertised(family, peer.source))
