"""Values that everything else speaks in: the cluster's records, facts of this host, kernel objects, findings.

Rules that hold here: every value is frozen and compares by content; addresses are text in canonical form
("10.5.59.0", "fc00::1"), prefixes are "<network address>/<length>" with host bits zero; nothing here does
I/O or imports anything else of netagent. A kernel object has a `key` (its identity in the kernel: two objects
with one key cannot both exist) and a content; changing the content of a key is a replace.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import msgspec

Family = Literal[4, 6]
Severity = Literal["info", "warning", "error"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing an operator should know, in words for an operator.

    `code` is stable and greppable ("config-unknown-key"), `subject` what it is about (a node, a key, a device),
    `message` what is wrong, `evidence` what was seen, `remedy` the next step (a command where there is one).
    A finding's identity is (code, subject): reporting it again replaces it.
    """

    code: str
    subject: str
    message: str
    severity: Severity = "warning"
    evidence: str = ""
    remedy: str = ""


# --------------------------------------------------------------------------------------- cluster records


# IP protocol numbers (IANA).
IPIP, TCP, UDP, SIT = 4, 6, 17, 41


class Inbound(NamedTuple):
    """What peers send to this host: packets of an IP protocol, to a port where it has ports (0: it has none)."""

    protocol: int
    port: int = 0


class Backend(msgspec.Struct, frozen=True):
    """`Backend` of the network's configuration: a type and its options, keys as the operator wrote them."""

    type: str
    options: Mapping[str, Any] = {}


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """The network's configuration, defaults filled in. A family that is off has None in all its fields."""

    v4: str | None = None  # "10.5.0.0/16"
    subnet_len: int | None = None
    subnet_min: str | None = None  # network addresses of the first and last subnet to hand out
    subnet_max: str | None = None
    v6: str | None = None
    subnet_len6: int | None = None
    subnet_min6: str | None = None
    subnet_max6: str | None = None
    backend: Backend = Backend("udp")

    @property
    def families(self) -> tuple[Family, ...]:
        return (*((4,) if self.v4 else ()), *((6,) if self.v6 else ()))


class Lease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One subnet lease as read from `<prefix>/subnets/<key>`, joined with its owner record if there is one.

    `key` is the last path element ("10.5.59.0-24", "10.5.59.0-24&fc00:0:0:1::-64", "0.0.0.0-0&fc00::-64").
    `data`/`data6` are the raw JSON of BackendData/BackendV6Data (b"" when absent). `raw` is the whole value as
    stored, so that unknown fields survive a rewrite. `backend` is "" where BackendType is absent (udp, alloc).
    `node` and `node_id` come from the owner record; "" where there is none (a flanneld node).
    `lease_id` is the etcd lease (0: a reservation or a key put by hand).
    """

    key: str
    v4: str | None
    v6: str | None
    public_ip: str | None
    public_ip6: str | None = None
    backend: str = ""
    data: bytes = b""
    data6: bytes = b""
    node: str = ""
    node_id: str = ""
    lease_id: int = 0
    create_revision: int = 0
    mod_revision: int = 0
    raw: bytes = b""

    @property
    def label(self) -> str:
        """What to call the peer in views: its node name, or its address where no owner record exists."""
        return self.node or self.public_ip or self.public_ip6 or self.key

    @property
    def unclaimed(self) -> bool:
        """Whether it waits for a node of that name, which has not been there yet: no peer."""
        return bool(self.node) and not self.node_id

    def subnet(self, family: Family) -> str | None:
        return self.v4 if family == 4 else self.v6

    def endpoint(self, family: Family) -> str | None:
        """The address of the peer's host in that family."""
        return self.public_ip if family == 4 else self.public_ip6


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it describes itself in `<prefix>/netagent/nodes/<name>`. Unknown keys are ignored."""

    name: str
    id: str
    version: str = ""
    addresses: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # what its operator calls it, for selectors in the network's configuration
    attributes: Mapping[str, str] = {}  # what a service shares (BGP role, cluster id ...)


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """This host as the planners see it. `v4`/`v6` are the subnets it holds, `mtu` the uplink's (bytes)."""

    name: str
    id: str  # stable, 32 hex digits, in the state directory
    uplink: str  # interface that carries the traffic to the peers
    mtu: int
    public_ip: str | None = None
    public_ip6: str | None = None
    local_ip: str | None = None  # address on the uplink to bind to; differs from public_ip behind NAT
    local_ip6: str | None = None
    v4: str | None = None
    v6: str | None = None
    labels: tuple[str, ...] = ()

    def subnet(self, family: Family) -> str | None:
        return self.v4 if family == 4 else self.v6

    def endpoint(self, family: Family) -> str | None:
        return self.public_ip if family == 4 else self.public_ip6

    def local(self, family: Family) -> str | None:
        return self.local_ip if family == 4 else self.local_ip6


