"""BGP by the clause: what an RFC says of one case, one test each; the section is in the name or the docstring."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bgp import views
from bgp.connection import Direction, Send
from bgp.export import ExportSettings, export
from bgp.message import (
    KEEPALIVE,
    AsPath,
    AttributeDecoder,
    Attributes,
    Capabilities,
    Family,
    MessageType,
    Notification,
    Open,
    RemoteError,
    Update,
    UpdateDecoder,
    encode_announcement,
    nlri,
)
from bgp.message import (
    attributes as attribute_module,
)
from bgp.message.aspath import encode_path
from bgp.message.attributes import attribute
from bgp.message.codes import EXTENDED_MESSAGE_SIZE
from bgp.message.framing import frame
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import EVERYTHING, Change, Policy, Rule
from bgp.route import Kind
from bgp.speaker import Speaker
from tests.unit.test_bgp_message import BASE, NEXT_HOP, ORIGIN, PATH, PREFIX, V6_HOP, V6_PREFIX, body, decode

ADDRESSES = ((Family.IPV4, b"\x0a\0\0\x09"), (Family.IPV6, bytes.fromhex("20010db8000000000000000000000009")))


class Pair:
    """A speaker of AS 65000 and one peer of AS 65001 whose session stands; what the peer says is bytes."""

    def __init__(
        self,
        *,
        families: tuple[Family, ...] = tuple(Family),
        offered: tuple[Family, ...] = tuple(Family),
        asn: int = 65001,
        **config: Any,
    ) -> None:
        self.speaker = Speaker(SpeakerConfig(65000, b"\x0a\0\0\1", families, ADDRESSES), lambda: 0.5)
        self.peer = self.speaker.add_peer(PeerConfig("peer", b"\x0a\0\0\2", asn, **config), 0.0)
        self.speaker.take(0.0)
        self.speaker.connected("peer", 0.0, b"\x0a\0\0\1")
        self.say(Open(asn, 90, b"\x0a\0\0\2", Capabilities(offered)).encode() + KEEPALIVE)
        assert self.peer.session.negotiated is not None

    def say(self, data: bytes) -> None:
        self.speaker.receive("peer", Direction.OUTGOING, data, 1.0)
        self.said = b"".join(output.data for _, output in self.speaker.take(1.0) if isinstance(output, Send))

    def update(self, data: bytes) -> None:
        self.say(frame(MessageType.UPDATE, data, EXTENDED_MESSAGE_SIZE))

    def fate(self, prefix: str) -> str | None:
        """Why the peer's route is not used: empty where it is, None where there is none."""
        family, path = nlri.parse(prefix)
        route = self.speaker.ribs[family].received(self.peer.source).get(path)
        return None if route is None else route.rejected


# ------------------------------------------------------------------------------------------------ bounds


def test_rfc_8654_attributes_of_64_kib_are_not_kept() -> None:
    """What a decoder remembers is bounded in octets, for the longest attributes too."""
    attributes = AttributeDecoder(as4=True, internal=True)
    decoder = UpdateDecoder(Family, attributes)
    for number in range(100):
        communities = attribute(0xC0, 8, number.to_bytes(4, "big") * 16000)
        decoder.decode(body(BASE + communities, PREFIX))
    for memory in (attributes._blocks, attributes._elsewhere, attributes._attributes):
        assert 0 < sum(map(len, memory)) <= 2 << 20


def test_rfc_8654_long_paths_are_not_kept_when_encoded() -> None:
    before = attribute_module._head.cache_info().currsize
    path = AsPath((2, tuple(range(start + 1, start + 256))) for start in range(0, 2550, 255))
    for number in range(5):
        longer = path.prepend(64512 + number)
        encode_announcement(
            Family.IPV4, Attributes(0, longer, NEXT_HOP[3:]), [PREFIX], as4=True, most=EXTENDED_MESSAGE_SIZE
        )
    assert attribute_module._head.cache_info().currsize == before


# --------------------------------------------------------------------------------- families not agreed on


@pytest.mark.parametrize(
    "data",
    [
        body(),
        body(withdrawn=PREFIX),
        body(BASE, PREFIX),
        body(BASE, PREFIX, b"\x08\x0b"),
        body(ORIGIN + PATH, PREFIX),
    ],
)
def test_rfc_4760_section_8_ipv4_that_was_not_agreed_on_is_passed_over(data: bytes) -> None:
    update = decode(data, families=(Family.IPV6,))
    assert update._replace(faults=()) == Update()
    notes = [str(fault) for fault in update.faults if not fault.withdraws]
    assert notes == ([] if data == body() else ["routes of IPv4, which was not agreed on: passed over"])


