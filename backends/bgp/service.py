"""The service beside the bgp plan: the speaker in the agent's own process, told what etcd and the host say.

Rules: sessions follow the nodes in etcd (members.py) and nothing else; what the speaker chooses is published route by
route, and what it has published stays until it says otherwise, also while it starts anew. The agent going away closes
the connections without a word, so that peers keep our routes (RFC 4724); the backend going away says so. After a
start on the same boot nothing is decided until the peers of the run before have told everything, or `DEFERRAL` is
over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backends.bgp import members, roles, sessions, show
from backends.bgp.members import Member
from backends.bgp.options import BgpOptions, Own
from backends.bgp.part import Part
from backends.bgp.planner import BFD_SOCKET, STATE, tunnelled
from backends.bgp.publishing import Publisher
from backends.bgp.reports import (
    Problem,
    deserted,
    established,
    findings,
    no_address,
    not_in_force,
    out_of_reach,
    peer_states,
    summary,
)
from backends.bgp.roles import Seen
from backends.bgp.secrets import Secrets
from backends.bgp.sessions import Peering
from backends.bgp.ways import Ways
from bfd.orders import Status
from bgp.aio import Driver, Listen, SetupError, collect_seldom, dropped
from bgp.connection import Down, Established
from bgp.fsm import State
from bgp.message import Attributes, nlri
from bgp.message import Family as Afi
from bgp.message.nlri import parse_address
from bgp.peer import SpeakerConfig
from bgp.rib import Chosen
from bgp.speaker import News, PrefixLimit, Speaker
from netagent import files
from netagent.contract import STOPPING, Answer, Context, ServicePort
from netagent.model import Finding, Lease, NodeRecord

log = logging.getLogger(__name__)

DEFERRAL = 15.0  # seconds that a start waits for the peers of the run before
FIRST_TIME = 5.0  # seconds that `settled` waits for a peer that is new
SAID_ALL = 3.0  # seconds after which a router that sends no End-of-RIB has said all that it has
LOOK_AGAIN = 5.0  # seconds between two looks at password files, at routers, and at who is down
RETRY = 2.0  # seconds until an occupied port is tried again
STOP_TIME = 2.0  # seconds that peers have to take our last words
FAREWELL = "this node leaves BGP"


class BgpService:
    """Implements contract.Service and contract.Viewer."""

    def __init__(self, port: ServicePort) -> None:
        self._port = port
        self._state_file = Path(port.run_dir) / STATE
        self._context: Context | None = None
        self._leases: dict[str, Lease] = {}
        self._released: set[str] = set()  # nodes whose lease went
        self._records: Mapping[str, NodeRecord] = {}
        self._own: Own | None = None
        self._members: dict[str, Member] = {}
        self._doubts: tuple[Finding, ...] = ()  # about other nodes
        self._part = Part()
        self._secrets = Secrets()
        self._secrets_read = float("-inf")  # when
        self._peering = Peering((), frozenset(), frozenset())
        self._since: dict[str, float] = {}  # peer -> when it became one
        self._returning: frozenset[str] = frozenset()  # the peers of the run before
        self._config: SpeakerConfig | None = None
        self._driver: Driver | None = None
        self._ways: Ways | None = None
        self._originated: dict[str, Attributes] = {}
        self._publisher = Publisher(port)
        self._limits: dict[str, PrefixLimit] = {}
        self._said: dict[str, str] = {}  # peer -> why its session was last said to be down
        self._shared: dict[str, str] = {}
        self._swept = True
        self._remembered: list[str] | None = None
        self._problem: Problem | None = None
        self._fault = ""  # why what was told last is not in force
        self._homeless = False  # this node has no address to speak from
        self._state = "starting"
        self._told = 0  # counts what the agent told
        self._done = -1  # up to which of these the speaker has all
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()

    # ------------------------------------------------------------------------------------- told by the agent

    def configure(self, context: Context) -> None:
        if context != self._context:
            self._context = context
            self._tell()

    def peers(self, changed: Mapping[str, Lease], removed: Iterable[str], *, whole: bool) -> None:
        if whole:
            self._leases.clear()
        self._leases.update(changed)
        for key in removed:
            if (lease := self._leases.pop(key, None)) is not None and lease.node:
                self._released.add(lease.node)
        self._tell()

    def nodes(self, nodes: Mapping[str, NodeRecord]) -> None:
        self._records = dict(nodes)
        self._tell()

    def _tell(self) -> None:
        self._told += 1
        self._wake.set()

    async def settled(self) -> None:
        """When every peer has told everything, or has had its time, and its routes are published."""
        while (left := self._unsettled()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left), self._progress:
                    await self._progress.wait()

    async def stop(self) -> None:
        """`run` has said farewell; what is left is to forget who the peers were."""
        self._state_file.unlink(missing_ok=True)
        self._state = "stopped"

    def status(self) -> Mapping[str, Any]:
        return {
            "state": self._state,
            "role": self._part.role,
            **summary(self.speaker, self._peering, self._part, len(self._publisher.routes), self._problem),
            "peers": peer_states(
                self._leases.values(),
                self._members,
                self._publisher.routes,
                self._missing,
                self.speaker,
                self._young,
            ),
        }

    def view(self, name: str, arguments: Mapping[str, str]) -> Answer:
        now = self._driver.now() if self._driver is not None else 0.0
        return show.view(name, arguments, self.speaker, now, self._publisher)

    @property
    def speaker(self) -> Speaker | None:
        """The one that runs."""
        return self._driver.speaker if self._driver is not None else None

    def _missing(self, subnet: str) -> str:
        """Why a subnet has no route although somebody announces it, "" if nobody does."""
        if reason := self._publisher.refused.get(subnet):
            return reason
        afi, wire = nlri.parse(subnet)
        rib = self.speaker.ribs.get(afi) if self.speaker is not None else None
        for route in rib.candidates(wire) if rib is not None else ():
            if route.rejected:
                return f"the route from {route.source.name} is not used: {route.rejected}"
            if self._ways is not None and (way := self._ways.reach(route.attributes.next_hop)).problem:
                return way.problem
        return ""

    def _young(self, name: str) -> bool:
        """Whether nobody can expect a peer's routes yet."""
        now = asyncio.get_running_loop().time()
        return self._state != "running" or now - self._since.get(name, now - DEFERRAL) < self._patience(name)

    def _patience(self, name: str) -> float:
        """Seconds that a peer has to tell everything. While we restart the others may: they are not there at once."""
        return DEFERRAL if name in self._returning else FIRST_TIME

    # ------------------------------------------------------------------------------------- running

    async def run(self) -> None:
        try:
            while True:
                await self._once()
        except asyncio.CancelledError as error:
            if error.args == (STOPPING,):
                await self._port.share(members.shared(0, ""))
                await self._leave(FAREWELL)
            else:
                await self._leave(None)
            raise
        except BaseException:
            await self._leave(None)
            raise

    async def _once(self) -> None:
        """Bring everything up to date, then wait until there is something to do."""
        self._wake.clear()
        try:
            wait = await self._update()
            if self._fault:
                self._fault = ""
                self._report()
        except Exception as error:
            if self._driver is None:
                raise
            wait = self._goes_on(error)
        async with self._progress:
            self._progress.notify_all()
        if self._told == self._done or wait is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _goes_on(self, error: Exception) -> float:
        """What was told cannot be put in force: sessions and routes stay as they are. Seconds until the next try."""
        if (fault := str(error) or type(error).__name__) != self._fault:
            self._fault = fault
            log.exception("BGP goes on as before: what is new cannot be put in force")
        self._report()
        return LOOK_AGAIN

    async def _leave(self, words: str | None) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIME):
                    await driver.stop(words)

    async def _update(self) -> float | None:
        """What was told, and what time brought. Seconds until it must be called again, None: not by itself."""
        context = self._context
        if context is None:
            return None
        told = self._told
        options: BgpOptions = context.options
        node = context.node
        own = self._own = options.own(node.name, node.labels)
        rotated = await self._read_secrets(options, own)
        if told == self._done and self._driver is not None and self._problem is None and not rotated:
            seen = self._seen(asyncio.get_running_loop().time())
            if not self._part.moves(options, self._members, seen):
                self._report()
                return self._next()
        self._members = members.members(options, node.name, self._records, self._leases.values())
        now, before = asyncio.get_running_loop().time(), self._part.role
        self._part.update(options, node, self._records.get(node.name), self._members, self._seen(now), now)
        if before not in ("", self._part.role):
            log.info("this node was %s in BGP, and is %s now", before, self._part.role)
        if (shared := members.shared(own.asn, self._part.role, self._part.via)) != self._shared:
            self._shared = shared
            await self._port.share(shared)
        config = sessions.speaker(context, own)
        self._homeless = config is None
        if config is None:
            self._done = told
            self._report()
            return self._next() if self._driver is not None else None
        part = self._part
        self._peering = sessions.peering(context, own, part.role, part.wanted, self._members, self._secrets.known)
        self._point_ways(context)
        assert self._ways is not None
        far = out_of_reach(self._ways, self._members) if not (options.tunnel or own.routers) else []
        self._doubts = (*members.doubts(node.name, self._records), *far)
        await self._have_speaker(config)
        self._listen(options, context)
        self._command(context, own)
        self._done = told
        self._report()
        return self._next()

    # ------------------------------------------------------------------------------------------- parts of it

    def _seen(self, now: float) -> Seen:
        if self._driver is None:
            return Seen()
        told = {name for name in self._driver.speaker.peers if self._told_all(name, now)}
        return Seen(told & self._peering.nodes, told & self._peering.routers)

    def _told_all(self, name: str, now: float) -> bool:
        """Whether the peer has told all that it has; a router may not say so itself."""
        assert self._driver is not None
        peer = self._driver.speaker.peers.get(name)
        if peer is None or peer.session.negotiated is None:
            return False
        return peer.complete or now - peer.since > SAID_ALL

    async def _read_secrets(self, options: BgpOptions, own: Own) -> bool:
        """Read the password files, if it is time to. Whether there is another password, or problem."""
        paths = {options.password_file, *(router.password_file for router in own.routers)} - {""}
        now = asyncio.get_running_loop().time()
        if paths == self._secrets.known.keys() and (not paths or now - self._secrets_read < LOOK_AGAIN):
            return False
        self._secrets_read = now
        return await asyncio.to_thread(self._secrets.read, paths)

    async def _have_speaker(self, config: SpeakerConfig) -> None:
        """One of that configuration. What cannot change under standing sessions makes a graceful restart of ours."""
        if self.speaker is not None and self._config is not None and self._driver is not None:
            before = self._config
            if (before.asn, before.identifier, before.families) == (config.asn, config.identifier, config.families):
                self.speaker.set_config(config, self._driver.now())
                self._config = config
                return
        await self._leave(None)
        self._start(config)
        self._config = config

    def _listen(self, options: BgpOptions, context: Context) -> None:
        """On our own addresses, so that another speaker may have others. Where that fails we still connect."""
        assert self._driver is not None
        wanted = tuple(
            Listen(parse_address(local), options.port)
            for family in context.network.families
            if (local := context.node.local(family)) is not None
        )
        if self._driver.listen == wanted and self._problem is None:
            return
        self._problem = None
        try:
            self._driver.open(wanted)
        except SetupError as error:
            self._problem = Problem.of(error, options.port)

    def _start(self, config: SpeakerConfig) -> None:
        loop = asyncio.get_running_loop()
        restarting = self._established_before() & {peer.name for peer in self._peering.peers}
        speaker = Speaker(
            config,
            random.random,
            self._metric,
            restarting=restarting if config.restarts else (),
            deferral=DEFERRAL,
            now=loop.time(),
            dropped=dropped,
        )
        driver = Driver(
            speaker,
            on_news=self._on_news,
            on_changes=self._on_changes,
            on_bfd=self._on_bfd,
            bfd_path=str(Path(self._port.run_dir) / BFD_SOCKET),
        )
        collect_seldom()
        driver.start()
        if restarting:
            log.info("BGP starts again; what stands is kept until %d peers have told everything", len(restarting))
        self._driver = driver
        self._returning = frozenset(restarting)
        self._originated = {}
        self._swept = not self._publisher.routes
        self._limits.clear()
        self._since = dict.fromkeys(self._since, loop.time())

    def _command(self, context: Context, own: Own) -> None:
        """Give the speaker its peers and our prefixes, and publish what stands for each peer."""
        assert self._driver is not None
        speaker, now = self._driver.speaker, self._driver.now()
        for name in self._released & speaker.peers.keys():
            # Away, and without a lease: what is kept for its return may be another node's subnet by then.
            if not established(speaker.peers[name]):
                speaker.remove_peer(name, now)
        self._released.clear()
        speaker.set_peers(self._peering.peers, now)
        self._consider_limits(speaker)
        names = {peer.name for peer in self._peering.peers}
        self._since = {name: self._since.get(name, now) for name in names}
        wanted = sessions.originated(context, own)
        for prefix in self._originated.keys() - wanted.keys():
            speaker.retract(*nlri.parse(prefix))
        for prefix, attributes in wanted.items():
            if self._originated.get(prefix) != attributes:
                guarded = prefix in (context.node.v4, context.node.v6)
                speaker.originate(*nlri.parse(prefix), attributes, guard=guarded)
        self._originated = wanted
        assert self._ways is not None
        self._publisher.places(self._ways, self._members, self._peering)
        try:
            self._driver.wake()
        except SetupError as error:
            self._problem = Problem.of(error, context.options.port)

    def _consider_limits(self, speaker: Speaker) -> None:
        """Of a router whose limit is another one now nothing is known yet."""
        for name, limit in list(self._limits.items()):
            peer = speaker.peers.get(name)
            if peer is not None and peer.config.most_prefixes == limit.limit:
                continue
            del self._limits[name]

    def _next(self) -> float | None:
        """Seconds until time alone changes something: a part to play, a router that says no End-of-RIB."""
        left = self._unsettled()
        if left <= 0 and not self._swept and self.speaker is not None:
            # What an earlier speaker has published, and this one does not know.
            ribs = self.speaker.ribs.items()
            self._publisher.sweep({nlri.text(afi, wire) for afi, rib in ribs for wire in rib.chosen})
            self._swept = True
        if self._state != "running" and left <= 0:
            self._state = "running"
        waits = [left] if left > 0 else []
        if not self._part.settled:
            waits.append(roles.SETTLE / 2)
        if self._problem is not None:
            waits.append(RETRY)
        down = self.speaker is not None and not all(map(established, self.speaker.peers.values()))
        if self._secrets.known or self._peering.routers or down or any(peer.bfd for peer in self._peering.peers):
            waits.append(LOOK_AGAIN)
        return max(min(waits), 0.01) if waits else None

    # ------------------------------------------------------------------------------------- the speaker's routes

    def _metric(self, next_hop: bytes) -> int | None:
        return self._ways.reach(next_hop).metric if self._ways is not None else None

    def _point_ways(self, context: Context) -> None:
        """The ways out of the host as they are now; what is reached in another way is decided and published anew."""
        before, self._ways = self._ways, Ways(context, self._members, tunnelled(context))
        if before is None or self._driver is None or not self._ways.differs(before):
            return
        speaker = self._driver.speaker
        for afi, rib in speaker.ribs.items():
            rib.decide_anew()
            if not speaker.deferring:
                self._publisher.install(self._ways, afi, rib.chosen)

    def _on_changes(self, changes: dict[Afi, dict[bytes, Chosen]]) -> None:
        assert self._ways is not None
        for afi, chosen in changes.items():
            self._publisher.install(self._ways, afi, chosen)
        self._tell_progress()

    def _on_news(self, name: str, news: News) -> None:
        if isinstance(news, Established):
            log.info("BGP session with %s is up", name)
            self._said.pop(name, None)
            self._limits.pop(name, None)
        elif isinstance(news, Down):
            self._say_down(name, news)
            if news.was is State.ESTABLISHED and (limit := self._limits.get(name)) is not None and not limit.ended:
                del self._limits[name]
        elif isinstance(news, PrefixLimit):
            self._limits[name] = news
            log.warning("%s has sent %d prefixes, its limit is %d", name, news.prefixes, news.limit)
        self._remember()
        self._tell_progress()

    def _on_bfd(self, name: str, before: Status, now: Status) -> None:
        if now.failures > before.failures:
            log.warning("BFD with %s: down, %s", name, now.diag)
        elif now.up and not before.up:
            log.info("BFD with %s is up, it notices within %g ms", name, now.detection / 1000)
        if now.problem != before.problem and now.problem:
            log.error("BFD with %s: %s", name, now.problem)

    def _say_down(self, name: str, down: Down) -> None:
        """Each reason once: a peer that is away is tried again and again."""
        peer = self.speaker.peers.get(name) if self.speaker is not None else None
        if peer is not None and established(peer):
            return  # of two connections the other one lives
        if self._said.get(name) != down.reason:
            self._said[name] = down.reason
            level = logging.WARNING if down.was is State.ESTABLISHED else logging.INFO
            log.log(level, "BGP session with %s: %s", name, down.reason)

    def _tell_progress(self) -> None:
        """Something moved that `settled`, or the part that we play, may wait for."""
        self._wake.set()

    # ------------------------------------------------------------------------------------- starting and settling

    def _unsettled(self) -> float:
        """Seconds until everything told so far counts as done, 0 when it is done."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._driver is None or self._told != self._done:
            return FIRST_TIME if self._context is not None and not self._homeless else 0.0
        speaker = self._driver.speaker
        if speaker.deferring or speaker.pending:
            return DEFERRAL
        left = 0.0
        for name, since in self._since.items():
            if not self._told_all(name, now):
                left = max(left, since + self._patience(name) - now)
        return left

    def _established_before(self) -> set[str]:
        """The peers whose sessions stood when the run before ended."""
        try:
            found = json.loads(self._state_file.read_bytes())["peers"]
            return {str(name) for name in found}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return set()

    def _remember(self) -> None:
        """Who has a session with us, or is only restarting."""
        if self.speaker is None:
            return
        up = sorted(name for name, peer in self.speaker.peers.items() if established(peer) or peer.awaited)
        if up == self._remembered:
            return
        self._remembered = up
        with contextlib.suppress(OSError):
            files.replace(self._state_file, json.dumps({"peers": up, "at": time.time()}).encode(), sync=False)

    def _report(self) -> None:
        now = asyncio.get_running_loop().time()
        found = findings(self._peering, self._limits, self._problem, self.speaker, now)
        found += self._doubts
        if self._part.role == roles.CLIENT:
            found += deserted(self._peering, self.speaker, now)
        if self._homeless and self._context is not None:
            found.append(no_address(self._context))
        if self._fault:
            found.append(not_in_force(self._fault))
        self._port.report(found)
