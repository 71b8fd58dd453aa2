"""The options of `Backend` {"Type": "bgp"}: read, checked, and resolved for one node.

Rules: keys match in any case, as in the other backends; a bad value is a ConfigError that names key, value and
remedy; an unknown key is a finding. One document serves all nodes: what differs from node to node stands in `Nodes`,
chosen by a node's name or by one of its labels ("*" is every node), so that every node can tell what every other was
told. Of two entries that set the same thing for a node the later one counts; routers and prefixes add up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

import msgspec

from backends.ipip import IpipOptions
from backends.vxlan import OVERHEAD, VxlanOptions
from bfd.session import LEAST_INTERVAL, LONGEST_INTERVAL, Timing
from bfd.sessions import MULTIHOP_PORT, PORT
from bgp.bfd import DEFAULT_TIMING as DEFAULT_BFD
from bgp.bfd import Bfd, over_hops
from bgp.message.codes import WellKnownCommunity
from bgp.own import SHORTEST
from bgp.transport import NO_TCP_AO
from netagent.contract import Options
from netagent.errors import ConfigError
from netagent.model import Finding
from netagent.network_config import nearest

DEFAULT_AS = 64512  # the first that RFC 6996 sets aside for private use; Calico's default too
DEFAULT_PORT = 179
DEFAULT_HOLD = 90  # seconds, RFC 4271 section 10
DEFAULT_RESTART = 120  # seconds
LONGEST_RESTART = 4095  # RFC 4724: 12 bits
LONGEST_LONG_LIVED = 0xFFFFFF  # RFC 9494: 24 bits
ENCAPSULATIONS = ("none", "vxlan", "vxlan-cross-subnet", "ipip", "ipip-cross-subnet")
EVERY_NODE = "*"
LEAST_BFD, LONGEST_BFD = LEAST_INTERVAL // 1000, LONGEST_INTERVAL // 1000  # milliseconds
LONGEST_NAME = 100  # of a router
BROADCAST = ipaddress.IPv4Address(0xFFFFFFFF)
_SHOWN = 80  # characters of a bad value that are shown


class Announcement(msgspec.Struct, frozen=True):
    """A prefix to announce besides the node's subnet, with communities of its own."""

    prefix: str
    communities: tuple[int, ...] = ()
    large: tuple[tuple[int, int, int], ...] = ()


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """BFD with a peer. Intervals in milliseconds."""

    min_tx: int = DEFAULT_BFD.min_tx // 1000
    min_rx: int = DEFAULT_BFD.min_rx // 1000
    multiplier: int = DEFAULT_BFD.multiplier
    multihop: bool | None = None
    on: bool = True

    def settings(self, *, multihop: bool | None = None) -> Bfd | None:
        """The same for the speaker; None where it is off."""
        if not self.on:
            return None
        timing = Timing(self.min_tx * 1000, self.min_rx * 1000, self.multiplier)
        return Bfd(timing, self.multihop if multihop is None else multihop)


NO_WATCH = Watch(on=False)


class Router(msgspec.Struct, frozen=True, kw_only=True):
    """A router as peer. Hops and times as in bgp.transport; `next_hop_self` None is what is usual."""

    name: str
    address: str
    asn: int
    port: int = DEFAULT_PORT
    password_file: str = ""
    ttl_security: int = 0
    multihop: int = 0
    next_hop_self: bool | None = None
    allow_own_as: int = 0
    local_as: int | None = None
    passive: bool = False
    hold_time: int | None = None
    most_prefixes: int | None = None
    several_in: bool = False
    several_out: bool = False
    extended_next_hop: bool = False
    bfd: Watch = NO_WATCH

    @property
    def bfd_port(self) -> int | None:
        """Where it reaches us by BFD."""
        if not self.bfd.on:
            return None
        return MULTIHOP_PORT if over_hops(self.bfd.multihop, self.multihop, self.ttl_security) else PORT


