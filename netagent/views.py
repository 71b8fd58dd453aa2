"""The agent's state as the values of status.py. Reads the agent's parts, changes nothing, makes no call.

Rule: a view is truthful about its age: what is known from etcd says since when it is known, what a snapshot said
says so. Times of the event loop's clock are turned into unix seconds here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from netagent import __version__
from netagent.errors import UsageError
from netagent.health import judged
from netagent.model import Finding, Lease, Object, Route
from netagent.plan.compose import announced
from netagent.reconcile import Failing as FailingObject
from netagent.status import (
    SHOWN_MAX,
    BackendStatus,
    EtcdStatus,
    Failing,
    InterfaceStatus,
    NetworkStatus,
    NodeStatus,
    ObjectView,
    Peer,
    ReconcilerStatus,
    Status,
    Step,
    condensed,
    describe,
    summary,
)

if TYPE_CHECKING:
    from netagent.agent import Agent
    from netagent.contract import Answer

_WHY = {
    "sysctl": "the host must forward, and accept, the network's packets",
    "link": "carries the network's packets",
    "offload": "checksums must be right where packets leave the kernel",
    "address": "the first address of this node's subnet, which names it on the device",
    "nft": "masquerading, and only known peers reach the backend's port",
    "element": "packets of the backend are accepted from this peer",
    "nexthop": "the peer's VTEP, which its routes refer to",
    "neighbour": "the MAC of the peer's VTEP",
    "fdb": "the host behind the peer's VTEP",
    "accept": "another tool's firewall would drop the network's packets",
}


def status(agent: Agent) -> Status:
    """Everything, with the verdict."""
    return judged(
        Status(
            at=time.time(),
            node=NodeStatus(
                name=agent.identity.name,
                id=agent.identity.id,
                version=__version__,
                pid=os.getpid(),
                started=agent.started,
            ),
            etcd=_etcd(agent),
            network=_network(agent),
            lease=agent.leasing.status(),
            interface=_interface(agent),
            backend=_backend(agent),
            reconciler=_reconciler(agent),
            peers=summary(peers(agent)),
            findings=tuple(findings(agent)),
        )
    )


def peers(agent: Agent) -> Iterator[Peer]:
    """Each remote lease, with the path to it and what is known of its life."""
    said = {name: runner.status().get("peers", {}) for name, runner in agent.planning.runners.items()}
    for key, state in agent.planning.states.items():
        lease = agent.cluster.leases.get(key)
        if lease is None:
            continue
        routed = said.get(state.plan.backend, {}).get(key, {})
        word, reason = _peer_state(agent, lease, state.plan.objects, state.plan.findings, routed)
        yield Peer(
            node=lease.label,
            key=key,
            v4=lease.v4 or "",
            v6=lease.v6 or "",
            endpoint=lease.public_ip or lease.public_ip6 or "",
            backend=announced(lease),
            path=_path(_routes(agent, lease, state.plan.objects), state.plan.backend),
            state=word,
            reason=reason,
            since=state.observe(word),
        )


def objects(agent: Agent, kinds: Collection[str] = ()) -> Iterator[ObjectView]:
    for row in agent.reconciler.explain(kinds):
        state = "failing" if row.error else "installed" if row.installed else "pending"
        yield ObjectView(
            kind=row.object.KIND,
            text=describe(row.object),
            owner=owner_words(agent, row.owner),
            why=_why(agent, row.object, row.owner),
            state=state,
            error=row.error,
        )


def plan(agent: Agent) -> list[Step]:
    """What a full pass would do now: dumps the kernel."""
    reconciler = agent.reconciler
    steps = []
    for op in reconciler.plan():
        key = op.object.key
        was = reconciler.present(key)
        claims = reconciler.claims(key)
        verb = "remove" if op.verb == "delete" else "change" if was is not None else "add"
        steps.append(
            Step(
                verb=verb,
                kind=op.object.KIND,
                text=describe(op.object),
                was=describe(was) if was is not None and verb == "change" else "",
                owner=owner_words(agent, claims[0].owner) if claims else "",
            )
        )
    return steps


def backend_view(agent: Agent, backend: str, view: str, arguments: Mapping[str, str]) -> Answer:
    runner = agent.planning.runners.get(backend)
    if runner is None:
        composer = agent.planning.composer
        present = composer.active.backend.name if composer is not None else "none yet"
        raise UsageError(
            f"the {backend} backend does not run here",
            remedy=f"The network's backend is {present}; `netagent init --backend {backend}` would change it",
        )
    return runner.view(view, arguments)


def findings(agent: Agent) -> Iterator[Finding]:
    """Every finding, one for each code and subject, the grave ones first."""
    found: dict[tuple[str, str], Finding] = {}
    for finding in agent.findings():
        found.setdefault((finding.code, finding.subject), finding)
    order = {"error": 0, "warning": 1, "info": 2}
    yield from sorted(found.values(), key=lambda f: (order[f.severity], f.code, f.subject))


# ------------------------------------------------------------------------------------------- parts


def _unix(steady: float) -> float:
    """A time of the event loop's clock in unix seconds; 0.0 stays 0.0."""
    return time.time() - (asyncio.get_running_loop().time() - steady) if steady else 0.0


