"""The lease session: what a node asks of etcd, and what it makes of races, losses and strangers."""

from __future__ import annotations

import pytest

from netagent.plan.lease_requests import Claim, Inspect, Renew, Rewrite
from netagent.plan.lease_session import Subnets
from netagent.store import schema
from tests.support.leases import KEYS, Node, World

DUAL = '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}'
ONLY6 = '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}'
# Four subnets, of which three are handed out.
TINY = '{"Network":"10.5.0.0/24","SubnetLen":26,"Backend":{"Type":"vxlan"}}'


def kinds(node: Node) -> list[type]:
    return [type(request) for request, _ in node.log]


def held(world: World, name: str = "a", **options: object) -> Node:
    node = world.node(name, **options)
    world.settle()
    assert node.state.state == "held"
    return node


# ------------------------------------------------------------------------------------------------ claiming


def test_claim_writes_flannel_value_and_owner_on_one_etcd_lease() -> None:
    world = World()
    a = held(world)
    (kv,) = world.leases().values()
    assert kv.value == b'{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}'
    assert kv.key == KEYS.subnet(a.state.key)
    owner = world.etcd.get(KEYS.owner(a.state.key))
    assert owner is not None
    assert (owner.lease, owner.mod_revision) == (kv.lease, kv.mod_revision)
    assert world.owner(a.state.key) == schema.Owner("a", a.id)
    assert a.state.lease_id == kv.lease != 0
    assert a.state.ttl == 86400
    assert kinds(a) == [Claim]


def test_nothing_is_claimed_before_the_network_the_view_and_the_attributes_are_known() -> None:
    world = World("{}")
    a = world.node("a")
    world.settle()
    assert a.log == []
    assert not a.session.holds
    world.configure('{"Network":"10.5.0.0/16"}')
    world.settle()
    assert a.state.state == "held"


def test_an_ipv6_only_node_has_flannels_key_and_address() -> None:
    world = World(ONLY6)
    a = held(world, ip=None, ip6="fd00:50::11")
    assert a.state.v4 is None
    assert a.state.key.startswith("0.0.0.0-0&fc00:0:0:")
    assert world.leases()[a.state.key].value.startswith(b'{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:50::11"')


def test_racers_for_the_last_subnet_one_wins_and_the_others_say_what_is_exhausted() -> None:
    world = World(TINY)
    nodes = [world.node(f"n{i}") for i in range(6)]
    world.advance(60)
    winners = [node for node in nodes if node.state.state == "held"]
    losers = [node for node in nodes if node.state.state != "held"]
    assert len(winners) == 3
    assert len({node.state.v4 for node in winners}) == 3
    for node in losers:
        assert node.codes == {"subnets-exhausted"}
        assert "has 3 subnets of /26 to hand out, 3 are leased and 0 reserved" in node.state.problem
    # One leaves, and its key is released: a waiting node takes it at once.
    gone = winners[0]
    gone.stopped = True
    world.delete(KEYS.subnet(gone.state.key), KEYS.owner(gone.state.key))
    world.settle()
    assert sum(node.state.state == "held" for node in losers) == 1


def test_a_lost_race_is_tried_again_with_another_subnet() -> None:
    world = World(TINY)
    a, b = world.node("a"), world.node("b")
    a.hear(), b.hear()
    request = a.session.next(world.now)
    assert isinstance(request, Claim)
    # b takes just that subnet between a's choice and a's transaction.
    world.put(KEYS.subnet(request.key), schema.lease_value("192.168.50.99", None))
    a.session.done(a._answer(request), world.now)
    assert a.state.state == "claiming"
    world.advance(5)
    assert a.state.state == b.state.state == "held"
    assert request.key not in (a.state.key, b.state.key)


@pytest.mark.parametrize("happened", [True, False])
def test_an_unknown_outcome_is_read_back(happened: bool) -> None:
    world = World()
    a = world.node("a")
    a.lose = happened
    world.advance(5)
    assert a.state.state == "held"
    assert len(world.leases()) == 1
    assert Inspect in kinds(a)
    assert kinds(a).count(Claim) == (1 if happened else 2)


