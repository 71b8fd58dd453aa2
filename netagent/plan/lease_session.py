"""The life of this node's subnet lease, as a state machine: what to ask of etcd next, and what its answers mean.

    none ─▶ claiming ─claimed or found─▶ held ─deleted, expired, wiped─▶ lost ─claimed again─▶ held
            restored (from disk) ─▲       └─written by another─▶ conflict ─the other is gone─▶ lost

Rules:
- one request at a time; each write is a transaction guarded by the revision that we know, never a plain put;
- a subnet that containers may be using is never given up: once held it stays, whatever happens to its record, and
  the same one is claimed again;
- nobody is fought: a record that somebody else wrote is reported and left, and taken up again when it is gone;
- etcd guards keys, not subnets: of two records that overlap under different keys (two IPv4 subnets with one IPv6
  subnet, another length) the later one yields, before its subnet is used, as soon as the watch has shown both;
- a write with an unknown outcome is followed by reading the record, and so is every event that contradicts us;
- a reservation (a record on no etcd lease) stays one; fields of a record that we do not know are kept.

Pure: `now` is seconds of a steady clock. The driver (leasing.py) carries out `next()` and reports to `done()`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec

from netagent import network_config
from netagent.errors import SubnetsExhausted
from netagent.model import Finding, Lease, Network
from netagent.plan import allocate
from netagent.plan.allocate import Choice, Remembered
from netagent.plan.cluster import Cluster, ClusterChange
from netagent.plan.lease_requests import (
    Answer,
    Claim,
    Drop,
    Failed,
    Gone,
    Inspect,
    Move,
    Record,
    Renew,
    Renewed,
    Request,
    Rewrite,
    Written,
)
from netagent.plan.lease_state import Attributes, LeaseState, Subnets, writer
from netagent.store import schema
from netagent.store.base import KeyValue

__all__ = ["Attributes", "LeaseSession", "LeaseState", "Subnets"]

BACKOFF_FIRST, BACKOFF_LAST = 0.5, 30.0  # seconds, after failures
RACE_FIRST, RACE_LAST = 0.02, 1.0  # after a race for a subnet was lost
RECHECK = 30.0  # between looks at a record that somebody else holds, or at a network without free subnets

_NOTHING = Subnets()


class LeaseSession:
    """One per agent. `cluster` is the view that the agent keeps up to date; `rng` makes all choices and jitter."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        node_id: str,
        *,
        ttl: int,
        rng: random.Random,
        remembered: Subnets = _NOTHING,
        env: Subnets = _NOTHING,
    ) -> None:
        self.state = LeaseState()
        self.ttl = ttl  # of new etcd leases (seconds)
        self._cluster = cluster
        self._name = name
        self._id = node_id
        self._owner = schema.owner_value(schema.Owner(name, node_id))
        self._rng = rng
        self._remembered = (
            Remembered("state", remembered.v4, remembered.v6),
            Remembered("subnet.env", env.v4, env.v6),
        )
        self._attributes: Attributes | None = None
        self._findings: dict[str, Finding] = {}  # by code
        self._network: Network | None = None  # the last one that holds our subnet
        self._record: Lease | None = None  # our record as last known
        self._values: set[bytes] = set()  # values of it that we wrote, tried to write or took over
        self._granted: set[int] = set()  # etcd leases that are ours
        self._pending: Request | None = None
        self._trial = False  # the record may overlap an earlier one that we did not know of
        self._doubts: list[str] = []  # keys to read before anything else
        self._avoid: set[str] = set()  # subnets that were refused, though the view does not show why yet
        self._wake = 0.0
        self._due = 0.0  # when to renew
        self._failures = 0
        self._races = 0
        if remembered.live:
            self.presume()

    def set_ttl(self, ttl: int) -> None:
        """Another TTL: the record moves to a new etcd lease at the next renewal."""
        self.ttl = ttl
        self._granted.clear()

    @property
    def holds(self) -> bool:
        """Whether there is a subnet that containers may use."""
        return self.state.state in ("held", "restored", "lost", "conflict")

    @property
    def network(self) -> Network | None:
        """The newest network that holds our subnet, or the newest of all while we hold none; None: there is none."""
        return self._network

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._findings.values())

    def presume(self) -> None:
        """Use the subnet of an earlier run until etcd says what is so: it does not answer."""
        _, v4, v6 = self._remembered[0]
        if not self.holds and (v4 or v6):
            self.state.v4, self.state.v6 = v4, v6
            self.state.key = schema.subnet_key(v4, v6)
            self.state.state, self.state.source = "restored", "state"

    # ------------------------------------------------------------------------------------------- inputs

    def publish(self, attributes: Attributes, now: float) -> None:
        """Addresses and backend data to write from now on."""
        if attributes != self._attributes:
            self._attributes = attributes
            self._wake = min(self._wake, now)

    def observe(self, change: ClusterChange, now: float) -> None:
        """The cluster's view changed; called after the cluster has folded the change."""
        cluster, state = self._cluster, self.state
        if cluster.network is not None and (cluster.network != self._network or change.config_changed):
            self._review()
            self._wake = min(self._wake, now)
        if change.whole or change.leases_removed:
            self._avoid.clear()
            if state.state != "held":
                self._wake = min(self._wake, now)
        if "node-id-taken" in self._findings and change.alive_changed:
            self._wake = min(self._wake, now)
        if self._trial:
            self._wake = min(self._wake, now)
        elif not cluster.confirmed or state.state not in ("held", "lost", "conflict"):
            return
        key = state.key
        if not change.whole:
            if key not in change.leases_changed and key not in change.leases_removed:
                return
            if cluster.revision < state.mod_revision:
                return  # what the watch tells lies before our own last write
        lease = None if key in cluster.withheld else cluster.leases.get(key)
        known = self._record
        if known is None or lease is None or (lease.mod_revision, lease.node_id) != (known.mod_revision, self._id):
            self._question(key)
            self._wake = min(self._wake, now)

    def _review(self) -> None:
        """Hold the newest network against our subnet; one that does not hold it is reported and not followed."""
        network = self._cluster.network
        for code in ("network-excludes-subnet", "network-range-excludes-subnet"):
            self._findings.pop(code, None)
        if network is None:
            return
        if self.holds:
            held = self.state.v4, self.state.v6
            verdict = network_config.compatible(self._network, network, *held, node=self._name)
            self._findings |= {finding.code: finding for finding in verdict.findings}
            if not verdict.holds:
                return
        self._network = network

    # ------------------------------------------------------------------------------------------ requests

    def wake(self) -> float | None:
        """When to call `next`; None: not before an answer or an input."""
        return self._wake if self._pending is None and self._ready() else None

    def next(self, now: float) -> Request | None:
        """The request to carry out now, if there is one. `done` takes its answer before there is another."""
        if self._pending is not None or now < self._wake or not self._ready():
            return None
        assert self._attributes is not None
        self._wake = now + self._jittered(RECHECK)  # unless what follows says otherwise
        request = self._decide(self._attributes, now)
        if isinstance(request, Claim | Rewrite | Move):
            self._values.add(request.value)
        self._pending = request
        return request

    def _ready(self) -> bool:
        return self._cluster.confirmed and self._attributes is not None

    def _decide(self, attributes: Attributes, now: float) -> Request | None:
        if self._doubts:
            return Inspect(self._doubts.pop(0))  # what is questioned while it is under way is asked again
        if self._trial and (yielding := self._try(attributes)) is not None:
            return yielding
        if self._trial:
            return self._maintain(attributes, now)
        if self.state.state in ("none", "claiming"):
            return self._choose(attributes, now)
        if self.state.state == "restored":
            own = self._cluster.leases.get(self.state.key)
            if own is None or own.key in self._cluster.withheld or not self._is_ours(own):
                own = self._own(attributes)
            if own is None or not _same_subnets(own, self.state):
                return self._claim_again(attributes)
            if self._twin(own):
                return None
            self._adopt(own)
        if self.state.state == "held":
            return self._maintain(attributes, now)
        if self.state.state == "lost":
            return self._claim_again(attributes)
        return Inspect(self.state.key)  # conflict

    def _own(self, attributes: Attributes) -> Lease | None:
        """The record in the view that is ours already."""
        cluster = self._cluster
        leases = {key: lease for key, lease in cluster.leases.items() if key not in cluster.withheld}
        network = cluster.network or Network()
        own = allocate.own_lease(network, leases, self._node(attributes))
        return own[0] if own is not None else None

    def _node(self, attributes: Attributes) -> allocate.Node:
        return allocate.Node(self._name, self._id, attributes.public_ip, attributes.public_ip6)

    def _choose(self, attributes: Attributes, now: float) -> Request | None:
        """Take up the record that is ours, or claim a subnet."""
        cluster, state = self._cluster, self.state
        if cluster.network is None:
            return None
        state.state = "claiming"
        choice = self._choice(cluster.network, cluster.leases, attributes)
        if choice is None:
            return None
        state.source = choice.source
        if choice.lease is not None and choice.lease.key not in cluster.withheld:
            if self._twin(choice.lease):
                return None
            self._adopt(choice.lease)
            return self._decide(attributes, now)
        return Claim(choice.key, self._render(attributes, None), self._owner, self.ttl)

    def _twin(self, lease: Lease) -> bool:
        """Whether the record of our id is that of a host which is alive under another name and at another address: we
        are its clone, and must not take its traffic."""
        alive = self._cluster.alive.get(lease.node)
        self._findings.pop("node-id-taken", None)
        if lease.node == self._name or alive is None or alive.id != self._id or self._same_address(lease):
            return False
        self.state.problem = f"{lease.node} at {lease.public_ip or lease.public_ip6} is alive with this node's id"
        self._note(
            "node-id-taken",
            self._name,
            f"{self.state.problem} (a copied state directory?): this node takes no lease",
            severity="error",
            remedy="on the clone stop netagent, remove the file `id` in its state directory, and start it again",
        )
        return True

    def _choice(self, network: Network, leases: Mapping[str, Lease], attributes: Attributes) -> Choice | None:
        used = Remembered("state", self.state.v4, self.state.v6)
        try:
            choice = allocate.choose(
                network,
                leases,
                self._node(attributes),
                remembered=(used, *self._remembered),
                avoid=self._avoid,
                rng=self._rng,
            )
        except SubnetsExhausted as error:
            self.state.problem = str(error)
            self._note("subnets-exhausted", self._name, error.message, severity="error", remedy=error.remedy)
            return None
        if self._findings.pop("subnets-exhausted", None) is not None:
            self.state.problem = ""
        return choice

    def _claim_again(self, attributes: Attributes) -> Request | None:
        """The same subnet, if nobody has it now."""
        state = self.state
        if obstacle := self._obstacle():
            self._conflict(obstacle)
            return None
        return Claim(state.key, self._render(attributes, self._record), self._owner, self.ttl)

    def _question(self, key: str) -> None:
        if key not in self._doubts:
            self._doubts.append(key)

    def _obstacle(self) -> str:
        """Why our subnet cannot be claimed again, "" if it can."""
        state, cluster = self.state, self._cluster
        if "network-excludes-subnet" in self._findings:
            return "the network no longer holds this node's subnet"
        for subnet in (state.v4, state.v6):
            others = (x for x in cluster.leases.values() if x.key != state.key and x.node_id != self._id)
            other = allocate.overlaps(subnet, others) if subnet is not None else None
            if other is not None:
                return f"{other.label} holds {other.key}, which overlaps this node's subnet {subnet}"
        return ""

    def _maintain(self, attributes: Attributes, now: float) -> Request | None:
        """The record is there and ours: add a family, write what differs, else renew when it is time."""
        state, record = self.state, self._record
        assert record is not None
        value = self._render(attributes, record)
        lease: int | None = record.lease_id
        if lease and lease not in self._granted:
            if record.node_id != self._id:
                lease = None  # flannel's, or of an earlier installation: it ages out
            elif state.ttl and state.ttl != self.ttl:
                lease = None  # of an earlier run with another TTL
        if (moved := self._widened(record, attributes)) is not None:
            return Move(record.key, record.mod_revision, moved, value, self._owner, lease, self.ttl)
        owned = (record.node_id, record.node) == (self._id, self._name)
        if value != record.raw or not owned or lease is None:
            return Rewrite(record.key, value, self._owner, record.mod_revision, lease, self.ttl)
        if not lease:
            return None
        if not state.ttl or now >= self._due:
            return Renew(lease)
        self._wake = self._due
        return None

    def _widened(self, record: Lease, attributes: Attributes) -> str | None:
        """The key to move to when the network has got a family that the record lacks."""
        network = self._network
        if network is None or self._trial or all(record.subnet(family) for family in network.families):
            return None
        choice = self._choice(network, {**self._cluster.leases, record.key: record}, attributes)
        if choice is None or choice.lease is not record:
            return None
        used = ((self.state.v4, choice.v4), (self.state.v6, choice.v6))
        return choice.key if all(have in (None, chosen) for have, chosen in used) else None

    def _try(self, attributes: Attributes) -> Request | None:
        """Once the watch has shown our record and all before it: use its subnets, or yield those that overlap."""
        state, record, cluster = self.state, self._record, self._cluster
        assert record is not None
        if cluster.revision < record.create_revision:
            return None
        lost = {family for family in (4, 6) if self._rival(record, record.v4 if family == 4 else record.v6)}
        if not lost:
            self._trial = False
            state.v4, state.v6 = state.v4 or record.v4, state.v6 or record.v6
            self._hold()
            return None
        rest = msgspec.structs.replace(
            record, v4=None if 4 in lost else record.v4, v6=None if 6 in lost else record.v6
        )
        network = self._network
        choice = self._choice(network, {**cluster.leases, record.key: rest}, attributes) if network else None
        if choice is not None and choice.lease is rest:
            key = choice.key
        elif self.holds:
            key = schema.subnet_key(state.v4, state.v6)
        else:
            return Drop(record.key, record.mod_revision)
        value = self._render(attributes, record)
        return Move(record.key, record.mod_revision, key, value, self._owner, record.lease_id, self.ttl)

    def _rival(self, record: Lease, subnet: str | None) -> Lease | None:
        """An earlier record of another node that overlaps a subnet of ours which is not in use yet."""
        if subnet is None or subnet in (self.state.v4, self.state.v6) or record.node_id != self._id:
            return None
        cluster = self._cluster
        earlier = (
            lease
            for lease in cluster.leases.values()
            if lease.create_revision < record.create_revision
            and lease.key != record.key
            and lease.node_id != self._id
            and lease.key not in cluster.withheld
        )
        return allocate.overlaps(subnet, earlier)

    def _render(self, attributes: Attributes, previous: Lease | None) -> bytes:
        return schema.lease_value(*attributes, previous=previous.raw if previous is not None else b"")

    # ------------------------------------------------------------------------------------------- answers

    def done(self, answer: Answer, now: float) -> None:
        """The answer to the request that `next` gave."""
        request, self._pending = self._pending, None
        assert request is not None
        self._wake = now
        if isinstance(answer, Failed):
            self._failed(request, answer, now)
            return
        self._failures = 0
        if self.state.state in ("held", "claiming"):
            self.state.problem = ""
        match answer:
            case Written():
                self._written(request, answer, now)
            case Renewed(ttl):
                self._renewed(ttl, now)
            case Gone():
                self._question(self.state.key)
            case Record():
                self._read(request, answer, now)

    def _failed(self, request: Request, answer: Failed, now: float) -> None:
        state = self.state
        self._failures += 1
        last = BACKOFF_LAST
        if state.state == "held" and state.ttl:
            last = min(last, max(1.0, state.ttl / 10))
        self._wake = now + self._jittered(min(last, BACKOFF_FIRST * 2.0 ** min(self._failures - 1, 20)))
        state.problem = answer.error
        if state.state == "held" and state.expires and now > state.expires:
            state.problem = f"the lease may have expired, etcd has not answered for its TTL of {state.ttl} s"
        if isinstance(request, Inspect) or (answer.unknown and isinstance(request, Claim | Rewrite | Move)):
            self._question(request.key)

    def _written(self, request: Request, answer: Written, now: float) -> None:
        if isinstance(request, Drop):
            self._forget()
            return
        assert isinstance(request, Claim | Rewrite | Move)
        created = answer.revision
        if isinstance(request, Rewrite) and self._record is not None:
            created = self._record.create_revision
        kv = KeyValue(request.key, request.value, created, answer.revision, 0, answer.lease)
        lease = schema.parse_lease(request.key, kv, self._name, self._id)
        assert isinstance(lease, Lease)
        if answer.ttl:
            self._granted.add(answer.lease)
        self._adopt(lease)
        if answer.ttl:
            self._renewed(answer.ttl, now)

    def _renewed(self, ttl: int, now: float) -> None:
        state = self.state
        state.ttl, state.renewed, state.expires = ttl, now, now + ttl
        self._due = now + ttl / 3 * (0.9 + self._rng.random() / 10)

    def _read(self, request: Request, answer: Record, now: float) -> None:
        """A record as etcd has it: asked for, or shown by a write whose guard failed."""
        key = request.old if isinstance(request, Move) else request.key if not isinstance(request, Renew) else ""
        lease = answer.lease
        if isinstance(request, Move):
            self._refuse(request.key, now)
        if lease is not None and self._is_ours(lease):
            self._adopt(lease)
        elif not self.holds:
            self._forget()
            if isinstance(request, Claim):
                self._refuse(key, now)
        elif key != self.state.key:
            self._question(self.state.key)  # a move that was not carried out
        elif lease is not None or answer.unreadable:
            self._conflict(self._writer(lease))
            self._detach()
            self._record = None
            self._wake = now + self._jittered(RECHECK)
        else:
            self._vanished(now)

    def _is_ours(self, lease: Lease) -> bool:
        """Whether a record that we may not have written is ours all the same."""
        if lease.raw in self._values:
            return lease.node_id in ("", self._id)
        if lease.node_id and lease.node_id != self._id:
            return False
        if not lease.node_id and lease.node and lease.node != self._name:
            return False
        if lease.node_id or lease.node:
            # By its owner it is. But once we have written it, another address in it is another agent with our id.
            return not self._values or self._same_address(lease)
        # No owner record: flannel's rule. Once we have held it, not on another etcd lease: a flanneld on this host
        # would go on writing the record.
        return self._same_address(lease) and (not self.holds or lease.lease_id in (0, self.state.lease_id))

    def _same_address(self, lease: Lease) -> bool:
        ours = self._attributes
        return ours is not None and (lease.public_ip, lease.public_ip6) == (ours.public_ip, ours.public_ip6)

    def _refuse(self, key: str, now: float) -> None:
        """Somebody was faster: choose another subnet, after a moment, so that many racers spread out."""
        parsed = schema.parse_subnet_key(key)
        if not isinstance(parsed, str):
            held = (self.state.v4, self.state.v6) if self.holds else ()
            self._avoid.update(subnet for subnet in parsed if subnet is not None and subnet not in held)
        self._races += 1
        self._wake = now + self._jittered(min(RACE_LAST, RACE_FIRST * 2.0 ** min(self._races, 10)))

    # --------------------------------------------------------------------------------------------- states

    def _adopt(self, lease: Lease) -> None:
        """This record is ours. Subnets in it that are not in use yet are on trial first."""
        state = self.state
        if lease.lease_id != state.lease_id or not lease.lease_id:
            state.ttl, state.renewed, state.expires = 0, 0.0, 0.0  # not known: renewed at once
        state.key, state.lease_id, state.reservation = lease.key, lease.lease_id, not lease.lease_id
        state.create_revision, state.mod_revision = lease.create_revision, lease.mod_revision
        self._record = lease
        self._values.add(lease.raw)
        self._doubts.clear()
        self._trial = any(subnet not in (None, state.v4, state.v6) for subnet in (lease.v4, lease.v6))
        if self.holds or not self._trial:
            self._hold()

    def _hold(self) -> None:
        """There are subnets to use, and their record is ours."""
        self.state.state, self.state.problem = "held", ""
        self._races = 0
        self._avoid.clear()
        for code in ("lease-lost", "lease-conflict", "subnets-exhausted"):
            self._findings.pop(code, None)
        self._review()

    def _detach(self) -> None:
        """The record is not ours now: what of it was on trial is not wanted again, only what is in use."""
        self._trial = False
        self.state.key = schema.subnet_key(self.state.v4, self.state.v6)

    def _forget(self) -> None:
        """We have no record, and no subnet in use."""
        self._record, self._trial = None, False
        self.state.key, self.state.lease_id, self.state.mod_revision = "", 0, 0

    def _vanished(self, now: float) -> None:
        """No record under our key."""
        self._detach()
        state = self.state
        if obstacle := self._obstacle():
            self._conflict(obstacle)
            self._wake = now + self._jittered(RECHECK)
            return
        self._findings.pop("lease-conflict", None)
        state.state = "lost"
        state.problem = "the record of this node's subnet is gone from etcd; it is being claimed again"
        self._note(
            "lease-lost",
            state.key,
            state.problem,
            remedy="nothing needs to be done if this passes; find out who deleted it, or for how long etcd was away",
        )

    def _conflict(self, reason: str) -> None:
        state = self.state
        state.state, state.problem = "conflict", reason
        self._findings.pop("lease-lost", None)
        self._note(
            "lease-conflict",
            state.key,
            f"{reason}; this node keeps its subnet and its routes and writes nothing until that is gone",
            severity="error",
            remedy="stop the one that does not belong there; to give this host a new subnet, stop its containers and "
            f"netagent, run `netagent lease release --node {self._name}` on it and start netagent",
        )

    def _writer(self, lease: Lease | None) -> str:
        """Who wrote our record, in words."""
        same = lease is not None and self._same_address(lease)
        return writer(self.state.key, lease, ours=self._id, here=same)

    def _note(self, code: str, subject: str, message: str, *, severity: Any = "warning", remedy: str = "") -> None:
        self._findings[code] = Finding(code=code, subject=subject, message=message, severity=severity, remedy=remedy)

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.5 + self._rng.random() / 2)


def _same_subnets(lease: Lease, state: LeaseState) -> bool:
    """Whether the record holds our subnet: in every family that both have, and in one at least."""
    pairs = [(a, b) for a, b in ((lease.v4, state.v4), (lease.v6, state.v6)) if a is not None and b is not None]
    return bool(pairs) and all(a == b for a, b in pairs)
