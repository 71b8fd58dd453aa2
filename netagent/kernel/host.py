"""LinuxHost: this network namespace's kernel, as the reconciler sees it. The real twin of fake.FakeHost.

Rules: what is ours, and how the kernel is asked, is each kind's own module's business; here operations find their
module in the order given, and its events come together. A host belongs to the network namespace of the thread
that opened it, and its calls must come from a thread in there (settings and TUN devices go by the caller's).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from netagent.config import Settings
from netagent.errors import KernelError
from netagent.kernel import foreign, networkd, precedence, tun
from netagent.kernel.addresses import Addresses
from netagent.kernel.base import Change, Failure, Op
from netagent.kernel.bulk import KINDS as BULK
from netagent.kernel.bulk import Bulk
from netagent.kernel.events import Ours, Translator
from netagent.kernel.firewall import Firewall
from netagent.kernel.journal import Journal
from netagent.kernel.links import ALIAS, Links
from netagent.kernel.netlink import EventSocket, RequestSocket
from netagent.kernel.nexthops import NexthopIds
from netagent.kernel.places import Places
from netagent.kernel.settings import Settings as HostSettings
from netagent.kernel.wire import nexthops, routes
from netagent.kernel.wire.message import AF_INET, AF_INET6
from netagent.model import Facts, Family, Finding, Inbound, Link, Object, RouteFact

PROTOCOL = 110  # of our routes and nexthop objects, free in rtnetlink's list
NEXTHOP_IDS = (0x6E000000, 1 << 20)  # first and count

FIREWALL = frozenset(("nft", "element"))
SETTINGS = frozenset(("sysctl", "offload"))
PLACES = frozenset(("accept",))
ROUTING = BULK | {"link", "address"}  # what rtnetlink keeps

_DATAGRAMS = 512  # of events between two breaths of the event loop


# Networks, what peers send here, and the host itself, to what hinders their traffic here.
Inspect = Callable[[Sequence[str], Sequence[Inbound], "LinuxHost"], list[Finding]]


class Writer(Protocol):
    """Who carries out the operations of some kinds."""

    def apply(self, ops: Sequence[Op]) -> list[Failure]: ...

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]: ...


class LinuxHost:
    """The kernel of the calling thread's network namespace. KernelError where rtnetlink cannot be opened.

    `nexthop_ids`: first id and count of the range that is ours. `firewall` writes table and elements, `settings`
    sysctls, offloads and accepts elsewhere; without one, operations of its kinds fail. `inspect` looks for what
    other programs put in the way of the network's traffic.
    """

    def __init__(
        self,
        protocol: int = PROTOCOL,
        nexthop_ids: tuple[int, int] = NEXTHOP_IDS,
        alias: str = ALIAS,
        firewall: Firewall | None = None,
        settings: HostSettings | None = None,
        places: Places | None = None,
        inspect: Inspect | None = None,
    ) -> None:
        self.protocol = protocol
        self._netlink = RequestSocket()
        self._events = EventSocket(self._netlink.port)
        self._firewall = firewall
        self._settings = settings
        self._places = places
        self._inspect = inspect
        self._ours = Ours()
        self._ids = NexthopIds(*nexthop_ids)
        self._links = Links(self._netlink, alias)
        self._addresses = Addresses(self._netlink, self._links, self._ours)
        self._bulk = Bulk(self._netlink, protocol, self._links, self._ids, self._ours)
        self._translator = Translator(protocol, self._links, self._ids, self._ours)
        self._others: list[Firewall | HostSettings] = [part for part in (firewall, settings) if part is not None]
        self._writers: dict[str, Writer | None] = {"firewall": firewall, "settings": settings, "places": places}
        self._lost: set[str] = set()  # abilities that turned out to be missing
        self._has_nexthops = self._probe_nexthops()

    def close(self) -> None:
        """Close the sockets; the kernel's state stays."""
        self._netlink.close()
        self._events.close()
        for source in self._others:
            source.close()

    # ------------------------------------------------------------------------------------------ write

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        failures: list[Failure] = []
        for part, group in groupby(ops, lambda op: _part(op.object.KIND)):
            run = list(group)
            if part == "bulk":
                failures += self._bulk.apply(run)
            elif part == "link":
                failures += filter(None, map(self._apply_link, run))
            elif part == "address":
                failures += self._addresses.apply(run)
            else:
                writer = self._writers[part]
                if writer is None:
                    failures += [Failure(op, errno.EOPNOTSUPP, f"nothing here writes {op.object.KIND}") for op in run]
                else:
                    failures += writer.apply(run)
        return failures

    def _apply_link(self, op: Op) -> Failure | None:
        """A device that is made anew, or goes, takes along what stands on it."""
        link = op.object
        assert isinstance(link, Link)
        before = self._links.own.get(link.name)
        failure = self._links.put(op) if op.verb == "put" else self._links.delete(op)
        if self._links.own.get(link.name) != before:
            self._ids.release_device(link.name)
            self._ours.forget_device(link.name)
        if failure is not None and failure.errno == errno.EOPNOTSUPP:
            self._lost.add(link.kind)
        elif failure is None and op.verb == "put":
            self._lost.discard(link.kind)  # its module came since
        return failure

    # ------------------------------------------------------------------------------------------ read

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]:
        """Every object of ours of these kinds. OSError when the kernel does not tell."""
        wanted = list(wanted)
        objects: list[Object] = []
        try:
            if not ROUTING.isdisjoint(kinds):
                links = self._links.dump()  # whose device is whose decides what is ours
            if "link" in kinds:
                objects += links
            if "address" in kinds:
                objects += self._addresses.dump()
            if "nexthop" in kinds:
                objects += self._bulk.dump_nexthops()
            if "neighbour" in kinds:
                objects += self._bulk.dump_neighbours()
            if "fdb" in kinds:
                objects += self._bulk.dump_fdb()
            if "route" in kinds:
                objects += self._bulk.dump_routes()
            for writer, part in ((self._firewall, FIREWALL), (self._settings, SETTINGS), (self._places, PLACES)):
                asked = part.intersection(kinds)
                if writer is not None and asked:
                    objects += writer.dump(asked, [obj for obj in wanted if obj.KIND in asked])
        except KernelError as error:
            raise OSError(error.errno or errno.EIO, str(error)) from None
        return objects

    def facts(self) -> Facts:
        """Links, addresses, default and on-link routes, and what this kernel can do.

        "nexthop" is known by a dump, "tun" by /dev/net/tun, "ipv6" by /proc; other kinds of devices are taken for
        granted until the kernel has refused to make one, because only making one would tell. OSError when the kernel
        does not answer.
        """
        try:
            self._links.refresh()
            return Facts(
                self._links.facts(), tuple(self._addresses.facts()), tuple(self._route_facts()), self._abilities()
            )
        except KernelError as error:
            raise OSError(error.errno or errno.EIO, str(error)) from None

    def _abilities(self) -> frozenset[str]:
        found = {"vxlan", "ipip", "sit"}
        if self._has_nexthops:
            found.add("nexthop")
        if tun.available():
            found.add("tun")
        if Path("/proc/sys/net/ipv6").exists():
            found.add("ipv6")
        return frozenset(found - self._lost)

    def _probe_nexthops(self) -> bool:
        """Take over the ids that an earlier run left; whether this kernel has nexthop objects at all."""
        try:
            self._netlink.dump(nexthops.dump(1), nexthops.NEWNEXTHOP, nexthops.decode)
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            raise
        self._bulk.dump_nexthops()
        return True

    def _route_facts(self) -> list[RouteFact]:
        def decode(data: bytes, start: int, end: int) -> routes.RouteMessage | None:
            if routes.protocol_of(data, start, end) == self.protocol:
                return None
            return routes.decode(data, start, end) if routes.is_default_or_direct(data, start, end) else None

        facts = []
        for family in (AF_INET, AF_INET6):
            for found in self._netlink.dump_table(routes.dump(family), routes.NEWROUTE, decode):
                if found.in_main and found.type == routes.UNICAST and not found.dst.startswith("fe80:"):
                    fact = self._fact(found)
                    if fact is not None:
                        facts.append(fact)
        return facts

    def _fact(self, found: routes.RouteMessage) -> RouteFact | None:
        for leg in found.legs:
            dev = self._links.names.get(leg.ifindex)
            if dev is not None:
                return RouteFact(
                    dst=found.dst,
                    dev=dev,
                    gateway=leg.gateway,
                    metric=found.metric,
                    src=found.src,
                    protocol=found.protocol,
                )
        return None

    def route_to(self, ip: str) -> RouteFact | None:
        try:
            found = self._netlink.get(routes.get(ip), routes.NEWROUTE, routes.decode)
        except (KernelError, OSError):  # no route, or no address
            return None
        return None if found is None else self._fact(found)

    def findings(self, prefixes: Sequence[str], inbound: Sequence[Inbound]) -> list[Finding]:
        return [] if self._inspect is None else self._inspect(prefixes, inbound, self)

    def own_devices(self) -> list[str]:
        """Names of the devices that are ours."""
        return list(self._links.own)

    def links(self) -> dict[int, str]:
        """Name of every link by its ifindex."""
        return dict(self._links.names)

    def route_devices(self) -> set[str]:
        """Devices that routes of ours have named since this was made."""
        return set(self._ours.route_devices)

    def outranking(self) -> list[str]:
        """Routes of others that win over one of ours to the same prefix, as `ip route` prints them."""
        return self._bulk.outranking()

    def places(self) -> list[tuple[str, Family]]:
        """Where other tools take an accept of ours now, with the family."""
        return [] if self._places is None else self._places.found()

    # ------------------------------------------------------------------------------------------ hints

    async def changes(self) -> AsyncIterator[list[Change]]:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        sources = [self._events.fileno(), *(part.fileno() for part in self._others)]
        for source in sources:
            loop.add_reader(source, ready.set)
        try:
            while True:
                await ready.wait()
                ready.clear()
                hints = self._read()
                if hints:
                    yield hints
                else:
                    await asyncio.sleep(0)
        finally:
            for source in sources:
                with contextlib.suppress(ValueError, OSError):  # closed meanwhile
                    loop.remove_reader(source)

    def _read(self) -> list[Change]:
        events = self._events.read(_DATAGRAMS)
        hints = self._translator.changes(events.datagrams)
        if events.lost:
            hints = self._translator.everything()
        for part in self._others:
            hints += part.read()
        return hints


