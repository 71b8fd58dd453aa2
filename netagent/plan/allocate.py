"""Which subnet a node claims. Pure: leases, configuration and what the node remembers in, a choice out.

Order of preference: the lease with our id in its owner record; one reserved for our name; one with our host address
and no owner record (flannel's rule, and how a flannel node is taken over); what the state directory remembers; what
subnet.env says; else one at random among the first hundred free ones, as flannel does, so that nodes that start
together seldom meet. Rule: nothing is chosen that overlaps a lease of another node, whatever its length.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from netagent import network_config
from netagent.errors import SubnetsExhausted
from netagent.model import Family, Lease, Network
from netagent.store import schema

# flannel's number: enough that nodes which start together seldom choose the same.
CANDIDATES = 100


class Node(NamedTuple):
    """Who asks: the node's name and id, and the addresses that it publishes."""

    name: str
    id: str
    public_ip: str | None = None
    public_ip6: str | None = None


class Remembered(NamedTuple):
    """Subnets that the node had: `source` is "state" or "subnet.env"."""

    source: str
    v4: str | None = None
    v6: str | None = None


class Choice(NamedTuple):
    """What to claim. `source`: "own", "reserved", "address", "state", "subnet.env" or "free".

    `lease` is the record that is there and ours already, if there is one; its key differs from `key` when a family
    was added to the network.
    """

    v4: str | None
    v6: str | None
    source: str
    lease: Lease | None = None

    @property
    def key(self) -> str:
        return schema.subnet_key(self.v4, self.v6)


def choose(
    network: Network,
    leases: Mapping[str, Lease],
    node: Node,
    *,
    remembered: Iterable[Remembered] = (),
    avoid: Collection[str] = (),
    rng: random.Random,
) -> Choice:
    """The subnets to claim. SubnetsExhausted when a family of the network has none left.

    `avoid` are subnets that were refused a moment ago, though `leases` does not show them yet.
    """
    own = own_lease(network, leases, node)
    if own is not None:
        lease, source = own
        v4, v6 = lease.v4, lease.v6
    else:
        lease, source, v4, v6 = None, "", None, None
    others = [other for other in leases.values() if lease is None or other.key != lease.key]
    for family in network.families:
        if (v4 if family == 4 else v6) is not None:
            continue
        subnet, found = _pick(network, family, others, list(remembered), avoid, rng)
        source = source or found
        if family == 4:
            v4 = subnet
        else:
            v6 = subnet
    return Choice(v4, v6, source, lease)


def own_lease(network: Network, leases: Mapping[str, Lease], node: Node) -> tuple[Lease, str] | None:
    """The lease that is this node's already, and by which rule."""
    best: tuple[int, int, Lease] | None = None
    for lease in leases.values():
        rank = _rank(network, lease, node)
        if rank and (best is None or (rank, lease.create_revision) < best[:2]):
            best = (rank, lease.create_revision, lease)
    if best is None:
        return None
    return best[2], ("own", "reserved", "address")[best[0] - 1]


def _rank(network: Network, lease: Lease, node: Node) -> int:
    """1: our id. 2: reserved for our name, or ours before a new installation. 3: our address. 0: not ours."""
    if lease.node_id:
        if lease.node_id == node.id:
            return 1
        # Another id under our name and at our address: this host with a new state directory.
        return 2 if lease.node == node.name and _same_address(lease, node) else 0
    if lease.node:
        return 2 if lease.node == node.name else 0
    return 3 if _same_address(lease, node) and _inside(network, lease) else 0


def _same_address(lease: Lease, node: Node) -> bool:
    if lease.public_ip is not None:
        return lease.public_ip == node.public_ip
    return lease.public_ip6 is not None and lease.public_ip6 == node.public_ip6


def _inside(network: Network, lease: Lease) -> bool:
    """Whether a record without owner fits the network as it is now: flannel reuses no other."""
    return all(subnet is None or network_config.fits(network, subnet) for subnet in (lease.v4, lease.v6))


