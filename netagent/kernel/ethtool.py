"""Offloads of network devices, by the ethtool ioctl (linux/ethtool.h, ETHTOOL_GFEATURES and ETHTOOL_SFEATURES).

Rule: features go by the names that `ethtool -k` prints in brackets-free form ("tx-checksum-ip-generic").
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
GET_STRING_SET_INFO, GET_STRINGS, GET_FEATURES, SET_FEATURES = 0x37, 0x1B, 0x3A, 0x3B
FEATURE_STRINGS = 4  # ETH_SS_FEATURES
NAME_LENGTH = 32  # ETH_GSTRING_LEN


def get(dev: str, feature: str) -> bool:
    """Whether the feature is active. OSError: no such device, or no such feature (ENOENT)."""
    names = _names(dev)
    bit = _bit(names, feature)
    blocks = (len(names) + 31) // 32
    data = _ioctl(dev, struct.pack("=II", GET_FEATURES, blocks) + bytes(16 * blocks))
    # Each block: available, requested, active, never_changed
    (active,) = struct.unpack_from("=I", data, 8 + 16 * (bit // 32) + 8)
    return bool(active >> (bit % 32) & 1)


def set(dev: str, feature: str, on: bool) -> None:
    """Turn the feature on or off. OSError: no such device or feature, or it cannot be changed."""
    names = _names(dev)
    bit = _bit(names, feature)
    blocks = (len(names) + 31) // 32
    body = bytearray(8 * blocks)
    # Each block: valid, requested
    struct.pack_into("=II", body, 8 * (bit // 32), 1 << bit % 32, on << bit % 32)
    _ioctl(dev, struct.pack("=II", SET_FEATURES, blocks) + bytes(body))


def _bit(names: list[str], feature: str) -> int:
    try:
        return names.index(feature)
    except ValueError:
        raise OSError(errno.ENOENT, f"there is no feature {feature}") from None


def _names(dev: str) -> list[str]:
    info = _ioctl(dev, struct.pack("=IIQI", GET_STRING_SET_INFO, 0, 1 << FEATURE_STRINGS, 0))
    (count,) = struct.unpack_from("=I", info, 16)
    data = _ioctl(dev, struct.pack("=III", GET_STRINGS, FEATURE_STRINGS, count) + bytes(count * NAME_LENGTH))
    raw = (data[12 + at : 12 + at + NAME_LENGTH] for at in range(0, count * NAME_LENGTH, NAME_LENGTH))
    return [name.rstrip(b"\0").decode() for name in raw]


def _ioctl(dev: str, command: bytes) -> bytes:
    """One ethtool command; what the kernel made of the buffer."""
    buffer = array.array("B", command)
    request = struct.pack("16sP16x", dev.encode(), buffer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request)
    return buffer.tobytes()