@pytest.mark.parametrize("field", [b"\0\0\0\1" + PREFIX, b"\0\0\0\x21" + PREFIX, b"\xff"])
def test_rfc_4760_section_8_ipv4_that_was_not_agreed_on_is_not_read(field: bytes) -> None:
    """It may have identifiers (RFC 7911), which would be read as prefixes, and end the session."""
    for data in (body(BASE, field), body(b"", b"", field)):
        assert decode(data, families=(Family.IPV6,))._replace(faults=()) == Update()


def test_rfc_4724_section_2_end_of_rib_of_ipv4_harms_no_speaker_without_it() -> None:
    pair = Pair(families=(Family.IPV6,))
    pair.update(body())
    pair.update(body(BASE, PREFIX, b"\x08\x0b"))
    assert pair.peer.session.negotiated is not None
    assert pair.peer.malformed == 1
    assert any("not agreed on" in str(entry.get("faults")) for entry in pair.peer.session.recorder.entries(1.0))


# ------------------------------------------------------------------------------------------- LOCAL_PREF


@pytest.mark.parametrize(("asn", "local", "sent"), [(65001, None, False), (65000, 65010, False), (65000, None, True)])
def test_rfc_4271_section_5_1_5_local_pref_is_never_sent_to_another_as(
    asn: int, local: int | None, sent: bool
) -> None:
    """Not even where an export policy sets it; within the AS it is sent."""
    policy = Policy((Rule(True, change=Change(local_pref=200)),))
    pair = Pair(asn=asn, local_asn=local, export_policy=policy)
    for prefix in ("198.51.100.0/24", "2001:db8:1::/48"):
        pair.speaker.originate(*nlri.parse(prefix), Attributes(local_pref=300))
    pair.say(b"")
    assert pair.said.count(b"\x18\xc6\x33\x64") == 1  # 198.51.100.0/24
    assert (attribute(0x40, 5, (200).to_bytes(4, "big")) in pair.said) is sent
    assert (b"\x40\x05\x04" in pair.said) is sent


@pytest.mark.parametrize(("kind", "flags"), [(5, 0x40), (9, 0x80), (10, 0x80)])
@pytest.mark.parametrize("size", [0, 3, 4])
@pytest.mark.parametrize("wrong", [0, 0x40, 0x80])
def test_rfc_7606_section_7_5_9_and_10_local_pref_and_reflection_of_another_as_are_discarded(
    kind: int, flags: int, size: int, wrong: int
) -> None:
    """Whatever they are, and on a session with another AS by `local_asn` alone too."""
    pair = Pair(asn=65001, local_asn=65010)
    pair.update(body(BASE + attribute(flags ^ wrong, kind, bytes(size)), PREFIX))
    assert pair.fate("10.1.1.0/24") == ""
    (route,) = pair.speaker.ribs[Family.IPV4].candidates(PREFIX)
    assert route.attributes == Attributes(0, AsPath.sequence(65001), NEXT_HOP[3:])
    assert [fault.kind for fault in pair.peer.faults] == [kind]


# ---------------------------------------------------------------------------------- errors (RFC 7606, 4760)

REACH = attribute(0x80, 14, bytes.fromhex("00020110") + V6_HOP + b"\0" + V6_PREFIX)
EMPTY_REACH = attribute(0x80, 14, bytes.fromhex("00020110") + V6_HOP + b"\0")
UNREACH = attribute(0x80, 15, bytes.fromhex("000201") + V6_PREFIX)
BAD_HOPS = ("400303 0a0000", "400304 7f000001", "c00304 0a000001")
BAD_ORIGIN = bytes.fromhex("40010103")


def refusal(data: bytes, **how: Any) -> tuple[int, int]:
    with pytest.raises(RemoteError) as caught:
        decode(data, **how)
    return caught.value.code, caught.value.subcode


