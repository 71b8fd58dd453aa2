"""From backends and leases to the reconciler: which backends stand, what each peer gets, which services run.

Rules: a new backend (or new options of the same) first comes: its base objects and its service are made beside the
active one; when they stand it is promoted, and only then do peers move and does our lease announce it. One whose
devices this host cannot make is not promoted until it can. One that was active stays as a previous one while some
peer is reached by it, and some seconds more. A peer that moves to a backend with a service is told to the service
first, and its route follows when the service has it. So a change of backend drops no packet, in whatever order the
nodes follow, and however many changes follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from netagent import model
from netagent.contract import OTHER_WAYS, RANK_BASE, RANK_PEER, RANK_RETIRING, RANK_SERVICE, Backend, Context
from netagent.model import Facts, Family, Finding, Lease, Link, Network, Node, NodeRecord, Object
from netagent.plan import compose, hostplan
from netagent.plan.compose import Announced, Composer, Standing, Use
from netagent.reconcile import Reconciler
from netagent.services import Port, Runner

log = logging.getLogger(__name__)

# A backend that no peer announces any more may still be used by a peer that has not read our record yet.
RETIRE_AFTER = 5.0
# So long may the base and the service of a coming backend take before it is promoted as it is (seconds).
COMING_DEADLINE = 5.0


class PeerState(msgspec.Struct):
    """What is remembered of a remote lease: how it is reached, and the state last seen with its time.

    `reached`: what its lease announced when there was a path by that last.
    """

    plan: compose.Peer
    reached: Announced | None
    since: float = 0.0
    word: str = ""

    def observe(self, word: str) -> float:
        """Since when the peer has been in this state (unix seconds)."""
        if word != self.word:
            self.word, self.since = word, time.time()
        return self.since


class Changeover(msgspec.Struct, frozen=True):
    """What a restart must know of a change of backend that is under way: `backends` that stand, the active one first
    and then the previous ones, and by lease key the peers that are `reached` by what they announced earlier."""

    backends: tuple[model.Backend, ...] = ()
    reached: Mapping[str, Announced] = {}


class HostOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the host's own plan depends on besides network, node and facts (see hostplan.host_base)."""

    ip_masq: bool
    firewall_integrate: bool
    places: tuple[tuple[str, Family], ...]
    table: str


