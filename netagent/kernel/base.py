"""What the reconciler may ask of the kernel. `host.LinuxHost` is the real one, `fake.FakeHost` its twin.

Rules: only what is ours is reported as ours, changed or removed (see "What is ours on a host" in the design);
`apply` never raises for an object, it reports; calls are synchronous and short, so callers hand over chunks of a
few hundred operations and give the event loop air between them. One contract suite runs on both twins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from netagent.model import Facts, Family, Finding, Inbound, Key, Object, RouteFact


class Op(NamedTuple):
    """`put` creates the object or replaces the content of its key; `delete` removes it (absent: no failure).

    `key` is the object's, where the caller has it at hand: with thousands of objects a copy each is megabytes.
    """

    verb: Literal["put", "delete"]
    object: Object
    key: Key | None = None


class Failure(NamedTuple):
    """An operation that did not succeed. `errno` is positive (EEXIST for a foreign object in the way).

    `foreign` describes what is in the way in an operator's words, "" if nothing is.
    """

    op: Op
    errno: int
    message: str
    foreign: str = ""


class Change(NamedTuple):
    """A hint from the kernel that something of that kind may differ now. `key` None: anything of the kind.

    `kind` is one of model.KINDS, or "facts": links, addresses or foreign routes changed, plan again.
    "facts" with the key of a link: that device of another owner, which routes of ours name, went up or down.
    Changes made by our own requests are left out where the kernel lets us tell.
    """

    kind: str
    key: Key | None = None


class Host(Protocol):
    def facts(self) -> Facts:
        """Links, addresses, foreign routes and abilities now."""
        ...

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]:
        """Every object of ours of these kinds that exists now.

        Kinds without a mark (sysctl, offload, address on a foreign device) cannot be enumerated: of these, the
        present values of the keys in `wanted` and of those in the journal are returned.
        """
        ...

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out in this order, batched where kinds allow. Failures are reported, never raised."""
        ...

    def changes(self) -> AsyncIterator[list[Change]]:
        """Batches of hints, for ever. After ENOBUFS: one Change(kind, None) for each kind."""
        ...

    def route_to(self, ip: str) -> RouteFact | None:
        """What the kernel's lookup says of a destination (`ip route get`)."""
        ...

    def findings(self, prefixes: Sequence[str], inbound: Sequence[Inbound]) -> list[Finding]:
        """What on this host would hinder the network's traffic: foreign base chains that drop it, rp_filter,
        devices of another owner ... `prefixes` are the networks, `inbound` what peers send here."""
        ...

    def places(self) -> list[tuple[str, Family]]:
        """Where other tools take an accept of ours now (ForeignAccept.place), with the family."""
        ...

    def close(self) -> None: ...
