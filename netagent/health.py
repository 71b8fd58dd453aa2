"""The verdict on a node: healthy, degraded or down, whether it is ready, and why. Pure.

Rules: *down* means that containers here cannot use the network; *degraded* that they can, but something needs an
operator or is missing; *ready* that containers may be started. An etcd outage is never "down": what was known
keeps forwarding, and the verdict says from when it is. A peer whose host died does not make this node degraded (or
one dead host would turn the whole cluster's monitors red); a living peer that this node cannot reach does.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from netagent.status import State, Status, Verdict

_HOLDING = ("held", "restored", "lost", "conflict")  # the subnet is in use here whatever its record says


def judged(status: Status) -> Status:
    """The same status with its verdict."""
    return msgspec.structs.replace(status, verdict=verdict(status))


def verdict(status: Status) -> Verdict:
    blockers = _blockers(status)
    fatal = blockers + _fatal(status)
    faults = _faults(status)
    state: State = "down" if fatal else "degraded" if faults else "healthy"
    reasons: list[str] = []
    for reason in fatal + faults:  # a finding may say what was said already
        if not any(reason in said for said in reasons):
            reasons.append(reason)
    return Verdict(
        state=state,
        reason=_sum(reasons) if reasons else _healthy(status),
        reasons=tuple(reasons),
        ready=not blockers,
        blockers=tuple(blockers),
    )


def _sum(reasons: list[str]) -> str:
    more = len(reasons) - 1
    return f"{reasons[0]} (and {more} more)" if more else reasons[0]


def _blockers(status: Status) -> list[str]:
    """What keeps containers from being started: each start-up step that is not done, in order."""
    out: list[str] = []
    etcd, network, lease, reconciler = status.etcd, status.network, status.lease, status.reconciler
    if not (network.v4 or network.v6):
        if network.error:
            out.append(f"the network's configuration is invalid: {network.error}")
        elif not etcd.connected and etcd.source == "none":
            out.append(f"etcd has not answered yet{_because(etcd.error)}, and there is no snapshot of an earlier run")
        else:
            out.append(f"no network configuration under {etcd.prefix}/config (write one with `netagent init`)")
    elif lease.state not in _HOLDING:
        # Without an address to announce nothing is claimed, and the lease has nothing to say.
        faceless = (finding.message for finding in status.findings if finding.code == "no-interface")
        out.append(f"no subnet yet{_because(lease.problem or next(faceless, ''))}")
    elif not reconciler.base:
        out.append("the base objects (devices, addresses, firewall) do not stand yet")
    elif not reconciler.passed:
        out.append("the first pass over the peers is not done yet")
    return out


def _fatal(status: Status) -> list[str]:
    out: list[str] = []
    interface, service = status.interface, status.backend.service
    if interface.name and not interface.up:
        out.append(f"interface {interface.name} is down")
    elif interface.name and not interface.carrier:
        out.append(f"interface {interface.name} has no carrier")
    if service.get("state") == "failed":
        out.append(f"the {status.backend.type} service failed{_because(str(service.get('error', '')))}")
    return out


def _faults(status: Status) -> list[str]:
    out: list[str] = []
    etcd, network, lease = status.etcd, status.network, status.lease
    if not etcd.connected and etcd.source != "none":
        out.append(
            f"etcd unreachable{_for(status.at, etcd.since)}{_because(etcd.error)}; "
            f"forwarding from {'the snapshot' if etcd.source == 'snapshot' else 'what was known'}"
            f" {_clock(etcd.as_of)}"
        )
    if lease.state in ("lost", "conflict"):
        out.append(lease.problem or f"the lease of {subnets(status)} is {lease.state}")
    elif lease.state in _HOLDING and lease.problem:
        out.append(lease.problem)
    if not network.valid and (network.v4 or network.v6):
        out.append(f"the new network configuration is invalid and not in force{_because(network.error)}")
    if failing := sum(status.reconciler.failing.values()):
        out.append(f"{failing} kernel object{'s' * (failing != 1)} cannot be installed")
    if lost := status.peers.states.get("unreachable", 0):
        out.append(f"{lost} of {status.peers.total} peers cannot be reached from here")
    out += [finding.message for finding in status.findings if finding.severity == "error"]
    return out


def _healthy(status: Status) -> str:
    peers, states = status.peers, status.peers.states
    parts = [f"{states.get(name, 0)} {name}" for name in ("up", "pending", "unknown", "down") if states.get(name)]
    text = f"{subnets(status)} over {status.backend.type or status.network.backend}"
    text += f", {peers.total} peer{'s' * (peers.total != 1)}" + (f" ({', '.join(parts)})" if parts else "")
    if warnings := sum(finding.severity == "warning" for finding in status.findings):
        text += f", {warnings} warning{'s' * (warnings != 1)}"
    return text


def subnets(status: Status) -> str:
    """The subnets held, for a sentence."""
    return " and ".join(filter(None, (status.lease.v4, status.lease.v6))) or "no subnet"


def _because(text: str) -> str:
    return f" ({text})" if text else ""


def _for(now: float, since: float) -> str:
    return f" for {duration(now - since)}" if since else ""


def _clock(at: float) -> str:
    return f"of {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" if at else "of an unknown time"


def duration(seconds: float) -> str:
    """A span for people: "12 s", "3 m", "2 h 5 m", "4 d"."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} m"
    if whole < 2 * 86400:
        hours, rest = divmod(whole, 3600)
        return f"{hours} h {rest // 60} m" if rest >= 60 else f"{hours} h"
    return f"{whole // 86400} d"
