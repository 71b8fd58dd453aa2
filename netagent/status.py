"""What the agent says of itself: frozen, JSON-ready values that the API, the metrics and the CLI share.

Rules: points in time are unix seconds (0.0: never), durations are seconds; a view never makes a call to answer,
it tells what is known and since when; anything an operator reads is a sentence in plain words. States of peers and
objects are open sets of words, so that a CLI of another version can still show them. `status()` stays small
with thousands of peers: it carries counts and the peers worth showing; `peers()` carries them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from netagent.model import (
    Address,
    FdbEntry,
    Finding,
    ForeignAccept,
    Link,
    Neighbour,
    NextHop,
    NftElement,
    NftTable,
    Object,
    Offload,
    Route,
    Sysctl,
)

if TYPE_CHECKING:
    from netagent.contract import Answer

State = Literal["healthy", "degraded", "down"]

# Up to so many peers are all shown in the summary; with more, only those that are not up, and at most SHOWN_MAX.
SHOWN_ALL = 20
SHOWN_MAX = 100


# What the agent of this version says; `Peer` and `ObjectView` have what each means.
PEER_STATES = ("up", "unknown", "down", "pending", "unreachable", "ignored")
OBJECT_STATES = ("installed", "pending", "failing")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the values here: unknown fields are ignored on reading, every field has a default."""


class Verdict(View, frozen=True, kw_only=True):
    """What `health.verdict` makes of a status. `reasons` are in order of weight, `reason` sums them up in one line.

    `ready` is the answer of /readyz: containers may be started on this host; `blockers` say why not yet.
    """

    state: State = "down"
    reason: str = ""
    reasons: tuple[str, ...] = ()
    ready: bool = False
    blockers: tuple[str, ...] = ()


class NodeStatus(View, frozen=True, kw_only=True):
    name: str = ""
    id: str = ""
    version: str = ""
    pid: int = 0
    started: float = 0.0


class EtcdStatus(View, frozen=True, kw_only=True):
    """`source` tells where the records in force come from: "etcd", "snapshot" (of an earlier run) or "none" yet."""

    endpoints: tuple[str, ...] = ()
    prefix: str = ""
    connected: bool = False
    since: float = 0.0  # of the last change of `connected`
    endpoint: str = ""
    version: str = ""
    error: str = ""
    revision: int = 0
    last_event: float = 0.0  # a record changed
    last_proof: float = 0.0  # the watch was proved alive (event or progress)
    source: str = "none"
    as_of: float = 0.0  # the records in force are known to have been current then
    resyncs: int = 0
    watch_failures: int = 0


class NetworkStatus(View, frozen=True, kw_only=True):
    """`valid` is of the newest configuration seen; if it is not, the last good one (these fields) stays in force."""

    v4: str = ""
    v6: str = ""
    subnet_len: int = 0
    subnet_len6: int = 0
    backend: str = ""
    revision: int = 0  # of the configuration in force
    valid: bool = False
    error: str = ""


class LeaseStatus(View, frozen=True, kw_only=True):
    """`state`: "none", "claiming", "held", "restored" (from disk, not yet confirmed by etcd), "lost", "conflict"."""

    state: str = "none"
    key: str = ""
    v4: str = ""
    v6: str = ""
    ttl: int = 0  # seconds; 0 for a reservation
    expires: float = 0.0
    renewed: float = 0.0
    reservation: bool = False
    problem: str = ""


class InterfaceStatus(View, frozen=True, kw_only=True):
    name: str = ""
    public_ip: str = ""
    public_ip6: str = ""
    local_ip: str = ""
    local_ip6: str = ""
    mtu: int = 0
    up: bool = False
    carrier: bool = False
    why: str = ""  # "it holds the default route"
    others: tuple[str, ...] = ()  # "eth1 10.0.2.15"


class BackendStatus(View, frozen=True, kw_only=True):
    """`mtu` is that of containers' interfaces (bytes); `service` what its running part says, `condensed`."""

    type: str = ""
    options: Mapping[str, Any] = {}
    mtu: int = 0
    service: Mapping[str, Any] = {}


