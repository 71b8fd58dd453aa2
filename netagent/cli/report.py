"""The status as text: verdict, sections, a line a peer, findings. Everything is told with its age."""

from __future__ import annotations

import json
from collections.abc import Iterator

from netagent.cli import output
from netagent.health import duration
from netagent.model import KINDS
from netagent.status import Peer, Status

WIDTH = 12  # of the sections' names


def show(status: Status) -> None:
    verdict = status.verdict
    print(f"{output.state(verdict.state)}: {output.clean(verdict.reason)}")
    for reason in verdict.reasons[1:]:
        print(f"  also: {output.clean(reason)}")
    print()
    for name, text in sections(status):
        print(f"{output.paint(name.ljust(WIDTH), output.BOLD)}{output.clean(text)}")
    _failures(status)
    _peers(status)
    _findings(status)


def sections(status: Status) -> Iterator[tuple[str, str]]:
    """(name, text) of each line between the verdict and the peers; the name is empty in a line that goes on."""
    node = status.node
    yield (
        "node",
        f"{node.name} ({node.id[:8]}), netagent {node.version}, {_since('started', node.started, status.at)}",
    )
    yield from _etcd(status)
    yield from _network(status)
    yield from _lease(status)
    yield from _interface(status)
    yield from _backend(status)
    yield from _reconciler(status)


def _etcd(status: Status) -> Iterator[tuple[str, str]]:
    etcd, at = status.etcd, status.at
    if etcd.connected:
        where = etcd.endpoint or ", ".join(etcd.endpoints)
        version = f" (etcd {etcd.version})" if etcd.version else ""
        yield "etcd", f"connected to {where}{version}, prefix {etcd.prefix}"
    else:
        unsaid = ", ".join(endpoint for endpoint in etcd.endpoints if endpoint not in etcd.error)
        error = f": {etcd.error}" if etcd.error else ""
        yield "etcd", f"unreachable{_for(etcd.since, at)}{_paren(unsaid)}{error}"
    text = f"revision {etcd.revision}, {_since('last event', etcd.last_event, at)}"
    text += f", {_since('watch proved', etcd.last_proof, at)}"
    if etcd.resyncs or etcd.watch_failures:
        text += f", listed again {etcd.resyncs} times, watch broken {etcd.watch_failures} times"
    yield "", text
    if etcd.source == "snapshot":
        yield "", f"records in force: a snapshot, {_since('taken', etcd.as_of, at)}"


def _network(status: Status) -> Iterator[tuple[str, str]]:
    network = status.network
    if not (network.v4 or network.v6):
        yield "network", f"not configured{_paren(network.error)}"
        return
    parts = []
    if network.v4:
        parts.append(f"{network.v4} in /{network.subnet_len}s")
    if network.v6:
        parts.append(f"{network.v6} in /{network.subnet_len6}s")
    yield "network", f"{' and '.join(parts)}, backend {network.backend}, revision {network.revision}"
    if not network.valid:
        yield "", f"a newer configuration is invalid and not in force{_paren(network.error)}"


def _lease(status: Status) -> Iterator[tuple[str, str]]:
    lease, at = status.lease, status.at
    subnets = " and ".join(filter(None, (lease.v4, lease.v6)))
    text = f"{subnets}, {lease.state}" if subnets else lease.state
    if lease.reservation:
        text += ", reserved"
    elif lease.expires:
        left = lease.expires - at
        text += f", expires in {duration(left)}" if left > 0 else f", expired {duration(-left)} ago"
        text += f" (TTL {duration(lease.ttl)}), {_since('renewed', lease.renewed, at)}"
    yield "lease", text
    if lease.problem:
        yield "", lease.problem


def _interface(status: Status) -> Iterator[tuple[str, str]]:
    face = status.interface
    if not face.name:
        yield "interface", f"none chosen{_paren(face.why)}"
        return
    addresses = " ".join(filter(None, (face.public_ip, face.public_ip6)))
    state = "" if face.up and face.carrier else ", no carrier" if face.up else ", down"
    yield "interface", f"{face.name} {addresses}, MTU {face.mtu}{state}{_paren(face.why)}"
    local = [
        f"{mine} here, {public} for the peers"
        for mine, public in ((face.local_ip, face.public_ip), (face.local_ip6, face.public_ip6))
        if mine and public and mine != public
    ]
    if local:
        yield "", "; ".join(local)
    if face.others:
        yield "", f"not chosen: {', '.join(face.others)}"


