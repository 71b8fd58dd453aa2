"""Properties of allocation: never an overlap, always one that the network hands out, none only when there is none."""

from __future__ import annotations

import ipaddress
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from netagent import network_config
from netagent.errors import SubnetsExhausted
from netagent.model import Lease, Network
from netagent.plan.allocate import Node, Remembered, choose, free
from netagent.store import schema


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """10.5.0.0/24 and fc00::/120 in pieces of some length, between some bounds."""
    length = draw(st.integers(26, 30))
    size = 1 << (32 - length)
    count = 256 // size
    first = draw(st.integers(0, count - 1))
    last = draw(st.integers(first, count - 1))
    dual = draw(st.booleans())
    return Network(
        v4="10.5.0.0/24",
        subnet_len=length,
        subnet_min=f"10.5.0.{first * size}",
        subnet_max=f"10.5.0.{last * size}",
        v6="fc00::/120" if dual else None,
        subnet_len6=length + 96 if dual else None,
        subnet_min6=schema.address6((0xFC00 << 112) + first * size) if dual else None,
        subnet_max6=schema.address6((0xFC00 << 112) + last * size) if dual else None,
    )


subnets4 = st.builds(
    lambda host, length: str(ipaddress.IPv4Network((0x0A050000 + host, length), strict=False)),
    st.integers(0, 511),
    st.integers(22, 31),
)
subnets6 = subnets4.map(
    lambda text: str(
        ipaddress.IPv6Network(
            ((0xFC00 << 112) + (schema.span(text)[0] & 0x1FF), int(text[-2:]) + 96),
            strict=False,
        )
    )
)
leases = st.lists(
    st.builds(
        lambda v4, v6: Lease(key=schema.subnet_key(v4, v6), v4=v4, v6=v6, public_ip="10.0.0.9", lease_id=1),
        subnets4,
        st.none() | subnets6,
    ),
    max_size=12,
)
ME = Node("me", "id-me", "10.0.0.1")


def overlap(one: str, two: str | None) -> bool:
    return two is not None and ipaddress.ip_network(one).overlaps(ipaddress.ip_network(two))


@given(networks(), leases, st.none() | subnets4, st.none() | subnets4, st.integers())
def test_a_choice_never_overlaps_and_is_one_of_the_networks(
    network: Network, others: list[Lease], state: str | None, env: str | None, seed: int
) -> None:
    known = {lease.key: lease for lease in others}
    remembered = (Remembered("state", state), Remembered("subnet.env", env))
    try:
        choice = choose(network, known, ME, remembered=remembered, rng=random.Random(seed))
    except SubnetsExhausted as error:
        family = 4 if "10.5.0.0/24" in error.message else 6
        assert not _free(network, family, others)
        return
    assert (choice.v6 is not None) == (network.v6 is not None)
    for subnet in (choice.v4, choice.v6):
        if subnet is None:
            continue
        assert not any(overlap(subnet, lease.subnet(6 if ":" in subnet else 4)) for lease in others)
        assert network_config.fits(network, subnet) or (subnet == state and choice.source == "state")


@given(networks(), leases, st.integers(1, 300))
def test_free_is_what_brute_force_finds(network: Network, others: list[Lease], limit: int) -> None:
    for family in network.families:
        spans = sorted(schema.span(s) for lease in others if (s := lease.subnet(family)) is not None)
        assert list(free(network, family, spans, limit)) == _free(network, family, others)[:limit]


def _free(network: Network, family: int, others: list[Lease]) -> list[str]:
    prefix, length = (network.v4, network.subnet_len) if family == 4 else (network.v6, network.subnet_len6)
    assert prefix is not None and length is not None
    found = []
    for net in ipaddress.ip_network(prefix).subnets(new_prefix=length):
        taken = any(overlap(str(net), lease.v4 if family == 4 else lease.v6) for lease in others)
        if network_config.fits(network, str(net)) and not taken:
            found.append(str(net))
    return found


def test_the_network_of_these_tests_can_be_full() -> None:
    full = Lease(key="10.5.0.0-24", v4="10.5.0.0/24", v6=None, public_ip=None)
    network = network_config.parse('{"Network":"10.5.0.0/24"}').network
    with pytest.raises(SubnetsExhausted):
        choose(network, {full.key: full}, ME, rng=random.Random(1))
