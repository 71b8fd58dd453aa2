"""BGP by the clause: what an RFC says of one case, one test each; the section is in the name or the docstring."""

from __future__ import annotations

from typing import Any

import pytest

from bgp.connection import Direction, Send
from bgp.message import (
    KEEPALIVE,
    AsPath,
    AttributeDecoder,
    Attributes,
    Capabilities,
    Family,
    MessageType,
    Open,
    Update,
    UpdateDecoder,
    encode_announcement,
    nlri,
)
from bgp.message import (
    attributes as attribute_module,
)
from bgp.message.attributes import attribute
from bgp.message.codes import EXTENDED_MESSAGE_SIZE
from bgp.message.framing import frame
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.policy import Change, Policy, Rule
from bgp.speaker import Speaker

ORIGIN = bytes.fromhex("40010100")
PATH = bytes.fromhex("400206 0201 0000fde9")
NEXT_HOP = bytes.fromhex("400304 0a000001")
BASE = ORIGIN + PATH + NEXT_HOP
PREFIX = bytes.fromhex("180a0101")
V6_PREFIX = bytes.fromhex("2020010db8")
V6_HOP = bytes.fromhex("20010db8000000000000000000000001")
ADDRESSES = ((Family.IPV4, b"\x0a\0\0\x09"), (Family.IPV6, bytes.fromhex("20010db8000000000000000000000009")))


def body(attributes: bytes = b"", announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    return len(withdrawn).to_bytes(2, "big") + withdrawn + len(attributes).to_bytes(2, "big") + attributes + announced


def decode(
    data: bytes, *, internal: bool = False, as4: bool = True, families: tuple[Family, ...] = tuple(Family)
) -> Update:
    return UpdateDecoder(families, AttributeDecoder(as4=as4, internal=internal)).decode(data)


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
    for memory in (attributes._blocks, attributes._attributes):
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


def test_rfc_7606_section_7_5_local_pref_of_another_as_is_discarded() -> None:
    """On a session with another AS by `local_asn` alone too."""
    for data in (
        body(BASE + attribute(0x40, 5, bytes(4)), PREFIX),
        body(BASE + attribute(0x40, 5, bytes(3)), PREFIX),
    ):
        pair = Pair(asn=65001, local_asn=65010)
        pair.update(data)
        assert pair.fate("10.1.1.0/24") == ""
        (route,) = pair.speaker.ribs[Family.IPV4].candidates(PREFIX)
        assert route.attributes.local_pref is None
        assert [fault.kind for fault in pair.peer.faults] == [5]
