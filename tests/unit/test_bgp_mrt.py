"""Real messages from route collectors, held against what another decoder read in the same files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import pytest

from bgp.message import (
    AttributeDecoder,
    Attributes,
    Family,
    Framer,
    MessageType,
    Origin,
    RemoteError,
    Update,
    UpdateDecoder,
    encode_announcement,
    nlri,
)
from bgp.message.aspath import AS_SET
from bgp.message.attributes import community_text
from bgp.rib import Rib
from bgp.route import Kind, Source
from tests.support import mrt

UPDATES = [
    "updates.20020722.2238",
    "updates.20071015.1505",
    "updates.20100722.2015",
    "updates.20160811.1600",
    "updates.long_withdrawal",
]
TABLES = ["bview.64k_stream_overflow", "bview.ipv4_unicast_add_path", "bview.ipv6_unicast_add_path"]
ORIGINS = ("IGP", "EGP", "INCOMPLETE")
COMMUNITIES = {0xFFFFFF01: "no-export", 0xFFFFFF02: "no-advertise", 0xFFFFFF03: "local-AS"}


def expected(name: str) -> list[str]:
    text = gzip.decompress((mrt.data("bgp/mrt") / f"{name}.gz.bgp.gz").read_bytes()).decode()
    return text.splitlines()


def decoders() -> dict[int, UpdateDecoder]:
    return {width: UpdateDecoder(Family, AttributeDecoder(as4=width == 4, internal=True)) for width in (2, 4)}


def attributes_text(attributes: Attributes, next_hop: bytes | None = None) -> str:
    """As the other decoder writes them; it knows nothing of large communities."""
    path = " ".join(
        "{" + ",".join(map(str, numbers)) + "}" if kind == AS_SET else " ".join(map(str, numbers))
        for kind, numbers in attributes.as_path
    )
    communities = [COMMUNITIES.get(value) or community_text(value) for value in attributes.communities]
    aggregator = ""
    if attributes.aggregator:
        aggregator = f"{attributes.aggregator[0]} {nlri.address_text(attributes.aggregator[1])}"
    return "|".join(
        (
            path,
            ORIGINS[attributes.origin],
            nlri.address_text(attributes.next_hop if next_hop is None else next_hop),
            str(attributes.local_pref or 0),
            str(attributes.med or 0),
            " ".join(communities),
            "AG" if attributes.atomic_aggregate else "NAG",
            aggregator,
            "",
        )
    )


def update_lines(name: str) -> Iterator[str]:
    readers = decoders()
    for record in mrt.read(mrt.data("bgp/mrt") / f"{name}.gz"):
        start = f"|{nlri.address_text(record.peer)}|{record.peer_asn}"
        if isinstance(record, mrt.StateChange):
            yield f"BGP4MP|{record.time}|STATE{start}|{record.old}|{record.new}"
            continue
        assert isinstance(record, mrt.Message)
        if record.data[18] != MessageType.UPDATE:
            continue
        update = readers[record.width].decode(record.data[19:])
        for family, prefixes in update.withdrawn:
            for prefix in prefixes:
                yield f"BGP4MP|{record.time}|W{start}|{nlri.text(family, prefix)}"
        for family, prefixes, attributes in update.announced:
            for prefix in prefixes:
                tail = attributes_text(attributes)
                yield f"BGP4MP|{record.time}|A{start}|{nlri.text(family, prefix)}|{tail}"


def normal(line: str) -> str:
    """The line with its addresses as we write them, and an announcement through the next hop :: as a withdrawal.

    The other decoder writes IPv6 addresses in a way of its own, and does not judge next hops.
    """
    fields = line.split("|")
    if fields[2] == "A" and fields[8] == "::":
        fields[2:] = ["W", *fields[3:6]]
    for index in (3, 8):
        if index < len(fields) and ":" in fields[index]:
            fields[index] = nlri.address_text(nlri.parse_address(fields[index]))
    return "|".join(fields)


@pytest.mark.parametrize("name", UPDATES)
def test_updates_of_route_collectors(name: str) -> None:
    assert sorted(update_lines(name)) == sorted(map(normal, expected(name)))


def test_bits_behind_a_prefix_are_cleared_and_a_cut_prefix_ends_the_session() -> None:
    """The one message of this file has 11.13/13, and behind it the length of a prefix that is not there."""
    (record,) = mrt.read(mrt.data("bgp/mrt") / "updates.nlri_mask_trailing_bits.gz")
    assert isinstance(record, mrt.Message)
    body = record.data[19:]
    decoder = decoders()[record.width]
    with pytest.raises(RemoteError) as caught:
        decoder.decode(body)
    assert (caught.value.code, caught.value.subcode) == (3, 10)
    ((family, prefixes, attributes),) = decoder.decode(body[:-1]).announced
    fields = expected("updates.nlri_mask_trailing_bits")[0].split("|")
    assert [nlri.text(family, prefix) for prefix in prefixes] == [fields[5]]
    assert attributes_text(attributes) == "|".join(fields[6:])


@pytest.mark.parametrize("name", TABLES)
def test_table_dumps(name: str) -> None:
    """The blocks of a table dump have MP_REACH_NLRI cut down to its next hop (RFC 6396 section 4.3.4), if at all."""
    decoder = AttributeDecoder(as4=True, internal=True)
    got = []
    for record in mrt.read(mrt.data("bgp/mrt") / f"{name}.gz"):
        assert isinstance(record, mrt.RibRoute)
        block = decoder.decode(record.attributes)
        assert block.attributes is not None, block.faults
        next_hop = block.attributes.next_hop or b"\xff" * 4  # as the other decoder writes that there is none
        if block.reach is not None:
            whole = block.reach[3:] if block.reach[0] == 0 else block.reach  # one file has it whole
            next_hop = whole[1 : 1 + whole[0]]
        family = Family.IPV4 if record.afi == 1 else Family.IPV6
        kind = "TABLE_DUMP2" if record.path_id is None else "TABLE_DUMP2_AP"
        fields = [kind, str(record.time), "B", nlri.address_text(record.peer), str(record.peer_asn)]
        fields.append(nlri.text(family, record.prefix))
        if record.path_id is not None:
            fields.append(str(record.path_id))
        # A route without any attributes: the other decoder writes its origin so.
        attributes = block.attributes if record.attributes else Attributes(origin=Origin.INCOMPLETE)
        got.append("|".join((*fields, attributes_text(attributes, next_hop))))
    assert got == list(map(normal, expected(name)))


@pytest.mark.parametrize("name", [name for name in TABLES if "add_path" in name])
def test_the_paths_of_a_table_dump_are_told_and_kept_apart(name: str) -> None:
    """Each route of the dump as a session with ADD-PATH would carry it, into Adj-RIB-In and out of it."""
    block_of = AttributeDecoder(as4=True, internal=True)
    decoder = UpdateDecoder(Family, block_of, identified=tuple(Family))
    family = Family.IPV4 if "ipv4" in name else Family.IPV6
    next_hop = bytes((10, 0, 0, 1)) if family is Family.IPV4 else b"\x20" + bytes(14) + b"\1"
    rib = Rib(family)
    sources: dict[tuple[bytes, int], Source] = {}
    wanted: dict[bytes, int] = {}
    for record in mrt.read(mrt.data("bgp/mrt") / f"{name}.gz"):
        assert isinstance(record, mrt.RibRoute)
        assert record.path_id is not None
        attributes = block_of.decode(record.attributes).attributes
        assert attributes is not None
        given = attributes._replace(next_hop=next_hop)
        path = record.prefix + record.path_id.to_bytes(4, "big")
        ((_, body),) = Framer().receive(b"".join(encode_announcement(family, given, [path], as4=True)))
        assert record.path_id.to_bytes(4, "big") + record.prefix in body
        update = decoder.decode(body)
        assert update == Update(announced=((family, [path], given),))
        source = sources.setdefault((record.peer, record.peer_asn), Source("", Kind.EXTERNAL, record.peer_asn))
        rib.announce(source, [path], given, given)
        wanted[record.prefix] = wanted.get(record.prefix, 0) + 1
    assert {prefix: len(rib.candidates(prefix)) for prefix in rib.prefixes()} == wanted
    for source in sources.values():
        rib.withdraw(source, list(rib.received(source)))
    assert not list(rib.prefixes())


def test_inputs_found_by_fuzzing_another_speaker() -> None:
    for path in sorted(mrt.data("bgp/bad-length").iterdir()):
        raw = path.read_bytes()
        # Once as they are, and once with a header that leads into the decoder they were found in.
        for data in (raw, b"\xff" * 16 + len(raw).to_bytes(2, "big") + b"\x02" + raw[19:]):
            for width, decoder in decoders().items():
                try:
                    for kind, body in Framer().receive(data):
                        assert kind != 2 or decoder.decode(body), width
                except RemoteError as error:
                    assert error.reason
