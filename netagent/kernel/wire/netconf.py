"""Notifications that a setting such as forwarding or rp_filter changed (linux/netconf.h: NETCONFA_*)."""

from __future__ import annotations

import struct

from netagent.kernel.wire.message import I32, attributes

NEWNETCONF = 80
ALL, DEFAULT = -1, -2  # in place of an ifindex: net.ipv4.conf.all, and .default

_IFINDEX = 1
_HEADER = 4  # struct netconfmsg: the family, padded


def decode(data: bytes, start: int, end: int) -> int | None:
    """The ifindex whose settings changed, or ALL, or DEFAULT."""
    value = attributes(data, start + _HEADER, end).get(_IFINDEX)
    try:
        return None if value is None else int(I32.unpack(value)[0])
    except struct.error:
        return None
