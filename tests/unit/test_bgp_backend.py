"""The bgp backend's pure parts: the plan, members, parts played, the speaker's peers and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.bgp import members, roles, sessions
from backends.bgp.members import Member
from backends.bgp.options import parse
from backends.bgp.part import Part
from backends.bgp.planner import STATE, Bgp
from backends.bgp.roles import CLIENT, EDGE, MESH, REFLECTOR, Seen, may_play, partners, target
from backends.bgp.sessions import Secret
from backends.vxlan import vtep_mac
from bgp.message import AsPath, Attributes, nlri
from bgp.message.nlri import address_text
from netagent.contract import Context, Ip, Tcp
from netagent.model import (
    AddressFact,
    Facts,
    Lease,
    LinkFact,
    Network,
    NftElement,
    Node,
    NodeRecord,
    RouteFact,
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


async def test_cleanup_leaves_nothing_to_restart_from(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("{}")
    await Bgp().dismantle(tmp_path)
    assert list(tmp_path.iterdir()) == []
    await Bgp().dismantle(tmp_path / "missing")


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


def test_the_record_of_an_earlier_name_is_no_member() -> None:
    records = {"h1": record("h1", 11), "was-h1": record("was-h1", 11), "h2": record("h2", 12)}
    records["was-h2"] = record("was-h2", 12)
    found = members.members(parse({}).value, "h1", records, [lease("h2", 12)])
    assert found.keys() == {"h2"}
    both = members.members(parse({}).value, "h1", records, [lease("h2", 12), lease("was-h2", 13, node_id="c" * 32)])
    assert both.keys() == {"h2", "was-h2"}, "who holds a lease counts"


def test_what_cannot_be_in_a_record_is_passed_over_and_told() -> None:
    bad = NodeRecord(
        name="h2",
        id="2" * 32,
        addresses=("nonsense", "x:y", "fe80::1%eth0", "127.0.0.1", "192.168.50.12"),
        attributes={"bgp.as": "64512", "bgp.role": "mesh"},
    )
    records = {"h2": bad, "h3": record("h3", 13, asn="1e9"), "h4": record("h4", 14), "h5": record("h5", 15, asn="")}
    found = members.members(parse({}).value, "h1", records, ())
    assert {name: (m.v4, m.v6) for name, m in found.items()} == {
        "h2": ("192.168.50.12", None),
        "h4": ("192.168.50.14", None),
    }
    told = list(members.doubts("h1", records))
    assert [(f.code, f.subject) for f in told] == [("bgp-node-record", "h2")] * 4 + [("bgp-node-record", "h3")]
    assert "'nonsense'" in told[0].message
    assert "bgp.as in the record of node h3 is '1e9'" in told[-1].message
    assert list(members.doubts("h2", {"h2": bad})) == []


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


def test_a_file_that_cannot_be_read_now_leaves_the_password() -> None:
    known = {"/etc/pass": Secret(b"hush", "cannot be read: gone")}
    raw = {"PasswordFile": "/etc/pass"}
    found = peering(context(raw), {"h2": member("h2", 12), "h3": member("h3", 13)}, known)
    assert [peer.transport.password for peer in found.peers] == [b"hush"] * 2
    (finding,) = found.findings
    assert (finding.code, finding.severity) == ("bgp-password", "warning")
    unknown = peering(context(raw), {"h2": member("h2", 12), "h3": member("h3", 13)}, {})
    assert unknown.peers == ()
    assert [(f.code, f.severity) for f in unknown.findings] == [("bgp-password", "error")], "once for all nodes"


def test_a_node_is_no_router_of_its_own() -> None:
    found = peering(context({"Routers": [{"Name": "tor", "Address": "192.168.50.11", "AS": 65000}]}), {})
    assert found.peers == ()
    assert [(f.code, f.subject) for f in found.findings] == [("bgp-router-self", "tor")]


def test_a_prefix_of_a_family_that_the_network_does_not_have_is_told() -> None:
    raw = {"Announce": ["2001:db8::/32", "10.96.0.0/12"]}
    assert [(f.code, f.subject) for f in peering(context(raw), {}).findings] == [
        ("bgp-announce-family", "2001:db8::/32")
    ]
    assert peering(context(raw, v6=True), {}).findings == ()


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


def test_a_peers_plan_opens_the_guard_to_it() -> None:
    plan = Bgp().peer(context(v6=True), lease("h2", 12, public_ip6="fd50::12", v6="fc00:5:0:2::/64"))
    assert plan.objects == (NftElement("peers4", "192.168.50.12"), NftElement("peers6", "fd50::12"))


@pytest.mark.parametrize("role", roles.ROLES)
def test_every_part_survives_the_record(role: str) -> None:
    said = NodeRecord(name="h2", id="2" * 32, attributes=members.shared(65001, role, ("h1", "h3")))
    assert members.role_in(said) == role
    assert members.via_in(said) == ("h1", "h3")
