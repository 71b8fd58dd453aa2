"""What is wrong between leases: overlapping subnets, shared host addresses, subnets outside Network, clashing names.

Rule: kept up to date lease by lease, with work per lease that does not grow with the cluster; what is found is said
only when asked for, in words for an operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from socket import AF_INET6, inet_aton, inet_pton
from typing import TypeVar

from netagent.model import Finding, Lease, Network, NodeRecord
from netagent.store import schema

# Findings of one kind that are told one by one: with thousands of nodes one mistake can make thousands.
SHOWN = 20

_K = TypeVar("_K")


class Checks:
    """What is checked across leases, kept up to date lease by lease: overlaps, shared addresses, the Network.

    `_starts` maps family and prefix length to the first addresses of the leases of that length; there are few
    lengths in a network, so finding overlaps means a few look-ups.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}  # almost always one: a set would be four times as large
        self.outside: set[str] = set()
        self._shared: set[str] = set()
        self._starts: dict[tuple[int, int], dict[int, tuple[str, ...]]] = {}
        self._overlaps: dict[str, set[str]] = {}
        self._clashes: set[str] = set()
        self._spans: dict[int, tuple[int, int] | None] = {}  # of Network, by bits; empty while there is none

    def network(self, network: Network, leases: Iterable[Lease]) -> None:
        self._spans = {
            32: schema.span(network.v4) if network.v4 else None,
            128: schema.span(network.v6) if network.v6 else None,
        }
        self.outside = {
            lease.key for lease in leases if any(self._is_outside(*prefix) for prefix in _prefixes(lease))
        }

    def names(
        self, touched: Iterable[str], nodes: Mapping[str, NodeRecord], alive: Mapping[str, schema.Owner]
    ) -> None:
        for name in touched:
            node, living = nodes.get(name), alive.get(name)
            if node is not None and living is not None and living.id and node.id != living.id:
                self._clashes.add(name)
            else:
                self._clashes.discard(name)

    def add(self, lease: Lease) -> None:
        name = lease.key
        for bits, length, start in _prefixes(lease):
            for other in self._overlapping(bits, length, start):
                if other != name:
                    self._overlaps.setdefault(name, set()).add(other)
                    self._overlaps.setdefault(other, set()).add(name)
            _append(self._starts.setdefault((bits, length), {}), start, name)
            if self._spans and self._is_outside(bits, length, start):
                self.outside.add(name)
        for address in (lease.public_ip, lease.public_ip6):
            if address is not None and len(_append(self.addresses, address, name)) > 1:
                self._shared.add(address)

    def remove(self, lease: Lease) -> None:
        name = lease.key
        for other in self._overlaps.pop(name, ()):
            rest = self._overlaps[other]
            rest.discard(name)
            if not rest:
                del self._overlaps[other]
        for bits, length, start in _prefixes(lease):
            _discard(self._starts[bits, length], start, name)
        for address in (lease.public_ip, lease.public_ip6):
            if address is not None:
                _discard(self.addresses, address, name)
                if len(self.addresses.get(address, ())) < 2:
                    self._shared.discard(address)
        self.outside.discard(name)

    def overlapping(self, lease: Lease) -> set[str]:
        """Keys of other leases that share addresses with this one."""
        found = {name for prefix in _prefixes(lease) for name in self._overlapping(*prefix)}
        found.discard(lease.key)
        return found

    def _overlapping(self, bits: int, length: int, start: int) -> Iterator[str]:
        for (other_bits, other_length), starts in self._starts.items():
            if other_bits != bits:
                continue
            if other_length <= length:
                shift = bits - other_length
                yield from starts.get(start >> shift << shift, ())
            else:
                shift = bits - length
                for other, names in starts.items():
                    if other >> shift << shift == start:
                        yield from names

    def _is_outside(self, bits: int, length: int, start: int) -> bool:
        allowed = self._spans.get(bits)
        return allowed is None or not (allowed[0] <= start and start + (1 << (bits - length)) - 1 <= allowed[1])

    def findings(
        self,
        network: Network | None,
        leases: Mapping[str, Lease],
        nodes: Mapping[str, NodeRecord],
        alive: Mapping[str, schema.Owner],
    ) -> Iterable[Finding]:
        """At most SHOWN of a kind, and how many more there are."""
        pairs = ((name, other) for name, others in self._overlaps.items() for other in others if name < other)
        overlaps = (_overlap(leases[name], leases[other]) for name, other in sorted(islice(pairs, SHOWN)))
        yield from overlaps
        for address in _some(self._shared):
            yield _shared_address(address, [leases[name] for name in sorted(self.addresses[address])])
        for name in _some(self.outside):
            yield _outside(leases[name], network)
        for name in _some(self._clashes):
            yield _clash(name, nodes[name].id, alive[name].id)
        for code, found in (
            ("lease-shared-address", self._shared),
            ("lease-outside-network", self.outside),
            ("node-name-clash", self._clashes),
        ):
            if len(found) > SHOWN:
                yield more(code, len(found) - SHOWN)