def _etcd(agent: Agent) -> EtcdStatus:
    follow, health = agent.follower.state, agent.store.health()
    proof = _unix(follow.alive)
    snapshot = agent.source == "snapshot"
    return EtcdStatus(
        endpoints=health.endpoints,
        prefix=agent.settings.etcd_prefix,
        connected=follow.connected,
        since=agent.connected_since,
        endpoint=health.endpoint,
        version=health.version,
        error=follow.error or health.error,
        revision=agent.cluster.revision,
        last_event=_unix(follow.event),
        last_proof=proof,
        source=agent.source,
        as_of=agent.snapshot_time if snapshot else proof,
        resyncs=follow.resyncs,
        watch_failures=follow.failures,
    )


def _network(agent: Agent) -> NetworkStatus:
    network = agent.network
    error = agent.cluster.config_error or agent.network_error
    if network is None:
        return NetworkStatus(error=error)
    return NetworkStatus(
        v4=network.v4 or "",
        v6=network.v6 or "",
        subnet_len=network.subnet_len or 0,
        subnet_len6=network.subnet_len6 or 0,
        backend=network.backend.type,
        revision=agent.cluster.config_revision,
        valid=not error,
        error=error,
    )


def _interface(agent: Agent) -> InterfaceStatus:
    choice = agent.choice
    if choice is None:
        return InterfaceStatus()
    link = agent.facts.links.get(choice.interface)
    return InterfaceStatus(
        name=choice.interface,
        public_ip=choice.public_ip or "",
        public_ip6=choice.public_ip6 or "",
        local_ip=choice.local_ip or "",
        local_ip6=choice.local_ip6 or "",
        mtu=choice.mtu,
        up=link is not None and link.up,
        carrier=link is not None and link.carrier,
        why=choice.why,
        others=choice.others,
    )


def _backend(agent: Agent) -> BackendStatus:
    composer = agent.planning.composer
    if composer is None or agent.network is None:
        return BackendStatus()
    backend, context = composer.active
    runner = agent.planning.runners.get(backend.name)
    return BackendStatus(
        type=backend.name,
        options=agent.network.backend.options,
        mtu=backend.mtu(context),
        service=condensed(runner.status()) if runner is not None else {},
    )


def _reconciler(agent: Agent) -> ReconcilerStatus:
    state = agent.reconciler.status()
    drift = state.last_drift
    failing: dict[str, int] = {}
    for failure in state.failing:
        failing[failure.object.KIND] = failing.get(failure.object.KIND, 0) + 1
    return ReconcilerStatus(
        desired=state.desired,
        installed=state.installed,
        failing=failing,
        failures=tuple(_failing(failure) for failure in state.failing[:SHOWN_MAX]),
        passed=agent.first_pass.is_set(),
        base=agent.base_stands(),
        passes=state.passes,
        last_pass=state.last_pass,
        last_pass_seconds=state.last_pass_seconds,
        operations=state.operations,
        last_drift=drift.at if drift is not None else 0.0,
        last_drift_what=f"{drift.what} and put back" if drift is not None else "",
        drifts=state.drifts,
    )