def test_a_claim_is_used_when_the_watch_has_shown_it_and_all_before_it() -> None:
    world = World()
    a = world.node("a")
    a.hear()
    a.deaf, a.lose = True, True
    world.advance(5)
    assert (a.state.state, a.state.v4) == ("claiming", None)
    assert list(world.leases()) == [a.state.key]
    a.deaf = False
    world.settle()
    assert (a.state.state, list(world.leases())) == ("held", [a.state.key])


def racing(world: World, *nodes: Node) -> None:
    """All choose by the same view, then write one after the other."""
    for node in nodes:
        node.hear()
    requests = [node.session.next(world.now) for node in nodes]
    for node, request in zip(nodes, requests, strict=True):
        assert request is not None
        node.session.done(node._answer(request), world.now)


def test_the_later_of_two_claims_with_one_ipv6_subnet_yields() -> None:
    # One IPv6 subnet would be free if the first had been seen: the keys differ by their IPv4 parts.
    world = World(DUAL)
    a, b = world.node("a", ip6="fd00:50::11"), world.node("b", ip6="fd00:50::12")
    for node in (a, b):
        node.session._remembered = (node.session._remembered[0]._replace(v6="fc00:0:0:7::/64"),)
    racing(world, a, b)
    assert len(world.leases()) == 2
    world.settle()
    assert a.state.state == b.state.state == "held"
    assert a.state.v6 == "fc00:0:0:7::/64"
    assert b.state.v6 not in (None, a.state.v6)
    assert set(world.leases()) == {a.state.key, b.state.key}


def test_the_later_of_two_claims_of_different_lengths_yields() -> None:
    world = World()
    a = world.node("a", remembered=Subnets("10.5.7.0/24"))
    b = world.node("b", remembered=Subnets("10.5.7.128/25"))
    racing(world, a, b)
    world.settle()
    assert a.state.v4 == "10.5.7.0/24"
    assert b.state.state == "held"
    assert b.state.v4 not in (None, "10.5.7.128/25")
    assert set(world.leases()) == {a.state.key, b.state.key}


def test_where_nothing_is_left_the_later_claim_is_dropped() -> None:
    world = World('{"Network":"10.5.0.0/24","SubnetLen":26,"SubnetMin":"10.5.0.192","Backend":{"Type":"vxlan"}}')
    a = world.node("a")
    b = world.node("b", remembered=Subnets("10.5.0.224/27"))
    racing(world, a, b)
    world.settle()
    assert a.state.state == "held"
    assert (b.state.state, b.state.v4, b.codes) == ("claiming", None, {"subnets-exhausted"})
    assert list(world.leases()) == [a.state.key]
    assert world.owner("10.5.0.224-27") is None


def test_two_nodes_that_widen_at_once_get_different_subnets() -> None:
    world = World()
    a, b = held(world, "a"), held(world, "b")
    for node in (a, b):
        node.session._remembered = (node.session._remembered[0]._replace(v6="fc00:0:0:7::/64"),)
    before = a.state.v4, b.state.v4
    world.configure(DUAL)
    racing(world, a, b)
    world.settle()
    assert (a.state.v4, b.state.v4) == before
    assert a.state.v6 == "fc00:0:0:7::/64"
    assert b.state.v6 not in (None, a.state.v6)
    assert set(world.leases()) == {a.state.key, b.state.key}


def test_a_subnet_on_trial_is_not_claimed_again_before_one_in_use() -> None:
    world = World()
    a, b = held(world, "a"), held(world, "b")
    for node in (a, b):
        node.session._remembered = (node.session._remembered[0]._replace(v6="fc00:0:0:7::/64"),)
    world.configure(DUAL)
    racing(world, a, b)
    b.deaf = True
    world.settle()
    assert (a.state.v6, b.state.v6) == ("fc00:0:0:7::/64", None)
    b.session._remembered = ()
    world.wipe()
    b.deaf = False
    a.deaf = True
    world.settle()
    a.deaf = False
    world.settle()
    assert a.state.state == b.state.state == "held"
    assert a.state.v6 == "fc00:0:0:7::/64"
    assert set(world.leases()) == {a.state.key, b.state.key}


