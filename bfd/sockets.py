"""The UDP sockets of BFD on Linux (RFC 5881 section 4, RFC 5883 section 5).

Rule: what comes is read in the order in which it came, with the kernel's word for when and with what TTL; a filter in
the kernel keeps off whatever has crossed a router on its way to the port for one hop. Each session sends from a
port of its own. What cannot be opened is a SocketError that says what to do.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bfd.sessions import MULTIHOP_PORT, PORT

SOURCE_PORTS = (49152, 65535)

_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_SO_ATTACH_FILTER = 26
_IP_RECVTTL = 12
_IPV6_RECVHOPLIMIT = 51
_IPV6_HOPLIMIT = 52
_TIMESPEC = struct.Struct("@qq")
_INT = struct.Struct("@i")
_INTERNETWORK_CONTROL = 0xC0
_BUFFER = 1 << 22
"""Octets for what waits to be read: some 5,000 packets."""
_LONGEST = 128
"""Octets of a datagram that are read; a packet has 24."""
_ATTEMPTS = 50


class SocketError(Exception):
    """What the operator must change, in one sentence."""


def port_of(*, multihop: bool) -> int:
    return MULTIHOP_PORT if multihop else PORT


class Receiver:
    """Hears packets to an address of ours, or to any of a family where it is all zero. Raises SocketError."""

    def __init__(self, local: bytes, *, multihop: bool) -> None:
        self.multihop = multihop
        self.local = local
        self.sock = _bound(local, port_of(multihop=multihop))
        self._six = self.sock.family == socket.AF_INET6
        self._emptied_at = time.monotonic()
        try:
            if self._six:
                self.sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
            else:
                self.sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            if not multihop:
                _only_from_the_link(self.sock)
        except OSError as error:
            self.sock.close()
            raise SocketError(f"cannot prepare to hear BFD: {error.strerror}") from None
        for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
                break
            except OSError:
                continue

    def drain(self, most: int, take: Callable[[bytes, bytes, int, float, bool], None]) -> float:
        """Give what has come to `take`: octets, source, TTL, time, multihop. `most` datagrams at most.

        The time up to which everything has been read; all times are those of `time.monotonic`.
        """
        began = time.monotonic()
        behind = began - time.time()  # from the kernel's clock to ours
        at = self._emptied_at
        recvmsg = self.sock.recvmsg
        for _ in range(most):
            try:
                data, ancillary, _, source = recvmsg(_LONGEST, 96)
            except (BlockingIOError, InterruptedError):
                self._emptied_at = began
                return began
            except OSError:
                continue  # an error of the network's, told once
            ttl = 0
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET:
                    seconds, nanoseconds = _TIMESPEC.unpack_from(value)
                    # It cannot have come before the socket was empty last, nor after now, whatever that clock does.
                    at = min(max(seconds + nanoseconds * 1e-9 + behind, at), began)
                elif kind in (socket.IP_TTL, _IPV6_HOPLIMIT):
                    ttl = _INT.unpack_from(value)[0]
            take(data, self._packed(source[0]), ttl, at, self.multihop)
        return at

    def _packed(self, text: str) -> bytes:
        if self._six:
            return socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
        return socket.inet_aton(text)

    def close(self) -> None:
        self.sock.close()


def sender(remote: bytes, local: bytes, *, multihop: bool, port: int = 0) -> socket.socket:
    """A socket whose `send` reaches the neighbour, from that port if it is free. Raises SocketError."""
    where = text(remote)
    if len(remote) == 16 and remote[0] == 0xFE and remote[1] & 0xC0 == 0x80:
        raise SocketError(f"{where} is link-local, and its interface is not known: give the peer a global address")
    try:
        sock = _new(remote)
    except OSError as error:
        raise SocketError(f"cannot open a socket towards {where}: {error.strerror}") from None
    try:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nobody sends there, and nobody reads
        _bind_to_a_source_port(sock, local or bytes(len(remote)), port)
        sock.connect((where, port_of(multihop=multihop)))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL and local:
            raise SocketError(f"{text(local)} is not an address of this host: give it to a device") from None
        raise SocketError(f"cannot send to {where}: {os.strerror(error.errno or 0).lower()}") from None
    return sock


def local_of(sock: socket.socket) -> bytes:
    """The address of ours that a sender's packets come from."""
    return socket.inet_pton(sock.family, str(sock.getsockname()[0]).partition("%")[0])


def port_from(sock: socket.socket) -> int:
    """The port of ours that they come from."""
    return int(sock.getsockname()[1])


def text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _new(address: bytes) -> socket.socket:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with contextlib.suppress(OSError):
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _INTERNETWORK_CONTROL)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _INTERNETWORK_CONTROL)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _bind_to_a_source_port(sock: socket.socket, local: bytes, before: int) -> None:
    """A session keeps its port (RFC 5881 section 4); no two from one address have the same."""
    first, last = SOURCE_PORTS
    for attempt in range(_ATTEMPTS):
        port = first + int.from_bytes(os.urandom(2), "big") % (last - first + 1)
        try:
            sock.bind((text(local), before if before and not attempt else port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                raise


def _bound(local: bytes, port: int) -> socket.socket:
    """Bound to it alone, or beside another speaker that has all addresses, which then loses this one to us."""
    where = f"UDP port {port} of {text(local)}"
    for share in (False, True):
        try:
            sock = _new(local)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                raise SocketError("this kernel has no IPv6; leave peers with IPv6 addresses out") from None
            raise SocketError(f"cannot open {where}: {error.strerror}") from None
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(share))
            sock.bind((text(local), port))
            return sock
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and not share and any(local) and not _held(local, port):
                continue
            raise SocketError(f"cannot hear BFD at {where}: {_remedy(error, local)}") from None
    raise AssertionError("unreachable")


def _held(local: bytes, port: int) -> bool:
    """Whether somebody has that very address and port."""
    return any(found == (local, port) for found in _listeners("udp" if len(local) == 4 else "udp6"))


def _listeners(table: str) -> Iterator[tuple[bytes, int]]:
    """Addresses and ports in /proc/net/udp, where addresses are words of the host's order, in hexadecimal."""
    try:
        lines = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        address, _, port = line.split()[1].partition(":")
        words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
        yield struct.pack(f"={len(words)}I", *words), int(port, 16)


def _only_from_the_link(sock: socket.socket) -> None:
    """A classic BPF program: the TTL, or hop limit, or nothing."""
    where = 0xFFF00000 + (8 if sock.family == socket.AF_INET else 7)  # SKF_NET_OFF and the field in the header
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, where),  # ldb [where]
            (0x15, 0, 1, 255),  # jeq #255, next, drop
            (0x06, 0, 0, 0xFFFFFFFF),  # ret whole
            (0x06, 0, 0, 0),  # drop: ret nothing
        )
    )
    held = array.array("B", program)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 4, held.buffer_info()[0]))


def _remedy(error: OSError, local: bytes) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program has it (`ss -lunp` tells which); end its BFD, or give each an address of its own"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text(local)} is not an address of this host; give it to a device"
    return os.strerror(error.errno or 0).lower()
