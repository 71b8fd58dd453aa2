"""The node's settings: flags over environment (NETAGENT_*) over the TOML file over defaults.

Rules: one table, OPTIONS, is the source of the flags, the environment variables, the keys of the file, the commented
default file and the manual page; flags are called as flannel calls them where they mean the same. Every mistake is a
ConfigError that names where the value came from (file and line, variable or flag), the value and what to write. The
password of etcd is no setting: it comes from a file or from NETAGENT_ETCD_PASSWORD, and is never kept.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import tomllib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec

from netagent.errors import ConfigError
from netagent.model import Finding
from netagent.network_config import nearest

DEFAULT_FILE = Path("/etc/netagent/netagent.toml")
PREFIX = "NETAGENT_"
# Variables that others read: not settings, and no typing mistakes either.
_OTHER_VARIABLES = frozenset({"CONFIG", "DEBUG", "ETCD_PASSWORD", "LAB_DIR", "LIBNFTABLES"})
# A path element in etcd and a label in views.
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/=-]{0,127}\Z")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, checked. Durations are seconds. Fields are described in OPTIONS, by the same names."""

    etcd_endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    etcd_prefix: str = "/coreos.com/network"
    etcd_cafile: Path | None = None
    etcd_certfile: Path | None = None
    etcd_keyfile: Path | None = None
    etcd_username: str = ""
    etcd_password_file: Path | None = None
    node_name: str = ""
    labels: tuple[str, ...] = ()
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str | None = None
    public_ip: str | None = None
    public_ipv6: str | None = None
    subnet_file: Path = Path("/run/netagent/subnet.env")
    ip_masq: bool = False
    firewall_integrate: bool = False
    firewall_table: str = "netagent"
    route_protocol: int = 110
    lease_ttl: int = 86400
    alive_ttl: int = 15
    state_dir: Path = Path("/var/lib/netagent")
    run_dir: Path = Path("/run/netagent")
    socket_group: str = ""
    metrics_listen: str = ""
    log_level: str = "info"
    log_format: str = "text"


class Option(NamedTuple):
    """One setting. `read` turns text or a TOML value into the setting; its ValueError says what to write."""

    name: str
    group: str
    metavar: str
    help: str
    read: Callable[[Any], Any]
    example: str  # as it stands in the default file, TOML
    many: bool = False  # the flag may be repeated
    switch: bool = False  # the flag needs no value

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


# ------------------------------------------------------------------------------------------------- value types


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("write text, in quotes")
    return value


def _path(value: Any) -> Path:
    path = _optional_path(value)
    if path is None:
        raise ValueError("write a path")
    return path


def _optional_path(value: Any) -> Path | None:
    if "\0" in _text(value):
        raise ValueError("write a path, which has no zero bytes")
    return Path(value) if value else None


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word for part in value.split(",") if (word := part.strip()))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(word for item in value for word in _words(item))
    raise ValueError('write a list of text such as ["one", "two"]')


def _endpoints(value: Any) -> tuple[str, ...]:
    words = _words(value)
    if not words:
        raise ValueError("write at least one endpoint such as http://127.0.0.1:2379")
    return words


def _patterns(value: Any) -> tuple[str, ...]:
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


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("write true or false")


def _number(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return value

    return read


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        seconds = value
        if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,9})([smhd]?)", value)):
            seconds = int(match[1]) * _UNITS[match[2]]
        if not isinstance(seconds, int) or isinstance(seconds, bool) or not low <= seconds <= high:
            raise ValueError(f"write seconds from {low} to {high}, or a duration such as 30s or 24h")
        return seconds

    return read


def _choice(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return str(value)

    return read


def _address(family: socket.AddressFamily) -> Callable[[Any], str | None]:
    def read(value: Any) -> str | None:
        if not _text(value):
            return None
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, value))
        except (OSError, ValueError):
            example = "192.168.50.11" if family == socket.AF_INET else "fd00:50::11"
            raise ValueError(f"write an address such as {example}") from None

    return read


def _any_address(value: Any) -> str | None:
    if not _text(value):
        return None
    return _address(socket.AF_INET6 if ":" in value else socket.AF_INET)(value)


def _prefix(value: Any) -> str:
    cleaned = re.sub(r"/+", "/", _text(value)).rstrip("/")
    if not cleaned or not cleaned.isprintable():
        raise ValueError("write a path such as /coreos.com/network")
    return cleaned


