"""The host's own objects: only what is needed, and the same again once it has taken effect."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.contract import Plan
from netagent.model import (
    Facts,
    ForeignAccept,
    Lease,
    Link,
    LinkFact,
    Network,
    NftElement,
    NftTable,
    Node,
    Offload,
    Route,
    RouteFact,
    Sysctl,
    TunnelAttrs,
    VxlanAttrs,
)
from netagent.plan import hostplan

V4 = Network(v4="10.5.0.0/16", subnet_len=24)
V6 = Network(v6="fc00::/48", subnet_len6=64)
DUAL = Network(v4="10.5.0.0/16", subnet_len=24, v6="fc00::/48", subnet_len6=64)
NODE = Node(name="a", id="0" * 32, uplink="eth0", mtu=1500, v4="10.5.59.0/24", v6="fc00:0:0:1::/64")

ALL, UPLINK = "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/eth0/rp_filter"
OURS = "net/ipv4/conf/na-vx1/rp_filter"
RA, FORWARD6 = "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/all/forwarding"


def facts(*links: LinkFact, routes: tuple[RouteFact, ...] = (), uplink: str = "") -> Facts:
    given = (
        LinkFact(name="lo", index=1, loopback=True),
        LinkFact(name="eth0", index=2, kind=uplink),
        LinkFact(name="eth1", index=3),
        LinkFact(name="na-vx1", index=4, kind="vxlan", alias="netagent", own=True),
        *links,
    )
    return Facts({link.name: link for link in given}, routes=routes)


def base(network: Network = DUAL, **keywords: Any) -> Plan:
    found = keywords.pop("facts", facts())
    return hostplan.host_base(network, NODE, found, **keywords)


def sysctls(plan: Plan) -> dict[str, str]:
    return {obj.name: obj.value for obj in plan.objects if isinstance(obj, Sysctl)}


def body(plan: Plan) -> str:
    (table,) = (obj for obj in plan.objects if isinstance(obj, NftTable))
    return table.body


# --------------------------------------------------------------------------------- routes, forwarding


@pytest.mark.parametrize(
    ("network", "names", "prefixes"),
    [
        (V4, {"net/ipv4/ip_forward"}, ["10.5.0.0/16"]),
        (V6, {FORWARD6}, ["fc00::/48"]),
        (DUAL, {"net/ipv4/ip_forward", FORWARD6}, ["10.5.0.0/16", "fc00::/48"]),
    ],
)
def test_only_the_families_of_the_network(network: Network, names: set[str], prefixes: list[str]) -> None:
    plan = base(network)
    assert set(sysctls(plan)) == names
    routes = [obj for obj in plan.objects if isinstance(obj, Route)]
    assert routes == [Route(prefix, type="unreachable", metric=4294967295) for prefix in prefixes]
    for family, word in ((4, "ip saddr 10.5"), (6, "ip6 saddr fc00")):
        assert (word in body(plan)) == (family in network.families)


def test_keys_are_unique() -> None:
    plan = base(firewall_integrate=True, places=[("docker-user", 4), ("docker-user", 6), ("firewalld", 4)])
    keys = [obj.key for obj in plan.objects]
    assert len(keys) == len(set(keys))


# --------------------------------------------------------------------------------- router advertisements

RA_ROUTE = RouteFact(dst="::/0", dev="eth0", gateway="fe80::1", protocol=9)
OTHER_RA = RouteFact(dst="::/0", dev="eth1", gateway="fe80::1", protocol=9)


@pytest.mark.parametrize(
    ("seen", "routes", "wanted"),
    [
        ({RA: "1", FORWARD6: "0"}, (), True),  # the kernel listened
        ({RA: "1", FORWARD6: "1"}, (), False),  # it did not: a router already
        ({RA: "1", FORWARD6: "1"}, (RA_ROUTE,), True),
        ({RA: "0", FORWARD6: "0"}, (RA_ROUTE,), False),  # somebody else listens (systemd-networkd)
        ({RA: "2", FORWARD6: "1"}, (), True),  # as we left it
        ({FORWARD6: "0"}, (), False),
    ],
)
def test_accept_ra_of_the_uplink(seen: dict[str, str], routes: tuple[RouteFact, ...], wanted: bool) -> None:
    plan = base(V6, sysctls=seen, facts=facts(routes=routes))
    assert (sysctls(plan).get(RA) == "2") == wanted


def test_accept_ra_of_another_device_that_has_a_route_from_advertisements() -> None:
    other = "net/ipv6/conf/eth1/accept_ra"
    seen = {RA: "1", other: "1", FORWARD6: "0"}
    assert other not in sysctls(base(V6, sysctls=seen))
    assert sysctls(base(V6, sysctls=seen, facts=facts(routes=(OTHER_RA,))))[other] == "2"
    assert RA not in sysctls(base(V4, sysctls=seen))


# --------------------------------------------------------------------------------- reverse path filter


@pytest.mark.parametrize(
    ("everywhere", "device", "wanted"),
    [("0", "0", False), ("1", "0", True), ("0", "1", True), ("1", "1", True), ("2", "0", False), ("2", "1", False)],
)
def test_strict_filtering_is_loosened_on_our_devices(everywhere: str, device: str, wanted: bool) -> None:
    seen = {ALL: everywhere, OURS: device, UPLINK: device}
    assert sysctls(base(V4, sysctls=seen)).get(OURS) == ("2" if wanted else None)
    assert UPLINK not in sysctls(base(V4, sysctls=seen))
    direct = sysctls(base(V4, sysctls=seen, direct=True))
    assert direct.get(UPLINK) == ("2" if wanted else None)
    assert "net/ipv4/conf/eth1/rp_filter" not in direct


@given(st.fixed_dictionaries({}, optional={n: st.sampled_from("012") for n in (ALL, UPLINK, OURS, RA, FORWARD6)}))
def test_a_plan_does_not_change_because_it_took_effect(seen: Mapping[str, str]) -> None:
    """An object that vanished from the plan once it stands would be undone, and planned again, for ever."""
    first = base(sysctls=seen, direct=True)
    written = {name: value for name, value in sysctls(first).items() if name in seen or name == FORWARD6}
    assert base(sysctls={**seen, **written}, direct=True) == first


def test_observed_names_cover_what_is_looked_at() -> None:
    names = hostplan.observed(DUAL, facts())
    assert {ALL, UPLINK, OURS, RA, FORWARD6} <= set(names)
    assert "net/ipv6/conf/lo/accept_ra" not in names
    assert not any("ipv6" in name for name in hostplan.observed(V4, facts()))
    assert not any("ipv4" in name for name in hostplan.observed(V6, facts()))


# --------------------------------------------------------------------------------- checksums


def test_checksums_only_of_a_bpf_sender_on_a_veth() -> None:
    off = Offload("eth0", "tx-checksum-ip-generic", False)
    for bpf, kind in itertools.product((False, True), ("", "veth")):
        plan = base(V4, bpf_sender=bpf, facts=facts(uplink=kind))
        assert (off in plan.objects) == (bpf and kind == "veth")


# --------------------------------------------------------------------------------- the table


def test_the_guard() -> None:
    rules = body(base(V4, ports=(8472, 8285, 8472)))
    for port in (8285, 8472):
        assert rules.count(f"udp dport {port} counter drop") == 1
        assert rules.index(f"udp dport {port} ip saddr @peers4 accept") < rules.index(
            f"udp dport {port} counter drop"
        )
    assert "dport" not in body(base(V4))


def test_the_guard_of_a_shared_port_minds_the_vni() -> None:
    links = [
        Link(kind="vxlan", name=f"na-vx{vni}", mtu=1450, vxlan=VxlanAttrs(vni=vni, port=8472)) for vni in (1, 70000)
    ]
    rules = body(base(V4, ports=(8472, 8285), links=links))
    assert "udp dport 8472 @th,96,24 0x1 counter drop" in rules
    assert "udp dport 8472 @th,96,24 0x11170 counter drop" in rules
    assert "udp dport 8472 counter drop" not in rules
    assert "udp dport 8285 counter drop" in rules


def test_the_guard_of_ip_in_ip_is_for_its_own_address_and_spares_other_tunnels() -> None:
    links = [
        Link(kind="ipip", name="na-ipip", mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11")),
        Link(kind="sit", name="na-sit", mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11")),
    ]
    other = TunnelAttrs(local="192.168.50.11", remote="203.0.113.9")
    here = facts(
        LinkFact(name="branch", index=7, kind="ipip", tunnel=other),
        LinkFact(name="tunl0", index=8, kind="ipip", tunnel=TunnelAttrs()),
    )
    rules = [line.strip() for line in body(base(V4, facts=here, links=links)).splitlines() if "ip protocol" in line]
    assert rules == [
        "ip protocol 4 ip daddr 192.168.50.11 ip saddr 203.0.113.9 accept",
        "ip protocol 4 ip daddr 192.168.50.11 ip saddr @peers4 accept",
        "ip protocol 4 ip daddr 192.168.50.11 counter drop",
        "ip protocol 41 ip daddr 192.168.50.11 ip saddr @peers4 accept",
        "ip protocol 41 ip daddr 192.168.50.11 counter drop",
    ]
    assert "ip protocol" not in body(base(V4, facts=here))


def test_masquerade_rules_are_flannels_in_order() -> None:
    lines = [line.strip() for line in body(base(V4)).splitlines()]
    start = lines.index("meta mark & 0x4000 == 0x4000 return")
    assert lines[start : start + 5] == [
        "meta mark & 0x4000 == 0x4000 return",
        "ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 return",
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.59.0/24 return",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
    ]
    assert "masquerade" not in body(base(V4, ip_masq=False))
    assert "nat" not in body(base(V4, ip_masq=False))
    assert "ip6 daddr != ff00::/8 masquerade" in body(base(V6))


def test_without_a_subnet_nothing_that_comes_in_is_masqueraded() -> None:
    node = Node(name="a", id="0" * 32, uplink="eth0", mtu=1500)
    text = hostplan.table_body(V4, node, ip_masq=True)
    assert "saddr != " not in text


def test_the_name_of_the_table() -> None:
    tables = [obj for obj in base(V4, table="na-two").objects if isinstance(obj, NftTable)]
    assert [(t.family, t.name) for t in tables] == [("inet", "na-two")]


# --------------------------------------------------------------------------------- places, peers


def test_accepts_elsewhere_only_on_request() -> None:
    places = [("firewalld", 4), ("docker-user", 4), ("docker-user", 6)]
    assert not any(isinstance(obj, ForeignAccept) for obj in base(places=places).objects)
    found = [obj for obj in base(places=places, firewall_integrate=True).objects if isinstance(obj, ForeignAccept)]
    assert found == [
        ForeignAccept("docker-user", 4, "10.5.0.0/16"),
        ForeignAccept("firewalld", 4, "10.5.0.0/16"),
        ForeignAccept("docker-user", 6, "fc00::/48"),
    ]
    only = base(V6, places=places, firewall_integrate=True).objects
    assert [o for o in only if isinstance(o, ForeignAccept)] == [ForeignAccept("docker-user", 6, "fc00::/48")]


@pytest.mark.parametrize(
    ("four", "six", "elements"),
    [
        ("192.168.50.12", None, (("peers4", "192.168.50.12"),)),
        (None, "fd00::12", (("peers6", "fd00::12"),)),
        ("192.168.50.12", "fd00::12", (("peers4", "192.168.50.12"), ("peers6", "fd00::12"))),
        (None, None, ()),
    ],
)
def test_elements_of_a_peer(four: str | None, six: str | None, elements: tuple[tuple[str, str], ...]) -> None:
    lease = Lease(key="10.5.60.0-24", v4="10.5.60.0/24", v6=None, public_ip=four, public_ip6=six)
    assert hostplan.peer_elements(lease) == tuple(NftElement(*pair) for pair in elements)
