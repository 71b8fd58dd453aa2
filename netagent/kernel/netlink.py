"""The two rtnetlink sockets: one for requests, answered in order, and one for events.

Rules: a batch is not atomic, so every message has its own sequence number and every refusal is reported with the
position of its message; an acknowledgement is asked for of the last message of a chunk only. A dump that the kernel
marks as interrupted is made again. The event socket drops in the kernel, by a socket filter, what our own requests
caused; when events were lost it says so and nothing else. A socket stays in the network namespace in which it
was opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from netagent.errors import KernelError
from netagent.kernel.wire import message as m

T = TypeVar("T")
Decoder = Callable[[bytes, int, int], T | None]

CHUNK = 256  # messages in one send: their refusals fit the receive buffer

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 1, 10, 11, 12
_SO_ATTACH_FILTER, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 26, 32, 33

_REQUEST_BUFFER = 2 << 20  # bytes
_EVENT_BUFFER = 8 << 20  # bytes: some 20,000 events; the kernel's default holds 256
_RECEIVE = 1 << 17  # bytes: more than the kernel puts into one datagram
_DEADLINE = 5  # seconds for an answer. The kernel answers while it is asked: only a lost answer takes time
_DUMP_TRIES = 5

# linux/rtnetlink.h: RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, IPV4_NETCONF,
# IPV6_NETCONF, NEXTHOP
GROUPS = (1, 3, 5, 7, 9, 11, 24, 25, 32)


class RequestSocket:
    """Requests and their answers. `port` is the address that notifications of our own requests carry."""

    def __init__(self) -> None:
        self._socket = _open(_SO_RCVBUFFORCE, socket.SO_RCVBUF, _REQUEST_BUFFER)
        set_buffer(self._socket, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _REQUEST_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _DEADLINE, 0))
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            with contextlib.suppress(OSError):  # Linux before 4.20 has no strict check
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        self._seq = 0

    def close(self) -> None:
        self._socket.close()

    def transact(self, requests: Sequence[bytes]) -> dict[int, m.Refusal]:
        """Carry out requests in this order; what was refused, by position. Never raises for the kernel's refusals."""
        refused: dict[int, m.Refusal] = {}
        for first in range(0, len(requests), CHUNK):
            self._chunk(requests[first : first + CHUNK], first, refused)
        return refused

    def _chunk(self, requests: Sequence[bytes], first: int, refused: dict[int, m.Refusal]) -> None:
        base = self._seq + 1
        self._seq += len(requests)
        data = bytearray(b"".join(requests))
        pack, offset, last = m.U32.pack_into, 0, 0
        for seq, request in enumerate(requests, base):
            pack(data, offset + m.SEQ_OFFSET, seq & 0xFFFFFFFF)
            last = offset
            offset += len(request)
        flags = m.U16.unpack_from(data, last + 6)[0]
        m.U16.pack_into(data, last + 6, flags | m.ACK)
        awaited = self._seq & 0xFFFFFFFF
        try:
            self._socket.send(data)
            while True:
                answer = self._receive()
                for found in m.messages(answer):
                    if found.type != m.ERROR:
                        continue
                    said = m.refusal(answer, found)
                    position = (found.seq - base) & 0xFFFFFFFF
                    if said.errno and position < len(requests):
                        refused[first + position] = said
                    if found.seq == awaited:
                        return
        except OSError as error:  # no answer, or one was lost: of what was not refused nothing is known
            said = m.Refusal(error.errno or errno.EIO, f"no answer from the kernel: {error.strerror}")
            for position in range(len(requests)):
                refused.setdefault(first + position, said)

    def dump(self, request: bytes, kind: int, decode: Decoder[T]) -> list[T]:
        """Every message of `kind` that answers a dump request, decoded. KernelError when the kernel refuses."""
        for _ in range(_DUMP_TRIES):
            found: list[T] = []
            if self._dump(request, kind, decode, found):
                return found
        raise KernelError("a dump was interrupted by changes again and again", errno=errno.EINTR)

    def dump_table(self, request: bytes, kind: int, decode: Decoder[T]) -> list[T]:
        """Like `dump`, of a routing table: the kernel makes one with its first route, and until then has none."""
        try:
            return self.dump(request, kind, decode)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return []

    def _dump(self, request: bytes, kind: int, decode: Decoder[T], into: list[T]) -> bool:
        """False: something changed meanwhile (NLM_F_DUMP_INTR)."""
        seq = self._send(request)
        whole = True
        while True:
            data = self._answer()
            for found in m.messages(data):
                if found.seq != seq:
                    continue
                if found.flags & m.DUMP_INTR:
                    whole = False
                if found.type == kind:
                    value = decode(data, found.start, found.end)
                    if value is not None:
                        into.append(value)
                elif found.type in (m.DONE, m.ERROR):
                    said = m.refusal(data, found)
                    if said.errno:
                        raise _error(said)
                    return whole

    def get(self, request: bytes, kind: int, decode: Decoder[T]) -> T | None:
        """The one message that answers; None if it makes no sense. KernelError when the kernel refuses."""
        seq = self._send(request)
        while True:
            data = self._answer()
            for found in m.messages(data):
                if found.seq != seq:
                    continue
                if found.type == kind:
                    return decode(data, found.start, found.end)
                if found.type == m.ERROR:
                    said = m.refusal(data, found)
                    if said.errno:
                        raise _error(said)
                    return None

    def _send(self, request: bytes) -> int:
        self._seq += 1
        seq = self._seq & 0xFFFFFFFF
        data = bytearray(request)
        m.U32.pack_into(data, m.SEQ_OFFSET, seq)
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(f"rtnetlink: {error.strerror}", errno=error.errno or 0) from None
        return seq

    def _answer(self) -> bytes:
        try:
            return self._receive()
        except OSError as error:
            raise KernelError(f"no answer from the kernel: {error.strerror}", errno=error.errno or 0) from None

    def _receive(self) -> bytes:
        return self._socket.recv(_RECEIVE)


