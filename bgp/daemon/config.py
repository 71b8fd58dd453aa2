"""The daemon's configuration: a TOML file to the values of the library. docs/bgp/configuration.md is its reference.

Rule: strict. A key that does not exist, a value out of its range, a policy that is not there: ConfigError with the
file, the key, the value and the remedy. A policy that reads as before is the very same object after a reload, so
that the sessions with it are not touched.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bfd.session import LEAST_INTERVAL, LONGEST_INTERVAL, Timing
from bgp.bfd import DEFAULT_TIMING, Bfd
from bgp.daemon.errors import ConfigError
from bgp.daemon.policies import community, large_community, policies_from
from bgp.daemon.tables import Table
from bgp.export import Several
from bgp.message import Attributes, Family, LocalError, nlri
from bgp.peer import LONG_LIVED_MOST, PeerConfig, SpeakerConfig
from bgp.policy import Policy
from bgp.ranges import PeerRange
from bgp.transport import NO_TCP_AO, Transport

AS_MOST = (1 << 32) - 1
DEFAULT_CONTROL = "/run/bgp.sock"
LEAST, LONGEST = LEAST_INTERVAL // 1000, LONGEST_INTERVAL // 1000
"""Milliseconds between BFD's packets."""
_NO_ZONE = "a link-local address needs its interface, which cannot be said here; use a global one"
_FAMILIES = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}


@dataclass(frozen=True, slots=True)
class Announcement:
    """A prefix of ours."""

    family: Family
    prefix: bytes
    attributes: Attributes
    guard: bool
    """Whether routes to parts of it are refused."""


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    speaker: SpeakerConfig
    listen: tuple[tuple[bytes, int], ...]
    control: str
    state: str
    """Where the names of the peers that stand are kept over a restart; empty: nowhere."""
    announcements: tuple[Announcement, ...]
    peers: tuple[PeerConfig, ...]
    ranges: tuple[PeerRange, ...]
    policies: Mapping[str, Policy]


