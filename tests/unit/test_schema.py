"""Keys and values in etcd, byte for byte as flannel has them, and what is made of records that are not."""

from __future__ import annotations

import pytest

from netagent.model import Finding, Lease, NodeRecord
from netagent.store import schema
from netagent.store.base import KeyValue
from netagent.store.schema import Keys, Owner, lease_value, parse_lease, parse_subnet_key, subnet_key

KEYS = Keys("/coreos.com/network")
# Seen in etcd with flanneld v0.20.2, three nodes, vxlan (and udp below).
VXLAN = (
    b'{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25"}}'
)
UDP = b'{"PublicIP":"192.168.50.11","PublicIPv6":null}'


def read(name: str, value: bytes, **more: int) -> Lease | Finding:
    return parse_lease(name, KeyValue(KEYS.subnet(name), value, **more))


# ----------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("prefix", ["/coreos.com/network", "/coreos.com/network/", "//coreos.com//network//"])
def test_a_prefix_is_cleaned(prefix: str) -> None:
    keys = Keys(prefix)
    assert keys.config == "/coreos.com/network/config"
    assert keys.subnets == "/coreos.com/network/subnets"
    assert keys.root == "/coreos.com/network/"
    assert keys.subnet("10.5.59.0-24") == "/coreos.com/network/subnets/10.5.59.0-24"
    assert keys.owner("10.5.59.0-24") == "/coreos.com/network/netagent/owners/10.5.59.0-24"
    assert keys.node("h1") == "/coreos.com/network/netagent/nodes/h1"
    assert keys.alive("h1") == "/coreos.com/network/netagent/alive/h1"


@pytest.mark.parametrize(
    ("key", "kind", "name"),
    [
        ("config", "config", None),
        ("subnets/10.5.59.0-24", "subnet", "10.5.59.0-24"),
        ("subnets/a/b", "subnet", "a/b"),
        ("subnets", "foreign", None),
        ("subnetsX/10.5.59.0-24", "foreign", None),
        ("netagent/owners/10.5.59.0-24", "owner", "10.5.59.0-24"),
        ("netagent/nodes/h1", "node", "h1"),
        ("netagent/alive/h1", "alive", "h1"),
        ("netagent/else", "other", None),
        ("else", "other", None),
    ],
)
def test_classify(key: str, kind: str, name: str | None) -> None:
    full = KEYS.root + key
    assert KEYS.classify(full) == (kind, name if name is not None else full)


@pytest.mark.parametrize(
    ("name", "v4", "v6"),
    [
        ("10.5.59.0-24", "10.5.59.0/24", None),
        ("10.5.59.0-24&fc00:0:0:1::-64", "10.5.59.0/24", "fc00:0:0:1::/64"),
        ("0.0.0.0-0&fc00:0:0:1::-64", None, "fc00:0:0:1::/64"),
    ],
)
def test_subnet_keys(name: str, v4: str | None, v6: str | None) -> None:
    assert parse_subnet_key(name) == (v4, v6)
    assert subnet_key(v4, v6) == name


def test_another_spelling_of_ipv6_is_read_as_the_same_subnet() -> None:
    assert parse_subnet_key("10.5.59.0-24&fc00:0:0:1:0:0:0:0-64") == ("10.5.59.0/24", "fc00:0:0:1::/64")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "garbage",
        "10.5.59.0",
        "10.5.59.0/24",
        "10.5.59.7-24",
        "10.5.59.0-33",
        "10.5.999.0-24",
        "010.5.59.0-24",
        "x10.5.59.0-24",
        "10.5.59.0-24x",
        "10.5.59.0-24\n",
        "\u0661\u0660.5.59.0-24",
        "0.0.0.0-0",
        "fc00::-64",
        "10.5.59.0-24&fc00::1-64",
        "10.5.59.0-24&fc00::-129",
        "10.5.59.0-24&::-0",
        "10.5.59.0-24&FC00::-64",
        "10.5.59.0-24&zz-64",
        "10.5.59.0-24&::::-64",
        "a/10.5.59.0-24",
    ],
)
def test_malformed_keys_are_findings(name: str) -> None:
    assert isinstance(parse_subnet_key(name), str)
    found = read(name, VXLAN)
    assert isinstance(found, Finding)
    assert (found.code, found.severity) == ("lease-malformed-key", "error")
    assert KEYS.subnet(name) in found.remedy


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0xFC00 << 112, "fc00::"),
        (0x10002, "::1:2"),
        (0x20010DB8 << 96 | 1 << 64, "2001:db8:0:1::"),
        (0x20010DB8 << 96 | 1, "2001:db8::1"),
        (0x2001_0000_0001_0000_0000_0001_0001_0001, "2001:0:1::1:1:1"),
    ],
)
def test_ipv6_text_is_gos(value: int, text: str) -> None:
    assert schema.address6(value) == text


# --------------------------------------------------------------------------------------------------- values


def test_values_are_flannels_byte_for_byte() -> None:
    data = {"VNI": 1, "VtepMAC": "ae:da:bc:2e:be:25"}
    assert lease_value("192.168.50.11", None, "vxlan", data) == VXLAN
    assert lease_value("192.168.50.11", None) == UDP
    assert lease_value("192.168.50.11", None, "host-gw") == UDP[:-1] + b',"BackendType":"host-gw"}'
    assert lease_value(None, "fd00:50::11", "vxlan", data6=data) == (
        b'{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:50::11","BackendType":"vxlan",'
        b'"BackendV6Data":{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25"}}'
    )


