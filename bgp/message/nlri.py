"""Prefixes as they stand on the wire: one octet of length in bits, then as many octets as that needs.

Rule: a prefix is its own wire bytes, with the bits behind its length cleared. So equal prefixes are equal bytes,
they are the key of every table, and nothing is converted between the wire and the table. The family is not in
them: a table holds one family.

A path is what one route of a session is known by: its prefix alone, or with ADD-PATH (RFC 7911) the prefix and behind
it the 4 octets of its identifier. The length in front says where the prefix ends, so no path of either sort is ever
taken for another, and a path can stand wherever only a prefix's beginning is looked at. On the wire the identifier
comes first.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from bgp.message.codes import Family

IDENTIFIER = 4
"""Octets of a path's identifier."""
LONGEST = IDENTIFIER + 17
"""Octets of the longest path."""

_BITS = {Family.IPV4: 32, Family.IPV6: 128}

# Octets that a prefix takes, by its length octet; 0 where the length is too long for the family.
_SIZES = {
    family: tuple(1 + (length + 7) // 8 if length <= bits else 0 for length in range(256))
    for family, bits in _BITS.items()
}
# The bits of the last octet that lie behind the length, by the length octet.
_SPARE = tuple((1 << (-length % 8)) - 1 for length in range(256))


class BadPrefix(ValueError):
    """A prefix that is longer than its family allows or that the field cuts off; the field cannot be read on."""


def split(family: Family, field: bytes) -> list[bytes]:
    """The prefixes of an NLRI field. Raises BadPrefix."""
    sizes = _SIZES[family]
    position, end = 0, len(field)
    if end > 1 and sizes[field[0]] == end and not field[-1] & _SPARE[field[0]]:
        return [field]  # what a node says of its subnet
    prefixes = []
    while position < end:
        length = field[position]
        size = sizes[length]
        following = position + size
        if not size or following > end:
            raise BadPrefix(f"prefix length {length} at octet {position} of {end}")
        prefix = field[position:following]
        if size > 1 and prefix[-1] & _SPARE[length]:
            prefix = prefix[:-1] + bytes((prefix[-1] & ~_SPARE[length],))
        prefixes.append(prefix)
        position = following
    return prefixes


def split_identified(family: Family, field: bytes) -> list[bytes]:
    """The paths of an NLRI field in which each prefix has an identifier before it (RFC 7911). Raises BadPrefix."""
    sizes = _SIZES[family]
    paths = []
    position, end = 0, len(field)
    while position < end:
        start = position + IDENTIFIER
        length = field[start] if start < end else 0
        following = start + sizes[length]
        if following == start or following > end:
            raise BadPrefix(f"path with prefix length {length} at octet {position} of {end}")
        prefix = field[start:following]
        if length and prefix[-1] & _SPARE[length]:
            prefix = prefix[:-1] + bytes((prefix[-1] & ~_SPARE[length],))
        paths.append(prefix + field[position:start])
        position = following
    return paths


def sizes(family: Family) -> tuple[int, ...]:
    """Octets of a prefix by its length: for who looks at very many paths."""
    return _SIZES[family]


def prefix_of(family: Family, path: bytes) -> bytes:
    """The prefix of a path."""
    size = _SIZES[family][path[0]]
    return path if len(path) == size else path[:size]


def cut(family: Family, path: bytes) -> tuple[bytes, bytes]:
    """The prefix of a path, and its identifier: 4 octets, or none."""
    size = _SIZES[family][path[0]]
    return path[:size], path[size:]


def identified(family: Family, paths: Sequence[bytes]) -> bool:
    """Whether these have identifiers: of one list all have, or none has."""
    return bool(paths) and len(paths[0]) != _SIZES[family][paths[0][0]]


def parse(text: str) -> tuple[Family, bytes]:
    """ "10.0.0.0/8" or "2001:db8::/32" to (family, prefix). Raises ValueError; bits behind the length are cleared."""
    address, slash, bits = text.partition("/")
    family = Family.IPV6 if ":" in address else Family.IPV4
    try:
        packed = parse_address(address)
        length = int(bits) if slash and bits.isascii() and bits.isdigit() else -1
    except ValueError:
        raise ValueError(f"{text!r} is no prefix: write it like 10.0.0.0/8 or 2001:db8::/32") from None
    if not 0 <= length <= _BITS[family]:
        raise ValueError(f"{text!r}: the length must lie between 0 and {_BITS[family]}")
    return family, split(family, bytes((length,)) + packed[: (length + 7) // 8])[0]


def text(family: Family, path: bytes) -> str:
    """The path's prefix as people write it."""
    return f"{address_text(address(family, path))}/{path[0]}"


def identifier_number(identifier: bytes) -> int | None:
    """An identifier as people write it; None where there is none."""
    return int.from_bytes(identifier, "big") if identifier else None


def address(family: Family, path: bytes) -> bytes:
    """The network address of the path's prefix, 4 or 16 octets."""
    return prefix_of(family, path)[1:].ljust(_BITS[family] // 8, b"\0")


def is_host(packed: bytes) -> bool:
    """Whether 4 or 16 octets are the address of a host, and no loopback, group or nothing."""
    if len(packed) == 4:
        return packed[0] not in (0, 127) and packed[0] < 224
    return packed[0] != 0xFF and packed not in (bytes(16), bytes(15) + b"\1")


def is_link_local(packed: bytes) -> bool:
    """Whether 16 octets are an address of fe80::/10, which is nothing without a link."""
    return packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


def parse_address(text: str) -> bytes:
    """An address to its 4 or 16 octets. Raises ValueError."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no address") from None


def address_text(packed: bytes) -> str:
    """4 or 16 octets as an address; 32 (an IPv6 next hop with its link-local address) as the global one."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    return socket.inet_ntop(socket.AF_INET6, packed[:16])


def pack(family: Family, paths: Sequence[bytes], room: int) -> list[bytes]:
    """The paths joined into fields of at most `room` octets each (at least LONGEST)."""
    if identified(family, paths):
        paths = [path[-IDENTIFIER:] + path[:-IDENTIFIER] for path in paths]
    fields: list[bytes] = []
    held: list[bytes] = []
    size = 0
    for path in paths:
        if size + len(path) > room:
            fields.append(b"".join(held))
            held, size = [], 0
        held.append(path)
        size += len(path)
    if held:
        fields.append(b"".join(held))
    return fields
