"""The lab's pure parts: topologies, wiring, the matrix, the pinger's checksum."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from netagent.errors import UsageError
from netagent.lab import pinger, topology, wiring
from netagent.lab.matrix import Cell, Matrix
from netagent.lab.topology import Topology


@pytest.mark.parametrize("kind", ["flat", "racks"])
@pytest.mark.parametrize("nodes", [1, 3, 10, 200])
def test_addresses_are_distinct_and_in_their_rack(kind: str, nodes: int) -> None:
    lab = topology.build(kind, nodes)
    machines = [*lab.hosts, lab.etcd]
    gateways = [address for rack in lab.racks for router in lab.routers for address in rack.address(router.number)]
    taken = [machine.v4 for machine in machines] + [machine.v6 for machine in machines] + gateways
    assert len(set(taken)) == len(taken)
    for machine in machines:
        rack = lab.rack(machine.rack)
        assert str(ipaddress.ip_interface(machine.v4).network) == rack.v4
        assert str(ipaddress.ip_interface(machine.v6).network) == rack.v6


def test_racks_share_the_hosts() -> None:
    lab = topology.build("racks", 5)
    assert [host.rack for host in lab.hosts] == ["rack1", "rack2", "rack1", "rack2", "rack1"]
    assert lab.etcd.rack == "core"


def test_a_topology_survives_json() -> None:
    lab = topology.build("racks", 4, {"Type": "vxlan", "VNI": 7}, ipv6=True)
    assert msgspec.json.decode(msgspec.json.encode(lab), type=Topology) == lab
    assert (lab.backend, lab.families) == ("vxlan", (4, 6))


def test_a_name_is_not_used_again_while_a_later_one_exists() -> None:
    lab = topology.build("flat", 3).without_host("h2").with_host()
    assert [host.name for host in lab.hosts] == ["h1", "h3", "h4"]
    assert lab.host("h4").v4 == "192.168.50.12/24"  # the address that is free


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: topology.build("ring"), "flat and racks"),
        (lambda: topology.build("flat", 0), "1 to 200"),
        (lambda: topology.build("flat", 200).with_host(), "full"),
        (lambda: topology.build("flat", 2).host("h7"), "h1, h2"),
        (lambda: topology.build("racks", 2).with_host("core"), "rack1, rack2"),
    ],
)
def test_what_cannot_be_is_said(make: object, says: str) -> None:
    assert callable(make)
    with pytest.raises(UsageError, match=says):
        make()


def test_container_addresses_follow_subnet_env() -> None:
    env = {"FLANNEL_SUBNET": "10.5.7.1/24", "FLANNEL_IPV6_SUBNET": "fc00:5:0:7::1/64", "FLANNEL_MTU": "1450"}
    assert wiring.addresses(env) == [("10.5.7.1/24", "10.5.7.2/24"), ("fc00:5:0:7::1/64", "fc00:5:0:7::2/64")]
    again = wiring.script(wiring.attach("h1", env, again=True))
    assert "link add" not in again
    assert "link set eth0 mtu 1450 up" in again


def test_matrix() -> None:
    cells = (
        Cell(source="h1", target="h2", family=4, times=(0.001, 0.003)),
        Cell(source="h2", target="h1", family=4, times=(0.002,)),
    )
    matrix = Matrix(sent=2, cells=cells)
    assert not matrix.ok
    assert matrix.failed == cells[1:]
    assert matrix.median == 0.002
    titles, rows = matrix.rows(4, from_host=False)
    assert titles[1:] == ["h1", "h2"]
    assert rows == [["h1", "-", "2.00"], ["h2", "1/2 lost", "-"]]


def test_checksum() -> None:
    # The example of RFC 1071, section 3: sum ddf2, so its complement; and a packet that carries it sums to zero.
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert pinger._checksum(data) == 0xFFFF ^ 0xDDF2
    assert pinger._checksum(data + bytes.fromhex("220d")) == 0
