"""BGP messages: what is encoded is decoded again, scapy reads it the same way, and no input breaks a decoder."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.bgp import (
    BGPCapFourBytesASN,
    BGPCapGeneric,
    BGPCapMultiprotocol,
    BGPHeader,
    BGPOpen,
    BGPOptParam,
    BGPUpdate,
    bgp_module_conf,
)

from bgp.message import (
    AddPath,
    AsPath,
    AttributeDecoder,
    Attributes,
    Capabilities,
    Family,
    Framer,
    GracefulRestart,
    LongLived,
    Notification,
    Open,
    RemoteError,
    Update,
    UpdateDecoder,
    decode_notification,
    decode_open,
    decode_route_refresh,
    encode_announcement,
    encode_withdrawal,
    nlri,
)
from bgp.message.aspath import AS_SEQUENCE, AS_SET, encode_path
from bgp.message.attributes import attribute

words = st.integers(0, 2**32 - 1)
numbers = st.integers(1, 2**32 - 1)
hosts = st.integers(0x01000000, 0x7EFFFFFF).map(lambda value: value.to_bytes(4, "big"))
octets = st.binary(min_size=4, max_size=4)
segments = st.tuples(st.sampled_from((AS_SET, AS_SEQUENCE)), st.lists(numbers, min_size=1, max_size=5).map(tuple))
paths = st.lists(segments, max_size=3).map(AsPath)
others = st.lists(
    st.tuples(st.just(0xE0), st.integers(33, 255), st.binary(max_size=300)),
    max_size=2,
    unique_by=lambda item: item[1],
).map(lambda items: tuple(sorted(items, key=lambda item: item[1])))


def partial_where_present(attributes: Attributes) -> Attributes:
    """Of AGGREGATOR, COMMUNITIES and LARGE_COMMUNITIES, the ones that are there."""
    there = {7: attributes.aggregator, 8: attributes.communities, 32: attributes.large_communities}
    return attributes._replace(partial=attributes.partial & sum(1 << kind for kind, value in there.items() if value))


attributes_values = st.builds(
    Attributes,
    origin=st.integers(0, 2),
    as_path=paths,
    next_hop=hosts,
    med=st.none() | words,
    local_pref=st.none() | words,
    atomic_aggregate=st.booleans(),
    aggregator=st.none() | st.tuples(numbers, octets),
    communities=st.lists(words, max_size=80).map(tuple),
    originator_id=st.just(b"") | octets,
    cluster_list=st.lists(octets, max_size=3).map(tuple),
    large_communities=st.lists(st.tuples(words, words, words), max_size=3, unique=True).map(tuple),
    others=others,
    partial=st.just(0) | st.integers(0, 2**33 - 1),
).map(partial_where_present)


def prefix(family: Family) -> Any:
    bits = 32 if family is Family.IPV4 else 128

    def wire(length: int, value: int) -> bytes:
        network = (value >> (bits - length)) << (bits - length) if length else 0
        return bytes((length,)) + network.to_bytes(bits // 8, "big")[: (length + 7) // 8]

    return st.builds(wire, st.integers(0, bits), st.integers(0, 2**bits - 1))


def path(family: Family) -> Any:
    return st.builds(bytes.__add__, prefix(family), octets)


def decode(
    messages: list[bytes], *, as4: bool = True, identified: bool = False, extended: bool = False
) -> list[Update]:
    attributes = AttributeDecoder(as4=as4, internal=True)
    decoder = UpdateDecoder(Family, attributes, identified=tuple(Family) if identified else (), extended=extended)
    updates = []
    for kind, body in Framer().receive(b"".join(messages)):
        assert kind == 2
        updates.append(decoder.decode(body))
        assert decoder.decode(body) == updates[-1]  # the second time from memory
    return updates


@settings(deadline=None)
@given(attributes_values, st.lists(prefix(Family.IPV4), min_size=1, max_size=20))
def test_announcements_of_ipv4(attributes: Attributes, prefixes: list[bytes]) -> None:
    updates = decode(encode_announcement(Family.IPV4, attributes, prefixes, as4=True))
    assert all(update.faults == () and update.withdrawn == () for update in updates)
    assert [p for update in updates for _, some, _ in update.announced for p in some] == prefixes
    assert {got for update in updates for _, _, got in update.announced} == {attributes}


@settings(deadline=None)
@given(attributes_values, st.binary(min_size=16, max_size=16), st.lists(prefix(Family.IPV6), min_size=1, max_size=20))
def test_announcements_of_ipv6(attributes: Attributes, hop: bytes, prefixes: list[bytes]) -> None:
    attributes = attributes._replace(next_hop=b"\x20" + hop[1:])
    updates = decode(encode_announcement(Family.IPV6, attributes, prefixes, as4=True))
    assert [p for update in updates for _, some, _ in update.announced for p in some] == prefixes
    assert {got for update in updates for _, _, got in update.announced} == {attributes}


@settings(deadline=None)
@given(st.sampled_from(Family), st.booleans(), attributes_values, st.binary(min_size=15, max_size=15), st.data())
def test_paths_with_identifiers(
    family: Family, extended: bool, attributes: Attributes, hop: bytes, data: st.DataObject
) -> None:
    over_ipv6 = extended or family is Family.IPV6
    attributes = attributes._replace(next_hop=b"\x20" + hop) if over_ipv6 else attributes
    told = data.draw(st.lists(path(family), min_size=1, max_size=400))
    messages = encode_announcement(family, attributes, told, as4=True)
    updates = decode(messages, identified=True, extended=extended)
    assert [p for update in updates for _, some, _ in update.announced for p in some] == told
    assert {got for update in updates for _, _, got in update.announced} == {attributes}
    updates = decode(encode_withdrawal(family, told), identified=True)
    assert [p for update in updates for _, some in update.withdrawn for p in some] == told
    for each in told:
        wire, identifier = nlri.cut(family, each)
        assert (wire + identifier, len(identifier)) == (each, 4)
        assert nlri.text(family, each) == nlri.text(family, wire)
        assert nlri.prefix_of(family, each) == nlri.prefix_of(family, wire) == wire


@settings(deadline=None)
@given(
    attributes_values, st.binary(min_size=15, max_size=15), st.booleans(), st.lists(prefix(Family.IPV4), min_size=1)
)
def test_ipv4_with_a_next_hop_of_ipv6(
    attributes: Attributes, hop: bytes, link_local: bool, prefixes: list[bytes]
) -> None:
    next_hop = b"\x20" + hop + (b"\xfe\x80" + bytes(13) + b"\1" if link_local else b"")
    attributes = attributes._replace(next_hop=next_hop)
    messages = encode_announcement(Family.IPV4, attributes, prefixes, as4=True)
    updates = decode(messages, extended=True)
    assert [p for update in updates for _, some, _ in update.announced for p in some] == prefixes
    assert {got for update in updates for _, _, got in update.announced} == {
        attributes._replace(next_hop=next_hop[:16])
    }
    for message in messages:  # for who has not agreed to it, the attribute is wrong
        with pytest.raises(RemoteError):
            decode([message])


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=20), st.none() | st.tuples(numbers, octets))
def test_a_path_survives_a_session_of_two_octets(path: list[int], aggregator: tuple[int, bytes] | None) -> None:
    attributes = Attributes(0, AsPath.sequence(*path), b"\x0a\0\0\1", aggregator=aggregator)
    (update,) = decode(encode_announcement(Family.IPV4, attributes, [b"\0"], as4=False), as4=False)
    ((_, _, got),) = update.announced
    assert got == attributes


@settings(deadline=None)
@given(
    attributes_values,
    st.lists(octets, min_size=1, max_size=4),
    st.none() | st.tuples(st.integers(0, 400), st.integers(0, 255)),
)
def test_what_is_remembered_changes_nothing(
    attributes: Attributes, hops: list[bytes], damage: tuple[int, int] | None
) -> None:
    """Routes that differ in their next hop, as those of a mesh do, whole or damaged in the same place."""
    known = UpdateDecoder(Family, AttributeDecoder(as4=True, internal=True))

    def read(decoder: UpdateDecoder, body: bytes) -> object:
        try:
            return decoder.decode(body)
        except RemoteError as error:
            return error.code, error.subcode, error.data

    for hop in (attributes.next_hop, *hops, attributes.next_hop):
        (message,) = encode_announcement(Family.IPV4, attributes._replace(next_hop=hop), [b"\x08\x0a"], as4=True)
        body = bytearray(message[19:])
        if damage and damage[0] < len(body):
            body[damage[0]] = damage[1]
        one = bytes(body)
        assert read(known, one) == read(UpdateDecoder(Family, AttributeDecoder(as4=True, internal=True)), one)


@settings(deadline=None)
@given(st.sampled_from(Family), st.data())
def test_withdrawals(family: Family, data: st.DataObject) -> None:
    prefixes = data.draw(st.lists(prefix(family), min_size=1, max_size=600))
    updates = decode(encode_withdrawal(family, prefixes))
    assert [p for update in updates for _, some in update.withdrawn for p in some] == prefixes


@settings(deadline=None)
@given(st.sampled_from(Family), st.data())
def test_prefixes_as_text(family: Family, data: st.DataObject) -> None:
    wire = data.draw(prefix(family))
    text = nlri.text(family, wire)
    network = ipaddress.ip_network(text)
    assert nlri.parse(text) == (family, wire)
    assert (network.network_address.packed, network.prefixlen) == (nlri.address(family, wire), wire[0])


capabilities = st.builds(
    Capabilities,
    families=st.lists(st.sampled_from(Family), min_size=1, unique=True).map(tuple),
    as4=st.just(True),
    route_refresh=st.booleans(),
    graceful_restart=st.none()
    | st.builds(
        GracefulRestart,
        st.integers(0, 4095),
        st.booleans(),
        st.lists(st.tuples(st.sampled_from(Family), st.booleans()), max_size=2).map(tuple),
        st.booleans(),
    ),
    add_path=st.lists(
        st.tuples(st.sampled_from(Family), st.integers(1, 3).map(AddPath)), max_size=2, unique_by=lambda item: item[0]
    ).map(tuple),
    extended_next_hop=st.booleans(),
    extended_messages=st.booleans(),
    enhanced_refresh=st.booleans(),
    long_lived=st.none()
    | st.builds(
        LongLived,
        st.lists(st.tuples(st.sampled_from(Family), st.booleans(), st.integers(0, 0xFFFFFF)), max_size=2).map(tuple),
    ),
    others=st.lists(st.tuples(st.integers(128, 255), st.binary(max_size=200)), max_size=3, unique=True).map(tuple),
)
opens = st.builds(
    Open, numbers, st.just(0) | st.integers(3, 65535), octets.filter(lambda value: value != bytes(4)), capabilities
)


@settings(deadline=None)
@given(opens)
def test_open(message: Open) -> None:
    ((_, body),) = Framer().receive(message.encode())
    assert decode_open(body) == message


@settings(deadline=None)
@given(attributes_values, st.lists(prefix(Family.IPV4), min_size=1, max_size=9000), st.booleans())
def test_messages_of_any_length(attributes: Attributes, prefixes: list[bytes], extended: bool) -> None:
    """As few as hold them, none too long, and each read by who takes that length."""
    most = 65535 if extended else 4096
    framer = Framer()
    framer.most = most
    decoder = UpdateDecoder(Family, AttributeDecoder(as4=True, internal=True))
    messages = encode_announcement(Family.IPV4, attributes, prefixes, as4=True, most=most)
    updates = [decoder.decode(body) for _, body in framer.receive(b"".join(messages))]
    assert [p for update in updates for _, some, _ in update.announced for p in some] == prefixes
    assert all(len(one) > most - 5 for one in messages[:-1])
    withdrawals = encode_withdrawal(Family.IPV4, prefixes, most)
    updates = [decoder.decode(body) for _, body in framer.receive(b"".join(withdrawals))]
    assert [p for update in updates for _, some in update.withdrawn for p in some] == prefixes


@settings(deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=4075))
def test_notification(code: int, subcode: int, data: bytes) -> None:
    message = Notification(code, subcode, data)
    ((_, body),) = Framer().receive(message.encode())
    assert decode_notification(body) == message
    assert str(message)
    assert message.hard().is_hard and message.hard().inside == message
    assert message.text in str(message.hard()) and str(message.hard()).isprintable()


# ---------------------------------------------------------------------------------- an independent decoder


@settings(max_examples=50, deadline=None)
@given(opens)
def test_scapy_reads_our_open(message: Open) -> None:
    read = BGPHeader(message.encode())
    layer = read[BGPOpen]
    if message.encode()[28] == 255:
        return  # scapy does not know RFC 9072
    assert (read.len, layer.hold_time, layer.bgp_id) == (
        len(message.encode()),
        message.hold_time,
        nlri.address_text(message.identifier),
    )
    # Scapy knows one capability a parameter, and so reads the first of ours: the first family.
    first = layer.opt_params[0].param_value
    assert (first.code, first.afi) == (1, message.capabilities.families[0].afi)


@settings(max_examples=50, deadline=None)
@given(numbers, st.integers(3, 65535), st.lists(st.sampled_from(Family), min_size=1, unique=True))
def test_we_read_scapys_open(asn: int, hold_time: int, families: list[Family]) -> None:
    parameters = [
        *(BGPOptParam(param_value=BGPCapMultiprotocol(afi=family.afi, safi=family.safi)) for family in families),
        BGPOptParam(param_value=BGPCapFourBytesASN(asn=asn)),
        BGPOptParam(param_value=BGPCapGeneric(code=2)),
    ]
    sent = BGPOpen(my_as=min(asn, 23456), hold_time=hold_time, bgp_id="10.0.0.1", opt_params=parameters)
    got = decode_open(bytes(BGPHeader(type=1) / sent)[19:])
    assert got == Open(asn, hold_time, b"\x0a\0\0\1", Capabilities(tuple(families)))


@settings(max_examples=50, deadline=None)
@given(attributes_values, st.lists(prefix(Family.IPV4).filter(lambda wire: wire[0]), min_size=1, max_size=5))
def test_scapy_reads_our_update(attributes: Attributes, prefixes: list[bytes]) -> None:
    """Of the default route scapy loses what follows, so there is none here."""
    bgp_module_conf.use_2_bytes_asn = False
    (message,) = encode_announcement(Family.IPV4, attributes, prefixes, as4=True)
    layer = BGPHeader(message)[BGPUpdate]
    assert [entry.prefix for entry in layer.nlri] == [nlri.text(Family.IPV4, wire) for wire in prefixes]
    read = {entry.type_code: entry.attribute for entry in layer.path_attr}
    assert read[1].origin == attributes.origin
    assert [(part.segment_type, tuple(part.segment_value)) for part in read[2].segments] == list(attributes.as_path)
    assert read[3].next_hop == nlri.address_text(attributes.next_hop)
    assert (read[4].med if 4 in read else None) == attributes.med
    assert (read[5].local_pref if 5 in read else None) == attributes.local_pref
    assert (6 in read) == attributes.atomic_aggregate


# ------------------------------------------------------------------------------------------- hostile input


def harmless(data: bytes) -> None:
    """A decoder may refuse, and says why; nothing else comes out of it."""
    for as4 in (False, True):
        for internal in (False, True):
            decoder = UpdateDecoder(Family, AttributeDecoder(as4=as4, internal=internal))
            try:
                update = decoder.decode(data)
            except RemoteError as error:
                assert error.code == 3
                assert error.reason
            else:
                for family, prefixes, attributes in update.announced:
                    assert prefixes
                    assert encode_path(attributes.as_path, 4) is not None
                    assert len(attributes.next_hop) == (4 if family is Family.IPV4 else 16)


@settings(deadline=None)
@given(st.binary(min_size=4, max_size=200))
def test_no_update_breaks_the_decoder(data: bytes) -> None:
    harmless(data)


@settings(deadline=None)
@given(attributes_values, st.data())
def test_no_change_to_an_update_breaks_the_decoder(attributes: Attributes, data: st.DataObject) -> None:
    body = bytearray(encode_announcement(Family.IPV4, attributes, [b"\x18\x0a\x01\x02"], as4=True)[0][19:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    harmless(bytes(body))


@settings(deadline=None)
@given(st.binary(min_size=10, max_size=120))
def test_no_open_breaks_the_decoder(data: bytes) -> None:
    for body in (data, b"\x04" + data[1:9] + bytes((len(data) - 10,)) + data[10:]):
        try:
            decode_open(body)
        except RemoteError as error:
            assert error.code == 2
            assert error.reason


@settings(deadline=None)
@given(st.binary(min_size=4, max_size=4))
def test_no_route_refresh_breaks_the_decoder(data: bytes) -> None:
    found = decode_route_refresh(data)
    assert found is None or found.family in Family


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_no_stream_breaks_the_framer(pieces: list[bytes]) -> None:
    framer = Framer()
    try:
        for piece in pieces:
            for _ in framer.receive(piece):
                pass
    except RemoteError as error:
        assert error.code == 1


# ------------------------------------------------------------------------------------------- what a peer has said

_PIECES = [
    bytes.fromhex(text)
    for text in [
        "40010100",
        "40010103",
        "c0010100",
        "40020602010000fde9",
        "4002020200",
        "4003040a000001",
        "4003030a0000",
        "80040400000007",
        "800403000007",
        "40050400000064",
        "40060101",
        "c00703000000",
        "c00800",
        "e00804fde90001",
        "c0630101",
        "c0630102",
        "80640101",
        "c01106020100011170",
        "c0200c000000010000000200000003",
    ]
]
"""Attributes, sound and malformed."""


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(_PIECES), max_size=6),
    *(st.lists(prefix(family), max_size=3) for family in (Family.IPV4, Family.IPV4, Family.IPV6, Family.IPV6)),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    st.randoms(use_true_random=False),
)
def test_of_an_update_no_route_is_lost_and_none_is_made_up(
    pieces: list[bytes],
    gone4: list[bytes],
    new4: list[bytes],
    gone6: list[bytes],
    new6: list[bytes],
    kinds: tuple[bool, bool, bool, bool],
    random: Any,
) -> None:
    """Whatever its attributes: the session ends, or each route is announced or withdrawn, and no error announces."""
    as4, internal, whole, both = kinds
    blocks = list(pieces)
    if whole:
        blocks = [bytes.fromhex(text) for text in ("40010100", "400200", "400304 0a000001")] + blocks
    if gone6:
        blocks.append(attribute(0x80, 15, Family.IPV6.wire + b"".join(gone6)))
    if new6:
        blocks.append(attribute(0x80, 14, Family.IPV6.wire + b"\x10\x20" + bytes(15) + b"\0" + b"".join(new6)))
    random.shuffle(blocks)
    field, block = b"".join(gone4), b"".join(blocks)
    sizes = len(field).to_bytes(2, "big"), len(block).to_bytes(2, "big")
    families = tuple(Family) if both else (Family.IPV6,)
    try:
        update = UpdateDecoder(families, AttributeDecoder(as4=as4, internal=internal)).decode(
            sizes[0] + field + sizes[1] + block + b"".join(new4)
        )
    except RemoteError as error:
        assert not new4 and not new6  # only where no routes are announced is there no knowing what was meant
        assert (error.code, error.subcode) == (3, 1)
        return
    announced = [(family, path) for family, some, _ in update.announced for path in some]
    withdrawn = [(family, path) for family, some in update.withdrawn for path in some]
    said = [(Family.IPV4, path) for path in (*gone4, *new4) if both] + [
        (Family.IPV6, path) for path in (*gone6, *new6)
    ]
    assert sorted(announced + withdrawn) == sorted(said)
    if any(fault.withdraws for fault in update.faults):
        assert not announced
    if update.end_of_rib is not None:
        assert not said and not blocks
