"""Numbers of nexthop objects: the lowest free one, and nobody else's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.errors import KernelError
from netagent.kernel.nexthops import NexthopIds

A, B, C = ("na-vx1", "10.5.1.0"), ("na-vx1", "10.5.2.0"), ("na-vx2", "10.5.1.0")


def test_the_lowest_free_id_is_taken_and_kept() -> None:
    ids = NexthopIds(100, 10)
    assert [ids.allocate(hop) for hop in (A, B, A, C)] == [100, 101, 100, 102]
    ids.release(B)
    ids.release(A)
    assert (ids.of(A), ids.hop(100)) == (None, None)
    assert [ids.allocate(hop) for hop in (B, A)] == [100, 101]


def test_a_full_range_says_so() -> None:
    ids = NexthopIds(100, 2)
    ids.allocate(A)
    ids.allocate(B)
    with pytest.raises(KernelError, match="all 2 nexthop ids from 100 on are in use"):
        ids.allocate(C)
    ids.release(A)
    assert ids.allocate(C) == 100


def test_what_others_use_is_skipped() -> None:
    ids = NexthopIds(100, 10)
    ids.rebuild([(101, A)], taken=[100, 102])
    assert (ids.of(A), ids.allocate(B), ids.allocate(C)) == (101, 103, 104)


def test_a_device_takes_its_ids_along() -> None:
    ids = NexthopIds(100, 10)
    for hop in (A, C, B):
        ids.allocate(hop)
    ids.release_device("na-vx1")
    assert (ids.of(A), ids.of(B), ids.of(C)) == (None, None, 101)
    assert [ids.allocate(hop) for hop in (A, B)] == [100, 102]


def test_two_ids_for_one_hop_go_together() -> None:
    ids = NexthopIds(100, 10)
    ids.rebuild([(105, A), (100, A), (101, B)], taken=[])
    assert ids.of(A) == 100
    assert sorted(ids.all_of(A)) == [100, 105]
    assert ids.all_of(B) == [101]
    ids.release(A)
    assert ids.all_of(A) == []


def test_the_range() -> None:
    ids = NexthopIds(100, 10)
    assert [number in ids for number in (99, 100, 109, 110, "100")] == [False, True, True, False, False]


hops = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9).map(str))


@given(st.lists(st.tuples(st.sampled_from(["allocate", "release", "device"]), hops)), st.sets(st.integers(0, 30)))
def test_ids_are_never_shared(steps: list[tuple[str, tuple[str, str]]], taken: set[int]) -> None:
    ids = NexthopIds(0, 1000)
    ids.rebuild([], taken)
    live: dict[tuple[str, str], int] = {}
    for step, hop in steps:
        if step == "allocate":
            number = ids.allocate(hop)
            assert live.setdefault(hop, number) == number
        elif step == "release":
            ids.release(hop)
            live.pop(hop, None)
        else:
            ids.release_device(hop[0])
            live = {known: number for known, number in live.items() if known[0] != hop[0]}
        assert len(set(live.values())) == len(live)
        assert not taken & set(live.values())
        assert all(ids.of(known) == number and ids.hop(number) == known for known, number in live.items())