def _name(value: Any) -> str:
    name = _text(value)
    if name and not NODE_NAME.match(name):
        raise ValueError("write a name of letters, digits, dots, dashes and underscores")
    return name


def _labels(value: Any) -> tuple[str, ...]:
    labels = _words(value)
    for label in labels:
        if not LABEL.match(label):
            raise ValueError(f"{label!r} is no label: write letters, digits and . _ / = - such as rack=r1")
    return tuple(sorted(set(labels)))


def _nft_name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", _text(value)):
        raise ValueError("write a table name of letters, digits, dashes and underscores")
    return str(value)


def _listen(value: Any) -> str:
    if not _text(value):
        return ""
    host, _, port = value.rpartition(":")
    numeric = port.isascii() and port.isdigit() and int(port) < 65536
    if not numeric or not host or (":" in host and host[0] != "["):
        raise ValueError("write ADDRESS:PORT, such as 127.0.0.1:9480 or [::1]:9480")
    return str(value)


# ------------------------------------------------------------------------------------------------------ options

OPTIONS: tuple[Option, ...] = (
    Option(
        "etcd_endpoints",
        "etcd",
        "URL,...",
        "client addresses of etcd's members, separated by commas; one that answers is used, the others are for when "
        "it fails",
        _endpoints,
        '["http://127.0.0.1:2379"]',
    ),
    Option(
        "etcd_prefix",
        "etcd",
        "PATH",
        "where the network lives in etcd; flannel's default, so that both can share one network",
        _prefix,
        '"/coreos.com/network"',
    ),
    Option(
        "etcd_cafile",
        "etcd",
        "FILE",
        "certificate authority that signed etcd's certificate (PEM); without it the system's authorities count",
        _optional_path,
        '""',
    ),
    Option("etcd_certfile", "etcd", "FILE", "client certificate to show to etcd (PEM)", _optional_path, '""'),
    Option("etcd_keyfile", "etcd", "FILE", "key of the client certificate (PEM)", _optional_path, '""'),
    Option("etcd_username", "etcd", "NAME", "user to log in to etcd as, where etcd demands one", _text, '""'),
    Option(
        "etcd_password_file",
        "etcd",
        "FILE",
        "file whose first line is the user's password, readable by root only; or set NETAGENT_ETCD_PASSWORD",
        _optional_path,
        '""',
    ),
    Option(
        "node_name",
        "node",
        "NAME",
        "name of this node in the cluster, different on every host; the hostname if not given",
        _name,
        '""',
    ),
    Option(
        "labels",
        "node",
        "LABEL,...",
        "labels of this node, separated by commas, by which the network's configuration can choose nodes "
        "(route reflectors, the routers of a rack)",
        _labels,
        "[]",
    ),
    Option(
        "iface",
        "interface",
        "NAME|ADDRESS",
        "interface that carries the traffic to the other nodes, by name or address; repeat it to try several in "
        "order. Without it: the interface of the default route",
        _words,
        "[]",
        many=True,
    ),
    Option(
        "iface_regex",
        "interface",
        "REGEX",
        "like --iface, by a regular expression on names and addresses; tried after --iface; may be repeated",
        _patterns,
        "[]",
        many=True,
    ),
    Option(
        "iface_can_reach",
        "interface",
        "ADDRESS",
        "take the interface that the kernel would use to reach this address",
        _any_address,
        '""',
    ),
    Option(
        "public_ip",
        "interface",
        "ADDRESS",
        "IPv4 address at which the other nodes reach this one, if it is not the interface's own (NAT)",
        _address(socket.AF_INET),
        '""',
    ),
    Option(
        "public_ipv6",
        "interface",
        "ADDRESS",
        "IPv6 address at which the other nodes reach this one, if it is not the interface's own",
        _address(socket.AF_INET6),
        '""',
    ),
    Option(
        "subnet_file",
        "host",
        "FILE",
        "where to write the subnet and the MTU for container engines to read (FLANNEL_* variables); "
        "RUN_DIR/subnet.env if not given",
        _path,
        '"/run/netagent/subnet.env"',
    ),
    Option(
        "ip_masq",
        "host",
        "BOOL",
        "masquerade traffic that leaves the network for elsewhere, with this host's address",
        _boolean,
        "false",
        switch=True,
    ),
    Option(
        "firewall_integrate",
        "host",
        "BOOL",
        "put tagged accepts where other firewall tools offer a place for them (DOCKER-USER, a firewalld zone); "
        "without it they are only reported when they drop the network's traffic",
        _boolean,
        "false",
        switch=True,
    ),
    Option(
        "firewall_table", "host", "NAME", "name of the nft table (family inet) that is ours", _nft_name, '"netagent"'
    ),
    Option(
        "route_protocol",
        "host",
        "NUMBER",
        "protocol number that marks our routes; must be no other program's (80 is Calico's, 12 BIRD's)",
        _number(5, 255),
        "110",
    ),
    Option(
        "lease_ttl",
        "lease",
        "DURATION",
        "how long this host's subnet stays reserved for it when it is gone",
        _duration(5, 31536000),
        '"24h"',
    ),
    Option(
        "alive_ttl",
        "lease",
        "DURATION",
        "after how long without a sign of life the other nodes show this one as down (it keeps its routes)",
        _duration(3, 3600),
        '"15s"',
    ),
    Option(
        "state_dir",
        "paths",
        "DIR",
        "what must survive a reboot: the node's id, its subnet, the last known peers",
        _path,
        '"/var/lib/netagent"',
    ),
    Option("run_dir", "paths", "DIR", "sockets and other files of the running agent", _path, '"/run/netagent"'),
    Option(
        "socket_group",
        "paths",
        "GROUP",
        "group that may read the agent's status through its socket; only root if not given",
        _text,
        '""',
    ),
    Option(
        "metrics_listen",
        "paths",
        "ADDRESS:PORT",
        "serve /metrics, /healthz and /readyz on this TCP address as well; off if not given",
        _listen,
        '""',
    ),
    Option(
        "log_level",
        "log",
        "LEVEL",
        "debug, info, warning or error",
        _choice("debug", "info", "warning", "error"),
        '"info"',
    ),
    Option("log_format", "log", "FORMAT", "text or json (a JSON object a line)", _choice("text", "json"), '"text"'),
)
_BY_NAME = {option.name: option for option in OPTIONS}

