"""From options, this node and the members to what the speaker is told: what it is, its peers, its policies. Pure.

Rules: a node announces its own subnet and its announced prefixes, and takes neither a default route nor anything of
its own back (the speaker sees to that); from nodes it takes only what nodes may announce. A reflector passes on what
nodes say, never what routers of another AS say. Equal policies are one object: the speaker compares identities.
Nodes tell each other of several ways to a prefix (RFC 7911), whatever part they play: what an OPEN has said cannot
change without a new session, so it must not depend on the role.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from backends.bgp import roles
from backends.bgp.members import Member
from backends.bgp.options import BgpOptions, Own, Router
from bgp.bfd import Bfd
from bgp.export import Several
from bgp.message import Attributes
from bgp.message import Family as Afi
from bgp.message.nlri import parse_address
from bgp.peer import LONG_LIVED_MOST, PeerConfig, SpeakerConfig
from bgp.policy import Match, Policy, PrefixRange, Rule
from bgp.transport import LONGEST_PASSWORD, Transport
from netagent.contract import Context
from netagent.model import Family, Finding

# Of the routes to a prefix one for each next hop: with several reflectors each route comes round more than once.
EACH_WAY = Several(by_next_hop=True)
PATHS = 16  # of equal cost that are used at once

FAMILIES: Mapping[Family, Afi] = {4: Afi.IPV4, 6: Afi.IPV6}
# Nodes may be any number of routers apart, whatever their AS.
_NODE_HOPS = 64


class Secret(NamedTuple):
    """A password as read from its file; `problem` says why it could not be: the password is an older one then."""

    password: bytes = b""
    problem: str = ""


class Peering(NamedTuple):
    """What the speaker is to have. `nodes` and `routers` are names of its peers."""

    peers: tuple[PeerConfig, ...]
    nodes: frozenset[str]
    routers: frozenset[str]
    findings: tuple[Finding, ...] = ()


def read_secret(data: bytes) -> Secret:
    """The first line of a password file."""
    password = data.split(b"\n", 1)[0].strip()
    if not password:
        return Secret(problem="has an empty first line")
    if len(password) > LONGEST_PASSWORD:
        return Secret(problem=f"has {len(password)} octets in its first line, TCP MD5 takes {LONGEST_PASSWORD}")
    return Secret(password)


def speaker(context: Context, own: Own) -> SpeakerConfig | None:
    """What this node's speaker is; None while the node has no address."""
    options: BgpOptions = context.options
    node = context.node
    addresses = tuple(
        (FAMILIES[family], parse_address(address))
        for family in context.network.families
        if (address := node.endpoint(family)) is not None
    )
    if not addresses:
        return None
    identifier = router_id(node.public_ip, node.id)
    return SpeakerConfig(
        own.asn,
        identifier,
        families=tuple(FAMILIES[family] for family in context.network.families),
        addresses=addresses,
        cluster_id=parse_address(own.cluster_id) if own.cluster_id else identifier,
        paths=PATHS,
        restart_time=options.restart_time,
        long_lived_time=options.long_lived_time,
        long_lived_most=max(options.long_lived_time, LONG_LIVED_MOST),
    )


def router_id(public_ip: str | None, node_id: str) -> bytes:
    """The BGP identifier: the node's IPv4 address; without one four octets made from its id (RFC 6286)."""
    if public_ip is not None:
        return parse_address(public_ip)
    digest = hashlib.sha256(f"bgp {node_id}".encode()).digest()
    return bytes((digest[0] | 1, *digest[1:4]))


def originated(context: Context, own: Own) -> dict[str, Attributes]:
    """The prefixes that this node announces, with their attributes."""
    found = {
        subnet: Attributes(communities=own.communities, large_communities=own.large)
        for family in context.network.families
        if (subnet := context.node.subnet(family)) is not None
    }
    for each in own.announce:
        if _version(each.prefix) not in context.network.families:
            continue
        found[each.prefix] = Attributes(
            communities=tuple(dict.fromkeys((*own.communities, *each.communities))),
            large_communities=tuple(dict.fromkeys((*own.large, *each.large))),
        )
    return found


def _unannounced(context: Context, own: Own) -> list[Finding]:
    """Prefixes of a family that the network does not have."""
    return [
        Finding(
            code="bgp-announce-family",
            subject=each.prefix,
            message=f"{each.prefix} is not announced: the network has no IPv{_version(each.prefix)}",
            remedy=f"set EnableIPv{_version(each.prefix)} in the network's configuration, or take it out of Announce",
        )
        for each in own.announce
        if _version(each.prefix) not in context.network.families
    ]