def open_host(settings: Settings) -> LinuxHost:
    """The host of this agent: its protocol number, its nft table. KernelError says what is missing."""
    try:
        return _open(settings)
    except PermissionError as error:
        raise KernelError(
            f"the network of this host may not be changed: {error.strerror}",
            errno=error.errno or errno.EPERM,
            where=str(error.filename or ""),
            remedy="Run it as root, or with CAP_NET_ADMIN and CAP_NET_RAW",
        ) from None


def _open(settings: Settings) -> LinuxHost:
    firewall = Firewall(settings.firewall_table, state=settings.state_dir / "firewall.json")
    journal = Journal(settings.state_dir / "journal.json")

    def inspect(prefixes: Sequence[str], inbound: Sequence[Inbound], host: LinuxHost) -> list[Finding]:
        found = foreign.inspect(firewall, prefixes, inbound, host.own_devices(), host.route_to)
        found += networkd.inspect(host.links(), host.own_devices(), host.route_devices())
        found += precedence.findings(host.outranking())
        return [journal.finding, *found] if journal.finding is not None else found

    return LinuxHost(
        settings.route_protocol,
        # Another protocol and table make another agent on this host: its devices and nexthop ids are its own too.
        nexthop_ids=(settings.route_protocol << 24, NEXTHOP_IDS[1]),
        alias=ALIAS if settings.firewall_table == ALIAS else f"{ALIAS} {settings.firewall_table}",
        firewall=firewall,
        settings=HostSettings(journal),
        places=Places(firewall, journal),
        inspect=inspect,
    )


def _part(kind: str) -> str:
    """Which module carries out operations of a kind."""
    if kind in BULK:
        return "bulk"
    if kind in FIREWALL:
        return "firewall"
    if kind in SETTINGS:
        return "settings"
    return "places" if kind in PLACES else kind