@pytest.mark.parametrize("bad", BAD_HOPS)
@pytest.mark.parametrize("first", [False, True])
def test_rfc_4760_section_3_next_hop_beside_mp_reach_alone_is_ignored(bad: str, first: bool) -> None:
    hop = bytes.fromhex(bad)
    update = decode(body((hop + REACH if first else REACH + hop) + ORIGIN + PATH))
    assert [(family, prefixes) for family, prefixes, _ in update.announced] == [(Family.IPV6, [V6_PREFIX])]
    assert update.withdrawn == ()
    assert update.announced[0][2].next_hop == V6_HOP
    assert [(fault.kind, fault.withdraws) for fault in update.faults] == [(3, False)]


@pytest.mark.parametrize("bad", [*BAD_HOPS, ""])
def test_rfc_7606_section_2_a_malformed_next_hop_costs_all_routes_of_an_update_that_needs_it(bad: str) -> None:
    """With routes in its own field, those of MP_REACH_NLRI are withdrawn too; so it is where NEXT_HOP is missing."""
    update = decode(body(REACH + ORIGIN + PATH + bytes.fromhex(bad), PREFIX))
    assert update.announced == ()
    assert dict(update.withdrawn) == {Family.IPV4: [PREFIX], Family.IPV6: [V6_PREFIX]}
    assert any(fault.withdraws for fault in update.faults)


def test_rfc_7606_section_3_g_of_a_malformed_next_hop_and_a_good_one_the_first_counts() -> None:
    update = decode(body(ORIGIN + PATH + bytes.fromhex(BAD_HOPS[0]) + NEXT_HOP, PREFIX))
    assert (update.announced, update.withdrawn) == ((), ((Family.IPV4, [PREFIX]),))


@pytest.mark.parametrize("kind", [14, 15])
def test_rfc_7606_section_3_g_attributes_with_routes_twice_end_the_session(kind: int) -> None:
    twice = REACH if kind == 14 else UNREACH
    assert refusal(body(twice + BASE + twice, PREFIX)) == (3, 1)


@pytest.mark.parametrize(
    "errors",
    [
        BAD_ORIGIN + bytes.fromhex("c00703 000000"),
        bytes.fromhex("c00703 000000") + BAD_ORIGIN,
        ORIGIN + bytes.fromhex("40060101 c00803 000000"),
    ],
)
def test_rfc_7606_section_3_h_of_several_errors_the_strongest_action_is_taken(errors: bytes) -> None:
    """Discarded attributes and a malformed one: the routes are withdrawn. Routes that cannot be read: the end."""
    update = decode(body(errors + PATH + NEXT_HOP, PREFIX))
    assert (update.announced, update.withdrawn) == ((), ((Family.IPV4, [PREFIX]),))
    assert {fault.withdraws for fault in update.faults} == {False, True}
    unreadable = attribute(0x80, 14, bytes.fromhex("00020110") + V6_HOP + b"\0\xff")
    assert refusal(body(errors + PATH + NEXT_HOP + unreadable, PREFIX)) == (3, 9)


@pytest.mark.parametrize(
    "attributes", [BAD_ORIGIN + PATH, UNREACH + BAD_ORIGIN, EMPTY_REACH + BAD_ORIGIN + PATH, UNREACH + b"\x40\x01"]
)
@pytest.mark.parametrize("withdrawn", [b"", PREFIX])
def test_rfc_7606_section_5_2_an_error_without_routes_announced_ends_the_session(
    attributes: bytes, withdrawn: bytes
) -> None:
    assert refusal(body(attributes, b"", withdrawn)) == (3, 1)


def test_rfc_7606_section_5_2_what_is_only_discarded_ends_no_session() -> None:
    update = decode(body(UNREACH + bytes.fromhex("40060101")))
    assert update.withdrawn == ((Family.IPV6, [V6_PREFIX]),)


def test_rfc_7606_section_5_2_routes_of_an_unknown_family_are_routes() -> None:
    """There is no doubt where they are, so nothing has to end."""
    vpn = attribute(0x80, 14, b"\0\1\x80\4\x0a\0\0\1\0\x70" + bytes(14))
    assert decode(body(vpn + BAD_ORIGIN + PATH)).announced == ()


@pytest.mark.parametrize("sound", [REACH, UNREACH])
@pytest.mark.parametrize("flags", [0x00, 0x40, 0xC0])
def test_rfc_7606_section_5_3_wrong_flags_of_attributes_with_routes_end_the_session(sound: bytes, flags: int) -> None:
    assert refusal(body(bytes((flags,)) + sound[1:] + ORIGIN + PATH)) == (3, 9)


