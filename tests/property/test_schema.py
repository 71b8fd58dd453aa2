"""Properties of keys and values in etcd: what is written reads back, and nothing that is read raises."""

from __future__ import annotations

import ipaddress
import json

import hypothesis.strategies as st
from hypothesis import given

from netagent.model import Finding, Lease
from netagent.store import schema
from netagent.store.base import KeyValue
from netagent.store.schema import lease_value, parse_lease, parse_subnet_key, subnet_key

v4_subnets = st.builds(
    lambda value, length: str(ipaddress.IPv4Network((value, length), strict=False)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
v6_subnets = st.builds(
    lambda value, length: str(ipaddress.IPv6Network((value, length), strict=False)),
    st.integers(2**120, 2**128 - 1),
    st.integers(1, 128),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.none() | v4_subnets, st.none() | v6_subnets)
def test_keys_round_trip(v4: str | None, v6: str | None) -> None:
    if v4 is None and v6 is None:
        return
    assert parse_subnet_key(subnet_key(v4, v6)) == (v4, v6)
    for subnet in (v4, v6):
        if subnet is not None:
            net = ipaddress.ip_network(subnet)
            assert schema.span(subnet) == (int(net[0]), int(net[-1]))
            assert schema.canonical_subnet(subnet) == subnet


@given(st.integers(0, 2**128 - 1))
def test_ipv6_text_parses_back(value: int) -> None:
    assert int(ipaddress.IPv6Address(schema.address6(value))) == value


@given(st.text(max_size=60) | st.from_regex(r"[0-9.]{5,15}-[0-9]{1,3}(&[0-9a-f:]{2,20}-[0-9]{1,3})?", fullmatch=True))
def test_no_key_raises_and_what_is_read_is_canonical(name: str) -> None:
    found = parse_subnet_key(name)
    if not isinstance(found, str):
        assert parse_subnet_key(subnet_key(*found)) == found


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_value_raises(value: bytes) -> None:
    kv = KeyValue("/coreos.com/network/subnets/10.5.59.0-24", value)
    assert isinstance(parse_lease("10.5.59.0-24", kv), Lease | Finding)
    schema.parse_owner(kv), schema.parse_node("h", kv), schema.parse_alive(kv)
    schema.unknown_fields(value)


@given(
    st.ip_addresses(v=4).map(str),
    st.none() | st.ip_addresses(v=6).map(str),
    st.sampled_from(["", "vxlan", "host-gw"]),
    st.none() | st.dictionaries(st.text(max_size=8), json_values, max_size=3),
    st.dictionaries(st.text(min_size=1, max_size=8).map(lambda name: "x" + name), json_values, max_size=3),
)
def test_values_round_trip_and_keep_what_is_unknown(
    ip: str, ip6: str | None, backend: str, data: dict[str, object] | None, unknown: dict[str, object]
) -> None:
    before = json.dumps({"PublicIP": "1.2.3.4", **unknown, "BackendData": {"old": 1}}).encode()
    value = lease_value(ip, ip6, backend, data, previous=before)
    document = json.loads(value)
    expected = {"PublicIP": ip, "PublicIPv6": ip6, "BackendType": backend, "BackendData": data}
    for name in ("BackendType", "BackendData"):
        if not expected[name] and expected[name] != {}:
            del expected[name]
    assert document == expected | unknown
    assert list(document)[:2] == ["PublicIP", "PublicIPv6"]
    lease = parse_lease("10.5.59.0-24", KeyValue("k", value))
    assert isinstance(lease, Lease)
    assert lease.public_ip == (ip if ip != "0.0.0.0" else None)
    assert lease.backend == backend
    assert json.loads(lease.data or b"null") == data