GROUPS = {
    "etcd": "etcd",
    "node": "this node",
    "interface": "interface and address",
    "host": "this host",
    "lease": "lease",
    "paths": "files and sockets",
    "log": "log",
}


# ------------------------------------------------------------------------------------------------------ loading


class _NoPassword(argparse.Action):
    """A password on the command line is readable by every user of the machine (ps): refused, and not repeated."""

    def __call__(self, *_: Any) -> NoReturn:
        raise ConfigError(
            "a password must not be given on the command line, where every user of the host can read it",
            where="--etcd-password",
            remedy="Write it to a file that only root may read and give --etcd-password-file FILE, or set "
            "NETAGENT_ETCD_PASSWORD",
        )


def add_arguments(parser: argparse.ArgumentParser, groups: Collection[str] = tuple(GROUPS)) -> None:
    """The flags of these groups of settings, and --config. Values stay text until `load` reads them."""
    parser.add_argument(
        "--config", metavar="FILE", help=f"settings file, TOML ($NETAGENT_CONFIG; {DEFAULT_FILE} if it exists)"
    )
    for group, title in GROUPS.items():
        if group not in groups:
            continue
        section = parser.add_argument_group(title)
        for option in OPTIONS:
            if option.group == group:
                _add(section, option)
        if group == "etcd":
            section.add_argument("--etcd-password", action=_NoPassword, help=argparse.SUPPRESS)


def _add(section: argparse._ArgumentGroup, option: Option) -> None:
    more: dict[str, Any] = {}
    if option.many:
        more["action"] = "append"
    if option.switch:
        more |= {"nargs": "?", "const": "true"}
    section.add_argument(
        option.flag, dest=option.name, metavar=option.metavar, default=None, help=_help(option), **more
    )


def _help(option: Option) -> str:
    default = getattr(Settings(), option.name)
    known = "" if default in ("", None, (), False) else f"; {option.example.strip('[]').strip(chr(34))}"
    return f"{option.help} (${option.variable}{known})".replace("%", "%%")