# ------------------------------------------------------------------------------------------- End-of-RIB


@pytest.mark.parametrize("header", ["800f03", "900f0003"])
def test_rfc_4724_section_2_end_of_rib_is_mp_unreach_alone(header: str) -> None:
    assert decode(body(bytes.fromhex(header + "000201"))) == Update(end_of_rib=Family.IPV6)
    assert decode(body(bytes.fromhex(header + "000101"))) == Update(end_of_rib=Family.IPV4)
    assert decode(body(bytes.fromhex(header + "000201")), families=(Family.IPV4,)) == Update()


@pytest.mark.parametrize("beside", [ORIGIN, BASE, REACH + ORIGIN + PATH, bytes.fromhex("c0630101")])
def test_rfc_4724_section_2_with_other_attributes_it_is_no_end_of_rib(beside: bytes) -> None:
    """It would sweep the peer's stale routes; that waits for one that is meant so. The routes beside it count."""
    for block in (beside + bytes.fromhex("800f03000201"), bytes.fromhex("800f03000201") + beside):
        update = decode(body(block))
        assert update.end_of_rib is None
        assert len(update.announced) == (beside[1] == 14)
        assert [(fault.kind, fault.withdraws) for fault in update.faults] == [(15, False)]


def test_rfc_4724_section_2_with_routes_of_ipv4_it_is_no_end_of_rib() -> None:
    update = decode(body(bytes.fromhex("800f03000201"), b"", PREFIX))
    assert (update.end_of_rib, update.withdrawn) == (None, ((Family.IPV4, [PREFIX]),))


# -------------------------------------------------------------------------------------- next hops of IPv6

LINK_LOCAL = bytes.fromhex("fe80") + bytes(13) + b"\x02"


def reach_by(next_hop: bytes, family: Family = Family.IPV6) -> bytes:
    prefix = V6_PREFIX if family is Family.IPV6 else PREFIX
    value = family.wire + bytes((len(next_hop),)) + next_hop + b"\0" + prefix
    return body(attribute(0x80, 14, value) + ORIGIN + PATH)


@pytest.mark.parametrize(
    ("second", "faults"),
    [(LINK_LOCAL, 0), (b"\xfe\xbf" + LINK_LOCAL[2:], 0), (bytes(16), 1), (V6_HOP, 1), (b"\xfe\xc0" + bytes(14), 1)],
)
@pytest.mark.parametrize("family", Family)
def test_rfc_2545_section_3_of_two_next_hops_the_global_one_is_kept(
    second: bytes, faults: int, family: Family
) -> None:
    """As RFC 8950 section 4 has it for IPv4. What is not link-local behind it is noted."""
    decoder = UpdateDecoder(Family, AttributeDecoder(as4=True, internal=True), extended=True)
    update = decoder.decode(reach_by(V6_HOP + second, family))
    assert [attributes.next_hop for _, _, attributes in update.announced] == [V6_HOP]
    assert [fault.withdraws for fault in update.faults] == [False] * faults


@pytest.mark.parametrize(
    "next_hop", [LINK_LOCAL, LINK_LOCAL + LINK_LOCAL, bytes(16) + LINK_LOCAL, b"\xff\x02" + bytes(14) + LINK_LOCAL]
)
def test_rfc_2545_section_3_without_a_global_next_hop_there_is_no_route(next_hop: bytes) -> None:
    update = decode(reach_by(next_hop))
    assert (update.announced, update.withdrawn) == ((), ((Family.IPV6, [V6_PREFIX]),))
    assert [str(fault) for fault in update.faults] == ["MP_REACH_NLRI: the next hop is no host address"]


def test_rfc_2545_section_3_a_link_local_next_hop_is_not_reflected() -> None:
    sent = Attributes(0, AsPath.sequence(65001), decode(reach_by(V6_HOP + LINK_LOCAL)).announced[0][2].next_hop)
    assert LINK_LOCAL not in encode_announcement(Family.IPV6, sent, [V6_PREFIX], as4=True)[0]


@pytest.mark.parametrize("size", [0, 4, 8, 15, 17, 24, 31, 33, 48])
def test_rfc_7606_section_7_11_a_next_hop_of_another_length_ends_the_session(size: int) -> None:
    assert refusal(reach_by((b"\x20\x01" + bytes(62))[:size])) == (3, 9)