def _failing(failure: FailingObject) -> Failing:
    return Failing(
        object=describe(failure.object),
        kind=failure.object.KIND,
        error=failure.message,
        foreign=failure.foreign,
        since=failure.since,
        attempts=failure.attempts,
        retry=_unix(failure.retry),
    )


# ------------------------------------------------------------------------------------------- peers


def _peer_state(
    agent: Agent,
    lease: Lease,
    planned: tuple[Object, ...],
    reasons: tuple[Finding, ...],
    said: Mapping[str, Any],
) -> tuple[str, str]:
    """`said`: what the backend's service says of a peer whose routes it learns."""
    if not planned:
        ignored = bool(reasons) and reasons[0].code == "peer-other-backend"
        return "ignored" if ignored else "unreachable", reasons[0].message if reasons else "no path is known"
    reconciler = agent.reconciler
    for obj in planned:
        failure = reconciler.failure(obj.key)
        if failure is not None:
            return "unreachable", f"{describe(obj)}: {failure.message}"
    if not all(reconciler.in_place(obj) for obj in planned):
        return "pending", "its objects are being installed"
    learnt = not any(isinstance(obj, Route) for obj in planned)
    if learnt and (word := said.get("state", "pending")) != "up":
        dead = lease.node and agent.follower.state.connected and lease.node not in agent.cluster.alive
        return "down" if dead else word, said.get("reason") or "its routes are not known yet"
    if learnt and not all(reconciler.in_place(route) for route in _routes(agent, lease, ())):
        return "pending", "its routes are being installed"
    if not lease.node:
        return "unknown", "it gives no sign of life (not a netagent node)"
    if not agent.follower.state.connected:
        return "unknown", "etcd does not answer, so its life is not known"
    if lease.node in agent.cluster.alive:
        return "up", ""
    return "down", "its agent gives no sign of life"


def _routes(agent: Agent, lease: Lease, planned: tuple[Object, ...]) -> list[Object]:
    """The planned routes to a peer's subnets; where there are none, those that a service has published."""
    routes = [obj for obj in planned if isinstance(obj, Route)]
    if routes:
        return [*routes]
    keys = [("route", subnet, 0) for subnet in (lease.v4, lease.v6) if subnet is not None]
    return [claims[0].object for key in keys if (claims := agent.reconciler.claims(key))]


def _path(planned: Iterable[Object], backend: str) -> str:
    """How packets travel: what the first route of the peer goes through."""
    for obj in planned:
        if not isinstance(obj, Route):
            continue
        if obj.nexthop is not None:
            return f"{backend} {obj.nexthop[0]}"
        for hop in obj.hops:
            if hop.dev.startswith("na-"):
                return f"{backend} {hop.dev}"
            return f"direct via {hop.gateway} dev {hop.dev}"
    return "none"


# ------------------------------------------------------------------------------------------- owners


def owner_words(agent: Agent, owner: str) -> str:
    """The owner of an object in words: "peer h2", "base vxlan", "host"."""
    kind, _, rest = owner.partition("/")
    if kind == "peer":
        lease = agent.cluster.leases.get(rest)
        return f"peer {lease.label if lease is not None else rest}"
    return f"{kind} {rest}".strip()


def _why(agent: Agent, obj: Object, owner: str) -> str:
    if not isinstance(obj, Route):
        return _WHY.get(obj.KIND, "")
    if obj.type != "unicast":
        return "packets to subnets that nobody holds must not leave by the default route"
    lease = agent.cluster.leases.get(owner.partition("/")[2])
    return f"the subnet of {lease.label}" if lease is not None else "a route of the backend's service"
