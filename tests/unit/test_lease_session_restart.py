"""The lease session over restarts, reservations and changes of the network, in a simulated cluster."""

from __future__ import annotations

import pytest

from netagent.plan.lease_requests import Move, Renew
from netagent.plan.lease_session import Subnets
from netagent.store import schema
from netagent.store.base import Put
from tests.support.leases import KEYS, World
from tests.unit.test_lease_session import DUAL, TINY, held, kinds


def test_a_restart_takes_up_record_and_etcd_lease_without_writing() -> None:
    world = World()
    a = held(world)
    revision, lease = world.etcd.revision, a.state.lease_id
    b = a.restart()
    assert b.state.state == "restored"
    assert b.session.holds
    world.settle()
    assert b.state.state == "held"
    assert (world.etcd.revision, b.state.lease_id) == (revision, lease)
    assert kinds(b) == [Renew]
    assert b.state.ttl == 86400


def test_a_restart_without_state_finds_its_lease_by_id() -> None:
    world = World()
    a = held(world)
    b = a.restart(keeps=False)
    assert b.state.state == "none"
    world.settle()
    assert b.state.key == a.state.key
    assert b.state.source == "own"


def test_a_restart_under_another_name_keeps_the_subnet_and_writes_the_name() -> None:
    world = World()
    before = held(world)
    before.stopped = True
    after = world.node("renamed", node_id=before.id, ip="192.168.50.11")
    world.settle()
    assert after.state.key == before.state.key
    assert world.owner(after.state.key) == schema.Owner("renamed", before.id)
    count = len(after.log)
    world.settle()
    assert len(after.log) == count


def test_a_restart_after_expiry_takes_the_same_subnet_from_the_state_directory_or_subnet_env() -> None:
    for options in ({"live": True}, {"live": False}, {"keeps": False, "env": True}):
        world = World()
        a = held(world, ttl=30)
        a.stopped = True
        world.advance(31)
        assert world.leases() == {}
        b = a.restart(**options)
        world.settle()
        assert b.state.v4 == a.state.v4
        assert b.state.state == "held"


def test_a_new_installation_on_the_same_host_takes_its_lease_over() -> None:
    world = World()
    a = held(world)
    b = a.restart(keeps=False, node_id="f" * 32)
    world.settle()
    assert b.state.key == a.state.key
    assert world.owner(b.state.key) == schema.Owner("a", "f" * 32)
    assert len(world.leases()) == 1


def test_another_node_with_our_name_elsewhere_is_left_alone() -> None:
    world = World()
    a = held(world)
    b = world.node("a", node_id="f" * 32)
    world.settle()
    assert b.state.key != a.state.key
    assert a.state.state == b.state.state == "held"


def test_a_restart_with_another_address_keeps_the_subnet() -> None:
    world = World()
    a = held(world)
    b = a.restart(ip="192.168.50.99")
    world.settle()
    assert b.state.key == a.state.key
    assert b"192.168.50.99" in world.leases()[b.state.key].value


def test_a_live_subnet_that_another_took_meanwhile_is_kept_and_reported() -> None:
    world = World(TINY)
    a = held(world, ttl=30)
    a.stopped = True
    world.advance(31)
    taker = world.node("t", remembered=Subnets(a.state.v4, None, False))
    world.settle()
    assert taker.state.v4 == a.state.v4
    same_boot = a.restart(live=True)
    world.settle()
    assert same_boot.state.state == "conflict"
    assert same_boot.state.v4 == a.state.v4
    # After a reboot no container uses it any more: another one is taken.
    rebooted = same_boot.restart(live=False)
    world.settle()
    assert rebooted.state.state == "held"
    assert rebooted.state.v4 != a.state.v4


def test_taking_over_a_flannel_node_keeps_its_subnet_and_puts_it_on_our_lease() -> None:
    world = World()
    flannel = world.etcd.grant(86400).id
    value = schema.lease_value("192.168.50.11", None, "vxlan", {"VNI": 1, "VtepMAC": "ae:da:bc:2e:be:25"})
    world.put(KEYS.subnet("10.5.59.0-24"), value, flannel)
    a = held(world)
    assert a.state.key == "10.5.59.0-24"
    assert a.state.source == "address"
    kv = world.leases()["10.5.59.0-24"]
    assert kv.lease == a.state.lease_id != flannel
    assert world.owner("10.5.59.0-24") == schema.Owner("a", a.id)


# ---------------------------------------------------------------------------------------------- reservations