class Events(NamedTuple):
    """Datagrams of one or more messages. `lost`: the buffer overflowed, anything may have changed."""

    datagrams: list[bytes]
    lost: bool


class EventSocket:
    """Notifications of links, addresses, routes, neighbours and nexthops that others caused.

    `own_port`: the port id of our requests. The kernel names no port in some notifications (forwarding entries,
    what vanishes with something else): these come through whoever caused them.
    """

    def __init__(self, own_port: int) -> None:
        self._socket = _open(_SO_RCVBUFFORCE, socket.SO_RCVBUF, _EVENT_BUFFER)
        self._socket.setblocking(False)
        drop_port(self._socket, own_port)
        self._socket.bind((0, 0))
        for group in GROUPS:
            with contextlib.suppress(OSError):  # Linux before 5.3 has no nexthop group
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self, limit: int = 512) -> Events:
        """At most `limit` datagrams of those that wait; never blocks."""
        datagrams: list[bytes] = []
        lost = False
        while len(datagrams) < limit:
            try:
                datagrams.append(self._socket.recv(_RECEIVE))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(f"events: {error.strerror}", errno=error.errno or 0) from None
                lost = True
        return Events(datagrams, lost)


def _open(force: int, plain: int, size: int) -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError as error:
        raise KernelError(f"cannot open rtnetlink: {error.strerror}", errno=error.errno or 0) from None
    set_buffer(opened, force, plain, size)
    return opened


def set_buffer(target: socket.socket, force: int, plain: int, size: int) -> None:
    """Beyond the system's limit where we may (CAP_NET_ADMIN in the first user namespace), else up to it."""
    try:
        target.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        target.setsockopt(socket.SOL_SOCKET, plain, size)


def drop_port(target: socket.socket, port: int) -> None:
    """Attach a classic BPF program that drops datagrams whose first message's nlmsg_pid is `port`.

    BPF loads words as big-endian and the header is in host order: hence the swap.
    """
    load, jump_equal, ret = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, m.PORT_OFFSET),
            (jump_equal, 0, 1, socket.htonl(port)),
            (ret, 0, 0, 0),
            (ret, 0, 0, 0xFFFFFFFF),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    target.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    )


def _error(said: m.Refusal) -> KernelError:
    return KernelError(said.text or os.strerror(said.errno), errno=said.errno)