def test_rfc_4760_section_8_routes_of_a_family_not_agreed_on_are_noted() -> None:
    update = decode(body(REACH + UNREACH + ORIGIN + PATH), families=(Family.IPV4,))
    assert [str(fault) for fault in update.faults] == [
        "MP_UNREACH_NLRI: family 2/1 was not agreed on: passed over",
        "MP_REACH_NLRI: family 2/1 was not agreed on: passed over",
    ]


# --------------------------------------------------------------------------------------- many faults at once


def test_rfc_7606_section_3_g_an_attribute_many_times_is_one_fault() -> None:
    """Some 20,000 attributes fit into a message of RFC 8654."""
    update = decode(
        body(BASE + ORIGIN * 5000 + bytes.fromhex("c06300") * 10000 + bytes.fromhex("80c800") * 5, PREFIX)
    )
    assert sorted(fault.kind for fault in update.faults) == [1, 0x63, 0xC8]
    assert not any(fault.withdraws for fault in update.faults)
    assert update.announced[0][2].others == ((0xE0, 0x63, b""),)


def test_rfc_7606_section_3_g_of_an_unrecognised_attribute_the_first_counts() -> None:
    update = decode(body(BASE + bytes.fromhex("c0630101 c0630102"), PREFIX))
    assert update.announced[0][2].others == ((0xE0, 0x63, b"\1"),)


def test_the_flight_recorder_shows_a_few_faults_of_many() -> None:
    pair = Pair()
    twice = b"".join(2 * bytes((0xC0, kind, 0)) for kind in range(40, 240))
    pair.update(body(BASE + twice, PREFIX))
    (faults,) = [entry["faults"] for entry in pair.peer.session.recorder.entries(1.0) if "faults" in entry]
    assert len(faults) == 21
    assert faults[-1] == "and 180 more"
    assert len(pair.peer.faults) <= 100


# ------------------------------------------------------------------------- AS numbers of two octets (RFC 6793)


def old_path(path: str, path4: str, more: str = "") -> Update:
    """From a speaker of two octets: AS_PATH and AS4_PATH by their values, in hex."""
    values = attribute(0x40, 2, bytes.fromhex(path)) + attribute(0xC0, 17, bytes.fromhex(path4))
    return decode(body(ORIGIN + values + NEXT_HOP + bytes.fromhex(more), PREFIX), as4=False)


@pytest.mark.parametrize(
    ("path4", "whole"),
    [
        ("0301 0000fde8 0201 00011170", "65001 70000"),
        ("0201 00011170 0402 0000fde8 0000fde9", "65001 70000"),
        ("0301 0000fde8", "65001 23456"),
        ("0402 0000fde8 0000fde9 0301 0000fde8", "65001 23456"),
    ],
)
def test_rfc_6793_section_6_segments_of_a_confederation_in_as4_path_are_left_out(path4: str, whole: str) -> None:
    update = old_path("0202 fde9 5ba0", path4)
    assert str(update.announced[0][2].as_path) == whole
    assert update.faults == ()


@pytest.mark.parametrize("path4", ["", "02", "0200", "0201 0001", "0501 00011170", "0301 0001", "0201 00000000"])
def test_rfc_6793_section_6_a_malformed_as4_path_is_discarded(path4: str) -> None:
    update = old_path("0202 fde9 5ba0", path4)
    assert str(update.announced[0][2].as_path) == "65001 23456"
    assert [(fault.kind, fault.withdraws) for fault in update.faults] == [(17, False)]


@pytest.mark.parametrize(
    ("path", "path4", "whole"),
    [
        ("0201 5ba0", "0202 00011170 00011171", "23456"),  # longer than AS_PATH: ignored
        ("0102 fde9 5ba0", "0202 00011170 00011171", "{65001,23456}"),  # a set counts as one
        ("0202 5ba0 5ba0", "0202 00011170 00011171", "70000 70001"),
        ("0203 fde9 5ba0 5ba0", "0201 00011170 0102 00011171 00011172", "65001 70000 {70001,70002}"),
        ("0102 0001 0002 0201 5ba0", "0201 00011170", "{1,2} 70000"),
    ],
)
def test_rfc_6793_section_4_2_3_the_path_of_both(path: str, path4: str, whole: str) -> None:
    assert str(old_path(path, path4).announced[0][2].as_path) == whole


