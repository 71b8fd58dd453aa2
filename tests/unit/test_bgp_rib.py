"""The choice of routes, policy, what a route becomes on its way to a peer, and update groups."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from bgp.adj_rib_out import SLICE, Batch, UpdateGroup
from bgp.decision import decide, why
from bgp.export import ExportSettings, export
from bgp.message import AsPath, AttributeDecoder, Attributes, Family, Framer, UpdateDecoder, nlri
from bgp.message.aspath import AS_SEQUENCE, AS_SET
from bgp.policy import EVERYTHING, Change, Match, Policy, PrefixRange, Rule
from bgp.rib import Rib
from bgp.route import Kind, Route, Source

V4 = Family.IPV4
NET = nlri.parse("10.1.1.0/24")[1]
OTHER = nlri.parse("10.1.2.0/24")[1]
HOP = b"\x0a\0\0\1"
HOP2 = b"\x0a\0\0\2"


def source(name: str = "peer", kind: Kind = Kind.INTERNAL, asn: int = 65001, last: int = 1) -> Source:
    return Source(name, kind, asn, bytes((10, 9, 0, last)), bytes((10, 8, 0, last)))


def route(where: Source | None = None, /, rejected: str = "", **attributes: Any) -> Route:
    value = Attributes(**{"next_hop": HOP, **attributes})
    return Route(where or source(), value, value, rejected)


def no_metric(_: bytes) -> int:
    return 0


# --------------------------------------------------------------------------------------------- the decision

LONG = AsPath.sequence(1, 2, 3)
SHORT = AsPath.sequence(4, 5)
STEPS = [
    ("originated here", route(source(kind=Kind.LOCAL), as_path=LONG), route(as_path=SHORT, local_pref=900)),
    ("higher local preference", route(local_pref=101, as_path=LONG), route(as_path=SHORT)),
    ("shorter AS path", route(as_path=SHORT, origin=2), route(as_path=LONG)),
    (
        "shorter AS path",
        route(as_path=AsPath(((AS_SEQUENCE, (1,)), (AS_SET, (2, 3, 4))))),
        route(as_path=AsPath.sequence(1, 2, 3)),
    ),
    ("lower origin", route(origin=0, med=9), route(origin=1)),
    ("lower MED", route(as_path=SHORT), route(source(kind=Kind.EXTERNAL), as_path=SHORT, med=1)),
    (
        "external over internal",
        route(source(kind=Kind.EXTERNAL, last=9), as_path=SHORT, med=7),
        route(as_path=AsPath.sequence(9, 9)),
    ),
    ("lower metric to the next hop", route(source(last=9), next_hop=HOP), route(next_hop=HOP2)),
    ("lower router id", route(source(last=1), cluster_list=(HOP, HOP)), route(source(last=2))),
    ("lower router id", route(source(last=3), originator_id=b"\x01\0\0\0"), route(source(last=2))),
    (
        "shorter cluster list",
        route(source(last=9), originator_id=HOP),
        route(source(last=2), originator_id=HOP, cluster_list=(HOP,)),
    ),
    ("lower peer address", route(source(last=1), originator_id=HOP), route(source(last=2), originator_id=HOP)),
]


@pytest.mark.parametrize(("step", "best", "other"), STEPS)
def test_each_step_of_the_decision(step: str, best: Route, other: Route) -> None:
    def metric(next_hop: bytes) -> int:
        return {HOP: 1, HOP2: 2}[next_hop]

    for routes in ([best, other], [other, best]):
        assert decide(routes, metric) == (best,)
    assert why(best, other, metric) == step


def test_med_counts_only_within_a_neighbouring_as() -> None:
    """The classic three: compared in pairs they go in a circle, so the order of arrival must not matter."""
    one = route(source("one", last=1), as_path=AsPath.sequence(1, 7), med=10, next_hop=b"\x0a\0\0\x0b")
    two = route(source("two", last=2), as_path=AsPath.sequence(2, 7), med=5, next_hop=b"\x0a\0\0\x0c")
    three = route(source("three", last=3), as_path=AsPath.sequence(1, 7), med=1, next_hop=b"\x0a\0\0\x0d")
    cost = {b"\x0a\0\0\x0b": 1, b"\x0a\0\0\x0c": 2, b"\x0a\0\0\x0d": 3}
    for order in itertools.permutations((one, two, three)):
        assert decide(order, cost.__getitem__) == (two,)


def test_a_next_hop_that_cannot_be_reached_takes_no_part() -> None:
    near, far = route(next_hop=HOP, as_path=LONG), route(source(last=2), next_hop=HOP2)
    assert decide([near, far], {HOP: 5}.get) == (near,)
    assert decide([far], {HOP: 5}.get) == ()
    assert why(near, far, {HOP: 5}.get) == "the next hop cannot be reached"
    assert decide([route(rejected="by policy"), near], {HOP: 5}.get) == (near,)


def test_multipath_takes_equals_that_go_another_way() -> None:
    routes = [route(source(str(last), last=last), next_hop=bytes((10, 0, 0, last % 3 + 1))) for last in range(1, 7)]
    worse = route(source(last=9), as_path=SHORT, next_hop=bytes((10, 0, 0, 77)))
    chosen = decide([*reversed(routes), worse], no_metric, paths=8)
    assert chosen == (routes[0], routes[1], routes[2])
    assert decide(routes, no_metric, paths=2) == (routes[0], routes[1])


# ------------------------------------------------------------------------------------------------- the tables


def test_a_table_tells_only_what_changed() -> None:
    rib = Rib(V4)
    one, two = source("one", last=1), source("two", last=2)
    attributes = Attributes(next_hop=HOP)
    rib.announce(two, [NET, OTHER], attributes, attributes)
    changes = rib.take_changes()
    assert {prefix: routes[0].source for prefix, routes in changes.items()} == {NET: two, OTHER: two}
    worse = attributes._replace(as_path=LONG)
    rib.announce(one, [NET], worse, worse)
    assert rib.take_changes() == {}
    rib.withdraw(two, [NET])
    rib.withdraw(two, [NET])
    changes = rib.take_changes()
    assert [routes[0].source for routes in changes.values()] == [one]
    rib.remove(two)
    rib.remove(one)
    assert rib.take_changes() == {OTHER: (), NET: ()} or rib.chosen == {}
    assert rib.candidates(NET) == ()
    assert rib.received(one) == {}


def test_what_comes_and_goes_within_a_batch_is_never_told() -> None:
    rib = Rib(V4)
    rib.announce(source(), [NET], Attributes(next_hop=HOP), Attributes(next_hop=HOP))
    rib.remove(source())
    one = source()
    rib.announce(one, [OTHER], Attributes(next_hop=HOP), Attributes(next_hop=HOP))
    rib.withdraw(one, [OTHER])
    assert list(rib.take_changes()) == [NET]


def test_stale_routes_stay_until_the_source_has_announced_all() -> None:
    rib = Rib(V4)
    one = source()
    attributes = Attributes(next_hop=HOP)
    rib.announce(one, [NET, OTHER], attributes, attributes)
    rib.take_changes()
    rib.mark_stale(one)
    assert rib.take_changes() == {}
    rib.announce(one, [NET], attributes, attributes)
    rib.sweep(one)
    assert set(rib.chosen) == {NET, OTHER}  # not decided yet
    rib.take_changes()
    assert set(rib.chosen) == {NET}
    rib.sweep(one)
    assert rib.take_changes() == {}


def test_a_changed_metric_decides_anew() -> None:
    cost: dict[bytes, int] = {HOP: 1, HOP2: 2}
    rib = Rib(V4, cost.get)
    for last, hop in ((2, HOP), (1, HOP2)):
        attributes = Attributes(next_hop=hop)
        rib.announce(source(str(last), last=last), [NET], attributes, attributes)
    rib.take_changes()
    assert rib.chosen[NET][0].attributes.next_hop == HOP
    del cost[HOP]
    assert rib.take_changes() == {}
    rib.next_hops_changed([HOP])
    assert rib.take_changes()[NET][0].attributes.next_hop == HOP2


def test_more_paths_are_chosen_when_they_are_wanted() -> None:
    rib = Rib(V4)
    for last, hop in ((2, HOP), (1, HOP2)):
        rib.announce(source(str(last), last=last), [NET], Attributes(next_hop=hop), Attributes(next_hop=hop))
    assert len(rib.take_changes()[NET]) == 1
    rib.paths = 4
    rib.decide_anew()
    assert len(rib.take_changes()[NET]) == 2


# ---------------------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"], ["10.0.0.0/9", "11.0.0.0/8", "0.0.0.0/0"]),
        ("10.0.0.0/8+", ["10.0.0.0/8", "10.255.0.0/16"], ["0.0.0.0/0", "11.0.0.0/16"]),
        ("10.64.0.0/10{24,26}", ["10.65.1.0/24", "10.127.0.0/26"], ["10.64.0.0/10", "10.128.0.0/24", "10.64.0.0/27"]),
        ("0.0.0.0/0", ["0.0.0.0/0"], ["10.0.0.0/8"]),
        ("2001:db8::/29+", ["2001:dbf::/32"], ["2001:dc0::/32", "32.1.13.184/32"]),
    ],
)
def test_prefix_ranges(text: str, inside: list[str], outside: list[str]) -> None:
    entry = PrefixRange.parse(text)
    assert all(entry.matches(*nlri.parse(prefix)) for prefix in inside)
    assert not any(entry.matches(*nlri.parse(prefix)) for prefix in outside)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8{7,9}", "10.0.0.0/8{26,24}", "10.0.0.0/8{8,33}", "10.0.0.0/8{8", "10.0.0.0/8+{9,10}", "x"]
)
def test_a_bad_prefix_range_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|length"):
        PrefixRange.parse(text)


GIVEN = Attributes(
    as_path=AsPath.sequence(65010, 65020), next_hop=HOP, communities=(1, 2), large_communities=((1, 2, 3),)
)


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        (Match(), True),
        (Match(communities=frozenset((2, 9))), True),
        (Match(communities=frozenset((9,))), False),
        (Match(large_communities=frozenset(((1, 2, 3),))), True),
        (Match(through=frozenset((65020,))), True),
        (Match(neighbour=frozenset((65020,))), False),
        (Match(neighbour=frozenset((65010,)), originator=frozenset((65020,))), True),
        (Match(originator=frozenset((65010,))), False),
        (Match(longest_path=1), False),
        (Match(prefixes=(PrefixRange.parse("10.0.0.0/8+"),), longest_path=2), True),
    ],
)
def test_conditions(match: Match, holds: bool) -> None:
    assert match.matches(V4, NET, GIVEN) is holds
    assert Policy((Rule(False, match),)).apply(V4, NET, GIVEN) == (None if holds else GIVEN)


def test_changes() -> None:
    change = Change(
        local_pref=300,
        med=0,
        next_hop=HOP2,
        prepend=(65001, 65001),
        remove_communities=frozenset((1,)),
        add_communities=(5, 2),
        add_large_communities=((4, 5, 6),),
    )
    got = change.apply(V4, GIVEN)
    assert got == GIVEN._replace(
        local_pref=300,
        med=0,
        next_hop=HOP2,
        as_path=AsPath.sequence(65001, 65001, 65010, 65020),
        communities=(2, 5),
        large_communities=((1, 2, 3), (4, 5, 6)),
    )
    assert change.apply(Family.IPV6, GIVEN).next_hop == HOP
    assert Change(clear_communities=True).apply(V4, GIVEN) == GIVEN._replace(communities=(), large_communities=())
    assert Change().apply(V4, GIVEN) is GIVEN


def test_the_first_rule_that_matches_decides() -> None:
    policy = Policy(
        (Rule(False, Match(communities=frozenset((1,)))), Rule(True, Match(), Change(med=5))), accept=False
    )
    assert policy.apply(V4, NET, GIVEN) is None
    assert policy.apply(V4, NET, GIVEN._replace(communities=())) == GIVEN._replace(communities=(), med=5)
    assert Policy(accept=False).apply(V4, NET, GIVEN) is None


# ---------------------------------------------------------------------------------------------------- export

ADDRESSES = ((V4, b"\x0a\0\0\x63"),)
PEERS = {
    kind: ExportSettings(kind, 65001, b"\x0a\0\0\x63", (V4,), addresses=ADDRESSES, policy=EVERYTHING)
    for kind in (Kind.INTERNAL, Kind.CLIENT, Kind.EXTERNAL)
}


def sent(to: Kind, what: Route) -> Attributes | None:
    return export(PEERS[to], V4, NET, what)


@pytest.mark.parametrize(
    ("origin", "to", "goes"),
    [
        (origin, to, (origin, to) != (Kind.INTERNAL, Kind.INTERNAL))
        for origin in Kind
        for to in (Kind.INTERNAL, Kind.CLIENT, Kind.EXTERNAL)
    ],
)
def test_who_gets_what_from_whom(origin: Kind, to: Kind, goes: bool) -> None:
    assert (sent(to, route(source(kind=origin))) is not None) is goes


@pytest.mark.parametrize("to", [Kind.INTERNAL, Kind.CLIENT, Kind.EXTERNAL])
@pytest.mark.parametrize("origin", list(Kind))
def test_without_a_policy_only_what_is_ours_and_what_is_reflected_goes(origin: Kind, to: Kind) -> None:
    reflected = {(Kind.CLIENT, Kind.INTERNAL), (Kind.CLIENT, Kind.CLIENT), (Kind.INTERNAL, Kind.CLIENT)}
    got = export(replace(PEERS[to], policy=None), V4, NET, route(source(kind=origin)))
    assert (got is not None) is (origin is Kind.LOCAL or (origin, to) in reflected)


def test_a_policy_can_tell_what_is_ours() -> None:
    policy = Policy((Rule(True, Match(own=True), Change(add_communities=(7,))), Rule(False)))
    settings = replace(PEERS[Kind.EXTERNAL], policy=policy)
    ours = export(settings, V4, NET, route(source(kind=Kind.LOCAL), med=5))
    assert ours is not None
    assert (ours.communities, ours.med) == ((7,), 5)
    assert export(settings, V4, NET, route(source(kind=Kind.CLIENT))) is None


def test_towards_another_as() -> None:
    given = route(
        source(kind=Kind.CLIENT), as_path=LONG, med=5, local_pref=200, originator_id=HOP, cluster_list=(HOP,)
    )
    assert sent(Kind.EXTERNAL, given) == Attributes(as_path=AsPath.sequence(65001, 1, 2, 3), next_hop=b"\x0a\0\0\x63")


def test_within_the_as() -> None:
    given = route(source(kind=Kind.EXTERNAL), as_path=LONG, med=5)
    assert sent(Kind.INTERNAL, given) == given.attributes._replace(local_pref=100)
    ours = route(source(kind=Kind.LOCAL), next_hop=b"")
    assert sent(Kind.INTERNAL, ours) == Attributes(next_hop=b"\x0a\0\0\x63", local_pref=100)


def test_reflection_adds_originator_and_cluster() -> None:
    given = route(source(kind=Kind.CLIENT, last=7), local_pref=50)
    once = sent(Kind.INTERNAL, given)
    assert once is not None
    assert once == given.attributes._replace(originator_id=b"\x0a\x09\0\7", cluster_list=(b"\x0a\0\0\x63",))
    twice = sent(Kind.CLIENT, Route(source(kind=Kind.INTERNAL, last=8), once, once))
    assert twice is not None
    assert twice.originator_id == b"\x0a\x09\0\7"
    assert twice.cluster_list == (b"\x0a\0\0\x63", b"\x0a\0\0\x63")


def test_well_known_communities_are_obeyed() -> None:
    for community, internal, external in (
        (0xFFFFFF01, True, False),
        (0xFFFFFF02, False, False),
        (0xFFFFFF03, True, False),
    ):
        given = route(source(kind=Kind.EXTERNAL), communities=(community,))
        assert (sent(Kind.INTERNAL, given) is not None) is internal
        assert (sent(Kind.EXTERNAL, given) is not None) is external


def test_next_hop_self_and_kept() -> None:
    given = route(source(kind=Kind.EXTERNAL))
    ourselves = ExportSettings(
        Kind.INTERNAL, 65001, HOP, (V4,), addresses=ADDRESSES, next_hop_self=True, policy=EVERYTHING
    )
    kept = ExportSettings(
        Kind.EXTERNAL, 65001, HOP, (V4,), addresses=ADDRESSES, next_hop_self=False, policy=EVERYTHING
    )
    for settings, wanted in ((ourselves, b"\x0a\0\0\x63"), (kept, HOP)):
        got = export(settings, V4, NET, given)
        assert got is not None
        assert got.next_hop == wanted
    assert export(PEERS[Kind.EXTERNAL], Family.IPV6, b"\0", route(next_hop=bytes(15) + b"\2")) is None


# --------------------------------------------------------------------------------------------- update groups


def told(data: bytes) -> tuple[dict[bytes, Attributes], set[bytes]]:
    """What a peer understands: announced and withdrawn."""
    decoder = UpdateDecoder(Family, AttributeDecoder(as4=True, internal=True))
    announced: dict[bytes, Attributes] = {}
    withdrawn: set[bytes] = set()
    for _, body in Framer().receive(data):
        update = decoder.decode(body)
        assert not update.faults
        for _, prefixes in update.withdrawn:
            withdrawn.update(prefixes)
        for _, prefixes, attributes in update.announced:
            announced.update(dict.fromkeys(prefixes, attributes))
    return announced, withdrawn


def octets(batch: Batch, member: Source) -> bytes:
    """What a member is sent, in one piece; the counts of messages are right."""
    pieces = list(batch.octets(member))
    for data, count in pieces:
        assert len(list(Framer().receive(data))) == count
    return pieces[0][0] if len(pieces) == 1 else b"".join(data for data, _ in pieces)


def test_a_group_is_told_once_and_nobody_of_its_own_routes() -> None:
    group = UpdateGroup(PEERS[Kind.CLIENT])
    members = [source(f"client {last}", Kind.CLIENT, last=last) for last in range(1, 5)]
    group.members.update(dict.fromkeys(members))
    first, second, *rest = members
    given = route(first)
    batch = group.apply(V4, {NET: (given,), OTHER: (given,)})
    assert octets(batch, first) == b""
    assert set(told(octets(batch, second))[0]) == {NET, OTHER}
    assert octets(batch, second) is octets(batch, rest[0])
    assert len(list(Framer().receive(octets(batch, second)))) == 1  # packed by attributes
    assert octets(group.apply(V4, {NET: (given,)}), second) == b""

    # The route is the second's now: the first learns of it, the second is told to forget the first's.
    batch = group.apply(V4, {NET: (route(second),)})
    assert set(told(octets(batch, first))[0]) == {NET}
    assert told(octets(batch, second)) == ({}, {NET})
    assert dict(group.advertised(V4, second)).keys() == {OTHER}

    batch = group.apply(V4, {NET: ()})
    assert told(octets(batch, first))[1] == {NET}
    assert octets(batch, second) == b""


def everything(group: UpdateGroup) -> Batch:
    batch = group.snapshot(V4).batch(0)
    assert batch is not None
    return batch


def test_a_late_member_is_told_everything() -> None:
    group = UpdateGroup(PEERS[Kind.CLIENT])
    one, two = source("one", Kind.CLIENT, last=1), source("two", Kind.CLIENT, last=2)
    group.apply(V4, {NET: (route(one),), OTHER: (route(two),)})
    assert told(octets(everything(group), one))[0].keys() == {OTHER}
    assert told(octets(everything(group), source("late", Kind.CLIENT)))[0].keys() == {NET, OTHER}


def test_a_snapshot_is_shared_until_something_changes_and_comes_in_slices() -> None:
    group = UpdateGroup(PEERS[Kind.CLIENT])
    one = source("one", Kind.CLIENT)
    prefixes = [bytes((24, 10, number >> 8, number & 255)) for number in range(2 * SLICE + 1)]
    group.apply(V4, dict.fromkeys(prefixes, (route(one),)))
    snapshot = group.snapshot(V4)
    assert group.snapshot(V4) is snapshot
    slices = [snapshot.batch(number) for number in range(4)]
    assert slices[3] is None
    known = [told(octets(batch, source("x")))[0].keys() for batch in slices if batch]
    assert [len(some) for some in known] == [SLICE, SLICE, 1]
    assert set().union(*known) == set(prefixes)
    assert snapshot.batch(1) is slices[1]
    group.apply(V4, {prefixes[0]: ()})
    assert group.snapshot(V4) is not snapshot


def test_a_group_takes_in_a_table_by_and_by() -> None:
    rib = Rib(V4)
    one = source("one", Kind.CLIENT)
    prefixes = [bytes((24, 10, 0, number)) for number in range(10)]
    given = route(one).attributes
    rib.announce(one, prefixes, given, given)
    rib.take_changes()
    group = UpdateGroup(PEERS[Kind.CLIENT])
    group.begin(rib)
    assert group.fill({V4: rib}, {}, 4) == 4
    rib.withdraw(one, [prefixes[0], prefixes[9]])
    group.apply(V4, rib.take_changes())
    while group.fill({V4: rib}, {}, 4):
        pass
    assert dict(group.advertised(V4, source("x"))).keys() == set(prefixes[1:9])


def test_a_route_that_does_not_fit_is_withdrawn_and_said_so() -> None:
    group = UpdateGroup(PEERS[Kind.CLIENT])
    one, two = source("one", Kind.CLIENT), source("two", Kind.CLIENT)
    group.members.update({one: None, two: None})
    group.apply(V4, {NET: (route(one),)})
    huge = route(one, communities=tuple(range(1020)))
    assert told(octets(group.apply(V4, {NET: (huge,)}), two))[1] == {NET}
    assert "no room" in group.failures[V4][NET]
    assert dict(group.advertised(V4, two)) == {}
    assert set(told(octets(group.apply(V4, {NET: (route(one, med=1),)}), two))[0]) == {NET}
    assert group.failures == {V4: {}}
