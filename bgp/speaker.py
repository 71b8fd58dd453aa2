"""The speaker: sessions and tables joined, without socket or clock.

Rule: what happens goes in (`receive`, `connected`, `expire`, ...), and only `take` works on it: it decides, tells
the peers and gives what is to be done. So a burst of messages read before one `take` is decided once. Whoever drives
it calls `take` after what has happened, carries out each Connect, Send and Close, and calls `expire` at `deadline()`.

    speaker = Speaker(SpeakerConfig(65001, identifier), random.random)
    speaker.add_peer(PeerConfig("tor", address, 65000), now)
    speaker.originate(*nlri.parse("10.1.2.0/24"))
    for peer, output in speaker.take(now): ...
    changes = speaker.take_changes()

Graceful restart (RFC 4724) works both ways: a peer's is in stale.py, our own in deferral.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from bgp.advertising import Advertising
from bgp.connection import (
    Close,
    Connect,
    Direction,
    Down,
    Established,
    Negotiated,
    Output,
    Send,
)
from bgp.decision import Metric
from bgp.deferral import Deferral
from bgp.fsm import State
from bgp.judging import Judging
from bgp.limits import PrefixLimit as PrefixLimit
from bgp.limits import reached_limit
from bgp.message import (
    AttributeDecoder,
    Attributes,
    Cease,
    ErrorCode,
    Family,
    LocalError,
    Notification,
    Refresh,
    RefreshKind,
    Update,
    encode_route_refresh,
)
from bgp.message.nlri import prefix_of
from bgp.own import OwnPrefixes
from bgp.peer import Peer, PeerConfig, SpeakerConfig, capabilities, session_settings
from bgp.peers import Peers
from bgp.ranges import PeerRange
from bgp.rib import Chosen, Rib
from bgp.route import Kind, Source
from bgp.session import Session
from bgp.stale import Stale
from bgp.transport import Dropped


@dataclass(frozen=True, slots=True)
class Complete:
    """A peer has sent End-of-RIB in every family of the session: it has told us all that it has."""


_OTHER_CONFIGURATION = Notification(ErrorCode.CEASE, Cease.OTHER_CONFIGURATION_CHANGE)
News = Established | Down | PrefixLimit | Complete
Told = tuple[str, Connect | Send | Close | News]
"""The peer's name, and what is to be done or has happened."""

AT_ONCE = 2000
"""Prefixes of a family that one `take` decides: some 20 ms of work."""


