"""Which subnet a node claims: the order of preference, and the message when there is none."""

from __future__ import annotations

import random

import pytest

from netagent import network_config
from netagent.errors import SubnetsExhausted
from netagent.model import Lease, Network
from netagent.plan.allocate import CANDIDATES, Choice, Node, Remembered, choose, free
from netagent.store import schema

NETWORK = network_config.parse('{"Network":"10.5.0.0/16"}').network
DUAL = network_config.parse('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}').network
ONLY6 = network_config.parse('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}').network
TINY = network_config.parse('{"Network":"10.5.0.0/24","SubnetLen":26}').network
ME = Node("me", "id-me", "192.168.50.11", "fd00:50::11")


def lease(
    v4: str | None,
    v6: str | None = None,
    *,
    node: str = "",
    node_id: str = "",
    ip: str | None = "192.168.50.99",
    ip6: str | None = None,
    lease_id: int = 7,
    created: int = 1,
) -> Lease:
    return Lease(
        key=schema.subnet_key(v4, v6),
        v4=v4,
        v6=v6,
        public_ip=ip,
        public_ip6=ip6,
        node=node,
        node_id=node_id,
        lease_id=lease_id,
        create_revision=created,
    )


def pick(
    network: Network, *leases: Lease, remembered: tuple[Remembered, ...] = (), avoid: tuple[str, ...] = ()
) -> Choice:
    return choose(network, {x.key: x for x in leases}, ME, remembered=remembered, avoid=avoid, rng=random.Random(3))


OWN = lease("10.5.1.0/24", node="old-name", node_id="id-me", ip="192.168.50.77")
BY_NAME = lease("10.5.2.0/24", node="me", ip=None, lease_id=0)
BY_ADDRESS = lease("10.5.3.0/24", ip="192.168.50.11")
STATE = Remembered("state", "10.5.4.0/24")
ENV = Remembered("subnet.env", "10.5.5.0/24")


def test_the_order_of_preference() -> None:
    everything = [OWN, BY_NAME, BY_ADDRESS]
    for expected, source in ((OWN, "own"), (BY_NAME, "reserved"), (BY_ADDRESS, "address")):
        found = pick(NETWORK, *everything, remembered=(STATE, ENV))
        assert found == (expected.v4, None, source, expected)
        everything.remove(expected)
    assert pick(NETWORK, remembered=(STATE, ENV)) == ("10.5.4.0/24", None, "state", None)
    taken = lease("10.5.4.0/24")
    assert pick(NETWORK, taken, remembered=(STATE, ENV)) == ("10.5.5.0/24", None, "subnet.env", None)
    assert pick(NETWORK, taken).source == "free"


def test_a_new_installation_is_known_by_name_and_address_together() -> None:
    before = lease("10.5.6.0/24", node="me", node_id="id-before", ip="192.168.50.11")
    assert pick(NETWORK, before).source == "reserved"
    elsewhere = lease("10.5.6.0/24", node="me", node_id="id-other", ip="192.168.50.12")
    renamed = lease("10.5.7.0/24", node="other", node_id="id-other", ip="192.168.50.11")
    assert pick(NETWORK, elsewhere, renamed).source == "free"


def test_flannels_record_must_fit_and_ours_need_not() -> None:
    assert pick(NETWORK, lease("10.9.3.0/24", ip="192.168.50.11")).source == "free"
    assert pick(NETWORK, lease("10.9.3.0/24", node="me", node_id="id-me")).source == "own"


def test_the_oldest_of_several_leases_of_ours() -> None:
    newer = lease("10.5.8.0/24", node_id="id-me", created=9)
    older = lease("10.5.9.0/24", node_id="id-me", created=4)
    assert pick(NETWORK, newer, older).v4 == "10.5.9.0/24"


def test_what_is_remembered_must_be_usable() -> None:
    outside = Remembered("state", "10.6.1.0/24")
    assert pick(NETWORK, remembered=(outside,)).source == "free"
    # The state directory's may be of an earlier SubnetLen, subnet.env's must fit as flannel's rule has it.
    assert pick(NETWORK, remembered=(Remembered("state", "10.5.4.0/26"),)).v4 == "10.5.4.0/26"
    assert pick(NETWORK, remembered=(Remembered("subnet.env", "10.5.4.0/26"),)).source == "free"
    assert pick(NETWORK, remembered=(Remembered("subnet.env", "10.5.0.0/16"),)).source == "free"
    inside = lease("10.5.4.128/25")
    assert pick(NETWORK, inside, remembered=(STATE,)).source == "free"


def test_families() -> None:
    both = pick(DUAL, remembered=(Remembered("state", "10.5.4.0/24", "fc00:0:0:4::/64"),))
    assert both.key == "10.5.4.0-24&fc00:0:0:4::-64"
    added = pick(DUAL, OWN, lease("10.5.9.0/24", "fc00:0:0:1::/64"))
    assert (added.v4, added.lease, added.source) == ("10.5.1.0/24", OWN, "own")
    assert added.v6 not in (None, "fc00:0:0:1::/64")
    assert added.key != OWN.key
    only6 = pick(ONLY6)
    assert only6.v4 is None
    assert only6.key.startswith("0.0.0.0-0&fc00:0:0:")
    by_address = lease(None, "fc00:0:0:7::/64", ip=None, ip6="fd00:50::11")
    assert pick(ONLY6, by_address) == (None, "fc00:0:0:7::/64", "address", by_address)


def test_a_free_one_is_among_the_first_hundred() -> None:
    found = {choose(NETWORK, {}, ME, rng=random.Random(seed)).v4 for seed in range(400)}
    assert found <= {f"10.5.{n}.0/24" for n in range(1, CANDIDATES + 1)}
    assert len(found) > 80


def test_free_skips_leases_of_every_length() -> None:
    spans = sorted(schema.span(x) for x in ("10.5.0.0/23", "10.5.3.64/26", "10.5.4.0/22", "10.9.0.0/16"))
    assert list(free(NETWORK, 4, spans, 3)) == ["10.5.2.0/24", "10.5.8.0/24", "10.5.9.0/24"]
    assert list(free(NETWORK, 4, [schema.span("10.0.0.0/8")], 3)) == []
    assert list(free(TINY, 4, [], 100)) == ["10.5.0.64/26", "10.5.0.128/26", "10.5.0.192/26"]


def test_exhausted_says_what_there_is_and_what_to_do() -> None:
    leases = [lease("10.5.0.64/26"), lease("10.5.0.128/26", lease_id=0), lease("10.5.0.192/27")]
    with pytest.raises(SubnetsExhausted) as caught:
        pick(TINY, *leases, lease("10.99.0.0/24"))
    assert caught.value.message == (
        "no free subnet: 10.5.0.0/24 has 3 subnets of /26 to hand out, 1 are leased and 1 reserved, "
        "1 more leases of other lengths are in the way"
    )
    assert "netagent lease release" in caught.value.remedy


def test_avoid_counts_as_taken() -> None:
    taken = lease("10.5.0.64/26")
    assert pick(TINY, taken, avoid=("10.5.0.128/26", "fc00::/64")).v4 == "10.5.0.192/26"
