"""What stands in etcd: keys, leases, our own records, the network's configuration; and the snapshot of them on disk.

Rule: every node of the cluster may write there, and flanneld too. A malformed record is a finding that can be shown
as JSON, stops no other, and never reaches the kernel.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

import msgspec

from backends.vxlan import vtep_mac
from netagent import network_config
from netagent.contract import Context
from netagent.errors import ConfigError, NetagentError
from netagent.kernel.wire import neighbours, nexthops, routes
from netagent.model import (
    AddressFact,
    Facts,
    FdbEntry,
    Finding,
    Lease,
    LinkFact,
    Neighbour,
    Network,
    NftElement,
    Node,
    NodeRecord,
    Route,
)
from netagent.plan.cluster import Cluster
from netagent.registry import Registry
from netagent.store import schema
from netagent.store.base import Event, KeyValue, Listing
from netagent.store.resume import Delta, Resync
from tests.fuzz.target import Input, pieces, target

KEYS = schema.Keys("/coreos.com/network")
NAME4, NAME6 = "10.5.72.0-24", "10.5.72.0-24&fc00:0:0:2::-64"
VXLAN = (
    b'{"PublicIP":"192.168.50.12","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25"}}'
)
DUAL = (
    b'{"PublicIP":"192.168.50.12","PublicIPv6":"fd50::12","BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:25"},"BackendV6Data":{"VNI":1,"VtepMAC":"ae:da:bc:2e:be:26"}}'
)
LEASES = {
    "vxlan": VXLAN,
    "dual": DUAL,
    "udp": b'{"PublicIP":"192.168.50.12","PublicIPv6":null}',
    "host-gw": b'{"PublicIP":"192.168.50.12","BackendType":"host-gw","BackendData":null}',
    "bgp": b'{"PublicIP":"192.168.50.12","PublicIPv6":"fd50:0:0::12","BackendType":"bgp"}',
    "folded": b'{"publicip":"192.168.50.12","BACKENDTYPE":"host-gw","Extra":{"a":["\\u0026",1e9]}}',
    "no-address": b'{"PublicIP":"0.0.0.0","PublicIPv6":"::"}',
}
CONFIGS = {
    "vxlan": b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":8472,"DirectRouting":true}}',
    "dual": b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","SubnetLen":25}',
    "range": b'{"network":"10.5.0.0/16","SubnetMin":"10.5.10.0","SubnetMax":"10.5.99.0","Extra":[1,{"a":null}]}',
    "bgp": (
        b'{"Network":"10.5.0.0/16","Backend":{"Type":"bgp","AS":64513,"Mesh":false,"Reflectors":["h1","rack-1"],'
        b'"Routers":[{"Address":"192.168.60.1","AS":65000,"TTLSecurity":1,"NextHop":"self","PasswordFile":"/etc/x"}],'
        b'"Nodes":[{"Match":"*","ClusterID":"10.0.0.9","Announce":["10.96.0.0/12",{"Prefix":"fd00::/64",'
        b'"Communities":["64513:7","no-export","1:2:3"]}]}],"HoldTime":9,"Encapsulation":"vxlan-cross-subnet","VNI":7}}'
    ),
    "odd": b'{"Network":"10.5.0.0/16","Backend":{"Type":"x","a":1e999,"b":"\\ud800","c":[[[[[[[[]]]]]]]]}}',
    "six": b'{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"host-gw"}}',
}

_NAMES = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "VNI", "VtepMAC", "node", "id")
_RECORD_WORDS = tuple(f'"{word}"'.encode() for word in (*_NAMES, "name", "addresses"))
_CONFIG_WORDS = tuple(f'"{word}"'.encode() for word in (*network_config.KEYS, "Type", "VNI", "vxlan", "udp", "bgp"))


def shown(*findings: Finding) -> None:
    """Findings go out as JSON and into the log."""
    for finding in findings:
        assert finding.message
        msgspec.json.encode(finding)


# --------------------------------------------------------------------------------------------------------- keys


@target(
    "etcd-key",
    covers=("netagent.store.schema:parse_subnet_key",),
    seeds=lambda: {
        "four": b"/coreos.com/network/subnets/" + NAME4.encode(),
        "dual": b"/coreos.com/network/subnets/" + NAME6.encode(),
        "six": b"/coreos.com/network/subnets/0.0.0.0-0&fc00:0:0:2::-64",
        "owner": b"/coreos.com/network/netagent/owners/" + NAME4.encode(),
        "node": b"/coreos.com/network/netagent/nodes/host-1",
        "foreign": b"/coreos.com/network/subnets-old/x",
    },
    words=(b"/subnets/", b"/netagent/", b"owners/", b"10.5.72.0", b"-24", b"&fc00::", b"-64", b"::ffff:"),
    longest=200,
)
def key(data: bytes) -> None:
    """A key is of one kind; a subnet key is two prefixes as `ipaddress` reads them, and is written as it was read."""
    text = data.decode("utf-8", "replace")
    kind, name = KEYS.classify(text)
    assert text.endswith(name)
    if kind != "subnet":
        return
    found = schema.parse_subnet_key(name)
    if isinstance(found, str):
        assert found
        return
    four, _, six = name.partition("&")
    for subnet, part in ((found.v4, four), (found.v6, six)):
        if subnet is not None:
            network = ipaddress.ip_network(part.replace("-", "/"))
            assert ipaddress.ip_network(subnet) == network
            assert schema.canonical_subnet(subnet) == subnet
            assert schema.span(subnet) == (int(network[0]), int(network[-1]))
    again = schema.parse_subnet_key(schema.subnet_key(found.v4, found.v6))
    assert again == found


# ------------------------------------------------------------------------------------------------------- leases


def _lease_seeds() -> dict[str, bytes]:
    return {
        name: pieces(NAME6.encode() if name == "dual" else NAME4.encode()) + value for name, value in LEASES.items()
    }


REGISTRY = Registry()
FACTS = Facts(
    {"eth0": LinkFact(name="eth0", index=2, mtu=1500, up=True, carrier=True)},
    (AddressFact(dev="eth0", ip="192.168.50.11", length=24), AddressFact(dev="eth0", ip="fd50::11", length=64)),
    (),
    frozenset(("nexthop", "vxlan", "tun", "ipv6")),
)
NODE = Node(
    name="h1",
    id="0" * 32,
    uplink="eth0",
    mtu=1500,
    public_ip="192.168.50.11",
    local_ip="192.168.50.11",
    public_ip6="fd50::11",
    local_ip6="fd50::11",
    v4="10.5.59.0/24",
    v6="fc00:0:0:1::/64",
)
CONTEXTS = {
    name: Context(
        network=Network(v4="10.5.0.0/16", v6="fc00::/48"), options=backend.options({}).value, node=NODE, facts=FACTS
    )
    for name, backend in REGISTRY.items()
}
OUR_MACS = {vtep_mac(NODE.id, 1, family) for family in (4, 6)}


class _Index(dict[str, int]):
    """Every device has a number."""

    def __missing__(self, name: str) -> int:
        return 7


@target(
    "etcd-lease",
    covers=("netagent.store.schema:parse_lease", "backends.vxlan:VtepData"),
    seeds=_lease_seeds,
    words=_RECORD_WORDS,
)
def lease(data: bytes) -> None:
    """A lease, or a finding; unknown fields survive; what any backend plans for it can be encoded for the kernel."""
    given = Input(data)
    name, value = given.piece().decode("utf-8", "replace"), given.rest()
    found = schema.parse_lease(name, KeyValue(KEYS.subnet(name), value, 1, 2, 1, 3))
    written = schema.lease_value("192.168.50.11", None, "vxlan", {"VNI": 1}, previous=value)
    assert schema.unknown_fields(written).keys() == schema.unknown_fields(value).keys()
    assert isinstance(schema.parse_lease(NAME4, KeyValue(KEYS.subnet(NAME4), written)), Lease)
    if isinstance(found, Finding):
        shown(found)
        return
    assert found.v4 or found.v6
    for address in filter(None, (found.public_ip, found.public_ip6)):
        ipaddress.ip_address(address)
    for kind, backend in REGISTRY.items():
        plan = backend.peer(CONTEXTS[kind], found)
        shown(*plan.findings)
        for planned in plan.objects:
            if isinstance(planned, Route):
                routes.put(planned, 0, 110, 100 if planned.nexthop else 0, _Index())
            elif isinstance(planned, Neighbour):
                neighbours.put(7, planned.ip, planned.mac)
            elif isinstance(planned, FdbEntry):
                neighbours.put_fdb(7, planned.mac, planned.dst)
                assert planned.mac not in OUR_MACS
            elif isinstance(planned, NftElement):
                kind = AF_INET6 if ":" in planned.element else AF_INET
                assert inet_ntop(kind, inet_pton(kind, planned.element)) == planned.element  # as nft shows it
            else:
                nexthops.put(100, 7, planned.gateway, 110)


# ---------------------------------------------------------------------------------------------------- a cluster

# A record's kind, one octet each: where it is put. 0x80: deleted, 0x40: what came before goes into one listing.
PLACES = (KEYS.config, KEYS.subnet(""), KEYS.owner(""), KEYS.node(""), KEYS.alive(""), KEYS.subnets, KEYS.root)


def _cluster_seeds() -> dict[str, bytes]:
    owner = schema.owner_value(schema.Owner("h2", "1" * 32))
    node = schema.node_value(NodeRecord(name="h2", id="1" * 32))
    four, six = NAME4.encode(), b"0.0.0.0-0&fc00:0:0:2::-64"
    whole = (0, b"", CONFIGS["dual"], 1, four, VXLAN, 2, four, owner, 3, b"h2", node, 4, b"h2", owner)
    return {
        "whole": pieces(*whole),
        "listing": pieces(*whole[:-3], 0x44, b"h2", owner, 0x81, four, b""),
        "disputed": pieces(*whole, 1, four, LEASES["udp"], 2, four, b"{", 1, six, DUAL, 5, b"x", b"y"),
        "config-lost": pieces(*whole, 0, b"", b"{}", 0x80, b"", b""),
    }


@target(
    "cluster",
    covers=(
        "netagent.store.schema:parse_owner",
        "netagent.store.schema:parse_node",
        "netagent.store.schema:parse_alive",
        "netagent.plan.cluster:Cluster",
    ),
    seeds=_cluster_seeds,
    words=(*_RECORD_WORDS, *_CONFIG_WORDS),
)
def cluster(data: bytes) -> None:
    """Records in any order: events and a listing of what is left give one view; the snapshot gives it back."""
    given, found, present, revision = Input(data), Cluster("/coreos.com/network"), {}, 0
    while given:
        kind, name, value = given.byte(), given.piece(), given.piece()
        revision += 1
        place = PLACES[(kind & 0x3F) % len(PLACES)]
        where = place + name.decode("utf-8", "replace") if place != KEYS.config else place
        record = KeyValue(where, value, revision, revision, 1, 5)
        if kind & 0x80:
            present.pop(where, None)
        else:
            present[where] = record
        if kind & 0x40:
            shown(*found.apply(Resync(Listing(revision, tuple(present.values())))).findings)
        else:
            shown(*found.apply(Delta(revision, (Event(bool(kind & 0x80), record),))).findings)
    shown(*found.findings())
    listed = Cluster("/coreos.com/network")
    listed.apply(Resync(Listing(revision, tuple(present.values()))))
    assert (listed.leases, listed.nodes, listed.alive) == (found.leases, found.nodes, found.alive)
    again = Cluster("/coreos.com/network")
    change = again.load(found.dump())
    assert not [finding for finding in change.findings if finding.code == "snapshot-unusable"]
    assert (again.leases, again.nodes, again.network) == (found.leases, found.nodes, found.network)


@target(
    "snapshot",
    covers=("netagent.plan.cluster:Cluster.load",),
    seeds=lambda: {"whole": _snapshot(), "cut": _snapshot()[:80], "json": b"\1" + _snapshot().partition(b"\n")[2]},
    words=(b"netagent-snapshot 1 ", b'"prefix"', b'"leases"', b'"nodes"', b'"revision"', b'"config"'),
)
def snapshot(data: bytes) -> None:
    """A snapshot that is damaged or somebody else's: taken over or reported, and can be written again."""
    payload = data[1:]
    if data[:1] == b"\1":  # so that the checksum is right
        payload = b"netagent-snapshot 1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload
    found = Cluster("/coreos.com/network")
    shown(*found.load(payload).findings)
    shown(*found.findings())
    again = Cluster("/coreos.com/network")
    assert not again.load(found.dump()).findings or found.findings()
    assert (again.leases, again.nodes) == (found.leases, found.nodes)


