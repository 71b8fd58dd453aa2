"""The contract suite of backends: what every planner must hold, run on each one that is installed.

Backend-specific expectations (flannel's exact objects) stand in test_hostgw.py, test_vxlan.py and test_udp_*.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from netagent.contract import Backend, Context
from netagent.errors import ConfigError
from netagent.model import AddressFact, Facts, Lease, LinkFact, Network, Node
from netagent.registry import Registry

REGISTRY = Registry()
LEARN_ROUTES = frozenset({"bgp"})  # by their service


def facts(*abilities: str) -> Facts:
    return Facts(
        {"eth0": LinkFact(name="eth0", index=2, mtu=1500, up=True, carrier=True)},
        (AddressFact(dev="eth0", ip="192.168.50.11", length=24), AddressFact(dev="eth0", ip="fd50::11", length=64)),
        (),
        frozenset(abilities or ("nexthop", "vxlan", "ipip", "sit", "tun", "ipv6")),
    )


def context(backend: Backend, *, v4: bool = True, v6: bool = False, mtu: int = 1500, **raw: Any) -> Context:
    four = v4 or backend.name == "ipip"  # which goes over IPv4, whatever it carries
    return Context(
        network=Network(v4="10.5.0.0/16" if v4 else None, v6="fc00::/48" if v6 else None),
        options=backend.options(raw).value,
        node=Node(
            name="h1",
            id="0" * 32,
            uplink="eth0",
            mtu=mtu,
            public_ip="192.168.50.11" if four else None,
            local_ip="192.168.50.11" if four else None,
            public_ip6="fd50::11" if v6 else None,
            local_ip6="fd50::11" if v6 else None,
            v4="10.5.59.0/24" if v4 else None,
            v6="fc00:0:0:1::/64" if v6 else None,
        ),
        facts=facts(),
    )


def lease(backend: Backend, *, v4: bool = True, v6: bool = False) -> Lease:
    data = {
        "vxlan": b'{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25"}',
    }.get(backend.name, b"")
    return Lease(
        key="10.5.72.0-24",
        v4="10.5.72.0/24" if v4 else None,
        v6="fc00:0:0:2::/64" if v6 else None,
        public_ip="192.168.50.12" if v4 or backend.name == "ipip" else None,
        public_ip6="fd50::12" if v6 else None,
        backend="" if backend.name == "udp" else backend.name,
        data=data if v4 else b"",
        data6=data if v6 else b"",
        node="h2",
        node_id="1" * 32,
    )


@pytest.fixture(params=sorted(REGISTRY))
def backend(request: pytest.FixtureRequest) -> Backend:
    return REGISTRY[request.param]


FAMILIES = pytest.mark.parametrize(
    ("v4", "v6"), [(True, False), (True, True), (False, True)], ids=["v4", "dual", "v6"]
)


@FAMILIES
def test_plans_are_values(backend: Backend, v4: bool, v6: bool) -> None:
    one, two = context(backend, v4=v4, v6=v6), context(backend, v4=v4, v6=v6)
    peer = lease(backend, v4=v4, v6=v6)
    assert backend.base(one) == backend.base(two)
    assert backend.peer(one, peer) == backend.peer(two, peer)
    assert backend.lease(one) == backend.lease(two)


@FAMILIES
def test_a_peer_gets_a_route_for_each_of_its_subnets(backend: Backend, v4: bool, v6: bool) -> None:
    plan = backend.peer(context(backend, v4=v4, v6=v6), lease(backend, v4=v4, v6=v6))
    assert plan.objects  # what says that the peer is reached by this backend
    assert not plan.findings
    if backend.name in LEARN_ROUTES:
        return
    routes = {o.dst for o in plan.objects if o.KIND == "route"}
    assert routes == {*(["10.5.72.0/24"] if v4 else []), *(["fc00:0:0:2::/64"] if v6 else [])}


def test_keys_are_unique_and_devices_are_ours(backend: Backend) -> None:
    ctx = context(backend, v6=True)
    objects = [*backend.base(ctx).objects, *backend.peer(ctx, lease(backend, v6=True)).objects]
    assert len({o.key for o in objects}) == len(objects)
    for obj in objects:
        if obj.KIND == "link":
            assert obj.name.startswith("na-")
            assert len(obj.name) <= 15
        elif obj.KIND in ("neighbour", "fdb", "nexthop", "address"):
            assert obj.dev.startswith("na-")


def test_a_peer_of_an_unknown_backend_is_a_finding_and_no_path(backend: Backend) -> None:
    import msgspec

    foreign = msgspec.structs.replace(lease(backend), backend="wireguard")
    plan = backend.peer(context(backend), foreign)
    assert plan.objects == ()
    assert [f.code for f in plan.findings] == ["peer-other-backend"]


def test_a_peer_with_our_own_address_gets_no_path(backend: Backend) -> None:
    import msgspec

    clone = msgspec.structs.replace(lease(backend), public_ip="192.168.50.11")
    plan = backend.peer(context(backend), clone)
    assert plan.objects == ()
    assert [f.code for f in plan.findings] == ["peer-same-address"]


def test_a_peer_without_address_of_the_family_gets_no_path(backend: Backend) -> None:
    import msgspec

    silent = msgspec.structs.replace(lease(backend), public_ip=None)
    plan = backend.peer(context(backend), silent)
    assert plan.objects == ()
    assert [f.code for f in plan.findings] == ["peer-no-address"]


def test_unknown_options_are_findings(backend: Backend) -> None:
    parsed = backend.options({"Nonsense": 1})
    assert [f.code for f in parsed.findings] == ["config-unknown-key"]
    assert "Nonsense" in parsed.findings[0].subject


def test_mtu_leaves_room(backend: Backend) -> None:
    small, large = context(backend, mtu=1500), context(backend, mtu=9000)
    assert backend.mtu(large) - backend.mtu(small) == 7500
    assert backend.mtu(small) <= 1500


def test_there_is_no_such_backend() -> None:
    with pytest.raises(ConfigError, match="host-gw"):
        REGISTRY["nonesuch"]
