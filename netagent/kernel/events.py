"""From rtnetlink notifications to hints: what of ours, or of the facts, may differ now. No I/O.

Rules: a hint is cheap and may be one too many, but never one too few. IPv4 routes vanish without a notification when
their device goes down, when an address goes and when a nexthop object goes: such events hint at routes too. What
changes on devices that carry nothing of ours (containers come and go) hints at facts alone. A forwarding entry's
notification names no cause, so it is compared with what we wrote last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from netagent.errors import KernelError
from netagent.kernel.base import Change
from netagent.kernel.links import Links
from netagent.kernel.nexthops import NexthopIds
from netagent.kernel.wire import addresses, links, neighbours, netconf, nexthops, routes
from netagent.kernel.wire.message import AF_BRIDGE, messages
from netagent.model import KINDS, Key, LinkFact

_ON_DEVICE = tuple(Change(kind) for kind in ("address", "nexthop", "neighbour", "fdb", "route"))
_FACTS = Change("facts")


class Ours:
    """What we know to be ours in the kernel: as last dumped, less and plus what we changed since."""

    def __init__(self) -> None:
        # Of the kinds whose events name no more than the key. Dicts: a set of thousands takes twice the memory.
        self.keys: dict[str, dict[Key, None]] = {"address": {}, "route": {}, "neighbour": {}}
        self.blocked: set[Key] = set()  # routes that another owner's route keeps out
        self.fdb: dict[tuple[int, str], str] = {}  # ifindex and MAC to destination, as written last
        self.route_devices: set[str] = set()  # devices that routes of ours have named
        self.route_sources: set[str] = set()  # and preferred sources

    def forget_device(self, dev: str) -> None:
        """It was made anew, or went: nothing stands on it. Which routes did is not known here: any may have."""
        self.keys["route"].clear()
        for kind in ("address", "neighbour"):
            self.keys[kind] = dict.fromkeys(key for key in self.keys[kind] if key[1] != dev)


class Translator:
    """Turns datagrams of the event socket into hints. Keeps `links` up to date meanwhile."""

    def __init__(self, protocol: int, links: Links, ids: NexthopIds, ours: Ours) -> None:
        self._protocol = protocol
        self._links = links
        self._ids = ids
        self._ours = ours
        self._seen: dict[int, LinkFact] = {fact.index: fact for fact in links.facts().values()}

    def changes(self, datagrams: Iterable[bytes]) -> list[Change]:
        """Each hint once, in the order in which they came up."""
        hints: dict[Change, None] = {}
        for data in datagrams:
            for found in messages(data):
                handler = _HANDLERS.get(found.type)
                if handler is not None:
                    hints.update(dict.fromkeys(handler(self, found.type, data, found.start, found.end)))
        return list(hints)

    def everything(self) -> list[Change]:
        """Events were lost."""
        with contextlib.suppress(KernelError):  # whoever follows the hints refreshes too
            self._links.refresh()
        self._seen = {fact.index: fact for fact in self._links.facts().values()}
        return [*(Change(kind) for kind in KINDS), _FACTS]

    # ------------------------------------------------------------------------------------------ one kind each

    def _link(self, kind: int, data: bytes, start: int, end: int) -> Iterable[Change]:
        found = links.decode(data, start, end)
        if found is None:
            return ()
        before = self._seen.pop(found.ifindex, None)
        was_own = found.name in self._links.own or self._links.is_own(found)
        if kind == links.DELLINK:
            self._links.forget(found.ifindex)
            now = None
        else:
            self._links.learn(found)
            now = self._seen[found.ifindex] = self._links.fact(found)
        hints: list[Change] = []
        if was_own:
            hints.append(Change("link", ("link", found.name)))
        moved = now is None or before is None or (now.up, now.carrier) != (before.up, before.carrier)
        if moved and was_own:
            hints += _ON_DEVICE
        elif moved and found.name in self._ours.route_devices:
            hints += [Change("route"), Change("facts", ("link", found.name))]
        if before is not None and before.name != found.name and before.name in self._ours.route_devices:
            hints.append(Change("route"))  # renamed
        if now != before:
            hints.append(_FACTS)
        return hints

    def _address(self, kind: int, data: bytes, start: int, end: int) -> Iterable[Change]:
        found = addresses.decode(data, start, end)
        if found is None:
            return ()
        dev = self._links.names.get(found.ifindex, "")
        key = ("address", dev, found.ip)
        hints = [_FACTS]
        if dev in self._links.own or key in self._ours.keys["address"]:
            hints.append(Change("address", key))
        if dev in self._ours.route_devices or dev in self._links.own or found.ip in self._ours.route_sources:
            hints += (Change("nexthop"), Change("route"))
        return hints

    def _route(self, kind: int, data: bytes, start: int, end: int) -> Iterable[Change]:
        found = routes.decode(data, start, end)
        if found is None or not found.in_main:
            return ()
        key = ("route", found.dst, found.metric)
        if found.protocol == self._protocol:
            return (Change("route", key),)
        hints = []
        if key in self._ours.keys["route"] or key in self._ours.blocked:  # it replaced ours, or makes room for it
            hints.append(Change("route", key))
        if routes.is_default_or_direct(data, start, end):
            hints.append(_FACTS)
        return hints

    def _neighbour(self, kind: int, data: bytes, start: int, end: int) -> Iterable[Change]:
        found = neighbours.decode(data, start, end)
        dev = None if found is None else self._links.names.get(found.ifindex)
        if found is None or dev not in self._links.own:
            return ()
        if found.family == AF_BRIDGE:
            written = self._ours.fdb.get((found.ifindex, found.mac))
            if kind == neighbours.DELNEIGH:
                if written is None:
                    return ()
            elif found.state & neighbours.PERMANENT:
                if found.ip == written:
                    return ()
            elif written is None:
                return ()  # learnt by the device
            return (Change("fdb", ("fdb", dev, found.mac)),)
        key = ("neighbour", dev, found.ip)
        permanent = bool(found.state & neighbours.PERMANENT)
        if key in self._ours.keys["neighbour"] or (permanent and kind == neighbours.NEWNEIGH):
            return (Change("neighbour", key),)
        return ()

    def _nexthop(self, kind: int, data: bytes, start: int, end: int) -> Iterable[Change]:
        found = nexthops.decode(data, start, end)
        if found is None or found.id not in self._ids:
            return ()
        hop = self._ids.hop(found.id)
        return (Change("nexthop", None if hop is None else ("nexthop", *hop)), Change("route"))

    def _netconf(self, kind: int, data: bytes, start: int, end: int) -> Iterable[Change]:
        ifindex = netconf.decode(data, start, end)
        if ifindex is None:
            return ()
        dev = self._links.names.get(ifindex)
        if ifindex == netconf.ALL or dev in self._links.own or dev in self._ours.route_devices:
            return (Change("sysctl"),)
        return ()


_HANDLERS = {
    links.NEWLINK: Translator._link,
    links.DELLINK: Translator._link,
    addresses.NEWADDR: Translator._address,
    addresses.DELADDR: Translator._address,
    routes.NEWROUTE: Translator._route,
    routes.DELROUTE: Translator._route,
    neighbours.NEWNEIGH: Translator._neighbour,
    neighbours.DELNEIGH: Translator._neighbour,
    nexthops.NEWNEXTHOP: Translator._nexthop,
    nexthops.DELNEXTHOP: Translator._nexthop,
    netconf.NEWNETCONF: Translator._netconf,
}
