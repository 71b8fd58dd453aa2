"""Walks base chains of an nft ruleset with a packet, as the kernel would. Pure.

Rules: a packet stands for all the traffic of its kind (every address of a prefix, every protocol), so a rule matches
it only if it matches all of that. What the packet does not say (a mark, the interface towards a container) makes a
match MAYBE: a drop that may be is no drop, an accept that may be leaves the later drop in doubt. The ruleset is nft's
JSON (libnftables-json(5)); chains of iptables-nft appear in it like any other, their own extensions as "xt".
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from netagent.model import IPIP, SIT, TCP, UDP, Family

Ruleset = Sequence[Mapping[str, Any]]
Expression = Mapping[str, Any]

_MAX_JUMPS = 16  # the kernel's own limit, NFT_JUMP_STACK_SIZE

_PROTOCOL: Mapping[Family, str] = {4: "ip", 6: "ip6"}
# Protocols by the names that nft and iptables write: their own, and those of /etc/protocols. "ip" and "ip6" are not
# among them: as protocols of a payload they are the packet's own header.
_NUMBERS: Mapping[str, int] = {
    "icmp": 1, "igmp": 2, "ipencap": IPIP, "ip-encap": IPIP, "ipip": IPIP, "ipv4": IPIP, "tcp": TCP, "udp": UDP,
    "dccp": 33, "ipv6": SIT, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "ipv6-icmp": 58, "ospf": 89, "comp": 108,
    "vrrp": 112, "sctp": 132, "udplite": 136,
}  # fmt: skip
_VERDICTS = ("accept", "drop", "return", "jump", "goto", "reject", "queue")


class Chain(NamedTuple):
    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


class Packet(NamedTuple):
    """The first packet of a connection. `source`, `target`: prefix or address, None is unknown.

    `protocol`: IP protocol number, 0 is traffic of any; `port`: destination, 0 where the protocol has none. `iifs`,
    `oifs`: the devices it comes and goes by, each possible; None is unknown.
    """

    hook: str
    family: Family
    source: str | None = None
    target: str | None = None
    protocol: int = 0
    port: int = 0
    iifs: Collection[str] | None = None
    oifs: Collection[str] | None = None


class Drop(NamedTuple):
    """A base chain that drops the packet. `rule` is the rule that does, "" for the policy; `chain` is where it is.

    `doubt`: an accept before it may match, which depends on what the packet does not say.
    """

    base: Chain
    chain: Chain
    rule: str
    doubt: bool


class Match(Enum):
    NO = 0
    MAYBE = 1
    YES = 2

    def negated(self) -> Match:
        return Match(2 - self.value)


class _Outcome(NamedTuple):
    verdict: str  # "accept", "drop", "" where the chain ends without
    chain: Chain
    rule: str
    doubt: bool


class Rules:
    """A ruleset by chain; the tables in `without`, (family, name), left out."""

    def __init__(self, ruleset: Ruleset, without: Collection[tuple[str, str]] = ()) -> None:
        self.bases: dict[Chain, Mapping[str, Any]] = {}
        self.chains: set[Chain] = set()
        self._rules: dict[Chain, list[Sequence[Expression]]] = {}
        for entry in ruleset:
            for kind in ("chain", "rule"):
                found = entry.get(kind)
                if not isinstance(found, Mapping):
                    continue
                name = found.get("name" if kind == "chain" else "chain")
                chain = Chain(str(found.get("family")), str(found.get("table")), str(name))
                if (chain.family, chain.table) in without:
                    continue
                if kind == "rule":
                    expressions = found.get("expr")
                    listed = expressions if isinstance(expressions, list) else []
                    self._rules.setdefault(chain, []).append([e for e in listed if isinstance(e, Mapping)])
                    continue
                self.chains.add(chain)
                if "hook" in found:
                    self.bases[chain] = found

    def drops(self, packet: Packet) -> Iterator[Drop]:
        """Every base chain on the packet's hook that drops it."""
        for base in self._bases(packet.hook, packet.family):
            outcome = self._walk(base, packet, ())
            if outcome.verdict == "drop" or (not outcome.verdict and self.bases[base].get("policy") == "drop"):
                yield Drop(base, outcome.chain, outcome.rule, outcome.doubt)

    def targets(self, hook: str, family: Family, prefix: str) -> list[str]:
        """Destinations inside the prefix, but not all of it, that rules under that hook name, in order."""
        outer = ipaddress.ip_network(prefix)
        found: dict[str, None] = {}
        for base in self._bases(hook, family):
            for chain in self._reached(base):
                for rule in self._rules.get(chain, ()):
                    for expression in rule:
                        if _field(expression) != "daddr":
                            continue
                        for network in _networks(expression["match"].get("right")) or ():
                            if _relation(network, outer) is Relation.INSIDE:
                                found[str(network)] = None
        return list(found)

    def _bases(self, hook: str, family: Family) -> Iterator[Chain]:
        for chain, base in self.bases.items():
            if base["hook"] == hook and base.get("type") == "filter" and chain.family in ("inet", _PROTOCOL[family]):
                yield chain

    def _reached(self, base: Chain) -> list[Chain]:
        reached = [base]
        for chain in reached:
            for rule in self._rules.get(chain, ()):
                for expression in rule:
                    target = _target(expression)
                    if target and (next_ := chain._replace(name=target)) not in reached:
                        reached.append(next_)
        return reached

    def _walk(self, chain: Chain, packet: Packet, above: tuple[Chain, ...]) -> _Outcome:
        doubt = False
        for rule in self._rules.get(chain, ()):
            for match, verdict in _verdicts(rule, packet):
                if match is Match.NO:
                    continue
                word = _word(verdict)
                if word in ("jump", "goto"):
                    target, path = chain._replace(name=_target(verdict)), (*above, chain)
                    if target in path or len(path) > _MAX_JUMPS:  # the kernel takes no such ruleset
                        continue
                    inner = self._walk(target, packet, path)
                    if match is Match.MAYBE:
                        # Of what may happen in there only an accept, or leaving for good, spares a later drop.
                        doubt |= inner.doubt or inner.verdict == "accept" or word == "goto"
                        continue
                    doubt |= inner.doubt
                    if inner.verdict or word == "goto":
                        return inner._replace(doubt=doubt)
                elif match is Match.MAYBE:
                    doubt |= word != "drop"
                elif word == "return":
                    return _Outcome("", chain, "", doubt)
                else:
                    return _Outcome(word, chain, words(rule), doubt)
        return _Outcome("", chain, "", doubt)