class NodeRule(msgspec.Struct, frozen=True, kw_only=True):
    """What nodes of one name or label are told besides, or instead."""

    match: str
    asn: int | None = None
    cluster_id: str = ""
    routers: tuple[Router, ...] = ()
    announce: tuple[Announcement, ...] = ()
    communities: tuple[int, ...] = ()
    large: tuple[tuple[int, int, int], ...] = ()
    bfd: Watch | None = None

    def matches(self, name: str, labels: Collection[str]) -> bool:
        return selects(self.match, name, labels)


class BgpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All options, checked. `vni`, `vxlan_port` and `mtu` are those of the vxlan backend."""

    asn: int = DEFAULT_AS
    port: int = DEFAULT_PORT
    mesh: bool = True
    reflectors: tuple[str, ...] = ()
    cluster_id: str = ""
    routers: tuple[Router, ...] = ()
    nodes: tuple[NodeRule, ...] = ()
    announce: tuple[Announcement, ...] = ()
    communities: tuple[int, ...] = ()
    large: tuple[tuple[int, int, int], ...] = ()
    password_file: str = ""
    hold_time: int = DEFAULT_HOLD
    restart_time: int = DEFAULT_RESTART
    long_lived_time: int = 0
    encapsulation: str = "none"
    vni: int = 1
    vxlan_port: int = 0
    mtu: int = 0
    bfd: Watch = NO_WATCH

    @property
    def bfd_ports(self) -> tuple[int, ...]:
        """Where peers reach some node by BFD."""
        between_nodes = self.bfd.on or any(rule.bfd is not None and rule.bfd.on for rule in self.nodes)
        routers = (*self.routers, *(router for rule in self.nodes for router in rule.routers))
        found = {port for router in routers if (port := router.bfd_port) is not None}
        return tuple(sorted(found | ({MULTIHOP_PORT} if between_nodes else set())))

    @property
    def tunnel(self) -> str:
        """The backend whose tunnel is used, "" for none."""
        return self.encapsulation.partition("-")[0].removeprefix("none")

    @property
    def cross_subnet(self) -> bool:
        """Whether what is on the same link goes without the tunnel."""
        return self.encapsulation.endswith("cross-subnet")

    @property
    def vxlan(self) -> VxlanOptions:
        """The same as the vxlan backend reads it."""
        return VxlanOptions(vni=self.vni, port=self.vxlan_port, mtu=self.mtu)

    @property
    def ipip(self) -> IpipOptions:
        """The same as the ipip backend reads it."""
        return IpipOptions(direct_routing=self.cross_subnet)

    @property
    def announceable(self) -> tuple[str, ...]:
        """Every prefix that some node may announce besides its subnet."""
        found = [a.prefix for a in self.announce]
        found += [a.prefix for rule in self.nodes for a in rule.announce]
        return tuple(dict.fromkeys(found))

    def reflects(self, name: str, labels: Collection[str]) -> bool:
        """Whether that node is a route reflector."""
        return any(selects(entry, name, labels) for entry in self.reflectors)

    def asn_of(self, name: str, labels: Collection[str]) -> int:
        """The AS number of that node."""
        found = self.asn
        for rule in self.nodes:
            if rule.asn is not None and rule.matches(name, labels):
                found = rule.asn
        return found

    def own(self, name: str, labels: Collection[str]) -> Own:
        """What that node itself is told."""
        rules = [rule for rule in self.nodes if rule.matches(name, labels)]
        cluster_id = self.cluster_id
        for rule in rules:
            cluster_id = rule.cluster_id or cluster_id
        bfd = self.bfd
        for rule in rules:
            bfd = rule.bfd if rule.bfd is not None else bfd
        routers = {r.name: r for r in (*self.routers, *(r for rule in rules for r in rule.routers))}
        announce = {a.prefix: a for a in (*self.announce, *(a for rule in rules for a in rule.announce))}
        return Own(
            asn=self.asn_of(name, labels),
            cluster_id=cluster_id,
            routers=tuple(routers.values()),
            announce=tuple(announce.values()),
            communities=_joined(self.communities, (rule.communities for rule in rules)),
            large=_joined(self.large, (rule.large for rule in rules)),
            bfd=bfd,
        )


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one node, with its rules applied."""

    asn: int
    cluster_id: str
    routers: tuple[Router, ...]
    announce: tuple[Announcement, ...]
    communities: tuple[int, ...]
    large: tuple[tuple[int, int, int], ...]
    bfd: Watch = NO_WATCH
    """Of the sessions with other nodes."""


