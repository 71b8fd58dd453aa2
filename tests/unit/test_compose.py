"""A change of backend in the plan: each peer by the backend it announces, whatever the order of the nodes."""

from __future__ import annotations

import msgspec

from backends.hostgw import HostGw
from backends.vxlan import VxlanBackend
from netagent.plan.compose import Composer, Standing
from tests.unit.test_backends import context, lease

VXLAN, HOSTGW = VxlanBackend(), HostGw()


def standing(backend: VxlanBackend | HostGw) -> Standing:
    return Standing(backend, context(backend))


def test_peers_are_planned_by_the_backend_they_announce() -> None:
    both = Composer(standing(HOSTGW), standing(VXLAN))
    assert both.peer(lease(HOSTGW)).backend == "host-gw"
    late = both.peer(lease(VXLAN))
    assert late.backend == "vxlan"
    assert any(o.KIND == "fdb" for o in late.objects)
    assert both.previous_needed([lease(HOSTGW), lease(VXLAN)])
    assert not both.previous_needed([lease(HOSTGW)])


def test_a_peer_that_moved_before_us_keeps_its_path() -> None:
    early = Composer(standing(VXLAN)).peer(lease(HOSTGW))
    assert early.keep
    assert [f.code for f in early.findings] == ["peer-other-backend"]


def test_both_bases_and_all_ports_stand() -> None:
    both = Composer(standing(HOSTGW), standing(VXLAN))
    assert set(both.base()) == {"host-gw", "vxlan"}
    assert both.ports == (8472,)
    assert Composer(standing(HOSTGW)).ports == ()


def test_absent_backend_type_is_udp() -> None:
    bare = msgspec.structs.replace(lease(VXLAN), backend="", data=b"")
    assert Composer(standing(VXLAN)).peer(bare).keep
