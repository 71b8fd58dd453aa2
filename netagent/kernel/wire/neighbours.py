"""Neighbour entries and VXLAN forwarding entries (linux/neighbour.h: struct ndmsg, NDA_*).

Rule: both are written permanent. A forwarding entry is a neighbour of family AF_BRIDGE with NTF_SELF: the VXLAN
device's own table, MAC to the address of the peer's host.
"""

from __future__ import annotations

import struct
from socket import inet_ntop, inet_pton
from typing import NamedTuple

from netagent.kernel.wire.message import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    CREATE,
    DUMP,
    HEADER,
    REPLACE,
    REQUEST,
    attribute_u32,
    attributes,
)

NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30

NOARP, PERMANENT = 0x40, 0x80  # ndm_state
SELF = 0x02  # ndm_flags: NTF_SELF

_DST, _LLADDR, _IFINDEX = 1, 2, 8

_NDMSG = struct.Struct("=BBHiHBB")  # family, padding, padding, ifindex, state, flags, type
_PUT4 = struct.Struct("=IHHII BBHiHBB HH4s HH6s2x")
_PUT6 = struct.Struct("=IHHII BBHiHBB HH16s HH6s2x")
_PUT_FDB4 = struct.Struct("=IHHII BBHiHBB HH6s2x HH4s")
_PUT_FDB6 = struct.Struct("=IHHII BBHiHBB HH6s2x HH16s")
_DELETE4 = struct.Struct("=IHHII BBHiHBB HH4s")
_DELETE6 = struct.Struct("=IHHII BBHiHBB HH16s")
_DELETE_FDB = struct.Struct("=IHHII BBHiHBB HH6s2x")

_PUT = REQUEST | CREATE | REPLACE


class NeighbourMessage(NamedTuple):
    """`ip` is the neighbour's address, of a forwarding entry (family AF_BRIDGE) the peer host's; None without one."""

    family: int
    ifindex: int
    state: int
    flags: int
    ip: str | None
    mac: str


def mac_bytes(mac: str) -> bytes:
    """Six bytes of "aa:bb:cc:dd:ee:ff". ValueError for anything else."""
    raw = bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6 or len(mac) != 17:
        raise ValueError(f"{mac!r} is no MAC address")
    return raw


def put(index: int, ip: str, mac: str) -> bytes:
    """NEWNEIGH of a permanent neighbour. ValueError or OSError: text that is no address."""
    if ":" in ip:
        return _PUT6.pack(
            60, NEWNEIGH, _PUT, 0, 0, AF_INET6, 0, 0, index, PERMANENT, 0, 0,
            20, _DST, inet_pton(AF_INET6, ip), 10, _LLADDR, mac_bytes(mac),
        )  # fmt: skip
    return _PUT4.pack(
        48, NEWNEIGH, _PUT, 0, 0, AF_INET, 0, 0, index, PERMANENT, 0, 0,
        8, _DST, inet_pton(AF_INET, ip), 10, _LLADDR, mac_bytes(mac),
    )  # fmt: skip


def delete(index: int, ip: str) -> bytes:
    if ":" in ip:
        return _DELETE6.pack(
            48, DELNEIGH, REQUEST, 0, 0, AF_INET6, 0, 0, index, 0, 0, 0, 20, _DST, inet_pton(AF_INET6, ip)
        )
    return _DELETE4.pack(36, DELNEIGH, REQUEST, 0, 0, AF_INET, 0, 0, index, 0, 0, 0, 8, _DST, inet_pton(AF_INET, ip))


def put_fdb(index: int, mac: str, dst: str) -> bytes:
    """NEWNEIGH of a permanent forwarding entry."""
    if ":" in dst:
        return _PUT_FDB6.pack(
            60, NEWNEIGH, _PUT, 0, 0, AF_BRIDGE, 0, 0, index, NOARP | PERMANENT, SELF, 0,
            10, _LLADDR, mac_bytes(mac), 20, _DST, inet_pton(AF_INET6, dst),
        )  # fmt: skip
    return _PUT_FDB4.pack(
        48, NEWNEIGH, _PUT, 0, 0, AF_BRIDGE, 0, 0, index, NOARP | PERMANENT, SELF, 0,
        10, _LLADDR, mac_bytes(mac), 8, _DST, inet_pton(AF_INET, dst),
    )  # fmt: skip


def delete_fdb(index: int, mac: str) -> bytes:
    """DELNEIGH of the forwarding entry, whatever its destination is."""
    return _DELETE_FDB.pack(
        40, DELNEIGH, REQUEST, 0, 0, AF_BRIDGE, 0, 0, index, 0, SELF, 0, 10, _LLADDR, mac_bytes(mac)
    )


def dump(family: int, index: int) -> bytes:
    """GETNEIGH of one device; family AF_BRIDGE: its forwarding entries. The filter needs GET_STRICT_CHK."""
    if family == AF_BRIDGE:
        payload = _NDMSG.pack(family, 0, 0, index, 0, 0, 0)
    else:
        payload = _NDMSG.pack(family, 0, 0, 0, 0, 0, 0) + attribute_u32(_IFINDEX, index)
    return HEADER.pack(HEADER.size + len(payload), GETNEIGH, REQUEST | DUMP, 0, 0) + payload


def decode(data: bytes, start: int, end: int) -> NeighbourMessage | None:
    if end - start < _NDMSG.size:
        return None
    family, _, _, index, state, flags, _ = _NDMSG.unpack_from(data, start)
    found = attributes(data, start + _NDMSG.size, end)
    raw = found.get(_DST)
    try:
        ip = None if raw is None else inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)
    except ValueError:
        return None
    return NeighbourMessage(family, index, state, flags, ip, found.get(_LLADDR, b"").hex(":"))
