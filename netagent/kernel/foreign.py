"""Firewalls of other tools that would drop the network's traffic, found in the ruleset. Pure.

An accept in our own table ends only our own chain: another table's drop still drops. So each base chain of others is
walked with the packets that must pass (between containers of two hosts; the backend's datagrams), as the kernel
would. Rules: a match that cannot be decided (an interface, a mark) is taken as not matching for an accept and for a
drop alike, so that a finding means a certain drop; what is found says which chain, and the command that mends it.
The ruleset is nft's JSON (libnftables-json(5)); iptables-nft's chains appear in it like any other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from netagent.model import Finding, family_of

Ruleset = Sequence[Mapping[str, Any]]

_MAX_JUMPS = 64


class Packet(NamedTuple):
    """What a chain is walked with. `source` and `target` are prefixes or addresses; "" is any."""

    hook: str  # "forward", "input"
    source: str
    target: str
    port: int = 0  # UDP destination; 0: not UDP


class Chain(NamedTuple):
    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


class Drop(NamedTuple):
    """Where a packet is dropped: a base chain, and the rule that does it ("" for its policy)."""

    chain: Chain
    rule: str


def findings(ruleset: Ruleset, own: tuple[str, str], prefixes: Sequence[str], ports: Sequence[int]) -> list[Finding]:
    """What in the ruleset drops the network's traffic. `own` is (family, table) of ours."""
    rules = _Rules(ruleset, own)
    found: dict[tuple[str, str], Finding] = {}

    def note(finding: Finding) -> None:
        found.setdefault((finding.code, finding.subject), finding)

    for prefix in prefixes:
        for drop in rules.drops(Packet("forward", prefix, prefix)):
            note(_forward(drop, prefix, rules))
        for drop in rules.raw_drops(prefix):
            note(_raw(drop, prefix))
    for port in ports:
        for drop in rules.drops(Packet("input", "", "", port)):
            note(_input(drop, port, rules))
    return list(found.values())


def has_chain(ruleset: Ruleset, family: str, table: str, name: str) -> bool:
    """Whether there is such a chain."""
    return any(
        (c["family"], c["table"], c["name"]) == (family, table, name)
        for entry in ruleset
        if (c := entry.get("chain")) is not None
    )


class _Rules:
    """The ruleset by chain, without our own table."""

    def __init__(self, ruleset: Ruleset, own: tuple[str, str]) -> None:
        self.bases: dict[Chain, Mapping[str, Any]] = {}
        self.chains: set[Chain] = set()
        self._rules: dict[Chain, list[list[Mapping[str, Any]]]] = {}
        for entry in ruleset:
            chain, rule = entry.get("chain"), entry.get("rule")
            if chain is not None and (chain["family"], chain["table"]) != own:
                name = Chain(chain["family"], chain["table"], chain["name"])
                self.chains.add(name)
                if "hook" in chain:
                    self.bases[name] = chain
            elif rule is not None and (rule["family"], rule["table"]) != own:
                name = Chain(rule["family"], rule["table"], rule["chain"])
                self._rules.setdefault(name, []).append(rule.get("expr", []))

    def drops(self, packet: Packet) -> Iterable[Drop]:
        """The base chains that certainly drop such a packet."""
        for chain, base in self.bases.items():
            if base["hook"] != packet.hook or base.get("type") != "filter" or not _concerns(chain.family, packet):
                continue
            verdict, rule = self._walk(chain, packet, 0)
            if verdict == "" and base.get("policy") == "drop":
                verdict = "drop"
            if verdict == "drop":
                yield Drop(chain, rule)

    def raw_drops(self, prefix: str) -> Iterable[Drop]:
        """Rules before routing that drop what is addressed to single containers from other interfaces (Docker 28)."""
        for chain, base in self.bases.items():
            if base["hook"] != "prerouting" or not _concerns(chain.family, Packet("", prefix, prefix)):
                continue
            for rule in self._rules.get(chain, []):
                aimed = any(_field(e) == "daddr" and _inside(e["match"].get("right"), prefix) for e in rule)
                if aimed and any("drop" in e or "reject" in e for e in rule):
                    yield Drop(chain, _words(rule))
                    break

    def _walk(self, chain: Chain, packet: Packet, depth: int) -> tuple[str, str]:
        """The verdict of a chain's rules on the packet ("accept", "drop", "" for none), and the rule."""
        for rule in self._rules.get(chain, []):
            if not all(_matches(expression, packet) for expression in rule):
                continue
            for expression in rule:
                if "accept" in expression or "queue" in expression:
                    return "accept", _words(rule)
                if "drop" in expression or "reject" in expression:
                    return "drop", _words(rule)
                if "return" in expression:
                    return "", ""
                jump = expression.get("jump") or expression.get("goto")
                if jump is not None and depth < _MAX_JUMPS:
                    verdict = self._walk(chain._replace(name=jump["target"]), packet, depth + 1)
                    if verdict[0] or "goto" in expression:
                        return verdict
        return "", ""