class Failing(View, frozen=True, kw_only=True):
    """An object that the kernel refused. `foreign` is what stands in its way, if anything does."""

    object: str = ""
    kind: str = ""
    error: str = ""
    foreign: str = ""
    since: float = 0.0
    attempts: int = 0
    retry: float = 0.0  # when it is tried again


class ReconcilerStatus(View, frozen=True, kw_only=True):
    """Counts by kind (model.KINDS). `passed` once a whole pass was tried; `base` once the base objects stand."""

    desired: Mapping[str, int] = {}
    installed: Mapping[str, int] = {}
    failing: Mapping[str, int] = {}
    failures: tuple[Failing, ...] = ()  # the first SHOWN_MAX
    passed: bool = False
    base: bool = False
    passes: int = 0
    last_pass: float = 0.0
    last_pass_seconds: float = 0.0
    operations: int = 0
    last_drift: float = 0.0
    last_drift_what: str = ""  # "route 10.5.72.0/24 was removed by somebody else and put back"
    drifts: int = 0


class Peer(View, frozen=True, kw_only=True):
    """One remote lease. `path`: "vxlan na-vx1", "direct via 192.168.50.12 dev eth0", "udp engine", "none".

    `state`: "up" (path installed, node alive), "unknown" (path installed, but no sign of life is to be had: a
    flanneld node, or etcd is away), "down" (the node is not alive), "pending" (path being installed),
    "unreachable" (no path; `reason` says why), "ignored" (another backend).
    """

    node: str = ""
    key: str = ""
    v4: str = ""
    v6: str = ""
    endpoint: str = ""
    backend: str = ""
    path: str = ""
    state: str = "unknown"
    reason: str = ""
    since: float = 0.0


class PeerSummary(View, frozen=True, kw_only=True):
    total: int = 0
    states: Mapping[str, int] = {}
    shown: tuple[Peer, ...] = ()


class Status(View, frozen=True, kw_only=True):
    """`at` is when it was taken: ages are counted from it."""

    at: float = 0.0
    verdict: Verdict = Verdict()
    node: NodeStatus = NodeStatus()
    etcd: EtcdStatus = EtcdStatus()
    network: NetworkStatus = NetworkStatus()
    lease: LeaseStatus = LeaseStatus()
    interface: InterfaceStatus = InterfaceStatus()
    backend: BackendStatus = BackendStatus()
    reconciler: ReconcilerStatus = ReconcilerStatus()
    peers: PeerSummary = PeerSummary()
    findings: tuple[Finding, ...] = ()


class ObjectView(View, frozen=True, kw_only=True):
    """A kernel object that the agent wants. `text` is as iproute2 or nft would put it.

    `owner` is who wants it ("base", "peer h2", "service vxlan"), `why` what for.
    `state`: "installed", "pending", "failing".
    """

    kind: str = ""
    text: str = ""
    owner: str = ""
    why: str = ""
    state: str = "installed"
    error: str = ""


class Step(View, frozen=True, kw_only=True):
    """One thing that the reconciler would do: `verb` is "add", "change" or "remove". `was` is the present content."""

    verb: str = ""
    kind: str = ""
    text: str = ""
    was: str = ""
    owner: str = ""


class AgentView(Protocol):
    """What the API may ask of the agent. All answers come from memory but `plan`, which dumps the kernel."""

    def status(self) -> Status:
        """With the verdict filled in (`health.judged`)."""
        ...

    def peers(self) -> Iterable[Peer]:
        """Every peer. May be a generator: it is consumed at once, so that 5,000 of them need no list."""
        ...

    def objects(self, kinds: Collection[str] = ()) -> Iterable[ObjectView]:
        """Desired objects of these kinds (none given: of all), in the order of model.KINDS. As lazy as `peers`."""
        ...

    def backend_view(self, backend: str, view: str, arguments: Mapping[str, str]) -> Answer:
        """What the running part of a backend answers (contract.Viewer). UsageError where there is nothing to ask."""
        ...

    async def plan(self) -> Sequence[Step]:
        """What a full pass would do now."""
        ...

    async def resync(self) -> None:
        """List the cluster's records and dump the kernel again, and repair what differs."""
        ...

    async def reload(self) -> Sequence[Finding]:
        """Read the settings again, as on SIGHUP; findings about what could not be taken over."""
        ...


