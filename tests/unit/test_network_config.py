"""The network's configuration: flannel's defaults and refusals, our findings, writing, and what a change means."""

from __future__ import annotations

import json

import pytest

from netagent.errors import ConfigError
from netagent.model import Backend, Network
from netagent.network_config import compatible, contains, effective, fits, parse, write


def network(**document: object) -> Network:
    return parse(json.dumps(document)).network


def codes(text: str) -> list[str]:
    return [finding.code for finding in parse(text).findings]


# ------------------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("prefix", "length", "first", "last"),
    [
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ("255.255.0.0/16", 24, "255.255.1.0", "255.255.255.0"),
    ],
)
def test_ipv4_defaults(prefix: str, length: int, first: str, last: str) -> None:
    found = network(Network=prefix)
    assert found == Network(v4=prefix, subnet_len=length, subnet_min=first, subnet_max=last, backend=Backend("udp"))


@pytest.mark.parametrize(
    ("prefix", "length", "first", "last"),
    [
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ("fc00::/124", 126, "fc00::4", "fc00::c"),
    ],
)
def test_ipv6_defaults(prefix: str, length: int, first: str, last: str) -> None:
    found = network(EnableIPv4=False, EnableIPv6=True, IPv6Network=prefix)
    assert (found.v4, found.v6, found.subnet_len6) == (None, prefix, length)
    assert found.families == (6,)
    assert (found.subnet_min6, found.subnet_max6) == (first, last)


def test_keys_in_any_case_and_nulls_left_out() -> None:
    found = parse('{"NETWORK":"10.5.0.0/16","subnetlen":26,"SubnetMin":null,"bAckend":{"tYpe":"VXLAN","vni":7}}')
    assert found.network.subnet_len == 26
    assert found.network.backend == Backend("vxlan", {"vni": 7})
    assert found.findings == ()


def test_zero_values_are_as_good_as_absent() -> None:
    document = {"Network": "10.5.0.0/16", "SubnetLen": 0, "SubnetMin": "", "SubnetMax": "0.0.0.0"}
    assert network(**document) == network(Network="10.5.0.0/16")


def test_host_bits_are_cut_off_with_a_finding() -> None:
    found = parse('{"Network":"10.5.7.9/16"}')
    assert found.network.v4 == "10.5.0.0/16"
    assert found.findings[0].code == "config-host-bits"


# ------------------------------------------------------------------------------------------------- findings


def test_unknown_keys_are_findings_with_the_nearest_name() -> None:
    found = parse(
        '{"Network":"10.5.0.0/16","Subnet_Len":26,"Zebra":1,"EnableNFTables":true,"Networks":["10.0.0.0/8"]}'
    )
    assert [finding.code for finding in found.findings] == [
        "config-unknown-key",
        "config-unknown-key",
        "config-foreign-key",
        "config-foreign-key",
    ]
    assert found.findings[0].remedy == "did you mean SubnetLen?"
    assert found.findings[1].remedy.startswith("known keys are Network, ")
    assert found.findings[2].severity == "info"


def test_a_family_that_is_not_enabled_is_a_finding() -> None:
    assert codes('{"Network":"10.5.0.0/16","IPv6Network":"fc00::/48"}') == ["config-family-disabled"]


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object, found a list"),
        ("{", "not valid JSON"),
        ('{"Network":NaN}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"Backend":{"x":' + "[" * 500 + "]" * 500 + "}}", "nested too deeply"),
        ('{"\\ud800":1}', "half of a surrogate pair"),
        ('{"Backend":{"x":["\\udc00"]}}', "half of a surrogate pair"),
        ('{"Backend":{"x":1e999}}', "a number is too large"),
        ("{}", "Network: is required"),
        ('{"Network":"10.5.0.0"}', 'Network="10.5.0.0": not an address and prefix length'),
        ('{"Network":"10.5.0.0/255.255.0.0"}', "not an address and prefix length"),
        ('{"Network":"fc00::/48"}', "not an IPv4 prefix"),
        ('{"Network":17}', 'Network=17: expected text, found a number. Write "Network": "10.5.0.0/16"'),
        ('{"Network":"10.5.0.0/29"}', "must be /28 or wider"),
        ('{"Network":"10.5.0.0/16","SubnetLen":31}', "SubnetLen=31: must be at most 30"),
        ('{"Network":"10.5.0.0/16","SubnetLen":17}', "four subnets"),
        ('{"Network":"10.5.0.0/16","SubnetLen":-1}', "must not be negative"),
        ('{"Network":"10.5.0.0/16","SubnetLen":"24"}', 'Write "SubnetLen": 24, without quotes'),
        ('{"Network":"10.5.0.0/16","SubnetLen":true}', "found true or false"),
        ('{"Network":"10.5.0.0/16","SubnetLen":24.0}', "found a number with a fraction"),
        ('{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}', 'SubnetMin="10.6.0.0": is not in Network'),
        ('{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.7"}', 'Write "10.5.1.0" or the next'),
        ('{"Network":"10.5.0.0/16","SubnetMax":"fc00::"}', "not an IPv4 address"),
        ('{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}', "lies above SubnetMax"),
        ('{"Network":"10.5.0.0/16","network":"10.6.0.0/16"}', "Network and network: the key is given twice"),
        ('{"Network":"10.5.0.0/16","EnableIPv4":"yes"}', "without quotes"),
        ('{"EnableIPv4":false}', "no address family is enabled"),
        ('{"EnableIPv4":false,"EnableIPv6":true}', "IPv6Network: is required"),
        ('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/125"}', "/124 or wider"),
        ('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"::ffff:10.0.0.0/112"}', "IPv4-mapped"),
        ('{"Network":"10.5.0.0/16","Backend":"vxlan"}', 'Write "Backend": {"Type": "vxlan"}'),
        ('{"Network":"10.5.0.0/16","Backend":null}', "found null"),
        ('{"Network":"10.5.0.0/16","Backend":{}}', "Backend has no Type"),
        ('{"Network":"10.5.0.0/16","Backend":{"Type":7}}', "Backend.Type=7: expected text"),
        ('{"Network":"10.5.0.0/16","Backend":{"Type":"a","type":"b"}}', "Backend.Type and Backend.type"),
        ('{"Network":"10.5.0.0/16","Backend":{"Type":"a","o":{"x":1,"x":2}}}', "Backend.o.x: the key is given twice"),
        (
            '{"Network":"10.5.0.0/16","Backend":{"Type":"a","o":[{"x":1,"X":2}]}}',
            "Backend.o[0].x and Backend.o[0].X: ",
        ),
    ],
)
def test_errors_name_key_value_and_remedy(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "/network/config")
    assert said in str(caught.value)
    assert str(caught.value).startswith("/network/config: ")
    assert caught.value.remedy


