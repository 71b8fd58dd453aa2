"""Plans what the host itself needs whatever the backend: forwarding, firewall, reject routes. Pure.

Rules: only what is needed is planned, so a setting that is already as it must be is nobody's business; what is
planned does not change because it took effect (an object that vanished from the plan would be undone). The
firewall is one table of ours. An accept in it ends only our own chains: another table's drop still drops, which
is why `kernel/foreign.py` looks for such chains, and why `places` exist where other tools take an accept of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from netagent.contract import Plan
from netagent.model import (
    Facts,
    Family,
    ForeignAccept,
    Lease,
    Link,
    Network,
    NftElement,
    NftTable,
    Node,
    Object,
    Offload,
    Route,
    Sysctl,
)

TABLE = "netagent"

# The kernel's largest priority (u32): every other route to the same prefix is preferred.
WORST_METRIC = 4294967295

# Bit that marks traffic which must keep its source address (flannel's and Kubernetes' own choice).
NO_MASQUERADE = 0x4000

RTPROT_RA = 9  # linux/rtnetlink.h: the route came from a router advertisement

FORWARD4 = "net/ipv4/ip_forward"
FORWARD6 = "net/ipv6/conf/all/forwarding"
RP_FILTER = "net/ipv4/conf/{}/rp_filter"
ACCEPT_RA = "net/ipv6/conf/{}/accept_ra"
STRICT, LOOSE = 1, 2  # values of rp_filter (RFC 3704)

_PEERS: Mapping[Family, str] = {4: "peers4", 6: "peers6"}
_PROTOCOL: Mapping[Family, str] = {4: "ip", 6: "ip6"}
_MULTICAST: Mapping[Family, str] = {4: "224.0.0.0/4", 6: "ff00::/8"}


def observed(network: Network, facts: Facts) -> tuple[str, ...]:
    """Names under /proc/sys whose present values `host_base` wants to see in `sysctls`."""
    names: list[str] = []
    if network.v4:
        names += [RP_FILTER.format(dev) for dev in ("all", *facts.links)]
    if network.v6:
        names += [FORWARD6, *(ACCEPT_RA.format(link.name) for link in facts.links.values() if not link.loopback)]
    return tuple(names)


def host_base(
    network: Network,
    node: Node,
    facts: Facts,
    *,
    ip_masq: bool = True,
    ports: Sequence[int] = (),
    tcp_ports: Sequence[int] = (),
    links: Iterable[Link] = (),
    direct: bool = False,
    bpf_sender: bool = False,
    firewall_integrate: bool = False,
    places: Collection[tuple[str, Family]] = (),
    sysctls: Mapping[str, str] | None = None,
    table: str = TABLE,
) -> Plan:
    """The host's own objects.

    `ports`, `tcp_ports`: UDP and TCP ports on which peers, and nobody else, may reach us. `links`: the devices that
    the backends plan; a VXLAN device narrows the guard of its port to its own VNI, so that two agents can share a
    port, an IP-in-IP device brings a guard of its own. `direct`: inner packets may arrive on the uplink as they are
    (host-gw, DirectRouting). `bpf_sender`: this node encapsulates by BPF. `places`: where other tools take an accept
    of ours, with the family; used only with `firewall_integrate`. `sysctls`: present values of the names in
    `observed`, those that do not exist left out.
    """
    seen = sysctls or {}
    body = table_body(network, node, ip_masq=ip_masq, ports=ports, tcp_ports=tcp_ports, links=links, facts=facts)
    objects: list[Object] = [
        *_forwarding(network, node, facts, seen),
        *_reverse_path(network, node, facts, direct, seen),
        *_checksums(node, facts, bpf_sender),
        NftTable("inet", table, body),
    ]
    for family in network.families:
        prefix = _prefix(network, family)
        objects.append(Route(prefix, type="unreachable", metric=WORST_METRIC))
        if firewall_integrate:
            objects += [ForeignAccept(place, family, prefix) for place, of in sorted(places) if of == family]
    return Plan(tuple(objects))


def peer_elements(lease: Lease) -> tuple[NftElement, ...]:
    """Set elements that let one peer's datagrams in: the addresses that its host sends from."""
    if lease.public_ip6 is None:
        return (NftElement("peers4", lease.public_ip),) if lease.public_ip else ()
    six = NftElement("peers6", lease.public_ip6)
    return (NftElement("peers4", lease.public_ip), six) if lease.public_ip else (six,)


