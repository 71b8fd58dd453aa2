"""The node at work: follow the cluster, hold a lease, plan, reconcile, run services, as one tree of tasks.

Rules that hold here: records, facts and settings come in; kernel objects go to the reconciler under an owner each
("host", "base/<backend>", "peer/<lease key>", "service/..."); nothing here waits for one object. Work per lease
event is O(1); only a new network, new facts or a resync plan every peer again. What is known keeps forwarding: an
etcd outage, a lost lease or a bad configuration changes nothing in the kernel. A subnet is never changed under
running containers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from netagent import __version__, config, subnet_env, views
from netagent.config import Settings
from netagent.contract import RANK_BASE, RANK_PEER, Backend, Context
from netagent.errors import ConfigError
from netagent.identity import Identity
from netagent.kernel.base import Host
from netagent.kernel.interface import Choice, choose
from netagent.leasing import Leasing
from netagent.model import Finding, Lease, Link, Network, Node, NodeRecord, Sysctl
from netagent.plan import compose, hostplan
from netagent.plan.cluster import WITHHOLD, Cluster, ClusterChange
from netagent.plan.compose import Composer, Standing
from netagent.plan.lease_session import Attributes
from netagent.reconcile import Reconciler
from netagent.registry import Registry
from netagent.services import Port, Runner
from netagent.snapshot import SnapshotFile
from netagent.status import ObjectView, Peer, Status, Step
from netagent.store.base import Store
from netagent.store.follow import FollowState, Resync, follow

log = logging.getLogger(__name__)

# How long the first listing may take before an earlier run's snapshot is used (seconds).
SNAPSHOT_AFTER = 1.0
# A backend that no peer announces any more may still be used by a peer that has not read our record yet.
RETIRE_AFTER = 5.0
# Between two looks at what on this host hinders traffic (foreign firewalls say nothing when they change, in part).
INSPECT_EVERY = 60.0

# Settings that take effect on SIGHUP; the others need a restart, which loses no packet either.
RELOADABLE = frozenset(
    {
        "iface",
        "iface_regex",
        "iface_can_reach",
        "public_ip",
        "public_ipv6",
        "ip_masq",
        "firewall_integrate",
        "lease_ttl",
        "alive_ttl",
        "log_level",
    }
)


class PeerState(msgspec.Struct):
    """What the agent remembers of a remote lease: how it is reached, and the state last seen with its time."""

    plan: compose.Peer
    since: float = 0.0
    word: str = ""

    def observe(self, word: str) -> float:
        """Since when the peer has been in this state (unix seconds)."""
        if word != self.word:
            self.word, self.since = word, time.time()
        return self.since


class Agent:
    """One node. `run` until cancelled; `status`, `peers`, ... answer from memory (status.AgentView)."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        store: Store,
        host: Host,
        registry: Registry,
        load: Callable[[], Settings],
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.store = store
        self.host = host
        self.registry = registry
        self._load = load
        self.started = time.time()
        self.first_pass = asyncio.Event()  # the base stands and the peers known by then were tried
        self.reconciler = Reconciler(host)
        self.cluster = Cluster(settings.etcd_prefix)
        self.follower = follow(store, settings.etcd_prefix + "/", on_state=self._store_changed)
        self.connected_since = 0.0  # unix seconds of the last change
        self.snapshot = SnapshotFile(settings.state_dir / "snapshot", self.cluster.dump)
        self.leasing = Leasing(store, settings, identity, self.cluster, self._lease_changed)
        self.facts = host.facts()
        self.choice: Choice | None = None
        self.network: Network | None = None  # in force: the last good one whose backend could be used
        self.network_error = ""
        self.composer: Composer | None = None
        self.peer_states: dict[str, PeerState] = {}
        self.runners: dict[str, Runner] = {}
        self.source = "none"  # of the records in force: "etcd", "snapshot"
        self.snapshot_time = 0.0  # unix seconds of the snapshot in force
        self._backend: Backend | None = None
        self._options: object = None
        self._previous: Standing | None = None
        self._retirement: asyncio.TimerHandle | None = None
        self._shared: Mapping[str, str] = {}
        self._subnets: tuple[str | None, str | None, str] = (None, None, "")
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self._base_ready = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------------------------------- tasks

    async def run(self) -> None:
        """Until cancelled. Then services run on and the kernel stays as it is."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in (
                    ("reconcile", self.reconciler.run()),
                    ("follow", self._follow()),
                    ("lease", self.leasing.run()),
                    ("facts", self._watch_facts()),
                    ("start", self._start()),
                    ("inspect", self._inspect()),
                    ("snapshot", self.snapshot.run()),
                ):
                    tasks.create_task(work, name=name)
        finally:
            for runner in self.runners.values():
                await runner.leave()

    async def _follow(self) -> None:
        """Fold what etcd says into the cluster's view; while it says nothing, use an earlier run's snapshot."""
        waiting = asyncio.get_running_loop().call_later(SNAPSHOT_AFTER, self._restore)
        try:
            async for item in self.follower:
                waiting.cancel()
                self.source = "etcd"
                self._take(self.cluster.apply(item))
                self.snapshot.touch()
        finally:
            waiting.cancel()

    def _restore(self) -> None:
        data = self.snapshot.read()
        if data is None:
            return
        change = self.cluster.load(data)
        self._findings["snapshot"] = change.findings
        if self.cluster.network is not None:
            log.warning("etcd does not answer yet: going on with the records of an earlier run")
            self.source, self.snapshot_time = "snapshot", self.snapshot.age()
            self.leasing.presume()
        self._take(change)

    async def _watch_facts(self) -> None:
        """Links, addresses or foreign routes changed: choose the interface again and plan again."""
        while True:
            await self.reconciler.facts_changed.wait()
            self.reconciler.facts_changed.clear()
            facts = self.host.facts()
            if facts != self.facts:
                self.facts = facts
                self._replan()
            self.reconciler.retry()

    async def _start(self) -> None:
        """When subnet and base stand and the known peers were tried once: tell the world, and tidy up."""
        await self._base_ready.wait()
        await self.reconciler.settled()
        for runner in self.runners.values():
            await runner.settled()
        self.first_pass.set()
        self._write_env()
        self.reconciler.release_stale()

    async def _inspect(self) -> None:
        """Look for what on this host hinders the network's traffic, now and then and when facts change."""
        await self.first_pass.wait()
        while True:
            if self.composer is not None and self.network is not None:
                prefixes = [p for p in (self.network.v4, self.network.v6) if p is not None]
                self._findings["host"] = tuple(self.host.findings(prefixes, self.composer.ports))
            await asyncio.sleep(INSPECT_EVERY)

    # ------------------------------------------------------------------------------------------- records

    def _take(self, change: ClusterChange) -> None:
        """Plan what a change of the cluster's records asks for: all of it, or the leases that changed."""
        self._findings["cluster"] = self.cluster.findings()
        if change.config_changed:
            self._consider_network()
        if change.withheld:
            asyncio.get_running_loop().call_later(WITHHOLD, self._release_withheld)
        self.leasing.observe(change)
        if change.whole:
            self._replan()
        elif self.composer is not None and (change.leases_changed or change.leases_removed):
            self._plan_peers(change.leases_changed.values(), change.leases_removed)
        if change.nodes_changed:
            for runner in self.runners.values():
                runner.nodes(self.cluster.nodes)

    def _store_changed(self, state: FollowState) -> None:
        """The connection to etcd was lost or found again."""
        self.connected_since = time.time()
        if state.connected:
            log.info("etcd answers")
        else:
            log.warning("etcd is lost: %s; what is known stays in force", state.error)

    def _release_withheld(self) -> None:
        self._take(self.cluster.release())

    def _consider_network(self) -> None:
        """Put a new network configuration in force, if its backend can be used; else the last good one stays."""
        network = self.cluster.network
        if network is None or network == self.network:
            return
        try:
            backend = self.registry[network.backend.type]
            options = backend.options(network.backend.options)
        except ConfigError as error:
            self.network_error = str(error)
            log.error("the new network configuration is not in force: %s", error)
            return
        self.network_error = ""
        self._findings["backend"] = options.findings
        self.network = network
        self._put_in_force(backend, options.value)

    # ------------------------------------------------------------------------------------------- planning

    def _put_in_force(self, backend: Backend, options: object) -> None:
        """Plan with this backend and these options from now on; the present one stands beside it for a while."""
        self._backend, self._options = backend, options
        if self.composer is not None:
            active = self.composer.active
            if (active.backend, active.context.options) != (backend, options):
                self._previous = active
        assert self.network is not None
        prefixes = " and ".join(p for p in (self.network.v4, self.network.v6) if p)
        log.info("the network %s over %s is in force", prefixes, backend.name)
        self._replan()

    def _replan(self) -> None:
        """Everything anew: network, context or facts changed, or the records were compared as a whole."""
        if self.network is None or self._backend is None or not self._choose_interface():
            return
        assert self.choice is not None
        state = self.leasing.state
        node = Node(
            name=self.identity.name,
            id=self.identity.id,
            uplink=self.choice.interface,
            mtu=self.choice.mtu,
            public_ip=self.choice.public_ip,
            public_ip6=self.choice.public_ip6,
            local_ip=self.choice.local_ip,
            local_ip6=self.choice.local_ip6,
            v4=state.v4,
            v6=state.v6,
        )
        context = Context(network=self.network, options=self._options, node=node, facts=self.facts)
        previous = self._previous
        if previous is not None:
            # The previous backend follows the node's changes too, with its own options.
            kept = msgspec.structs.replace(context, options=previous.context.options)
            previous = Standing(previous.backend, kept)
        self.composer = Composer(Standing(self._backend, context), previous)
        self._publish(context)
        self._plan_base()
        self._run_services()
        self._plan_peers(self.cluster.leases.values(), self.peer_states.keys() - self.cluster.leases.keys())
        if self.leasing.holds:
            self._base_ready.set()
        if self.first_pass.is_set():
            self._write_env()

    def _choose_interface(self) -> bool:
        """Whether there is an interface to reach the peers by; if not, why not becomes a finding."""
        assert self.network is not None
        try:
            choice = choose(self.facts, self.settings, self.network, self.host.route_to)
        except ConfigError as error:
            # An interface that carries the network already stays chosen: it may only be down for a while.
            self._findings["interface"] = (
                Finding(
                    code="no-interface",
                    subject=self.identity.name,
                    severity="error",
                    message=str(error),
                    remedy="bring the interface up, or name another with --iface",
                ),
            )
            return self.choice is not None
        self._findings["interface"] = ()
        if choice != self.choice:
            log.info("interface %s: %s", choice.interface, choice.why)
        self.choice = choice
        return True

    def _publish(self, context: Context) -> None:
        """What our own lease says of us."""
        assert self._backend is not None
        node, data = context.node, self._backend.lease(context)
        self.leasing.publish(Attributes(node.public_ip, node.public_ip6, data.type, data.data, data.data6))
        self._describe()

    def _describe(self) -> None:
        """The node's own record, which the others' services read."""
        assert self.composer is not None
        node = self.composer.active.context.node
        record = NodeRecord(
            name=node.name,
            id=node.id,
            version=__version__,
            addresses=tuple(a for a in (node.public_ip, node.public_ip6) if a is not None),
            capabilities=tuple(sorted(self.registry)),
            attributes=self._shared,
        )
        self.leasing.describe(record)

    async def _share(self, attributes: Mapping[str, str]) -> None:
        """What a service publishes of this node."""
        self._shared = {**self._shared, **attributes}
        self._describe()

    def _plan_base(self) -> None:
        composer, network = self.composer, self.network
        assert composer is not None
        assert network is not None
        bases = composer.base()
        links = [obj for base in bases for obj in base.plan.objects if isinstance(obj, Link)]
        wanted = {base.owner for base in bases}
        for base in bases:
            self.reconciler.put(base.owner, base.plan.objects, base.rank)
        for owner in self.reconciler.owners("base/"):
            if owner not in wanted:
                self.reconciler.drop(owner)
        settings = self.settings
        host = hostplan.host_base(
            network,
            composer.active.context.node,
            self.facts,
            ip_masq=settings.ip_masq,
            ports=composer.ports,
            links=links,
            direct=any(s.backend.direct(s.context.options) for s in composer.standing),
            firewall_integrate=settings.firewall_integrate,
            sysctls=self._present_sysctls(hostplan.observed(network, self.facts)),
            table=settings.firewall_table,
        )
        self.reconciler.put("host", host.objects, RANK_BASE)
        self._findings["base"] = (*host.findings, *(f for base in bases for f in base.plan.findings))

    def _present_sysctls(self, names: Iterable[str]) -> dict[str, str]:
        found = self.host.dump(("sysctl",), [Sysctl(name, "") for name in names])
        return {obj.name: obj.value for obj in found if isinstance(obj, Sysctl)}

    def _plan_peers(self, leases: Iterable[Lease], gone: Iterable[str]) -> None:
        """Plan these remote leases, and forget those that went."""
        composer = self.composer
        if composer is None:
            return
        own, outside, names = self.leasing.state.key, self.cluster.outside, self._standing_names()
        guarded = bool(composer.ports)
        changed: dict[str, dict[str, Lease]] = {name: {} for name in names}
        removed: dict[str, list[str]] = {name: [] for name in names}
        for lease in leases:
            key = lease.key
            if key == own or key in outside:
                if key in self.peer_states:
                    self._forget(key, removed)
                continue
            try:
                peer = composer.peer(lease)
            except Exception as error:  # a backend's mistake about one peer must not stop the others
                log.exception("planning %s failed", key)
                peer = compose.failed(composer.active.backend.name, lease, error)
            state = self.peer_states.get(key)
            if peer.keep and state is not None and state.plan.objects and state.plan.backend in names:
                state.plan = state.plan._replace(findings=peer.findings)
                continue
            if state is None:
                self.peer_states[key] = PeerState(peer)
            else:
                if state.plan.backend != peer.backend and state.plan.backend in removed:
                    removed[state.plan.backend].append(key)
                state.plan = peer
            objects = (*peer.objects, *hostplan.peer_elements(lease)) if guarded and peer.objects else peer.objects
            self.reconciler.put(f"peer/{key}", objects, RANK_PEER)
            changed[peer.backend][key] = lease
        for key in gone:
            self._forget(key, removed)
        for name, runner in self.runners.items():
            if changed[name] or removed[name]:
                runner.peers(changed[name], removed[name])
        if self._previous is not None and self._retirement is None:
            self._consider_retirement()

    def _forget(self, key: str, removed: dict[str, list[str]]) -> None:
        state = self.peer_states.pop(key, None)
        if state is None:
            return
        self.reconciler.drop(f"peer/{key}")
        if state.plan.backend in removed:
            removed[state.plan.backend].append(key)

    # ------------------------------------------------------------------------------------------- two backends

    def _standing_names(self) -> set[str]:
        assert self.composer is not None
        return {standing.backend.name for standing in self.composer.standing}

    def _run_services(self) -> None:
        """A runner for each standing backend; those of backends that stand no more end."""
        assert self.composer is not None
        # The active backend's context wins where both are of one backend (another VNI or port).
        standing = {s.backend.name: s for s in reversed(self.composer.standing)}
        for name, (backend, context) in standing.items():
            if name in self.runners:
                self.runners[name].configure(context)
            else:
                port = Port(name, self.reconciler, self.settings.run_dir, self.settings.state_dir, self._share)
                self.runners[name] = runner = Runner(backend, port)
                runner.start(context, {}, self.cluster.nodes)
        for name in self.runners.keys() - standing.keys():
            self._background(self.runners.pop(name).end(), f"end {name}")

    def _consider_retirement(self) -> None:
        """When no peer is reached by the previous backend any more, it goes, a while later."""
        if any(state.plan.previous for state in self.peer_states.values()):
            return
        self._retirement = asyncio.get_running_loop().call_later(RETIRE_AFTER, self._retire)

    def _retire(self) -> None:
        self._retirement = None
        if self._previous is None or any(state.plan.previous for state in self.peer_states.values()):
            return
        log.info("no peer uses %s any more: its devices go", self._previous.backend.name)
        self._previous = None
        self._replan()

    # ------------------------------------------------------------------------------------------- outcome

    def _lease_changed(self) -> None:
        """The lease session's state changed: subnets, or only what is to be said of them."""
        state = self.leasing.state
        if (state.v4, state.v6, state.key) != self._subnets:
            self._subnets = (state.v4, state.v6, state.key)
            self._replan()

    def _write_env(self) -> None:
        """subnet.env for container engines, once the subnet may be used."""
        composer, state = self.composer, self.leasing.state
        if composer is None or self.network is None or not self.leasing.holds:
            return
        mtu = composer.active.backend.mtu(composer.active.context)
        text = subnet_env.render(self.network, state.v4, state.v6, mtu, self.settings.ip_masq)
        try:
            if subnet_env.write(self.settings.subnet_file, text):
                log.info("%s written: %s, MTU %d", self.settings.subnet_file, state.v4 or state.v6, mtu)
            self._findings["subnet-file"] = ()
        except OSError as error:
            self._findings["subnet-file"] = (
                Finding(
                    code="subnet-file",
                    subject=str(self.settings.subnet_file),
                    severity="error",
                    message=f"cannot be written: {error.strerror}",
                    remedy="make its directory writable for the agent, or choose another with --subnet-file",
                ),
            )

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """A task that nobody waits for; it is kept until it ends."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------------------- views (AgentView)

    def status(self) -> Status:
        return views.status(self)

    def peers(self) -> Iterator[Peer]:
        return views.peers(self)

    def objects(self, kinds: Collection[str] = ()) -> Iterator[ObjectView]:
        return views.objects(self, kinds)

    async def plan(self) -> Sequence[Step]:
        return views.plan(self)

    def findings(self) -> Iterator[Finding]:
        """All that was found, by whoever found it."""
        for found in self._findings.values():
            yield from found
        yield from self.leasing.findings
        yield from self.reconciler.findings()
        for runner in self.runners.values():
            yield from runner.port.findings
        for state in self.peer_states.values():
            yield from state.plan.findings

    def base_stands(self) -> bool:
        """Whether every object of the host and of the active backend's base is in the kernel."""
        if self.composer is None:
            return False
        return self.reconciler.stands("host") and self.reconciler.stands(f"base/{self.composer.active.backend.name}")

    async def resync(self) -> None:
        """Dump the kernel and list the cluster's records again."""
        self.reconciler.invalidate()
        listing = await self.store.list(self.settings.etcd_prefix + "/")
        self._take(self.cluster.apply(Resync(listing)))
        await self.reconciler.settled()

    async def reload(self) -> Sequence[Finding]:
        """Read the settings again; findings about what could not be taken over."""
        try:
            settings = self._load()
        except ConfigError as error:
            finding = Finding(
                code="reload-failed",
                subject=error.where or "settings",
                severity="error",
                message=f"the settings were not read again: {error.message}",
                remedy=error.remedy,
            )
            self.note("reload", (finding,))
            return (finding,)
        changed = config.changed(self.settings, settings)
        taken = {name: getattr(settings, name) for name in changed if name in RELOADABLE}
        self.settings = msgspec.structs.replace(self.settings, **taken)
        findings = tuple(
            Finding(
                code="reload-needs-restart",
                subject=name,
                message=f"{name} takes effect when the agent is started again",
                remedy="systemctl restart netagent (no packet is lost)",
            )
            for name in changed
            if name not in RELOADABLE
        )
        self.note("reload", findings)
        self.leasing.set_ttl(self.settings.lease_ttl, self.settings.alive_ttl)
        logging.getLogger().setLevel(self.settings.log_level.upper())
        log.info("settings read again; in force: %s", ", ".join(sorted(taken)) or "no change")
        self._replan()
        return findings

    def note(self, source: str, findings: Iterable[Finding]) -> None:
        """Replace the findings of one source."""
        self._findings[source] = tuple(findings)

    def headline(self) -> str:
        """The verdict in one line."""
        return self.status().verdict.reason