def parse(text: str, file: str, secret: Callable[[str], str], previous: Config | None = None) -> Config:
    """`secret` reads a password file (raises OSError). Raises ConfigError."""
    try:
        top = Table(file, "", tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # tomllib's own, or that of a number of 5,000 digits
        raise ConfigError(f"{file}: this is no TOML: {error}") from None
    speaker = top.table("speaker")
    policies = policies_from(top.table("policies"), previous.policies if previous else {})
    port = speaker.number("port", 1, 65535, 179)
    addresses = speaker.parsed_list("listen", _own_address) if speaker.has("listen") else (bytes(4), bytes(16))
    speaker.parsed_list("listen", str)
    control = speaker.take("control", str, DEFAULT_CONTROL)
    state = speaker.take("state", str, "")
    config = _speaker(speaker)
    speaker.end()
    announcements = tuple(each for table in top.tables("announce") for each in _announcements(table))
    read = _PeerReader(config, policies, secret)
    peers = tuple(read.peer(table) for table in top.tables("peers"))
    ranges = tuple(read.range(table) for table in top.tables("ranges"))
    top.end()
    _all_different(file, "peers", "name", [peer.name for peer in peers])
    _all_different(file, "peers", "address", [nlri.address_text(peer.address) for peer in peers])
    _all_different(file, "ranges", "name", [each.name for each in ranges])
    return Config(
        config, tuple((each, port) for each in addresses), control, state, announcements, peers, ranges, policies
    )


def _speaker(table: Table) -> SpeakerConfig:
    addresses = table.parsed_list("addresses", nlri.parse_address)
    names = table.parsed_list("families", _family) if table.has("families") else tuple(Family)
    table.parsed_list("families", str)
    if not names:
        raise table.error("families", "name at least one: ipv4, ipv6", [])
    return SpeakerConfig(
        asn=table.number("asn", 1, AS_MOST),
        identifier=table.parsed("router-id", _identifier),
        families=tuple(dict.fromkeys(names)),
        addresses=tuple((Family.IPV4 if len(each) == 4 else Family.IPV6, each) for each in addresses),
        cluster_id=table.parsed("cluster-id", _identifier, b""),
        paths=table.number("paths", 1, 256, 1),
        restart_time=table.number("restart-time", 0, 4095, 120),
        stale_time=table.number("stale-time", 1, 86400, 360),
        long_lived_time=table.number("long-lived-time", 0, 0xFFFFFF, 0),
        long_lived_most=table.number("long-lived-most", 0, 0xFFFFFF, LONG_LIVED_MOST),
        long_lived_partial=table.take("long-lived-partial", bool, False),
    )


def _announcements(table: Table) -> list[Announcement]:
    prefixes = table.parsed_list("prefixes", nlri.parse) or (table.parsed("prefix", nlri.parse),)
    attributes = Attributes(
        next_hop=table.parsed("next-hop", nlri.parse_address, b""),
        med=table.optional_number("med", 0, AS_MOST),
        local_pref=table.optional_number("local-pref", 0, AS_MOST),
        communities=table.parsed_list("communities", community),
        large_communities=table.parsed_list("large-communities", large_community),
    )
    guard = table.take("guard", bool, False)
    table.end()
    return [Announcement(family, prefix, attributes, guard) for family, prefix in prefixes]


class _PeerReader:
    """[[peers]] and [[ranges]], which have most of their keys in common."""

    def __init__(self, speaker: SpeakerConfig, policies: Mapping[str, Policy], secret: Callable[[str], str]) -> None:
        self._speaker = speaker
        self._policies = policies
        self._secret = secret

    def peer(self, table: Table) -> PeerConfig:
        address = table.parsed("address", nlri.parse_address)
        name = table.take("name", str, nlri.address_text(address))
        config = self._common(table, name, address, table.number("port", 1, 65535, 179))
        config = replace(config, passive=table.take("passive", bool, False))
        if _is_link_local(address) and not config.passive:
            shown = nlri.address_text(address)
            raise table.error("address", f"{_NO_ZONE}, or passive = true, so that it connects", shown)
        table.end()
        return config

    def range(self, table: Table) -> PeerRange:
        family, prefix = table.parsed("prefix", nlri.parse)
        name = table.take("name", str, nlri.text(family, prefix))
        limit = table.number("limit", 1, 100_000, 100)
        template = self._common(table, name, nlri.address(family, prefix), 179)
        table.end()
        return PeerRange(name, family, prefix, template, limit)

    def _common(self, table: Table, name: str, address: bytes, port: int) -> PeerConfig:
        hold_time = table.number("hold-time", 0, 65535, 90)
        if hold_time in (1, 2):
            raise table.error("hold-time", "must be 0 (no keepalives) or at least 3 seconds", hold_time)
        shutdown = table.take("shutdown", str) if table.has("shutdown") else None
        table.take("shutdown", str, "")
        return PeerConfig(
            name=name,
            address=address,
            asn=table.optional_number("asn", 1, AS_MOST),
            client=table.take("client", bool, False),
            hold_time=hold_time,
            connect_retry=table.number("connect-retry", 1, 3600, 30),
            send_hold=self._send_hold(table, hold_time),
            local_asn=table.optional_number("local-asn", 1, AS_MOST),
            next_hop_self=table.optional_flag("next-hop-self"),
            import_policy=self._policy(table, "import"),
            export_policy=self._policy(table, "export"),
            allowed_own_as=table.number("allow-own-as", 0, 255, 0),
            enforce_first_as=table.take("enforce-first-as", bool, True),
            accept_default=table.take("accept-default", bool, False),
            most_prefixes=table.optional_number("max-prefixes", 1, AS_MOST),
            warn_at=table.number("warn-at", 1, 100, 80) / 100,
            shutdown=shutdown,
            several_in=table.take("add-path-receive", bool, False),
            several_out=_several(table),
            extended_next_hop=table.take("extended-next-hop", bool, False),
            extended_messages=table.take("extended-messages", bool, True),
            transport=self._transport(table, port),
            bfd=_bfd(table),
        )

    @staticmethod
    def _send_hold(table: Table, hold_time: int) -> int | None:
        value = table.optional_number("send-hold-time", 0, 65535)
        if value and value <= hold_time:
            raise table.error(
                "send-hold-time", f"must be 0 (for ever) or more than the hold time, {hold_time}", value
            )
        return value

    def _policy(self, table: Table, key: str) -> Policy | None:
        name = table.take(key, str, "")
        if not name:
            return None
        if name not in self._policies:
            known = ", ".join(self._policies) or "none"
            raise table.error(key, f"there is no such policy; write [policies.{name}] (there are: {known})", name)
        return self._policies[name]

    def _transport(self, table: Table, port: int) -> Transport:
        for key in ("tcp-ao", "tcp-ao-key", "tcp-ao-keys", "tcp-ao-file"):
            if table.has(key):
                instead = "use password or password-file (TCP MD5), with ttl-security (GTSM) where the peer is near"
                raise table.error(key, f"{NO_TCP_AO}; {instead}")
        password = table.take("password", str, "")
        file = table.take("password-file", str, "")
        if password and file:
            raise table.error("password-file", "give a password or a file, not both", file)
        if file:
            try:
                password = self._secret(file).strip("\r\n")
            except OSError as error:
                raise table.error("password-file", f"cannot be read: {error.strerror}", file) from None
            except UnicodeDecodeError:
                raise table.error("password-file", "is no text", file) from None
            if not password:
                raise table.error("password-file", "is empty", file)
        try:
            return Transport(
                port,
                table.parsed("local-address", _own_address, b""),
                password.encode(),
                table.number("ttl-security", 0, 254, 0),
                table.number("multihop", 0, 255, 0),
            )
        except LocalError as error:
            raise ConfigError(f"{table.file}: {table.path}: {error}") from None


def _bfd(table: Table) -> Bfd | None:
    """`bfd = true`, or a table with what is not as usual."""
    if not table.has("bfd") or table.is_flag("bfd"):
        return Bfd() if table.take("bfd", bool, False) else None
    inside = table.table("bfd")
    timing = Timing(
        min_tx=1000 * inside.number("min-tx", LEAST, LONGEST, DEFAULT_TIMING.min_tx // 1000),
        min_rx=1000 * inside.number("min-rx", LEAST, LONGEST, DEFAULT_TIMING.min_rx // 1000),
        multiplier=inside.number("multiplier", 1, 255, DEFAULT_TIMING.multiplier),
    )
    multihop = inside.optional_flag("multihop")
    inside.end()
    return Bfd(timing, multihop)


def _several(table: Table) -> Several | None:
    value = table.number_or_word("add-path-send", 1, 255, ("all", "next-hops"))
    if value is None:
        return None
    return Several(value) if isinstance(value, int) else Several(by_next_hop=value == "next-hops")


def _family(text: str) -> Family:
    if text not in _FAMILIES:
        raise ValueError("must be ipv4 or ipv6")
    return _FAMILIES[text]


def _is_link_local(address: bytes) -> bool:
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _own_address(text: str) -> bytes:
    address = nlri.parse_address(text)
    if _is_link_local(address):
        raise ValueError(_NO_ZONE)
    return address


def _identifier(text: str) -> bytes:
    packed = nlri.parse_address(text) if text.count(".") == 3 else b""
    if len(packed) != 4 or not any(packed):
        raise ValueError("must be four numbers like an IPv4 address, not all zero")
    return packed


def _all_different(file: str, tables: str, key: str, values: list[str]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ConfigError(
                f"{file}: {tables}[{position + 1}].{key} = {value!r}: stands there twice; take one away"
            )