def test_values_are_escaped_as_go_escapes() -> None:
    assert lease_value("10.0.0.1", None, "x", {"a": "<b>&\u2028"}) == (
        b'{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"x","BackendData":{"a":"\\u003cb\\u003e\\u0026\\u2028"}}'
    )


def test_unknown_fields_survive_a_rewrite_and_known_ones_do_not() -> None:
    old = (
        b'{"Zone": {"a":[1, 2]},"publicip":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1},"PublicIPv6":null}'
    )
    assert lease_value("192.168.50.11", None, previous=old) == UDP[:-1] + b',"Zone":{"a":[1, 2]}}'
    assert lease_value("192.168.50.11", None, previous=b"garbage") == UDP


def test_a_lease_is_read() -> None:
    found = read("10.5.59.0-24", VXLAN, create_revision=3, mod_revision=4, lease=7)
    assert found == Lease(
        key="10.5.59.0-24",
        v4="10.5.59.0/24",
        v6=None,
        public_ip="192.168.50.11",
        backend="vxlan",
        data=b'{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25"}',
        lease_id=7,
        create_revision=3,
        mod_revision=4,
        raw=VXLAN,
    )


def test_an_ipv6_only_lease_has_no_ipv4_address() -> None:
    value = lease_value(None, "FD00:50:0::11", "vxlan", data6={"VNI": 1})
    found = read("0.0.0.0-0&fc00::-64", value)
    assert isinstance(found, Lease)
    assert (found.v4, found.v6, found.public_ip, found.public_ip6) == (None, "fc00::/64", None, "fd00:50::11")
    assert (found.data, found.data6) == (b"", b'{"VNI":1}')


def test_fields_in_any_case_as_go_reads_them() -> None:
    found = read("10.5.59.0-24", b'{"publicip":"1.2.3.4","BACKENDTYPE":null,"backenddata":{"VNI":2},"other":1}')
    assert isinstance(found, Lease)
    assert (found.public_ip, found.backend, found.data) == ("1.2.3.4", "", b'{"VNI":2}')


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        b"[]",
        b'"10.0.0.1"',
        b"null",
        b"\xff\xfe",
        b"{",
        b'{"PublicIP":7}',
        b'{"PublicIP":"nowhere"}',
        b'{"PublicIP":"10.0.0.1\\u0000"}',
        b'{"PublicIP":"10.0.0.1","PublicIPv6":"x"}',
        b'{"PublicIP":"10.0.0.1","BackendType":{}}',
        b'{"PublicIP":"10.0.0.1","BackendData":' + b"[" * 100_000,
    ],
)
def test_malformed_values_are_findings(value: bytes) -> None:
    found = read("10.5.59.0-24", value)
    assert isinstance(found, Finding)
    assert found.code == "lease-malformed-value"
    assert "etcdctl del '/coreos.com/network/subnets/10.5.59.0-24'" in found.remedy
    assert len(found.evidence) < 1000


# -------------------------------------------------------------------------------------------------- our own


def test_an_owner_counts_only_if_written_together() -> None:
    kv = KeyValue(KEYS.subnet("10.5.59.0-24"), UDP, 5, 9, 2, 7)
    owner = KeyValue(KEYS.owner("10.5.59.0-24"), schema.owner_value(Owner("h1", "ab")), 5, 9, 2, 7)
    for changed, node in ((owner, "h1"), (owner._replace(mod_revision=8), ""), (owner._replace(lease=8), "")):
        lease = schema.joined_lease("10.5.59.0-24", kv, changed)
        assert isinstance(lease, Lease)
        assert lease.node == node
    assert owner.value == b'{"node":"h1","id":"ab"}'


def test_records_of_ours_that_cannot_be_read_are_findings() -> None:
    kv = KeyValue("/k", b"[")
    assert isinstance(schema.parse_owner(kv), Finding)
    assert isinstance(schema.parse_alive(kv), Finding)
    assert isinstance(schema.parse_node("h1", kv), Finding)


def test_node_records_are_read_leniently_and_belong_to_their_key() -> None:
    record = NodeRecord(name="h1", id="ab", addresses=("10.0.0.1",), attributes={"role": "rr"})
    kv = KeyValue(KEYS.node("h1"), schema.node_value(record))
    assert schema.parse_node("h1", kv) == record
    newer = KeyValue(KEYS.node("h2"), b'{"name":"h1","id":"ab","future":[1]}')
    assert schema.parse_node("h2", newer) == NodeRecord(name="h2", id="ab")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.5.9.0/24", "10.5.9.0/24"),
        ("FD00:5:0:9:0::/64", "fd00:5:0:9::/64"),
        ("10.5.9.1/24", None),
        ("10.5.9.0", None),
        ("x", None),
        ("fd00::1/64", None),
        ("0.0.0.0/0", None),
    ],
)
def test_canonical_subnet(text: str, canonical: str | None) -> None:
    assert schema.canonical_subnet(text) == canonical
