"""A change of backend in the plan: each peer by the backend it announces, whatever the order of the nodes."""

from __future__ import annotations

import msgspec

from backends.hostgw import HostGw
from backends.udp import Udp
from backends.vxlan import VxlanBackend
from netagent.contract import Context, Plan
from netagent.model import LinkFact, VxlanAttrs
from netagent.plan.compose import Composer, Standing
from tests.unit.test_backends import context, facts, lease

VXLAN, HOSTGW = VxlanBackend(), HostGw()


def standing(backend: VxlanBackend | HostGw) -> Standing:
    return Standing(backend, context(backend))


def test_peers_are_planned_by_the_backend_they_announce() -> None:
    both = Composer(standing(HOSTGW), (standing(VXLAN),))
    early, late = both.peer(lease(HOSTGW)), both.peer(lease(VXLAN))
    assert (early.backend, early.previous) == ("host-gw", None)
    assert (late.backend, late.previous) == ("vxlan", standing(VXLAN).use)
    assert any(o.KIND == "fdb" for o in late.objects)


def test_a_peer_that_moved_before_us_has_no_path_by_what_it_announces() -> None:
    early = Composer(standing(VXLAN)).peer(lease(HOSTGW))
    assert not early.objects
    assert [f.code for f in early.findings] == ["peer-other-backend"]


def test_a_change_of_vni_reaches_each_peer_on_the_one_it_is_on() -> None:
    both = Composer(Standing(VXLAN, context(VXLAN, VNI=2)), (standing(VXLAN),))
    on_old = both.peer(lease(VXLAN))
    assert on_old.previous
    assert {o.dev for o in on_old.objects if o.KIND == "fdb"} == {"na-vx1"}
    on_new = both.peer(msgspec.structs.replace(lease(VXLAN), data=b'{"VNI":2,"VtepMAC":"ae:da:bc:2e:be:25"}'))
    assert not on_new.previous
    assert {o.dev for o in on_new.objects if o.KIND == "fdb"} == {"na-vx2"}


def test_both_bases_and_all_ports_stand_and_the_active_one_wins() -> None:
    both = Composer(standing(HOSTGW), (standing(VXLAN),))
    assert [(b.owner, b.rank) for b in both.base()] == [("base/host-gw", 0), ("base/vxlan/previous", 1)]
    assert both.ports == (8472,)
    assert Composer(standing(HOSTGW)).ports == ()


def test_the_port_of_a_backend_that_was_refused_is_not_ours_to_guard() -> None:
    both = Composer(standing(VXLAN), (Standing(Udp(), context(Udp())),))
    assert both.listening(both.base()) == both.ports == (8285, 8472)
    taken = VxlanAttrs(vni=1, port=8472)
    here = facts()
    here.links = {**here.links, "flannel.1": LinkFact(name="flannel.1", index=9, kind="vxlan", vxlan=taken)}
    refused = Composer(Standing(VXLAN, msgspec.structs.replace(context(VXLAN), facts=here)), both.previous)
    assert refused.ports == (8285, 8472)
    assert refused.listening(refused.base()) == (8285,)


def test_each_previous_backend_reaches_the_peers_that_are_still_there() -> None:
    udp = Udp()
    three = Composer(Standing(udp, context(udp)), (standing(HOSTGW), standing(VXLAN)))
    assert three.peer(lease(HOSTGW)).previous == standing(HOSTGW).use
    assert three.peer(lease(VXLAN)).previous == standing(VXLAN).use
    assert [b.owner for b in three.base()] == ["base/udp", "base/host-gw/previous", "base/vxlan/previous2"]


def test_absent_backend_type_is_udp() -> None:
    bare = msgspec.structs.replace(lease(VXLAN), backend="", data=b"")
    assert not Composer(standing(VXLAN)).peer(bare).objects


def test_a_coming_backend_has_its_base_but_no_peers() -> None:
    coming = Composer(standing(VXLAN), coming=standing(HOSTGW))
    assert [b.owner for b in coming.base()] == ["base/vxlan", "base/host-gw/coming"]
    assert not coming.peer(lease(HOSTGW)).objects
    assert coming.peer(lease(VXLAN)).backend == "vxlan"


def test_a_base_is_planned_once() -> None:
    planned = []

    class Counting(HostGw):
        def base(self, context: Context) -> Plan:
            planned.append(context)
            return super().base(context)

    composer = Composer(standing(Counting()))  # without ports it is asked for already to know what is guarded
    assert composer.base() is composer.base()
    assert len(planned) == 1