def words(rule: Sequence[Expression]) -> str:
    """A rule for people, as near to nft's words as its JSON allows."""
    said: list[str] = []
    for expression in rule:
        match, xt = expression.get("match"), expression.get("xt")
        if isinstance(match, Mapping):
            operator = {"==": "", "in": ""}.get(str(match.get("op")), f"{match.get('op')} ")
            said.append(f"{_name(match.get('left'))} {operator}{_value(match.get('right'))}")
        elif "vmap" in expression:
            said.append(f"{_name(_dict(expression['vmap']).get('key'))} vmap")
        elif isinstance(xt, Mapping):
            said.append(str(xt.get("name")))
        elif target := _target(expression):
            said.append(f"{_word(expression)} {target}")
        else:
            said += [key for key in expression if key not in ("counter", "comment", "xt")]
    return " ".join(said)


# ------------------------------------------------------------------------------------------- one rule


def _verdicts(rule: Sequence[Expression], packet: Packet) -> Iterator[tuple[Match, Expression]]:
    """What the rule may do, each with whether it does; a verdict map can have several."""
    so_far = Match.YES
    for expression in rule:
        if _word(expression):
            yield so_far, expression
            return
        if "vmap" in expression:
            found = _dict(expression["vmap"])
            pairs = _dict(found.get("data")).get("set")
            if not isinstance(pairs, list):  # a named map: its content is not listed
                yield Match.MAYBE if so_far is not Match.NO else so_far, {"accept": None}
                continue
            for pair in pairs:
                if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], Mapping):
                    match = _compare(found.get("key"), "==", pair[0], packet)
                    yield min(so_far, match, key=lambda m: m.value), pair[1]
        else:
            so_far = min(so_far, _matches(expression, packet), key=lambda m: m.value)
            if so_far is Match.NO:
                return


def _word(expression: Expression) -> str:
    """The verdict that an expression is, or "": "accept", "drop", "return", "jump" or "goto"."""
    xt = expression.get("xt")
    if isinstance(xt, Mapping) and xt.get("type") == "target":
        return {"REJECT": "drop", "NFQUEUE": "accept"}.get(str(xt.get("name")), "")
    for word in _VERDICTS:
        if word in expression:
            return {"reject": "drop", "queue": "accept"}.get(word, word)
    return ""