def load(
    args: argparse.Namespace | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    hostname: Callable[[], str] = socket.gethostname,
) -> Settings:
    """The settings. ConfigError names the source of a bad value."""
    flags = vars(args) if args is not None else {}
    values: dict[str, Any] = {}
    for name, value, where in _sources(flags, environ):
        try:
            values[name] = _BY_NAME[name].read(value)
        except ValueError as error:
            raise ConfigError(f"{value!r} is not a value of {name}", where=where, remedy=_sentence(error)) from None
    if "run_dir" in values and "subnet_file" not in values:
        values["subnet_file"] = values["run_dir"] / "subnet.env"
    if not values.get("node_name"):
        values["node_name"] = _hostname(hostname())
    settings = Settings(**values)
    if bool(settings.etcd_certfile) != bool(settings.etcd_keyfile):
        raise ConfigError(
            "a client certificate needs both etcd_certfile and etcd_keyfile",
            where=f"etcd_certfile={settings.etcd_certfile or ''} etcd_keyfile={settings.etcd_keyfile or ''}",
            remedy="Give both, or neither",
        )
    return settings


def _sources(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    """(name, raw value, where it is from), the weakest source first."""
    given = flags.get("config") or environ.get(f"{PREFIX}CONFIG")
    yield from _file(Path(given) if given else DEFAULT_FILE, required=bool(given))
    for option in OPTIONS:
        if option.variable in environ:
            yield option.name, environ[option.variable], f"${option.variable}"
    for option in OPTIONS:
        value = flags.get(option.name)
        if value is not None:
            yield option.name, value, option.flag


def _file(path: Path, *, required: bool) -> Iterator[tuple[str, Any, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise ConfigError(
                "the settings file does not exist", where=str(path), remedy="Correct --config or $NETAGENT_CONFIG"
            ) from None
        return
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error.reason}", where=str(path), remedy="Save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(
            f"the settings file cannot be read: {error.strerror}", where=str(path), remedy="Correct its permissions"
        ) from None
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib's own, or that of a number of 5,000 digits
        raise ConfigError(f"not valid TOML: {error}", where=str(path), remedy="Write lines of key = value") from None
    for key, value in document.items():
        where = f"{path}:{_line(text, key)} {key}"
        if key == "etcd_password":
            raise ConfigError(
                "a password must not stand in the settings file",
                where=where,
                remedy="Write it to a file of its own that only root may read, and give etcd_password_file",
            )
        if key not in _BY_NAME:
            near = nearest(key, _BY_NAME)
            raise ConfigError(
                "unknown key",
                where=where,
                remedy=f"Did you mean {near}?" if near else f"Known keys are {', '.join(_BY_NAME)}",
            )
        yield key, value, where


def _line(text: str, key: str) -> int:
    """The line that sets the key (1 where it cannot be told)."""
    pattern = re.compile(rf"""\s*(?:\[\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _hostname(name: str) -> str:
    if not NODE_NAME.match(name):
        raise ConfigError(
            f"the hostname {name!r} cannot be this node's name",
            where="node_name",
            remedy="Give --node-name NAME with letters, digits, dots, dashes and underscores",
        )
    return name


def _sentence(error: ValueError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]


def unknown_variables(environ: Mapping[str, str] = os.environ) -> tuple[Finding, ...]:
    """Findings about NETAGENT_* variables that no setting reads: probably typing mistakes."""
    known = {option.variable for option in OPTIONS} | {PREFIX + name for name in _OTHER_VARIABLES}
    found: list[Finding] = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            near = nearest(name, known)
            found.append(
                Finding(
                    code="unknown-variable",
                    subject=name,
                    message=f"the environment variable {name} sets nothing",
                    remedy=f"did you mean {near}?" if near else "unset it",
                )
            )
    return tuple(found)


def changed(old: Settings, new: Settings) -> tuple[str, ...]:
    """Names of the settings that differ."""
    return tuple(name for name in Settings.__struct_fields__ if getattr(old, name) != getattr(new, name))


# --------------------------------------------------------------------------------------------- the default file


def default_file() -> str:
    """packaging/netagent.toml: every setting with its default, commented out."""
    lines = [
        "# netagent's settings on this host. Every line is the default; remove the # to change it.",
        "# The same settings can be given in the environment (NETAGENT_ETCD_PREFIX=...) and as flags",
        "# (--etcd-prefix ...), which win over this file. See netagent.toml(5).",
    ]
    for group, title in GROUPS.items():
        lines += ["", f"# ---- {title} " + "-" * (90 - len(title))]
        for option in OPTIONS:
            if option.group == group:
                lines += ["", *_comment(option.help), f"#{option.name} = {option.example}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> Sequence[str]:
    import textwrap

    sentence = text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
    return [f"# {line}" for line in textwrap.wrap(sentence, 100)]