def peering(
    context: Context,
    own: Own,
    role: str,
    wanted: str,
    others: Mapping[str, Member],
    secrets: Mapping[str, Secret] = {},
) -> Peering:
    """All peers. A session whose password cannot be read is left out: unsigned it would not come up either."""
    options: BgpOptions = context.options
    findings: list[Finding] = []
    reflecting = roles.REFLECTOR in (role, wanted)
    from_routers = frozenset(r.asn for r in own.routers if r.asn != own.asn)
    from_routers -= {own.asn, *(member.asn for member in others.values())}
    networks = tuple(prefix for prefix in (context.network.v4, context.network.v6) if prefix is not None)
    announceable = options.announceable
    to_nodes = _export_all(from_routers) if reflecting else OWN
    to_routers = _export_nodes(networks, announceable) if reflecting else OWN
    by_nodes = _import_nodes(networks, announceable)
    bfd = own.bfd.settings(multihop=True)
    peers: list[PeerConfig] = []
    taken: dict[bytes, str] = {}
    partners = roles.partners(options, role, wanted, others)
    secret = _secret(options.password_file, secrets, "the sessions with other nodes", findings) if partners else b""
    for name, client in partners.items():
        member = others[name]
        place = _place(context, member)
        if secret is None or place is None or place[0] in taken:
            continue
        taken[place[0]] = name
        transport = _transport(options.port, place[1], secret)
        peers.append(_node(name, place[0], member.asn, client, options.hold_time, by_nodes, to_nodes, transport, bfd))
    nodes = frozenset(peer.name for peer in peers)
    for router in own.routers:
        found = _router(context, own, router, secrets, findings)
        if found is None:
            continue
        if found.address in taken or found.name in nodes:
            findings.append(_twice(router, taken.get(found.address, found.name)))
            continue
        taken[found.address] = found.name
        peers.append(replace(found, export_policy=to_routers))
    findings += _unannounced(context, own)
    findings += _counsel(options, own, wanted, others, len(nodes))
    return Peering(tuple(peers), nodes, frozenset(peer.name for peer in peers) - nodes, tuple(findings))


@functools.lru_cache(maxsize=16)
def _transport(port: int, local: bytes, password: bytes) -> Transport:
    return Transport(port=port, local_address=local, password=password, multihop=_NODE_HOPS)


@functools.lru_cache(maxsize=8192)
def _node(
    name: str,
    address: bytes,
    asn: int,
    client: bool,
    hold_time: int,
    imports: Policy,
    exports: Policy,
    transport: Transport,
    bfd: Bfd | None,
) -> PeerConfig:
    """A node as a peer: the same object for the same node, for each change in the cluster plans all of them again."""
    return PeerConfig(
        name,
        address,
        asn,
        client=client,
        hold_time=hold_time,
        next_hop_self=False,
        import_policy=imports,
        export_policy=exports,
        several_in=True,
        several_out=EACH_WAY,
        transport=transport,
        bfd=bfd,
    )


def _place(context: Context, member: Member) -> tuple[bytes, bytes] | None:
    """A member's address and ours for a session with it: one session carries both families. None: there is none."""
    for family in context.network.families:
        theirs, ours = member.address(family), context.node.local(family)
        if theirs is not None and ours is not None and theirs != context.node.endpoint(family):
            return parse_address(theirs), parse_address(ours)
    return None


def _router(
    context: Context, own: Own, router: Router, secrets: Mapping[str, Secret], findings: list[Finding]
) -> PeerConfig | None:
    family = _version(router.address)
    local = context.node.local(family)
    if router.address in (local, context.node.endpoint(family)):
        findings.append(
            Finding(
                code="bgp-router-self",
                subject=router.name,
                message=f"no session with router {router.name}: its address {router.address} is this node's own",
                remedy="nodes are peers by themselves: take it out of Routers, or move it into an entry of Nodes "
                "that does not match this node",
            )
        )
        return None
    secret = _secret(router.password_file, secrets, f"the session with router {router.name}", findings)
    if secret is None:
        return None
    if local is None:
        findings.append(
            Finding(
                code="bgp-router-family",
                subject=router.name,
                message=f"no session with router {router.name}: this node has no IPv{family} address",
                evidence=f"Address {router.address}, interface {context.node.uplink}",
                remedy="give the node an address of that family, or write the router's other address",
            )
        )
        return None
    hold_time = router.hold_time if router.hold_time is not None else context.options.hold_time
    transport = Transport(
        port=router.port,
        local_address=parse_address(local),
        password=secret,
        security_hops=router.ttl_security,
        multihop=router.multihop,
    )
    return PeerConfig(
        router.name,
        parse_address(router.address),
        router.asn,
        passive=router.passive,
        hold_time=hold_time,
        local_asn=router.local_as if router.local_as != own.asn else None,
        next_hop_self=router.next_hop_self,
        allowed_own_as=router.allow_own_as,
        most_prefixes=router.most_prefixes,
        several_in=router.several_in,
        several_out=EACH_WAY if router.several_out else None,
        extended_next_hop=router.extended_next_hop,
        transport=transport,
        bfd=router.bfd.settings(),
    )


