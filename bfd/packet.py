"""BFD control packets (RFC 5880 section 4.1): octets to values and back.

Rule: what section 6.8.6 has discarded is a PacketError here, for one reason in a few words. Authentication is not
spoken: a packet that carries any is refused, as one must be where none is agreed on.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

VERSION = 1
SIZE = 24
"""Octets of a packet without authentication."""
_LEAST_AUTHENTICATED = 26
_FORMAT = struct.Struct(">BBBBIIIII")

_POLL, _FINAL, _INDEPENDENT, _AUTHENTICATED, _DEMAND, _MULTIPOINT = 0x20, 0x10, 0x08, 0x04, 0x02, 0x01


class State(IntEnum):
    """Section 4.1, Sta."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3


class Diag(IntEnum):
    """Why a session changed its state last (section 4.1). Others may come; on the wire it has five bits."""

    NONE = 0
    DETECTION_TIME_EXPIRED = 1
    ECHO_FAILED = 2
    NEIGHBOR_SIGNALED_DOWN = 3
    FORWARDING_PLANE_RESET = 4
    PATH_DOWN = 5
    CONCATENATED_PATH_DOWN = 6
    ADMINISTRATIVELY_DOWN = 7
    REVERSE_CONCATENATED_PATH_DOWN = 8


class PacketError(ValueError):
    """It is to be discarded; the text says why."""


class Packet(NamedTuple):
    """Intervals in microseconds, discriminators as the sender means `mine` and `yours`."""

    state: State
    mine: int
    yours: int
    multiplier: int
    desired_tx: int
    """The shortest interval at which the sender would like to send."""
    required_rx: int
    """The shortest interval at which it takes packets; 0: it wants none."""
    required_echo: int = 0
    diag: int = 0
    poll: bool = False
    final: bool = False
    independent: bool = False
    """C: its BFD does not share the fate of its control plane."""
    demand: bool = False

    def encode(self) -> bytes:
        flags = self.state << 6
        if self.poll:
            flags |= _POLL
        if self.final:
            flags |= _FINAL
        if self.independent:
            flags |= _INDEPENDENT
        if self.demand:
            flags |= _DEMAND
        return _FORMAT.pack(
            VERSION << 5 | self.diag,
            flags,
            self.multiplier,
            SIZE,
            self.mine,
            self.yours,
            self.desired_tx,
            self.required_rx,
            self.required_echo,
        )


_STATES = tuple(State)


def decode_packet(data: bytes) -> Packet:
    """The packet in a datagram; octets behind its own length are not looked at. Raises PacketError."""
    if len(data) < SIZE:
        raise PacketError("too short")
    first, flags, multiplier, length, mine, yours, desired_tx, required_rx, required_echo = _FORMAT.unpack_from(data)
    if first >> 5 != VERSION:
        raise PacketError("another version")
    if length < (_LEAST_AUTHENTICATED if flags & _AUTHENTICATED else SIZE):
        raise PacketError("its length is too small")
    if length > len(data):
        raise PacketError("cut off")
    if not multiplier:
        raise PacketError("no multiplier")
    if flags & _MULTIPOINT:
        raise PacketError("multipoint")
    if not mine:
        raise PacketError("no discriminator of its own")
    if not yours and flags >> 6 > State.DOWN:
        raise PacketError("no discriminator of ours")
    if flags & _AUTHENTICATED:
        raise PacketError("authenticated, and no authentication is agreed on")
    return Packet(
        _STATES[flags >> 6],
        mine,
        yours,
        multiplier,
        desired_tx,
        required_rx,
        required_echo,
        first & 0x1F,
        flags & _POLL != 0,
        flags & _FINAL != 0,
        flags & _INDEPENDENT != 0,
        flags & _DEMAND != 0,
    )
