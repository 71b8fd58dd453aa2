"""BGP's messages, each decoder alone. A decoder raises nothing but RemoteError; what it gives can be sent."""

from __future__ import annotations

import ipaddress

from bgp.message import (
    AddPath,
    AsPath,
    AttributeDecoder,
    Attributes,
    Capabilities,
    Family,
    Framer,
    GracefulRestart,
    LocalError,
    LongLived,
    MessageType,
    Notification,
    Open,
    RefreshKind,
    RemoteError,
    Update,
    UpdateDecoder,
    decode_notification,
    decode_open,
    decode_route_refresh,
    encode_announcement,
    encode_end_of_rib,
    encode_route_refresh,
    encode_withdrawal,
    nlri,
)
from bgp.message.attributes import describe
from bgp.message.codes import EXTENDED_MESSAGE_SIZE, HEADER_SIZE, MAX_MESSAGE_SIZE
from bgp.message.framing import frame
from tests.fuzz.target import target

V4, V6 = Family.IPV4, Family.IPV6
HOP4, HOP6 = bytes((10, 0, 0, 1)), bytes((0x20, 1, 0xD, 0xB8)) + bytes(11) + b"\1"
PREFIXES4 = [b"\x18\x0a\x01\x02", b"\x20\x0a\x01\x02\x03", b"\0"]
PREFIXES6 = [b"\x30\x20\x01\x0d\xb8\x00\x01", b"\x40\xfc\0\0\0\0\0\0\1"]
PLAIN = Attributes(0, AsPath.sequence(65002), HOP4)
RICH = Attributes(
    origin=2,
    as_path=AsPath(((2, (65002, 4200000000)), (1, (65010, 65011)))),
    next_hop=HOP4,
    med=7,
    local_pref=200,
    atomic_aggregate=True,
    aggregator=(4200000001, bytes((10, 0, 0, 9))),
    communities=(0xFFFFFF01, 65000 << 16 | 120),
    originator_id=bytes((10, 0, 0, 7)),
    cluster_list=(bytes((10, 0, 0, 8)), bytes((10, 0, 0, 9))),
    large_communities=((65000, 1, 2),),
    others=((0xE0, 99, b"unknown"),),
)
LONG = PLAIN._replace(communities=tuple(range(1, 1000)))
LONGER = encode_announcement(
    V4, LONG, [b"\x20\x0a" + bytes(2) + bytes((n,)) for n in range(99)], as4=True, most=65535
)[0]
OPENS = {
    "plain": Open(65002, 90, bytes((10, 0, 0, 2)), Capabilities(as4=False, route_refresh=False)),
    "all": Open(
        4200000002,
        9,
        bytes((10, 0, 0, 2)),
        Capabilities(
            (V4, V6), True, True, GracefulRestart(120, True, ((V4, True), (V6, False))), others=((73, b"\4name"),)
        ),
    ),
    "several": Open(
        65001,
        9,
        bytes((10, 0, 0, 2)),
        Capabilities((V4, V6), add_path=((V4, AddPath(3)), (V6, AddPath(1))), extended_next_hop=True),
    ),
    "restarts": Open(
        65002,
        9,
        bytes((10, 0, 0, 2)),
        Capabilities(
            (V4, V6),
            graceful_restart=GracefulRestart(0, False, ((V4, True),), notification=True),
            extended_messages=True,
            enhanced_refresh=True,
            long_lived=LongLived(((V4, True, 86400), (V6, False, 0xFFFFFF))),
        ),
    ),
    "long": Open(
        65002, 9, bytes((10, 0, 0, 2)), Capabilities((V4, V6), others=((200, bytes(250)), (201, b"x" * 200)))
    ),
}


def body(message: bytes) -> bytes:
    return message[HEADER_SIZE:]


def error_of(error: RemoteError, *codes: int) -> tuple[int, int, bytes]:
    """The error, held to what a NOTIFICATION can carry."""
    assert error.code in codes
    notification = Notification.answering(error)
    ((kind, sent),) = Framer().receive(notification.encode())
    assert kind == MessageType.NOTIFICATION
    assert decode_notification(sent) == notification
    return error.code, error.subcode, error.data


# ------------------------------------------------------------------------------------------------- framing


def _cut(chunks: list[bytes], most: int) -> tuple[list[tuple[int, bytes]], tuple[int, int, bytes] | None, int]:
    framer, found = Framer(), []
    framer.most = most
    for chunk in chunks:
        try:
            found.extend(framer.receive(chunk))
        except RemoteError as error:
            return found, error_of(error, 1), 0
        assert len(framer._rest) < most
    return found, None, len(framer._rest)