class Planning:
    """Feed it with `use` (which backend), `plan` (everything anew) and `peers` (some leases)."""

    def __init__(self, reconciler: Reconciler, port: Callable[[str], Port], promoted: Callable[[], None]) -> None:
        self.composer: Composer | None = None
        self.states: dict[str, PeerState] = {}  # by lease key
        self.runners: dict[str, Runner] = {}  # by backend name
        self.findings: tuple[Finding, ...] = ()
        self._reconciler = reconciler
        self._port = port
        self._promoted = promoted
        self._use: Use | None = None
        self._coming: Use | None = None
        self._previous: tuple[Use, ...] = ()  # the latest first
        self._configured: list[tuple[Use, model.Backend]] = []  # of all three, as the operator wrote them
        self._resumed: dict[str, Announced] = {}  # of peers that were not planned in this run yet
        self._retirement: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._promotion: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()  # there is no coming backend, or it is certain that it must wait
        self._tried.set()

    # ------------------------------------------------------------------------------------------- which backend

    def resume(self, uses: Iterable[tuple[Use, model.Backend]], reached: Mapping[str, Announced]) -> None:
        """Before the first `use`: what stood in an earlier run stands until the network's backend does. Our lease
        announces the first of these, and some peers may have no other path to this node."""
        self._configured = list(uses)
        standing = tuple(use for use, _ in self._configured)
        self._use, self._previous = (standing[0], standing[1:]) if standing else (None, ())
        self._resumed = dict(reached)

    def changeover(self, leases: Mapping[str, Lease]) -> Changeover:
        """For `resume` in the next run. `leases` are those of the cluster as they are now."""
        standing = [use for use in (self._use, *self._previous) if use is not None]
        reached = {**self._resumed, **{key: s.reached for key, s in self.states.items() if s.reached is not None}}
        return Changeover(
            tuple(config for use in standing for configured, config in self._configured if configured == use),
            {key: said for key, said in reached.items() if key in leases and said != Announced.by(leases[key])},
        )

    def use(self, backend: Backend, options: Any, config: model.Backend) -> None:
        """Plan with this backend and these options, made from `config`, as soon as they stand. `plan` must follow."""
        wanted = Use(backend, options)
        kept = (self._use, *self._previous)
        self._configured = [(use, said) for use, said in self._configured if use in kept and use != wanted]
        self._configured.append((wanted, config))
        if self._use is None:
            self._use = wanted
        elif wanted == self._use:
            self._come(None)
        elif wanted != self._coming:
            self._come(wanted)
            self._promotion = self._background(self._promote(wanted), f"promote {backend.name}")

    def _come(self, coming: Use | None) -> None:
        self._coming = coming
        if coming is None:
            self._tried.set()
        else:
            self._tried.clear()
        if self._promotion is not None:
            self._promotion.cancel()

    async def _promote(self, coming: Use) -> None:
        """Make the coming backend the active one, once its base and its service stand."""
        await asyncio.sleep(0)  # `plan` comes first
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMING_DEADLINE):
                await self._reconciler.settled()
                runner = self.runners.get(coming.backend.name)
                if runner is not None:
                    await runner.settled()
        while self._coming == coming and self._hindered():
            self._tried.set()
            self._reconciler.applied.clear()
            await self._reconciler.applied.wait()
        if self._coming == coming:
            log.info("%s stands and takes over", coming.backend.name)
            earlier = (self._use, *self._previous) if self._use is not None else self._previous
            self._previous = tuple(use for use in earlier if use != coming)
            self._use, self._coming = coming, None
            self._promoted()
            self._tried.set()

    def _hindered(self) -> bool:
        """Whether the coming backend has nothing to stand on while the active one has. That one carries the traffic
        meanwhile, and peers that have changed keep their way by it as long as our lease announces it."""
        composer = self.composer
        if composer is None or composer.coming is None:
            return False
        active, coming, *_ = composer.base()
        return self._lacks_ground(coming) and not self._lacks_ground(active)

    def _lacks_ground(self, base: compose.Base) -> bool:
        """Whether a device of a backend was refused, by the kernel or, its place being taken, by the plan."""
        refused = (obj for obj in base.plan.objects if isinstance(obj, Link) and self._reconciler.failure(obj.key))
        return any(refused) or any(finding.severity == "error" for finding in base.plan.findings)

    def waiting(self) -> Iterator[Finding]:
        """That the network's backend is not in force here."""
        if self._coming is not None and self._use is not None and self._hindered():
            came, stays = self._coming.backend.name, self._use.backend.name
            yield Finding(
                code="backend-waits",
                subject=came,
                severity="error",
                message=f"the network is to use {came}, which cannot be set up here: this node stays with {stays}",
                evidence=f"its lease goes on announcing {stays}; hosts that join with {came} have no path to it",
                remedy=f"the other findings say what {came} lacks; it takes over by itself once that is mended",
            )

    def _consider_retirement(self) -> None:
        """A previous backend that no peer is reached by any more goes, a while later."""
        if self._retirement is None and (unused := self._unused()):
            self._retirement = asyncio.get_running_loop().call_later(RETIRE_AFTER, self._retire, unused)

    def _unused(self) -> list[Use]:
        if not self._previous:
            return []
        reaching = [state.plan.previous for state in self.states.values() if state.plan.previous is not None]
        return [use for use in self._previous if use not in reaching]

    def _retire(self, candidates: list[Use]) -> None:
        self._retirement = None
        retired = [use for use in self._unused() if use in candidates]
        for use in retired:
            log.info("no peer uses the previous %s any more: it goes", use.backend.name)
        if retired:
            self._previous = tuple(use for use in self._previous if use not in retired)
            self._promoted()
        self._consider_retirement()

    # ------------------------------------------------------------------------------------------- everything

    def plan(
        self,
        network: Network,
        node: Node,
        facts: Facts,
        host: HostOptions,
        nodes: Mapping[str, NodeRecord],
        sysctls: Mapping[str, str],
    ) -> Composer:
        """Contexts, base objects and services anew; `peers` with all leases must follow."""
        assert self._use is not None

        def standing(use: Use) -> Standing:
            return Standing(use.backend, Context(network=network, options=use.options, node=node, facts=facts))

        composer = self.composer = Composer(
            standing(self._use),
            tuple(standing(use) for use in self._previous),
            standing(self._coming) if self._coming is not None else None,
        )
        bases = composer.base()
        for base in bases:
            self._reconciler.put(base.owner, base.plan.objects, base.rank)
        for owner in set(self._reconciler.owners("base/")) - {base.owner for base in bases}:
            self._reconciler.drop(owner)
        own = hostplan.host_base(
            network,
            node,
            facts,
            ip_masq=host.ip_masq,
            ports=composer.listening(bases),
            tcp_ports=composer.tcp_ports,
            links=[obj for base in bases for obj in base.plan.objects if isinstance(obj, Link)],
            direct=any(s.backend.direct(s.context.options) for s in composer.standing),
            firewall_integrate=host.firewall_integrate,
            places=host.places,
            sysctls=sysctls,
            table=host.table,
        )
        self._reconciler.put("host", own.objects, RANK_BASE)
        self.findings = (*own.findings, *(finding for base in bases for finding in base.plan.findings))
        self._run_services(composer, nodes)
        return composer

    def _run_services(self, composer: Composer, nodes: Mapping[str, NodeRecord]) -> None:
        """A runner for each standing backend; those of backends that stand no more end."""
        # The first counts where two are of one backend (another VNI or port).
        standing = {s.backend.name: s for s in reversed(composer.standing)}
        for name, (backend, context) in standing.items():
            if name in self.runners:
                self.runners[name].configure(context)
            else:
                self.runners[name] = runner = Runner(backend, self._port(name))
                runner.start(context, nodes)
        current = {s.backend.name for s in (composer.active, composer.coming) if s is not None}
        for name, runner in self.runners.items():
            runner.port.set_rank(RANK_SERVICE if name in current else RANK_RETIRING)
        for name in self.runners.keys() - standing.keys():
            self._background(self.runners.pop(name).end(), f"end {name}")

    # ------------------------------------------------------------------------------------------- peers

    def peers(self, leases: Iterable[Lease], gone: Iterable[str]) -> None:
        """Plan these remote leases, and forget those that went."""
        composer = self.composer
        assert composer is not None
        told: dict[str, Lease] = {}
        followers: dict[str, list[tuple[Lease, compose.Peer]]] = {}
        for lease in leases:
            told[lease.key] = lease
            state = self.states.get(lease.key)
            earlier = state.reached if state is not None else self._resumed.pop(lease.key, None)
            peer, reached = self._reach(composer, lease, earlier)
            if state is None:
                self.states[lease.key] = PeerState(peer, reached)
                self._put(lease, peer)
                continue
            before = state.plan
            state.plan, state.reached = peer, reached
            if before.objects and before.backend != peer.backend and self._serves(peer.backend):
                # It goes on by the old way, with the guard of the new one open to it.
                followers.setdefault(peer.backend, []).append((lease, peer))
                peer = before
            self._put(lease, peer)
        self._tell(told, gone)
        for name, moving in followers.items():
            self._background(self._follow(self.runners[name], moving), f"peers move to {name}")
        self._consider_retirement()

    def _reach(
        self, composer: Composer, lease: Lease, earlier: Announced | None
    ) -> tuple[compose.Peer, Announced | None]:
        """The peer's plan, and what it announced that the plan is made from.

        A peer that announces what is not ours (we have not followed yet, or cannot) is reached by what it announced
        earlier: it stays ready for that as long as our own lease announces it. Where both announce the same and that
        leads nowhere, there is no path: so the network is configured.
        """
        now = Announced.by(lease)
        peer = self._planned(composer, lease)
        if peer.objects:
            return peer, now
        if earlier is None or earlier == now or OTHER_WAYS.isdisjoint(found.code for found in peer.findings):
            return peer, earlier
        former = self._planned(composer, msgspec.structs.replace(lease, **earlier._asdict()))
        return (former._replace(findings=peer.findings) if former.objects else peer), earlier

    def _planned(self, composer: Composer, lease: Lease) -> compose.Peer:
        try:
            return composer.peer(lease)
        except Exception as error:  # a backend's mistake about one peer must not stop the others
            log.exception("planning %s failed", lease.key)
            return compose.failed(composer.active.backend.name, lease, error)

    def _put(self, lease: Lease, peer: compose.Peer) -> None:
        objects: tuple[Object, ...] = peer.objects
        if objects and self.composer is not None and self.composer.guarded:
            objects = (*objects, *hostplan.peer_elements(lease))
        self._reconciler.put(f"peer/{lease.key}", objects, RANK_PEER)

    def _serves(self, backend: str) -> bool:
        runner = self.runners.get(backend)
        return runner is not None and runner.serves

    def _tell(self, told: Mapping[str, Lease], gone: Iterable[str]) -> None:
        """Tell every service of every lease: a peer may send by a backend before its record says so, and after."""
        removed = [key for key in gone if self.states.pop(key, None) is not None]
        for key in removed:
            self._reconciler.drop(f"peer/{key}")
        for runner in self.runners.values():
            if told or removed:
                runner.peers(told, removed)

    async def _follow(self, runner: Runner, moving: list[tuple[Lease, compose.Peer]]) -> None:
        """The routes of peers that moved, once the service has them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMING_DEADLINE):
                await runner.settled()
        for lease, peer in moving:
            state = self.states.get(lease.key)
            if state is not None and state.plan is peer:
                self._put(lease, peer)

    # ------------------------------------------------------------------------------------------- services

    def nodes(self, nodes: Mapping[str, NodeRecord]) -> None:
        for runner in self.runners.values():
            runner.nodes(nodes)

    async def settled(self) -> None:
        """Everything told so far has been tried, in the kernel and in the services."""
        await self._tried.wait()
        await self._reconciler.settled()
        for runner in list(self.runners.values()):
            await runner.settled()

    async def leave(self) -> None:
        """The agent goes away; services run on."""
        for task in self._tasks:
            task.cancel()
        for runner in self.runners.values():
            await runner.leave()

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that nobody waits for; it is kept until it ends."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s", task.get_name(), error, exc_info=error)
