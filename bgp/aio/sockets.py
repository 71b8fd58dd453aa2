"""The sockets of BGP on Linux: listening and connecting, with TCP MD5 (RFC 2385) and GTSM (RFC 5082).

Rule: each option is set before the first segment that it is for leaves or is heard. What the kernel refuses is a
SetupError that says what to do. Numbers that the `socket` module lacks are from <linux/tcp.h> and <linux/in6.h>.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

from bgp.aio.occupied import holder_of
from bgp.message.errors import BgpError
from bgp.message.nlri import address_text
from bgp.transport import Transport

_TCP_MD5SIG = 14
_TCP_MD5SIG_EXT = 32
_MD5SIG_FLAG_PREFIX = 1
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_INTERNETWORK_CONTROL = 0xC0
"""The DSCP of routing protocols, CS6 (RFC 4594 section 3.2)."""

BACKLOG = 4096
"""Connections that may wait to be accepted: a cluster at once. net.core.somaxconn is the kernel's limit."""


class SetupError(BgpError):
    """What the operator must change, in one sentence."""


def family_of(address: bytes) -> socket.AddressFamily:
    """AF_INET for 4 octets, AF_INET6 for 16."""
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def listening(address: bytes, port: int) -> socket.socket:
    """A socket that listens, for that family alone. Raises SetupError."""
    where = f"port {port} of {address_text(address)}"
    sock = _new(address, where)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The answer to a SYN must pass a peer that demands 255; what an accepted connection sends is set on it.
        set_ttl(sock, 255)
        sock.bind((address_text(address), port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SetupError(f"cannot listen on {where}: {_remedy(error, address, port)}") from None
    return sock


def connecting(peer: bytes, transport: Transport, *, external: bool) -> socket.socket:
    """A socket ready for connect(). Raises SetupError."""
    sock = _new(peer, f"a connection to {address_text(peer)}")
    try:
        prepare(sock, transport, external=external)
        if transport.password:
            set_key(sock, peer, None, transport.password)
        if transport.local_address:
            sock.bind((address_text(transport.local_address), 0))
    except OSError as error:
        sock.close()
        local = address_text(transport.local_address) if transport.local_address else ""
        if error.errno == errno.EADDRNOTAVAIL:
            raise SetupError(f"the local address {local} is not on this host: give it to a device") from None
        raise SetupError(f"cannot prepare a connection: {error.strerror}") from None
    except SetupError:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket, transport: Transport, *, external: bool) -> None:
    """What an accepted connection and one of ours have in common."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ttl = transport.sent_ttl(external=external)
    if ttl:
        set_ttl(sock, ttl)
    elif sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, -1)  # back to the kernel's own: a listener's is 255
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, -1)
    set_least_ttl(sock, transport.least_ttl)


def set_ttl(sock: socket.socket, ttl: int) -> None:
    """The TTL or hop limit of what is sent."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)


def set_least_ttl(sock: socket.socket, ttl: int) -> None:
    """Segments with a lower TTL or hop limit are not heard; 0 hears all."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, ttl)


def set_key(sock: socket.socket, address: bytes, length: int | None, password: bytes) -> None:
    """Sign segments from and to an address, or a prefix of `length` bits, with the password; empty takes it away.

    Raises SetupError. struct tcp_md5sig: an address, flags, the prefix' length, the key's, an interface, the key.
    """
    if len(address) == 4:
        where = struct.pack("@HH4s", socket.AF_INET, 0, address)
    else:
        where = struct.pack("@HHI16sI", socket.AF_INET6, 0, 0, address, 0)
    option, flags = (_TCP_MD5SIG, 0) if length is None else (_TCP_MD5SIG_EXT, _MD5SIG_FLAG_PREFIX)
    value = struct.pack("@128sBBHi80s", where, flags, length or 0, len(password), 0, password)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError as error:
        if not password and error.errno == errno.ENOENT:
            return
        whose = address_text(address) if length is None else f"{address_text(address)}/{length}"
        what = f"{os.strerror(error.errno or 0).lower()}, errno {error.errno}"
        raise SetupError(f"TCP MD5 for {whose} is refused ({what}){_md5_remedy(error)}") from None


def _md5_remedy(error: OSError) -> str:
    if error.errno in (errno.ENOPROTOOPT, errno.EINVAL, errno.EPERM):
        return ": this kernel has none (CONFIG_TCP_MD5SIG, and not in FIPS mode); take the password away"
    if error.errno == errno.ENOMEM:
        return ": no room for so many keys on one socket; raise the sysctl net.core.optmem_max"
    return ""


def _new(address: bytes, where: str) -> socket.socket:
    try:
        sock = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise SetupError(f"cannot open {where}: this kernel has no IPv6; leave IPv6 addresses out") from None
        raise SetupError(f"cannot open {where}: {error.strerror}") from None
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _INTERNETWORK_CONTROL)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _INTERNETWORK_CONTROL)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _remedy(error: OSError, address: bytes, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        by = f"it is in use by {holder}" if holder else "it is in use"
        return f"{by}; stop the other speaker, or listen on another port or address"
    if error.errno == errno.EACCES:
        return "ports below 1024 need root or CAP_NET_BIND_SERVICE; grant it, or listen on another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address_text(address)} is not an address of this host; give it to a device, or leave it out"
    return os.strerror(error.errno or 0)
