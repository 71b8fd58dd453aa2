"""Nexthop objects, Linux 5.3 on (linux/nexthop.h: struct nhmsg, NHA_*).

Rule: ours are single next hops with device and gateway, `onlink`; groups and others are decoded as far as their id.
"""

from __future__ import annotations

import struct
from socket import inet_ntop, inet_pton
from typing import NamedTuple

from netagent.kernel.wire.message import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    CREATE,
    DUMP,
    EXCL,
    HEADER,
    REQUEST,
    U32,
    attribute_u32,
    attributes,
)

NEWNEXTHOP, DELNEXTHOP, GETNEXTHOP = 104, 105, 106

_ID, _OIF, _GATEWAY = 1, 5, 6
_ONLINK = 4

_NHMSG = struct.Struct("=4BI")  # family, scope, protocol, reserved; flags
_PUT4 = struct.Struct("=IHHII 4BI HHI HH4s HHI")
_PUT6 = struct.Struct("=IHHII 4BI HHI HH16s HHI")
_DELETE = struct.Struct("=IHHII 4BI HHI")


class NexthopMessage(NamedTuple):
    """`ifindex` 0 and `gateway` None where it has none (a group, a blackhole)."""

    id: int
    protocol: int
    ifindex: int
    gateway: str | None
    onlink: bool


def put(number: int, index: int, gateway: str, protocol: int) -> bytes:
    """NEWNEXTHOP that creates this id and never replaces. ValueError or OSError: `gateway` is no address."""
    flags = REQUEST | CREATE | EXCL
    if ":" in gateway:
        return _PUT6.pack(
            60, NEWNEXTHOP, flags, 0, 0, AF_INET6, 0, protocol, 0, _ONLINK,
            8, _ID, number, 20, _GATEWAY, inet_pton(AF_INET6, gateway), 8, _OIF, index,
        )  # fmt: skip
    return _PUT4.pack(
        48, NEWNEXTHOP, flags, 0, 0, AF_INET, 0, protocol, 0, _ONLINK,
        8, _ID, number, 8, _GATEWAY, inet_pton(AF_INET, gateway), 8, _OIF, index,
    )  # fmt: skip


def delete(number: int) -> bytes:
    return _DELETE.pack(32, DELNEXTHOP, REQUEST, 0, 0, AF_UNSPEC, 0, 0, 0, 0, 8, _ID, number)


def get(number: int) -> bytes:
    return _DELETE.pack(32, GETNEXTHOP, REQUEST, 0, 0, AF_UNSPEC, 0, 0, 0, 0, 8, _ID, number)


def dump(index: int = 0) -> bytes:
    """GETNEXTHOP of all, or of those on one device."""
    payload = _NHMSG.pack(AF_UNSPEC, 0, 0, 0, 0) + (attribute_u32(_OIF, index) if index else b"")
    return HEADER.pack(HEADER.size + len(payload), GETNEXTHOP, REQUEST | DUMP, 0, 0) + payload


def decode(data: bytes, start: int, end: int) -> NexthopMessage | None:
    if end - start < _NHMSG.size:
        return None
    family, _, protocol, _, flags = _NHMSG.unpack_from(data, start)
    found = attributes(data, start + _NHMSG.size, end)
    try:
        number = int(U32.unpack(found[_ID])[0])
        device, gateway = found.get(_OIF), found.get(_GATEWAY)
        return NexthopMessage(
            number,
            protocol,
            0 if device is None else int(U32.unpack(device)[0]),
            None if gateway is None else inet_ntop(family, gateway),
            bool(flags & _ONLINK),
        )
    except (KeyError, ValueError, OSError, struct.error):
        return None
