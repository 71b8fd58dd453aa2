"""The objects that there are thousands of: routes, nexthop objects, neighbours and forwarding entries, in batches.

Rules: a route is created exclusively; it is replaced only where what stands in the kernel is known to be ours, for
NLM_F_REPLACE takes whatever has the same prefix and metric. Neighbours and forwarding entries exist for us only on
our own devices, nexthop objects only there and in our range of ids. What is absent was deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Mapping, Sequence

from netagent.errors import KernelError
from netagent.kernel.base import Failure, Op
from netagent.kernel.events import Ours
from netagent.kernel.links import Links
from netagent.kernel.netlink import RequestSocket
from netagent.kernel.nexthops import NexthopIds
from netagent.kernel.wire import neighbours, nexthops, routes
from netagent.kernel.wire.message import AF_BRIDGE, AF_INET, AF_INET6, EXCL, REPLACE, Refusal
from netagent.model import FdbEntry, Hop, Neighbour, NextHop, Object, Route, family_of

KINDS = frozenset(("route", "nexthop", "neighbour", "fdb"))

_GONE = frozenset((errno.ESRCH, errno.ENOENT, errno.ENODEV))

# A lookup answers for one route in a tenth of a millisecond, a dump for all of them in some.
_LOOKUPS = 16

_PROTOCOLS = {
    2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp", 17: "kube-router",
    80: "calico", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip

RouteKey = tuple[str, int]  # destination, metric


class Bulk:
    """Writes and reads the bulk kinds for `LinuxHost`."""

    def __init__(self, netlink: RequestSocket, protocol: int, links: Links, ids: NexthopIds, ours: Ours) -> None:
        self._netlink = netlink
        self._protocol = protocol
        self._links = links
        self._ids = ids
        self._ours = ours

    # ------------------------------------------------------------------------------------------ write

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out operations of the bulk kinds in this order."""
        failures: list[Failure] = []
        start = 0
        fresh = False  # nexthop objects in ops[start:] whose ids must be certain before a route names them
        for position, (verb, obj, _) in enumerate(ops):
            if verb == "put":
                if isinstance(obj, NextHop):
                    fresh = True
                elif fresh and isinstance(obj, Route) and obj.nexthop is not None:
                    self._run(ops[start:position], failures)
                    start, fresh = position, False
        self._run(ops[start:], failures)
        return failures

    def _run(self, ops: Sequence[Op], failures: list[Failure]) -> None:
        known = self._ours.keys["route"]
        changed = [
            obj
            for verb, obj, _ in ops
            if verb == "put" and isinstance(obj, Route) and ("route", obj.dst, obj.metric) in known
        ]
        ours = self._ours_among(changed) if changed else set()
        requests: list[bytes] = []
        sent: list[Op] = []
        for op in ops:
            try:
                encoded = self._encode(op, ours)
            except KernelError as error:
                failures.append(Failure(op, error.errno or errno.EIO, error.message))
            except (ValueError, OSError, struct.error) as error:
                failures.append(Failure(op, errno.EINVAL, f"not to be encoded: {error}"))
            else:
                requests += encoded
                sent += [op] * len(encoded)
                if not encoded:
                    self._forget(op.object)
        refused = self._netlink.transact(requests)
        exists: list[Op] = []
        for position, op in enumerate(sent):
            said = refused.get(position)
            if said is None:
                self._remember(op)
            elif op.verb == "delete" and said.errno in _GONE:
                self._forget(op.object)
            elif op.verb == "put" and said.errno == errno.EEXIST:
                exists.append(op)
            else:
                failures.append(self._refused(op, said))
        if exists:
            self._settle(exists, failures)
        if any(failure.errno == errno.ENODEV for failure in failures):
            with contextlib.suppress(KernelError):
                self._links.refresh()  # an ifindex that we remember may be out of date

    def _encode(self, op: Op, ours: set[RouteKey]) -> Sequence[bytes]:
        """The requests of one operation; none to delete from a device that is gone."""
        try:
            return self._requests(op, ours)
        except KeyError as missing:
            if missing.args[0] not in self._links.index:
                self._links.refresh()  # it may have come up just now
            try:
                return self._requests(op, ours)
            except KeyError as error:
                if op.verb == "delete":
                    return ()
                raise KernelError(f"there is no device {error.args[0]}", errno=errno.ENODEV) from None

    def _requests(self, op: Op, ours: set[RouteKey]) -> Sequence[bytes]:
        """KeyError names a device that is missing, or is not ours where it must be."""
        verb, obj, _ = op
        links = self._links
        if isinstance(obj, Route):
            if verb == "delete":
                return (routes.delete(obj, self._protocol),)
            number = 0
            if obj.nexthop is not None:
                number = self._ids.of(obj.nexthop) or 0
                if not number:
                    dev, gateway = obj.nexthop
                    raise KernelError(f"there is no nexthop object for {gateway} on {dev}", errno=errno.ENOENT)
            elif not obj.hops and obj.type == "unicast":
                raise ValueError("a unicast route without next hop")
            flags = REPLACE if (obj.dst, obj.metric) in ours else EXCL
            return (routes.put(obj, flags, self._protocol, number, links.index),)
        if isinstance(obj, NextHop):
            if verb == "delete":
                return [nexthops.delete(number) for number in self._ids.all_of((obj.dev, obj.gateway))]
            ifindex = links.own[obj.dev]
            return (nexthops.put(self._ids.allocate((obj.dev, obj.gateway)), ifindex, obj.gateway, self._protocol),)
        if isinstance(obj, Neighbour):
            ifindex = links.own[obj.dev]
            if verb == "delete":
                return (neighbours.delete(ifindex, obj.ip),)
            return (neighbours.put(ifindex, obj.ip, obj.mac),)
        assert isinstance(obj, FdbEntry)
        ifindex = links.own[obj.dev]
        if verb == "delete":
            return (neighbours.delete_fdb(ifindex, obj.mac),)
        return (neighbours.put_fdb(ifindex, obj.mac, obj.dst),)

    def _remember(self, op: Op) -> None:
        verb, obj, key = op
        if verb == "delete":
            self._forget(obj)
            return
        if isinstance(obj, Route):
            self._ours.keys["route"][key or obj.key] = None
            self._note(obj)
            if self._ours.blocked:
                self._ours.blocked.discard(obj.key)
        elif isinstance(obj, FdbEntry):
            self._ours.fdb[self._links.own[obj.dev], obj.mac] = obj.dst
        elif isinstance(obj, Neighbour):
            self._ours.keys["neighbour"][key or obj.key] = None

    def _note(self, route: Route) -> None:
        if route.nexthop is not None:
            self._ours.route_devices.add(route.nexthop[0])
        for hop in route.hops:
            self._ours.route_devices.add(hop.dev)
        if route.src is not None:
            self._ours.route_sources.add(route.src)

    def _forget(self, obj: Object) -> None:
        if isinstance(obj, NextHop):
            self._ids.release((obj.dev, obj.gateway))
        elif isinstance(obj, FdbEntry):
            self._ours.fdb.pop((self._links.own.get(obj.dev, 0), obj.mac), None)
        elif isinstance(obj, Neighbour):
            self._ours.keys["neighbour"].pop(obj.key, None)
        elif isinstance(obj, Route):
            self._ours.keys["route"].pop(obj.key, None)
            self._ours.blocked.discard(obj.key)

    def _refused(self, op: Op, said: Refusal) -> Failure:
        obj = op.object
        if op.verb == "put" and isinstance(obj, NextHop):
            self._ids.release((obj.dev, obj.gateway))
        return Failure(op, said.errno, said.text or os.strerror(said.errno))

    # ------------------------------------------------------------------------- what stands in the way of a creation

    def _settle(self, ops: Sequence[Op], failures: list[Failure]) -> None:
        """Creations that met something: ours is made what it must be, another owner's is reported."""
        requests: list[bytes] = []
        sent: list[Op] = []
        standing: dict[RouteKey, routes.RouteMessage] | None = None
        for op in ops:
            obj = op.object
            try:
                if isinstance(obj, NextHop):
                    self._settle_nexthop(obj)
                    self._remember(op)
                    continue
                if standing is None:
                    standing = self._standing([op.object for op in ops if isinstance(op.object, Route)])
                found = standing.get((obj.dst, obj.metric)) if isinstance(obj, Route) else None
                if found is not None and not self._is_ours(found):
                    self._ours.keys["route"].pop(obj.key, None)
                    self._ours.blocked.add(obj.key)
                    words = "another owner's route has this destination and metric"
                    failures.append(Failure(op, errno.EEXIST, words, self._describe(found)))
                    continue
                requests += self._encode(op, set() if found is None else {(found.dst, found.metric)})
                sent.append(op)
            except KernelError as error:
                failures.append(self._refused(op, Refusal(error.errno or errno.EIO, error.message)))
        refused = self._netlink.transact(requests)
        for position, op in enumerate(sent):
            said = refused.get(position)
            if said is None:
                self._remember(op)
            else:
                failures.append(self._refused(op, said))

    def _settle_nexthop(self, obj: NextHop) -> None:
        """Somebody has the id that we took for free, or the object is there already. KernelError if it stays so."""
        hop = (obj.dev, obj.gateway)
        for _ in range(3):
            self.dump_nexthops()  # learns every id that is in use, by us and by others
            if self._ids.of(hop) is not None:
                return
            (request,) = self._encode(Op("put", obj), set())
            said = self._netlink.transact([request]).get(0)
            if said is None:
                return
            if said.errno != errno.EEXIST:
                raise KernelError(said.text or os.strerror(said.errno), errno=said.errno)
        raise KernelError("nexthop ids of our range are being taken by another program", errno=errno.EEXIST)

    def _ours_among(self, changed: Sequence[Route]) -> set[RouteKey]:
        """Those of the routes whose first entry in the kernel is ours, so that a replacement hits no other."""
        try:
            return {key for key, found in self._standing(changed).items() if self._is_ours(found)}
        except KernelError:  # then each is tried as a creation, which harms nobody
            return set()

    def _standing(self, wanted: Sequence[Route]) -> dict[RouteKey, routes.RouteMessage]:
        """The first route in the kernel, whoever's, with destination and metric of each of these."""
        standing: dict[RouteKey, routes.RouteMessage] = {}
        if len(wanted) <= _LOOKUPS:
            for route in wanted:
                found = self._lookup(route)
                if found is None:
                    break
                standing[route.dst, route.metric] = found
            else:
                return standing
        keys = {(route.dst, route.metric) for route in wanted}
        standing.clear()
        for family in {family_of(route.dst) for route in wanted}:
            for found in self._dump_routes(AF_INET if family == 4 else AF_INET6, 0):
                key = (found.dst, found.metric)
                if key in keys:
                    standing.setdefault(key, found)
        return standing

    def _lookup(self, route: Route) -> routes.RouteMessage | None:
        """That route by a lookup of its first address; None where another one answers, or none."""
        request = routes.get(route.dst.partition("/")[0], routes.FLAG_FIB_MATCH)
        try:
            found = self._netlink.get(request, routes.NEWROUTE, routes.decode)
        except KernelError:
            return None
        if found is None or (found.dst, found.metric, found.table) != (route.dst, route.metric, routes.TABLE_MAIN):
            return None
        return found

    def _is_ours(self, found: routes.RouteMessage) -> bool:
        return found.protocol == self._protocol and (not found.nexthop or found.nexthop in self._ids)

    def _describe(self, found: routes.RouteMessage) -> str:
        """As `ip route` would print it."""
        kind = routes.TYPE_NAMES.get(found.type, str(found.type))
        words = [found.dst if kind == "unicast" else f"{kind} {found.dst}"]
        for leg in found.legs:
            words += ["via", leg.gateway] if leg.gateway is not None else []
            words += ["dev", self._links.names.get(leg.ifindex, f"if{leg.ifindex}")]
        words += ["proto", _PROTOCOLS.get(found.protocol, str(found.protocol))]
        words += ["metric", str(found.metric)] if found.metric else []
        return " ".join(words)

    # ------------------------------------------------------------------------------------------ read

    def dump_nexthops(self) -> list[Object]:
        """Nexthop objects of ours; the table of ids is made anew from what the kernel has."""
        ours: list[tuple[int, tuple[str, str]]] = []
        taken: list[int] = []
        try:
            present = self._netlink.dump(nexthops.dump(), nexthops.NEWNEXTHOP, nexthops.decode)
        except KernelError as error:
            if error.errno != errno.EOPNOTSUPP:  # Linux before 5.3
                raise
            present = []
        for found in present:
            if found.id in self._ids:
                hop = self._hop_of(found)
                if hop is None:
                    taken.append(found.id)
                else:
                    ours.append((found.id, hop))
        self._ids.rebuild(ours, taken)
        return [NextHop(*hop) for hop in dict.fromkeys(hop for _, hop in ours)]

    def _hop_of(self, found: nexthops.NexthopMessage) -> tuple[str, str] | None:
        """Device and gateway of a nexthop object, None if it is not ours."""
        dev = self._links.names.get(found.ifindex)
        if found.protocol != self._protocol or found.gateway is None or dev not in self._links.own:
            return None
        return (dev, found.gateway) if dev is not None else None

    def dump_routes(self) -> list[Object]:
        objects: list[Object] = []
        for family in (AF_INET, AF_INET6):
            found = self._dump_routes(family, self._protocol)
            if any(route.nexthop and self._ids.hop(route.nexthop) is None for route in found):
                self.dump_nexthops()
            objects += [obj for route in found if (obj := self._route(route)) is not None]
        self._ours.keys["route"] = dict.fromkeys(obj.key for obj in objects)
        return objects

    def _dump_routes(self, family: int, protocol: int) -> list[routes.RouteMessage]:
        """The main table; `protocol` 0: everybody's."""
        found = self._netlink.dump_table(routes.dump(family, protocol), routes.NEWROUTE, routes.decode)
        return [route for route in found if route.in_main and (not protocol or route.protocol == protocol)]

    def outranking(self) -> list[str]:
        """Routes of others that win over one of ours to the same destination, as `ip route` would print them."""
        found: list[str] = []
        for family in (AF_INET, AF_INET6):
            ranks = {
                routes.destination(dst): rank
                for _, dst, metric in self._ours.keys["route"]
                if (AF_INET6 if ":" in dst else AF_INET) == family and (rank := routes.rank(family, metric))
            }
            if ranks:
                found += map(self._describe, self._dump_outranking(family, ranks))
        return found

    def _dump_outranking(self, family: int, ranks: Mapping[tuple[int, bytes], int]) -> list[routes.RouteMessage]:
        """`ranks`: of our routes, by length and packed destination. Others may have very many: few are decoded."""

        def decode(data: bytes, start: int, end: int) -> routes.RouteMessage | None:
            if routes.protocol_of(data, start, end) == self._protocol:
                return None
            ours = ranks.get(routes.destination_of(data, start, end))
            if ours is None:
                return None
            route = routes.decode(data, start, end)
            return route if route and route.in_main and routes.rank(family, route.metric) < ours else None

        return self._netlink.dump_table(routes.dump(family), routes.NEWROUTE, decode)

    def _route(self, found: routes.RouteMessage) -> Route | None:
        """None: it only carries our number, or its device has just gone."""
        kind = routes.TYPE_NAMES.get(found.type)
        if kind is None:
            return None
        nexthop = None
        hops: tuple[Hop, ...] = ()
        names = self._links.names
        try:
            if found.nexthop:
                nexthop = self._ids.hop(found.nexthop)
                if nexthop is None:
                    return None
            else:
                hops = tuple(Hop(names[leg.ifindex], leg.gateway, leg.onlink, leg.weight) for leg in found.legs)
        except KeyError:
            return None
        return Route(found.dst, hops, nexthop, kind, found.metric, found.src, found.mtu)

    def dump_neighbours(self) -> list[Object]:
        objects: list[Object] = []
        for dev, ifindex in self._links.own.items():
            for family in (AF_INET, AF_INET6):
                objects += [
                    Neighbour(dev, found.ip, found.mac)
                    for found in self._dump_neighbours(family, ifindex)
                    if found.ip is not None and found.family == family
                ]
        self._ours.keys["neighbour"] = dict.fromkeys(obj.key for obj in objects)
        return objects

    def dump_fdb(self) -> list[Object]:
        objects: list[Object] = []
        self._ours.fdb.clear()
        for dev, ifindex in self._links.own.items():
            for found in self._dump_neighbours(AF_BRIDGE, ifindex):
                if found.ip is not None and found.flags & neighbours.SELF:
                    objects.append(FdbEntry(dev, found.mac, found.ip))
                    self._ours.fdb[ifindex, found.mac] = found.ip
        return objects

    def _dump_neighbours(self, family: int, ifindex: int) -> list[neighbours.NeighbourMessage]:
        """Permanent entries of one device: what it learnt by itself is not ours."""
        try:
            found = self._netlink.dump(neighbours.dump(family, ifindex), neighbours.NEWNEIGH, neighbours.decode)
        except KernelError as error:
            if error.errno in (errno.ENODEV, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                return []
            raise
        return [
            entry for entry in found if entry.ifindex == ifindex and entry.state & neighbours.PERMANENT and entry.mac
        ]