def _concerns(family: str, packet: Packet) -> bool:
    """Whether a table of that family sees the packet."""
    if family == "inet" or not packet.source:
        return family in ("inet", "ip", "ip6")
    return family == ("ip" if family_of(packet.source) == 4 else "ip6")


def _matches(expression: Mapping[str, Any], packet: Packet) -> bool:
    """Whether the packet certainly matches; statements (counter, log, verdicts) match all."""
    if "xt" in expression:
        xt = expression["xt"]
        # A target of iptables or a match that nft cannot read: only a comment is certain to match.
        return isinstance(xt, Mapping) and xt.get("name") == "comment"
    if "match" not in expression:
        return True
    match = expression["match"]
    left, right, negated = match.get("left", {}), match.get("right"), match.get("op") == "!="
    field = _field(expression)
    if field in ("saddr", "daddr"):
        inside = packet.source if field == "saddr" else packet.target
        if not inside:
            return False
        if negated:
            return _disjoint(right, inside)
        return _covers(right, inside)
    if packet.port and isinstance(left, Mapping):
        payload = left.get("payload", {})
        if field == "dport" and payload.get("protocol") in ("udp", "th"):
            return (right == packet.port) is not negated if isinstance(right, int) else _in_set(right, packet.port)
        if left.get("meta", {}).get("key") == "l4proto" or field == "protocol":
            return (right in ("udp", 17)) is not negated
    if isinstance(left, Mapping) and left.get("ct", {}).get("key") == "state":
        # The first packet of a connection is what has to pass.
        states = right.get("set", []) if isinstance(right, Mapping) else [right] if isinstance(right, str) else right
        return ("new" in (states or [])) is not negated
    return False


def _field(expression: Mapping[str, Any]) -> str:
    left = expression.get("match", {}).get("left", {})
    payload = left.get("payload", {}) if isinstance(left, Mapping) else {}
    return str(payload.get("field", ""))


def _networks(right: Any) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The prefixes that the right side of an address match names; [] if it names something else (a set)."""
    values = right.get("set", [right]) if isinstance(right, Mapping) else [right]
    found = []
    for value in values:
        if isinstance(value, Mapping) and "prefix" in value:
            value = f"{value['prefix']['addr']}/{value['prefix']['len']}"
        try:
            found.append(ipaddress.ip_network(value, strict=False))
        except (ValueError, TypeError):
            return []
    return found


def _covers(right: Any, prefix: str) -> bool:
    inner = ipaddress.ip_network(prefix)
    return any(n.version == inner.version and inner.subnet_of(n) for n in _networks(right))  # type: ignore[arg-type]


def _inside(right: Any, prefix: str) -> bool:
    outer = ipaddress.ip_network(prefix)
    return any(n.version == outer.version and n.subnet_of(outer) for n in _networks(right))  # type: ignore[arg-type]


def _disjoint(right: Any, prefix: str) -> bool:
    inner, named = ipaddress.ip_network(prefix), _networks(right)
    return bool(named) and not any(n.version == inner.version and n.overlaps(inner) for n in named)


def _in_set(right: Any, port: int) -> bool:
    values = right.get("set", [right]) if isinstance(right, Mapping) else []
    return any(
        value == port
        or (isinstance(value, Mapping) and "range" in value and value["range"][0] <= port <= value["range"][1])
        for value in values
    )


def _words(rule: Iterable[Mapping[str, Any]]) -> str:
    """A rule for people, as near to nft's words as its JSON allows."""
    words = []
    for expression in rule:
        if "match" in expression:
            match = expression["match"]
            left = match.get("left", {})
            name = _field(expression) or str(next(iter(left.get("meta", left.get("ct", {})).values()), "?"))
            words.append(f"{name} {match.get('op')} {_value(match.get('right'))}")
        else:
            words += [key for key in expression if key != "counter"]
    return " ".join(words)


