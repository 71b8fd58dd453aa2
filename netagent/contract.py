"""What a backend is. The file that a backend's author reads first.

A backend is a pure planner: it turns values (the network, this node, facts of the host, a peer's lease) into
values (kernel objects, findings). It opens no socket, reads no clock and keeps no state; whenever one of its
inputs changes the agent calls it again and the reconciler writes the difference. What must *run* beside it (the
udp engine, the BGP speaker) is a `Service`, started by the agent; it adds objects under keys of its own.

To add a backend: one module or folder under backends/, one line under [project.entry-points."netagent.backends"],
one page in docs/, and the shared contract suite. Nothing in netagent/ changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from netagent.model import Facts, Family, Finding, Lease, Network, Node, NodeRecord, Object

# Ranks: where two owners want one key with different contents the lower rank wins.
RANK_BASE = 0
RANK_SERVICE = 10
RANK_PEER = 20
RANK_RETIRING = 30  # what the service of the previous backend has published: a peer's own plan counts for more

# Codes of the findings by which a planner says that a peer's lease announces another way than its own: another
# backend, or other options that both must have. So it is while a change is under way.
OTHER_WAYS = frozenset(("peer-other-backend", "vxlan-other-vni"))


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """All that a planner may look at. `options` is what `Backend.options` returned."""

    network: Network
    options: Any
    node: Node
    facts: Facts


class Plan(NamedTuple):
    objects: tuple[Object, ...] = ()
    findings: tuple[Finding, ...] = ()


class Options(NamedTuple):
    """Parsed backend options, and findings about what was not understood (unknown keys)."""

    value: Any
    findings: tuple[Finding, ...] = ()


class Tcp(NamedTuple):
    """A TCP port, among the UDP ports of `Backend.ports`."""

    port: int


class Udp(NamedTuple):
    """A UDP port among those of `Backend.ports` that a service has: ours to guard whatever the base plan holds."""

    port: int


class Ip(NamedTuple):
    """An IP protocol without ports, among those: inner packets of `family` come as `protocol` inside IPv4."""

    protocol: int
    family: Family


Port: TypeAlias = int | Tcp | Udp | Ip
"""One of `Backend.ports`. Never in a set: equal numbers would be equal, whatever they are of."""


# What a service's task is cancelled with when the backend is no longer wanted, and `Service.stop` follows.
STOPPING = "stopping"


class LeaseData(NamedTuple):
    """What this node publishes in its lease. `type` "" writes no BackendType (as flannel's udp does)."""

    type: str
    data: Mapping[str, Any] | None = None
    data6: Mapping[str, Any] | None = None


class Backend(Protocol):
    """A planner. One instance for the life of the agent; it keeps no state between calls."""

    name: str

    def options(self, raw: Mapping[str, Any]) -> Options:
        """Options of `Backend` in the network's configuration, keys in any case. ConfigError on a bad value."""
        ...

    def ports(self, options: Any) -> tuple[Port, ...]:
        """UDP ports (numbers, and Udp) and TCP ports (Tcp) that peers must be able to reach, and nobody else may; and
        IP protocols (Ip) that must come through: who may send those is a matter of the device."""
        ...

    def direct(self, options: Any) -> bool:
        """Whether inner packets may arrive on the uplink as they are (host-gw, DirectRouting)."""
        ...

    def mtu(self, context: Context) -> int:
        """MTU of containers' interfaces: the uplink's less the overhead (bytes)."""
        ...

    def lease(self, context: Context) -> LeaseData: ...

    def base(self, context: Context) -> Plan:
        """What the node needs whatever its peers: devices, addresses."""
        ...

    def peer(self, context: Context, lease: Lease) -> Plan:
        """What one remote lease needs. Called for each lease but our own; must be cheap (5,000 peers)."""
        ...

    def service(self, context: Context, port: ServicePort) -> Service | None:
        """The thing that must run beside the plan, or None."""
        ...

    async def dismantle(self, run_dir: Path) -> None:
        """For `netagent cleanup`: end what outlives the agent. Nothing to do for most."""
        ...


class ServicePort(Protocol):
    """What the agent lends to a service."""

    run_dir: Path
    state_dir: Path

    def publish(self, objects: Mapping[str, Iterable[Object]]) -> None:
        """Set the objects under each of these keys of this service (an empty list withdraws them)."""
        ...

    def report(self, findings: Iterable[Finding]) -> None:
        """Replace this service's findings."""
        ...

    async def share(self, attributes: Mapping[str, str]) -> None:
        """Publish attributes of this node in its record (`<prefix>/netagent/nodes/<name>`), for all nodes to read."""
        ...


class Service(Protocol):
    """Something that runs. The agent calls `run` as a task and restarts it with back-off if it raises."""

    async def run(self) -> None:
        """Until cancelled. Cancellation means that the agent goes away: what carries traffic stays.

        Cancelled with the message STOPPING the backend is no longer wanted, and `stop` follows.
        """
        ...

    def configure(self, context: Context) -> None:
        """The context changed (address, MTU, options). Called before the first `peers`."""
        ...

    def peers(self, changed: Mapping[str, Lease], removed: Iterable[str], *, whole: bool) -> None:
        """Leases by key that are new or changed, keys that went. `whole`: `changed` is all there is.

        Leases of every backend: while the cluster moves, a peer may send by this one before its record says so.
        """
        ...

    def nodes(self, nodes: Mapping[str, NodeRecord]) -> None:
        """All node records of the cluster, by name, whenever one changed."""
        ...

    async def settled(self) -> None:
        """Return when everything told so far has taken effect (the engine has the peers)."""
        ...

    async def stop(self) -> None:
        """The backend is no longer wanted: end what carries traffic too."""
        ...

    def status(self) -> Mapping[str, Any]:
        """For `netagent status` and metrics: plain JSON values. "state" is one word, "peers" maps keys to dicts.

        Where the plan of a peer has no route, "state" and "reason" in its dict tell how it is reached ("up",
        "pending", "unreachable"). "summary" is a line for people, "gauges" and "drops" map names to numbers.
        """
        ...


class Answer(NamedTuple):
    """What a service says when it is asked.

    `values` are JSON values from memory, made one by one: who takes them may let the service work in between.
    UsageError with the first where nothing fits the question. `lines` makes lines for people of all of them, and may
    run in a thread.
    """

    values: Iterable[Any]
    lines: Callable[[Sequence[Any]], Iterable[str]]


@runtime_checkable
class Viewer(Protocol):
    """A service that can be asked for more than its status, by `netagent` commands of its own."""

    def view(self, name: str, arguments: Mapping[str, str]) -> Answer:
        """The answer to a question. UsageError where there is no such view."""
        ...