def _pick(
    network: Network,
    family: Family,
    others: Iterable[Lease],
    remembered: Iterable[Remembered],
    avoid: Collection[str],
    rng: random.Random,
) -> tuple[str, str]:
    """(a subnet of the family for us, where it is from)."""
    taken = sorted(_taken(family, others, avoid))
    for memory in remembered:
        subnet = memory.v4 if family == 4 else memory.v6
        if subnet is None:
            continue
        usable = (
            _contained(network, family, subnet) if memory.source == "state" else network_config.fits(network, subnet)
        )
        if usable and is_free(subnet, taken):
            return subnet, memory.source
    candidates = list(free(network, family, taken, CANDIDATES))
    if not candidates:
        raise exhausted(network, family, others)
    return rng.choice(candidates), "free"


def _contained(network: Network, family: Family, subnet: str) -> bool:
    prefix = network.v4 if family == 4 else network.v6
    return prefix is not None and network_config.contains(prefix, subnet)


def _taken(family: Family, leases: Iterable[Lease], avoid: Collection[str]) -> Iterator[tuple[int, int]]:
    for lease in leases:
        subnet = lease.subnet(family)
        if subnet is not None:
            yield schema.span(subnet)
    for subnet in avoid:
        if (":" in subnet) == (family == 6):
            yield schema.span(subnet)


def is_free(subnet: str, taken: Iterable[tuple[int, int]]) -> bool:
    """Whether none of the spans shares an address with the subnet."""
    first, last = schema.span(subnet)
    return not any(start <= last and first <= end for start, end in taken)


def overlaps(subnet: str, leases: Iterable[Lease]) -> Lease | None:
    """The first lease that shares addresses with the subnet."""
    family: Family = 6 if ":" in subnet else 4
    for lease in leases:
        other = lease.subnet(family)
        if other is not None and not is_free(subnet, (schema.span(other),)):
            return lease
    return None


def free(network: Network, family: Family, taken: Iterable[tuple[int, int]], limit: int) -> Iterator[str]:
    """The first `limit` subnets between SubnetMin and SubnetMax that overlap none of the (sorted) spans."""
    first, last, size, length = _range(network, family)
    position, found = first, 0
    for start, end in (*taken, (last + size, last + size)):
        while found < limit and position <= last and position + size <= start:
            yield _subnet(family, position, length)
            position, found = position + size, found + 1
        if end >= position:
            position += (end - position) // size * size + size


def _range(network: Network, family: Family) -> tuple[int, int, int, int]:
    """(first network address, last network address, addresses in a subnet, prefix length)."""
    if family == 4:
        low, high, length = network.subnet_min, network.subnet_max, network.subnet_len
    else:
        low, high, length = network.subnet_min6, network.subnet_max6, network.subnet_len6
    assert low is not None and high is not None and length is not None
    bits = 32 if family == 4 else 128
    return schema.span(low + f"/{bits}")[0], schema.span(high + f"/{bits}")[0], 1 << (bits - length), length


def _subnet(family: Family, start: int, length: int) -> str:
    return f"{schema.address4(start) if family == 4 else schema.address6(start)}/{length}"


def exhausted(network: Network, family: Family, leases: Iterable[Lease]) -> SubnetsExhausted:
    """What to tell an operator when a family has no subnet left."""
    first, last, size, length = _range(network, family)
    reserved = leased = foreign = 0
    for lease in leases:
        subnet = lease.subnet(family)
        if subnet is None:
            continue
        start, end = schema.span(subnet)
        if end < first or start > last + size - 1:
            continue
        if end - start + 1 != size:
            foreign += 1
        elif lease.lease_id:
            leased += 1
        else:
            reserved += 1
    total = (last - first) // size + 1
    names = ("Network", "SubnetLen") if family == 4 else ("IPv6Network", "IPv6SubnetLen")
    odd = f", {foreign} more leases of other lengths are in the way" if foreign else ""
    return SubnetsExhausted(
        f"no free subnet: {network.v4 if family == 4 else network.v6} has {total} subnets of /{length} to hand out, "
        f"{leased} are leased and {reserved} reserved{odd}",
        where=names[0],
        remedy="Free those of nodes that are gone (`netagent lease list`, `netagent lease release`), or write a "
        f"configuration with a wider {names[0]} or a longer {names[1]} (`netagent init --force`)",
    )
