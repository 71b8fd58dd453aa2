"""BGP by the clause: what an RFC says of one case, one test each; the section is in the name or the docstring."""

from __future__ import annotations

from bgp.message import (
    AsPath,
    AttributeDecoder,
    Attributes,
    Family,
    Update,
    UpdateDecoder,
    encode_announcement,
)
from bgp.message import (
    attributes as attribute_module,
)
from bgp.message.attributes import attribute
from bgp.message.codes import EXTENDED_MESSAGE_SIZE

ORIGIN = bytes.fromhex("40010100")
PATH = bytes.fromhex("400206 0201 0000fde9")
NEXT_HOP = bytes.fromhex("400304 0a000001")
BASE = ORIGIN + PATH + NEXT_HOP
PREFIX = bytes.fromhex("180a0101")
V6_PREFIX = bytes.fromhex("2020010db8")
V6_HOP = bytes.fromhex("20010db8000000000000000000000001")


def body(attributes: bytes = b"", announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    return len(withdrawn).to_bytes(2, "big") + withdrawn + len(attributes).to_bytes(2, "big") + attributes + announced


def decode(
    data: bytes, *, internal: bool = False, as4: bool = True, families: tuple[Family, ...] = tuple(Family)
) -> Update:
    return UpdateDecoder(families, AttributeDecoder(as4=as4, internal=internal)).decode(data)


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
