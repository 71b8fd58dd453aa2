"""The control protocol of the udp engine: what may be said over its unix socket, and how it looks in bytes.

A message is a length (4 bytes, big-endian) and that many bytes of JSON, one object. A client sends requests
{"do": NAME, ...}; each gets one answer, in order: {"ok": true, ...} or {"ok": false, "error": TEXT}. The requests:

    hello                           -> protocol, tag, pid, uptime, digest, peers (their number), config (or null)
    configure    config             -> problems; see Config
    set-peers    peers              -> digest; makes these all there are
    add-peers    peers              -> digest; adds or replaces
    remove-peers keys               -> digest; absent keys are no error
    stats        offset, limit      -> problems, drops, traffic (one page of the peers, in no set order), more
    export                          -> config, peers, traffic: all that a successor needs to stand ready
    handover     digest             -> descriptors (names), the descriptors themselves as SCM_RIGHTS
    release                         -> no answer: the successor runs, this engine ends
    stop                            -> the engine ends

A peer is [key, [subnet, ...], [endpoint, ...]]; traffic is {key: [tx packets, tx bytes, rx packets, rx bytes,
drops, seconds since last heard or -1]}. Rules: hello, export, handover, release and stop never change their form, so
that any two versions can hand over; a newer engine understands the requests of an older client. The parser
trusts nothing: a message that it does not understand is answered with an error, one that is too long ends the
connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from backends.udp.table import Entry, parse_address, parse_prefix

PROTOCOL = 1

# 65,536 peers with long keys fit; a longer message is an attack or a mistake.
MAX_MESSAGE = 16 << 20
_LENGTH = 4

DO_HELLO = "hello"
DO_CONFIGURE = "configure"
DO_SET_PEERS = "set-peers"
DO_ADD_PEERS = "add-peers"
DO_REMOVE_PEERS = "remove-peers"
DO_STATS = "stats"
DO_EXPORT = "export"
DO_HANDOVER = "handover"
DO_RELEASE = "release"
DO_STOP = "stop"

MAX_DEVICE_NAME = 15  # IFNAMSIZ less the final zero
MIN_MTU, MAX_MTU = 68, 65535 - 28


class ControlError(Exception):
    """A message that breaks the protocol, or an answer that says that something failed."""


class Config(NamedTuple):
    """What the engine needs beside its peers. Addresses are those of this host to bind to, one a family at most."""

    device: str
    mtu: int  # of the device, bytes
    port: int
    addresses: tuple[str, ...]
    subnets: tuple[str, ...]  # this node's own

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


class Decoder:
    """Bytes in as they come, whole messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The messages that `data` completes. ControlError: the stream cannot be trusted any more."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            length = int.from_bytes(self._buffer[:_LENGTH], "big")
            if length > MAX_MESSAGE:
                raise ControlError(f"a message of {length} bytes is longer than {MAX_MESSAGE}")
            if len(self._buffer) < _LENGTH + length:
                return
            body = bytes(self._buffer[_LENGTH : _LENGTH + length])
            del self._buffer[: _LENGTH + length]
            yield _object(body)


def encode(message: Mapping[str, Any]) -> bytes:
    """One message in bytes. ControlError if it is too long to be read."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise ControlError(f"a message of {len(body)} bytes is longer than {MAX_MESSAGE}")
    return len(body).to_bytes(_LENGTH, "big") + body


def _object(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise ControlError("a message is not JSON") from None
    if not isinstance(message, dict):
        raise ControlError("a message is not an object")
    return message


# ------------------------------------------------------------------------------------------- requests' fields


def config_of(message: Mapping[str, Any]) -> Config:
    """`config` of a configure request or of an export, checked."""
    raw = message.get("config")
    if not isinstance(raw, dict):
        raise ControlError("config is missing")
    device = raw.get("device")
    if not isinstance(device, str) or not _is_device(device):
        raise ControlError(f"device: {device!r} is not a device's name")
    mtu = whole(raw, "mtu", MIN_MTU, MAX_MTU)
    port = whole(raw, "port", 1, 65535)
    addresses, subnets = texts(raw, "addresses"), texts(raw, "subnets")
    try:
        families = [parse_address(address)[0] for address in addresses]
        for subnet in subnets:
            parse_prefix(subnet)
    except ValueError as error:
        raise ControlError(str(error)) from None
    if len(set(families)) != len(families):
        raise ControlError("addresses: more than one of a family")
    return Config(device, mtu, port, addresses, subnets)


def peers_of(message: Mapping[str, Any]) -> list[Entry]:
    """`peers` of a request. What the texts mean is checked where they are parsed (table.Peer)."""
    raw = message.get("peers")
    if not isinstance(raw, list):
        raise ControlError("peers is not a list")
    entries = []
    for item in raw:
        try:
            key, subnets, endpoints = item
            if not isinstance(key, str) or not _all_text(subnets) or not _all_text(endpoints):
                raise TypeError
        except (TypeError, ValueError):
            raise ControlError(f"{str(item)[:100]} is not a peer") from None
        entries.append(Entry(key, tuple(subnets), tuple(endpoints)))
    return entries


def traffic_of(message: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """`traffic` of stats or export: per key six numbers."""
    raw = message.get("traffic")
    if not isinstance(raw, dict):
        raise ControlError("traffic is not an object")
    for key, numbers in raw.items():
        if (
            not isinstance(numbers, list)
            or len(numbers) != 6
            or not all(type(n) in (int, float) and -2 < n < 1 << 64 for n in numbers)
        ):
            raise ControlError(f"traffic of {key[:100]!r} is not six numbers")
    return raw


def texts(message: Mapping[str, Any], field: str) -> tuple[str, ...]:
    raw = message.get(field)
    if not isinstance(raw, list) or not _all_text(raw):
        raise ControlError(f"{field} is not a list of strings")
    return tuple(raw)


def text(message: Mapping[str, Any], field: str) -> str:
    raw = message.get(field)
    if not isinstance(raw, str):
        raise ControlError(f"{field} is not a string")
    return raw


def whole(message: Mapping[str, Any], field: str, low: int, high: int) -> int:
    raw = message.get(field)
    if type(raw) is not int or not low <= raw <= high:
        raise ControlError(f"{field}: {str(raw)[:40]} is not a whole number from {low} to {high}")
    return raw


def _all_text(raw: Any) -> bool:
    return isinstance(raw, list) and all(type(item) is str for item in raw)


def _is_device(name: str) -> bool:
    return (
        0 < len(name) <= MAX_DEVICE_NAME
        and name.isascii()
        and name.isprintable()
        and not any(c in "/: " for c in name)
        and name not in (".", "..")
    )
