"""A peer of the speaker: what it is told, its session, and what is taken from it (RFC 4271 section 9.1, RFC 4456).

Rule: what a peer sends is judged here, once. A route that may not be used stays in Adj-RIB-In with the reason, so
that an operator sees it, and a changed policy needs nothing from the peer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bfd.orders import Status
from bgp.bfd import Bfd
from bgp.connection import Direction, Negotiated, Settings
from bgp.export import ExportSettings, Several
from bgp.message import AddPath, Attributes, Capabilities, Family, GracefulRestart, LongLived, nlri
from bgp.message.attribute_decoding import Fault
from bgp.own import SHORTEST, OwnPrefixes, too_short
from bgp.policy import Policy
from bgp.route import EXTERNAL, Kind, Source
from bgp.session import Session
from bgp.transport import DEFAULT_TRANSPORT, Dropped, Transport

if TYPE_CHECKING:
    from bgp.ranges import PeerRange


LONG_LIVED_MOST = 86400
_SETTLED = 10.0
"""Seconds after which another connection from a peer is no collision any more."""


@dataclass(frozen=True, slots=True)
class SpeakerConfig:
    """What the speaker is. Identifiers and addresses are packed; times in seconds."""

    asn: int
    identifier: bytes
    families: tuple[Family, ...] = (Family.IPV4,)
    addresses: tuple[tuple[Family, bytes], ...] = ()
    """Our own address in each family: the next hop of what goes by way of us. Without one it is that of the session,
    if it is of the family.
    """
    cluster_id: bytes = b""
    """As a route reflector; empty means the identifier."""
    paths: int = 1
    """Equally good routes that are chosen (multipath)."""
    restart_time: int = 120
    """Graceful restart (RFC 4724): what we ask of our peers. 0 leaves the capability out."""
    stale_time: float = 360.0
    """How long a peer that is back may take to announce its routes anew."""
    long_lived_time: int = 0
    """Long-lived graceful restart (RFC 9494): how long our peers may keep our routes, as the last choice, once our
    restart time is over. 0: they may not.
    """
    long_lived_most: int = LONG_LIVED_MOST
    """How long we keep theirs at most, whatever they ask for."""
    long_lived_partial: bool = False
    """Peers of our AS that do not know of it are told of such routes too, as their last choice."""

    @property
    def restarts(self) -> bool:
        """Whether there is graceful restart, of either kind."""
        return bool(self.restart_time or self.long_lived_time)


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """What the speaker is told of a peer. A policy is compared by identity."""

    name: str
    address: bytes
    asn: int | None = None
    """None takes any."""
    client: bool = False
    """We reflect for it, if it is of our AS."""
    passive: bool = False
    hold_time: int = 90
    connect_retry: float = 30.0
    send_hold: float | None = None
    """Seconds that it may take nothing of what we say (RFC 9687); 0: for ever; None: 480 or twice the hold time."""
    local_asn: int | None = None
    """Our AS as this peer knows it, where that is another one."""
    next_hop_self: bool | None = None
    import_policy: Policy | None = None
    export_policy: Policy | None = None
    allowed_own_as: int = 0
    """How often our AS may stand in a path from it."""
    enforce_first_as: bool = True
    """A path from another AS must begin with that AS."""
    accept_default: bool = False
    """Whether a default route from it is used, or what is as good as one (own.py)."""
    most_prefixes: int | None = None
    """In each family; one more and the session ends, and stays down until it is started again."""
    warn_at: float = 0.8
    """The share of `most_prefixes` at which a warning is given."""
    shutdown: str | None = None
    """Words (or none, "") with which the session is kept down by the operator; None: it is kept up."""
    several_in: bool = False
    """Whether it may send several routes to a prefix (RFC 7911)."""
    several_out: Several | None = None
    """Which of several routes to a prefix it is told, if it takes them; None: of the best alone."""
    extended_next_hop: bool = False
    """Whether routes of IPv4 may have a next hop of IPv6, both ways (RFC 8950)."""
    extended_messages: bool = True
    """Whether it may send messages of up to 65,535 octets, and is sent them if it takes them (RFC 8654)."""
    transport: Transport = DEFAULT_TRANSPORT
    bfd: Bfd | None = None
    """Whether and how BFD watches over the peer."""

    def same_peer(self, other: PeerConfig) -> bool:
        """Whether routes that one has told can be kept for the other, while a session begins anew.

        It may have another AS number, if both are said.
        """
        numbered = self.asn == other.asn or None not in (self.asn, other.asn)
        return numbered and (self.address, self.local_asn) == (other.address, other.local_asn)

    def same_session(self, other: PeerConfig) -> bool:
        """Whether a session that stands can go on with the other configuration."""
        if (self.several_out is None) is not (other.several_out is None):
            return False  # our OPEN says whether it is told of several; which ones is for us alone to know
        return replace(self, **{name: getattr(other, name) for name in _CHANGEABLE}) == other


_CHANGEABLE = (
    *("client", "next_hop_self", "import_policy", "export_policy", "allowed_own_as", "enforce_first_as"),
    *("accept_default", "most_prefixes", "warn_at", "connect_retry", "shutdown", "several_out", "bfd"),
)
"""What can change under a session that stands."""


class Peer:
    """A peer while it is configured; its session comes and goes."""

    def __init__(self, speaker: SpeakerConfig, config: PeerConfig, session: Session, own: OwnPrefixes) -> None:
        self.speaker = speaker
        self.config = config
        self.session = session
        self.within: PeerRange | None = None
        """The range that it comes from; None: it is listed."""
        self.locals: dict[Direction, bytes] = {}
        """Our address in its connections."""
        self.stood = False
        """Whether a session with it has stood: since then we have gone on forwarding."""
        self.bfd: Status | None = None
        """What BFD says of it, as far as it was heard."""
        self.flaps = 0
        """How often its session has gone down."""
        self._own = own
        self._ours = frozenset(address for _, address in speaker.addresses)
        """Our addresses as it sees us: no route's next hop may be one of them."""
        self.source = Source(config.name, self.kind(config.asn), config.asn or 0, address=config.address)
        self.since = 0.0
        """When the session came up or went down."""
        self.faults: dict[Fault, int] = {}
        """What was wrong with its UPDATEs, and how often; the oldest kind is forgotten beyond a hundred."""
        self.malformed = 0
        """UPDATEs with something wrong."""
        self.limited = False
        """Its session was ended for too many prefixes."""
        self.dropped_before = Dropped()
        """What the host had dropped for its signature when the session was begun or went down."""
        self.warned: set[Family] = set()
        self.ended: set[Family] = set()
        """The families in which it has sent End-of-RIB since its session came up."""
        self.scheduled: float | None = None
        self.restart_ends: float | None = None
        """Until when its routes are kept although it is away, or until when it must have announced them anew."""
        self.refreshing: dict[Family, float] = {}
        """Families that it is sending again (RFC 7313), and until when it must have."""
        self.keeps: dict[Family, int] = {}
        """For how many seconds its routes are kept beyond its restart time, since it went away last (RFC 9494)."""
        self.long_lived: dict[Family, float] = {}
        """Families whose stale routes are kept as the last choice (RFC 9494), and until when."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def local_asn(self) -> int:
        return self.config.local_asn or self.speaker.asn

    def kind(self, asn: int | None) -> Kind:
        """What a peer of that AS is to us."""
        if asn != self.local_asn:
            return Kind.EXTERNAL
        return Kind.CLIENT if self.config.client else Kind.INTERNAL

    def established(self, negotiated: Negotiated) -> None:
        """Fill in what its OPEN said."""
        self.stood = True
        self.source.asn = negotiated.received.asn
        self.source.identifier = negotiated.received.identifier
        self.source.kind = self.kind(self.source.asn)
        self._ours = frozenset(address for _, address in self.own_addresses())
        self.warned.clear()
        self.ended.clear()

    @property
    def awaited(self) -> bool:
        """Whether routes of it are kept that it has to announce anew after a restart."""
        return self.restart_ends is not None or bool(self.long_lived)

    @property
    def complete(self) -> bool:
        """Whether the session stands and the peer has told all that it has."""
        negotiated = self.session.negotiated
        return negotiated is not None and self.ended.issuperset(negotiated.families)

    def restarts_when_it_connects(self, now: float) -> bool:
        """Whether another connection, while the session stands, means that it has restarted (RFC 4724 section 5)."""
        negotiated = self.session.negotiated
        if negotiated is None or now - self.since <= _SETTLED:
            return False
        restart = negotiated.received.capabilities.graceful_restart
        return restart is not None and bool(restart.preserved)

    def set_speaker(self, config: SpeakerConfig) -> None:
        """The speaker has other settings now."""
        self.speaker = config
        self._ours = frozenset(address for _, address in self.own_addresses())

    def own_addresses(self) -> tuple[tuple[Family, bytes], ...]:
        """Our addresses as it sees us: those that we are told, then that of the session."""
        told = self.speaker.addresses
        negotiated = self.session.negotiated
        local = self.locals.get(negotiated.direction, b"") if negotiated else b""
        family = Family.IPV4 if len(local) == 4 else Family.IPV6
        if not local or any(known is family for known, _ in told):
            return told
        return (*told, (family, local))

    def export_settings(self) -> ExportSettings:
        """The group that it belongs to, while its session stands."""
        negotiated = self.session.negotiated
        assert negotiated is not None
        speaker = self.speaker
        return ExportSettings(
            self.source.kind,
            self.local_asn,
            speaker.identifier,
            negotiated.families,
            negotiated.as4,
            speaker.cluster_id,
            self._next_hops(negotiated),
            self.config.next_hop_self,
            self.config.export_policy,
            self._several(negotiated),
            negotiated.extended_next_hop,
            negotiated.longest_out,
            negotiated.long_lived,
            speaker.long_lived_partial,
        )

    def _next_hops(self, negotiated: Negotiated) -> tuple[tuple[Family, bytes], ...]:
        """Our addresses for what goes by way of us. Over IPv6, IPv4 goes the session's way too if it can."""
        over_ipv6 = len(self.locals.get(negotiated.direction, b"")) == 16 or len(self.config.address) == 16
        ours = self.own_addresses()
        if not (negotiated.extended_next_hop and over_ipv6):
            return ours
        return tuple((family, address) for family, address in ours if family is Family.IPV6)

    def _several(self, negotiated: Negotiated) -> tuple[tuple[Family, Several], ...]:
        several = self.config.several_out
        return tuple(
            (family, several) for family in negotiated.families if several and family in negotiated.several_out
        )

    def remember(self, faults: Iterable[Fault]) -> None:
        self.malformed += 1
        for fault in faults:
            self.faults[fault] = self.faults.pop(fault, 0) + 1
            if len(self.faults) > 100:
                del self.faults[next(iter(self.faults))]

    # ------------------------------------------------------------------------------------------- what it sends

    def judge(
        self, family: Family, paths: list[bytes], received: Attributes
    ) -> Iterable[tuple[list[bytes], Attributes, str]]:
        """Paths with one and the same fate: what counts for them, and why they may not be used (else empty)."""
        refused = self._refused(received)
        if refused:
            return ((paths, received, refused),)
        if self.config.import_policy is None and not self._own.concern(family, paths):
            return ((paths, received, ""),)
        fates: dict[tuple[Attributes, str], list[bytes]] = {}
        for path in paths:
            fates.setdefault(self._fate(family, nlri.prefix_of(family, path), received), []).append(path)
        return [(some, attributes, reason) for (attributes, reason), some in fates.items()]

    def _fate(self, family: Family, prefix: bytes, received: Attributes) -> tuple[Attributes, str]:
        """What counts for a prefix, and why it may not be used."""
        refused = self._own.refused(family, prefix)
        if refused:
            return received, refused
        if prefix[0] < SHORTEST and not self.config.accept_default:
            return received, too_short(prefix)
        if self.config.import_policy is None:
            return received, ""
        attributes = self.config.import_policy.apply(family, prefix, received)
        return (received, "rejected by the import policy") if attributes is None else (attributes, "")

    def _refused(self, attributes: Attributes) -> str:
        """Why the protocol forbids the route; empty when it does not."""
        path = attributes.as_path
        if path:
            # Towards others we are the speaker's AS: each of the two is counted for itself, as BIRD and FRR do.
            for own in {self.local_asn, self.speaker.asn}:
                if sum(number == own for number in path.numbers()) > self.config.allowed_own_as:
                    return f"our AS {own} is in the path"
        if attributes.next_hop[:16] in self._ours:
            return "we are the next hop"
        if self.source.kind is EXTERNAL:
            if self.config.enforce_first_as and path.first != self.source.asn:
                return f"the path does not begin with the peer's AS {self.source.asn}"
            return ""
        if attributes.originator_id == self.speaker.identifier:
            return "we are the originator"
        if (
            attributes.cluster_list
            and (self.speaker.cluster_id or self.speaker.identifier) in attributes.cluster_list
        ):
            return "our cluster is in the cluster list"
        return ""


