"""The cluster as this node sees it: listings and events of the store folded into leases, nodes and liveness.

Rules: pure; work per event is O(1). A malformed record is skipped with a finding and stops no other; a re-list is
compared by every attribute. A lease and its owner record are joined whichever arrives first, and only when they were
written together (else somebody rewrote the subnet key, and the record is stale). Liveness is told as liveness: it
removes nothing. The last good network configuration stays in force whatever is written after it, and when etcd's
history is lost (wiped, restored) vanished leases are withheld for a while, so that their nodes can claim them again
while packets flow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from netagent import network_config
from netagent.errors import ConfigError
from netagent.model import Finding, Lease, Network, NodeRecord
from netagent.plan import checks
from netagent.plan.checks import Checks
from netagent.store import schema
from netagent.store.base import KeyValue, Listing
from netagent.store.resume import Delta, Resync

# How long leases that vanished with etcd's history are kept for their nodes to claim them again (seconds).
WITHHOLD = 60.0

_SNAPSHOT_VERSION = 1


class ClusterChange(NamedTuple):
    """What one item of the store's stream changed. `whole`: it was a full comparison, not single events.

    `leases_changed` are those new or changed in any attribute (our own among them), `leases_removed` keys that went.
    `nodes_changed` and `alive_changed` are names. `withheld`: leases are kept that etcd no longer has; call
    `Cluster.release` after WITHHOLD seconds. `findings` are those that this item brought.
    """

    config_changed: bool = False
    leases_changed: Mapping[str, Lease] = {}
    leases_removed: tuple[str, ...] = ()
    nodes_changed: frozenset[str] = frozenset()
    alive_changed: frozenset[str] = frozenset()
    whole: bool = False
    withheld: bool = False
    findings: tuple[Finding, ...] = ()


class Cluster:
    """The view. Read `network`, `leases` (by key), `nodes` and `alive` (by node name); do not change them.

    `network` is the last good configuration, `config_error` what is wrong with the newest one ("" if nothing),
    `config_revision` that of the configuration in force, `revision` that of the last item.
    `outside` holds keys of leases outside Network, `withheld` those that etcd lost with its history.
    """

    def __init__(self, prefix: str) -> None:
        self.keys = schema.Keys(prefix)
        self.revision = 0
        self.confirmed = False  # etcd has told us the records, they are not only a snapshot's
        self.network: Network | None = None
        self.config_error = ""
        self.config_revision = 0
        self.leases: dict[str, Lease] = {}
        self.nodes: dict[str, NodeRecord] = {}
        self.alive: dict[str, schema.Owner] = {}
        self.withheld: set[str] = set()
        self._config = b""  # the last good document
        self._in_force = b"", 0  # that which the node goes by, with its revision
        self._config_findings: tuple[Finding, ...] = ()
        # With the revision and the etcd lease, which tell what it was written with.
        self._owners: dict[str, tuple[schema.Owner, int, int]] = {}
        self._malformed: dict[str, Finding] = {}  # by full key
        self._disputed: set[str] = set()  # keys rewritten since their owner record was
        self._checks = Checks()

    @property
    def outside(self) -> frozenset[str]:
        return frozenset(self._checks.outside)

    def node_of(self, address: str) -> tuple[Lease, ...]:
        """Leases whose node has this address."""
        return tuple(self.leases[name] for name in self._checks.addresses.get(address, ()))

    # -------------------------------------------------------------------------------------------- folding

    def apply(self, item: Resync | Delta) -> ClusterChange:
        """Fold one item of the follower's stream into the view."""
        self.confirmed = True
        if isinstance(item, Resync):
            rewound = item.rewound or item.listing.revision < self.revision
            self.revision = item.listing.revision
            return self._replace(item.listing, rewound)
        self.revision = item.revision
        return self._fold(item)

    def _fold(self, delta: Delta) -> ClusterChange:
        subnets: dict[str, KeyValue | None] = {}
        owners: set[str] = set()
        nodes: set[str] = set()
        alive: set[str] = set()
        findings: list[Finding] = []
        config_changed = False
        classify, malformed = self.keys.classify, self._malformed
        for deleted, kv in delta.events:
            kind, name = classify(kv.key)
            if malformed:
                malformed.pop(kv.key, None)
            if kind == "subnet":
                subnets[name] = None if deleted else kv
            elif kind == "owner":
                owners.add(name)
                self._set_owner(name, None if deleted else kv, findings)
            elif kind == "alive":
                alive.add(name)
                self._set_alive(name, None if deleted else kv, findings)
            elif kind == "node":
                nodes.add(name)
                self._set_node(name, None if deleted else kv, findings)
            elif kind == "config":
                config_changed |= self._set_config(None if deleted else kv)
            elif kind == "foreign" and not deleted:
                self._note(schema.foreign_key(kv.key), findings)
        changed: dict[str, Lease] = {}
        removed: list[str] = []
        for name, put in subnets.items():
            lease = self._read(name, put, findings)
            if lease is None:
                if self._remove(name):
                    removed.append(name)
            elif self._put(lease):
                changed[name] = lease
                self._yield_to(lease, removed)
        for name in owners - subnets.keys():
            lease = self._rejoined(name)
            if lease is not None and self._put(lease):
                changed[name] = lease
        self._dispute(owners | subnets.keys())
        self._checks.names(nodes | alive, self.nodes, self.alive)
        return ClusterChange(
            config_changed, changed, tuple(removed), frozenset(nodes), frozenset(alive), findings=tuple(findings)
        )

    def _replace(self, listing: Listing, rewound: bool) -> ClusterChange:
        self._malformed.clear()
        self._owners.clear()
        old_nodes, self.nodes = self.nodes, {}
        old_alive, self.alive = self.alive, {}
        findings: list[Finding] = []
        subnets: list[tuple[str, KeyValue]] = []
        config: KeyValue | None = None
        for kv in listing.items:
            kind, name = self.keys.classify(kv.key)
            if kind == "subnet":
                subnets.append((name, kv))
            elif kind == "owner":
                self._set_owner(name, kv, findings)
            elif kind == "alive":
                self._set_alive(name, kv, findings)
            elif kind == "node":
                self._set_node(name, kv, findings)
            elif kind == "config":
                config = kv
            elif kind == "foreign":
                self._note(schema.foreign_key(kv.key), findings)
        config_changed = self._set_config(config)
        changed: dict[str, Lease] = {}
        removed: list[str] = []
        seen: set[str] = set()
        for name, kv in subnets:
            lease = self._read(name, kv, findings)
            if lease is not None:
                seen.add(name)
                if self._put(lease):
                    changed[name] = lease
        gone = self.leases.keys() - seen
        if rewound:
            self.withheld |= gone
        for name in gone - self.withheld:
            self._remove(name)
            removed.append(name)
        for lease in changed.values():
            self._yield_to(lease, removed)
        self._dispute(self.leases.keys())
        nodes = frozenset(_differing(old_nodes, self.nodes))
        alive = frozenset(_differing(old_alive, self.alive))
        self._checks.names(nodes | alive, self.nodes, self.alive)
        return ClusterChange(
            config_changed, changed, tuple(removed), nodes, alive, True, bool(self.withheld), tuple(findings)
        )

    def release(self) -> ClusterChange:
        """Let go of the leases that their nodes did not claim again."""
        gone = tuple(name for name in tuple(self.withheld) if self._remove(name))
        return ClusterChange(leases_removed=gone)

    def _yield_to(self, lease: Lease, removed: list[str]) -> None:
        """A lease that is really there ends withheld ones that overlap it."""
        if not self.withheld:
            return
        for name in self._checks.overlapping(lease) & self.withheld:
            self._remove(name)
            removed.append(name)

    # -------------------------------------------------------------------------------------- single records

    def _read(self, name: str, kv: KeyValue | None, findings: list[Finding]) -> Lease | None:
        if kv is None:
            return None
        owner = self._owners.get(name)
        if owner is not None and owner[1] == kv.mod_revision and owner[2] == kv.lease:
            lease = schema.parse_lease(name, kv, owner[0].node, owner[0].id)
        else:
            lease = schema.parse_lease(name, kv)
        if isinstance(lease, Finding):
            self._note(lease, findings)
            return None
        return lease

    def _rejoined(self, name: str) -> Lease | None:
        """The lease with its owner record as it is now."""
        lease = self.leases.get(name)
        if lease is None:
            return None
        owner, revision, etcd_lease = self._owners.get(name, (None, 0, 0))
        if owner is None or (revision, etcd_lease) != (lease.mod_revision, lease.lease_id):
            return msgspec.structs.replace(lease, node="", node_id="")
        return msgspec.structs.replace(lease, node=owner.node, node_id=owner.id)

    def _put(self, lease: Lease) -> bool:
        """Whether anything differs."""
        name = lease.key
        old = self.leases.get(name)
        self.withheld.discard(name)
        if old == lease:
            return False
        if old is not None:
            self._checks.remove(old)
        self.leases[name] = lease
        self._checks.add(lease)
        return True

    def _remove(self, name: str) -> bool:
        old = self.leases.pop(name, None)
        self.withheld.discard(name)
        self._disputed.discard(name)
        if old is None:
            return False
        self._checks.remove(old)
        return True

    def _dispute(self, touched: Iterable[str]) -> None:
        """Mark subnet keys that were not written together with their owner record."""
        for name in touched:
            lease, owner = self.leases.get(name), self._owners.get(name)
            if lease is not None and owner is not None and (lease.mod_revision, lease.lease_id) != owner[1:]:
                self._disputed.add(name)
            else:
                self._disputed.discard(name)

    def _set_owner(self, name: str, kv: KeyValue | None, findings: list[Finding]) -> None:
        owner = None if kv is None else schema.parse_owner(kv)
        if isinstance(owner, Finding):
            self._note(owner, findings)
        if kv is None or not isinstance(owner, schema.Owner):
            self._owners.pop(name, None)
        else:
            self._owners[name] = (owner, kv.mod_revision, kv.lease)

    def _set_alive(self, name: str, kv: KeyValue | None, findings: list[Finding]) -> None:
        owner = None if kv is None else schema.parse_alive(kv)
        if isinstance(owner, schema.Owner):
            self.alive[name] = owner
        else:
            self.alive.pop(name, None)
            if owner is not None:
                self._note(owner, findings)

    def _set_node(self, name: str, kv: KeyValue | None, findings: list[Finding]) -> None:
        record = None if kv is None else schema.parse_node(name, kv)
        if isinstance(record, NodeRecord):
            self.nodes[name] = record
        else:
            self.nodes.pop(name, None)
            if record is not None:
                self._note(record, findings)

    def _note(self, finding: Finding, findings: list[Finding]) -> None:
        self._malformed[finding.subject] = finding
        findings.append(finding)

    def _set_config(self, kv: KeyValue | None) -> bool:
        """Whether the configuration in force, or what is wrong with the newest, changed."""
        before = (self.network, self.config_error, self._config_findings)
        if kv is None:
            self.config_error = (
                "" if self.network is None else f"{self.keys.config} is gone; the last one stays in force"
            )
        else:
            try:
                parsed = network_config.parse(kv.value, self.keys.config)
            except ConfigError as error:
                self.config_error = str(error)
            else:
                self.network, self._config_findings = parsed
                self.config_error = ""
                self._config, self.config_revision = kv.value, kv.mod_revision
                if before[0] != self.network:
                    self._checks.network(self.network, self.leases.values())
        return before != (self.network, self.config_error, self._config_findings)

    # -------------------------------------------------------------------------------------------- findings

    def findings(self) -> tuple[Finding, ...]:
        """All that is wrong with the records now. Cheap while little is wrong."""
        config: tuple[Finding, ...] = ()
        if self.config_error:
            config = (
                Finding(
                    code="config-invalid",
                    subject=self.keys.config,
                    severity="error",
                    message=self.config_error,
                    remedy="check it with `netagent config check FILE` and write it with `netagent init --force`",
                ),
            )
        return (
            *config,
            *self._config_findings,
            *islice(self._malformed.values(), checks.SHOWN),
            *self._more(),
            *(
                checks.disputed(self.leases[name], self._owners[name][0])
                for name in sorted(self._disputed)[: checks.SHOWN]
            ),
            *self._checks.findings(self.network, self.leases, self.nodes, self.alive),
            *(_withheld(self.leases[name]) for name in sorted(self.withheld)[: checks.SHOWN]),
        )

    def _more(self) -> Iterator[Finding]:
        """How many are not told one by one."""
        for code, count in (
            ("lease-malformed-value", len(self._malformed)),
            ("lease-two-owners", len(self._disputed)),
            ("lease-withheld", len(self.withheld)),
        ):
            if count > checks.SHOWN:
                yield checks.more(code, count - checks.SHOWN)

    # -------------------------------------------------------------------------------------------- on disk

    def put_in_force(self) -> None:
        """`network` is what the node goes by: the snapshot has it until there is another that can be followed."""
        self._in_force = self._config, self.config_revision

    def dump(self) -> bytes:
        """The view for the snapshot on disk: a line with version and checksum, then JSON."""
        config, config_revision = self._in_force if self._in_force[0] else (self._config, self.config_revision)
        payload = msgspec.json.encode(
            _Snapshot(
                prefix=self.keys.prefix,
                revision=self.revision,
                config=config,
                config_revision=config_revision,
                leases=[
                    (x.key, x.raw, x.lease_id, x.create_revision, x.mod_revision, x.node, x.node_id)
                    for x in self.leases.values()
                ],
                nodes=list(self.nodes.values()),
            )
        )
        head = f"netagent-snapshot {_SNAPSHOT_VERSION} {hashlib.sha256(payload).hexdigest()}\n"
        return head.encode() + payload

    def load(self, data: bytes) -> ClusterChange:
        """Take over a snapshot into an empty view. A damaged or foreign one changes nothing and is a finding."""
        snapshot = _decode_snapshot(data, self.keys.prefix)
        if isinstance(snapshot, str):
            finding = Finding(
                code="snapshot-unusable",
                subject="snapshot",
                message=f"the snapshot of an earlier run is ignored: {snapshot}",
                remedy="nothing needs to be done: it is written anew once etcd answers",
            )
            return ClusterChange(findings=(finding,))
        self.revision = snapshot.revision
        findings: list[Finding] = []
        config_changed = self._recall(snapshot)
        changed: dict[str, Lease] = {}
        for name, raw, lease_id, create, mod, node, node_id in snapshot.leases:
            if node:
                self._owners[name] = (schema.Owner(node, node_id), mod, lease_id)
            kv = KeyValue(self.keys.subnet(name), raw, create, mod, 0, lease_id)
            lease = self._read(name, kv, findings)
            if lease is not None and self._put(lease):
                changed[name] = lease
        self.nodes = {record.name: record for record in snapshot.nodes}
        return ClusterChange(
            config_changed, changed, nodes_changed=frozenset(self.nodes), whole=True, findings=tuple(findings)
        )

    def recall(self, data: bytes) -> ClusterChange:
        """Take over a snapshot's configuration alone, into an empty view: the last good one, should etcd's be bad."""
        snapshot = _decode_snapshot(data, self.keys.prefix)
        return ClusterChange(config_changed=not isinstance(snapshot, str) and self._recall(snapshot))

    def _recall(self, snapshot: _Snapshot) -> bool:
        if not snapshot.config:
            return False
        kv = KeyValue(self.keys.config, snapshot.config, mod_revision=snapshot.config_revision)
        changed = self._set_config(kv)
        self.put_in_force()
        return changed