@pytest.mark.parametrize(
    ("aggregators", "whole", "aggregator"),
    [
        ("c00706 fde9 0a000001 c01208 00011170 0a000002", "65001 23456", (65001, b"\x0a\0\0\1")),  # both AS4 void
        ("c00706 5ba0 0a000001 c01208 00011170 0a000002", "65001 70000", (70000, b"\x0a\0\0\2")),
        ("c01208 00011170 0a000002", "65001 70000", None),
        ("c00706 fde9 0a000001", "65001 70000", (65001, b"\x0a\0\0\1")),
        ("c00706 5ba0 0a000001 c01207 00011170 0a0000", "65001 70000", (23456, b"\x0a\0\0\1")),  # malformed
    ],
)
def test_rfc_6793_section_4_2_3_precedence_of_the_aggregators(
    aggregators: str, whole: str, aggregator: tuple[int, bytes] | None
) -> None:
    attributes = old_path("0202 fde9 5ba0", "0201 00011170", aggregators).announced[0][2]
    assert (str(attributes.as_path), attributes.aggregator) == (whole, aggregator)


def test_rfc_5065_section_5_segments_of_a_confederation_in_as_path_withdraw() -> None:
    for kind in (3, 4):
        path = attribute(0x40, 2, bytes((kind, 1, 0, 0, 0xFD, 0xE9)))
        assert decode(body(ORIGIN + path + NEXT_HOP, PREFIX)).withdrawn == ((Family.IPV4, [PREFIX]),)


# --------------------------------------------------------------------- prefixes that are not taken (RFC 4271 6.3)