def selects(selector: str, name: str, labels: Collection[str]) -> bool:
    """Whether a selector means a node of this name and these labels."""
    return selector in (EVERY_NODE, name) or selector in labels


def _meant(key: str, known: tuple[str, ...]) -> str:
    """The option that somebody who writes `key` has probably in mind, "" if none is near."""
    spelt = key.lower().replace("-", "").replace("_", "")
    called = _ALSO_CALLED.get(spelt, "")
    return called if called in known else nearest(spelt, known)


def _joined(first: tuple[Any, ...], more: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys((*first, *(item for some in more for item in some))))


# ------------------------------------------------------------------------------------------------ reading


def parse(raw: Mapping[str, Any]) -> Options:
    """BgpOptions with findings about keys that are not known."""
    reader = _Reader("Backend", raw, [], _TOP)
    value = BgpOptions(
        asn=reader.number("AS", 1, 0xFFFFFFFF, DEFAULT_AS),
        port=reader.number("Port", 1, 0xFFFF, DEFAULT_PORT),
        mesh=reader.boolean("Mesh", True),
        reflectors=tuple(dict.fromkeys(reader.words("Reflectors", '["h1", "h2"]'))),
        cluster_id=reader.identifier("ClusterID"),
        routers=_routers(reader),
        nodes=tuple(_rule(each) for each in reader.objects("Nodes", _RULE)),
        announce=_announcements(reader),
        communities=reader.communities(),
        large=reader.large_communities(),
        password_file=reader.path("PasswordFile"),
        hold_time=reader.hold_time(DEFAULT_HOLD),
        restart_time=reader.number("RestartTime", 0, LONGEST_RESTART, DEFAULT_RESTART),
        long_lived_time=reader.number("LongLivedTime", 0, LONGEST_LONG_LIVED, 0),
        encapsulation=_encapsulation(reader),
        vni=reader.number("VNI", 1, 0xFFFFFF, 1),
        vxlan_port=reader.number("VXLANPort", 0, 0xFFFF, 0),
        mtu=reader.number("MTU", 0, 65535, 0),
        bfd=reader.watch(_BFD) or NO_WATCH,
    )
    if value.mtu:
        reader.number("MTU", 576 + OVERHEAD[6], 65535, 0)
    return Options(value, tuple(reader.findings))


_COMMON = ("Announce", "Communities", "Routers", "ClusterID", "AS")
_TOP = (
    *("AS", "Port", "Mesh", "Reflectors", "ClusterID", "Routers", "Nodes", "Announce", "Communities"),
    *("PasswordFile", "HoldTime", "RestartTime", "LongLivedTime", "Encapsulation", "VNI", "VXLANPort", "MTU", "BFD"),
)
# What Calico, BIRD and FRR call it.
_ALSO_CALLED = {
    other: name
    for name, others in {
        "AS": "asnumber asn peeras remoteas",
        "Address": "peerip neighbor neighbour ip",
        "AllowOwnAS": "numallowedlocalasnumbers allowasin",
        "Announce": "prefixadvertisements serviceclusterips advertise",
        "LocalAS": "localasnumber",
        "Match": "nodeselector node selector label",
        "Mesh": "nodetonodemesh nodetonodemeshenabled fullmesh",
        "NextHop": "nexthopmode nexthopself keeporiginalnexthop",
        "PasswordFile": "password md5 secret",
        "Port": "listenport",
        "Reflectors": "routereflectors",
        "RestartTime": "maxrestarttime gracefulrestart",
        "Routers": "peers peer neighbors neighbours",
    }.items()
    for other in others.split()
}
_SEVERAL = ("none", "receive", "send", "both")
_RULE = ("Match", *_COMMON, "BFD")
_BFD = ("MinTx", "MinRx", "Multiplier")
_ROUTER_BFD = (*_BFD, "Multihop")
_ROUTER = (
    *("Name", "Address", "AS", "Port", "PasswordFile", "TTLSecurity", "Multihop", "NextHop", "AllowOwnAS"),
    *("LocalAS", "Passive", "HoldTime", "MaxPrefixes", "AddPath", "ExtendedNextHop", "BFD"),
)


