"""Features of network devices (checksum and segmentation offloads), read and set by ioctl(SIOCETHTOOL).

Rule: calls go to the network namespace of the calling thread. Layouts: linux/ethtool.h, ETHTOOL_GFEATURES and
ETHTOOL_SFEATURES; names are those that `ethtool -k` derives its own from ("tx-checksum-ip-generic").
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from typing import NamedTuple

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_STRINGS_FEATURES = 4  # ETH_SS_FEATURES
_NAME_LENGTH = 32  # ETH_GSTRING_LEN


class Feature(NamedTuple):
    on: bool
    changeable: bool


def features(dev: str) -> dict[str, Feature]:
    """Every feature that the kernel knows, of one device. OSError (ENODEV, EOPNOTSUPP)."""
    with _socket() as channel:
        names = _names(channel, dev)
        blocks = (len(names) + 31) // 32
        buffer = ctypes.create_string_buffer(struct.pack("=II", _GFEATURES, blocks), 8 + 16 * blocks)
        _call(channel, dev, buffer)
    words = struct.unpack_from(f"={4 * blocks}I", buffer.raw, 8)
    found = {}
    for number, name in enumerate(names):
        available, _, active, never_changed = words[number // 32 * 4 : number // 32 * 4 + 4]
        bit = 1 << number % 32
        if name:
            found[name] = Feature(bool(active & bit), bool(available & bit and not never_changed & bit))
    return found


def set_feature(dev: str, name: str, on: bool) -> None:
    """Turn one feature on or off. OSError: EINVAL (no such feature), EPERM, EOPNOTSUPP (it did not take effect)."""
    with _socket() as channel:
        names = _names(channel, dev)
        if name not in names:
            raise OSError(errno.EINVAL, f"this kernel knows no feature {name!r}")
        blocks = (len(names) + 31) // 32
        number = names.index(name)
        words = [0] * (2 * blocks)  # valid and requested of each block
        words[number // 32 * 2] = 1 << number % 32
        words[number // 32 * 2 + 1] = on << number % 32
        buffer = ctypes.create_string_buffer(struct.pack(f"=II{2 * blocks}I", _SFEATURES, blocks, *words))
        _call(channel, dev, buffer)
    if features(dev)[name].on != on:
        raise OSError(errno.EOPNOTSUPP, f"{dev} keeps {name} {'off' if on else 'on'}")


def _names(channel: socket.socket, dev: str) -> list[str]:
    """Names of the features in the order of their bits."""
    info = ctypes.create_string_buffer(struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _STRINGS_FEATURES, 0))
    _call(channel, dev, info)
    (count,) = struct.unpack_from("=I", info.raw, 16)
    head = struct.pack("=III", _GSTRINGS, _STRINGS_FEATURES, count)
    buffer = ctypes.create_string_buffer(head, 12 + count * _NAME_LENGTH)
    _call(channel, dev, buffer)
    text = buffer.raw[12:]
    return [
        text[at : at + _NAME_LENGTH].partition(b"\0")[0].decode("ascii", "replace")
        for at in range(0, count * _NAME_LENGTH, _NAME_LENGTH)
    ]


def _socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _call(channel: socket.socket, dev: str, buffer: ctypes.Array[ctypes.c_char]) -> None:
    name = dev.encode()
    if len(name) > 15:
        raise OSError(errno.ENODEV, f"no device has the name {dev!r}")
    # struct ifreq: 16 bytes of name, then the pointer; 40 bytes in all.
    fcntl.ioctl(channel, _SIOCETHTOOL, struct.pack("16sP16x", name, ctypes.addressof(buffer)))
