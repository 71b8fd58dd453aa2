"""The engine's table against the plain definition of longest-prefix match and of strict reverse path."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.udp.table import Entry, Peer, Prefix, Table, digest, parse_address, parse_prefix

# Few networks and few lengths, so that prefixes nest and collide.
prefixes4 = st.builds(
    lambda a, b, length: str(ipaddress.ip_network(f"10.{a}.{b}.0/{length}", strict=False)),
    st.integers(0, 2), st.integers(0, 3), st.sampled_from([8, 16, 22, 24, 25, 32]),
)  # fmt: skip
prefixes6 = st.builds(
    lambda a, b, length: str(ipaddress.ip_network(f"fc00:{a}:0:{b}::/{length}", strict=False)),
    st.integers(0, 2), st.integers(0, 3), st.sampled_from([32, 48, 64, 128]),
)  # fmt: skip
prefixes = st.one_of(prefixes4, prefixes6)
endpoints = st.sampled_from(["192.168.50.11", "192.168.50.12", "fd50::12", "fd50:0:0::13"])
entries = st.builds(
    Entry,
    st.sampled_from("abcdef"),
    st.lists(prefixes, max_size=2).map(tuple),
    st.lists(endpoints, max_size=2, unique_by=lambda e: ":" in e).map(tuple),
)
changes = st.one_of(
    st.tuples(st.just("set"), st.lists(entries, max_size=6, unique_by=lambda e: e.key)),
    st.tuples(st.just("add"), st.lists(entries, max_size=3)),
    st.tuples(st.just("remove"), st.lists(st.sampled_from("abcdef"), max_size=3)),
)
probes = st.builds(
    lambda net, offset: ipaddress.ip_address(int(net.network_address) + offset % net.num_addresses),
    prefixes.map(ipaddress.ip_network),
    st.integers(0, 2**64),
)


def owner(present: dict[str, Entry], address: Any) -> str | None:
    """The key of the peer with the longest prefix that holds the address; of several the first by key."""
    found = [
        (-net.prefixlen, entry.key)
        for entry in present.values()
        for net in map(ipaddress.ip_network, entry.subnets)
        if net.version == address.version and address in net
    ]
    return min(found)[1] if found else None


@given(st.lists(changes, max_size=6), st.lists(probes, min_size=1, max_size=6), st.lists(prefixes, max_size=2))
def test_lookup_is_longest_prefix_match_after_any_changes(
    steps: list[tuple[str, list[Any]]], addresses: list[Any], own: list[str]
) -> None:
    table, present = Table(), {}
    table.own(own)
    for verb, items in steps:
        getattr(table, verb)(items)
        if verb == "set":
            present = {}
        if verb == "remove":
            for key in items:
                present.pop(key, None)
        else:
            present.update((entry.key, entry) for entry in items)
        for address in addresses:  # in each state: the caches must not outlive a change
            for _ in range(2):
                peer = table.routes.get(address.packed) or table.route(address.packed)
                assert (peer.key if peer else None) == owner(present, address)
            for other in addresses:
                check_admission(table, present, own, address, other)
    assert {peer.key: peer.entry for peer in table} == present
    assert len(table) == len(present)
    assert table.digest() == digest(present.values())
    speakers = {str(ipaddress.ip_address(e)) for entry in present.values() for e in entry.endpoints}
    assert table.senders.keys() == speakers


def check_admission(table: Table, present: dict[str, Entry], own: list[str], source: Any, target: Any) -> None:
    if source.version != target.version:
        return
    addresses = source.packed + target.packed
    found = table.flows.get(addresses) or table.admit(addresses)
    here = any(target in ipaddress.ip_network(o) for o in own if (":" in o) == (target.version == 6))
    if owner(present, source) is None:
        assert found == "source"
    elif not here:
        assert found == "destination"
    else:
        assert isinstance(found, Peer)
        assert found.key == owner(present, source)


@given(st.lists(entries, max_size=6, unique_by=lambda e: e.key), st.randoms())
def test_the_digest_is_of_the_entries_not_of_their_order(items: list[Entry], random: Any) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    assert digest(items) == digest(shuffled)
    if items:
        assert digest(items) != digest(items[1:])


@given(st.text(max_size=30))
def test_parsing_agrees_with_the_standard_library(text: str) -> None:
    try:
        wanted = ipaddress.ip_network(text)
    except ValueError:
        wanted = None
    try:
        found = parse_prefix(text)
    except ValueError:
        found = None
    if found is not None:
        assert wanted is not None
        width = wanted.max_prefixlen
        assert found == Prefix(
            wanted.version, int(wanted.network_address) >> (width - wanted.prefixlen), wanted.prefixlen
        )


NO_PREFIXES = [
    "/",
    "10.5.0.0",
    "10.5.0.0/",
    "10.5.0.1/24",
    "10.5.0.0/33",
    "10.5.0/24",
    "10.5.0.0/+8",
    "10.5.0.0/٣",
    "10.5.0.0/-1",
    "host/8",
    "10.5.0.0\x00/24",
    "fc00::/129",
    "fc00::1/64",
    "fe80::1%eth0/128",
]


@pytest.mark.parametrize("text", ["", *NO_PREFIXES])
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match=r"not|host bits"):
        parse_prefix(text)


@pytest.mark.parametrize("text", ["", "10.5.0", "10.5.0.0.0", "fe80::1%eth0", "1.2.3.4\0", "host", "💥"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        parse_address(text)


def test_a_bad_entry_changes_nothing() -> None:
    table = Table()
    good = Entry("a", ("10.5.1.0/24",), ("192.168.50.11",))
    table.set([good])
    for bad in (Entry("b", ("10.5.1.1/24",), ()), Entry("b", (), ("nowhere",))):
        for change in (table.set, table.add):
            with pytest.raises(ValueError, match=r"host bits|not an IP"):
                change([good._replace(endpoints=("192.168.50.12",)), bad])
    with pytest.raises(ValueError, match="not a prefix"):
        table.own(["10.5.0.0"])
    assert [peer.entry for peer in table] == [good]
    assert table.senders.keys() == {"192.168.50.11"}


def test_counters_outlive_a_change_of_the_entry() -> None:
    table = Table()
    table.set([Entry("a", ("10.5.1.0/24",), ("192.168.50.11",))])
    peer = table.get("a")
    assert peer is not None
    peer.restore((1, 2, 3, 4, 5, 6.5))
    table.set([Entry("a", ("10.5.1.0/24",), ("192.168.50.11",)), Entry("b", (), ())])
    assert table.get("a") is peer
    for change, endpoint in ((table.add, "192.168.50.12"), (table.set, "192.168.50.13")):
        change([Entry("a", ("10.5.1.0/24",), (endpoint,))])
        again = table.get("a")
        assert again is not None
        assert again.addresses == (endpoint,)
        assert again.counters() == (1, 2, 3, 4, 5, 6.5)