# -------------------------------------------------------------------------------------------------- renewal


def test_renewal_is_keep_alive_and_writes_nothing() -> None:
    world = World()
    a = held(world, ttl=90)
    revision = world.etcd.revision
    world.advance(300)
    assert world.etcd.revision == revision
    assert a.state.state == "held"
    renewals = kinds(a).count(Renew)
    assert 9 <= renewals <= 13  # every 27 to 30 seconds
    assert a.state.expires > world.now + 45


def test_an_outage_longer_than_the_ttl_is_reported_and_the_same_subnet_claimed_again() -> None:
    world = World()
    a = held(world, ttl=30)
    subnet = a.state.v4
    a.cut = True
    world.advance(60)
    assert world.leases() == {}
    assert a.session.holds
    assert a.state.v4 == subnet
    assert "may have expired" in a.state.problem
    a.cut = False
    world.advance(30)
    assert a.state.state == "held"
    assert a.state.v4 == subnet
    assert a.state.problem == ""
    assert world.owner(a.state.key) == schema.Owner("a", a.id)


def test_an_expired_subnet_that_another_took_is_a_conflict_and_not_fought() -> None:
    world = World(TINY)
    a = held(world, ttl=30)
    a.cut = True
    world.advance(60)
    key, subnet = a.state.key, a.state.v4
    taker = world.node("t", remembered=Subnets(subnet, None, False))
    world.settle()
    assert taker.state.key == key
    a.cut = False
    world.advance(120)
    assert a.state.state == "conflict"
    assert a.state.v4 == subnet
    assert "node t at 192.168.50.12" in a.state.problem
    assert a.codes == {"lease-conflict"}
    assert world.owner(key) == schema.Owner("t", taker.id)
    # The taker goes, and with it the conflict.
    taker.stopped = True
    world.delete(KEYS.subnet(key), KEYS.owner(key))
    world.advance(1)
    assert a.state.state == "held"
    assert a.codes == set()


def test_failures_back_off_with_jitter() -> None:
    world = World()
    a = world.node("a")
    a.hear()
    a.cut = True
    world.advance(300)
    assert 8 <= len(a.log) <= 25


# ------------------------------------------------------------------------------------- losses while running


def test_a_deleted_key_is_claimed_again_with_the_same_subnet() -> None:
    world = World()
    a = held(world)
    key = a.state.key
    world.delete(KEYS.subnet(key))
    a.hear()
    a.act()
    assert a.state.state == "lost"
    assert a.codes == {"lease-lost"}
    assert a.session.holds
    world.settle()
    assert a.state.state == "held"
    assert a.state.key == key
    assert a.codes == set()


def test_a_deleted_owner_record_is_written_again() -> None:
    world = World()
    a = held(world)
    world.delete(KEYS.owner(a.state.key))
    world.settle()
    assert world.owner(a.state.key) == schema.Owner("a", a.id)
    assert world.leases()[a.state.key].lease == a.state.lease_id


def test_a_wiped_etcd_gets_the_same_subnets_again() -> None:
    world = World()
    nodes = [world.node(f"n{i}") for i in range(5)]
    world.settle()
    before = [node.state.v4 for node in nodes]
    world.wipe()
    world.settle()
    # Without a configuration too: the last good one stays in force.
    assert [node.state.v4 for node in nodes] == before
    assert all(node.state.state == "held" for node in nodes)
    assert set(world.leases()) == {node.state.key for node in nodes}


def test_an_old_listing_does_not_make_a_node_doubt_its_new_claim() -> None:
    world = World()
    a = world.node("a")
    a.hear()
    world.put(KEYS.node("x"), b'{"name":"x","id":"y"}')
    a.act()
    a.deaf = True
    world.settle()
    assert kinds(a) == [Claim]
    a.deaf = False
    world.settle()
    assert (a.state.state, kinds(a)) == ("held", [Claim])