def capabilities(
    speaker: SpeakerConfig, config: PeerConfig, *, restarting: bool, stood: bool = False
) -> Capabilities:
    """What our OPEN says to a peer; `restarting` while we are just back ourselves (RFC 4724 section 4.1).

    Forwarding went on while there was no session with a peer that `stood` before. Enhanced refresh is offered only
    beside graceful restart: without, FRR (8.4) waits for an End-of-RIB that it never sends, and answers no request.
    """
    restart, long_lived = None, None
    if speaker.restarts:
        preserved = tuple((family, restarting or stood) for family in speaker.families)
        restart = GracefulRestart(speaker.restart_time, restarting, preserved, notification=True)
        kept = tuple((family, restarting or stood, speaker.long_lived_time) for family in speaker.families)
        long_lived = LongLived(kept if speaker.long_lived_time else ())
    ways = AddPath(0)
    if config.several_in:
        ways |= AddPath.RECEIVE
    if config.several_out is not None:
        ways |= AddPath.SEND
    return Capabilities(
        speaker.families,
        graceful_restart=restart,
        add_path=tuple((family, ways) for family in speaker.families) if ways else (),
        extended_next_hop=config.extended_next_hop and Family.IPV4 in speaker.families,
        extended_messages=config.extended_messages,
        enhanced_refresh=speaker.restarts,
        long_lived=long_lived,
    )


def session_settings(
    speaker: SpeakerConfig, config: PeerConfig, *, restarting: bool, stood: bool = False
) -> Settings:
    """What the peer's session is told."""
    return Settings(
        config.local_asn or speaker.asn,
        speaker.identifier,
        config.asn,
        capabilities(speaker, config, restarting=restarting, stood=stood),
        config.hold_time,
        config.connect_retry,
        config.passive,
        send_hold=config.send_hold,
    )
