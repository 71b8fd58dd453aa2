"""What the kernel and other tools' listings say: netlink messages, nft's JSON, iptables' rules.

Rule: a message cut short or a listing that makes no sense is skipped or refused with a KernelError.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from typing import Any

from netagent.errors import KernelError
from netagent.kernel import foreign, legacy, nftwire
from netagent.kernel.base import Change
from netagent.kernel.events import Ours, Translator
from netagent.kernel.links import Links
from netagent.kernel.nexthops import NexthopIds
from netagent.kernel.nft import _listing
from netagent.kernel.ruleset import Packet, Rules, words
from netagent.kernel.wire import addresses, links, message, neighbours, netconf, nexthops, routes
from netagent.model import KINDS, Hop, Inbound, Route, VxlanAttrs
from tests.fuzz.target import Input, pieces, target

DECODERS = {
    **dict.fromkeys((links.NEWLINK, links.DELLINK), links.decode),
    **dict.fromkeys((addresses.NEWADDR, addresses.DELADDR), addresses.decode),
    **dict.fromkeys((routes.NEWROUTE, routes.DELROUTE), routes.decode),
    **dict.fromkeys((neighbours.NEWNEIGH, neighbours.DELNEIGH), neighbours.decode),
    **dict.fromkeys((nexthops.NEWNEXTHOP, nexthops.DELNEXTHOP), nexthops.decode),
    netconf.NEWNETCONF: netconf.decode,
}
TYPES = tuple(DECODERS)
INDEX = {"na-vx1": 7, "eth0": 2}
MAC = "ae:da:bc:2e:be:25"


# -------------------------------------------------------------------------------------------------- rtnetlink


def _netlink_seeds() -> dict[str, bytes]:
    overrun = nexthops.put(100, 7, "10.9.0.0", 110)
    hops = (Hop("eth0", "192.168.50.1"), Hop("eth0", "192.168.50.2", weight=3))
    return {
        "route": routes.put(Route("10.9.0.0/24", hops[:1]), 0, 110, 0, INDEX),
        "route-multipath": routes.put(Route("10.9.0.0/24", hops, metric=5, mtu=1400), 0, 110, 0, INDEX),
        "route-nexthop6": routes.put(Route("fc00:1::/64", nexthop=("na-vx1", "fc00:1::")), 0, 110, 100, INDEX),
        "route-via6": routes.put(Route("10.9.0.0/24", (Hop("eth0", "fe80::1"),)), 0, 4, 0, INDEX),
        "route-default": routes.put(Route("0.0.0.0/0", hops[:1], src="192.168.50.11"), 0, 16, 0, INDEX),
        "unreachable": routes.put(Route("10.9.0.0/16", type="unreachable", metric=9), 0, 110, 0, INDEX),
        "link": links.create("vxlan", "na-vx1", 1450, MAC, VxlanAttrs(vni=1, port=8472, local="10.0.0.1"), 2),
        "link-tun": links.create("tun", "na-tun", 1400, None),
        "address": addresses.put(7, "10.5.59.0", 32, "global") + addresses.delete(2, "fd50::11", 64),
        "neighbour": neighbours.put(7, "10.9.0.0", MAC) + neighbours.put_fdb(7, MAC, "192.168.50.12"),
        "overrun": (len(overrun) - 4).to_bytes(4, "little") + overrun[4:] + overrun,
        "nexthop": nexthops.put(100, 7, "10.9.0.0", 110) + nexthops.put(101, 7, "fc00:1::", 110),
        "error": message.HEADER.pack(36, message.ERROR, message.CAPPED, 1, 0) + b"\xef\xff\xff\xff" + bytes(16),
        "netconf": message.HEADER.pack(28, netconf.NEWNETCONF, 0, 1, 0) + b"\2\0\0\0\x08\0\1\0\7\0\0\0",
    }


@target(
    "netlink",
    covers=tuple(
        f"netagent.kernel.wire.{name}:decode"
        for name in ("links", "addresses", "routes", "neighbours", "nexthops", "netconf")
    ),
    seeds=_netlink_seeds,
)
def netlink(data: bytes) -> None:
    """A datagram: no decoder raises or leaves its message; what is single and ours is encoded as it was read."""
    at = 0
    for found in message.messages(data):
        assert at <= found.start <= found.end <= len(data)
        at = found.end
        start, end = found.start, found.end
        if found.type in (message.ERROR, message.DONE):
            assert message.refusal(data, found).errno >= 0
            continue
        decode = DECODERS.get(found.type)
        if decode is None:
            continue
        value = decode(data, start, end)
        assert value == decode(data[:end] + b"\xff" * 64, start, end)  # nothing behind the message is looked at
        routes.protocol_of(data, start, end)
        routes.is_default_or_direct(data, start, end)
        routes.destination_of(data, start, end)
        if isinstance(value, routes.RouteMessage):
            address, _, length = value.dst.partition("/")
            assert (ipaddress.ip_address(address).version == 4) == (value.family == message.AF_INET)
            assert 0 <= int(length) <= 255
        elif isinstance(value, nexthops.NexthopMessage) and value.gateway and value.onlink:
            again = nexthops.put(value.id, value.ifindex, value.gateway, value.protocol)
            assert nexthops.decode(again, 16, len(again)) == value
        elif isinstance(value, neighbours.NeighbourMessage) and value.ip and len(value.mac) == 17:
            if value.family == message.AF_BRIDGE:
                again = neighbours.put_fdb(value.ifindex, value.mac, value.ip)
            else:
                again = neighbours.put(value.ifindex, value.ip, value.mac)
            told = neighbours.decode(again, 16, len(again))
            assert told is not None
            assert (told.ifindex, told.ip, told.mac) == (value.ifindex, value.ip, value.mac)


class Kernel:
    """Stands in for the request socket: na-vx1 is ours, eth0 is not."""

    def dump(self, request: bytes, kind: int, decode: Any) -> list[Any]:
        vxlan = VxlanAttrs(vni=1, port=8472)
        own = links.LinkMessage(7, "na-vx1", "vxlan", 0x11043, 1450, "", "netagent", 0, 0, vxlan, None, False, False)
        return [own, own._replace(ifindex=2, name="eth0", kind="", alias="", vxlan=None)]


@target(
    "netlink-events",
    covers=("netagent.kernel.events:Translator",),
    seeds=lambda: {
        name: pieces(*(part for _ in (0, 1) for part in (TYPES.index(kind), made[16:])))
        for name, made in _netlink_seeds().items()
        if (kind := int.from_bytes(made[4:6], "little")) in TYPES
    },
)
def events(data: bytes) -> None:
    """Events of any content give hints of known kinds, and the view of links stays one to one."""
    given, view = Input(data), Links(Kernel())  # type: ignore[arg-type]
    translator = Translator(110, view, NexthopIds(100, 10), Ours())
    while given:
        kind, payload = TYPES[given.byte() % len(TYPES)], given.piece()
        for change in translator.changes([message.message(kind, 0, payload)]):
            assert isinstance(change, Change)
            assert change.kind in (*KINDS, "facts")
        assert all(view.index.get(name) == number for name, number in view.own.items())
        assert all(number in view.names for number in view.index.values())


# --------------------------------------------------------------------------------------------------- nf_tables


def _nftables_seeds() -> dict[str, bytes]:
    name = nftwire.text(nftwire.TABLE, "netagent")
    keys = [nftwire.pack("192.168.50.12"), nftwire.pack("fd50::12")]
    batch, _ = nftwire.elements_batch(
        nftwire.NEWSETELEM, 1, "inet", "netagent", [("peers4", keys[:1]), ("p6", keys[1:])]
    )
    chain = name + nftwire.text(nftwire.CHAIN_NAME, "forward") + nftwire.nested(nftwire.CHAIN_HOOK, bytes(8))
    found = name + nftwire.text(nftwire.SET_NAME, "peers4") + nftwire.attr(nftwire.SET_KEY_TYPE, b"\0\0\0\7")
    expression = nftwire.attr(nftwire.EXPR_NAME, b"counter\0") + nftwire.nested(nftwire.EXPR_DATA, bytes(8))
    rule = name + nftwire.text(nftwire.RULE_CHAIN, "forward")
    rule += nftwire.nested(nftwire.RULE_EXPRESSIONS, nftwire.nested(1, expression))
    made = {
        nftwire.NEWTABLE: name + nftwire.attr(nftwire.TABLE_FLAGS, b"\0\0\0\1"),
        nftwire.NEWCHAIN: chain,
        nftwire.NEWSET: found,
        nftwire.NEWRULE: rule,
        nftwire.NEWGEN: nftwire.attr(1, b"\0\0\0\x2a"),
    }
    dumps = {f"type-{kind}": nftwire.request(kind, 1, "inet", payload) for kind, payload in made.items()}
    error = nftwire.message(nftwire.NLMSG_ERROR, 0, 1, 0xFF, b"\xff\xff")
    empty = message.HEADER.pack(16, nftwire.SUBSYSTEM << 8 | nftwire.NEWTABLE, 0, 1, 0)
    return {**dumps, "empty": empty, "elements": batch, "error": error, "all": b"".join(dumps.values())}


@target(
    "nftables",
    covers=("netagent.kernel.nftwire:unpack",),
    seeds=_nftables_seeds,
)
def nftables(data: bytes) -> None:
    """Messages of nf_tables: whatever each is, every reader takes it; elements are addresses and back."""
    found = list(nftwire.messages(data))
    for one in found:
        assert nftwire.error(one) is not None
        event = nftwire.event(one)
        assert event is None or event.generation < 1 << 16
        assert nftwire.generation(one) >= 0
        nftwire.table(one)
        nftwire.chain(one)
        nftwire.set_(one)
        for key in nftwire.keys(one):
            with contextlib.suppress(ValueError):
                assert nftwire.pack(nftwire.unpack(key)) == key
    digest = nftwire.fingerprint(0, found, found, found)
    assert digest == nftwire.fingerprint(0, reversed(found), found, reversed(found))


# ------------------------------------------------------------------------------------------------ other firewalls

DOCKER = {
    "nftables": [
        {"metainfo": {"json_schema_version": 1}},
        {"table": {"family": "ip", "name": "filter"}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward",
                   "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}},
        {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": [
            {"counter": {"packets": 1, "bytes": 2}}, {"jump": {"target": "DOCKER-USER"}}]}},
        {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                       "right": {"prefix": {"addr": "10.5.0.0", "len": 24}}}}, {"drop": None}]}},
        {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": [
            {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": {"set": ["docker0", "br-*"]}}},
            {"xt": {"type": "match", "name": "addrtype"}}, {"goto": {"target": "DOCKER-USER"}}]}},
    ]
}  # fmt: skip
FIREWALLD = {
    "nftables": [
        {"chain": {"family": "inet", "table": "firewalld", "name": "in", "type": "filter", "hook": "input",
                   "policy": "accept"}},
        {"rule": {"family": "inet", "table": "firewalld", "chain": "in", "expr": [
            {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [
                ["established", {"accept": None}], ["invalid", {"drop": None}],
                [{"range": [1, 2]}, {"jump": {"target": "in"}}]]}}}]}},
        {"rule": {"family": "inet", "table": "firewalld", "chain": "in", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}},
                       "right": {"set": [{"range": [8000, 9000]}, 53]}}},
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "saddr"}},
                       "right": {"range": ["fc00::", "fc00::ff"]}}},
            {"limit": {"rate": 1, "per": "second"}}, {"reject": {"type": "icmpx"}}]}},
    ]
}  # fmt: skip
IPTABLES = """-P INPUT ACCEPT
-P FORWARD DROP
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD ! -i eth+ -s 10.5.0.0/16 ! -o docker0 -p udp -m udp --dport 8000:9000 -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "two words" -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m recent --set -j NFQUEUE --queue-num 1
-A INPUT -g LOGDROP
"""

_WORDS = tuple(
    f'"{word}"'.encode()
    for word in (
        *("nftables", "chain", "rule", "expr", "match", "left", "right", "op", "payload", "meta", "ct", "fib"),
        *("set", "range", "prefix", "addr", "len", "vmap", "key", "data", "jump", "goto", "target", "drop", "accept"),
        *("saddr", "daddr", "dport", "l4proto", "iifname", "hook", "forward", "input", "prerouting", "policy", "xt"),
    )
)


def walk(ruleset: list[dict[str, Any]]) -> None:
    """Ask everything that the agent asks of a ruleset; each answer can be shown."""
    rules = Rules(ruleset, {("inet", "netagent")})
    for expressions in rules._rules.values():
        for rule in expressions:
            assert isinstance(words(rule), str)
    packets = (
        Packet("forward", 4, "10.5.0.0/16", "10.5.0.0/16", iifs=("na-vx1",)),
        Packet("forward", 6, "fc00::/48", "fc00::/48"),
        Packet("input", 4, "192.168.50.12", protocol=17, port=8472, iifs=("eth0",)),
        Packet("input", 4, "192.168.50.12", protocol=4, iifs=("eth0",)),
        Packet("input", 6, "fd50::12", protocol=6, port=179),
    )
    for packet in packets:
        for drop in rules.drops(packet):
            assert drop.base in rules.bases
            assert isinstance(drop.rule, str)
    for inner in rules.targets("forward", 4, "10.5.0.0/16"):
        assert ipaddress.ip_network(inner).subnet_of(ipaddress.ip_network("10.5.0.0/16"))
    inbound, peers = (Inbound(17, 8472), Inbound(6, 179), Inbound(4)), ("192.168.50.12",)
    own, prefixes = ("inet", "netagent"), ("10.5.0.0/16", "fc00::/48")
    for finding in foreign.findings(ruleset, own, prefixes, inbound, devices=("na-vx1",), peers=peers):
        assert finding.remedy


@target(
    "nft-listing",
    covers=("netagent.kernel.ruleset:Rules",),
    seeds=lambda: {name: json.dumps(made).encode() for name, made in (("docker", DOCKER), ("firewalld", FIREWALLD))},
    words=_WORDS,
)
def nft_listing(data: bytes) -> None:
    """nft's JSON is refused with a KernelError, or walked to the end whatever is in it."""
    try:
        ruleset = _listing(data.decode("utf-8", "replace"))
    except KernelError:
        return
    walk(ruleset)


@target(
    "iptables-listing",
    covers=("netagent.kernel.legacy:parse",),
    seeds=lambda: {"docker": IPTABLES.encode()},
    words=(b"-A FORWARD ", b"-P ", b" -s ", b" -d ", b" ! ", b" --dport ", b" -j ", b" -m ", b" --ctstate "),
)
def iptables_listing(data: bytes) -> None:
    """Lines of `iptables -S`: what is not understood becomes a match that cannot be decided."""
    for family in ("ip", "ip6"):
        walk(legacy.parse(data.decode("utf-8", "replace"), family, "filter"))
