"""A small reader of MRT files (RFC 6396, 8050): BGP messages as route collectors recorded them, for tests.

Rule: it only unpacks. What the messages say is left to bgp.message, which the tests hold against the text that
another decoder made of the same file. The files come from NETAGENT_TEST_DATA (default: shared/data beside the
repository); a test that needs them is skipped where they are absent, and fails there when CI=true.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

_ROOT = Path(__file__).resolve().parents[2]

_TABLE_DUMP_V2 = 13
_BGP4MP = (16, 17)  # without and with microseconds
# Subtypes of BGP4MP that hold a message, and the octets of their AS numbers.
_MESSAGES = {1: 2, 4: 4, 6: 2, 7: 4}
_STATE_CHANGES = {0: 2, 5: 4}
# Subtypes of TABLE_DUMP_V2 that hold a prefix: AFI, and whether each route has a path identifier.
_RIBS = {2: (1, False), 4: (2, False), 8: (1, True), 10: (2, True)}


class Message(NamedTuple):
    """A BGP message with its header. `width` is the session's octets of an AS number."""

    time: int
    peer: bytes
    peer_asn: int
    width: int
    data: bytes


class StateChange(NamedTuple):
    time: int
    peer: bytes
    peer_asn: int
    old: int
    new: int


class RibRoute(NamedTuple):
    """A route of a table dump; `attributes` is the block, in which MP_REACH_NLRI has nothing but its next hop."""

    time: int
    peer: bytes
    peer_asn: int
    afi: int
    prefix: bytes
    path_id: int | None
    attributes: bytes


def data(name: str) -> Path:
    """A folder of the test data, or the test is skipped (and fails with CI=true)."""
    root = Path(os.environ.get("NETAGENT_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not (root / name).is_dir():
        reason = f"no test data in {root / name}: set NETAGENT_TEST_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return root / name


def read(path: Path) -> Iterator[Message | StateChange | RibRoute]:
    """Each record of a gzipped file, in order."""
    raw = gzip.decompress(path.read_bytes())
    peers: list[tuple[bytes, int]] = []
    position = 0
    while position < len(raw):
        time, kind, subtype, size = struct.unpack_from(">IHHI", raw, position)
        body = raw[position + 12 : position + 12 + size]
        position += 12 + size
        if kind in _BGP4MP:
            yield from _bgp4mp(time, subtype, body[4:] if kind == 17 else body)
        elif kind == _TABLE_DUMP_V2 and subtype == 1:
            peers = _peer_table(body)
        elif kind == _TABLE_DUMP_V2 and subtype in _RIBS:
            yield from _rib(time, subtype, body, peers)


def _bgp4mp(time: int, subtype: int, body: bytes) -> Iterator[Message | StateChange]:
    width = _MESSAGES.get(subtype) or _STATE_CHANGES.get(subtype)
    if width is None:
        return
    asn = int.from_bytes(body[:width], "big")
    afi = int.from_bytes(body[2 * width + 2 : 2 * width + 4], "big")
    start = 2 * width + 4
    size = 4 if afi == 1 else 16
    peer = body[start : start + size]
    rest = body[start + 2 * size :]
    if subtype in _STATE_CHANGES:
        yield StateChange(time, peer, asn, *struct.unpack(">HH", rest))
    else:
        yield Message(time, peer, asn, width, rest)


def _peer_table(body: bytes) -> list[tuple[bytes, int]]:
    start = 6 + int.from_bytes(body[4:6], "big")
    count = int.from_bytes(body[start : start + 2], "big")
    position = start + 2
    peers = []
    for _ in range(count):
        kind = body[position]
        size, width = (16 if kind & 1 else 4), (4 if kind & 2 else 2)
        position += 5
        peers.append(
            (body[position : position + size], int.from_bytes(body[position + size : position + size + width], "big"))
        )
        position += size + width
    return peers


def _rib(time: int, subtype: int, body: bytes, peers: list[tuple[bytes, int]]) -> Iterator[RibRoute]:
    afi, with_path = _RIBS[subtype]
    end = 5 + (body[4] + 7) // 8
    prefix = body[4:end]
    count = int.from_bytes(body[end : end + 2], "big")
    position = end + 2
    for _ in range(count):
        index = int.from_bytes(body[position : position + 2], "big")
        position += 6  # and the time of the route's origin
        path_id = None
        if with_path:
            path_id = int.from_bytes(body[position : position + 4], "big")
            position += 4
        size = int.from_bytes(body[position : position + 2], "big")
        yield RibRoute(time, *peers[index], afi, prefix, path_id, body[position + 2 : position + 2 + size])
        position += 2 + size