MARTIANS = (
    *("0.0.0.0/8", "0.1.2.0/24", "127.0.0.0/8", "127.0.0.1/32", "224.0.0.0/8", "239.1.0.0/16", "255.255.255.255/32"),
    *("::/16", "::/128", "::1/128", "::ffff:10.0.0.0/104", "fe80::/10", "fe80::1/128", "ff00::/8", "ff02::/16"),
)
DEFAULTS = ("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "64.0.0.0/7", "::/0", "::/1", "8000::/1", "2000::/3", "fc00::/7")
TAKEN = (
    *("1.0.0.0/8", "126.0.0.0/8", "128.0.0.0/8", "223.255.255.0/24", "240.0.0.0/8", "10.0.0.0/8", "198.51.100.1/32"),
    *("64:ff9b::/96", "fd00::/8", "fec0::/10", "2001:db8::/32", "100::/64"),
)


def announced(*prefixes: str, **config: Any) -> Pair:
    pair = Pair(**config)
    for prefix in prefixes:
        family, wire = nlri.parse(prefix)
        if family is Family.IPV4:
            pair.update(body(BASE, wire))
        else:
            reach = attribute(0x80, 14, bytes.fromhex("00020110") + V6_HOP + b"\0" + wire)
            pair.update(body(reach + ORIGIN + PATH))
    return pair


@pytest.mark.parametrize("config", [{}, {"import_policy": EVERYTHING}, {"accept_default": True}])
def test_rfc_4271_section_6_3_martians_are_ignored_with_the_reason(config: dict[str, Any]) -> None:
    pair = announced(*MARTIANS, *TAKEN, **config)
    for prefix in MARTIANS:
        assert "where no host is" in (pair.fate(prefix) or ""), prefix
    for prefix in TAKEN:
        assert pair.fate(prefix) == "", prefix
    chosen = {nlri.text(family, wire) for family, rib in pair.speaker.ribs.items() for wire in rib.chosen}
    assert chosen == set(TAKEN)


@pytest.mark.parametrize("config", [{}, {"import_policy": EVERYTHING}])
def test_pieces_of_a_default_route_are_one(config: dict[str, Any]) -> None:
    pair = announced(*DEFAULTS, **config)
    for prefix in DEFAULTS:
        assert "a default route" in (pair.fate(prefix) or ""), prefix
    assert not any(rib.chosen for rib in pair.speaker.ribs.values())


def test_who_takes_a_default_route_takes_its_pieces() -> None:
    pair = announced(*DEFAULTS, accept_default=True)
    assert {pair.fate(prefix) for prefix in DEFAULTS} == {""}


# ---------------------------------------------------------------------------- words of a NOTIFICATION (RFC 9003)


@pytest.mark.parametrize(
    "words",
    [
        b"\xed\xa0\x80 \xed\xb3\xbf",  # surrogates, which UTF-8 does not have
        b"\xff\xfe\xc0\x80",
        b"\xf0\x9f\x98",  # cut
        b"\x00\x1b[2J\r\n",
        "\u202e\u2028 tac".encode(),  # the other direction, another line
    ],
)
@pytest.mark.parametrize("hard", [False, True])
def test_rfc_9003_section_2_any_octets_can_be_shown_and_logged(words: bytes, hard: bool) -> None:
    pair = Pair()
    data = bytes((6, 2, len(words))) + words
    pair.say(frame(MessageType.NOTIFICATION, b"\x06\x09" + data if hard else data))
    down = pair.peer.session.last_down
    assert down is not None
    assert down.received is not None
    shown = json.dumps(
        [views.log(pair.speaker, "peer", 1.0), list(views.peers(pair.speaker, 1.0))], ensure_ascii=False
    )
    for text in (shown, down.reason, down.received.text):
        text.encode()
        assert text.isprintable()


@pytest.mark.parametrize("words", ["\udcff\ud800 tea", "\udcff" * 300, "\u20ac" * 100, "\U0001f600" * 64])
def test_rfc_9003_section_2_any_words_can_be_sent(words: str) -> None:
    """Those of a command line may hold lone surrogates. The 255 octets are whole characters."""
    pair = Pair()
    pair.speaker.reset("peer", 1.0, words)
    pair.speaker.take(1.0)
    for kind in (False, True):
        data = Notification.shutdown(words, reset=kind).data
        assert data[0] == len(data) - 1 <= 255
        data[1:].decode()


def test_a_note_of_the_flight_recorder_may_be_any_text_of_any_length() -> None:
    pair = Pair()
    pair.speaker.bfd_down("peer", 1.0, "\udcff" + "\u20ac" * 5000, independent=False)
    json.dumps(views.log(pair.speaker, "peer", 1.0), ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------------ the PARTIAL flag


@pytest.mark.parametrize(
    ("flags", "kind", "value"), [(0xC0, 7, "0000fde9 0a000001"), (0xC0, 8, "fde90001"), (0xC0, 32, "00000001" * 3)]
)
@pytest.mark.parametrize("partial", [0, 0x20])
def test_rfc_4271_section_5_partial_is_never_cleared(flags: int, kind: int, value: str, partial: int) -> None:
    """Nor set where it was not; twice, for the second time attributes are remembered."""
    optional = bytes((flags | partial, kind, len(bytes.fromhex(value)))) + bytes.fromhex(value)
    decoder = UpdateDecoder(Family, AttributeDecoder(as4=True, internal=True))
    for hop in (NEXT_HOP, NEXT_HOP[:-1] + b"\2"):
        ((_, _, attributes),) = decoder.decode(body(ORIGIN + PATH + hop + optional, PREFIX)).announced
        (message,) = encode_announcement(Family.IPV4, attributes, [PREFIX], as4=True)
        assert optional in message


def test_rfc_4271_section_5_partial_stays_when_a_route_is_reflected() -> None:
    communities = bytes.fromhex("e00804 fde90001")
    pair = Pair(asn=65000, client=True)
    pair.update(body(BASE + communities, PREFIX))
    (route,) = pair.speaker.ribs[Family.IPV4].candidates(PREFIX)
    told = export(ExportSettings(Kind.CLIENT, 65000, b"\x0a\0\0\1", tuple(Family)), Family.IPV4, PREFIX, route)
    assert told is not None
    assert communities in encode_announcement(Family.IPV4, told, [PREFIX], as4=True)[0]


# --------------------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize(
    ("path", "fate"),
    [
        ((65001, 65010), "our AS 65010 is in the path"),
        ((65001, 65000, 65002), "our AS 65000 is in the path"),
        ((65001, 65002), ""),
    ],
)
def test_rfc_4271_section_9_1_2_loops_of_a_speaker_with_two_as_numbers(path: tuple[int, ...], fate: str) -> None:
    """A route that we have told as AS 65000 may come back on the session on which we are AS 65010."""
    pair = Pair(local_asn=65010)
    pair.update(body(ORIGIN + attribute(0x40, 2, encode_path(AsPath.sequence(*path), 4)) + NEXT_HOP, PREFIX))
    assert pair.fate("10.1.1.0/24") == fate