def table_body(
    network: Network,
    node: Node,
    *,
    ip_masq: bool,
    ports: Sequence[int] = (),
    tcp_ports: Sequence[int] = (),
    links: Iterable[Link] = (),
    facts: Facts | None = None,
) -> str:
    """What stands between the braces of our table, in nft syntax (nft 0.9 understands it)."""
    links = list(links)
    lines = [
        "set peers4 { type ipv4_addr; }",
        "set peers6 { type ipv6_addr; }",
        "chain input {",
        "  type filter hook input priority 0; policy accept;",
        *(f"  {rule}" for rule in _guard_rules(ports, links)),
        *(f"  {rule}" for port in sorted(set(tcp_ports)) for rule in _guarded("tcp", port, "")),
        *dict.fromkeys(
            f"  {rule}" for link in links if link.tunnel for rule in _tunnel_rules(link, facts or Facts())
        ),
        "}",
        "chain forward {",
        "  type filter hook forward priority 0; policy accept;",
    ]
    for family in network.families:
        prefix, protocol = _prefix(network, family), _PROTOCOL[family]
        lines += [f"  {protocol} saddr {prefix} accept", f"  {protocol} daddr {prefix} accept"]
    lines.append("}")
    if ip_masq:
        lines += [
            "chain postrouting {",
            # Just before priority 100, where iptables and Docker masquerade: the first chain to decide wins.
            "  type nat hook postrouting priority 99; policy accept;",
            f"  meta mark & {NO_MASQUERADE:#x} == {NO_MASQUERADE:#x} return",
            *(f"  {rule}" for family in network.families for rule in _masquerade_rules(network, node, family)),
            "}",
        ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------- firewall


def _guard_rules(ports: Sequence[int], links: Iterable[Link]) -> list[str]:
    """Only known peers reach the backends' ports.

    One rule a port instead of a set of ports: an anonymous set has a name that the kernel makes up. The VNI is
    matched by its place in the datagram (RFC 7348: 24 bits, 32 after the 64 bits of the UDP header), because nft
    knows VXLAN only since 1.0.7.
    """
    vnis: dict[int, set[int]] = {}
    for link in links:
        if link.vxlan is not None:
            vnis.setdefault(link.vxlan.port, set()).add(link.vxlan.vni)
    rules: list[str] = []
    for port in sorted(set(ports)):
        matches = [f" @th,96,24 {vni:#x}" for vni in sorted(vnis.get(port, ()))] or [""]
        for match in matches:
            rules += _guarded("udp", port, match)
    return rules


def _guarded(protocol: str, port: int, match: str) -> tuple[str, ...]:
    return (
        f"{protocol} dport {port}{match} ip saddr @peers4 accept",
        f"{protocol} dport {port}{match} ip6 saddr @peers6 accept",
        f"{protocol} dport {port}{match} counter drop",
    )


def _tunnel_rules(link: Link, facts: Facts) -> list[str]:
    """Only known peers reach a device without a remote end, which takes packets of anybody (IP protocols 4 and 41).

    A tunnel of another owner from the same address has its remote end: the kernel prefers it for what comes from
    there (ip_tunnel_lookup), and so do we.
    """
    assert link.tunnel is not None
    mine = f"ip protocol {41 if link.kind == 'sit' else 4} ip daddr {link.tunnel.local}"
    others = sorted(
        fact.tunnel.remote
        for fact in facts.links.values()
        if fact.kind == link.kind and not fact.own and fact.tunnel is not None and fact.tunnel.remote is not None
    )
    return [
        *(f"{mine} ip saddr {remote} accept" for remote in others),
        f"{mine} ip saddr @{_PEERS[4]} accept",
        f"{mine} counter drop",
    ]


def _masquerade_rules(network: Network, node: Node, family: Family) -> list[str]:
    """flannel's rules: what leaves the network is masqueraded (multicast excepted), and so is what enters it from
    elsewhere on its way to another host; what is addressed to this host's own subnet keeps its source."""
    prefix, subnet, protocol = _prefix(network, family), node.subnet(family), _PROTOCOL[family]
    rules = [
        f"{protocol} saddr {prefix} {protocol} daddr {prefix} return",
        f"{protocol} saddr {prefix} {protocol} daddr != {_MULTICAST[family]} masquerade fully-random",
    ]
    if subnet is not None:
        rules += [
            f"{protocol} saddr != {prefix} {protocol} daddr {subnet} return",
            f"{protocol} saddr != {prefix} {protocol} daddr {prefix} masquerade fully-random",
        ]
    return rules


# ------------------------------------------------------------------------------------------- settings


def _forwarding(network: Network, node: Node, facts: Facts, seen: Mapping[str, str]) -> Iterable[Sysctl]:
    """Forwarding, and what must be set before it: with IPv6 forwarding the kernel stops to accept router
    advertisements, and drops the default routes it has from them, unless accept_ra is 2."""
    if network.v4:
        yield Sysctl(FORWARD4, "1")
    if not network.v6:
        return
    advertised = {route.dev for route in facts.routes if route.protocol == RTPROT_RA}
    for link in facts.links.values():
        name = ACCEPT_RA.format(link.name)
        value = seen.get(name)
        # Advertisements were in use where the kernel listened to them (value 1, no forwarding yet) or where a
        # route of theirs stands. Value 2 is kept: it may be ours from an earlier run.
        listening = value == "1" and (
            link.name in advertised or (link.name == node.uplink and seen.get(FORWARD6, "0") == "0")
        )
        if listening or (value == "2" and (link.name == node.uplink or link.name in advertised)):
            yield Sysctl(name, "2")
    yield Sysctl(FORWARD6, "1")


def _reverse_path(
    network: Network, node: Node, facts: Facts, direct: bool, seen: Mapping[str, str]
) -> Iterable[Sysctl]:
    """Loosen strict reverse path filtering where inner packets arrive.

    While a backend or a path changes, one side sends by the new way before the other has its route: strict
    filtering would drop what is already on its way. The kernel uses the larger of `all` and the device's value,
    so 2 on the device suffices. A foreign uplink is touched only if inner packets arrive on it as they are.
    """
    if not network.v4:
        return
    everywhere = _number(seen.get(RP_FILTER.format("all")))
    for link in facts.links.values():
        if not link.own and not (direct and link.name == node.uplink):
            continue
        name = RP_FILTER.format(link.name)
        if name in seen and max(everywhere, _number(seen[name])) in (STRICT, LOOSE) and everywhere != LOOSE:
            yield Sysctl(name, str(LOOSE))


def _checksums(node: Node, facts: Facts, bpf_sender: bool) -> Iterable[Offload]:
    """A veth hands packets over with their checksums unfinished when tx-checksum is on. The kernel's own VXLAN and
    a user-space engine finish the inner one before they send, so nothing is needed for them; a BPF program does
    not, and a user-space receiver then sees broken TCP. So: only a BPF sender, and only where its uplink is a veth.
    """
    link = facts.links.get(node.uplink)
    if bpf_sender and link is not None and link.kind == "veth":
        yield Offload(node.uplink, "tx-checksum-ip-generic", False)


def _number(value: str | None) -> int:
    return int(value) if value is not None and value.isdigit() else 0


def _prefix(network: Network, family: Family) -> str:
    prefix = network.v4 if family == 4 else network.v6
    assert prefix is not None, "families holds only those that have a prefix"
    return prefix