def _snapshot() -> bytes:
    found = Cluster("/coreos.com/network")
    items = (
        KeyValue(KEYS.config, CONFIGS["vxlan"], 1, 1),
        KeyValue(KEYS.subnet(NAME4), VXLAN, 2, 2, 1, 5),
        KeyValue(KEYS.owner(NAME4), schema.owner_value(schema.Owner("h2", "1" * 32)), 2, 2, 1, 5),
        KeyValue(KEYS.node("h2"), schema.node_value(NodeRecord(name="h2", id="1" * 32)), 3, 3),
    )
    found.apply(Resync(Listing(3, items)))
    return b"\0" + found.dump()


# ------------------------------------------------------------------------------------------- the configuration


@target(
    "network-config",
    covers=("netagent.network_config:parse", "backends.options:parse", "backends.bgp.options:parse"),
    seeds=lambda: CONFIGS,
    words=_CONFIG_WORDS,
)
def configuration(data: bytes) -> None:
    """Refused with the place and a remedy, or read; what is written is read as the same network; options likewise."""
    try:
        found = network_config.parse(data)
    except ConfigError as error:
        assert error.where and error.message
        json.dumps([error.message, error.remedy], ensure_ascii=False).encode()
        return
    shown(*found.findings)
    network = found.network
    assert network_config.parse(network_config.write(network)).network == network
    msgspec.json.encode(network_config.effective(network))
    for subnet in (network.v4, network.v6):
        assert subnet is None or str(ipaddress.ip_network(subnet)) == subnet
    assert network_config.compatible(network, network, None, None).changed == ()
    if network.backend.type in set(REGISTRY):
        try:
            shown(*REGISTRY[network.backend.type].options(network.backend.options).findings)
        except NetagentError as error:
            assert error.remedy
