"""bgp/peers.py: who is found by what, and what another list of peers would change."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from unittest.mock import Mock

import pytest

from bgp.message import Family, nlri
from bgp.own import OwnPrefixes
from bgp.peer import Peer, PeerConfig, SpeakerConfig
from bgp.peers import Peers
from bgp.ranges import PeerRange

SPEAKER = SpeakerConfig(65000, 1)
CLIENTS = PeerRange("clients", Family.IPV4, nlri.parse("192.0.2.0/24")[1], PeerConfig("", bytes(4)), limit=2)


def config(name: str, address: str) -> PeerConfig:
    return PeerConfig(name, ipaddress.ip_address(address).packed)


A, B = config("a", "198.51.100.1"), config("b", "198.51.100.2")


def peer(of: PeerConfig, within: PeerRange | None = None) -> Peer:
    made = Peer(SPEAKER, of, Mock(), OwnPrefixes([Family.IPV4]))
    made.within = within
    return made


@pytest.fixture
def peers() -> Peers:
    """a and b are listed, 192.0.2.7 is a client."""
    table = Peers()
    table.ranges = (CLIENTS,)
    for each in (peer(A), peer(B), peer(CLIENTS.member(bytes((192, 0, 2, 7))), CLIENTS)):
        table.add(each)
    return table


def test_nothing_differs_from_itself(peers: Peers) -> None:
    found = peers.compared([A, replace(B)], (CLIENTS,))
    assert (found.gone, found.anew, found.changed, found.new) == ([], [], [], [])


def test_who_is_not_listed_any_more_is_gone(peers: Peers) -> None:
    found = peers.compared([B, config("c", "198.51.100.3")], (CLIENTS,))
    assert (found.gone, [each.name for each in found.new]) == (["a"], ["c"])


def test_what_is_agreed_on_begins_a_session_anew(peers: Peers) -> None:
    other = replace(A, hold_time=30.0)
    found = peers.compared([other, B], (CLIENTS,))
    assert found.anew == [(peers["a"], other, None)]
    assert (found.others, found.new, found.gone, found.changed) == ([], [], [], [])


def test_another_peer_may_have_the_name(peers: Peers) -> None:
    other = replace(A, asn=65009)
    found = peers.compared([other, B], (CLIENTS,))
    assert (found.others, found.new, found.gone, found.anew) == (["a"], [other], [], [])


def test_what_is_ours_to_know_changes_under_a_session(peers: Peers) -> None:
    other = replace(A, client=True)
    found = peers.compared([other, B], (CLIENTS,))
    assert found.changed == [(peers["a"], other, None)]
    assert (found.anew, found.new, found.gone) == ([], [], [])


def test_a_client_goes_with_its_range(peers: Peers) -> None:
    assert peers.compared([A, B], ()).gone == ["192.0.2.7"]


def test_a_client_follows_the_template_of_its_range(peers: Peers) -> None:
    there = replace(CLIENTS, template=replace(CLIENTS.template, client=True))
    found = peers.compared([A, B], (there,))
    assert found.changed == [(peers["192.0.2.7"], there.member(bytes((192, 0, 2, 7))), there)]
    shorter = replace(CLIENTS, template=replace(CLIENTS.template, hold_time=30.0))
    found = peers.compared([A, B], (shorter,))
    assert found.anew == [(peers["192.0.2.7"], shorter.member(bytes((192, 0, 2, 7))), shorter)]
    another = replace(CLIENTS, template=replace(CLIENTS.template, asn=65009))
    found = peers.compared([A, B], (another,))
    assert (found.others, found.new) == (["192.0.2.7"], []), "it comes by itself"


def test_a_client_goes_when_a_narrower_range_has_its_address(peers: Peers) -> None:
    narrower = replace(CLIENTS, name="few", prefix=nlri.parse("192.0.2.0/28")[1])
    assert peers.compared([A, B], (CLIENTS, narrower)).gone == ["192.0.2.7"]


@pytest.mark.parametrize("name", ["c", "192.0.2.7"])
def test_a_client_that_is_listed_now_is_another_peer(peers: Peers, name: str) -> None:
    listed = config(name, "192.0.2.7")
    found = peers.compared([A, B, listed], (CLIENTS,))
    assert (found.gone, found.new) == (["192.0.2.7"], [listed])


def test_several_with_an_address_are_found_in_turn(peers: Peers) -> None:
    second = peer(config("second", "198.51.100.1"))
    peers.add(second)
    assert peers.at(A.address) == "a"
    peers.remove(peers["a"])
    assert peers.at(A.address) == "second"
    peers.remove(second)
    assert peers.at(A.address) is None
    assert second.source not in peers.by_source


def test_a_range_invites_until_it_is_full(peers: Peers) -> None:
    guest, outside = bytes((192, 0, 2, 8)), bytes((203, 0, 113, 1))
    assert peers.invited(guest) == (CLIENTS.member(guest), CLIENTS)
    assert peers.invited(outside) is None
    peers.add(peer(CLIENTS.member(guest), CLIENTS))
    assert peers.invited(bytes((192, 0, 2, 9))) is None


def test_listening_sockets_know_peers_and_ranges(peers: Peers) -> None:
    found = [each[:3] for each in peers.transports()]
    assert found == [("a", A.address, None), ("b", B.address, None), ("clients", bytes(4), 24)]
