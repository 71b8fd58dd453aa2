"""BGP messages: framing, OPEN, UPDATE and what RFC 7606 makes of malformed ones, NOTIFICATION."""

from __future__ import annotations

import pytest

from bgp.message import (
    KEEPALIVE,
    AddPath,
    AsPath,
    AttributeDecoder,
    Attributes,
    Capabilities,
    Family,
    Framer,
    GracefulRestart,
    LocalError,
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
from bgp.message.aspath import AS_SEQUENCE, AS_SET, merge
from bgp.message.attributes import attribute, describe
from bgp.message.framing import frame

ORIGIN = bytes.fromhex("40010100")
PATH = bytes.fromhex("400206 0201 0000fde9")
NEXT_HOP = bytes.fromhex("400304 0a000001")
BASE = ORIGIN + PATH + NEXT_HOP
PREFIX = bytes.fromhex("180a0101")
V6_PREFIX = bytes.fromhex("2020010db8")
V6_HOP = bytes.fromhex("20010db8000000000000000000000001")
REACH = attribute(0x80, 14, bytes.fromhex("00020110") + V6_HOP + b"\0" + V6_PREFIX)


def body(attributes: bytes = b"", announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    return len(withdrawn).to_bytes(2, "big") + withdrawn + len(attributes).to_bytes(2, "big") + attributes + announced


def decode(
    data: bytes, *, internal: bool = False, as4: bool = True, families: tuple[Family, ...] = tuple(Family)
) -> Update:
    return UpdateDecoder(families, AttributeDecoder(as4=as4, internal=internal)).decode(data)


def error(data: bytes) -> tuple[int, int, bytes]:
    with pytest.raises(RemoteError) as caught:
        decode(data)
    return caught.value.code, caught.value.subcode, caught.value.data


# ------------------------------------------------------------------------------------------------ framing


def test_a_stream_is_cut_wherever_it_was_torn() -> None:
    stream = KEEPALIVE + encode_withdrawal(Family.IPV4, [PREFIX])[0] + KEEPALIVE
    for size in range(1, len(stream)):
        framer = Framer()
        kinds = [
            kind for start in range(0, len(stream), size) for kind, _ in framer.receive(stream[start : start + size])
        ]
        assert kinds == [4, 2, 4]


@pytest.mark.parametrize(
    ("header", "subcode", "data"),
    [
        (b"\0" + KEEPALIVE[1:], 1, b""),
        (KEEPALIVE[:16] + b"\x00\x12\x04", 2, b"\x00\x12"),
        (KEEPALIVE[:16] + b"\x10\x01\x02", 2, b"\x10\x01"),
        (KEEPALIVE[:16] + b"\x00\x14\x04\x00", 2, b"\x00\x14"),  # a KEEPALIVE with something in it
        (KEEPALIVE[:16] + b"\x00\x16\x02", 2, b"\x00\x16"),  # shorter than any UPDATE
        (KEEPALIVE[:16] + b"\x00\x13\x06", 3, b"\x06"),
        (KEEPALIVE[:16] + b"\x00\x13\x00", 3, b"\x00"),
    ],
)
def test_a_bad_header_is_answered_as_rfc_4271_says(header: bytes, subcode: int, data: bytes) -> None:
    got = []
    with pytest.raises(RemoteError) as caught:
        got.extend(Framer().receive(KEEPALIVE + header))
    assert [kind for kind, _ in got] == [4] or not got
    assert (caught.value.code, caught.value.subcode, caught.value.data) == (1, subcode, data)


def test_what_came_before_a_bad_header_is_given_first() -> None:
    messages = Framer().receive(KEEPALIVE + bytes(19))
    assert next(messages) == (4, b"")
    with pytest.raises(RemoteError):
        next(messages)


def test_a_message_too_long_is_not_made() -> None:
    with pytest.raises(LocalError):
        frame(2, bytes(4078))


# ------------------------------------------------------------------------------------------------ OPEN


def test_open_carries_its_capabilities() -> None:
    restart = GracefulRestart(120, True, ((Family.IPV4, True), (Family.IPV6, False)))
    sent = Open(
        4200000000, 90, b"\x0a\0\0\1", Capabilities(tuple(Family), True, True, restart, others=((73, b"\0"),))
    )
    ((kind, data),) = Framer().receive(sent.encode())
    assert kind == 1
    assert data[1:3] == b"\x5b\xa0"  # AS_TRANS stands where four octets do not fit
    assert decode_open(data) == sent


def test_several_paths_and_next_hops_of_ipv6_are_capabilities() -> None:
    ways = ((Family.IPV4, AddPath.RECEIVE | AddPath.SEND), (Family.IPV6, AddPath.RECEIVE))
    offered = Capabilities(tuple(Family), add_path=ways, extended_next_hop=True)
    sent = Open(65001, 90, b"\x0a\0\0\1", offered).encode()
    assert bytes.fromhex("4508 00010103 00020101") in sent
    assert bytes.fromhex("0506 00010001 0002") in sent
    assert decode_open(sent[19:]).capabilities == offered
    assert offered.describe()["add_path"] == {"ipv4": "both", "ipv6": "receive"}


@pytest.mark.parametrize(
    ("value", "ways"),
    [
        ("00010102", ((Family.IPV4, AddPath.SEND),)),
        ("00010101 00010102", ((Family.IPV4, AddPath.SEND),)),  # the last one counts
        ("00010480 00010101", ()),  # one that does not exist: all of it counts as not understood
        ("00010100", ()),
        ("00010401 00190101", ()),  # families that are not carried here
    ],
)
def test_add_path_with_what_is_not_understood(value: str, ways: tuple[tuple[Family, AddPath], ...]) -> None:
    field = bytes.fromhex(value)
    item = bytes((69, len(field))) + field
    message = bytes.fromhex("04 fde9 00b4 0a000001") + bytes((len(item) + 2, 2, len(item))) + item
    got = decode_open(message).capabilities
    assert got.add_path == ways
    assert bool(got.others) is ("80" in value or value == "00010100")


@pytest.mark.parametrize("item", ["4503 000101", "4500", "0505 0001000100", "4505 0001010100"])
def test_capabilities_of_a_wrong_length_are_refused(item: str) -> None:
    field = bytes.fromhex(item)
    with pytest.raises(RemoteError) as caught:
        decode_open(bytes.fromhex("04 fde9 00b4 0a000001") + bytes((len(field) + 2, 2, len(field))) + field)
    assert (caught.value.code, caught.value.subcode) == (2, 0)


def test_a_next_hop_of_another_family_than_ipv6_is_not_ours() -> None:
    field = bytes.fromhex("0506 000100800002")  # VPN routes over IPv6
    message = bytes.fromhex("04 fde9 00b4 0a000001") + bytes((len(field) + 2, 2, len(field))) + field
    got = decode_open(message).capabilities
    assert not got.extended_next_hop
    assert got.others == ((5, field[2:]),)


def test_a_peer_without_capabilities_has_ipv4_and_two_octets() -> None:
    got = decode_open(bytes.fromhex("04 fde9 00b4 0a000001 00"))
    assert got == Open(65001, 180, b"\x0a\0\0\1", Capabilities((Family.IPV4,), as4=False, route_refresh=False))


def test_a_capability_in_each_parameter_is_as_good_as_all_in_one() -> None:
    got = decode_open(bytes.fromhex("04 5ba0 00b4 0a000001 10 0206 0104 00020001 0206 4104 00010000"))
    assert got.capabilities.families == (Family.IPV6,)
    assert got.asn == 65536


@pytest.mark.parametrize(
    ("data", "subcode", "answer"),
    [
        ("03 fde9 00b4 0a000001 00", 1, b"\0\4"),
        ("04 0000 00b4 0a000001 00", 2, b""),
        ("04 5ba0 00b4 0a000001 08 0206 4104 00000000", 2, b""),
        ("04 fde9 00b4 00000000 00", 3, b""),
        ("04 fde9 00b4 0a000001 03 010100", 4, b""),  # the authentication of RFC 1771
        ("04 fde9 0002 0a000001 00", 6, b""),
        ("04 fde9 00b4 0a000001 01", 0, b""),
        ("04 fde9 00b4 0a000001 01 02", 0, b""),
        ("04 fde9 00b4 0a000001 04 0202 0104", 0, b""),
        ("04 fde9 00b4 0a000001 05 0203 010100", 0, b""),
    ],
)
def test_a_bad_open_is_answered_as_rfc_4271_says(data: str, subcode: int, answer: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        decode_open(bytes.fromhex(data))
    assert (caught.value.code, caught.value.subcode, caught.value.data) == (2, subcode, answer)


@pytest.mark.parametrize(
    "wrong",
    [
        Open(0, 90, bytes(4)),
        Open(65536, 90, b"\1\1\1\1", Capabilities(as4=False)),
        Open(1, 2, b"\1\1\1\1"),
        Open(1, 90, b"\1\1\1"),
        Open(1, 90, b"\1\1\1\1", Capabilities(others=tuple((code, bytes(250)) for code in range(200, 217)))),
        Open(1, 90, b"\1\1\1\1", Capabilities(graceful_restart=GracefulRestart(4096))),
    ],
)
def test_an_open_that_does_not_fit_is_not_made(wrong: Open) -> None:
    with pytest.raises(LocalError):
        wrong.encode()


# ------------------------------------------------------------------------------------------------ UPDATE


def test_an_update_announces_and_withdraws() -> None:
    update = decode(body(BASE, PREFIX, b"\x08\x0b"))
    assert update.withdrawn == ((Family.IPV4, [b"\x08\x0b"]),)
    ((family, prefixes, attributes),) = update.announced
    assert (family, prefixes) == (Family.IPV4, [PREFIX])
    assert attributes == Attributes(0, AsPath.sequence(65001), b"\x0a\0\0\1")


def test_ipv6_in_mp_reach_has_its_next_hop_from_there() -> None:
    update = decode(body(REACH + ORIGIN + PATH))
    ((family, prefixes, attributes),) = update.announced
    assert (family, prefixes, attributes.next_hop) == (Family.IPV6, [V6_PREFIX], V6_HOP)
    assert nlri.text(family, prefixes[0]) == "2001:db8::/32"


def test_a_family_that_was_not_negotiated_is_passed_over() -> None:
    assert decode(body(REACH + ORIGIN + PATH), families=(Family.IPV4,))._replace(faults=()) == Update()
    assert decode(body(BASE, PREFIX), families=(Family.IPV6,)).announced == ()


def test_end_of_rib() -> None:
    for family in Family:
        ((_, data),) = Framer().receive(encode_end_of_rib(family))
        assert decode(data) == Update(end_of_rib=family)


@pytest.mark.parametrize(
    "malformed",
    [
        "40010103",  # ORIGIN 3
        "4001020000",  # ORIGIN of two octets
        "c0010100",  # ORIGIN as an optional attribute
        "400203020200",  # AS_PATH cut
        "400202 0200",  # AS_PATH with an empty segment
        "400206 0301 0000fde9",  # a segment of a confederation we are not in
        "400206 0201 00000000",  # AS 0
        "400303 0a0000",
        "400304 00000000",
        "400304 e0000001",
        "800403 000000",
        "c00803 000000",
        "c00800",
        "c0200b" + "00" * 11,
        "c02000",
    ],
)
def test_treat_as_withdraw(malformed: str) -> None:
    bad = bytes.fromhex(malformed)
    kept = [part for part in (ORIGIN, PATH, NEXT_HOP) if part[1] != bad[1]]
    for internal in (False, True):
        update = decode(body(b"".join(kept) + bad, PREFIX, b"\x08\x0b"), internal=internal)
        assert update.announced == ()
        assert update.withdrawn == ((Family.IPV4, [b"\x08\x0b", PREFIX]),)
        assert [fault.kind for fault in update.faults] == [bad[1]]
        assert update.faults[0].withdraws


@pytest.mark.parametrize("malformed", ["400503 000000", "800903 000000", "800a03 000000", "800a00"])
def test_attributes_of_the_own_as_are_judged_only_there(malformed: str) -> None:
    """LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST from another AS are discarded unread (RFC 7606 section 7)."""
    data = body(BASE + bytes.fromhex(malformed), PREFIX)
    assert decode(data, internal=True).announced == ()
    assert decode(data, internal=False).announced
    assert not decode(data, internal=False).faults[0].withdraws


@pytest.mark.parametrize(
    "discarded",
    ["40060100", "c00703 000000", "c00706 fde9 0a000001", "c00708 00000000 0a000001", "c01106 0201 0000fde9"],
)
def test_attribute_discard(discarded: str) -> None:
    update = decode(body(BASE + bytes.fromhex(discarded), PREFIX))
    ((_, _, attributes),) = update.announced
    assert attributes == Attributes(0, AsPath.sequence(65001), b"\x0a\0\0\1")
    assert [fault.withdraws for fault in update.faults] == [False]


@pytest.mark.parametrize("missing", [ORIGIN, PATH, NEXT_HOP])
def test_a_missing_attribute_withdraws(missing: bytes) -> None:
    update = decode(body(BASE.replace(missing, b""), PREFIX))
    assert update.withdrawn == ((Family.IPV4, [PREFIX]),)
    assert str(update.faults[0]).endswith("is missing")


def test_of_a_repeated_attribute_the_first_counts() -> None:
    update = decode(body(BASE + bytes.fromhex("40010102"), PREFIX))
    assert update.announced[0][2].origin == 0
    assert len(update.faults) == 1


def test_a_cut_attribute_withdraws_the_routes_that_are_known() -> None:
    update = decode(body(BASE + b"\xc0\x08\x10", PREFIX))
    assert update.withdrawn == ((Family.IPV4, [PREFIX]),)


def test_without_routes_to_withdraw_a_malformed_attribute_ends_the_session() -> None:
    """RFC 7606 section 5.2: the routes may be behind the error."""
    assert error(body(bytes.fromhex("40010103")))[:2] == (3, 1)


def test_malformed_attributes_withdraw_routes_of_mp_reach_too() -> None:
    update = decode(body(REACH + bytes.fromhex("40010103") + PATH))
    assert update.withdrawn == ((Family.IPV6, [V6_PREFIX]),)
    no_host = REACH.replace(V6_HOP, bytes(16))
    assert decode(body(no_host + ORIGIN + PATH)).withdrawn == ((Family.IPV6, [V6_PREFIX]),)


@pytest.mark.parametrize(
    ("data", "subcode"),
    [
        (b"\x00\x05\x00\x00", 1),  # withdrawn routes run over the end
        (b"\x00\x00\x00\x05", 1),  # attributes run over the end
        (body(BASE, b"\x21\x0a\x00\x00\x00\x00"), 10),  # 33 bits
        (body(BASE, b"\x18\x0a"), 10),
        (body(b"", b"", b"\x18\x0a"), 10),
        (body(REACH + REACH + ORIGIN + PATH), 1),
        (body(attribute(0x80, 14, b"\0\2\1") + ORIGIN + PATH), 9),
        (body(attribute(0x80, 14, b"\0\2\1\5" + bytes(7)) + ORIGIN + PATH), 9),
        (body(attribute(0x80, 14, b"\0\2\1\x20" + bytes(7)) + ORIGIN + PATH), 9),
        (body(attribute(0x80, 14, b"\0\2\1\x10" + V6_HOP + b"\0\xff\0") + ORIGIN + PATH), 9),
        (body(attribute(0x80, 15, b"\0\2")), 9),
        (body(attribute(0x80, 15, b"\0\2\1\xff")), 9),
        (body(BASE + b"\x40\x63\x01\x00", PREFIX), 2),  # an unrecognised well-known attribute
    ],
)
def test_the_session_ends_only_where_routes_cannot_be_told(data: bytes, subcode: int) -> None:
    assert error(data)[:2] == (3, subcode)


def test_the_attribute_is_the_data_of_the_notification() -> None:
    assert error(body(BASE + b"\x40\x63\x01\x00", PREFIX))[2] == b"\x40\x63\x01\x00"
    assert error(body(attribute(0x80, 15, b"\0\2")))[2] == b"\x80\x0f\x02\0\2"


def test_unrecognised_attributes_are_passed_on_if_transitive() -> None:
    update = decode(body(BASE + bytes.fromhex("c0630101 80640101"), PREFIX))
    ((_, _, attributes),) = update.announced
    assert attributes.others == ((0xE0, 0x63, b"\1"),)
    assert bytes.fromhex("e0630101") in encode_announcement(Family.IPV4, attributes, [PREFIX], as4=True)[0]


def test_two_octets_of_as_number() -> None:
    path = AsPath(((AS_SEQUENCE, (65001, 4200000000)), (AS_SET, (7, 4200000001))))
    sent = Attributes(0, path, b"\x0a\0\0\1", aggregator=(4200000000, b"\x0a\0\0\2"))
    (message,) = encode_announcement(Family.IPV4, sent, [PREFIX], as4=False)
    ((_, _, got),) = decode(message[19:], as4=False).announced
    assert got == sent


def test_as4_values_are_void_beside_an_aggregator_of_two_octets() -> None:
    """RFC 6793 section 4.2.3: somebody of two octets has aggregated since."""
    block = ORIGIN + bytes.fromhex("400204 0201fde9") + NEXT_HOP
    block += bytes.fromhex("c00706 fde9 0a000001 c01106 0201 00010000 c01208 00010000 0a000002")
    ((_, _, got),) = decode(body(block, PREFIX), as4=False).announced
    assert str(got.as_path) == "65001"
    assert got.aggregator == (65001, b"\x0a\0\0\1")


def test_the_tail_of_a_path_comes_from_as4_path() -> None:
    whole = merge(AsPath.sequence(65001, 23456, 23456), AsPath.sequence(70000, 80000))
    assert str(whole) == "65001 70000 80000"
    assert str(merge(AsPath.sequence(65001), AsPath.sequence(70000, 80000))) == "65001"


def test_prefixes_are_packed_into_as_few_messages_as_hold_them() -> None:
    prefixes = [bytes((24, 10, high, low)) for high in range(8) for low in range(256)]
    messages = encode_announcement(Family.IPV4, Attributes(next_hop=b"\x0a\0\0\1"), prefixes, as4=True)
    assert len(messages) == 3
    assert all(len(message) <= 4096 for message in messages)
    assert [p for m in messages for _, some, _ in decode(m[19:]).announced for p in some] == prefixes
    gone = encode_withdrawal(Family.IPV4, prefixes)
    assert [p for m in gone for _, some in decode(m[19:]).withdrawn for p in some] == prefixes


def test_what_cannot_be_encoded_is_said_so() -> None:
    with pytest.raises(LocalError, match="no room"):
        huge = Attributes(next_hop=b"\x0a\0\0\1", communities=tuple(range(1020)))
        encode_announcement(Family.IPV4, huge, [PREFIX], as4=True)
    with pytest.raises(LocalError, match="next hop"):
        encode_announcement(Family.IPV6, Attributes(next_hop=b"\x0a\0\0\1"), [V6_PREFIX], as4=True)


def test_a_decoder_forgets_rather_than_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgp.message.attribute_decoding._MEMORY", 64)
    attributes = AttributeDecoder(as4=True, internal=True)
    decoder = UpdateDecoder(Family, attributes)
    for number in range(1000):
        decoder.decode(
            body(ORIGIN + PATH + bytes.fromhex("400304") + (0x0A000000 + number).to_bytes(4, "big"), PREFIX)
        )
    assert len(attributes._blocks) <= 64
    assert len(attributes._attributes) <= 64
    for number in range(1000):  # and of those that differ in more than the next hop
        decoder.decode(body(BASE + attribute(0x80, 4, number.to_bytes(4, "big")), PREFIX))
    assert 0 < len(attributes._elsewhere) <= 64


def test_attributes_are_described_by_name() -> None:
    shown = describe(Attributes(0, AsPath.sequence(1, 2), b"\x0a\0\0\1", communities=(0xFFFFFF01, 65000 << 16 | 120)))
    assert shown == {
        "origin": "IGP",
        "as_path": "1 2",
        "next_hop": "10.0.0.1",
        "communities": ["no-export", "65000:120"],
    }


# ------------------------------------------------------------------------------------------- the small ones


@pytest.mark.parametrize(
    "wrong", ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "x/8", "::/129", "10.0.0.0/-1", "10.0.0.0/ 8"]
)
def test_a_text_that_is_no_prefix_says_so(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0|/8|::"):
        nlri.parse(wrong)


def test_notification_with_words() -> None:
    sent = Notification.shutdown("maintenance until 06:00, ring Zoë")
    got = decode_notification(sent.encode()[19:])
    assert got == sent
    assert str(got) == "cease/administrative shutdown (6/2): maintenance until 06:00, ring Zoë"
    long = Notification.shutdown("é" * 200)
    assert long.data[0] == 254  # cut between letters
    assert long.text == "é" * 127


@pytest.mark.parametrize("data", [b"", b"\x05ab", b"\x02\xff\xfe", b"\x02\x1b["])
def test_words_that_cannot_be_read_harm_nobody(data: bytes) -> None:
    assert all(letter.isprintable() for letter in Notification(6, 2, data).text)
    assert str(Notification(6, 99)) == "unknown (6/99)"
    assert str(Notification(77, 1)) == "unknown (77/1)"


def test_too_many_prefixes_says_how_many() -> None:
    assert Notification.too_many_prefixes(Family.IPV6, 1000).data.hex() == "000201000003e8"


def test_route_refresh() -> None:
    for family in Family:
        for kind in RefreshKind:
            assert decode_route_refresh(encode_route_refresh(family, kind)[19:]) == (family, kind)
    assert decode_route_refresh(b"\0\1\3\1") is None
    assert decode_route_refresh(b"\0\1\0\x84") is None