class _Snapshot(msgspec.Struct):
    prefix: str
    revision: int
    config: bytes
    config_revision: int
    leases: list[tuple[str, bytes, int, int, int, str, str]]
    nodes: list[NodeRecord]


def _decode_snapshot(data: bytes, prefix: str) -> _Snapshot | str:
    """The snapshot, or why it cannot be used."""
    head, _, payload = data.partition(b"\n")
    words = head.split(b" ")
    if len(words) != 3 or words[0] != b"netagent-snapshot":
        return "it is not a snapshot"
    if words[1] != str(_SNAPSHOT_VERSION).encode():
        return f"its version is {words[1][:20]!r}, this agent reads {_SNAPSHOT_VERSION}"
    if words[2] != hashlib.sha256(payload).hexdigest().encode():
        return "its checksum is wrong: it is damaged or cut off"
    try:
        snapshot = msgspec.json.decode(payload, type=_Snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"it cannot be read: {error}"
    if snapshot.prefix != prefix:
        return f"it is of another prefix, {snapshot.prefix}"
    return snapshot


def _withheld(lease: Lease) -> Finding:
    return Finding(
        code="lease-withheld",
        subject=lease.key,
        message=f"etcd lost its history and with it the lease of {lease.label}; its path is kept for a while",
        remedy="nothing needs to be done if the node is up: it claims the subnet again",
    )


def _differing(old: Mapping[str, object], new: Mapping[str, object]) -> set[str]:
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