def test_not_utf8_is_an_error() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        parse(b'{"Network":"\xff"}')


# -------------------------------------------------------------------------------------------------- writing


def test_writing_leaves_defaults_out_and_reads_back() -> None:
    assert write(network(Network="10.5.0.0/16")) == b'{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}'
    full = network(
        Network="10.5.0.0/16",
        SubnetLen=26,
        SubnetMin="10.5.2.0",
        SubnetMax="10.5.9.192",
        EnableIPv6=True,
        IPv6Network="fc00::/48",
        IPv6SubnetLen=72,
        Backend={"Type": "vxlan", "VNI": 3},
    )
    assert write(full) == (
        b'{"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.2.0","SubnetMax":"10.5.9.192","EnableIPv6":true,'
        b'"IPv6Network":"fc00::/48","IPv6SubnetLen":72,"Backend":{"Type":"vxlan","VNI":3}}'
    )
    assert parse(write(full)) == (full, ())
    only6 = network(EnableIPv4=False, EnableIPv6=True, IPv6Network="fc00::/48")
    assert parse(write(only6)) == (only6, ())
    assert effective(only6)["IPv6SubnetLen"] == 64


# ------------------------------------------------------------------------------------------------ comparing

BASE = network(Network="10.5.0.0/16", Backend={"Type": "vxlan"})


@pytest.mark.parametrize(
    ("document", "holds", "allocatable", "backend", "changed"),
    [
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}, True, True, False, ()),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}, True, True, True, ("Backend",)),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}, True, True, True, ("Backend",)),
        ({"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}, True, True, False, None),
        ({"Network": "10.5.0.0/16", "SubnetLen": 26, "Backend": {"Type": "vxlan"}}, True, False, False, None),
        (
            {"Network": "10.5.0.0/16", "SubnetMin": "10.5.60.0", "Backend": {"Type": "vxlan"}},
            True,
            False,
            False,
            None,
        ),
        ({"Network": "10.6.0.0/16", "Backend": {"Type": "vxlan"}}, False, False, False, None),
        ({"Network": "10.5.59.128/25", "Backend": {"Type": "vxlan"}}, False, False, False, None),
        (
            {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}},
            False,
            False,
            False,
            None,
        ),
    ],
)
def test_what_a_change_means_for_a_held_subnet(
    document: dict[str, object], holds: bool, allocatable: bool, backend: bool, changed: tuple[str, ...] | None
) -> None:
    found = compatible(BASE, network(**document), "10.5.59.0/24", None)
    assert (found.holds, found.allocatable, found.backend_changed) == (holds, allocatable, backend)
    if changed is not None:
        assert found.changed == changed
    assert [f.code for f in found.findings] == (
        [] if allocatable else ["network-range-excludes-subnet" if holds else "network-excludes-subnet"]
    )


def test_the_remedy_names_the_node() -> None:
    [found] = compatible(BASE, network(Network="10.6.0.0/16"), "10.5.59.0/24", None, node="h1").findings
    assert "`netagent lease release --node h1`" in found.remedy


def test_fits_and_contains() -> None:
    assert fits(BASE, "10.5.1.0/24")
    assert not fits(BASE, "10.5.0.0/24")
    assert not fits(BASE, "10.5.1.0/25")
    assert not fits(BASE, "fc00::/64")
    assert contains("10.5.0.0/16", "10.5.0.0/16")
    assert not contains("10.5.0.0/16", "10.4.0.0/15")
    assert not contains("10.5.0.0/16", "fc00::/64")