def _framing_seeds() -> dict[str, bytes]:
    stream = OPENS["all"].encode() + frame(4, b"") + encode_end_of_rib(V6) + encode_route_refresh(V4)
    return {
        "stream": b"\x07" + stream,
        "long": b"\x3f" + encode_announcement(V4, LONG, PREFIXES4, as4=True)[0],
        "extended": b"\x7f" + LONGER,
        "extended-without": b"\x3f" + LONGER,
        "bad-marker": b"\x05" + frame(4, b"") + b"\0" * 19,
        "bad-length": b"\x05" + b"\xff" * 16 + b"\0\x12\4",
    }


@target("bgp-framing", covers=("bgp.message.framing:Framer",), seeds=_framing_seeds, longest=9000)
def framing(data: bytes) -> None:
    """However the stream is cut, the same messages and the same error; one incomplete message is kept at most."""
    size, stream = data[0] % 64 + 1 if data else 1, data[1:]
    most = EXTENDED_MESSAGE_SIZE if data and data[0] & 0x40 else MAX_MESSAGE_SIZE
    whole = _cut([stream], most)
    assert whole == _cut([stream[at : at + size] for at in range(0, len(stream), size)] or [b""], most)
    messages, error, rest = whole
    again = b"".join(frame(kind, body, most) for kind, body in messages)
    assert stream.startswith(again)
    assert error is not None or len(again) + rest == len(stream)


# ---------------------------------------------------------------------------------------------------- OPEN


@target(
    "bgp-open",
    covers=("bgp.message.open:decode_open", "bgp.message.capabilities:decode_capabilities"),
    seeds=lambda: {name: body(message.encode()) for name, message in OPENS.items()},
    longest=1200,
)
def open_(data: bytes) -> None:
    """What is read can be sent, and is read the same again; what is sent are capabilities that came."""
    if not 29 - HEADER_SIZE <= len(data) <= MAX_MESSAGE_SIZE - HEADER_SIZE:
        return  # the framer passes no such OPEN on
    try:
        found = decode_open(data)
    except RemoteError as error:
        error_of(error, 2)
        return
    try:
        again = found.encode()
    except LocalError:
        return  # capabilities that came in several parameters may not fit into one
    assert decode_open(body(again)) == found
    came, sent = _capabilities(data), _capabilities(body(again))
    restarts = [int.from_bytes(value[:2], "big") & 0xCFFF for code, value in (*came, *sent) if code == 64]
    assert not restarts or restarts[0] == restarts[-1]
    if all(code != 1 for code, _ in came):
        came.append((1, V4.wire[:2] + b"\0" + V4.wire[2:]))  # RFC 4760: without the capability it is IPv4
    assert {item for item in sent if item[0] not in (5, 64, 69, 71)} <= set(came)
    assert _entries(sent, 5, 6) <= _entries(came, 5, 6)
    before, after = (
        {part[:3] + bytes((part[3] & 0x80,)) + part[4:] for part in _entries(items, 71, 7)} for items in (came, sent)
    )
    assert after <= before
    assert _entries(sent, 69, 4) <= _entries(came, 69, 4)


def _entries(items: list[tuple[int, bytes]], wanted: int, size: int) -> set[bytes]:
    """All that the capabilities of one code list: one may be sent for several, without what is not known."""
    return {value[at : at + size] for code, value in items if code == wanted for at in range(0, len(value), size)}


def _capabilities(message: bytes) -> list[tuple[int, bytes]]:
    """Code and value of each, by the letter of RFC 5492."""
    found, parameters, octets = [], message[10:], 1
    if message[9] and parameters[0] == 255:  # RFC 9072
        parameters, octets = parameters[3:], 2
    while parameters:
        start = 1 + octets
        size = int.from_bytes(parameters[1:start], "big")
        field, parameters = parameters[start : start + size], parameters[start + size :]
        while field:
            code, value = field[0], field[2 : 2 + field[1]]
            found.append((code, value[:2] + b"\0" + value[3:] if code == 1 else value))  # an octet is reserved
            field = field[2 + field[1] :]
    return found


# -------------------------------------------------------------------------------------------------- UPDATE