def _backend(status: Status) -> Iterator[tuple[str, str]]:
    backend = status.backend
    if not backend.type:
        yield "backend", "none yet"
        return
    # As they stand in etcd: true and not True.
    options = ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in backend.options.items()
    )
    yield "backend", f"{backend.type}{_paren(options)}, containers' MTU {backend.mtu}"
    if backend.service:
        error = backend.service.get("error", "")
        text = f"service {backend.service.get('state', 'unknown')}{_paren(str(error))}"
        if said := backend.service.get("summary"):
            text += f", {said}"
        drops = {reason: count for reason, count in backend.service.get("drops", {}).items() if count}
        if drops:
            text += f", dropped {', '.join(f'{count} ({reason})' for reason, count in sorted(drops.items()))}"
        yield "", text


def _reconciler(status: Status) -> Iterator[tuple[str, str]]:
    work, at = status.reconciler, status.at
    desired, installed = sum(work.desired.values()), sum(work.installed.values())
    failing = sum(work.failing.values())
    text = f"{installed} of {desired} objects installed, {failing} failing"
    if work.last_pass:
        text += f", {_since('last whole pass', work.last_pass, at)} in {work.last_pass_seconds * 1000:.0f} ms"
    yield "kernel", text
    kinds = [f"{work.desired[kind]} {kind}" for kind in KINDS if work.desired.get(kind)]
    if kinds:
        yield "", ", ".join(kinds)
    if work.drifts:
        yield "", f"repaired {work.drifts} times, last {duration(at - work.last_drift)} ago: {work.last_drift_what}"


def _failures(status: Status) -> None:
    if not status.reconciler.failures:
        return
    print(f"\n{output.paint('failing', output.BOLD)}")
    for failure in status.reconciler.failures:
        foreign = f" (in the way: {failure.foreign})" if failure.foreign else ""
        tries = f"{failure.attempts} tries{_for(failure.since, status.at)}"
        print(output.clean(f"  {failure.kind} {failure.object}: {failure.error}{foreign}, {tries}"))


def _peers(status: Status) -> None:
    peers = status.peers
    counts = ", ".join(f"{count} {state}" for state, count in sorted(peers.states.items()))
    print(f"\n{output.paint('peers', output.BOLD)}  {peers.total}{_paren(counts)}")
    if peers.shown:
        table(peers.shown, status.at)
    if left := peers.total - len(peers.shown):
        print(f"  {left} more are not shown (--all, or `netagent peers`)")


def table(peers: tuple[Peer, ...] | list[Peer], at: float, *, indent: int = 2) -> None:
    """A line a peer. `at` is the time that ages are counted from."""
    reasons = any(peer.reason for peer in peers)
    output.table(
        ("NODE", "SUBNET", "ENDPOINT", "PATH", "STATE", "SINCE", *(("REASON",) if reasons else ())),
        (
            (
                peer.node,
                " ".join(filter(None, (peer.v4, peer.v6))),
                peer.endpoint,
                peer.path,
                peer.state,
                duration(at - peer.since) if peer.since else "",
                *((peer.reason,) if reasons else ()),
            )
            for peer in peers
        ),
        states=4,
        indent=indent,
    )


def _findings(status: Status) -> None:
    order = {"error": 0, "warning": 1, "info": 2}
    if not status.findings:
        return
    print(f"\n{output.paint('findings', output.BOLD)}")
    for finding in sorted(status.findings, key=lambda f: order.get(f.severity, 3)):
        print(f"  {output.state(finding.severity)} {output.clean(f'{finding.code} ({finding.subject})')}")
        print(f"    {output.clean(finding.message)}")
        if finding.evidence:
            print(f"    seen: {output.clean(finding.evidence)}")
        if finding.remedy:
            print(f"    do:   {output.clean(finding.remedy)}")


def _since(what: str, when: float, at: float) -> str:
    return f"{what} {duration(at - when)} ago" if when else f"{what} never"


def _for(since: float, at: float) -> str:
    return f" for {duration(at - since)}" if since else ""


def _paren(text: str) -> str:
    return f" ({text})" if text else ""