def _some(names: Iterable[str]) -> list[str]:
    return sorted(names)[:SHOWN]


def more(code: str, count: int) -> Finding:
    return Finding(code=code, subject="more", message=f"{count} more like these", remedy="see `netagent lease list`")


def _prefixes(lease: Lease) -> list[tuple[int, int, int]]:
    """(bits of the family, prefix length, first address) of its subnets."""
    found = []
    if lease.v4 is not None:
        text, _, length = lease.v4.partition("/")
        found.append((32, int(length), int.from_bytes(inet_aton(text), "big")))
    if lease.v6 is not None:
        text, _, length = lease.v6.partition("/")
        found.append((128, int(length), int.from_bytes(inet_pton(AF_INET6, text), "big")))
    return found


def _append(index: dict[_K, tuple[str, ...]], key: _K, name: str) -> tuple[str, ...]:
    """The names under the key, `name` among them once."""
    names = index.get(key, ())
    if name not in names:
        names = index[key] = (*names, name)
    return names


def _discard(index: dict[_K, tuple[str, ...]], key: _K, name: str) -> None:
    names = tuple(other for other in index.get(key, ()) if other != name)
    if names:
        index[key] = names
    else:
        index.pop(key, None)


# --------------------------------------------------------------------------------------- findings in words


def _overlap(one: Lease, two: Lease) -> Finding:
    if one.node_id and one.node_id == two.node_id:
        message = f"{one.label} holds two leases that overlap, {one.key} and {two.key}"
    else:
        message = f"the subnets {one.key} of {one.label} and {two.key} of {two.label} overlap"
    return Finding(
        code="lease-overlap",
        subject=f"{one.key} {two.key}",
        severity="error",
        message=f"{message}; packets for the shared addresses reach only one of them",
        remedy="stop the agent of the node that came last and run `netagent lease release SUBNET` for its lease",
    )


def _shared_address(address: str, leases: Iterable[Lease]) -> Finding:
    holders = list(leases)
    keys = ", ".join(f"{lease.key} ({lease.label})" for lease in holders[:SHOWN])
    if len(holders) > SHOWN:
        keys += f" and {len(holders) - SHOWN} more"
    if len({lease.node_id for lease in holders}) == 1 and holders[0].node_id:
        message = f"{holders[0].label} holds several leases: {keys}"
        remedy = "release those that it does not use: `netagent lease release SUBNET`"
    else:
        message = f"several leases have the one host address {address}: {keys}"
        remedy = (
            "give each node an address of its own with --iface or --public-ip (on Vagrant eth0 is the same on all)"
        )
    return Finding(code="lease-shared-address", subject=address, message=message, remedy=remedy)


def _outside(lease: Lease, network: Network | None) -> Finding:
    ranges = " ".join(prefix for prefix in (network.v4, network.v6) if prefix) if network else ""
    return Finding(
        code="lease-outside-network",
        subject=lease.key,
        message=f"the lease {lease.key} of {lease.label} lies outside the network {ranges}",
        remedy="if Network was changed, move the node to a new subnet; if the lease is nobody's, "
        f"`netagent lease release {lease.v4 or lease.v6}`",
    )


def disputed(lease: Lease, owner: schema.Owner) -> Finding:
    return Finding(
        code="lease-two-owners",
        subject=lease.key,
        severity="error",
        message=f"node {owner.node} has claimed {lease.key}, but somebody at "
        f"{lease.public_ip or lease.public_ip6 or 'an unknown address'} has written the key since",
        remedy="find what else leases subnets there (a flanneld beside netagent?) and stop one of the two",
    )


def _clash(name: str, recorded: str, living: str) -> Finding:
    return Finding(
        code="node-name-clash",
        subject=name,
        severity="error",
        message=f"two nodes are called {name}",
        evidence=f"ids {recorded} and {living}",
        remedy="give one of them another name with --node-name, or, if the machine was installed anew, wait for its "
        "agent to write its record",
    )
