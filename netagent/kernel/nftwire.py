"""Codec of the nf_tables netlink messages that netagent needs: set elements, dumps, events. Pure.

Rules: nothing here opens a socket; what the kernel sends is read leniently (unknown attributes are skipped, a
message cut short is skipped); rules themselves are never encoded here, libnftables does that. Source:
linux/netfilter/nf_tables.h and nfnetlink.h. Numbers in attributes are big-endian, headers in host order.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES

NLMSG_ERROR, NLMSG_DONE = 2, 3
BATCH_BEGIN, BATCH_END = 16, 17
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLM_F_CREATE = 0x400
NLM_F_DUMP_INTR = 0x10

(
    NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE, NEWSET, GETSET, DELSET,
    NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN,
) = range(17)  # fmt: skip

FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}

# In every nf_tables message attribute 1 names the table (of a table: itself), but NFTA_GEN_ID of a generation.
TABLE, TABLE_FLAGS = 1, 2
CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 3, 4, 5, 7
RULE_CHAIN, RULE_EXPRESSIONS, RULE_USERDATA = 2, 4, 7
SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN = 2, 3, 4, 5
ELEM_LIST_SET, ELEM_LIST_ELEMENTS = 2, 3
EXPR_NAME, EXPR_DATA = 1, 2
SET_ANONYMOUS = 1

# Types of keys as nft numbers them (the kernel only stores the number): ipv4_addr, ipv6_addr.
_ADDRESS_TYPES = (7, 8)

# Expressions whose content changes with the traffic.
_MOVING = frozenset((b"counter", b"quota", b"limit", b"connlimit", b"last"))

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_NESTED = 0x8000
_ELEMENT4 = struct.Struct("=HHHHHH4s")
_ELEMENT6 = struct.Struct("=HHHHHH16s")

# An attribute's length is 16 bits: so many elements at most go into one message.
_ELEMENTS_A_MESSAGE = 1500


class Message(NamedTuple):
    """One netlink message. `payload` starts behind nlmsghdr."""

    type: int
    flags: int
    seq: int
    port: int
    payload: memoryview


class Event(NamedTuple):
    """What a notification says. `generation` is the low 16 bits of the transaction's number."""

    type: int  # NEWTABLE ... NEWGEN
    family: str
    table: str
    name: str  # chain or set where the message has one
    generation: int
    port: int  # netlink port of the socket that asked


class Chain(NamedTuple):
    name: str
    base: bool


class Set(NamedTuple):
    name: str
    addresses: bool  # its keys are addresses of one family
    anonymous: bool


# --------------------------------------------------------------------------------------------- encode


def attr(number: int, value: bytes) -> bytes:
    return _ATTR.pack(4 + len(value), number) + value + bytes(-len(value) % 4)


def nested(number: int, value: bytes) -> bytes:
    return _ATTR.pack(4 + len(value), number | _NESTED) + value


def text(number: int, value: str) -> bytes:
    return attr(number, value.encode() + b"\0")


def message(kind: int, flags: int, seq: int, family: int, payload: bytes = b"", resource: int = 0) -> bytes:
    """A whole message; `kind` with its subsystem. `resource` is nfgenmsg's res_id."""
    header = _HEADER.pack(20 + len(payload), kind, flags | NLM_F_REQUEST, seq, 0)
    return header + struct.pack(">BBH", family, 0, resource) + payload


def request(kind: int, seq: int, family: str = "inet", payload: bytes = b"", *, dump: bool = False) -> bytes:
    """A GET request outside any batch."""
    return message(SUBSYSTEM << 8 | kind, NLM_F_DUMP if dump else 0, seq, FAMILIES.get(family, 0), payload)


