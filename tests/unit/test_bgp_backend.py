"""The bgp backend's pure parts: options, members, parts played, the speaker's peers and policies, ways and routes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.bgp import members, roles, sessions
from backends.bgp.members import Member
from backends.bgp.options import BgpOptions, parse
from backends.bgp.part import Part
from backends.bgp.planner import Bgp, tunnelled
from backends.bgp.roles import CLIENT, EDGE, MESH, REFLECTOR, Seen, may_play, partners, target
from backends.bgp.sessions import Secret
from backends.bgp.ways import Ways, metric
from backends.ipip import device6
from backends.vxlan import link_local, vtep_mac
from bgp.message import AsPath, Attributes, nlri
from bgp.message.nlri import address_text
from netagent.contract import Context, Ip, Tcp
from netagent.errors import ConfigError
from netagent.model import (
    AddressFact,
    Facts,
    FdbEntry,
    Hop,
    Lease,
    Link,
    LinkFact,
    Neighbour,
    Network,
    NextHop,
    NftElement,
    Node,
    NodeRecord,
    Route,
    RouteFact,
    TunnelAttrs,
    VxlanAttrs,
)

LINKS = {"eth0": LinkFact(name="eth0", index=2, mtu=1500, up=True, carrier=True)}


def facts(*routes: RouteFact, links: dict[str, LinkFact] | None = None) -> Facts:
    addresses = (
        AddressFact(dev="eth0", ip="192.168.50.11", length=24),
        AddressFact(dev="eth0", ip="fd50::11", length=64),
    )
    return Facts(links or LINKS, addresses, routes, frozenset({"nexthop", "vxlan"}))


def context(
    raw: dict[str, Any] | None = None, *, v6: bool = False, labels: tuple[str, ...] = (), **more: Any
) -> Context:
    return Context(
        network=Network(v4="10.5.0.0/16", v6="fc00:5::/48" if v6 else None),
        options=parse(raw or {}).value,
        node=Node(
            **{
                "name": "h1",
                "id": "1" * 32,
                "uplink": "eth0",
                "mtu": 1500,
                "labels": labels,
                "public_ip": "192.168.50.11",
                "local_ip": "192.168.50.11",
                "v4": "10.5.59.0/24",
                **({"public_ip6": "fd50::11", "local_ip6": "fd50::11", "v6": "fc00:5:0:1::/64"} if v6 else {}),
                **more,
            }
        ),
        facts=facts(),
    )


def member(name: str, number: int, role: str = "", **more: Any) -> Member:
    fixed = {"id": f"{number:032x}", "asn": 64512, "v4": f"192.168.50.{number}", "v6": f"fd50::{number}"}
    return Member(name=name, role=role, **{**fixed, **more})


# ------------------------------------------------------------------------------------------------ options


def test_defaults() -> None:
    options = parse({}).value
    assert (options.asn, options.port, options.mesh, options.reflectors) == (64512, 179, True, ())
    assert (options.hold_time, options.restart_time, options.encapsulation) == (90, 120, "none")
    assert not options.tunnel


def test_everything_is_read_in_any_case() -> None:
    raw = {
        "as": 65010,
        "MESH": False,
        "reflectors": ["h1", "role=rr"],
        "clusterid": "10.0.0.1",
        "Announce": ["10.96.0.0/12", {"prefix": "192.0.2.0/24", "communities": ["no-export"]}],
        "Communities": ["64512:100", "64512:1:2"],
        "Encapsulation": "VXLAN-cross-subnet",
        "Nodes": [{"Match": "rack=r1", "AS": 65011, "Routers": [{"Address": "192.168.60.1", "AS": 65000}]}],
        "Routers": [
            {
                "Name": "tor",
                "Address": "192.168.50.1",
                "AS": 65000,
                "TTLSecurity": 1,
                "NextHop": "self",
                "AllowOwnAS": 1,
                "LocalAS": 64999,
                "PasswordFile": "/etc/tor",
                "HoldTime": 9,
                "MaxPrefixes": 5,
                "AddPath": "Receive",
            },
            {"Name": "spine", "Address": "fd50::1", "AS": 65000, "AddPath": "both", "ExtendedNextHop": True},
        ],
    }
    parsed = parse(raw)
    assert parsed.findings == ()
    options: BgpOptions = parsed.value
    assert (options.asn, options.mesh, options.cross_subnet, options.tunnel) == (65010, False, True, "vxlan")
    assert options.announceable == ("10.96.0.0/12", "192.0.2.0/24")
    assert options.communities == ((64512 << 16) + 100,)
    assert options.large == ((64512, 1, 2),)
    plain, racked = options.own("h9", ()), options.own("h9", ("rack=r1",))
    assert (plain.asn, [r.name for r in plain.routers]) == (65010, ["tor", "spine"])
    assert (racked.asn, [r.name for r in racked.routers]) == (65011, ["tor", "spine", "192.168.60.1"])
    tor, spine = options.routers
    assert (tor.several_in, tor.several_out, tor.extended_next_hop) == (True, False, False)
    assert (spine.several_in, spine.several_out, spine.extended_next_hop) == (True, True, True)
    assert (tor.next_hop_self, tor.allow_own_as, tor.local_as, tor.ttl_security) == (True, 1, 64999, 1)
    assert (tor.hold_time, tor.most_prefixes, tor.password_file) == (9, 5, "/etc/tor")
    assert options.reflects("h1", ())
    assert options.reflects("h7", ("role=rr",))
    assert not options.reflects("h7", ("role=x",))


@pytest.mark.parametrize(
    ("raw", "where", "word"),
    [
        ({"AS": 0}, "Backend.AS", "out of range"),
        ({"AS": "64512"}, "Backend.AS", "whole number"),
        ({"Mesh": 1}, "Backend.Mesh", "true or false"),
        ({"HoldTime": 2}, "Backend.HoldTime", "too short"),
        (
            {"Routers": [{"Address": "192.0.2.1", "AS": 1, "AddPath": "all"}]},
            "Backend.Routers[0].AddPath",
            "no such choice",
        ),
        (
            {"Routers": [{"Address": "192.0.2.1", "AS": 1, "ExtendedNextHop": True}]},
            "Backend.Routers[0].ExtendedNextHop",
            "sessions over IPv6",
        ),
        ({"TCPAO": {"Key": "x"}}, "Backend.TCPAO", "CONFIG_TCP_AO"),
        (
            {"Routers": [{"Address": "192.0.2.1", "AS": 1, "tcp-ao": "x"}]},
            "Backend.Routers[0].tcp-ao",
            "CONFIG_TCP_AO",
        ),
        ({"RestartTime": 4096}, "Backend.RestartTime", "out of range"),
        ({"Reflectors": "h1"}, "Backend.Reflectors", "list"),
        ({"Reflectors": [1]}, "Backend.Reflectors[0]", "text"),
        ({"ClusterID": "7"}, "Backend.ClusterID", "cluster id"),
        ({"Encapsulation": "gre"}, "Backend.Encapsulation", "no encapsulation"),
        ({"Communities": ["1"]}, "Backend.Communities", "no community"),
        ({"Communities": ["70000:1"]}, "Backend.Communities", "no community"),
        ({"Announce": ["10.0.0.1/8"]}, "Backend.Announce[0].Prefix", "host bits"),
        ({"Announce": ["0.0.0.0/0"]}, "Backend.Announce[0].Prefix", "default route"),
        ({"PasswordFile": "secret"}, "Backend.PasswordFile", "absolute path"),
        ({"Routers": [{"Address": "192.0.2.1"}]}, "Backend.Routers[0].AS", "missing"),
        ({"Routers": [{"AS": 1}]}, "Backend.Routers[0].Address", "no address"),
        ({"Routers": [{"Address": "192.0.2.1", "AS": 1, "NextHop": "x"}]}, "Backend.Routers[0].NextHop", "choice"),
        (
            {"Routers": [{"Address": "192.0.2.1", "AS": 1, "TTLSecurity": 1, "Multihop": 2}]},
            "Backend.Routers[0].Multihop",
            "TTLSecurity",
        ),
        ({"Routers": [{"Address": "192.0.2.1", "AS": 1}] * 2}, "Backend.Routers[1].Name", "two routers"),
        ({"Nodes": [{"AS": 1}]}, "Backend.Nodes[0].Match", "missing"),
        ({"Nodes": ["h1"]}, "Backend.Nodes[0]", "object"),
        ({"MTU": 500}, "Backend.MTU", "out of range"),
        ({"VNI": 0}, "Backend.VNI", "out of range"),
    ],
    ids=str,
)
def test_a_bad_option_is_told_with_its_place(raw: dict[str, Any], where: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    assert caught.value.where == where
    assert word in str(caught.value)
    assert caught.value.remedy


def test_unknown_keys_are_told_wherever_they_stand() -> None:
    raw = {"Routers": [{"Address": "192.0.2.1", "AS": 1, "Colour": "red"}], "Nodes": [{"Match": "*", "Mesh": True}]}
    assert [f.subject for f in parse(raw).findings] == ["Backend.Routers[0].Colour", "Backend.Nodes[0].Mesh"]


# ------------------------------------------------------------------------------------------------ the plan


def test_ports_and_guard() -> None:
    backend = Bgp()
    assert backend.ports(parse({}).value) == (Tcp(179),)
    assert backend.ports(parse({"Port": 1179, "Encapsulation": "vxlan"}).value) == (Tcp(1179), 8472)
    assert backend.ports(parse({"Encapsulation": "ipip-cross-subnet"}).value) == (Tcp(179), Ip(4, 4), Ip(41, 6))
    assert backend.direct(parse({}).value)
    assert not backend.direct(parse({"Encapsulation": "vxlan"}).value)
    assert backend.direct(parse({"Encapsulation": "vxlan-cross-subnet"}).value)


def test_what_the_lease_says() -> None:
    backend = Bgp()
    raw = {"AS": 1, "Nodes": [{"Match": "rack=r1", "AS": 65011}]}
    assert backend.lease(context(raw, labels=("rack=r1",))) == ("bgp", {"AS": 65011}, None)
    data = backend.lease(context({"Encapsulation": "vxlan"}, v6=True))
    assert data.data == {"AS": 64512, "VNI": 1, "VtepMAC": vtep_mac("1" * 32, 1, 4)}
    assert data.data6 == {"AS": 64512, "VNI": 1, "VtepMAC": vtep_mac("1" * 32, 1, 6)}


def test_a_public_address_of_somebody_elses_needs_a_tunnel() -> None:
    backend = Bgp()
    assert [f.code for f in backend.base(context(public_ip="198.51.100.7")).findings] == ["public-address-not-ours"]
    tunnel = backend.base(context({"Encapsulation": "vxlan"}, public_ip="198.51.100.7"))
    assert not tunnel.findings
    assert [o.name for o in tunnel.objects if o.KIND == "link"] == ["na-vx1"]


def test_mtu() -> None:
    backend = Bgp()
    assert backend.mtu(context()) == 1500
    assert backend.mtu(context({"Encapsulation": "vxlan"})) == 1450
    assert backend.mtu(context({"Encapsulation": "vxlan-cross-subnet", "MTU": 1400}, v6=True)) == 1330


# ------------------------------------------------------------------------------------------------ members


def lease(name: str, number: int, backend: str = "bgp", data: bytes = b"", **more: Any) -> Lease:
    fixed: dict[str, Any] = {"key": f"10.5.{number}.0-24", "v4": f"10.5.{number}.0/24", "v6": None}
    fixed |= {"public_ip": f"192.168.50.{number}", "node": name, "node_id": f"{number:032x}"}
    return Lease(**{**fixed, "backend": backend, "data": data, **more})


def record(name: str, number: int, asn: str = "64512", role: str = "mesh", **more: Any) -> NodeRecord:
    attributes = {"bgp.as": asn, "bgp.role": role, **more}
    return NodeRecord(name=name, id=f"{number:032x}", addresses=(f"192.168.50.{number}",), attributes=attributes)


def test_a_member_stands_by_its_record_or_its_lease() -> None:
    options = parse({"AS": 65010}).value
    both = members.members(options, "h1", {"h2": record("h2", 12)}, [lease("h2", 12)])
    only_record = members.members(options, "h1", {"h2": record("h2", 12)}, [])
    only_lease = members.members(options, "h1", {}, [lease("h2", 12, data=b'{"AS":64512}')])
    for found in (both, only_record, only_lease):
        assert (found["h2"].v4, found["h2"].asn, found["h2"].id) == ("192.168.50.12", 64512, f"{12:032x}")
    assert both["h2"].subnets == ("10.5.12.0/24",)
    assert (only_lease["h2"].role, both["h2"].role) == ("", "mesh")


def test_who_speaks_no_bgp_is_no_member() -> None:
    options = parse({}).value
    silent = NodeRecord(name="h2", id="2" * 32, addresses=("192.168.50.12",))
    assert members.members(options, "h1", {"h2": silent}, [lease("h2", 12, "vxlan")]) == {}
    coming = members.members(options, "h1", {"h2": record("h2", 12)}, [lease("h2", 12, "vxlan")])
    assert list(coming) == ["h2"], "its speaker runs, and its lease follows"
    assert members.members(options, "h2", {"h2": record("h2", 12)}, [lease("h2", 12)]) == {}, "we are no peer"
    left = record("h2", 12) and NodeRecord(name="h2", id="2" * 32, attributes=members.shared(0, ""))
    assert members.members(options, "h1", {"h2": left}, []) == {}


@pytest.mark.parametrize("asn", ["", "x", "-1", "0", "4294967296", "9" * 5000, "１"])
def test_an_as_number_that_is_none_does_not_count(asn: str) -> None:
    options = parse({"AS": 65010}).value
    found = members.members(options, "h1", {"h2": record("h2", 12, asn)}, [lease("h2", 12, data=b'{"AS":-3}')])
    assert found["h2"].asn == 65010
    assert members.members(options, "h1", {"h2": record("h2", 12, asn)}, []) == {}


# ------------------------------------------------------------------------------------------------ parts


def test_the_part_that_the_options_give() -> None:
    reflected = parse({"Mesh": False, "Reflectors": ["h1", "rr"]}).value
    assert [target(reflected, name, labels) for name, labels in (("h1", ()), ("h2", ("rr",)), ("h3", ()))] == [
        *(REFLECTOR, REFLECTOR, CLIENT)
    ]
    assert target(parse({}).value, "h1", ()) == MESH
    assert target(parse({"Mesh": False}).value, "h1", ()) == EDGE


def test_a_client_leaves_the_mesh_only_for_a_reflector_that_has_told_it_everything() -> None:
    options = parse({"Mesh": False, "Reflectors": ["h1"]}).value
    others = {"h1": member("h1", 11, "mesh"), "h3": member("h3", 13, "mesh")}
    told = Seen(("h1", "h3"))
    assert not may_play(options, MESH, CLIENT, others, told), "it does not say that it reflects yet"
    others["h1"] = member("h1", 11, "reflector")
    assert not may_play(options, MESH, CLIENT, others, Seen(("h3",)))
    assert may_play(options, MESH, CLIENT, others, told)
    # h3 is in the mesh as yet: it goes on having a session with us.
    assert partners(options, CLIENT, CLIENT, others) == {"h1": False, "h3": False}
    others["h3"] = member("h3", 13, "client")
    assert partners(options, CLIENT, CLIENT, others) == {"h1": False}


def test_a_reflector_stays_one_while_it_has_a_client() -> None:
    mesh = parse({}).value
    others = {"h2": member("h2", 12, "client", via=("h1",)), "h3": member("h3", 13, "mesh")}
    told = Seen(("h2", "h3"))
    assert not may_play(mesh, REFLECTOR, MESH, others, told)
    assert partners(mesh, REFLECTOR, MESH, others) == {"h2": True, "h3": True}
    others["h2"] = member("h2", 12, "mesh")
    assert may_play(mesh, REFLECTOR, MESH, others, told)


def test_an_edge_needs_its_router_to_leave_the_mesh() -> None:
    options = parse({"Mesh": False}).value
    others = {"h2": member("h2", 12, "mesh")}
    assert not may_play(options, MESH, EDGE, others, Seen(("h2",)))
    assert may_play(options, MESH, EDGE, others, Seen(("h2",), ("tor",)))
    assert partners(options, EDGE, EDGE, {"h2": member("h2", 12, "edge")}) == {}


def test_a_part_goes_on_from_the_record_and_changes_after_a_moment() -> None:
    options = parse({"Mesh": False, "Reflectors": ["h2"]}).value
    node, others = context().node, {"h2": member("h2", 12, "reflector")}
    part, told = Part(), Seen(("h2",))
    part.update(options, node, record("h1", 11, role="mesh"), others, Seen(), 100.0)
    assert (part.role, part.wanted, part.via) == ("mesh", "client", ())
    for now, role in ((100.1, "mesh"), (100.1 + roles.SETTLE / 2, "mesh"), (100.1 + roles.SETTLE, "client")):
        part.update(options, node, None, others, told, now)
        assert part.role == role
    assert part.via == ("h2",)
    assert not part.moves(options, others, told)
    # What was told once stays told: a session that flaps writes no record.
    assert not part.moves(options, others, Seen())


def test_a_reason_that_goes_away_meanwhile_starts_the_wait_anew() -> None:
    options = parse({"Mesh": False, "Reflectors": ["h2"]}).value
    node, others = context().node, {"h2": member("h2", 12, "reflector")}
    part = Part()
    part.update(options, node, record("h1", 11, role="mesh"), others, Seen(("h2",)), 0.0)
    part.update(options, node, None, others, Seen(), 0.9)
    part.update(options, node, None, others, Seen(("h2",)), 1.0)
    part.update(options, node, None, others, Seen(("h2",)), 1.9)
    assert part.role == "mesh"
    part.update(options, node, None, others, Seen(("h2",)), 2.0)
    assert part.role == "client"


def test_nobody_waits_for_ever_to_enter_the_mesh() -> None:
    options, node, part = parse({}).value, context().node, Part()
    others = {"h2": member("h2", 12, "mesh")}
    part.update(options, node, record("h1", 11, role="client"), others, Seen(), 0.0)
    part.update(options, node, None, others, Seen(), roles.PATIENCE - 0.1)
    assert part.role == "client"
    part.update(options, node, None, others, Seen(), roles.PATIENCE)
    assert part.role == "mesh"


def test_a_first_start_plays_what_the_options_say() -> None:
    part = Part()
    part.update(parse({}).value, context().node, None, {}, Seen(), 0.0)
    assert (part.role, part.settled) == ("mesh", True)
    part = Part()
    part.update(parse({}).value, context().node, record("h1", 11, role="nonsense"), {}, Seen(), 0.0)
    assert part.role == "mesh"


# ------------------------------------------------------------------------------------------------ sessions


def peering(ctx: Context, others: dict[str, Member], secrets: dict[str, Secret] | None = None) -> sessions.Peering:
    node = ctx.node
    own = ctx.options.own(node.name, node.labels)
    part = target(ctx.options, node.name, node.labels)
    return sessions.peering(ctx, own, part, part, others, secrets or {})


def test_a_mesh_has_a_session_with_every_node() -> None:
    found = peering(context(), {"h2": member("h2", 12), "h3": member("h3", 13, asn=65001)})
    assert [(p.name, address_text(p.address), p.asn, p.client) for p in found.peers] == [
        ("h2", "192.168.50.12", 64512, False),
        ("h3", "192.168.50.13", 65001, False),
    ]
    assert all(address_text(p.transport.local_address) == "192.168.50.11" for p in found.peers)
    assert not found.findings


def test_the_same_input_gives_the_same_peers() -> None:
    """Each change in the cluster plans them all: what is the same object is not looked at again."""
    one, two = (peering(context(), {"h2": member("h2", 12), "h3": member("h3", 13)}).peers for _ in range(2))
    assert all(each is other for each, other in zip(one, two, strict=True))
    assert one[0].import_policy is one[1].import_policy
    assert one[0].export_policy is one[1].export_policy


def test_a_member_with_our_own_address_is_no_peer() -> None:
    assert peering(context(), {"h2": member("h2", 11)}).peers == ()


def takes(policy: Any, prefix: str, path: AsPath = AsPath(), *, own: bool = False) -> bool:  # noqa: B008
    attributes = Attributes(as_path=path)
    return policy is None or policy.apply(*nlri.parse(prefix), attributes, own=own) is not None


def test_what_is_taken_from_a_node_and_given_to_it() -> None:
    (peer,) = peering(context({"Announce": ["172.20.0.0/16"]}), {"h2": member("h2", 12)}).peers
    taken = [p for p in ("10.5.72.0/24", "10.5.72.8/32", "172.20.0.0/16") if takes(peer.import_policy, p)]
    assert taken == ["10.5.72.0/24", "10.5.72.8/32", "172.20.0.0/16"]
    for hostile in ("0.0.0.0/0", "10.5.0.0/16", "10.0.0.0/8", "192.168.50.0/24", "172.20.1.0/24", "8.8.8.8/32"):
        assert not takes(peer.import_policy, hostile), hostile
    assert takes(peer.export_policy, "10.5.59.0/24", own=True)
    assert not takes(peer.export_policy, "10.5.72.0/24")


def test_a_reflector_passes_on_what_nodes_say_and_not_what_routers_say() -> None:
    raw = {"Mesh": False, "Reflectors": ["h1"], "Routers": [{"Name": "tor", "Address": "192.168.50.1", "AS": 65000}]}
    node, router = peering(context(raw), {"h2": member("h2", 12)}).peers
    assert node.client
    assert takes(node.export_policy, "10.5.72.0/24")
    assert not takes(node.export_policy, "10.5.72.0/24", AsPath.sequence(65000))
    assert takes(router.export_policy, "10.5.72.0/24")
    assert not takes(router.export_policy, "203.0.113.0/24")


def test_a_router_is_told_what_is_ours_and_gets_its_settings() -> None:
    raw = {
        "Routers": [
            {
                "Name": "tor",
                "Address": "192.168.50.1",
                "AS": 65000,
                "TTLSecurity": 1,
                "NextHop": "keep",
                "PasswordFile": "/etc/tor",
                "AllowOwnAS": 2,
                "LocalAS": 64999,
                "Passive": True,
                "MaxPrefixes": 9,
            }
        ]
    }
    (peer,) = peering(context(raw), {}, {"/etc/tor": sessions.read_secret(b"hush\nmore\n")}).peers
    assert (peer.asn, peer.local_asn, peer.allowed_own_as, peer.passive, peer.most_prefixes) == (
        65000,
        64999,
        2,
        True,
        9,
    )
    assert (peer.transport.password, peer.transport.security_hops, peer.next_hop_self) == (b"hush", 1, False)
    assert takes(peer.export_policy, "10.5.59.0/24", own=True)
    assert not takes(peer.export_policy, "10.5.72.0/24")
    assert takes(peer.import_policy, "203.0.113.0/24")


def test_a_router_is_told_of_every_way_where_that_is_wanted() -> None:
    raw = {
        "Routers": [
            {"Name": "tor", "Address": "192.168.50.1", "AS": 65000},
            {"Name": "spine", "Address": "fd50::1", "AS": 65000, "AddPath": "send", "ExtendedNextHop": True},
        ]
    }
    tor, spine = peering(context(raw, v6=True), {}, {}).peers
    assert (tor.several_in, tor.several_out, tor.extended_next_hop) == (False, None, False)
    assert (spine.several_in, spine.several_out, spine.extended_next_hop) == (False, sessions.EACH_WAY, True)


def test_nodes_tell_each_other_of_every_way_whatever_part_they_play() -> None:
    for raw in ({}, {"Mesh": False, "Reflectors": ["h1"]}, {"Mesh": False, "Reflectors": ["h2"]}):
        (peer,) = peering(context(raw), {"h2": member("h2", 12)}).peers
        assert (peer.several_in, peer.several_out) == (True, sessions.EACH_WAY)


@pytest.mark.parametrize(("data", "word"), [(b"", "empty"), (b"\nx", "empty"), (b"x" * 81, "80")])
def test_a_password_that_cannot_be_used(data: bytes, word: str) -> None:
    raw = {"Routers": [{"Name": "tor", "Address": "192.168.50.1", "AS": 65000, "PasswordFile": "/etc/tor"}]}
    found = peering(context(raw), {}, {"/etc/tor": sessions.read_secret(data)})
    assert found.peers == ()
    assert [(f.code, f.subject, word in f.message) for f in found.findings] == [("bgp-password", "/etc/tor", True)]


def test_a_router_of_another_family_or_with_a_nodes_address() -> None:
    routers = [{"Address": "fd50::1", "AS": 65000}, {"Address": "192.168.50.12", "AS": 65000}]
    found = peering(context({"Routers": routers}), {"h2": member("h2", 12)})
    assert [p.name for p in found.peers] == ["h2"]
    assert [f.code for f in found.findings] == ["bgp-router-family", "bgp-router-twice"]


def test_advice_on_the_shape() -> None:
    many = {f"h{n}": member(f"h{n}", 2, v4=f"10.9.{n // 250}.{n % 250 + 1}") for n in range(100)}
    (finding,) = peering(context(), many).findings
    assert finding.code == "bgp-large-mesh"
    assert "Reflectors" in finding.remedy
    few = dict(list(many.items())[:99])
    assert peering(context(), few).findings == ()
    assert [f.code for f in peering(context({"Mesh": False, "Reflectors": ["x"]}), few).findings] == [
        "bgp-no-reflector"
    ]
    assert [f.code for f in peering(context({"Mesh": False}), few).findings] == ["bgp-no-peers"]


def test_the_speaker_and_what_it_announces() -> None:
    ctx = context({"Announce": ["172.20.0.0/16", "fd20::/64"], "Communities": ["64512:7"]})
    own = ctx.options.own("h1", ())
    config = sessions.speaker(ctx, own)
    assert config is not None
    assert address_text(config.identifier) == "192.168.50.11"
    announced = sessions.originated(ctx, own)
    assert list(announced) == ["10.5.59.0/24", "172.20.0.0/16"], "no IPv6 in this network"
    assert {a.communities for a in announced.values()} == {((64512 << 16) + 7,)}
    assert sessions.speaker(context(public_ip=None), own) is None


def test_an_ipv6_only_node_has_a_router_id() -> None:
    one, two = sessions.router_id(None, "1" * 32), sessions.router_id(None, "2" * 32)
    assert one != two
    assert len(one) == 4
    assert any(one)


# ------------------------------------------------------------------------------------------------ ways


def test_on_the_link_without_a_tunnel() -> None:
    ways = Ways(context(), {"h2": member("h2", 12)})
    assert ways.to("192.168.50.12").hop == Hop("eth0", "192.168.50.12")
    assert ways.route("10.5.72.0/24", ["192.168.50.12"]) == (
        Route("10.5.72.0/24", (Hop("eth0", "192.168.50.12"),), metric=metric("10.5.72.0/24")),
        "",
    )
    assert ways.vtep("h2") == ()


@pytest.mark.parametrize(
    ("next_hop", "word"),
    [
        ("192.168.70.11", "not on a link"),
        ("10.5.72.1", "inside the containers' network"),
        ("127.0.0.1", "no address of a host"),
        ("224.0.0.5", "no address of a host"),
        ("0.0.0.0", "no address of a host"),
        ("fd99::1", "not on a link"),
    ],
)
def test_a_next_hop_that_cannot_be_reached(next_hop: str, word: str) -> None:
    ways = Ways(context(), {})
    assert ways.to(next_hop).metric is None
    route, reason = ways.route("10.5.72.0/24", [next_hop])
    assert route is None
    assert word in reason


def test_across_subnets_by_the_tunnel_and_on_the_link_without() -> None:
    others = {"h2": member("h2", 12), "h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13")}
    ways = Ways(context({"Encapsulation": "vxlan-cross-subnet"}, v6=True), others)
    assert ways.to("192.168.50.12").hop == Hop("eth0", "192.168.50.12")
    assert ways.to("192.168.70.13").hop == Hop("na-vx1", "192.168.70.13", onlink=True)
    mac4, mac6 = vtep_mac(others["h3"].id, 1, 4), vtep_mac(others["h3"].id, 1, 6)
    gateway6 = link_local(mac6)
    assert ways.vtep("h2") == ()
    assert ways.vtep("h3") == (
        NextHop("na-vx1", "192.168.70.13"),
        Neighbour("na-vx1", "192.168.70.13", mac4),
        FdbEntry("na-vx1", mac4, "192.168.70.13"),
        NextHop("na-vx6-1", gateway6),
        Neighbour("na-vx6-1", gateway6, mac6),
        FdbEntry("na-vx6-1", mac6, "fd70::13"),
    )
    assert ways.route("10.5.73.0/24", ["192.168.70.13"])[0] == Route(
        "10.5.73.0/24", nexthop=("na-vx1", "192.168.70.13"), metric=metric("10.5.73.0/24")
    )
    assert ways.route("fc00:5:0:9::/64", ["fd70::13"])[0] == Route("fc00:5:0:9::/64", nexthop=("na-vx6-1", gateway6))


def test_with_the_tunnel_always() -> None:
    others = {"h2": member("h2", 12)}
    ways = Ways(context({"Encapsulation": "vxlan"}), others)
    assert ways.to("192.168.50.12").member == "h2"
    assert ways.to("192.168.50.1").hop == Hop("eth0", "192.168.50.1"), "a router is no node"
    assert ways.to("192.168.50.1").metric == 0
    assert ways.to("192.168.50.12").metric == 1


def able(ctx: Context, *more: str) -> Context:
    found = Facts(ctx.facts.links, ctx.facts.addresses, ctx.facts.routes, ctx.facts.abilities | set(more))
    return msgspec.structs.replace(ctx, facts=found)


def test_inside_ip() -> None:
    others = {"h2": member("h2", 12), "h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13")}
    ctx = able(context({"Encapsulation": "ipip-cross-subnet"}, v6=True), "ipip", "sit")
    assert tunnelled(ctx) == {4, 6}
    ways = Ways(ctx, others, tunnelled(ctx))
    sit = device6("192.168.70.13")
    assert ways.vtep("h2") == ()
    assert ways.vtep("h3") == (
        NextHop("na-ipip", "192.168.70.13"),
        Link(kind="sit", name=sit, mtu=1480, tunnel=TunnelAttrs(local="192.168.50.11", remote="192.168.70.13")),
    )
    assert ways.route("10.5.73.0/24", ["192.168.70.13"])[0] == Route(
        "10.5.73.0/24", nexthop=("na-ipip", "192.168.70.13"), metric=metric("10.5.73.0/24")
    )
    assert ways.route("fc00:5:0:9::/64", ["fd70::13"])[0] == Route("fc00:5:0:9::/64", (Hop(sit),))
    assert Bgp().mtu(ctx) == 1480
    assert [o.name for o in Bgp().base(ctx).objects if isinstance(o, Link)] == ["na-ipip"]
    assert Bgp().ports(ctx.options) == (Tcp(179), Ip(4, 4), Ip(41, 6))


def test_inside_ip_where_the_kernel_cannot() -> None:
    others = {"h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13"), "h4": member("h4", 14, v4=None)}
    ctx = able(context({"Encapsulation": "ipip"}, v6=True), "sit")
    ways = Ways(ctx, others, tunnelled(ctx))
    assert "cannot be made" in ways.to("192.168.70.13").problem
    assert ways.to("fd70::13").hop == Hop(device6("192.168.70.13"))
    assert "no IPv4 address" in ways.to("fd50::14").problem


def test_equal_ways_are_used_at_once() -> None:
    ways = Ways(context(), {})
    route, _ = ways.route("10.5.72.0/24", ["192.168.50.13", "192.168.50.12", "192.168.99.1", "192.168.50.13"])
    hops = (Hop("eth0", "192.168.50.12"), Hop("eth0", "192.168.50.13"))
    assert route == Route("10.5.72.0/24", hops, metric=metric("10.5.72.0/24"))


def test_ipv4_by_a_next_hop_of_ipv6() -> None:
    """RFC 8950: the kernel takes it as it is; a tunnel that is for IPv6 does not carry it."""
    others = {"h3": member("h3", 13, v4="192.168.70.13", v6="fd70::13")}
    ways = Ways(context({"Encapsulation": "vxlan-cross-subnet"}, v6=True), others)
    route, _ = ways.route("10.5.72.0/24", ["fd50::1", "192.168.50.1"])
    assert route is not None
    assert route.hops == (Hop("eth0", "192.168.50.1"), Hop("eth0", "fd50::1"))
    route, reason = ways.route("10.5.72.0/24", ["fd70::13"])
    assert route is None
    assert "tunnel for IPv6" in reason


def test_a_metric_follows_from_the_prefix_and_metrics_are_spread() -> None:
    found = [metric(f"10.{number >> 8}.{number & 255}.0/24") for number in range(10_000)]
    assert (min(found), max(found)) == (256, 511)
    assert max(found.count(each) for each in set(found)) < 100
    assert metric("fc00:5:0:9::/64") == 0


def test_a_prefix_that_the_host_has_itself_is_left_to_it() -> None:
    ctx = msgspec.structs.replace(context(), facts=facts(RouteFact(dst="192.168.50.0/24", dev="eth0")))
    route, reason = Ways(ctx, {}).route("192.168.50.0/24", ["192.168.50.1"])
    assert route is None
    assert "of its own" in reason


def test_a_vxlan_device_of_another_owner_leaves_no_tunnel() -> None:
    foreign = LinkFact(name="flannel.1", index=9, kind="vxlan", vxlan=VxlanAttrs(vni=1, port=8472))
    ctx = context({"Encapsulation": "vxlan"})
    assert tunnelled(ctx) == {4}
    taken = msgspec.structs.replace(ctx, facts=facts(links={**LINKS, "flannel.1": foreign}))
    assert not tunnelled(taken)
    ways = Ways(taken, {"h2": member("h2", 12)}, tunnelled(taken))
    assert ways.to("192.168.50.12").metric is None


def test_ways_differ_when_a_next_hop_is_reached_otherwise() -> None:
    one = Ways(context(), {"h2": member("h2", 12)})
    one.to("192.168.50.12")
    assert not Ways(context(), {}).differs(one)
    assert Ways(context({"Encapsulation": "vxlan"}), {"h2": member("h2", 12)}).differs(one)


def test_a_peers_plan_opens_the_guard_to_it() -> None:
    plan = Bgp().peer(context(v6=True), lease("h2", 12, public_ip6="fd50::12", v6="fc00:5:0:2::/64"))
    assert plan.objects == (NftElement("peers4", "192.168.50.12"), NftElement("peers6", "fd50::12"))


@pytest.mark.parametrize("role", roles.ROLES)
def test_every_part_survives_the_record(role: str) -> None:
    said = NodeRecord(name="h2", id="2" * 32, attributes=members.shared(65001, role, ("h1", "h3")))
    assert members.role_in(said) == role
    assert members.via_in(said) == ("h1", "h3")
