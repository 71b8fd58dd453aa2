"""What the service says of itself: counts, the state of each peer's subnets, findings. Reads, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from backends.bgp.members import BACKEND, Member
from backends.bgp.part import Part
from backends.bgp.sessions import Peering
from backends.bgp.ways import Ways
from bgp.aio import SetupError
from bgp.peer import Peer
from bgp.silence import why_down
from bgp.speaker import PrefixLimit, Speaker
from bgp.transport import Dropped
from netagent.contract import Context
from netagent.model import Finding, Lease, Route

# A router that does not come up for so long is a finding (seconds).
LONG_DOWN = 15.0
SHOWN = 5  # names in one finding


class Problem(NamedTuple):
    """Why the speaker cannot do its work on this host."""

    listening: bool
    text: str
    port: int

    @classmethod
    def of(cls, error: SetupError, port: int) -> Problem:
        text = str(error)
        return cls(text.startswith("cannot listen"), text, port)

    def finding(self) -> Finding:
        remedy = "see `ss -ltnp` for who has it; `Port` in the network's configuration sets another, for all nodes"
        return Finding(
            code="bgp-port" if self.listening else "bgp-socket",
            subject=f"port {self.port}",
            severity="error",
            message=f"no BGP session can be opened {'by peers' if self.listening else 'as asked'}: {self.text}",
            remedy=remedy if self.listening else "do as the message says; it is tried again by itself",
        )


def established(peer: Peer) -> bool:
    return peer.session.negotiated is not None


def summary(
    speaker: Speaker | None, peering: Peering, part: Part, installed: int, problem: Problem | None
) -> dict[str, Any]:
    """Sessions in numbers, as JSON, as metrics and in a line."""
    names = [peer.name for peer in peering.peers]
    up = [
        name for name in names if speaker is not None and name in speaker.peers and established(speaker.peers[name])
    ]
    routers = len(peering.routers.intersection(up))
    gauges = {
        "sessions": len(names),
        "sessions_established": len(up),
        "routes_installed": installed,
        "routes_received": _received(speaker),
    }
    watched = [
        peer for name in names if speaker is not None and (peer := speaker.peers.get(name)) and peer.config.bfd
    ]
    reached = sum(peer.bfd is not None and peer.bfd.up for peer in watched)
    if watched:
        gauges |= {"bfd_sessions": len(watched), "bfd_up": reached}
    played = part.role if part.settled else f"{part.role}, becoming {part.wanted}"
    text = f"{played}: {len(up)} of {len(names)} BGP sessions up"
    text += f" ({routers} of {len(peering.routers)} routers)" if peering.routers else ""
    text += f", BFD with {reached} of {len(watched)}" if watched else ""
    text += f", {installed} routes"
    if problem is not None:
        text += f"; {problem.text}"
    return {"summary": text, "gauges": gauges}


def _received(speaker: Speaker | None) -> int:
    if speaker is None:
        return 0
    return sum(len(rib.received(peer.source)) for rib in speaker.ribs.values() for peer in speaker.peers.values())


def peer_states(
    leases: Iterable[Lease],
    members: Mapping[str, Member],
    published: Mapping[str, Route],
    missing: Callable[[str], str],
    speaker: Speaker | None,
    young: Callable[[str], bool],
) -> dict[str, dict[str, Any]]:
    """For each lease of this backend whether its subnets are routed, and why not.

    `missing` says why a subnet has no route, "" if it is not known; `young` whether a peer had no time yet.
    """
    by_lease = {member.lease: member for member in members.values() if member.lease}
    found: dict[str, dict[str, Any]] = {}
    for lease in leases:
        if lease.backend != BACKEND:
            continue
        member = by_lease.get(lease.key)
        peer = speaker.peers.get(member.name) if speaker is not None and member is not None else None
        session = peer.session.state.name.lower() if peer is not None else "none"
        lacking = [subnet for subnet in (lease.v4, lease.v6) if subnet is not None and subnet not in published]
        if not lacking:
            found[lease.key] = {"state": "up", "reason": "", "session": session}
            continue
        reason = missing(lacking[0])
        if not reason and peer is None:
            reason = "no BGP session tells of it"
        elif not reason and peer is not None:
            reason = (
                "it does not announce it"
                if established(peer)
                else f"no BGP session with it: {_why_down(speaker, peer)}"
            )
        name = member.name if member is not None else lease.key
        state = "pending" if young(name) else "unreachable"
        found[lease.key] = {"state": state, "reason": f"no route to {lacking[0]}: {reason}", "session": session}
    return found


def no_address(context: Context) -> Finding:
    """Nothing can be said by BGP."""
    families = " or ".join(f"IPv{family}" for family in context.network.families)
    return Finding(
        code="bgp-no-address",
        subject=context.node.uplink,
        severity="error",
        message=f"no BGP: this node has no {families} address, which the network's sessions need",
        evidence=f"interface {context.node.uplink}",
        remedy="give the interface an address, or choose another with --iface; it is taken up by itself",
    )


def out_of_reach(ways: Ways, members: Mapping[str, Member]) -> list[Finding]:
    """Nodes that a router lies before: without a tunnel, and without a router that speaks BGP, there is no way."""
    families = ways.context.network.families
    found: dict[str, str] = {}
    for name, member in members.items():
        addresses = [address for family in families if (address := member.address(family)) is not None]
        if addresses and member.subnets and all(ways.to(address).hop is None for address in addresses):
            found[name] = ways.to(addresses[0]).problem
    names = sorted(found)
    return (
        [
            Finding(
                code="bgp-out-of-reach",
                subject=names[0],
                message=f"no way to {_some(names)}: a router lies between, and no tunnel is set",
                evidence=found[names[0]],
                remedy='set "Encapsulation": "vxlan-cross-subnet", or name the routers between as peers in Routers',
            )
        ]
        if names
        else []
    )


def deserted(peering: Peering, speaker: Speaker | None, now: float) -> list[Finding]:
    """A client none of whose reflectors has been there for a while: it hears of no change, whoever is alive."""
    known = [peer for name in sorted(peering.nodes) if speaker is not None and (peer := speaker.peers.get(name))]
    if not known or any(established(peer) or now - peer.since < LONG_DOWN for peer in known):
        return []
    left = max(max([peer.restart_ends or 0.0, *peer.long_lived.values()]) for peer in known) - now
    kept = (
        f"its routes are kept for {left:.0f} s at most" if left > 0 else "the routes that it had from them are gone"
    )
    return [
        Finding(
            code="bgp-reflectors-down",
            subject=known[0].name,
            severity="error",
            message=f"no BGP session with any route reflector ({_some([peer.name for peer in known])}) for "
            f"{now - max(peer.since for peer in known):.0f} s: this node hears of no change, and {kept}",
            evidence="; ".join(f"{peer.name}: {_why_down(speaker, peer)}" for peer in known[:SHOWN]),
            remedy="start an agent of theirs, or name others as Reflectors; LongLivedTime keeps routes longer",
        )
    ]


def not_in_force(fault: str) -> Finding:
    """A mistake of ours, or a value that nobody thought of: it must not end the sessions."""
    return Finding(
        code="bgp-not-in-force",
        subject="bgp",
        severity="error",
        message=f"what has changed last is not in force, BGP goes on as before: {fault}",
        remedy="take the last change of the network's configuration back, and report this with the agent's log",
    )


def findings(
    peering: Peering,
    limits: Mapping[str, PrefixLimit],
    problem: Problem | None,
    speaker: Speaker | None,
    now: float,
) -> list[Finding]:
    found = [*peering.findings]
    if problem is not None:
        found.append(problem.finding())
    for name, limit in limits.items():
        found.append(
            Finding(
                code="bgp-prefix-limit",
                subject=name,
                severity="error" if limit.ended else "warning",
                message=f"router {name} has sent {limit.prefixes} prefixes, its limit is {limit.limit}"
                + (": its session is down for good" if limit.ended else ""),
                remedy="raise MaxPrefixes of that router, or filter there what it sends",
            )
        )
    if speaker is None:
        return found
    if (doubt := _signatures(speaker, now)) is not None:
        found.append(doubt)
    for name in sorted(peering.routers - {name for name, limit in limits.items() if limit.ended}):
        peer = speaker.peers.get(name)
        if peer is None or established(peer) or now - peer.since < LONG_DOWN:
            continue
        found.append(
            Finding(
                code="bgp-router-down",
                subject=name,
                message=f"no BGP session with router {name} for {now - peer.since:.0f} s",
                evidence=_why_down(speaker, peer),
                remedy="compare Address, AS, password and TTL settings on both sides: `netagent bgp log` shows the "
                "messages",
            )
        )
    return found + _unwatched(peering, speaker, now)


def _unwatched(peering: Peering, speaker: Speaker, now: float) -> list[Finding]:
    """Peers whose sessions stand, and whom BFD does not reach: with our own sockets, or theirs."""
    problems: dict[str, list[str]] = {}
    silent: list[str] = []
    for peer in speaker.peers.values():
        if peer.config.bfd is None or peer.bfd is None or peer.bfd.up:
            continue
        if peer.bfd.problem:
            problems.setdefault(peer.bfd.problem, []).append(peer.name)
        elif established(peer) and now - max(peer.since, peer.bfd.since or now) >= LONG_DOWN:
            silent.append(peer.name)
    found = [
        Finding(
            code="bgp-bfd",
            subject=names[0],
            severity="error",
            message=f"no BFD with {_some(names)}: {problem}",
            remedy="do as the message says; it is tried again by itself, and sessions stand without BFD",
        )
        for problem, names in problems.items()
    ]
    routers = sorted(peering.routers.intersection(silent))
    nodes = sorted(set(silent) - peering.routers)
    for names in (*([name] for name in routers), *([nodes] if nodes else ())):
        bfd = speaker.peers[names[0]].bfd
        assert bfd is not None
        found.append(
            Finding(
                code="bgp-bfd-down",
                subject=names[0],
                message=f"BGP stands with {_some(names)}, and BFD does not come up: a failure is found late",
                evidence=f"{bfd.received} packets heard, theirs is {bfd.remote_state}, they say: {bfd.remote_diag}",
                remedy="set BFD on the other side too, for one hop (UDP 3784) or several (UDP 4784) as here, and let "
                "that port through",
            )
        )
    return found


def _why_down(speaker: Speaker | None, peer: Peer) -> str:
    return why_down(peer, speaker.dropped().since(peer.dropped_before) if speaker is not None else None)


def _signatures(speaker: Speaker, now: float) -> Finding | None:
    """Sessions that do not come up, on a host that has dropped signed segments: whose they were is not known."""
    dropped = speaker.dropped()
    meant = []
    most = Dropped()
    for name, peer in speaker.peers.items():
        since = dropped.since(peer.dropped_before)
        kinds = since.wrong + since.missing if peer.config.transport.password else since.unwanted
        if kinds and not established(peer) and peer.session.started and now - peer.since >= LONG_DOWN:
            meant.append(name)
            most = max(most, since, key=sum)
    if not meant:
        return None
    return Finding(
        code="bgp-md5",
        subject="TCP MD5",
        message=f"this host drops BGP segments for their signature; there is no session with {_some(sorted(meant))}",
        evidence=f"dropped: {most}",
        remedy="set the same password on both sides, or on neither; a router that only refuses connections counts as "
        "unsigned",
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
