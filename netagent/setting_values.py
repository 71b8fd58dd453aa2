"""How the value of one setting is read, whichever of file, environment and flag it comes from.

Rule: each takes what tomllib or the environment gives and returns what Settings holds; what it cannot take is a
ValueError that says what to write instead. Who asked adds where.
"""

from __future__ import annotations

import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/=-]{0,127}\Z")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("write text, in quotes")
    return value


def path(value: Any) -> Path:
    found = optional_path(value)
    if found is None:
        raise ValueError("write a path")
    return found


def optional_path(value: Any) -> Path | None:
    if "\0" in text(value):
        raise ValueError("write a path, which has no zero bytes")
    return Path(value) if value else None


def words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word for part in value.split(",") if (word := part.strip()))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(word for item in value for word in words(item))
    raise ValueError('write a list of text such as ["one", "two"]')


def endpoints(value: Any) -> tuple[str, ...]:
    found = words(value)
    if not found:
        raise ValueError("write at least one endpoint such as http://127.0.0.1:2379")
    return found


def patterns(value: Any) -> tuple[str, ...]:
    """Regular expressions: a comma may be part of one, so text is one expression."""
    patterns = (value,) if isinstance(value, str) else value
    if not isinstance(patterns, list | tuple) or not all(isinstance(item, str) for item in patterns):
        raise ValueError('write a list of regular expressions such as ["eth.*"]')
    for pattern in patterns:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # a set that may mean something else some day
                re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return tuple(item for item in patterns if item)


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("write true or false")


def number(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return value

    return read


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        seconds = value
        if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,9})([smhd]?)", value)):
            seconds = int(match[1]) * _UNITS[match[2]]
        if not isinstance(seconds, int) or isinstance(seconds, bool) or not low <= seconds <= high:
            raise ValueError(f"write seconds from {low} to {high}, or a duration such as 30s or 24h")
        return seconds

    return read


def choice(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return str(value)

    return read


def address(family: socket.AddressFamily) -> Callable[[Any], str | None]:
    def read(value: Any) -> str | None:
        if not text(value):
            return None
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, value))
        except (OSError, ValueError):
            example = "192.168.50.11" if family == socket.AF_INET else "fd00:50::11"
            raise ValueError(f"write an address such as {example}") from None

    return read


def any_address(value: Any) -> str | None:
    if not text(value):
        return None
    return address(socket.AF_INET6 if ":" in value else socket.AF_INET)(value)


def prefix(value: Any) -> str:
    cleaned = re.sub(r"/+", "/", text(value)).rstrip("/")
    if not cleaned or not cleaned.isprintable():
        raise ValueError("write a path such as /coreos.com/network")
    return cleaned


def name(value: Any) -> str:
    name = text(value)
    if name and not NODE_NAME.match(name):
        raise ValueError("write a name of letters, digits, dots, dashes and underscores")
    return name


def labels(value: Any) -> tuple[str, ...]:
    labels = words(value)
    for label in labels:
        if not LABEL.match(label):
            raise ValueError(f"{label!r} is no label: write letters, digits and . _ / = - such as rack=r1")
    return tuple(sorted(set(labels)))


def nft_name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", text(value)):
        raise ValueError("write a table name of letters, digits, dashes and underscores")
    return str(value)


def listen(value: Any) -> str:
    if not text(value):
        return ""
    host, _, port = value.rpartition(":")
    numeric = port.isascii() and port.isdigit() and int(port) < 65536
    if not numeric or not host or (":" in host and host[0] != "["):
        raise ValueError("write ADDRESS:PORT, such as 127.0.0.1:9480 or [::1]:9480")
    return str(value)
