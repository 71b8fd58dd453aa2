"""Tables and update groups against models that are too simple to be wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.adj_rib_out import UpdateGroup
from bgp.decision import decide, ranked, usable
from bgp.export import ExportSettings, Several, export
from bgp.identifiers import Identifiers
from bgp.message import AsPath, AttributeDecoder, Attributes, Family, Framer, UpdateDecoder
from bgp.rib import Rib
from bgp.route import Kind, Route, Source

V4 = Family.IPV4
PREFIXES = [bytes((24, 10, 0, number)) for number in range(6)]
HOPS = [bytes((10, 1, 0, number)) for number in range(1, 4)]
SOURCES = [
    Source(f"peer {number}", kind, 65000 + number, bytes((10, 9, 0, number)), bytes((10, 8, 0, number)))
    for number, kind in enumerate((Kind.CLIENT, Kind.CLIENT, Kind.CLIENT, Kind.INTERNAL, Kind.EXTERNAL))
]
attributes_values = st.tuples(
    st.integers(0, 2),
    st.lists(st.integers(1, 3), max_size=2).map(lambda numbers: AsPath.sequence(*numbers)),
    st.sampled_from(HOPS),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(99, 101),
).map(lambda values: Attributes(*values))
changes = st.tuples(
    st.sampled_from(SOURCES), st.sampled_from(("announce", "withdraw", "remove", "decide")),
    st.lists(st.sampled_from(PREFIXES), unique=True, max_size=4), attributes_values,
)  # fmt: skip


def cost(next_hop: bytes) -> int | None:
    return {HOPS[0]: 1, HOPS[1]: 2}.get(next_hop)


def rank(route: Route) -> tuple[int, int, int]:
    """The steps before MED, which every route goes through."""
    local_pref = route.attributes.local_pref
    numbers = list(route.attributes.as_path.numbers())
    return -(100 if local_pref is None else local_pref), len(numbers), route.attributes.origin


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SOURCES), attributes_values), min_size=1, max_size=6), st.permutations(SOURCES)
)
def test_the_choice_does_not_depend_on_the_order(said: list[tuple[Source, Attributes]], order: list[Source]) -> None:
    routes = {source: Route(source, attributes, attributes) for source, attributes in said}
    chosen = decide(list(routes.values()), cost, paths=3)
    assert decide([routes[source] for source in order if source in routes], cost, paths=3) == chosen
    reachable = [route for route in routes.values() if cost(route.attributes.next_hop) is not None]
    assert bool(chosen) == bool(reachable)
    if chosen:
        assert rank(chosen[0]) == min(map(rank, reachable))
        assert len({cost(route.attributes.next_hop) for route in chosen}) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SOURCES), attributes_values, st.integers(0, 3)), max_size=6), st.randoms())
def test_routes_are_ranked_whatever_their_order(said: list[tuple[Source, Attributes, int]], random: Any) -> None:
    """With several of one source, told apart by their identifiers (RFC 7911)."""
    given_ = {(source, number): attributes for source, attributes, number in said}
    routes = [Route(source, value, value, identifier=bytes((0, 0, 0, n))) for (source, n), value in given_.items()]
    order = list(ranked(routes, cost))
    assert len(order) == len(usable(routes, cost)) == len(set(order))
    random.shuffle(routes)
    assert list(ranked(routes, cost)) == order
    for position in range(len(order)):
        assert decide(order[position:], cost)[0] is order[position]


@settings(max_examples=60, deadline=None)
@given(st.lists(changes, max_size=30))
def test_a_table_is_what_its_sources_last_said(said: list[tuple[Source, str, list[bytes], Attributes]]) -> None:
    rib = Rib(V4, cost)
    model: dict[tuple[Source, bytes], Attributes] = {}
    seen: dict[bytes, Route] = {}
    for source, what, prefixes, attributes in [*said, (SOURCES[0], "decide", [], Attributes())]:
        if what == "announce":
            rib.announce(source, prefixes, attributes, attributes)
            model.update({(source, prefix): attributes for prefix in prefixes})
        elif what == "withdraw":
            rib.withdraw(source, prefixes)
            for prefix in prefixes:
                model.pop((source, prefix), None)
        elif what == "remove":
            rib.remove(source)
            model = {key: value for key, value in model.items() if key[0] is not source}
        else:
            for prefix, chosen in rib.take_changes().items():
                if chosen:
                    assert seen.get(prefix) is not chosen[0]
                    seen[prefix] = chosen[0]
                else:
                    del seen[prefix]
    assert seen == dict(rib.best())
    for prefix in PREFIXES:
        routes = [Route(source, value, value) for (source, at), value in model.items() if at == prefix]
        wanted = decide(routes, cost)
        got = seen.get(prefix)
        assert (got.source if got else None) is (wanted[0].source if wanted else None)
        assert len(rib.candidates(prefix)) == len(routes)
    for source in SOURCES:
        assert set(rib.received(source)) == {prefix for owner, prefix in model if owner is source}


@settings(max_examples=60, deadline=None)
@given(st.lists(changes, max_size=30), st.sets(st.integers(0, 30)))
def test_every_member_knows_what_it_should(
    said: list[tuple[Source, str, list[bytes], Attributes]], joins: set[int]
) -> None:
    """Each member reads its octets; one joins late. All know what export makes of the best routes of others."""
    rib = Rib(V4, cost)
    exported = ExportSettings(Kind.CLIENT, 65000, b"\x0a\0\0\x63", (V4,), addresses=((V4, b"\x0a\0\0\x63"),))
    group = UpdateGroup(exported)
    late = Source("late", Kind.CLIENT, 65000)
    group.members.update(dict.fromkeys(SOURCES[:3]))
    decoder = UpdateDecoder((V4,), AttributeDecoder(as4=True, internal=True))
    tables: dict[Source, dict[bytes, Attributes]] = {member: {} for member in group.members}

    def read(member: Source, data: bytes) -> None:
        for _, body in Framer().receive(data):
            update = decoder.decode(body)
            for _, prefixes in update.withdrawn:
                for prefix in prefixes:
                    tables[member].pop(prefix, None)
            for _, prefixes, attributes in update.announced:
                tables[member].update(dict.fromkeys(prefixes, attributes))

    for number, (source, what, prefixes, attributes) in enumerate(said):
        if what == "announce":
            rib.announce(source, prefixes, attributes, attributes)
        elif what == "withdraw":
            rib.withdraw(source, prefixes)
        elif what == "remove":
            rib.remove(source)
        batch = group.apply(V4, rib.take_changes())
        for member in group.members:
            read(member, b"".join(data for data, _ in batch.octets(member)))
        if number in joins and late not in tables:
            group.members[late] = None
            tables[late] = {}
            everything = group.snapshot(V4).batch(0)
            if everything:
                read(late, b"".join(data for data, _ in everything.octets(late)))
    for member, table in tables.items():
        wanted = {
            prefix: made
            for prefix, route in rib.best()
            if route.source is not member and (made := export(exported, V4, prefix, route)) is not None
        }
        assert table == wanted == dict(group.advertised(V4, member))


# Of these sources each has several routes to a prefix, of the others one.
SEVERAL = (SOURCES[1], SOURCES[4])
several_values = st.sampled_from((Several(), Several(1), Several(2), Several(by_next_hop=True), Several(2, True)))
path_changes = st.tuples(
    st.sampled_from(SOURCES), st.sampled_from(("announce", "withdraw", "remove")),
    st.lists(st.tuples(st.sampled_from(PREFIXES[:3]), st.integers(0, 2)), unique=True, max_size=4), attributes_values,
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.lists(path_changes, max_size=30), several_values, st.integers(0, 30))
def test_every_member_knows_of_several_what_it_should(
    said: list[tuple[Source, str, list[tuple[bytes, int]], Attributes]], several: Several, joins: int
) -> None:
    """As above, where members take several routes to a prefix; an identifier stays while its route does."""
    rib, identifiers = Rib(V4, cost), Identifiers()
    rib.watch(True)
    exported = ExportSettings(
        *(Kind.CLIENT, 65000, b"\x0a\0\0\x63", (V4,)),
        addresses=((V4, b"\x0a\0\0\x63"),),
        several=((V4, several),),
    )
    group = UpdateGroup(exported)
    late = Source("late", Kind.CLIENT, 65000)
    group.members.update(dict.fromkeys(SOURCES[:3]))
    decoder = UpdateDecoder((V4,), AttributeDecoder(as4=True, internal=True), identified=(V4,))
    tables: dict[Source, dict[bytes, Attributes]] = {member: {} for member in group.members}
    before: dict[tuple[bytes, Source, bytes], bytes] = {}

    def read(member: Source, data: bytes) -> None:
        for _, body in Framer().receive(data):
            update = decoder.decode(body)
            for _, paths in update.withdrawn:
                for path in paths:
                    del tables[member][path]
            for _, paths, attributes in update.announced:
                tables[member].update(dict.fromkeys(paths, attributes))

    for number, (source, what, some, attributes) in enumerate(said):
        paths = list(dict.fromkeys(wire + (bytes((0, 0, 0, n)) if source in SEVERAL else b"") for wire, n in some))
        if what == "announce":
            rib.announce(source, paths, attributes, attributes)
        elif what == "withdraw":
            rib.withdraw(source, paths)
        else:
            rib.remove(source)
        rib.take_changes()
        batch = group.apply_several(rib, identifiers, rib.take_decided())
        for member in group.members:
            read(member, b"".join(data for data, _ in batch.octets(member)))
        if number == joins:
            group.members[late] = None
            tables[late] = {}
            everything = group.snapshot(V4).batch(0)
            if everything:
                read(late, b"".join(data for data, _ in everything.octets(late)))
        after = {
            (wire, route.source, route.identifier): identifier
            for wire in PREFIXES[:3]
            for route, identifier in identifiers.assign(wire, rib.candidates(wire)).items()
        }
        assert all(after[route] == identifier for route, identifier in before.items() if route in after)
        before = after
    for member, table in tables.items():
        assert table == dict(group.advertised(V4, member))
        for wire in PREFIXES[:3]:
            told = wanted(rib, wire, exported, several)
            given_ = identifiers.assign(wire, rib.candidates(wire))
            assert {path: value for path, value in table.items() if path[:4] == wire} == {
                wire + given_[route]: value for route, value in told if route.source is not member
            }
            assert len(set(given_.values())) == len(given_)


def wanted(rib: Rib, wire: bytes, exported: ExportSettings, several: Several) -> list[tuple[Route, Attributes]]:
    """By the letter: the best so many of those that may be told, or one for each next hop."""
    left = list(rib.candidates(wire))
    told: list[tuple[Route, Attributes]] = []
    while chosen := decide(left, cost):
        left.remove(chosen[0])
        value = export(exported, V4, wire, chosen[0])
        again = value is not None and value.next_hop in [other.next_hop for _, other in told]
        if value is not None and not (several.by_next_hop and again):
            told.append((chosen[0], value))
    return told[: several.most]