def _target(expression: Expression) -> str:
    """The chain that a jump or goto names."""
    found = expression.get("jump") or expression.get("goto")
    return str(found.get("target", "")) if isinstance(found, Mapping) else ""


def _matches(expression: Expression, packet: Packet) -> Match:
    match, xt = expression.get("match"), expression.get("xt")
    if isinstance(match, Mapping):
        return _compare(match.get("left"), str(match.get("op")), match.get("right"), packet)
    if "xt" in expression:
        kind, name = (xt.get("type"), xt.get("name")) if isinstance(xt, Mapping) else ("match", "")
        if name in ("conntrack", "state"):
            # What it asks for is not in the listing. It lets replies pass, or drops what is invalid: never the
            # first packet of a connection.
            return Match.NO
        return Match.YES if kind == "target" or name == "comment" else Match.MAYBE
    if any(word in expression for word in ("limit", "quota", "ct count", "connlimit")):
        return Match.MAYBE
    return Match.YES  # a statement: counter, log, mangle


# ------------------------------------------------------------------------------------------- one match


class Relation(Enum):
    """How a prefix lies to another."""

    INSIDE = 0  # smaller
    COVERS = 1  # larger, or equal
    APART = 2


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _relation(one: _Network, other: _Network) -> Relation:
    if one.version != other.version or not one.overlaps(other):
        return Relation.APART
    return Relation.COVERS if one.prefixlen <= other.prefixlen else Relation.INSIDE


def _compare(left: Any, operator: str, right: Any, packet: Packet) -> Match:
    negated = operator == "!="
    if not isinstance(left, Mapping):
        return Match.MAYBE
    kind, about = next(iter(left.items()), ("", None))
    if not isinstance(about, Mapping):
        return Match.MAYBE
    if kind == "payload":
        return _payload(about, negated, right, packet)
    if kind == "meta":
        return _meta(str(about.get("key")), negated, right, packet)
    if kind == "ct" and about.get("key") == "state":
        new = Match.YES if "new" in _values(right) else Match.NO
        return new.negated() if negated else new
    if kind == "fib" and about.get("result") == "type" and about.get("flags") == ["daddr"]:
        local = packet.hook == "input"
        if packet.hook in ("input", "forward") and _values(right) == ["local"]:
            return Match.YES if local is not negated else Match.NO
    return Match.MAYBE


def _payload(about: Mapping[str, Any], negated: bool, right: Any, packet: Packet) -> Match:
    protocol, field = str(about.get("protocol")), str(about.get("field"))
    if protocol in ("ip", "ip6"):
        if protocol != _PROTOCOL[packet.family]:
            return Match.NO
        if field in ("saddr", "daddr"):
            return _address(packet.source if field == "saddr" else packet.target, negated, right)
        return _transport(negated, right, packet) if field in ("protocol", "nexthdr") else Match.MAYBE
    if protocol in _NUMBERS and _NUMBERS[protocol] != packet.protocol:
        return Match.NO  # another one; or of all that the packet stands for only a part is of this one
    if field != "dport" or not packet.port or isinstance(right, str):
        return Match.MAYBE
    named = any(_is_in(value, packet.port) for value in _values(right))
    return Match.YES if named is not negated else Match.NO


def _address(address: str | None, negated: bool, right: Any) -> Match:
    networks = _networks(right)
    if address is None or networks is None:
        return Match.MAYBE
    relations = {_relation(network, ipaddress.ip_network(address)) for network in networks}
    if Relation.COVERS in relations:
        return Match.NO if negated else Match.YES
    if Relation.INSIDE in relations:
        return Match.MAYBE if negated else Match.NO  # only a part of the traffic
    return Match.YES if negated else Match.NO


def _meta(key: str, negated: bool, right: Any, packet: Packet) -> Match:
    if key in ("iifname", "iif", "oifname", "oif"):
        here, there = (packet.iifs, packet.oifs) if key.startswith("i") else (packet.oifs, packet.iifs)
        return _interface(here, there, negated, right)
    if key in ("nfproto", "protocol"):
        named = {"ipv4", "ip"} if packet.family == 4 else {"ipv6", "ip6"}
        known = bool(named.intersection(str(value) for value in _values(right)))
        return Match.YES if known is not negated else Match.NO
    if key == "l4proto":
        return _transport(negated, right, packet)
    return Match.MAYBE