# --------------------------------------------------------------------------------------- facts of this host


class VxlanAttrs(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes of a VXLAN device that cannot be changed in place: another value means delete and create."""

    vni: int
    port: int
    local: str | None = None
    dev: str | None = None  # underlay device
    learning: bool = False
    gbp: bool = False


class TunnelAttrs(msgspec.Struct, frozen=True, kw_only=True):
    """Of a device that puts packets into IPv4 (kinds "ipip" and "sit"): another value means delete and create.

    `remote` None: one device for every peer, the gateway of a route is where its packets are sent. `local` is None
    on the kernel's own fallback devices, tunl0 and sit0.
    """

    local: str | None = None
    remote: str | None = None


class LinkFact(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    index: int
    kind: str = ""  # IFLA_INFO_KIND; "" for a physical device
    mtu: int = 1500
    mac: str = ""
    up: bool = False  # IFF_UP
    carrier: bool = False  # IFF_LOWER_UP
    alias: str = ""
    own: bool = False  # a device of this agent's
    master: str = ""
    loopback: bool = False
    vxlan: VxlanAttrs | None = None
    tunnel: TunnelAttrs | None = None


class AddressFact(msgspec.Struct, frozen=True, kw_only=True):
    dev: str
    ip: str
    length: int
    scope: str = "global"  # global, link, host
    deprecated: bool = False
    tentative: bool = False
    temporary: bool = False


class RouteFact(msgspec.Struct, frozen=True, kw_only=True):
    """A route of the main table that is not ours: default routes and connected prefixes."""

    dst: str  # "0.0.0.0/0" for the default route
    dev: str
    gateway: str | None = None
    metric: int = 0
    src: str | None = None
    protocol: int = 0


class Facts:
    """What this host is, as a value: links, addresses, foreign routes, abilities of the kernel.

    `abilities` is a set of words: "nexthop", "ipv6", "tun", and the kinds of devices ("vxlan", "ipip" ...).
    """

    def __init__(
        self,
        links: Mapping[str, LinkFact] | None = None,
        addresses: tuple[AddressFact, ...] = (),
        routes: tuple[RouteFact, ...] = (),
        abilities: frozenset[str] = frozenset(),
    ) -> None:
        self.links: Mapping[str, LinkFact] = links or {}
        self.addresses = addresses
        self.routes = routes
        self.abilities = abilities

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and (
            (self.links, self.addresses, self.routes, self.abilities)
            == (other.links, other.addresses, other.routes, other.abilities)
        )

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _connected4(self) -> tuple[tuple[int, int, str], ...]:
        """(network, mask, device) of every IPv4 prefix that is on a link, longest first."""
        nets = [
            (int(n.network_address), int(n.netmask), a.dev)
            for a in self.addresses
            if ":" not in a.ip and a.length < 32
            for n in (ipaddress.IPv4Network(f"{a.ip}/{a.length}", strict=False),)
        ]
        return tuple(sorted(nets, key=lambda n: -n[1]))

    @cached_property
    def _connected6(self) -> tuple[tuple[int, int, str], ...]:
        nets = [
            (int(n.network_address), int(n.netmask), a.dev)
            for a in self.addresses
            if ":" in a.ip and a.length < 128
            for n in (ipaddress.IPv6Network(f"{a.ip}/{a.length}", strict=False),)
        ]
        return tuple(sorted(nets, key=lambda n: -n[1]))

    def on_link(self, ip: str) -> str | None:
        """The device whose connected prefix holds `ip` (longest prefix wins), or None: not on the same L2."""
        if ":" in ip:
            value, nets = int.from_bytes(socket.inet_pton(socket.AF_INET6, ip), "big"), self._connected6
        else:
            value, nets = int.from_bytes(socket.inet_aton(ip), "big"), self._connected4
        for network, mask, dev in nets:
            if value & mask == network:
                return dev
        return None


# --------------------------------------------------------------------------------------- kernel objects

Key: TypeAlias = tuple[Any, ...]


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A device of ours, set up. Alias is always `netagent`. `mac` None: whatever the kernel gave."""

    kind: str  # "vxlan", "ipip", "sit", "tun", "bridge"
    name: str
    mtu: int
    mac: str | None = None
    vxlan: VxlanAttrs | None = None
    tunnel: TunnelAttrs | None = None
    tun_vnet_hdr: bool = False  # tun only: create with IFF_VNET_HDR

    KIND: ClassVar[str] = "link"

    @property
    def key(self) -> Key:
        return ("link", self.name)


class Address(msgspec.Struct, frozen=True, gc=False):
    dev: str
    ip: str
    length: int
    scope: str = "global"

    KIND: ClassVar[str] = "address"

    @property
    def key(self) -> Key:
        return ("address", self.dev, self.ip)


class NextHop(msgspec.Struct, frozen=True, gc=False):
    """A nexthop object (kernel 5.3 on) on a device of ours, always `onlink`. Its numeric id is the kernel edge's."""

    dev: str
    gateway: str

    KIND: ClassVar[str] = "nexthop"

    @property
    def key(self) -> Key:
        return ("nexthop", self.dev, self.gateway)


class Hop(NamedTuple):
    """One leg of a plain route. `gateway` None: directly on the device. `weight` counts from 1."""

    dev: str
    gateway: str | None = None
    onlink: bool = False
    weight: int = 1


class Route(msgspec.Struct, frozen=True, gc=False):
    """A route of the main table, protocol ours. Exactly one of `nexthop`, `hops` is given, or type is a reject.

    `nexthop` is the (dev, gateway) of a NextHop; several `hops` are ECMP. `metric` 0 is the kernel's default
    (IPv6: 1024). `mtu` 0: none set on the route. `src` is the preferred source address.
    """

    dst: str
    hops: tuple[Hop, ...] = ()
    nexthop: tuple[str, str] | None = None
    type: str = "unicast"  # unicast, unreachable, blackhole
    metric: int = 0
    src: str | None = None
    mtu: int = 0

    KIND: ClassVar[str] = "route"

    @property
    def key(self) -> Key:
        return ("route", self.dst, self.metric)


class Neighbour(msgspec.Struct, frozen=True, gc=False):
    """A permanent neighbour entry (ARP or ND) on a device of ours."""

    dev: str
    ip: str
    mac: str

    KIND: ClassVar[str] = "neighbour"

    @property
    def key(self) -> Key:
        return ("neighbour", self.dev, self.ip)


class FdbEntry(msgspec.Struct, frozen=True, gc=False):
    """A permanent forwarding entry (NTF_SELF) of a VXLAN device of ours: inner MAC to outer address."""

    dev: str
    mac: str
    dst: str

    KIND: ClassVar[str] = "fdb"

    @property
    def key(self) -> Key:
        return ("fdb", self.dev, self.mac)


class NftTable(msgspec.Struct, frozen=True):
    """The nft table of ours without set elements: `body` is what stands between its braces, in nft syntax."""

    family: str
    name: str
    body: str

    KIND: ClassVar[str] = "nft"

    @property
    def key(self) -> Key:
        return ("nft", self.family, self.name)


class NftElement(msgspec.Struct, frozen=True, gc=False):
    """One element of a set of our nft table ("peers4", "192.168.50.12")."""

    set: str
    element: str

    KIND: ClassVar[str] = "element"

    @property
    def key(self) -> Key:
        return ("element", self.set, self.element)


class Sysctl(msgspec.Struct, frozen=True):
    """A setting under /proc/sys ("net/ipv4/ip_forward", "1"). Carries no mark: journalled with its old value."""

    name: str
    value: str

    KIND: ClassVar[str] = "sysctl"

    @property
    def key(self) -> Key:
        return ("sysctl", self.name)


class Offload(msgspec.Struct, frozen=True):
    """An ethtool feature of a device ("tx-checksum-ip-generic", False). Journalled on foreign devices."""

    dev: str
    feature: str
    on: bool

    KIND: ClassVar[str] = "offload"

    @property
    def key(self) -> Key:
        return ("offload", self.dev, self.feature)


class ForeignAccept(msgspec.Struct, frozen=True):
    """An accept of ours in a place that another tool offers (`firewall_integrate`), tagged "netagent".

    `place` is "docker-user" (iptables chain DOCKER-USER), "firewalld" (source zone) ...; `prefix` the network.
    """

    place: str
    family: Family
    prefix: str

    KIND: ClassVar[str] = "accept"

    @property
    def key(self) -> Key:
        return ("accept", self.place, self.family, self.prefix)


Object: TypeAlias = (
    Sysctl | Link | Offload | Address | NftTable | NftElement | NextHop | Neighbour | FdbEntry | Route | ForeignAccept
)

# The order in which kinds are created; they are removed in reverse.
KINDS: tuple[str, ...] = (
    "sysctl",
    "link",
    "offload",
    "address",
    "nft",
    "element",
    "nexthop",
    "neighbour",
    "fdb",
    "route",
    "accept",
)


def family_of(text: str) -> Family:
    """4 or 6, of an address or prefix in text."""
    return 6 if ":" in text else 4