def test_a_reservation_by_address_stays_a_reservation_over_restarts() -> None:
    world = World()
    world.put(KEYS.subnet("10.5.9.0-24"), b'{"PublicIP":"192.168.50.11","Rack":"7"}')
    a = held(world)
    assert (a.state.key, a.state.reservation, a.state.lease_id) == ("10.5.9.0-24", True, 0)
    kv = world.leases()["10.5.9.0-24"]
    assert kv.lease == 0
    assert kv.value.endswith(b'"BackendData":{"VNI":1},"Rack":"7"}')
    owner = world.etcd.get(KEYS.owner("10.5.9.0-24"))
    assert owner is not None and owner.lease == 0
    revision = world.etcd.revision
    b = a.restart()
    world.settle()
    assert (b.state.state, b.state.reservation) == ("held", True)
    assert world.etcd.revision == revision


def test_a_reservation_by_name_is_taken_up() -> None:
    world = World()
    world.etcd.txn(
        (),
        (
            Put(KEYS.subnet("10.5.9.0-24"), schema.lease_value(None, None)),
            Put(KEYS.owner("10.5.9.0-24"), schema.owner_value(schema.Owner("a"))),
        ),
        (),
    )
    other, a = world.node("other"), world.node("a")
    world.settle()
    assert a.state.key == "10.5.9.0-24"
    assert other.state.key != "10.5.9.0-24"
    assert a.state.reservation
    assert b"192.168.50.12" in world.leases()["10.5.9.0-24"].value


def test_a_held_lease_that_is_made_a_reservation_stays_held() -> None:
    world = World()
    a = held(world, ttl=30)
    kv = world.leases()[a.state.key]
    world.etcd.txn(
        (),
        (
            Put(KEYS.subnet(a.state.key), kv.value),
            Put(KEYS.owner(a.state.key), schema.owner_value(schema.Owner("a", a.id))),
        ),
        (),
    )
    world.advance(100)
    assert (a.state.state, a.state.reservation) == ("held", True)
    assert world.leases()[a.state.key].lease == 0
    # Released again, it is a lease again: the same subnet.
    world.delete(KEYS.subnet(a.state.key), KEYS.owner(a.state.key))
    world.settle()
    assert (a.state.state, a.state.reservation) == ("held", False)
    assert world.leases()[a.state.key].lease != 0


# -------------------------------------------------------------------------------------- the network changes


def test_a_network_that_gets_ipv6_moves_the_record_to_the_dual_stack_key() -> None:
    world = World()
    a, b = world.node("a"), world.node("b")
    world.settle()
    before, lease = a.state.v4, a.state.lease_id
    world.configure(DUAL)
    a.publish(public_ip6="fd00:50::11")
    world.settle()
    assert a.state.v4 == before
    assert a.state.v6 is not None
    assert a.state.key == schema.subnet_key(a.state.v4, a.state.v6)
    assert a.state.lease_id == lease
    assert set(world.leases()) == {a.state.key, b.state.key}
    assert Move in kinds(a)
    assert a.state.v6 != b.state.v6


@pytest.mark.parametrize("happened", [True, False])
def test_a_move_with_an_unknown_outcome_is_read_back(happened: bool) -> None:
    world = World()
    a = held(world)
    before = a.state.v4
    a.lose = happened
    world.configure(DUAL)
    world.advance(5)
    assert a.state.state == "held"
    assert a.state.v4 == before
    assert list(world.leases()) == [a.state.key] == [schema.subnet_key(a.state.v4, a.state.v6)]


def test_a_network_that_no_longer_holds_the_subnet_changes_nothing() -> None:
    world = World()
    a = held(world)
    key, revision = a.state.key, world.etcd.revision
    world.configure('{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}')
    world.settle()
    assert (a.state.state, a.state.key) == ("held", key)
    assert a.codes == {"network-excludes-subnet"}
    assert a.session.network is not None and a.session.network.v4 == "10.5.0.0/16"
    assert world.etcd.revision == revision + 1
    # A restart on the same boot changes nothing either.
    b = a.restart()
    world.settle()
    assert (b.state.state, b.state.key) == ("held", key)
    assert b.codes == {"network-excludes-subnet"}
    # The record goes: it cannot be claimed in this network, and is not given up.
    world.delete(KEYS.subnet(key), KEYS.owner(key))
    world.settle()
    assert b.state.state == "conflict"
    assert b.state.v4 == a.state.v4
    world.configure('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}')
    world.settle()
    assert (b.state.state, b.state.key) == ("held", key)
    assert b.codes == set()


def test_a_narrower_range_keeps_the_subnet_with_a_finding() -> None:
    world = World()
    a = held(world)
    key = a.state.key
    world.configure('{"Network":"10.5.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan"}}')
    world.settle()
    assert (a.state.state, a.state.key) == ("held", key)
    assert a.codes == {"network-range-excludes-subnet"}