def _encapsulation(reader: _Reader) -> str:
    value = reader.text("Encapsulation", "none").lower() or "none"
    if value not in ENCAPSULATIONS:
        reader.fail("Encapsulation", value, "is no encapsulation", f"Use one of {', '.join(ENCAPSULATIONS)}")
    return value


def _rule(reader: _Reader) -> NodeRule:
    match = reader.text("Match", "")
    if not match:
        reader.fail("Match", match, "says which nodes, and is missing", "Write a node's name, a label, or *")
    return NodeRule(
        match=match,
        asn=reader.number("AS", 1, 0xFFFFFFFF, 0) or None,
        cluster_id=reader.identifier("ClusterID"),
        routers=_routers(reader),
        announce=_announcements(reader),
        communities=reader.communities(),
        large=reader.large_communities(),
        bfd=reader.watch(_BFD),
    )


def _routers(reader: _Reader) -> tuple[Router, ...]:
    routers: dict[str, Router] = {}
    for each in reader.objects("Routers", _ROUTER):
        router = _router(each)
        if router.name in routers:
            each.fail("Name", router.name, "is the name of two routers", "Give each a Name of its own")
        routers[router.name] = router
    return tuple(routers.values())


def _router(reader: _Reader) -> Router:
    parsed = reader.host("Address")
    if "AS" not in reader.values:
        reader.fail("AS", "", "is missing", "Write the router's AS number")
    ttl_security = reader.number("TTLSecurity", 0, 255, 0)
    multihop = reader.number("Multihop", 0, 255, 0)
    if ttl_security and multihop:
        reader.fail("Multihop", multihop, "cannot be set beside TTLSecurity", "TTLSecurity counts hops itself")
    next_hop = reader.text("NextHop", "").lower()
    if next_hop not in ("", "self", "keep"):
        reader.fail("NextHop", next_hop, "is no such choice", 'Write "self" or "keep", or leave it out')
    hold_time = reader.hold_time(-1)
    several = reader.text("AddPath", "none").lower() or "none"
    if several not in _SEVERAL:
        reader.fail("AddPath", several, "is no such choice", f"Use one of {', '.join(_SEVERAL)}")
    extended = reader.boolean("ExtendedNextHop", False)
    if extended and parsed.version == 4:
        reader.fail(
            "ExtendedNextHop", "true", "is for sessions over IPv6", "Write the router's IPv6 address as Address"
        )
    return Router(
        name=reader.name("Name") or str(parsed),
        address=str(parsed),
        asn=reader.number("AS", 1, 0xFFFFFFFF, 0),
        port=reader.number("Port", 1, 0xFFFF, DEFAULT_PORT),
        password_file=reader.path("PasswordFile"),
        ttl_security=ttl_security,
        multihop=multihop,
        next_hop_self={"": None, "self": True, "keep": False}[next_hop],
        allow_own_as=reader.number("AllowOwnAS", 0, 10, 0),
        local_as=reader.number("LocalAS", 1, 0xFFFFFFFF, 0) or None,
        passive=reader.boolean("Passive", False),
        hold_time=None if hold_time < 0 else hold_time,
        most_prefixes=reader.number("MaxPrefixes", 1, 10_000_000, 0) or None,
        several_in=several in ("receive", "both"),
        several_out=several in ("send", "both"),
        extended_next_hop=extended,
        bfd=reader.watch(_ROUTER_BFD) or NO_WATCH,
    )


