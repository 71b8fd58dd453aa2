"""Which peer an inner address belongs to, and which addresses may speak for that peer.

Rule: pure and quick. Lookup is longest-prefix match by one dict per prefix length (RFC 1812 5.2.4.3), with a cache in
front of it that any change empties. A packet is admitted only if the reply to it would go back to the host that
it came from (strict reverse path, RFC 3704 2.2) and if it goes to a subnet of this node.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from backends.udp.packet import Buffer

# Entries of the caches. A scan of addresses fills them; they are then emptied, and lookups cost a little more.
CACHE_SIZE = 1 << 16


class Prefix(NamedTuple):
    family: int  # 4 or 6
    bits: int  # the network's leading `length` bits, as a number
    length: int


class Entry(NamedTuple):
    """A peer as it goes over the control socket. Prefixes and addresses are text."""

    key: str
    subnets: tuple[str, ...]
    endpoints: tuple[str, ...]


def parse_address(text: str) -> tuple[int, bytes]:
    """(family, packed address); ValueError if it is none."""
    family = 6 if ":" in text else 4
    try:
        return family, inet_pton(AF_INET6 if family == 6 else AF_INET, text)
    except (OSError, UnicodeError, ValueError):
        raise ValueError(f"{text!r} is not an IP address") from None


def parse_prefix(text: str) -> Prefix:
    """`10.5.72.0/24` or `fc00::/64`, host bits zero; ValueError otherwise."""
    address, slash, digits = text.partition("/")
    family, packed = parse_address(address)
    width = len(packed) * 8
    if not slash or not digits.isascii() or not digits.isdigit() or not 0 <= (length := int(digits)) <= width:
        raise ValueError(f"{text!r} is not a prefix")
    value = int.from_bytes(packed, "big")
    bits = value >> (width - length)
    if bits << (width - length) != value:
        raise ValueError(f"{text!r} has host bits set")
    return Prefix(family, bits, length)


class Peer:
    """A remote node: where its packets go, and what has passed. `eq` is identity."""

    __slots__ = (
        "addresses",
        "drops",
        "endpoint4",
        "endpoint6",
        "entry",
        "heard",
        "prefixes",
        "rx_bytes",
        "rx_packets",
        "tx_bytes",
        "tx_packets",
    )

    def __init__(self, entry: Entry) -> None:
        """ValueError if a subnet or an endpoint of the entry is malformed."""
        self.entry = entry
        self.prefixes = tuple(map(parse_prefix, entry.subnets))
        self.endpoint4: str | None = None
        self.endpoint6: str | None = None
        for text in entry.endpoints:
            family, packed = parse_address(text)
            if family == 4:
                self.endpoint4 = text
            else:
                self.endpoint6 = inet_ntop(AF_INET6, packed)  # as recvmsg will write it
        self.addresses = tuple(a for a in (self.endpoint4, self.endpoint6) if a is not None)
        self.tx_packets = self.tx_bytes = self.rx_packets = self.rx_bytes = self.drops = 0
        self.heard = 0.0  # monotonic seconds of the last packet; 0: never

    @property
    def key(self) -> str:
        return self.entry.key

    def counters(self) -> tuple[int, int, int, int, int, float]:
        return self.tx_packets, self.tx_bytes, self.rx_packets, self.rx_bytes, self.drops, self.heard

    def restore(self, counters: Iterable[float]) -> None:
        tx_packets, tx_bytes, rx_packets, rx_bytes, drops, self.heard = counters
        self.tx_packets, self.tx_bytes = int(tx_packets), int(tx_bytes)
        self.rx_packets, self.rx_bytes, self.drops = int(rx_packets), int(rx_bytes), int(drops)

    def first_address(self, family: int) -> bytes | None:
        """The first address of its subnet of that family, which its tunnel device holds."""
        for prefix in self.prefixes:
            if prefix.family == family:
                width = 4 if family == 4 else 16
                return (prefix.bits << (width * 8 - prefix.length)).to_bytes(width, "big")
        return None


class Tree:
    """Prefixes of one family to values, longest match first."""

    def __init__(self, width: int) -> None:
        self._width = width  # bits of an address
        self._lengths: list[tuple[int, dict[int, list[Peer]]]] = []  # (shift, bits -> claimants), longest first

    def add(self, prefix: Prefix, peer: Peer) -> None:
        shift = self._width - prefix.length
        claims = next((claims for present, claims in self._lengths if present == shift), None)
        if claims is None:
            claims = {}
            self._lengths.append((shift, claims))
            self._lengths.sort(key=lambda item: item[0])
        claimants = claims.setdefault(prefix.bits, [])
        claimants.append(peer)
        if len(claimants) > 1:  # two owners of one subnet: the same one wins whatever the order of arrival
            claimants.sort(key=lambda claimant: claimant.key)

    def remove(self, prefix: Prefix, peer: Peer) -> None:
        shift = self._width - prefix.length
        for index, (present, claims) in enumerate(self._lengths):
            if present == shift:
                claimants = claims[prefix.bits]
                claimants.remove(peer)
                if not claimants:
                    del claims[prefix.bits]
                if not claims:
                    del self._lengths[index]
                return

    def find(self, address: Buffer) -> Peer | None:
        value = int.from_bytes(address, "big")
        for shift, claims in self._lengths:
            claimants = claims.get(value >> shift)
            if claimants is not None:
                return claimants[0]
        return None


class Table:
    """All peers. `routes` and `flows` are the caches of `route` and `admit`, open to the data path's inner loop."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._trees = {4: Tree(32), 6: Tree(128)}
        self._own: tuple[Prefix, ...] = ()
        self._digest: str | None = None
        self.senders: dict[str, tuple[Peer, ...]] = {}
        self.routes: dict[bytes, Peer] = {}  # inner destination (4 or 16 bytes) -> peer
        self.flows: dict[bytes, Peer] = {}  # inner source and destination (8 or 32 bytes) -> peer

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def own(self, subnets: Iterable[str]) -> None:
        """Set this node's subnets; ValueError if one is malformed, and nothing changed."""
        self._own = tuple(map(parse_prefix, subnets))
        self.flows.clear()

    def set(self, entries: Iterable[Entry]) -> None:
        """Make these all there are. A peer that changes keeps its counters. ValueError: nothing changed."""
        wanted = {entry.key: self._made(entry) for entry in entries}
        for key in [k for k, peer in self._peers.items() if wanted.get(k) is not peer]:
            self._take(key)
        for peer in wanted.values():
            if peer.key not in self._peers:
                self._put(peer)
        self._changed()

    def add(self, entries: Iterable[Entry]) -> None:
        """Add or replace. A peer that changes keeps its counters. ValueError: nothing changed."""
        for peer in [self._made(entry) for entry in entries]:
            self._take(peer.key)
            self._put(peer)
        self._changed()

    def remove(self, keys: Iterable[str]) -> None:
        """Remove those of the keys that are present."""
        for key in keys:
            self._take(key)
        self._changed()

    def get(self, key: str) -> Peer | None:
        return self._peers.get(key)

    def digest(self) -> str:
        """A hash of the entries, equal on both sides of the control socket exactly if the tables are."""
        if self._digest is None:
            self._digest = digest(peer.entry for peer in self)
        return self._digest

    def route(self, destination: bytes) -> Peer | None:
        """The peer whose subnet holds the inner destination (packed); fills `routes`."""
        peer = self._trees[4 if len(destination) == 4 else 6].find(destination)
        if peer is not None:
            if len(self.routes) >= CACHE_SIZE:
                self.routes.clear()
            self.routes[destination] = peer
        return peer

    def admit(self, addresses: bytes) -> Peer | str:
        """The peer that inner source + destination (packed, 8 or 32 bytes) come from, or the reason to drop.

        Reasons are "source" (no peer's subnet holds it) and "destination" (no subnet of this node's does). Fills
        `flows`. That the packet came from an address of that peer is left to the caller.
        """
        half = len(addresses) // 2
        family = 4 if half == 4 else 6
        peer = self._trees[family].find(addresses[:half])
        if peer is None:
            return "source"
        target = int.from_bytes(addresses[half:], "big")
        for own, bits, length in self._own:
            if own == family and target >> (half * 8 - length) == bits:
                break
        else:
            return "destination"
        if len(self.flows) >= CACHE_SIZE:
            self.flows.clear()
        self.flows[addresses] = peer
        return peer

    def _made(self, entry: Entry) -> Peer:
        """The peer for an entry: the present one if it is the same, else a new one with its counters."""
        present = self._peers.get(entry.key)
        if present is None:
            return Peer(entry)
        if present.entry == entry:
            return present
        peer = Peer(entry)
        peer.restore(present.counters())
        return peer

    def _put(self, peer: Peer) -> None:
        self._peers[peer.key] = peer
        for prefix in peer.prefixes:
            self._trees[prefix.family].add(prefix, peer)
        for address in peer.addresses:
            self.senders[address] = (*self.senders.get(address, ()), peer)

    def _take(self, key: str) -> Peer | None:
        peer = self._peers.pop(key, None)
        if peer is None:
            return None
        for prefix in peer.prefixes:
            self._trees[prefix.family].remove(prefix, peer)
        for address in peer.addresses:
            others = tuple(p for p in self.senders[address] if p is not peer)
            if others:
                self.senders[address] = others
            else:
                del self.senders[address]
        return peer

    def _changed(self) -> None:
        self._digest = None
        self.routes.clear()
        self.flows.clear()


def digest(entries: Iterable[Entry]) -> str:
    """See Table.digest; the order of the entries does not matter."""
    return hashlib.sha256(json.dumps(sorted(entries), separators=(",", ":")).encode()).hexdigest()