def _interface(devices: Collection[str] | None, others: Collection[str] | None, negated: bool, right: Any) -> Match:
    """`others`: where the packet goes to or comes from on the other side."""
    names = [value for value in _values(right) if isinstance(value, str)]
    if not names or any(name.startswith("@") for name in names):
        return Match.MAYBE
    if devices:
        hits = [any(fnmatch.fnmatchcase(dev, name) for name in names) for dev in devices]
        found = Match.YES if all(hits) else Match.MAYBE if any(hits) else Match.NO
    else:  # whatever it is: no packet of a peer goes by the loopback device, or back where it came from
        found = Match.NO if {"lo", *(others or ())}.issuperset(names) else Match.MAYBE
    return found.negated() if negated else found


def _transport(negated: bool, right: Any, packet: Packet) -> Match:
    values = [_number(value) for value in _values(right)]
    if packet.protocol:
        if any(_is_in(value, packet.protocol) for value in values):
            return Match.NO if negated else Match.YES
        if any(isinstance(value, str) for value in values):  # a named set, or a name that is not known here
            return Match.MAYBE
        return Match.YES if negated else Match.NO
    # Traffic of any protocol: a single one is a part of it, TCP and UDP together are nearly all.
    nearly_all = all(any(_is_in(value, number) for value in values) for number in (TCP, UDP))
    return Match.MAYBE if negated or nearly_all else Match.NO


def _number(value: Any) -> Any:
    """A protocol's number by its name, which the listing has where the host has /etc/protocols."""
    if not isinstance(value, str):
        return value
    return int(value) if re.fullmatch(r"[0-9]{1,3}", value) else _NUMBERS.get(value.lower(), value)


def _is_in(value: Any, number: int) -> bool:
    """Whether a port or protocol is that value, or in that range."""
    bounds = value.get("range") if isinstance(value, Mapping) else None
    if isinstance(bounds, list) and len(bounds) == 2:
        first, last = (_number(bound) for bound in bounds)
        return isinstance(first, int) and isinstance(last, int) and first <= number <= last
    return bool(value == number)


def _values(right: Any) -> list[Any]:
    """The right side of a match as a list: one value, a list, or an anonymous set."""
    if isinstance(right, Mapping) and "set" in right:
        right = right["set"]
    return list(right) if isinstance(right, list) else [right]


def _networks(right: Any) -> list[_Network] | None:
    """The prefixes that the right side of an address match names; None if it names something else (a set)."""
    found: list[_Network] = []
    for value in _values(right):
        text = value
        if isinstance(value, Mapping):
            prefix, bounds = value.get("prefix"), value.get("range")
            if isinstance(prefix, Mapping):
                text = f"{prefix.get('addr')}/{prefix.get('len')}"
            elif isinstance(bounds, list) and len(bounds) == 2:
                try:
                    first, last = (ipaddress.ip_address(bound) for bound in bounds)
                    found += ipaddress.summarize_address_range(first, last)
                except (ValueError, TypeError):
                    return None
                continue
        if not isinstance(text, str):
            return None
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            return None
    return found


def _field(expression: Expression) -> str:
    """ "saddr", "daddr" ... of a match on a header's field; "" of anything else."""
    payload = _dict(_dict(_dict(expression.get("match")).get("left")).get("payload"))
    return str(payload.get("field", ""))


def _dict(found: Any) -> Mapping[str, Any]:
    """What should be an object in the listing; an empty one if it is something else."""
    return found if isinstance(found, Mapping) else {}


def _name(left: Any) -> str:
    if not isinstance(left, Mapping) or not left:
        return "?"
    kind, about = next(iter(left.items()))
    if not isinstance(about, Mapping):
        return str(kind)
    if kind == "payload":
        return f"{about.get('protocol', '')} {about.get('field', '')}".strip() or "payload"
    if kind == "meta":
        return str(about.get("key"))
    return f"{kind} {about.get('key', '')}".strip()


def _value(right: Any) -> str:
    texts = []
    for value in _values(right):
        networks = _networks(value) if isinstance(value, str | Mapping) else None
        bounds = value.get("range") if isinstance(value, Mapping) else None
        if isinstance(bounds, list):
            texts.append("-".join(str(bound) for bound in bounds))
        elif networks:
            whole = networks[0].max_prefixlen == networks[0].prefixlen
            texts.append(str(networks[0].network_address if whole else networks[0]))
        else:
            texts.append(str(value))
    return texts[0] if len(texts) == 1 else "{ " + ", ".join(texts) + " }"