def pack(address: str) -> bytes:
    """The key of an address in a set: 4 or 16 bytes. ValueError if it is none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except OSError:
        raise ValueError(f"{address!r} is not an address") from None


def elements_batch(
    kind: int, seq: int, family: str, table: str, sets: Iterable[tuple[str, Sequence[bytes]]]
) -> tuple[bytes, int]:
    """One transaction that adds (NEWSETELEM) or deletes (DELSETELEM) keys; and the sequence number of its end."""
    number = FAMILIES[family]
    out = [message(BATCH_BEGIN, 0, seq, 0, resource=SUBSYSTEM)]
    for name, keys in sets:
        head = text(TABLE, table) + text(ELEM_LIST_SET, name)
        for start in range(0, len(keys), _ELEMENTS_A_MESSAGE):
            seq += 1
            elements = b"".join([_element(key) for key in keys[start : start + _ELEMENTS_A_MESSAGE]])
            body = head + nested(ELEM_LIST_ELEMENTS, elements)
            out.append(message(SUBSYSTEM << 8 | kind, NLM_F_CREATE | NLM_F_ACK, seq, number, body))
    out.append(message(BATCH_END, 0, seq + 1, 0, resource=SUBSYSTEM))
    return b"".join(out), seq + 1


def _element(key: bytes) -> bytes:
    """NFTA_LIST_ELEM { NFTA_SET_ELEM_KEY { NFTA_DATA_VALUE } }, all numbered 1."""
    size = len(key)
    layout = _ELEMENT4 if size == 4 else _ELEMENT6
    return layout.pack(12 + size, 1 | _NESTED, 8 + size, 1 | _NESTED, 4 + size, 1, key)


# --------------------------------------------------------------------------------------------- decode


def messages(data: bytes) -> Iterator[Message]:
    """The messages in what one recv returned."""
    view = memoryview(data)
    at, end = 0, len(data)
    while at + 16 <= end:
        length, kind, flags, seq, port = _HEADER.unpack_from(data, at)
        if length < 16 or at + length > end:
            return
        yield Message(kind, flags, seq, port, view[at + 16 : at + length])
        at += (length + 3) & ~3


def attrs(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    at, end = 0, len(data)
    while at + 4 <= end:
        length, number = _ATTR.unpack_from(data, at)
        if length < 4 or at + length > end:
            return
        yield number & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def error(found: Message) -> int:
    """The errno (positive) of an NLMSG_ERROR; 0 is an acknowledgement."""
    return -int(struct.unpack_from("=i", found.payload)[0]) if len(found.payload) >= 4 else 0


def event(found: Message) -> Event | None:
    """A notification of nf_tables, or None if it is something else."""
    if found.type >> 8 != SUBSYSTEM or len(found.payload) < 4:
        return None
    kind = found.type & 0xFF
    family, _, generation = struct.unpack_from(">BBH", found.payload)
    table = name = ""
    if kind not in (NEWGEN, GETGEN):
        wanted = CHAIN_NAME if kind in (NEWCHAIN, DELCHAIN) else 2
        for number, value in attrs(found.payload[4:]):
            if number == TABLE:
                table = _text(value)
            elif number == wanted and kind not in (NEWTABLE, DELTABLE):
                name = _text(value)
    return Event(kind, FAMILY_NAMES.get(family, ""), table, name, generation, found.port)


def generation(found: Message) -> int:
    """NFTA_GEN_ID of a NEWGEN message: the number of the last transaction."""
    for number, value in attrs(found.payload[4:]):
        if number == 1 and len(value) == 4:
            return int.from_bytes(value, "big")
    return 0


def table(found: Message) -> tuple[str, str, int]:
    """Family, name and flags (1: dormant) of a table in a dump."""
    values = dict(attrs(found.payload[4:]))
    name = _text(values.get(TABLE, memoryview(b"")))
    family = FAMILY_NAMES.get(found.payload[0], "") if found.payload else ""
    return family, name, int.from_bytes(values.get(TABLE_FLAGS, b""), "big")


def chain(found: Message) -> Chain:
    values = dict(attrs(found.payload[4:]))
    return Chain(_text(values.get(CHAIN_NAME, memoryview(b""))), CHAIN_HOOK in values)


def set_(found: Message) -> Set:
    values = dict(attrs(found.payload[4:]))
    kind, flags = (int.from_bytes(values.get(n, b""), "big") for n in (SET_KEY_TYPE, SET_FLAGS))
    name = _text(values.get(SET_NAME, memoryview(b"")))
    return Set(name, kind in _ADDRESS_TYPES, bool(flags & SET_ANONYMOUS))


def keys(found: Message) -> Iterator[bytes]:
    """Keys of the elements in one message of a GETSETELEM dump."""
    for number, value in attrs(found.payload[4:]):
        if number != ELEM_LIST_ELEMENTS:
            continue
        for _, element in attrs(value):
            for part, key in attrs(element):
                if part == 1:  # NFTA_SET_ELEM_KEY
                    yield bytes(key[4:])  # behind the header of NFTA_DATA_VALUE
                    break


def unpack(key: bytes) -> str:
    """The address that a key of 4 or 16 bytes stands for. ValueError for a key of another length."""
    return socket.inet_ntop(socket.AF_INET if len(key) == 4 else socket.AF_INET6, key)


def fingerprint(flags: int, chains: Iterable[Message], rules: Iterable[Message], sets: Iterable[Message]) -> str:
    """Digest of a table: its flags, chains, their rules in order, and its sets without their elements.

    Handles, use counts and traffic counters are left out; two tables made from one text have one fingerprint.
    """
    digest = hashlib.sha256(b"%d\n" % flags)
    for group, wanted in (
        (chains, (CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE)),
        (sets, (SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN)),
    ):
        lines = []
        for found in group:
            values = dict(attrs(found.payload[4:]))
            lines.append(b"|".join(bytes(values.get(number, b"-")) for number in wanted))
        digest.update(b"\n".join(sorted(lines)) + b"\n\n")
    by_chain: dict[bytes, list[bytes]] = {}
    for found in rules:
        values = dict(attrs(found.payload[4:]))
        line = _still(values.get(RULE_EXPRESSIONS, memoryview(b""))) + bytes(values.get(RULE_USERDATA, b""))
        by_chain.setdefault(bytes(values.get(RULE_CHAIN, b"")), []).append(line)
    for name in sorted(by_chain):
        digest.update(name + b"".join(b"\n%d " % len(line) + line for line in by_chain[name]))
    return digest.hexdigest()


def _still(expressions: memoryview) -> bytes:
    """A rule's expressions without what traffic changes."""
    out = []
    for _, expression in attrs(expressions):
        name = data = b""
        for number, value in attrs(expression):
            if number == EXPR_NAME:
                name = bytes(value).rstrip(b"\0")
            elif number == EXPR_DATA:
                data = bytes(value)
        out.append(name + b":" + (b"" if name in _MOVING else data))
    return b";".join(out)


def _text(value: memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode("utf-8", "replace")