def _announcements(reader: _Reader) -> tuple[Announcement, ...]:
    """Prefixes as text, or as objects with communities of their own."""
    found: dict[str, Announcement] = {}
    for place, item in reader.items("Announce"):
        each = _Reader(place, item if isinstance(item, Mapping) else {"Prefix": item}, reader.findings, _ANNOUNCE)
        text = each.text("Prefix", "")
        try:
            prefix = ipaddress.ip_network(text)
        except ValueError as error:
            each.fail("Prefix", text, f"is no prefix: {error}", "Write one such as 10.96.0.0/12, host bits zero")
        if "%" in text:
            each.fail("Prefix", text, "names an interface, which is this host's alone", "Write the prefix without it")
        if prefix.prefixlen < SHORTEST:
            problem = f"is shorter than /{SHORTEST}: a default route, or as good as one, which nobody takes"
            each.fail("Prefix", text, problem, "Announce what is behind it")
        found[str(prefix)] = Announcement(str(prefix), each.communities(), each.large_communities())
    return tuple(found.values())


_ANNOUNCE = ("Prefix", "Communities")


class _Reader:
    """Typed access to one JSON object. Each failure names key, value and remedy."""

    def __init__(self, where: str, raw: Mapping[str, Any], findings: list[Finding], known: tuple[str, ...]) -> None:
        self.where = where
        self.findings = findings
        names = {name.lower(): name for name in known}
        self.values: dict[str, Any] = {}
        seen: dict[str, str] = {}
        for key, value in raw.items():
            if (first := seen.setdefault(key.lower(), key)) != key:
                problem = f"{first} and {key}: the key is given twice (its case does not matter)"
                raise ConfigError(problem, where=f"{where}.{key}", remedy="Keep one of them")
            name = names.get(key.lower())
            if name is None and key.lower().replace("-", "").replace("_", "").startswith("tcpao"):
                remedy = "Use PasswordFile (TCP MD5), and TTLSecurity (GTSM) for routers; take this option away"
                raise ConfigError(NO_TCP_AO, where=f"{where}.{key}", remedy=remedy)
            if name is None:
                near = _meant(key, known)
                findings.append(
                    Finding(
                        code="config-unknown-key",
                        subject=f"{where}.{key}",
                        message=f"the bgp backend has no option {key!r} there; it is ignored",
                        evidence=f"{key} = {value!r}"[:200],
                        remedy=f"did you mean {near}?" if near else "known options: " + ", ".join(known),
                    )
                )
            elif value is not None:
                self.values[name] = value

    def fail(self, key: str, value: object, problem: str, remedy: str) -> NoReturn:
        shown = repr(value)
        if len(shown) > _SHOWN:
            shown = shown[:_SHOWN] + "..."
        raise ConfigError(f"{shown} {problem}", where=f"{self.where}.{key}", remedy=remedy)

    def number(self, key: str, low: int, high: int, default: int) -> int:
        if key not in self.values:
            return default
        value = self.values[key]
        if type(value) is not int:
            self.fail(key, value, "is not a whole number", f"Write a number from {low} to {high}, without quotes")
        if not low <= value <= high:
            self.fail(key, value, "is out of range", f"Use a value from {low} to {high}")
        return int(value)

    def hold_time(self, default: int) -> int:
        """Seconds; 0 (never) or at least 3 (RFC 4271 section 4.2)."""
        value = self.number("HoldTime", 0, 65535, default)
        if 0 < value < 3:
            self.fail("HoldTime", value, "is too short", "Use 0 (sessions never expire) or at least 3 seconds")
        return value

    def watch(self, known: tuple[str, ...]) -> Watch | None:
        """`BFD`: true, false, or an object with what is not as usual; None where nothing is said."""
        value = self.values.get("BFD")
        if value is None or type(value) is bool:
            return None if value is None else Watch(on=value)
        if not isinstance(value, Mapping):
            self.fail("BFD", value, "is no setting of BFD", 'Write true, or an object such as {"MinTx": 100}')
        each = _Reader(f"{self.where}.BFD", value, self.findings, known)
        return Watch(
            min_tx=each.number("MinTx", LEAST_BFD, LONGEST_BFD, DEFAULT_BFD.min_tx // 1000),
            min_rx=each.number("MinRx", LEAST_BFD, LONGEST_BFD, DEFAULT_BFD.min_rx // 1000),
            multiplier=each.number("Multiplier", 1, 255, DEFAULT_BFD.multiplier),
            multihop=each.boolean("Multihop", False) if "Multihop" in each.values else None,
        )

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if type(value) is not bool:
            self.fail(key, value, "is not true or false", "Write true or false, without quotes")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if type(value) is not str:
            self.fail(key, value, "is not text", "Write it in quotes")
        return value

    def path(self, key: str) -> str:
        value = self.text(key, "")
        if value and not (value.startswith("/") and value.isprintable()):
            self.fail(key, value, "is not an absolute path", "Write a path such as /etc/netagent/bgp-password")
        return value

    def name(self, key: str) -> str:
        """What views and log lines call it."""
        value = self.text(key, "")
        if not value.isprintable() or len(value) > LONGEST_NAME:
            self.fail(key, value, "is no name", f"Write up to {LONGEST_NAME} characters that can be printed")
        return value

    def host(self, key: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """An address that a session can be opened to."""
        value, example = self.text(key, ""), "Write one such as 192.168.60.1"
        try:
            found = ipaddress.ip_address(value)
        except ValueError:
            self.fail(key, value, "is no address of a router", example)
        if found.version == 6 and (found.is_link_local or found.ipv4_mapped is not None):
            problem = "is no address that a session can be opened to: it is link-local, or IPv4 written as IPv6"
            self.fail(key, value, problem, "Write the router's global address, or its IPv4 address")
        if found.is_multicast or found.is_unspecified or found == BROADCAST:
            self.fail(key, value, "is no address of a router", example)
        return found

    def identifier(self, key: str) -> str:
        """Four octets written like an IPv4 address."""
        value = self.text(key, "")
        try:
            return str(ipaddress.IPv4Address(value)) if value else ""
        except ValueError:
            self.fail(key, value, "is no cluster id", "Write one such as 10.0.0.1: four octets, no address of a host")

    def items(self, key: str) -> Iterable[tuple[str, Any]]:
        """The members of a list, each with its place."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            self.fail(key, value, "is not a list", "Write it in square brackets")
        for number, item in enumerate(value):
            yield f"{self.where}.{key}[{number}]", item

    def words(self, key: str, example: str) -> Iterable[str]:
        for place, item in self.items(key):
            if not isinstance(item, str) or not item:
                raise ConfigError(f"{item!r} is not text", where=place, remedy=f"Write a list such as {example}")
            yield item

    def objects(self, key: str, known: tuple[str, ...]) -> Iterable[_Reader]:
        for place, item in self.items(key):
            if not isinstance(item, Mapping):
                raise ConfigError(f"{item!r} is not an object", where=place, remedy="Write it in curly brackets")
            yield _Reader(place, item, self.findings, known)

    def communities(self) -> tuple[int, ...]:
        return tuple(c for c in self._communities() if isinstance(c, int))

    def large_communities(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(c for c in self._communities() if isinstance(c, tuple))

    def _communities(self) -> Iterable[int | tuple[int, int, int]]:
        """ "64512:100" (RFC 1997), "64512:1:2" (RFC 8092), "no-export" and its like."""
        for text in self.words("Communities", '["64512:100"]'):
            named = WellKnownCommunity.__members__.get(text.upper().replace("-", "_"))
            if named is not None:
                yield int(named)
                continue
            # Ten digits are as many as any of the numbers has; Python refuses to read thousands.
            digits = (
                part if part.isascii() and part.isdigit() and len(part) <= 10 else "-1" for part in text.split(":")
            )
            parts = [int(part) for part in digits]
            if len(parts) == 2 and all(0 <= part <= 0xFFFF for part in parts):
                yield parts[0] << 16 | parts[1]
            elif len(parts) == 3 and all(0 <= part <= 0xFFFFFFFF for part in parts):
                yield parts[0], parts[1], parts[2]
            else:
                self.fail(
                    "Communities",
                    text,
                    "is no community",
                    "Write 64512:100 (two numbers up to 65535), 64512:1:2 (three up to 4294967295) or no-export",
                )