def check_update(update: Update) -> None:
    """What holds for every UPDATE that is passed on."""
    for family, prefixes in (*update.withdrawn, *((family, some) for family, some, _ in update.announced)):
        assert len({len(nlri.cut(family, path)[1]) for path in prefixes}) < 2
        for path in prefixes:
            assert nlri.parse(nlri.text(family, path)) == (family, nlri.prefix_of(family, path))
            ipaddress.ip_network(nlri.text(family, path))  # no bits behind the length
    for family, _, attributes in update.announced:
        assert len(attributes.next_hop) in ((4, 16) if family is V4 else (16,))
        describe(attributes)
    for fault in update.faults:
        assert str(fault)


def _update_seeds() -> dict[str, bytes]:
    six = PLAIN._replace(next_hop=HOP6)
    seeds = {
        "plain": encode_announcement(V4, PLAIN, PREFIXES4, as4=True),
        "rich": encode_announcement(V4, RICH, PREFIXES4, as4=True),
        "zeros": encode_announcement(V4, PLAIN._replace(med=0, local_pref=0), PREFIXES4, as4=True),
        "rich-as2": encode_announcement(V4, RICH, PREFIXES4, as4=False),
        "ipv6": encode_announcement(
            V6, RICH._replace(next_hop=HOP6 + b"\xfe\x80" + bytes(13) + b"\1"), PREFIXES6, as4=True
        ),
        "long": encode_announcement(V4, LONG, PREFIXES4, as4=True),
        "withdraw": encode_withdrawal(V4, PREFIXES4),
        "withdraw6": encode_withdrawal(V6, PREFIXES6),
        "end-of-rib": [encode_end_of_rib(V4)],
        "end-of-rib6": [encode_end_of_rib(V6)],
    }
    paths4, paths6 = ([prefix + bytes((0, 0, 0, 7)) for prefix in some] for some in (PREFIXES4, PREFIXES6))
    several = {
        "several": encode_announcement(V4, PLAIN, paths4, as4=True),
        "several6": encode_announcement(V6, PLAIN._replace(next_hop=HOP6), paths6, as4=True),
        "several-over6": encode_announcement(V4, PLAIN._replace(next_hop=HOP6), paths4, as4=True),
        "several-withdraw": encode_withdrawal(V4, paths4),
        "several-withdraw6": encode_withdrawal(V6, paths6),
    }
    over6 = body(encode_announcement(V4, PLAIN._replace(next_hop=HOP6), PREFIXES4, as4=True)[0])
    made = {"over6": b"\x20" + over6} | {name: b"\x30" + body(messages[0]) for name, messages in several.items()}
    made |= {name: (b"\2" if "as2" in name else b"\0") + body(messages[0]) for name, messages in seeds.items()}
    reach, unreach = (
        body(encode_announcement(V6, six, PREFIXES6, as4=True)[0]),
        body(encode_withdrawal(V6, PREFIXES6)[0]),
    )
    block = unreach[4:] + reach[4:] + PLAIN_BLOCK
    both = b"\0\4\x18\x0a\x01\x03" + len(block).to_bytes(2, "big") + block + b"\x18\x0a\x01\x02"
    made["spare-bits"] = b"\0" + both[:-1] + b"\xff\x15\x0a\xff\xff"
    return {**made, "both": b"\0" + both, "external": b"\1" + both, "ipv6-only": b"\4" + both}


PLAIN_BLOCK = b"\x40\x03\x04" + HOP4