def test_flannel_on_another_host_overwrites_the_key() -> None:
    world = World()
    a = held(world)
    key = a.state.key
    lease = world.etcd.grant(86400).id
    world.put(KEYS.subnet(key), schema.lease_value("192.168.50.77", None, "vxlan"), lease)
    world.advance(200)
    assert a.state.state == "conflict"
    assert "192.168.50.77" in a.state.problem
    assert world.leases()[key].lease == lease
    assert a.session.holds
    world.etcd.drop_lease(lease)
    world.settle()
    assert a.state.state == "held"
    assert a.state.key == key


def test_flannel_on_this_host_is_named_and_not_fought() -> None:
    world = World()
    a = held(world)
    lease = world.etcd.grant(86400).id
    world.put(KEYS.subnet(a.state.key), schema.lease_value("192.168.50.11", None, "vxlan", {"VNI": 9}), lease)
    world.advance(100)
    assert a.state.state == "conflict"
    assert "another agent on this host" in a.state.problem
    assert world.leases()[a.state.key].lease == lease


def test_a_copied_state_directory_is_found() -> None:
    world = World()
    a = held(world)
    world.node("a", node_id=a.id, ip="192.168.50.200")
    world.advance(100)
    assert a.state.state == "conflict"
    assert "this node's id" in a.state.problem


def test_garbage_under_our_key_is_a_conflict() -> None:
    world = World()
    a = held(world)
    world.put(KEYS.subnet(a.state.key), b"garbage")
    world.settle()
    assert a.state.state == "conflict"
    assert "no lease" in a.state.problem


# ------------------------------------------------------------------------------------------------- rewriting


def test_a_changed_address_rewrites_the_value_and_keeps_subnet_lease_and_unknown_fields() -> None:
    world = World()
    a = held(world)
    key, lease = a.state.key, a.state.lease_id
    raw = world.leases()[key].value
    world.put(KEYS.subnet(key), raw[:-1] + b',"Note":{"x":1}}', lease)
    world.settle()
    assert a.state.state == "held"
    a.publish(public_ip="192.168.50.99")
    world.settle()
    assert world.leases()[key].value == (
        b'{"PublicIP":"192.168.50.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1},"Note":{"x":1}}'
    )
    assert (a.state.key, a.state.lease_id, world.leases()[key].lease) == (key, lease, lease)
    assert a.state.create_revision == world.leases()[key].create_revision


def test_a_rewrite_whose_reply_is_lost_is_ours() -> None:
    world = World()
    a = held(world)
    a.lose = True
    a.publish(public_ip="192.168.50.99")
    world.advance(5)
    assert a.state.state == "held"
    assert kinds(a).count(Rewrite) == 1


def test_another_ttl_moves_the_record_to_another_etcd_lease() -> None:
    world = World()
    a = held(world, ttl=90)
    first = a.state.lease_id
    a.session.set_ttl(600)
    world.advance(60)
    assert a.state.ttl == 600
    assert a.state.lease_id != first
    assert world.leases()[a.state.key].lease == a.state.lease_id
    world.advance(100)  # the old lease ends and takes nothing with it
    assert list(world.leases()) == [a.state.key]
    assert kinds(a).count(Rewrite) == 1


@pytest.mark.parametrize("live", [False, True], ids=["another boot", "the same boot"])
def test_a_clone_under_another_name_takes_nothing_from_the_original_that_is_alive(live: bool) -> None:
    world = World()
    a = held(world)
    world.put(KEYS.alive("a"), schema.owner_value(schema.Owner("a", a.id)))
    clone = world.node("b", node_id=a.id, remembered=Subnets(a.state.v4, None, live))
    world.advance(120)
    assert (a.state.state, a.codes) == ("held", set())
    assert (clone.state.state, clone.codes) == ("restored" if live else "claiming", {"node-id-taken"})
    assert world.owner(a.state.key) == schema.Owner("a", a.id)
    # The host was only renamed: nobody is alive under its old name any more.
    a.stopped = True
    world.delete(KEYS.alive("a"))
    world.settle()
    assert (clone.state.state, clone.state.key, clone.codes) == ("held", a.state.key, set())