def summary(peers: Iterable[Peer]) -> PeerSummary:
    """Counts by state, and the peers that `status` shows."""
    every = tuple(peers)
    states = Counter(peer.state for peer in every)
    shown = every
    if len(every) > SHOWN_ALL:
        shown = tuple(peer for peer in every if peer.state not in ("up", "ignored"))[:SHOWN_MAX]
    return PeerSummary(total=len(every), states=dict(states), shown=shown)


def condensed(service: Mapping[str, Any]) -> dict[str, Any]:
    """What a service says of itself (contract.Service.status) without its thousands of peers.

    What it counts for each of them (`..._packets`, `..._bytes`, `drops`) is summed under "counters". Without a
    service, {}.
    """
    if not service:
        return {}
    counters: Counter[str] = Counter()
    for peer in service.get("peers", {}).values():
        for name, value in peer.items():
            if name.endswith(("_packets", "_bytes", "drops")) and isinstance(value, int):
                counters[name] += value
    return {**{name: value for name, value in service.items() if name != "peers"}, "counters": dict(counters)}


def describe(obj: Object) -> str:
    """The object in the words of the tool that would show it (ip, bridge, nft, sysctl, ethtool)."""
    match obj:
        case Route():
            return _route(obj)
        case NextHop():
            return f"{obj.gateway} dev {obj.dev} onlink"
        case Neighbour():
            return f"{obj.ip} lladdr {obj.mac} dev {obj.dev} permanent"
        case FdbEntry():
            return f"{obj.mac} dst {obj.dst} dev {obj.dev} self permanent"
        case Link():
            return _link(obj)
        case Address():
            return f"{obj.ip}/{obj.length} dev {obj.dev}"
        case NftTable():
            return f"table {obj.family} {obj.name}"
        case NftElement():
            return f"{obj.set} {{ {obj.element} }}"
        case Sysctl():
            return f"{obj.name.replace('/', '.')} = {obj.value}"
        case Offload():
            return f"{obj.dev} {obj.feature} {'on' if obj.on else 'off'}"
        case ForeignAccept():
            return f"accept {obj.prefix} in {obj.place}"


def _route(route: Route) -> str:
    words = [] if route.type == "unicast" else [route.type]
    words.append(route.dst)
    if route.nexthop is not None:
        dev, gateway = route.nexthop
        words += ["via", gateway, "dev", dev, "onlink"]
    elif len(route.hops) == 1:
        words += _hop(*route.hops[0])
    else:
        for hop in route.hops:
            words += ["nexthop", *_hop(*hop), *(["weight", str(hop.weight)] if hop.weight != 1 else [])]
    if route.src:
        words += ["src", route.src]
    if route.metric:
        words += ["metric", str(route.metric)]
    if route.mtu:
        words += ["mtu", str(route.mtu)]
    return " ".join(words)


def _hop(dev: str, gateway: str | None, onlink: bool, _weight: int) -> list[str]:
    return [*(["via", gateway] if gateway else []), "dev", dev, *(["onlink"] if onlink else [])]


def _link(link: Link) -> str:
    words = [link.name, link.kind, "mtu", str(link.mtu)]
    if link.mac:
        words += ["address", link.mac]
    if link.vxlan is not None:
        v = link.vxlan
        words += ["id", str(v.vni), "dstport", str(v.port)]
        words += ["local", v.local] if v.local else []
        words += ["dev", v.dev] if v.dev else []
        words += ["learning"] if v.learning else []
        words += ["gbp"] if v.gbp else []
    if link.tunnel is not None:
        words += ["local", link.tunnel.local or "any", "remote", link.tunnel.remote or "any"]
    return " ".join(words)