def _value(right: Any) -> str:
    networks = _networks(right)
    return ", ".join(str(n) for n in networks) if networks else str(right)


# ------------------------------------------------------------------------------------------- in words


def _evidence(drop: Drop) -> str:
    return f"chain {drop.chain}: " + (drop.rule or "policy drop")


def _forward(drop: Drop, prefix: str, rules: _Rules) -> Finding:
    return Finding(
        code="firewall-drops-forward",
        subject=f"{drop.chain} {prefix}",
        severity="error",
        message=f"another firewall drops packets that are forwarded between containers of {prefix}",
        evidence=_evidence(drop),
        remedy=_remedy(drop.chain, rules, prefix),
    )


def _remedy(chain: Chain, rules: _Rules, prefix: str) -> str:
    """The command for the tool that owns the chain."""
    tool = "iptables" if family_of(prefix) == 4 else "ip6tables"
    if Chain(chain.family, chain.table, "DOCKER-USER") in rules.chains:
        return (
            f"{tool} -I DOCKER-USER -s {prefix} -j ACCEPT; {tool} -I DOCKER-USER -d {prefix} -j ACCEPT "
            "(or firewall_integrate = true, and netagent keeps these)"
        )
    if any(c.name.startswith(("ufw-", "ufw6-")) for c in rules.chains if c.table == chain.table):
        return f"ufw route allow from {prefix} to any; ufw route allow to {prefix}"
    if chain.table == "firewalld":
        return (
            f"firewall-cmd --permanent --zone=trusted --add-source={prefix} && firewall-cmd --reload "
            "(or firewall_integrate = true, and netagent keeps it)"
        )
    if chain.family in ("ip", "ip6") and chain.name == "FORWARD":
        return f"{tool} -I FORWARD -s {prefix} -j ACCEPT; {tool} -I FORWARD -d {prefix} -j ACCEPT"
    word = "ip" if family_of(prefix) == 4 else "ip6"
    insert = f"nft insert rule {chain} {word}"
    return f"{insert} saddr {prefix} accept; {insert} daddr {prefix} accept"


def _raw(drop: Drop, prefix: str) -> Finding:
    return Finding(
        code="firewall-drops-direct",
        subject=f"{drop.chain} {prefix}",
        severity="error",
        message=f"packets that other hosts send to containers in {prefix} are dropped before routing",
        evidence=_evidence(drop),
        remedy="Docker 28 and later does so: give the network the option "
        "com.docker.network.bridge.trusted_host_interfaces with the backend's device, "
        'or start dockerd with "allow-direct-routing": true',
    )


def _input(drop: Drop, port: int, rules: _Rules) -> Finding:
    chain = drop.chain
    if any(c.name.startswith("ufw-") for c in rules.chains if c.table == chain.table):
        remedy = f"ufw allow {port}/udp"
    elif chain.table == "firewalld":
        remedy = f"firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload"
    elif chain.family in ("ip", "ip6") and chain.name == "INPUT":
        remedy = f"{'iptables' if chain.family == 'ip' else 'ip6tables'} -I INPUT -p udp --dport {port} -j ACCEPT"
    else:
        remedy = f"nft insert rule {chain} udp dport {port} accept"
    return Finding(
        code="firewall-drops-port",
        subject=f"{chain} udp {port}",
        severity="error",
        message=f"another firewall drops the peers' datagrams to UDP port {port}",
        evidence=_evidence(drop),
        remedy=remedy + " (netagent's own table lets known peers in and nobody else)",
    )
