"""The TUN device as the reconciler makes it: persistent, so that the engine attaches to it by name.

Rule: a device gets its mark before it becomes persistent: whatever happens in between takes the device with it.
Calls act in the network namespace of the calling thread. Source: linux/if_tun.h,
Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable

_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")

DEVICE = "/dev/net/tun"


def create(name: str, vnet_hdr: bool, mark: Callable[[], None]) -> None:
    """Make the device, call `mark` on it, keep it. Of a device that is there already only the flags are set.

    OSError: EBUSY where a process holds it, ENOENT without /dev/net/tun, EPERM without CAP_NET_ADMIN.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0)
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        mark()
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)


def available() -> bool:
    return os.access(DEVICE, os.R_OK | os.W_OK)
