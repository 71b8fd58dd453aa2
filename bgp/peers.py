"""The speaker's peers: found by name, by address, by what they are to the tables; and what another list would change.

Rule: a table, no more. It begins and ends no session: the speaker does, and then adds and removes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bgp.message.nlri import parse_address
from bgp.peer import Peer, PeerConfig
from bgp.ranges import PeerRange, range_of
from bgp.route import Source
from bgp.transport import Transport


@dataclass(slots=True)
class Difference:
    """What makes the peers those of another list."""

    gone: list[str] = field(default_factory=list)
    """They are nobody's peers any more."""
    others: list[str] = field(default_factory=list)
    """Another peer has the name now: the listed ones are among `new` too."""
    anew: list[tuple[Peer, PeerConfig, PeerRange | None]] = field(default_factory=list)
    """Other settings that are agreed on when a session begins."""
    changed: list[tuple[Peer, PeerConfig, PeerRange | None]] = field(default_factory=list)
    """Other settings, or another range that says them, under a session that goes on."""
    new: list[PeerConfig] = field(default_factory=list)


class Wanted(NamedTuple):
    """What a peer demands of the listening sockets, or a range: then the address stands for a prefix."""

    name: str
    address: bytes
    length: int | None
    transport: Transport


class Peers(Mapping[str, Peer]):
    """By name, in the order in which they came."""

    def __init__(self) -> None:
        self.ranges: tuple[PeerRange, ...] = ()
        self.by_source: dict[Source, Peer] = {}
        self._by_name: dict[str, Peer] = {}
        self._by_address: dict[bytes, str] = {}

    def __getitem__(self, name: str) -> Peer:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, peer: Peer) -> None:
        self._by_name[peer.name] = self.by_source[peer.source] = peer
        self._by_address.setdefault(peer.config.address, peer.name)

    def remove(self, peer: Peer) -> None:
        del self._by_name[peer.name], self.by_source[peer.source]
        address = peer.config.address
        if self._by_address[address] == peer.name:
            del self._by_address[address]
            for other in self._by_name.values():
                if other.config.address == address:
                    self._by_address[address] = other.name
                    break

    def at(self, address: bytes) -> str | None:
        """The name of the peer with this address; of several the one that came first."""
        return self._by_address.get(address)

    def invited(self, address: bytes) -> tuple[PeerConfig, PeerRange] | None:
        """What somebody who is no peer yet would be, by the range that the address lies in; None: nobody's guest.

        A range that is full invites nobody.
        """
        within = range_of(self.ranges, address)
        if within is None:
            return None
        config = within.member(address)
        members = sum(peer.within is not None and peer.within.name == within.name for peer in self._by_name.values())
        return None if members >= within.limit or config.name in self._by_name else (config, within)

    def may_come(self, name: str) -> bool:
        """Whether one of a range may be a peer by that name, which is its address."""
        try:
            return range_of(self.ranges, parse_address(name)) is not None
        except ValueError:
            return False

    def transports(self) -> Iterator[Wanted]:
        """What the listening sockets must know of each peer and range."""
        for peer in self._by_name.values():
            if peer.within is None:
                yield Wanted(peer.name, peer.config.address, None, peer.config.transport)
        for each in self.ranges:
            yield Wanted(each.name, each.template.address, each.prefix[0], each.template.transport)

    def compared(self, configs: Iterable[PeerConfig], ranges: Iterable[PeerRange]) -> Difference:
        """What makes these the peers, with those that ranges have invited, as far as the ranges are still there."""
        wanted = {config.name: config for config in configs}
        listed = {config.address for config in wanted.values()}
        known = {each.name: each for each in ranges}
        found = Difference()
        for name, peer in self._by_name.items():
            config, within = wanted.get(name), None
            if peer.within is not None:  # listed by its own name now, it is another peer
                config, within = None, known.get(peer.within.name)
                address = peer.config.address
                if within and address not in listed and range_of(known.values(), address) is within:
                    config = within.member(address)
            if config is None:
                found.gone.append(name)
            elif not peer.config.same_peer(config):
                found.others.append(name)
            elif config != peer.config and not peer.config.same_session(config):
                found.anew.append((peer, config, within))
            elif config != peer.config or within is not peer.within:
                found.changed.append((peer, config, within))
        over = {*found.gone, *found.others}
        found.new = [config for name, config in wanted.items() if name not in self._by_name or name in over]
        return found
