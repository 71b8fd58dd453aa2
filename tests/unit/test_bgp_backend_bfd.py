"""BFD in the bgp backend: its options, the peers' settings made of them, ports, findings and counts."""

from __future__ import annotations

from typing import Any

import pytest

from backends.bgp import reports, sessions
from backends.bgp.members import Member
from backends.bgp.options import NO_WATCH, Watch, parse
from backends.bgp.part import Part
from backends.bgp.planner import Bgp
from backends.bgp.roles import MESH
from backends.bgp.sessions import Peering
from bfd.orders import Status
from bfd.session import Timing
from bgp.bfd import Bfd
from netagent.contract import Tcp, Udp
from netagent.errors import ConfigError
from netagent.plan.compose import Composer, Standing
from tests.unit.test_bgp_backend import context
from tests.unit.test_bgp_bfd import watched

ROUTER = {"Name": "tor", "Address": "192.168.50.1", "AS": 65000}


def own(raw: dict[str, Any], name: str = "h1", *labels: str) -> Watch:
    found: Watch = parse(raw).value.own(name, labels).bfd
    return found


def router(bfd: object, **more: Any) -> Watch:
    found: Watch = parse({"Routers": [{**ROUTER, "BFD": bfd, **more}]}).value.routers[0].bfd
    return found


def test_between_nodes() -> None:
    assert own({}) == NO_WATCH
    assert own({"BFD": True}).settings(multihop=True) == Bfd(Timing(300_000, 300_000, 3), True)
    assert own({"bfd": {"MinTx": 100, "minrx": 200, "Multiplier": 5}}) == Watch(min_tx=100, min_rx=200, multiplier=5)
    some = {"BFD": True, "Nodes": [{"Match": "slow", "BFD": {"MinTx": 900}}, {"Match": "h9", "BFD": False}]}
    assert own(some, "h1", "slow").min_tx == 900
    assert own(some).on
    assert own(some, "h9").settings() is None


def test_with_routers() -> None:
    assert not parse({"BFD": True, "Routers": [ROUTER]}).value.routers[0].bfd.on
    assert router(True).settings() == Bfd()
    assert router({"MinRx": 50, "Multihop": True}).settings() == Bfd(Timing(300_000, 50_000, 3), True)


@pytest.mark.parametrize(
    ("bfd", "message"),
    [
        (1, "1 is no setting of BFD"),
        ({"MinTx": 1}, "1 is out of range"),
        ({"Multiplier": "3"}, "'3' is not a whole number"),
        ({"Multihop": 1}, "1 is not true or false"),
    ],
)
def test_what_is_wrong_says_where(bfd: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        router(bfd)
    assert "Routers[0].BFD" in str(error.value)


def test_an_unknown_key_is_a_finding() -> None:
    (finding,) = parse({"BFD": {"Interval": 3}}).findings
    assert finding.subject == "Backend.BFD.Interval"


def test_peers_are_told() -> None:
    raw = {
        "BFD": {"MinTx": 100},
        "Routers": [{**ROUTER, "BFD": True}, {**ROUTER, "Name": "b", "Address": "10.9.9.9"}],
    }
    here = context(raw)
    member = Member(name="h2", id="2" * 32, asn=64512, role=MESH, v4="192.168.50.12")
    made = sessions.peering(here, here.options.own("h1", ()), MESH, MESH, {"h2": member})
    found = {peer.name: peer.bfd for peer in made.peers}
    assert found == {"h2": Bfd(Timing(100_000, 300_000, 3), True), "tor": Bfd(), "b": None}


@pytest.mark.parametrize(
    ("raw", "ports"),
    [
        ({}, ()),
        ({"BFD": True}, (4784,)),
        ({"Nodes": [{"Match": "h9", "BFD": True}]}, (4784,)),
        ({"Routers": [{**ROUTER, "BFD": True}]}, (3784,)),
        ({"Routers": [{**ROUTER, "BFD": True, "Multihop": 3}]}, (4784,)),
        ({"Routers": [{**ROUTER, "BFD": {"Multihop": False}, "Multihop": 3}]}, (3784,)),
        ({"BFD": True, "Nodes": [{"Match": "h9", "Routers": [{**ROUTER, "BFD": True}]}]}, (3784, 4784)),
    ],
)
def test_ports(raw: dict[str, Any], ports: tuple[int, ...]) -> None:
    assert Bgp().ports(parse(raw).value) == (Tcp(179), *map(Udp, ports))


def test_the_guard_has_them_without_a_device_of_ours() -> None:
    composer = Composer(Standing(Bgp(), context({"BFD": True})))
    assert composer.ports == composer.listening(composer.base()) == (4784,)
    assert composer.guarded


def test_findings_and_counts() -> None:
    cluster, peer = watched()
    speaker, now = cluster.speakers[1], cluster.network.now
    peering = Peering((peer.config,), frozenset(), frozenset({"2"}))

    def found(status: Status, later: float = 60.0) -> list[str]:
        peer.bfd = status
        return [finding.code for finding in reports.findings(peering, {}, None, speaker, now + later)]

    assert found(Status("up", since=now)) == []
    assert found(Status("down", since=now)) == ["bgp-bfd-down"]
    assert found(Status("down", since=now), later=1.0) == []
    assert found(Status("starting", problem="another program has it")) == ["bgp-bfd"]
    peer.bfd = Status("up")
    said = reports.summary(speaker, peering, Part(), 1, None)
    assert said["gauges"]["bfd_sessions"] == said["gauges"]["bfd_up"] == 1
    assert "BFD with 1 of 1" in said["summary"]
