"""The node at work: follow the cluster, hold a lease, plan, reconcile, run services, as one tree of tasks.

Rules that hold here: records, facts and settings come in; kernel objects go to the reconciler under an owner each
("host", "base/<backend>", "peer/<lease key>", "service/..."); nothing here waits for one object. Work per lease
event is O(1); only a new network, new facts or a resync plan every peer again. What is known keeps forwarding: an
etcd outage, a lost lease or a bad configuration changes nothing in the kernel. A subnet is never changed under
running containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from netagent import __version__, config, subnet_env, views
from netagent.config import Settings
from netagent.contract import Answer
from netagent.errors import ConfigError, KernelError
from netagent.identity import Identity
from netagent.kernel.base import Host
from netagent.kernel.interface import Choice, choose
from netagent.leasing import Leasing
from netagent.model import Facts, Family, Finding, Lease, Network, Node, NodeRecord, Sysctl
from netagent.plan import hostplan
from netagent.plan.cluster import WITHHOLD, Cluster, ClusterChange
from netagent.plan.compose import Announced, Composer, Use
from netagent.plan.lease_session import Attributes
from netagent.planning import Changeover, HostOptions, Planning
from netagent.reconcile import Reconciler
from netagent.registry import Registry
from netagent.services import Port
from netagent.snapshot import SnapshotFile
from netagent.status import ObjectView, Peer, Status, Step
from netagent.store.base import Store
from netagent.store.follow import FollowState, Resync, follow

log = logging.getLogger(__name__)

# How long the first listing may take before an earlier run's snapshot is used (seconds).
SNAPSHOT_AFTER = 1.0
# A first claim takes milliseconds, and then everything is planned anew: so long the peers wait for it (seconds).
CLAIM_TIME = 1.0
FACTS_AGAIN = 0.5  # seconds
CHANGEOVER_SPACING = 1.0  # seconds; the file is small
# Between two looks at what on this host hinders traffic (foreign firewalls say nothing when they change, in part).
INSPECT_EVERY = 60.0
INSPECT_AFTER = 0.2

# Settings that take effect on SIGHUP; the others need a restart, which loses no packet either.
RELOADABLE = frozenset(
    {
        "iface",
        "iface_regex",
        "iface_can_reach",
        "public_ip",
        "public_ipv6",
        "labels",
        "ip_masq",
        "firewall_integrate",
        "lease_ttl",
        "alive_ttl",
        "log_level",
    }
)


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
        self.changeover = SnapshotFile(settings.state_dir / "changeover", self._dump_changeover, CHANGEOVER_SPACING)
        self.leasing = Leasing(store, settings, identity, self.cluster, self._lease_changed)
        self.facts = host.facts()
        self.choice: Choice | None = None
        self.network: Network | None = None  # in force: the last good one whose backend could be used
        self.network_error = ""
        self._refused: Network | None = None  # the newest, if its backend cannot be used
        self.planning = Planning(self.reconciler, self._port, self._replan)
        self.source = "none"  # of the records in force: "etcd", "snapshot"
        self.snapshot_time = 0.0  # unix seconds of the snapshot in force
        self._shared: Mapping[str, str] = {}
        self._subnets: tuple[str | None, str | None, str] = (None, None, "")
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self._places: list[tuple[str, Family]] = []
        self._base_ready = asyncio.Event()
        self._network_since = 0.0  # of the monotonic clock: when the first network came in force

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
                    ("changeover", self.changeover.run()),
                ):
                    tasks.create_task(work, name=name)
        finally:
            await self.planning.leave()

    async def _follow(self) -> None:
        """Fold what etcd says into the cluster's view; while it says nothing, use an earlier run's snapshot."""
        waiting = asyncio.get_running_loop().call_later(SNAPSHOT_AFTER, self._restore)
        try:
            async for item in self.follower:
                waiting.cancel()
                self._recall()
                self.source = "etcd"
                self._take(self.cluster.apply(item))
                self.snapshot.touch()
        finally:
            waiting.cancel()

    def _recall(self) -> None:
        """Before the first listing: the network that was in force. etcd's may be bad by now, or exclude our subnet.
        Containers may be using that, and its lease must be renewed."""
        if self.source == "none" and self.leasing.holds and (data := self.snapshot.read()) is not None:
            self.leasing.observe(self.cluster.recall(data))

    def _restore(self) -> None:
        data = self.snapshot.read()
        if data is None:
            return
        change = self.cluster.load(data)
        self._findings["snapshot"] = change.findings
        if self.cluster.network is not None:
            log.warning("etcd does not answer yet: going on with the records of an earlier run")
            self.source, self.snapshot_time = "snapshot", self.snapshot.written()
            self.leasing.presume()
        self._take(change)

    async def _watch_facts(self) -> None:
        """Links, addresses or foreign routes changed: choose the interface again and plan again."""
        while True:
            await self.reconciler.facts_changed.wait()
            self.reconciler.facts_changed.clear()
            try:
                facts = self.host.facts()
            except OSError as error:
                log.warning("the host's links and addresses cannot be read, trying again: %s", error)
                asyncio.get_running_loop().call_later(FACTS_AGAIN, self.reconciler.facts_changed.set)
                continue
            if facts != self.facts:
                # Our own devices come and go with our own plans: they change what the host needs, but no peer's path.
                others = _of_others(facts) != _of_others(self.facts)
                self.facts = facts
                self._replan(peers=others)
            self.reconciler.retry()

    async def _start(self) -> None:
        """When subnet and base stand and the known peers were tried once: tell the world, and tidy up."""
        await self._base_ready.wait()
        await self.planning.settled()
        while not self.base_stands():
            self.reconciler.applied.clear()
            await self.reconciler.applied.wait()
        self.first_pass.set()
        self._write_env()
        self.reconciler.release_stale()

    async def _inspect(self) -> None:
        """Look for what on this host hinders the traffic: now and then, and when others' firewalls change."""
        await self.first_pass.wait()
        while True:
            await self._look_around()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INSPECT_EVERY):
                    await self.reconciler.others_changed.wait()
                    # A tool that sets up its firewall does so in many steps.
                    await asyncio.sleep(INSPECT_AFTER)
            self.reconciler.others_changed.clear()

    async def _look_around(self) -> None:
        """What other tools' firewalls do to the network's traffic, and where they take an accept of ours."""
        composer, network = self.planning.composer, self.network
        if composer is None or network is None:
            return
        try:
            if self.settings.firewall_integrate and (places := self.host.places()) != self._places:
                self._places = places
                self._replan(peers=False)
            await self.reconciler.settled()
            prefixes = [prefix for prefix in (network.v4, network.v6) if prefix is not None]
            self.note("host", self.host.findings(prefixes, composer.inbound))
        except KernelError as error:
            log.warning("the firewalls of this host cannot be read: %s", error)
        # Not every setting tells when it is changed.
        self.reconciler.invalidate(("sysctl", "offload"))

    # ------------------------------------------------------------------------------------------- records

    def _take(self, change: ClusterChange) -> None:
        """Plan what a change of the cluster's records asks for: all of it, or the leases that changed."""
        self.leasing.observe(change)
        whole = self._consider_network() or change.whole
        if change.withheld:
            asyncio.get_running_loop().call_later(WITHHOLD, self._release_withheld)
        if whole:
            self._replan()
        elif self.planning.composer is not None and (change.leases_changed or change.leases_removed):
            self._plan_peers(change.leases_changed.values(), change.leases_removed)
        if change.nodes_changed:
            self.planning.nodes(self.cluster.nodes)

    def _store_changed(self, state: FollowState) -> None:
        """The connection to etcd was lost or found again."""
        self.connected_since = time.time()
        if state.connected:
            log.info("etcd answers")
        else:
            known = "; what is known stays in force" if self.source != "none" else ""
            log.warning("etcd does not answer: %s%s", state.error, known)

    def _release_withheld(self) -> None:
        self._take(self.cluster.release())

    def _consider_network(self) -> bool:
        """Put a new network configuration in force; whether there was one.

        One that no longer holds our subnet, or whose backend cannot be used, changes nothing: the last one stays.
        """
        network = self.leasing.network
        if network is not None and network == self.network:
            self.network_error, self._refused = "", None  # a refused one was taken back
            self._note_network()
            return False
        if network is None or network == self._refused:
            return False
        self._refused = network
        try:
            backend = self.registry[network.backend.type]
            options = backend.options(network.backend.options)
        except ConfigError as error:
            self.network_error = str(error)
            log.error("the new network configuration is not in force: %s", error)
            return False
        self.network_error, self._refused = "", None
        self._findings["backend"] = options.findings
        if self.network is None:
            self._network_since = time.monotonic()
            self._resume(network)
        self.network = network
        self._note_network()
        self.planning.use(backend, options.value, network.backend)
        prefixes = " and ".join(p for p in (network.v4, network.v6) if p)
        log.info("the network is %s over %s", prefixes, backend.name)
        if not self.leasing.holds:
            asyncio.get_running_loop().call_later(CLAIM_TIME, self._replan)
        return True

    def _note_network(self) -> None:
        if self.network == self.cluster.network:
            self.cluster.put_in_force()

    def _resume(self, network: Network) -> None:
        """Begin with the backends that stood at the end of an earlier run: the network's may be another by now, and
        this host unable to follow."""
        try:
            kept = msgspec.json.decode(self.changeover.read() or b"{}", type=Changeover)
            uses = [
                (Use(backend, backend.options(config.options).value), config)
                for config in kept.backends
                for backend in (self.registry[config.type],)
            ]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ConfigError) as error:
            log.warning("%s is ignored, beginning with the network's backend: %s", self.changeover.path, error)
            return
        # Peers may have changed while this node was away: they are ready for what they announced before, too.
        known = Cluster(self.settings.etcd_prefix)
        if [config for _, config in uses] != [network.backend] and (data := self.snapshot.read()) is not None:
            known.load(data)
        earlier = {key: Announced.by(lease) for key, lease in known.leases.items()}
        self.planning.resume(uses, {**earlier, **kept.reached})

    def _dump_changeover(self) -> bytes:
        return msgspec.json.encode(self.planning.changeover(self.cluster.leases))

    # ------------------------------------------------------------------------------------------- planning

    def _replan(self, *, peers: bool = True) -> None:
        """Everything anew: network, facts, settings or our subnet changed, or all records were compared."""
        if self.network is None or not self._choose_interface():
            return
        assert self.choice is not None
        state, settings = self.leasing.state, self.settings
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
            labels=settings.labels,
        )
        host = HostOptions(
            ip_masq=settings.ip_masq,
            firewall_integrate=settings.firewall_integrate,
            places=tuple(self._places),
            table=settings.firewall_table,
        )
        sysctls = self._present_sysctls(hostplan.observed(self.network, self.facts))
        composer = self.planning.plan(self.network, node, self.facts, host, self.cluster.nodes, sysctls)
        self._publish(composer)
        holds = self.leasing.holds
        if peers and (holds or time.monotonic() - self._network_since > CLAIM_TIME):
            leases = self.cluster.leases
            self._plan_peers(leases.values(), self.planning.states.keys() - leases.keys())
        if holds:
            self._base_ready.set()
        if self.first_pass.is_set():
            self._write_env()

    def _plan_peers(self, leases: Iterable[Lease], gone: Iterable[str]) -> None:
        """Remote leases inside the network in force; the others are forgotten if they were known."""
        own, outside = self.leasing.state.key, self.cluster.outside
        # What is outside a new network that is not in force stays where it is.
        judged = self.network == self.cluster.network
        remote, dropped = [], list(gone)
        for lease in leases:
            if lease.key == own or lease.unclaimed or (judged and lease.key in outside):
                dropped.append(lease.key)
            else:
                remote.append(lease)
        self.planning.peers(remote, dropped)
        self.changeover.touch()

    def _present_sysctls(self, names: Iterable[str]) -> dict[str, str]:
        found = self.host.dump(("sysctl",), [Sysctl(name, "") for name in names])
        return {obj.name: obj.value for obj in found if isinstance(obj, Sysctl)}

    def _port(self, name: str) -> Port:
        return Port(name, self.reconciler, self.settings.run_dir, self.settings.state_dir, self._share)

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
        # What else there was (`others`) changes with every device, and is for status alone.
        if self.choice is None or msgspec.structs.replace(choice, others=self.choice.others) != self.choice:
            log.info("interface %s: %s", choice.interface, choice.why)
        self.choice = choice
        return True

    def _publish(self, composer: Composer) -> None:
        """What our own lease and our node record say of us."""
        backend, context = composer.active
        node, data = context.node, backend.lease(context)
        self.leasing.publish(Attributes(node.public_ip, node.public_ip6, data.type, data.data, data.data6))
        self._describe()

    def _describe(self) -> None:
        choice = self.choice
        assert choice is not None
        record = NodeRecord(
            name=self.identity.name,
            id=self.identity.id,
            version=__version__,
            addresses=tuple(a for a in (choice.public_ip, choice.public_ip6) if a is not None),
            capabilities=tuple(sorted(self.registry)),
            labels=self.settings.labels,
            attributes=self._shared,
        )
        self.leasing.describe(record)

    async def _share(self, attributes: Mapping[str, str]) -> None:
        """What a service publishes of this node."""
        self._shared = {**self._shared, **attributes}
        self._describe()

    # ------------------------------------------------------------------------------------------- outcome

    def _lease_changed(self) -> None:
        """The lease session's state changed: subnets, or only what is to be said of them."""
        state = self.leasing.state
        if (state.v4, state.v6, state.key) != self._subnets:
            self._subnets = (state.v4, state.v6, state.key)
            self._replan()

    def _write_env(self) -> None:
        """subnet.env for container engines, once the subnet may be used."""
        composer, state = self.planning.composer, self.leasing.state
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

    # ------------------------------------------------------------------------------------------- views (AgentView)

    def status(self) -> Status:
        return views.status(self)

    def peers(self) -> Iterator[Peer]:
        return views.peers(self)

    def objects(self, kinds: Collection[str] = ()) -> Iterator[ObjectView]:
        return views.objects(self, kinds)

    def backend_view(self, backend: str, view: str, arguments: Mapping[str, str]) -> Answer:
        return views.backend_view(self, backend, view, arguments)

    async def plan(self) -> Sequence[Step]:
        return views.plan(self)

    def findings(self) -> Iterator[Finding]:
        """All that was found, by whoever found it."""
        yield from self.cluster.findings()
        for found in self._findings.values():
            yield from found
        yield from self.leasing.findings
        yield from self.snapshot.findings
        yield from self.changeover.findings
        yield from self.reconciler.findings()
        yield from self.planning.findings
        yield from self.planning.waiting()
        for runner in self.planning.runners.values():
            yield from runner.port.findings
        for state in self.planning.states.values():
            yield from state.plan.findings

    def base_stands(self) -> bool:
        """Whether every object of the host and of the active backend's base is in the kernel."""
        composer = self.planning.composer
        if composer is None:
            return False
        return self.reconciler.stands("host") and self.reconciler.stands(f"base/{composer.active.backend.name}")

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
        """What systemd shows of us: the verdict in one line."""
        return self.status().verdict.reason


def _of_others(facts: Facts) -> Facts:
    """The facts without our own devices and what is on them."""
    own = {name for name, link in facts.links.items() if link.own}
    return Facts(
        {name: link for name, link in facts.links.items() if name not in own},
        tuple(address for address in facts.addresses if address.dev not in own),
        tuple(route for route in facts.routes if route.dev not in own),
        facts.abilities,
    )
