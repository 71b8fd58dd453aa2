"""The options of the bgp backend: what is read, in any case, and what a mistake is told as."""

from __future__ import annotations

from typing import Any

import pytest

from backends.bgp.options import BgpOptions, parse
from netagent.errors import ConfigError


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
        ({"Announce": ["8000::/1"]}, "Backend.Announce[0].Prefix", "default route"),
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
        ({"Routers": [{"Address": "fe80::1%eth0", "AS": 1}]}, "Backend.Routers[0].Address", "link-local"),
        ({"Routers": [{"Address": "::ffff:192.0.2.1", "AS": 1}]}, "Backend.Routers[0].Address", "written as IPv6"),
        ({"Routers": [{"Address": "224.0.0.5", "AS": 1}]}, "Backend.Routers[0].Address", "no address"),
        ({"Routers": [{"Address": "255.255.255.255", "AS": 1}]}, "Backend.Routers[0].Address", "no address"),
        ({"Routers": [{"Address": "::", "AS": 1}]}, "Backend.Routers[0].Address", "no address"),
        ({"Routers": [{"Name": "a\n", "Address": "192.0.2.1", "AS": 1}]}, "Backend.Routers[0].Name", "no name"),
        ({"Announce": ["fe80::1%eth0"]}, "Backend.Announce[0].Prefix", "interface"),
        ({"Communities": ["1:" + "2" * 5000]}, "Backend.Communities", "no community"),
        ({"PasswordFile": "/etc/\0"}, "Backend.PasswordFile", "absolute path"),
        ({"Nodes": [{"Match": "*", "AS": 1, "as": 2}]}, "Backend.Nodes[0].as", "AS and as: the key is given twice"),
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


def test_a_long_value_is_told_in_part() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"Encapsulation": "x" * 100_000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("raw", "near"),
    [
        ({"asNumber": 1}, "AS"),
        ({"HoldTimer": 9}, "HoldTime"),
        ({"nodeToNodeMesh": True}, "Mesh"),
        ({"password-file": "/x"}, "PasswordFile"),
        ({"BFD": {"MinTX2": 1}}, "MinTx"),
        ({"Routers": [{"Address": "192.0.2.1", "AS": 1, "Max-Prefix": 1}]}, "MaxPrefixes"),
    ],
    ids=str,
)
def test_an_unknown_key_is_told_with_the_nearest(raw: dict[str, Any], near: str) -> None:
    (finding,) = parse(raw).findings
    assert finding.remedy == f"did you mean {near}?"


def test_of_an_unknown_key_that_is_near_to_none_all_are_named() -> None:
    (finding,) = parse({"Frobnicate": 1}).findings
    assert finding.remedy.startswith("known options: AS, Port")
