"""Interface addresses (linux/if_addr.h: struct ifaddrmsg, IFA_*).

Rule: an address of ours takes part in no duplicate address detection (its subnet is leased to this node alone), and a
host address (/32, /128) brings no route of its own.
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
    attribute,
    attribute_u32,
    attributes,
)

NEWADDR, DELADDR, GETADDR = 20, 21, 22

SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}
SCOPE_NAMES = {number: name for name, number in SCOPES.items()}

# IFA_F_SECONDARY of IPv4 and IFA_F_TEMPORARY of IPv6 are one bit.
TEMPORARY, NODAD, DEPRECATED, TENTATIVE, NOPREFIXROUTE = 0x01, 0x02, 0x20, 0x40, 0x200

_ADDRESS, _LOCAL, _FLAGS = 1, 2, 8

_IFADDRMSG = struct.Struct("=4BI")  # family, prefix length, flags, scope; ifindex


class AddressMessage(NamedTuple):
    family: int
    ifindex: int
    ip: str
    length: int
    scope: str
    flags: int


def put(index: int, ip: str, length: int, scope: str) -> bytes:
    """NEWADDR that creates and never replaces. ValueError or OSError: text that is no address; KeyError: no scope."""
    family, full = (AF_INET6, 128) if ":" in ip else (AF_INET, 32)
    flags = (NODAD if family == AF_INET6 else 0) | (NOPREFIXROUTE if length == full else 0)
    payload = _payload(index, ip, length, SCOPES[scope]) + attribute_u32(_FLAGS, flags)
    return HEADER.pack(HEADER.size + len(payload), NEWADDR, REQUEST | CREATE | EXCL, 0, 0) + payload


def delete(index: int, ip: str, length: int) -> bytes:
    payload = _payload(index, ip, length, 0)
    return HEADER.pack(HEADER.size + len(payload), DELADDR, REQUEST, 0, 0) + payload


def _payload(index: int, ip: str, length: int, scope: int) -> bytes:
    family = AF_INET6 if ":" in ip else AF_INET
    raw = inet_pton(family, ip)
    return (
        _IFADDRMSG.pack(family, length, 0, scope, index)
        + attribute(_LOCAL, raw)
        + (attribute(_ADDRESS, raw) if family == AF_INET else b"")
    )


def dump(index: int = 0) -> bytes:
    """GETADDR of both families; `index` 0: of all devices."""
    payload = _IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, index)
    return HEADER.pack(HEADER.size + len(payload), GETADDR, REQUEST | DUMP, 0, 0) + payload


def decode(data: bytes, start: int, end: int) -> AddressMessage | None:
    if end - start < _IFADDRMSG.size:
        return None
    family, length, flags, scope, index = _IFADDRMSG.unpack_from(data, start)
    if family not in (AF_INET, AF_INET6):
        return None
    found = attributes(data, start + _IFADDRMSG.size, end)
    raw = found.get(_LOCAL) or found.get(_ADDRESS)  # of a point-to-point link IFA_ADDRESS is the far end
    if raw is None:
        return None
    try:
        wide = found.get(_FLAGS)
        if wide is not None:
            flags = U32.unpack(wide)[0]
        return AddressMessage(
            family, index, inet_ntop(family, raw), length, SCOPE_NAMES.get(scope, "global"), int(flags)
        )
    except (ValueError, struct.error):
        return None
