"""Routes of the main table (linux/rtnetlink.h: struct rtmsg, RTA_*, struct rtnexthop).

Rules: a route is encoded with its protocol, so that a deletion hits only what carries ours; metric 0 of an IPv6
route is the kernel's 1024 on the wire and 0 again when decoded. Devices are numbers here (ifindex).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from socket import inet_ntop, inet_pton
from typing import NamedTuple

from netagent.kernel.wire.message import (
    AF_INET,
    AF_INET6,
    CREATE,
    DUMP,
    HEADER,
    REQUEST,
    U32,
    attribute,
    attribute_u32,
    attributes,
    nest,
)
from netagent.model import Hop, Route

NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26

TABLE_MAIN = 254
PROTOCOL_KERNEL, PROTOCOL_BOOT, PROTOCOL_STATIC, PROTOCOL_RA, PROTOCOL_DHCP = 2, 3, 4, 9, 16

SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
TYPES = {"unicast": 1, "local": 2, "blackhole": 6, "unreachable": 7, "prohibit": 8, "throw": 9}
TYPE_NAMES = {number: name for name, number in TYPES.items()}
UNICAST = 1
_REJECTS = frozenset((6, 7, 8))

FLAG_CLONED, FLAG_FIB_MATCH = 0x200, 0x2000  # rtm_flags
_ONLINK = 4  # RTNH_F_ONLINK, in rtm_flags and rtnh_flags

DEFAULT_METRIC6 = 1024  # IP6_RT_PRIO_USER

_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH = 1, 4, 5, 6, 7, 8, 9
_TABLE, _VIA, _NH_ID = 15, 18, 30
_METRIC_MTU = 2  # RTAX_MTU

_RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, ifindex
_VIA_HEADER = 2  # struct rtvia: the address family before the address

# The two shapes that there are thousands of, each packed in one go.
_BY_NEXTHOP4 = struct.Struct("=IHHII 8BI HH4s HHI HHI")
_BY_NEXTHOP6 = struct.Struct("=IHHII 8BI HH16s HHI HHI")
_VIA4 = struct.Struct("=IHHII 8BI HH4s HHI HH4s HHI")
_VIA6 = struct.Struct("=IHHII 8BI HH16s HHI HH16s HHI")

# struct rtattr (length, type) of RTA_TABLE, and of RTA_DST by the size of its address.
_TABLE_HEAD = struct.pack("=HH", 8, _TABLE)
_SIZES = {struct.pack("=HH", 4 + size, _DST): size for size in (4, 16)}

_ZERO4, _ZERO6 = bytes(4), bytes(16)


class Leg(NamedTuple):
    """One next hop of a route as the kernel tells it. `ifindex` 0: none given."""

    ifindex: int
    gateway: str | None
    onlink: bool
    weight: int


class RouteMessage(NamedTuple):
    """A route as the kernel tells it. `nexthop` is the id of a nexthop object, 0 without one."""

    family: int
    dst: str
    table: int
    protocol: int
    type: int
    flags: int
    metric: int
    src: str | None
    mtu: int
    nexthop: int
    legs: tuple[Leg, ...]

    @property
    def in_main(self) -> bool:
        """Whether it stands in the main table, and is no exception that the kernel has learnt."""
        return self.table == TABLE_MAIN and not self.flags & FLAG_CLONED


def put(route: Route, flags: int, protocol: int, nexthop: int, index: Mapping[str, int]) -> bytes:
    """NEWROUTE. `flags` beside CREATE: EXCL or REPLACE. `nexthop`: the id for `route.nexthop`.

    KeyError: a device that `index` does not know; ValueError or OSError: text that is no address.
    """
    prefix, _, length = route.dst.partition("/")
    flags |= CREATE | REQUEST
    metric = route.metric
    hops = route.hops
    if ":" in prefix:
        family, dst = AF_INET6, inet_pton(AF_INET6, prefix)
        metric = metric or DEFAULT_METRIC6
        if route.src is None and not route.mtu:
            if nexthop:
                return _BY_NEXTHOP6.pack(
                    64, NEWROUTE, flags, 0, 0, family, int(length), 0, 0, TABLE_MAIN, protocol, 0, UNICAST, 0,
                    20, _DST, dst, 8, _PRIORITY, metric, 8, _NH_ID, nexthop,
                )  # fmt: skip
            if len(hops) == 1 and (gateway := hops[0].gateway) is not None:
                hop = hops[0]
                return _VIA6.pack(
                    84, NEWROUTE, flags, 0, 0, family, int(length), 0, 0, TABLE_MAIN, protocol, 0, UNICAST,
                    _ONLINK if hop.onlink else 0, 20, _DST, dst, 8, _PRIORITY, metric,
                    20, _GATEWAY, inet_pton(AF_INET6, gateway), 8, _OIF, index[hop.dev],
                )  # fmt: skip
    else:
        family, dst = AF_INET, inet_pton(AF_INET, prefix)
        if route.src is None and not route.mtu:
            if nexthop:
                return _BY_NEXTHOP4.pack(
                    52, NEWROUTE, flags, 0, 0, family, int(length), 0, 0, TABLE_MAIN, protocol, 0, UNICAST, 0,
                    8, _DST, dst, 8, _PRIORITY, metric, 8, _NH_ID, nexthop,
                )  # fmt: skip
            if len(hops) == 1 and (gateway := hops[0].gateway) is not None and ":" not in gateway:
                hop = hops[0]
                return _VIA4.pack(
                    60, NEWROUTE, flags, 0, 0, family, int(length), 0, 0, TABLE_MAIN, protocol, 0, UNICAST,
                    _ONLINK if hop.onlink else 0, 8, _DST, dst, 8, _PRIORITY, metric,
                    8, _GATEWAY, inet_pton(AF_INET, gateway), 8, _OIF, index[hop.dev],
                )  # fmt: skip
    return _put_any(route, flags, protocol, nexthop, index, family, dst, int(length), metric)


def _put_any(
    route: Route,
    flags: int,
    protocol: int,
    nexthop: int,
    index: Mapping[str, int],
    family: int,
    dst: bytes,
    length: int,
    metric: int,
) -> bytes:
    """Any route at all, attribute by attribute."""
    kind = TYPES[route.type]
    onlink = _ONLINK if len(route.hops) == 1 and route.hops[0].onlink else 0
    direct = bool(route.hops) and all(hop.gateway is None for hop in route.hops)
    scope = SCOPE_LINK if family == AF_INET and kind == UNICAST and direct else SCOPE_UNIVERSE
    parts = [_RTMSG.pack(family, length, 0, 0, TABLE_MAIN, protocol, scope, kind, onlink), attribute(_DST, dst)]
    if metric:
        parts.append(attribute_u32(_PRIORITY, metric))
    if route.src is not None:
        parts.append(attribute(_PREFSRC, inet_pton(family, route.src)))
    if route.mtu:
        parts.append(nest(_METRICS, attribute_u32(_METRIC_MTU, route.mtu)))
    if nexthop:
        parts.append(attribute_u32(_NH_ID, nexthop))
    elif len(route.hops) == 1:
        parts.append(_gateway(family, route.hops[0]))
        parts.append(attribute_u32(_OIF, index[route.hops[0].dev]))
    elif route.hops:
        parts.append(attribute(_MULTIPATH, b"".join(_leg(family, hop, index) for hop in route.hops)))
    payload = b"".join(parts)
    return HEADER.pack(HEADER.size + len(payload), NEWROUTE, flags, 0, 0) + payload


def _gateway(family: int, hop: Hop) -> bytes:
    if hop.gateway is None:
        return b""
    if family == AF_INET and ":" in hop.gateway:  # RFC 8950: an IPv4 route over an IPv6 next hop
        return attribute(_VIA, struct.pack("=H", AF_INET6) + inet_pton(AF_INET6, hop.gateway))
    return attribute(_GATEWAY, inet_pton(family, hop.gateway))


def _leg(family: int, hop: Hop, index: Mapping[str, int]) -> bytes:
    gateway = _gateway(family, hop)
    flags = _ONLINK if hop.onlink else 0
    return _RTNEXTHOP.pack(_RTNEXTHOP.size + len(gateway), flags, hop.weight - 1, index[hop.dev]) + gateway


def delete(route: Route, protocol: int) -> bytes:
    """DELROUTE of the route with this destination, metric, type and protocol, whatever its next hops are.

    The kernel takes metric 0 of an IPv4 route for "any" and then removes the one with the lowest metric.
    """
    prefix, _, length = route.dst.partition("/")
    family, metric = (AF_INET6, route.metric or DEFAULT_METRIC6) if ":" in prefix else (AF_INET, route.metric)
    payload = (
        _RTMSG.pack(family, int(length), 0, 0, TABLE_MAIN, protocol, SCOPE_NOWHERE, TYPES[route.type], 0)
        + attribute(_DST, inet_pton(family, prefix))
        + (attribute_u32(_PRIORITY, metric) if metric else b"")
    )
    return HEADER.pack(HEADER.size + len(payload), DELROUTE, REQUEST, 0, 0) + payload


def dump(family: int, protocol: int = 0) -> bytes:
    """GETROUTE of the whole main table; `protocol` 0: of all protocols. Filters need GET_STRICT_CHK."""
    payload = _RTMSG.pack(family, 0, 0, 0, TABLE_MAIN, protocol, 0, 0, 0)
    return HEADER.pack(HEADER.size + len(payload), GETROUTE, REQUEST | DUMP, 0, 0) + payload


def get(ip: str, flags: int = 0) -> bytes:
    """GETROUTE of one destination; FLAG_FIB_MATCH asks for the route, not for the resolved next hop."""
    family, length = (AF_INET6, 128) if ":" in ip else (AF_INET, 32)
    payload = _RTMSG.pack(family, length, 0, 0, 0, 0, 0, 0, flags) + attribute(_DST, inet_pton(family, ip))
    return HEADER.pack(HEADER.size + len(payload), GETROUTE, REQUEST, 0, 0) + payload


def protocol_of(data: bytes, start: int, end: int) -> int:
    """rtm_protocol without decoding the rest; -1: no route."""
    return data[start + 5] if end - start >= _RTMSG.size else -1


def is_default_or_direct(data: bytes, start: int, end: int) -> bool:
    """Whether it may be a default route or one without gateway, by a look at few bytes: most routes are neither."""
    if end - start < _RTMSG.size:
        return False
    if data[start + 1] == 0:
        return True
    return data[start + 5] in (PROTOCOL_KERNEL, PROTOCOL_RA) or _GATEWAY not in attributes(
        data, start + _RTMSG.size, end
    )


def destination_of(data: bytes, start: int, end: int) -> tuple[int, bytes]:
    """Prefix length and packed destination (empty for a default route), by a look at few bytes."""
    if end - start < _RTMSG.size:
        return 0, b""
    # The kernel begins with RTA_TABLE and RTA_DST: one look where that is so, all attributes where it is not.
    if data[start + 12 : start + 16] == _TABLE_HEAD:
        size = _SIZES.get(data[start + 20 : start + 24], 0)
        if size and start + 24 + size <= end:
            return data[start + 1], data[start + 24 : start + 24 + size]
    return data[start + 1], attributes(data, start + _RTMSG.size, end).get(_DST, b"")


def destination(dst: str) -> tuple[int, bytes]:
    """The same of a prefix in text."""
    address, _, length = dst.partition("/")
    return int(length), inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def rank(family: int, metric: int) -> int:
    """What the kernel compares of two routes to a prefix, the lower wins: the metric, IPv6's 0 being 1024."""
    return DEFAULT_METRIC6 if family == AF_INET6 and metric == 0 else metric