def _secret(path: str, secrets: Mapping[str, Secret], what: str, findings: list[Finding]) -> bytes | None:
    """The password, b"" where none is asked for, None where it cannot be read."""
    if not path:
        return b""
    secret = secrets.get(path, Secret(problem="was not read"))
    if secret.problem:
        message = f"no password for {what}: {path} {secret.problem}"
        if secret.password:
            message = f"{path} {secret.problem}; the password that was read before goes on for {what}"
        findings.append(
            Finding(
                code="bgp-password",
                subject=path,
                severity="warning" if secret.password else "error",
                message=message,
                remedy="write the password into the first line of that file, readable by root only, on this host",
            )
        )
    return secret.password or None


def _twice(router: Router, other: str) -> Finding:
    return Finding(
        code="bgp-router-twice",
        subject=router.name,
        message=f"no session with router {router.name}: {other} has its name or its address {router.address}",
        remedy="nodes are peers by themselves: take it out of Routers, or give the router its own name and address",
    )


def _counsel(
    options: BgpOptions, own: Own, wanted: str, others: Mapping[str, Member], sessions: int
) -> list[Finding]:
    """What an operator should know about the shape of the network."""
    findings = []
    if wanted == roles.MESH and len(others) >= roles.LARGE_MESH:
        findings.append(
            Finding(
                code="bgp-large-mesh",
                subject="Backend.Mesh",
                message=f"{len(others) + 1} nodes in a mesh: {sessions} sessions here, as many on each other",
                evidence=f"Mesh is on, more than {roles.LARGE_MESH} nodes",
                remedy='name two or three nodes as route reflectors and leave the mesh: "Reflectors": ["h1", "h2"], '
                '"Mesh": false; running agents change over without losing a packet',
            )
        )
    if wanted == roles.CLIENT and not any(options.reflects(name, m.labels) for name, m in others.items()):
        findings.append(
            Finding(
                code="bgp-no-reflector",
                subject="Backend.Reflectors",
                severity="error" if others else "warning",
                message="no node of the network is a route reflector, so nobody tells this node of the others",
                evidence=f"Reflectors: {', '.join(options.reflectors)}",
                remedy="name nodes that exist, or give nodes the label (setting `labels`), or set Mesh to true",
            )
        )
    if wanted == roles.EDGE and not own.routers:
        findings.append(
            Finding(
                code="bgp-no-peers",
                subject="Backend.Mesh",
                severity="error" if others else "warning",
                message="this node has nobody to speak BGP with: no mesh, no reflectors, no routers",
                evidence="Mesh is false, Reflectors is empty, and no entry of Routers is for this node",
                remedy="set Mesh to true, or name Reflectors, or Routers for this node",
            )
        )
    return findings


# ------------------------------------------------------------------------------------------------ policies


# What is ours, and nothing else.
OWN = Policy((Rule(True, Match(own=True)),), accept=False)


@functools.lru_cache(maxsize=64)
def _export_all(from_routers: frozenset[int]) -> Policy:
    """For a reflector's nodes: everything but what came from a router of another AS."""
    return Policy((Rule(False, Match(neighbour=from_routers)),) if from_routers else ())


@functools.lru_cache(maxsize=64)
def _export_nodes(networks: tuple[str, ...], more: tuple[str, ...]) -> Policy:
    """For a reflector's routers: what nodes may announce."""
    nodes = Rule(True, Match((*_inside(networks), *_exactly(more))))
    return Policy((Rule(True, Match(own=True)), nodes), accept=False)


@functools.lru_cache(maxsize=64)
def _import_nodes(networks: tuple[str, ...], announceable: tuple[str, ...]) -> Policy:
    """Subnets of the network, and what some node may announce."""
    return Policy((Rule(True, Match((*_inside(networks), *_exactly(announceable)))),), accept=False)


def _exactly(prefixes: Iterable[str]) -> tuple[PrefixRange, ...]:
    return tuple(PrefixRange.parse(prefix) for prefix in prefixes)


def _inside(networks: Iterable[str]) -> tuple[PrefixRange, ...]:
    """Prefixes that are longer than the network that holds them."""
    found = []
    for text in networks:
        network = ipaddress.ip_network(text)
        found.append(PrefixRange.parse(f"{text}{{{network.prefixlen + 1},{network.max_prefixlen}}}"))
    return tuple(found)


def _version(text: str) -> Family:
    return 6 if ":" in text else 4
