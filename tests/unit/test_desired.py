"""Who wants what: owners, ranks, losers that take over, and deltas that say no more than what changed."""

from __future__ import annotations

from netagent.model import NftElement, Object, Route
from netagent.plan.desired import Delta, Desired


def route(dst: str, mtu: int = 0) -> Route:
    return Route(dst, type="blackhole", mtu=mtu)


A, B = route("10.5.1.0/24"), route("10.5.2.0/24")


def put(*objects: Object) -> Delta:
    return Delta({obj.key: obj for obj in objects}, {})


def gone(*objects: Object) -> Delta:
    return Delta({}, {obj.key: obj for obj in objects})


NOTHING = Delta({}, {})


def test_a_lone_claim_comes_and_goes() -> None:
    desired = Desired()
    assert desired.put("x", [A, B]) == put(A, B)
    assert (len(desired), A.key in desired, desired.get(B.key)) == (2, True, B)
    assert desired.claims(A.key) == [(0, "x", A)]
    assert desired.drop("x") == gone(A, B)
    assert (len(desired), desired.claims(A.key), desired.owners()) == (0, [], [])


def test_a_put_is_all_that_the_owner_wants() -> None:
    desired = Desired()
    desired.put("x", [A])
    assert desired.put("x", [B]) == Delta({B.key: B}, {A.key: A})
    assert list(desired.keys_of("x")) == [B.key]


def test_the_same_again_changes_nothing() -> None:
    desired = Desired()
    desired.put("x", [A, B])
    assert desired.put("x", [route("10.5.1.0/24"), B]) == NOTHING
    assert desired.drop("nobody") == NOTHING


def test_new_content_of_a_key_is_a_put() -> None:
    desired = Desired()
    desired.put("x", [A])
    other = route("10.5.1.0/24", mtu=1400)
    assert desired.put("x", [other]) == put(other)


def test_many_owners_at_once_are_one_delta() -> None:
    desired = Desired()
    desired.put("x", [A])
    desired.put("y", [B])
    assert desired.put_all({"x": [], "y": [B], "z": [A]}) == put(A)  # it changes hands
    assert desired.put_all({"z": [], "y": []}) == gone(A, B)
    assert (len(desired), desired.owners()) == (0, [])
    assert desired.put_all({"x": [A], "nobody": []}, rank=5) == put(A)
    assert desired.claims(A.key) == [(5, "x", A)]


def test_the_lower_rank_wins_whoever_came_first() -> None:
    desired = Desired()
    weak, strong = route("10.5.1.0/24", 1), route("10.5.1.0/24", 2)
    desired.put("peer", [weak], rank=20)
    assert desired.put("base", [strong], rank=0) == put(strong)
    assert desired.put("service", [A], rank=10) == NOTHING
    assert [claim.owner for claim in desired.claims(A.key)] == ["base", "service", "peer"]


def test_equal_ranks_go_by_the_owner_s_name() -> None:
    one, two = Desired(), Desired()
    first, second = route("10.5.1.0/24", 1), route("10.5.1.0/24", 2)
    one.put("a", [first])
    one.put("b", [second])
    two.put("b", [second])
    two.put("a", [first])
    assert one.get(A.key) == two.get(A.key) == first


def test_losers_take_over_one_after_another() -> None:
    desired = Desired()
    objects = [route("10.5.1.0/24", mtu) for mtu in (1, 2, 3)]
    for rank, obj in enumerate(objects):
        desired.put(f"owner{rank}", [obj], rank)
    assert desired.drop("owner0") == put(objects[1])
    assert desired.drop("owner1") == put(objects[2])
    assert desired.claims(A.key) == [(2, "owner2", objects[2])]
    assert desired.drop("owner2") == gone(objects[2])


def test_a_loser_that_goes_changes_nothing() -> None:
    desired = Desired()
    desired.put("strong", [A], rank=0)
    desired.put("weak", [route("10.5.1.0/24", 9)], rank=5)
    assert desired.drop("weak") == NOTHING
    assert desired.drop("strong") == gone(A)


def test_a_loser_that_wants_the_same_takes_over_without_a_write() -> None:
    desired = Desired()
    desired.put("strong", [A], rank=0)
    desired.put("weak", [route("10.5.1.0/24")], rank=5)
    assert desired.drop("strong") == NOTHING
    assert desired.get(A.key) == A


def test_a_loser_s_new_content_is_what_takes_over() -> None:
    desired = Desired()
    newer = route("10.5.1.0/24", 9)
    desired.put("strong", [A], rank=0)
    desired.put("weak", [route("10.5.1.0/24", 8)], rank=5)
    assert desired.put("weak", [newer], rank=5) == NOTHING
    assert desired.drop("strong") == put(newer)


def test_a_new_rank_moves_all_claims_of_the_owner() -> None:
    desired = Desired()
    other = route("10.5.1.0/24", 9)
    desired.put("x", [A, B], rank=0)
    desired.put("y", [other], rank=5)
    assert desired.put("x", [A, B], rank=9) == put(other)
    assert desired.claims(B.key) == [(9, "x", B)]


def test_a_key_named_twice_by_one_owner_counts_once() -> None:
    desired = Desired()
    last = route("10.5.1.0/24", 9)
    desired.put("x", [A, last])
    assert (desired.get(A.key), len(desired.claims(A.key))) == (last, 1)
    desired.put("x", [A, last])
    assert desired.get(A.key) == last
    assert desired.drop("x").gone.keys() == {A.key}
    assert len(desired) == 0


def test_owners_by_prefix() -> None:
    desired = Desired()
    desired.put("service/bgp/a", [A])
    desired.put("service/bgp/b", [B])
    desired.put("peer/x", [NftElement("peers4", "10.0.0.1")])
    assert sorted(desired.owners("service/bgp/")) == ["service/bgp/a", "service/bgp/b"]


def test_an_empty_put_forgets_the_owner() -> None:
    desired = Desired()
    desired.put("x", [A])
    assert desired.put("x", []) == gone(A)
    assert (desired.owners(), list(desired.keys_of("x"))) == ([], [])