def decode(data: bytes, start: int, end: int) -> RouteMessage | None:
    """A route of a dump or of a notification."""
    if end - start < _RTMSG.size:
        return None
    family, length, _, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(data, start)
    if family != AF_INET and family != AF_INET6:
        return None
    found = attributes(data, start + _RTMSG.size, end)
    get = found.get
    try:
        dst = inet_ntop(family, get(_DST) or (_ZERO4 if family == AF_INET else _ZERO6))
        metric = _u32(get(_PRIORITY))
        if family == AF_INET6 and metric == DEFAULT_METRIC6:
            metric = 0
        src = get(_PREFSRC)
        metrics = get(_METRICS)
        mtu = _u32(attributes(metrics, 0, len(metrics)).get(_METRIC_MTU)) if metrics else 0
        legs: tuple[Leg, ...] = ()
        if kind in _REJECTS:
            pass
        elif (multipath := get(_MULTIPATH)) is not None:
            legs = _legs(multipath, family)
        elif (device := get(_OIF)) is not None:
            legs = (Leg(_u32(device), _gateway_of(found, family), bool(flags & _ONLINK), 1),)
        return RouteMessage(
            family,
            f"{dst}/{length}",
            _u32(get(_TABLE)) or table,
            protocol,
            kind,
            flags,
            metric,
            None if src is None else inet_ntop(family, src),
            mtu,
            _u32(get(_NH_ID)),
            legs,
        )
    except (ValueError, struct.error):
        return None


def _u32(value: bytes | None) -> int:
    return 0 if value is None else int(U32.unpack(value)[0])


def _gateway_of(found: Mapping[int, bytes], family: int) -> str | None:
    if (gateway := found.get(_GATEWAY)) is not None:
        return inet_ntop(family, gateway)
    if (via := found.get(_VIA)) is not None:
        return inet_ntop(AF_INET6 if len(via) > 2 + 4 else AF_INET, via[_VIA_HEADER:])
    return None


def _legs(data: bytes, family: int) -> tuple[Leg, ...]:
    legs = []
    offset, size = 0, len(data)
    while offset + _RTNEXTHOP.size <= size:
        length, flags, hops, index = _RTNEXTHOP.unpack_from(data, offset)
        if length < _RTNEXTHOP.size or offset + length > size:
            raise ValueError("next hop outside its attribute")
        inner = attributes(data, offset + _RTNEXTHOP.size, offset + length)
        legs.append(Leg(index, _gateway_of(inner, family), bool(flags & _ONLINK), hops + 1))
        offset += (length + 3) & ~3
    return tuple(legs)