@target(
    "bgp-update",
    covers=(
        "bgp.message.update:UpdateDecoder",
        "bgp.message.attribute_decoding:AttributeDecoder",
        "bgp.message.aspath:decode_path",
    ),
    seeds=_update_seeds,
)
def update(data: bytes) -> None:
    """RFC 7606: routes with whole attributes, or withdrawn, or the session ends; what is remembered changes nothing.

    What is announced can be announced again, and then reads the same and without a fault.
    """
    if len(data) < 5 or len(data) - 1 > MAX_MESSAGE_SIZE - HEADER_SIZE:
        return
    flags, message = data[0], data[1:]
    families = (V6,) if flags & 4 else (V4,) if flags & 8 else (V4, V6)
    identified = (V4, V6) if flags & 16 else ()

    def fresh() -> UpdateDecoder:
        attributes = AttributeDecoder(as4=not flags & 2, internal=not flags & 1)
        return UpdateDecoder(families, attributes, identified=identified, extended=bool(flags & 32))

    decoder = fresh()
    found = _decoded(decoder, message)
    assert _decoded(decoder, message) == found
    before, header, behind = message.partition(PLAIN_BLOCK[:3])
    if header and len(behind) >= 4:  # another next hop, a bad one too
        for other in (bytes((172, 16, 0, 9)), behind[1:4] + behind[:1]):
            sibling = before + header + other + behind[4:]
            assert _decoded(decoder, sibling) == _decoded(fresh(), sibling)
    if not isinstance(found, Update):
        return
    check_update(found)
    if not flags & 32:
        assert all(family is V6 or len(attributes.next_hop) == 4 for family, _, attributes in found.announced)
    routes = sum(len(part[1]) for part in (*found.withdrawn, *found.announced))
    assert routes <= len(message)
    assert {part[0] for part in (*found.withdrawn, *found.announced)} <= set(families)
    attributes_too = AttributeDecoder(as4=True, internal=True)
    clean = UpdateDecoder((V4, V6), attributes_too, identified=identified, extended=True)
    for family, prefixes in found.withdrawn:
        sent = [clean.decode(body(one)) for one in encode_withdrawal(family, prefixes)]
        assert [prefix for one in sent for _, some in one.withdrawn for prefix in some] == prefixes
    for family, prefixes, attributes in found.announced:
        try:
            messages = encode_announcement(family, attributes, prefixes, as4=True)
        except LocalError:
            continue  # numbers of four octets may need the room of a prefix
        sent = [clean.decode(body(one)) for one in messages]
        assert not any(one.faults or one.withdrawn for one in sent)
        assert [prefix for one in sent for _, some, _ in one.announced for prefix in some] == prefixes
        assert all(part == attributes for one in sent for _, _, part in one.announced)


def _decoded(decoder: UpdateDecoder, message: bytes) -> Update | tuple[int, int, bytes]:
    try:
        return decoder.decode(message)
    except RemoteError as error:
        return error_of(error, 3)


# ------------------------------------------------------------------------- NOTIFICATION and ROUTE-REFRESH


@target(
    "bgp-notification",
    covers=("bgp.message.notification:decode_notification",),
    seeds=lambda: {
        "shutdown": body(Notification.shutdown("maintenance until 22:00, ask Ü").encode()),
        "prefixes": body(Notification.too_many_prefixes(V6, 1000).encode()),
        "hold": b"\4\0",
        "hard": body(Notification.shutdown("gone for good").hard().encode()),
        "harder": body(Notification.shutdown("gone").hard().hard().encode()),
    },
    longest=300,
)
def notification(data: bytes) -> None:
    """Anything at all is one, can be shown on a terminal, and sent on."""
    if not 2 <= len(data) <= MAX_MESSAGE_SIZE - HEADER_SIZE:
        return
    found = decode_notification(data)
    assert body(found.encode()) == data
    assert str(found).isprintable()
    assert found.text in str(found)
    assert found.hard().inside == found


@target(
    "bgp-route-refresh",
    covers=("bgp.message.refresh:decode_route_refresh",),
    seeds=lambda: {
        **{family.name.lower(): b"\0" + body(encode_route_refresh(family)) for family in Family},
        "begins": b"\1" + body(encode_route_refresh(V6, RefreshKind.BEGINS)),
        "long": b"\1" + body(encode_route_refresh(V4, RefreshKind.ENDS)) + b"more",
    },
    longest=12,
)
def route_refresh(data: bytes) -> None:
    """What is known is read as it is sent; another length is an error, with the whole message where RFC 7313 says."""
    enhanced, data = bool(data and data[0] & 1), data[1:]
    try:
        found = decode_route_refresh(data, enhanced=enhanced)
    except RemoteError as error:
        code, _, content = error_of(error, 1, 7)
        assert len(data) != 4 and (code == 1 or (enhanced and content.endswith(data)))
        return
    known = {body(encode_route_refresh(family, kind)) for family in Family for kind in RefreshKind}
    assert (found is not None) == (data in known)
    assert found is None or body(encode_route_refresh(*found)) == data


# ------------------------------------------------------------------------------------------ prefixes as text


@target(
    "bgp-prefix-text",
    covers=("bgp.message.nlri:parse", "bgp.message.nlri:parse_address"),
    seeds=lambda: {"four": b"10.1.2.0/24", "six": b"2001:db8::/32", "mapped": b"::ffff:10.0.0.1/128"},
    longest=64,
)
def prefix_text(data: bytes) -> None:
    """A prefix that an operator wrote, or a ValueError that says so."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        family, prefix = nlri.parse(text)
    except ValueError as error:
        assert str(error)
        return
    assert nlri.parse(nlri.text(family, prefix)) == (family, prefix)
    assert nlri.split(family, prefix) == [prefix]