class Speaker:
    """See the module. `random` gives numbers from 0 to 1; `metric` says what it costs to reach a next hop, `dropped`
    what the host has dropped for its signature.

    After a restart of ours, `restarting` names the peers that stood before it: nothing is decided until they have
    sent all they have, or `deferral` seconds are over.
    """

    def __init__(
        self,
        config: SpeakerConfig,
        random: Callable[[], float],
        metric: Metric | None = None,
        *,
        restarting: Iterable[str] = (),
        deferral: float = 0.0,
        now: float = 0.0,
        dropped: Callable[[], Dropped] = Dropped,
    ) -> None:
        self.config = config
        self.dropped = dropped
        self.peers = Peers()
        self.ribs = {family: Rib(family, metric, config.paths) for family in config.families}
        self.advertising = Advertising(self.ribs, self._send)
        self.own = OwnPrefixes(config.families)
        self.local = Source("local", Kind.LOCAL, config.asn, config.identifier)
        self.version = 0
        """Another number whenever there are other peers or ranges, or a session is started or stopped."""
        self.deferral = Deferral(config.families, restarting, now + deferral)
        self._random = random
        self._now = now
        self._outputs: list[Told] = []
        self._changes: dict[Family, dict[bytes, Chosen]] = {family: {} for family in config.families}
        self._decoders: dict[tuple[bool, bool], AttributeDecoder] = {}
        self._judging = Judging(self.ribs, self.peers.by_source)
        self._stale = Stale(self.ribs, self._judging)
        self._joining: dict[str, None] = {}
        self._leaving: dict[str, None] = {}
        self._sent_to: dict[str, None] = {}
        self._timers: list[tuple[float, str]] = []

    # ------------------------------------------------------------------------------------------------- the operator

    def add_peer(self, config: PeerConfig, now: float) -> Peer:
        """A new peer, whose session is begun at once. Raises LocalError when the name is taken."""
        return self._add(config, now, None)

    def _add(self, config: PeerConfig, now: float, within: PeerRange | None) -> Peer:
        if config.name in self.peers:
            raise LocalError(f"there is a peer {config.name!r} already")
        settings = session_settings(self.config, config, restarting=bool(self.deferral))
        peer = Peer(self.config, config, Session(settings, self._random, self._decoder), self.own)
        peer.within = within
        self.version += 1
        self.peers.add(peer)
        peer.since = now
        peer.dropped_before = self.dropped()
        if config.shutdown is None:
            peer.session.start(now)
        self._touched(peer, now)
        return peer

    def remove_peer(self, name: str, now: float, notification: Notification | None = None) -> None:
        """End a peer's session; its routes go at once."""
        peer = self.peers[name]
        self.version += 1
        peer.session.stop(now, notification or Notification(ErrorCode.CEASE, Cease.PEER_DECONFIGURED))
        self._touched(peer, now)
        self._stale.forget(peer)
        self._no_longer_awaited(name)
        self._sent_to.pop(name, None)
        self._leaving.pop(name, None)
        self.peers.remove(peer)

    def set_peers(self, configs: Iterable[PeerConfig], now: float, ranges: Iterable[PeerRange] = ()) -> None:
        """Make the peers these, those of the ranges, and no others.

        Only sessions whose own settings have changed are begun anew, and no route is lost by it where both sides have
        graceful restart.
        """
        self._now = now
        self.peers.ranges = tuple(ranges)
        self.version += 1
        difference = self.peers.compared(configs, self.peers.ranges)
        for name in difference.gone:
            self.remove_peer(name, now)
        for name in difference.others:
            self.remove_peer(name, now, _OTHER_CONFIGURATION)
        for peer, config, within in difference.anew:
            peer.within = within
            self._renew(peer, config, now)
        for peer, config, within in difference.changed:
            peer.within = within
            self._reconfigure(peer, config, now)
        for config in difference.new:
            self.add_peer(config, now)
        for name in self.deferral.names - self.peers.keys():
            if not self.peers.may_come(name):
                self._no_longer_awaited(name)

    def set_config(self, config: SpeakerConfig, now: float) -> None:
        """Other settings for the speaker; sessions stand. Raises LocalError for what cannot change under them."""
        before = self.config
        fixed = (before.asn, before.identifier, before.families)
        if fixed != (config.asn, config.identifier, config.families):
            raise LocalError("AS number, router id and families of a running speaker do not change")
        if config == before:
            return
        self.config = config
        for rib in self.ribs.values():
            if rib.paths != config.paths:
                rib.paths = config.paths
                rib.decide_anew()
        for peer in self.peers.values():
            peer.set_speaker(config)
            self._offer(peer)
            if (before.cluster_id, before.addresses) != (config.cluster_id, config.addresses):
                self._judging.again(peer)
            self._move(peer)
            self._touched(peer, now)

    def stop_peer(self, name: str, now: float, text: str = "") -> None:
        """End a session with words for the other operator (RFC 9003); it stays down until `start_peer`."""
        peer = self.peers[name]
        peer.limited = False
        peer.session.stop(now, Notification.shutdown(text))
        self.version += 1
        self._touched(peer, now)
        self._stale.forget(peer)

    def start_peer(self, name: str, now: float) -> None:
        """Keep a session with the peer, after it was stopped or had given too many prefixes."""
        self.peers[name].limited = False
        self.peers[name].session.start(now)
        self.version += 1
        self._touched(self.peers[name], now)

    def reset(self, name: str, now: float, text: str = "") -> None:
        """End a session and begin it anew; one that was ended for too many prefixes is begun again.

        One that is waiting for its next attempt makes it at once, one that is kept down stays down.
        """
        peer = self.peers[name]
        peer.session.reset(now, Notification.shutdown(text, reset=True))
        if peer.limited:
            peer.limited = False
            peer.session.start(now)
        self.version += 1
        self._touched(peer, now)

    def shut_down(self, now: float, text: str = "") -> None:
        """End all sessions, with words for the peers' operators."""
        for peer in self.peers.values():
            peer.session.stop(now, Notification.shutdown(text))
            self._touched(peer, now)

    def ask_again(self, name: str, family: Family) -> None:
        """Have the peer send all its routes again (RFC 2918). Raises LocalError when it cannot."""
        negotiated = self.peers[name].session.negotiated
        if negotiated is None or not negotiated.route_refresh or family not in negotiated.families:
            raise LocalError(f"{name} does not take a request for {family.name} now")
        self._send(self.peers[name].source, encode_route_refresh(family), 1)

    def originate(
        self, family: Family, prefix: bytes, attributes: Attributes | None = None, *, guard: bool = False
    ) -> None:
        """Announce a prefix of ours. Without a next hop it is reached by way of us.

        Ours is the best route to it. With `guard` it is ours alone: nobody else's route to it or a part of it is
        taken.
        """
        attributes = attributes or Attributes()
        self.ribs[family].announce(self.local, (prefix,), attributes, attributes)
        if self.own.add(family, prefix, guard=guard):
            self._judging.own_changed(family, prefix)

    def retract(self, family: Family, prefix: bytes) -> None:
        """Announce it no longer."""
        self.ribs[family].withdraw(self.local, (prefix,))
        if self.own.remove(family, prefix):
            self._judging.own_changed(family, prefix)

    # ---------------------------------------------------------------------------------------------------- the world

    def incoming(self, address: bytes, now: float) -> str | None:
        """The name of the peer that may connect from this address, one of a range among them; None: nobody may."""
        name = self.peers.at(address)
        if name is None and (invited := self.peers.invited(address)):
            config, within = invited
            return self._add(config, now, within).name
        return name

    def superseded(self, name: str, now: float) -> bool:
        """A peer connects whose session stands. True: that has ended, for the peer has restarted.

        The caller carries out what is to be done, for the old connection, and then takes the new one: `incoming`,
        `accepted`.
        """
        peer = self.peers.get(name)
        negotiated = peer.session.negotiated if peer else None
        if peer is None or negotiated is None or not peer.restarts_when_it_connects(now):
            return False
        peer.session.failed(negotiated.direction, now, "the peer has restarted")
        self._touched(peer, now)
        return True

    def accepted(self, name: str, now: float, local: bytes = b"") -> bool:
        """A peer has connected, to our address `local`.

        False: the caller closes that connection; Session.refusal() is what to say.
        """
        peer = self.peers.get(name)
        if peer is None:
            return False
        taken = peer.session.accepted(now)
        if taken:
            peer.locals[Direction.INCOMING] = local
        self._touched(peer, now)
        return taken

    def connected(self, name: str, now: float, local: bytes = b"") -> None:
        """The connection that Connect asked for stands, from our address `local`."""
        if peer := self.peers.get(name):
            peer.locals[Direction.OUTGOING] = local
            peer.session.connected(now)
            self._touched(peer, now)

    def failed(
        self, name: str, direction: Direction, now: float, reason: str = "the TCP connection was closed"
    ) -> None:
        """A connection broke, was closed by the peer, or did not come about."""
        if peer := self.peers.get(name):
            peer.session.failed(direction, now, reason)
            self._touched(peer, now)

    def receive(self, name: str, direction: Direction, data: bytes, now: float) -> None:
        """Octets from a peer."""
        if peer := self.peers.get(name):
            peer.session.receive(direction, data, now)
            self._touched(peer, now)

    def unread(self, name: str, direction: Direction, now: float) -> None:
        """Octets have come that could not be given to `receive` yet: the peer is not to be held for silent."""
        if peer := self.peers.get(name):
            peer.session.unread(direction, now)

    def waits(self, name: str, direction: Direction, since: float | None, now: float) -> None:
        """What was sent to a peer waits: TCP has taken nothing since then (RFC 9687); None when nothing waits."""
        if peer := self.peers.get(name):
            peer.session.waits(direction, since)
            self._touched(peer, now)

    def bfd_down(self, name: str, now: float, why: str, *, independent: bool) -> None:
        """BFD, which had reached a peer, does not any more: its session ends, its routes go (RFC 5882 section 3.2).

        `independent`: the peer's BFD does not share the fate of its control plane (the C bit). Only then does it end
        a graceful restart under way: it cannot be a part of it (section 4.3).
        """
        peer = self.peers.get(name)
        if peer is None:
            return
        peer.session.recorder.note(f"BFD down: {why}", now)
        stood = peer.session.negotiated is not None
        if stood:
            peer.session.reset(now, Notification(ErrorCode.CEASE, Cease.BFD_DOWN))
            self._touched(peer, now)
        if stood or independent:
            self._stale.forget(peer)
            self._let_go(peer)

    def hold(self, name: str) -> None:
        """The peer does not read: it is told nothing new until `release`."""
        if peer := self.peers.get(name):
            self.advertising.hold(peer.source)

    def release(self, name: str) -> None:
        """The peer has read: it is told what has changed meanwhile."""
        if peer := self.peers.get(name):
            self.advertising.release(peer.source)

    @property
    def deferring(self) -> bool:
        """Whether we have restarted, and nothing is decided yet in some family."""
        return bool(self.deferral)

    @property
    def pending(self) -> bool:
        """Whether `take` has left something undecided for its next call."""
        undecided = any(rib.pending for family, rib in self.ribs.items() if family not in self.deferral)
        return undecided or bool(self._judging)

    @property
    def telling(self) -> bool:
        """Whether `take` has left somebody untold who reads."""
        return self.advertising.telling

    def deadline(self) -> float | None:
        """When `expire` is to be called next, or earlier."""
        ends = self.deferral.ends
        return min(([] if ends is None else [ends]) + [at for at, _ in self._timers[:1]], default=None)

    def expire(self, now: float) -> None:
        """Carry out what is due. Calling it early does nothing."""
        while self._timers and self._timers[0][0] <= now:
            at, name = heapq.heappop(self._timers)
            peer = self.peers.get(name)
            if peer is None or peer.scheduled != at:
                continue
            peer.scheduled = None
            if peer.awaited or peer.refreshing:
                self._stale.expire(peer, now)
                self._let_go(peer)
            peer.session.expire(now)
            self._touched(peer, now)
        if self.deferral.expire(now):
            self._restarted()

    def take(self, now: float) -> list[Told]:
        """Decide what has been left undecided, and give all that is to be done and known, in order.

        At most AT_ONCE prefixes are judged anew, as many of a family decided, and as many told to peers that are
        behind; `pending` and `telling` say whether some are left for another call.
        """
        self._now = now
        self._judging.step(AT_ONCE)
        self._flush(AT_ONCE)
        if not self.pending:
            for name in self._joining.copy():
                self._join(self.peers[name])
        self.advertising.step(AT_ONCE)
        for name in self._sent_to:
            self._touched(self.peers[name], now)
        self._sent_to.clear()
        for name in tuple(self._leaving):
            self._leave(self.peers[name], now)
        outputs, self._outputs = self._outputs, []
        return outputs

    def take_changes(self) -> dict[Family, dict[bytes, Chosen]]:
        """What was chosen anew since the last call, as of the last `take`: for the kernel's tables."""
        changes = self._changes
        self._changes = {family: {} for family in self.config.families}
        return changes

    # ------------------------------------------------------------------------------------------ what sessions tell

    def _touched(self, peer: Peer, now: float) -> None:
        """After each event of a peer: hear what its session says, and set its timer."""
        self._collect(peer, now)
        if self.deferral and not peer.session.started:
            self._no_longer_awaited(peer.name)
        deadlines = (peer.session.deadline(), self._stale.deadline(peer))
        deadline = min((at for at in deadlines if at is not None), default=None)
        # A timer that is set too early costs one look, and nearly every message moves the real one on.
        if deadline is not None and (peer.scheduled is None or deadline < peer.scheduled):
            peer.scheduled = deadline
            heapq.heappush(self._timers, (deadline, peer.name))

    def _collect(self, peer: Peer, now: float) -> None:
        while outputs := peer.session.take():
            for output in outputs:
                self._hear(peer, output, now)

    def _hear(self, peer: Peer, output: Output, now: float) -> None:
        if isinstance(output, Update):
            self._update(peer, output, now)
        elif isinstance(output, Refresh):
            self._refresh(peer, output, now)
        else:
            if isinstance(output, Established):
                self._came_up(peer, output.negotiated, now)
            elif isinstance(output, Down):
                if output.was is State.ESTABLISHED:
                    self._went_down(peer, output, now)
                if output.shut_down:
                    self._no_longer_awaited(peer.name)
                if peer.within is not None:
                    self._leaving[peer.name] = None
            self._outputs.append((peer.name, output))

    def _update(self, peer: Peer, update: Update, now: float) -> None:
        source = peer.source
        if update.faults:
            peer.remember(update.faults)
        for family, prefixes in update.withdrawn:
            self.ribs[family].withdraw(source, prefixes)
        for family, prefixes, received in update.announced:
            rib = self.ribs[family]
            for some, attributes, rejected in peer.judge(family, prefixes, received):
                rib.announce(source, some, attributes, received, rejected)
            if peer.config.most_prefixes is not None:
                self._check_limit(peer, family, now)
        if update.end_of_rib is not None:
            self._stale.complete(peer, update.end_of_rib)
            self._no_longer_awaited(peer.name, update.end_of_rib)
            before = peer.complete
            peer.ended.add(update.end_of_rib)
            if peer.complete is not before:
                self._outputs.append((peer.name, Complete()))

    def _refresh(self, peer: Peer, refresh: Refresh, now: float) -> None:
        negotiated = peer.session.negotiated
        if negotiated is None:
            return
        if refresh.kind is RefreshKind.REQUEST:
            self.advertising.ask(peer.source, refresh.family, bracketed=negotiated.enhanced_refresh)
        elif refresh.kind is RefreshKind.ENDS:
            self._stale.refresh_ends(peer, refresh.family)
        elif negotiated.received.capabilities.graceful_restart and refresh.family not in peer.ended:
            note = f"the beginning of a refresh of {refresh.family.name} before its End-of-RIB: passed over"
            peer.session.recorder.note(note, now)  # RFC 7313 section 4
        else:
            self._stale.refresh_begins(peer, refresh.family, now)

    def _check_limit(self, peer: Peer, family: Family, now: float) -> None:
        reached = reached_limit(peer, self.ribs[family])
        if reached is None:
            return
        self._outputs.append((peer.name, reached))
        if reached.ended:
            peer.session.stop(now, Notification.too_many_prefixes(family, reached.limit))
            self.version += 1

    def _came_up(self, peer: Peer, negotiated: Negotiated, now: float) -> None:
        if peer.config.asn is None and peer.source.asn not in (0, negotiated.received.asn):
            self._stale.forget(peer)  # any AS may come, and this is not who went
        peer.established(negotiated)
        self._offer(peer)
        peer.since = now
        self._stale.came_up(peer, negotiated, now)
        restart = negotiated.received.capabilities.graceful_restart
        for family in self.ribs:
            if restart is None or restart.restarting or family not in negotiated.families:
                self._no_longer_awaited(peer.name, family)
        self._joining[peer.name] = None

    def _went_down(self, peer: Peer, down: Down, now: float) -> None:
        peer.since = now
        peer.flaps += 1
        peer.dropped_before = self.dropped()
        self._joining.pop(peer.name, None)
        self.advertising.leave(peer.source)
        self._stale.went_down(peer, down, now)

    def _let_go(self, peer: Peer) -> None:
        """The time for a restart may be over."""
        if peer.within is not None and not peer.awaited:
            self._leaving[peer.name] = None

    def _leave(self, peer: Peer, now: float) -> None:
        """A peer of a range whose session is over is none any more, unless it or its routes are kept."""
        del self._leaving[peer.name]
        if peer.session.started and peer.session.state < State.OPEN_SENT and not peer.awaited:
            self.remove_peer(peer.name, now)

    def _no_longer_awaited(self, name: str, family: Family | None = None) -> None:
        if self.deferral.heard(name, family):
            self._restarted()

    def _restarted(self) -> None:
        """Our own restart is over: the next OPEN says so."""
        for peer in self.peers.values():
            self._offer(peer)

    def _offer(self, peer: Peer) -> None:
        """What the next OPEN to it says."""
        offered = capabilities(self.config, peer.config, restarting=bool(self.deferral), stood=peer.stood)
        peer.session.change_capabilities(offered)

    # ------------------------------------------------------------------------------------------- what peers are told

    def _flush(self, most: int) -> None:
        """Decide some of what is marked, and tell the groups."""
        for family, rib in self.ribs.items():
            if family in self.deferral:
                continue
            changes = rib.take_changes(most)
            decided = rib.take_decided()
            if changes or decided:
                self._changes[family].update(changes)
                self.advertising.tell(family, changes, decided)

    def _send(self, member: Source, data: bytes, count: int) -> None:
        peer = self.peers.by_source[member]
        peer.session.send(data)
        peer.session.recorder.say(data, count, self._now)
        self._sent_to[peer.name] = None

    def _join(self, peer: Peer) -> None:
        """The session has come up, and everything is decided."""
        settings = peer.export_settings()
        if not any(family in self.deferral for family in settings.families):
            del self._joining[peer.name]
            self.advertising.join(peer.source, settings)

    # ------------------------------------------------------------------------------------------------------- changes

    def _renew(self, peer: Peer, config: PeerConfig, now: float) -> None:
        """New settings that are agreed on when a session begins: it begins anew, unless it is kept down."""
        if config.shutdown is not None and peer.config.shutdown is None:
            self.stop_peer(peer.name, now, config.shutdown)
        settings = session_settings(self.config, config, restarting=bool(self.deferral), stood=peer.stood)
        peer.session.renew(settings, _OTHER_CONFIGURATION, now)
        self._touched(peer, now)
        self._reconfigure(peer, config, now)

    def _reconfigure(self, peer: Peer, config: PeerConfig, now: float) -> None:
        """New settings for a session that goes on: its role, its policies."""
        before = peer.config
        peer.config = config
        if config.shutdown is not None and before.shutdown is None:
            self.stop_peer(peer.name, now, config.shutdown)
        elif config.shutdown is None and before.shutdown is not None:
            self.start_peer(peer.name, now)
        if before.most_prefixes != config.most_prefixes:
            self._limit_changed(peer, now)
        if before.connect_retry != config.connect_retry:
            peer.session.change(replace(peer.session.settings, connect_retry=config.connect_retry), now)
            self._touched(peer, now)
        imports = ("import_policy", "allowed_own_as", "enforce_first_as", "accept_default")
        if any(getattr(before, name) != getattr(config, name) for name in imports):
            self._judging.again(peer)
        kind = peer.kind(peer.source.asn)
        if peer.source.kind is not kind:
            peer.source.kind = kind
            for family, rib in self.ribs.items():
                paths = rib.received(peer.source)
                self.advertising.tell_again(family, (prefix_of(family, path) for path in paths))
        self._move(peer)

    def _limit_changed(self, peer: Peer, now: float) -> None:
        """A session that was ended for the old limit gets another chance; one that is beyond the new one ends."""
        if peer.limited:
            self.start_peer(peer.name, now)
            return
        peer.warned.clear()
        if peer.session.negotiated is not None:
            for family in self.ribs:
                self._check_limit(peer, family, now)
            self._touched(peer, now)

    def _move(self, peer: Peer) -> None:
        if peer.session.negotiated is not None and peer.name not in self._joining:
            self.advertising.move(peer.source, peer.export_settings())

    def _decoder(self, as4: bool, internal: bool) -> AttributeDecoder:
        """Sessions of one kind share what has been parsed."""
        decoder = self._decoders.get((as4, internal))
        if decoder is None:
            decoder = self._decoders[as4, internal] = AttributeDecoder(as4=as4, internal=internal)
        return decoder
