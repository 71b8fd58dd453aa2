"""Firewalls of other tools that would drop the network's traffic, told with the command that mends it.

An accept in our own table ends only our own chain: another table's drop still drops. So the base chains of others are
walked with the packets that must pass: between containers of two hosts, in and out, and what known peers send to the
backend (datagrams, connections, packets in packets). Rules: what is certain to be dropped is an error, what may be
accepted by a rule that cannot be decided is a warning; a finding names the chain, the rule, and the command of the
tool that owns them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from netagent.kernel import legacy
from netagent.kernel.firewall import Firewall
from netagent.kernel.ruleset import Chain, Drop, Packet, Rules, Ruleset
from netagent.model import IPIP, SIT, TCP, UDP, Family, Finding, Inbound, NftElement, RouteFact, family_of

_SAMPLE = 32  # peers whose packets are tried: their addresses seldom differ to a firewall
_INSIDE = {IPIP: " (IPv4 in IPv4)", SIT: " (IPv6 in IPv4)"}
_BOTH: tuple[Family, ...] = (4, 6)


def inspect(
    firewall: Firewall,
    prefixes: Sequence[str],
    inbound: Sequence[Inbound],
    devices: Sequence[str],
    route_to: Callable[[str], RouteFact | None],
) -> list[Finding]:
    """What on this host drops the network's traffic now. `devices` are our own, `route_to` the kernel's lookup.

    The peers are those in our table's sets. Without a device of ours (host-gw) inner packets come by the uplinks.
    """
    peers = [obj.element for obj in firewall.dump(("element",)) if isinstance(obj, NftElement)]
    uplinks = {route.dev for peer in _sample(peers) if (route := route_to(peer)) is not None}
    old = legacy.read()
    found = findings(
        [*firewall.nft.ruleset(), *old.ruleset],
        (firewall.family, firewall.name),
        prefixes,
        inbound,
        devices=devices or uplinks,
        peers=peers,
        uplinks=uplinks,
    )
    return found + [_unread(table) for table in old.unread]


def findings(
    ruleset: Ruleset,
    own: tuple[str, str],
    prefixes: Sequence[str],
    inbound: Sequence[Inbound],
    *,
    devices: Collection[str] = (),
    peers: Sequence[str] = (),
    uplinks: Collection[str] = (),
) -> list[Finding]:
    """What in the ruleset drops the network's traffic: the pure part. `own` is (family, table) of ours.

    `devices`: by which inner packets come and go between hosts. `peers`: addresses of the peers' hosts, `uplinks`
    the devices that their packets come by. Whatever is empty is unknown.
    """
    rules = Rules(ruleset, {own})
    found: list[Finding] = []
    for prefix in prefixes:
        family = family_of(prefix)
        inward = Packet("forward", family, prefix, prefix, iifs=devices or None)
        outward = Packet("forward", family, prefix, prefix, oifs=devices or None)
        found += [_forward(drop, prefix, rules) for drop in _surest(rules, (inward, outward))]
        single = [
            Packet("prerouting", family, prefix, target, iifs=devices or None)
            for target in rules.targets("prerouting", family, prefix)
        ]
        found += [_direct(drop, prefix) for drop in _surest(rules, single)]
    for what in inbound:
        # Packets in packets are always in IPv4.
        families = _BOTH if what.port else _BOTH[:1]
        senders = _sample([peer for peer in peers if family_of(peer) in families])
        packet = Packet("input", 4, protocol=what.protocol, port=what.port, iifs=uplinks or None)
        packets = [packet._replace(family=family_of(peer), source=peer) for peer in senders] or [packet]
        found += [_input(drop, what, rules) for drop in _surest(rules, packets)]
    return found


def has_chain(ruleset: Ruleset, family: str, table: str, name: str) -> bool:
    """Whether there is such a chain."""
    return Chain(family, table, name) in Rules(ruleset).chains


def _surest(rules: Rules, packets: Iterable[Packet]) -> Iterator[Drop]:
    """One drop a base chain, one beyond doubt if there is one."""
    found: dict[Chain, Drop] = {}
    for packet in packets:
        for drop in rules.drops(packet):
            if drop.base not in found or (found[drop.base].doubt and not drop.doubt):
                found[drop.base] = drop
    return iter(found.values())


def _sample(peers: Sequence[str]) -> Sequence[str]:
    return peers[:: max(1, -(-len(peers) // _SAMPLE))]


# ------------------------------------------------------------------------------------------- in words


def _finding(code: str, drop: Drop, about: str, message: str, remedy: str) -> Finding:
    inside = "" if drop.chain == drop.base else f", in {drop.chain.name}"
    doubt = ", unless a rule before it accepts them, which cannot be told from here" if drop.doubt else ""
    return Finding(
        code=code,
        subject=f"{drop.base} {about}",
        severity="warning" if drop.doubt else "error",
        message=message + doubt,
        evidence=f"chain {drop.base}{inside}: {drop.rule or 'policy drop'}",
        remedy=remedy,
    )


def _forward(drop: Drop, prefix: str, rules: Rules) -> Finding:
    message = f"another firewall drops packets that are forwarded between containers of {prefix}"
    return _finding("firewall-drops-forward", drop, prefix, message, _forward_remedy(drop.base, rules, prefix))


def _forward_remedy(chain: Chain, rules: Rules, prefix: str) -> str:
    tool = _iptables(chain)
    if chain._replace(name="DOCKER-USER") in rules.chains:
        remedy = f"{tool} -I DOCKER-USER -s {prefix} -j ACCEPT; {tool} -I DOCKER-USER -d {prefix} -j ACCEPT"
        return remedy + ("" if _legacy(chain) else " (or firewall_integrate = true, and netagent keeps these)")
    if _of_ufw(chain, rules):
        return f"ufw route allow from {prefix} to any; ufw route allow to {prefix}"
    if _of_firewalld(chain, rules):
        return (
            f"firewall-cmd --permanent --zone=trusted --add-source={prefix} && firewall-cmd --reload "
            "(or firewall_integrate = true, and netagent keeps it)"
        )
    if chain.name == "FORWARD" and chain.family in ("ip", "ip6"):
        return f"{tool} -I FORWARD -s {prefix} -j ACCEPT; {tool} -I FORWARD -d {prefix} -j ACCEPT"
    insert = f"nft insert rule {chain} {'ip' if family_of(prefix) == 4 else 'ip6'}"
    return f"{insert} saddr {prefix} accept; {insert} daddr {prefix} accept"


def _direct(drop: Drop, prefix: str) -> Finding:
    return _finding(
        "firewall-drops-direct",
        drop,
        prefix,
        f"packets that other hosts send to containers in {prefix} are dropped before routing",
        "Docker 28 and later does so: give the network the option "
        "com.docker.network.bridge.trusted_host_interfaces with the backend's device, "
        'or start dockerd with "allow-direct-routing": true (both since 28.2)',
    )


def _input(drop: Drop, what: Inbound, rules: Rules) -> Finding:
    chain, number = drop.base, what.protocol
    if not what.port:
        message = f"another firewall drops the peers' packets of IP protocol {number}{_INSIDE.get(number, '')}"
        remedy = _protocol_remedy(chain, number, rules)
        if number == SIT:
            note = " (the device takes those of its peer and of nobody else)"
        else:
            note = " (netagent's own table lets known peers in and nobody else)"
        return _finding("firewall-drops-protocol", drop, f"protocol {number}", message, remedy + note)
    name, things = {TCP: ("tcp", "connections"), UDP: ("udp", "datagrams")}[number]
    if _of_ufw(chain, rules):
        remedy = f"ufw allow {what.port}/{name}"
    elif _of_firewalld(chain, rules):
        remedy = f"firewall-cmd --permanent --add-port={what.port}/{name} && firewall-cmd --reload"
    elif _of_iptables(chain):
        remedy = f"{_iptables(chain)} -I INPUT -p {name} --dport {what.port} -j ACCEPT"
    else:
        remedy = f"nft insert rule {chain} {name} dport {what.port} accept"
    message = f"another firewall drops the peers' {things} to {name.upper()} port {what.port}"
    note = " (netagent's own table lets known peers in and nobody else)"
    return _finding("firewall-drops-port", drop, f"{name} {what.port}", message, remedy + note)


def _protocol_remedy(chain: Chain, number: int, rules: Rules) -> str:
    if _of_ufw(chain, rules):  # its command knows few protocols, and 4 is not among them
        line = f"-A ufw-before-input -p {number} -j ACCEPT"
        return f"sed -i '/^# End required lines/a {line}' /etc/ufw/before.rules && ufw reload"
    if _of_firewalld(chain, rules):
        return f"firewall-cmd --permanent --add-protocol={number} && firewall-cmd --reload"
    if _of_iptables(chain):
        return f"{_iptables(chain)} -I INPUT -p {number} -j ACCEPT"
    return f"nft insert rule {chain} ip protocol {number} accept"


def _unread(table: str) -> Finding:
    return Finding(
        code="firewall-legacy-unread",
        subject=f"{table} (legacy)",
        message="there are rules of iptables' old kernel interface, and no command here that lists them",
        evidence=f"table {table} in /proc/net/{'ip6' if table.startswith('ip6') else 'ip'}_tables_names",
        remedy="Install iptables with its legacy variant (iptables-legacy), or reboot if nothing uses the rules",
    )


def _of_ufw(chain: Chain, rules: Rules) -> bool:
    ours = ("ufw-", "ufw6-")
    return any(c.name.startswith(ours) for c in rules.chains if (c.family, c.table) == (chain.family, chain.table))


def _of_firewalld(chain: Chain, rules: Rules) -> bool:
    """firewalld has a table of its own, or on iptables chains of its own in the tables that all share."""
    return chain.table == "firewalld" or chain._replace(name="FORWARD_direct") in rules.chains


def _of_iptables(chain: Chain) -> bool:
    return chain.name == "INPUT" and chain.family in ("ip", "ip6")


def _legacy(chain: Chain) -> bool:
    return chain.table.endswith(legacy.SUFFIX)


def _iptables(chain: Chain) -> str:
    return ("ip6tables" if chain.family == "ip6" else "iptables") + ("-legacy" if _legacy(chain) else "")
