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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec

from netagent import setting_values as values
from netagent.errors import ConfigError
from netagent.model import Finding
from netagent.network_config import nearest

DEFAULT_FILE = Path("/etc/netagent/netagent.toml")
PREFIX = "NETAGENT_"
# Variables that others read: not settings, and no typing mistakes either.
_OTHER_VARIABLES = frozenset({"CONFIG", "DEBUG", "ETCD_PASSWORD", "LAB_DIR", "LIBNFTABLES"})
# A path element in etcd and a label in views.


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
    choices: tuple[str, ...] = ()  # all values there are, where there are few

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


# ------------------------------------------------------------------------------------------------------ options

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

OPTIONS: tuple[Option, ...] = (
    Option(
        "etcd_endpoints",
        "etcd",
        "URL,...",
        "client addresses of etcd's members, separated by commas; one that answers is used, the others are for when "
        "it fails",
        values.endpoints,
        '["http://127.0.0.1:2379"]',
    ),
    Option(
        "etcd_prefix",
        "etcd",
        "PATH",
        "where the network lives in etcd; flannel's default, so that both can share one network",
        values.prefix,
        '"/coreos.com/network"',
    ),
    Option(
        "etcd_cafile",
        "etcd",
        "FILE",
        "certificate authority that signed etcd's certificate (PEM); without it the system's authorities count",
        values.optional_path,
        '""',
    ),
    Option("etcd_certfile", "etcd", "FILE", "client certificate to show to etcd (PEM)", values.optional_path, '""'),
    Option("etcd_keyfile", "etcd", "FILE", "key of the client certificate (PEM)", values.optional_path, '""'),
    Option("etcd_username", "etcd", "NAME", "user to log in to etcd as, where etcd demands one", values.text, '""'),
    Option(
        "etcd_password_file",
        "etcd",
        "FILE",
        "file whose first line is the user's password, readable by root only; or set NETAGENT_ETCD_PASSWORD",
        values.optional_path,
        '""',
    ),
    Option(
        "node_name",
        "node",
        "NAME",
        "name of this node in the cluster, different on every host; the hostname if not given",
        values.name,
        '""',
    ),
    Option(
        "labels",
        "node",
        "LABEL,...",
        "labels of this node, separated by commas, by which the network's configuration can choose nodes "
        "(route reflectors, the routers of a rack)",
        values.labels,
        "[]",
    ),
    Option(
        "iface",
        "interface",
        "NAME|ADDRESS",
        "interface that carries the traffic to the other nodes, by name or address; repeat it to try several in "
        "order. Without it: the interface of the default route",
        values.words,
        "[]",
        many=True,
    ),
    Option(
        "iface_regex",
        "interface",
        "REGEX",
        "like --iface, by a regular expression on names and addresses; tried after --iface; may be repeated",
        values.patterns,
        "[]",
        many=True,
    ),
    Option(
        "iface_can_reach",
        "interface",
        "ADDRESS",
        "take the interface that the kernel would use to reach this address",
        values.any_address,
        '""',
    ),
    Option(
        "public_ip",
        "interface",
        "ADDRESS",
        "IPv4 address at which the other nodes reach this one, if it is not the interface's own (NAT)",
        values.address(socket.AF_INET),
        '""',
    ),
    Option(
        "public_ipv6",
        "interface",
        "ADDRESS",
        "IPv6 address at which the other nodes reach this one, if it is not the interface's own",
        values.address(socket.AF_INET6),
        '""',
    ),
    Option(
        "subnet_file",
        "host",
        "FILE",
        "where to write the subnet and the MTU for container engines to read (FLANNEL_* variables); "
        "RUN_DIR/subnet.env if not given",
        values.path,
        '"/run/netagent/subnet.env"',
    ),
    Option(
        "ip_masq",
        "host",
        "BOOL",
        "masquerade traffic that leaves the network for elsewhere, with this host's address",
        values.boolean,
        "false",
        switch=True,
    ),
    Option(
        "firewall_integrate",
        "host",
        "BOOL",
        "put tagged accepts where other firewall tools offer a place for them (DOCKER-USER, a firewalld zone); "
        "without it they are only reported when they drop the network's traffic",
        values.boolean,
        "false",
        switch=True,
    ),
    Option(
        "firewall_table",
        "host",
        "NAME",
        "name of the nft table (family inet) that is ours",
        values.nft_name,
        '"netagent"',
    ),
    Option(
        "route_protocol",
        "host",
        "NUMBER",
        "protocol number that marks our routes; must be no other program's (80 is Calico's, 12 BIRD's)",
        values.number(5, 255),
        "110",
    ),
    Option(
        "lease_ttl",
        "lease",
        "DURATION",
        "how long this host's subnet stays reserved for it when it is gone",
        values.duration(5, 31536000),
        '"24h"',
    ),
    Option(
        "alive_ttl",
        "lease",
        "DURATION",
        "after how long without a sign of life the other nodes show this one as down (it keeps its routes)",
        values.duration(3, 3600),
        '"15s"',
    ),
    Option(
        "state_dir",
        "paths",
        "DIR",
        "what must survive a reboot: the node's id, its subnet, the last known peers",
        values.path,
        '"/var/lib/netagent"',
    ),
    Option("run_dir", "paths", "DIR", "sockets and other files of the running agent", values.path, '"/run/netagent"'),
    Option(
        "socket_group",
        "paths",
        "GROUP",
        "group that may read the agent's status through its socket; only root if not given",
        values.text,
        '""',
    ),
    Option(
        "metrics_listen",
        "paths",
        "ADDRESS:PORT",
        "serve /metrics, /healthz and /readyz on this TCP address as well; off if not given",
        values.listen,
        '""',
    ),
    Option(
        "log_level",
        "log",
        "LEVEL",
        "debug, info, warning or error",
        values.choice(*LEVELS),
        '"info"',
        choices=LEVELS,
    ),
    Option(
        "log_format",
        "log",
        "FORMAT",
        "text or json (a JSON object a line)",
        values.choice(*FORMATS),
        '"text"',
        choices=FORMATS,
    ),
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
    if option.choices:
        more["choices"] = option.choices
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
    found: dict[str, Any] = {}
    for name, value, where in _sources(flags, environ):
        try:
            found[name] = _BY_NAME[name].read(value)
        except ValueError as error:
            raise ConfigError(f"{value!r} is not a value of {name}", where=where, remedy=_sentence(error)) from None
    if "run_dir" in found and "subnet_file" not in found:
        found["subnet_file"] = found["run_dir"] / "subnet.env"
    if not found.get("node_name"):
        found["node_name"] = _hostname(hostname())
    settings = Settings(**found)
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
            f"the settings file cannot be read: {error.strerror}",
            where=str(path),
            remedy="Run it as root, or correct its permissions",
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
        if isinstance(value, dict):
            raise ConfigError(
                "a section, and settings stand in none",
                where=where,
                remedy=f"Write {_within(key, value)} = ... on a line above all sections",
            )
        if key not in _BY_NAME:
            near = nearest(key, _BY_NAME)
            raise ConfigError(
                "unknown key",
                where=where,
                remedy=f"Did you mean {near}?" if near else f"Known keys are {', '.join(_BY_NAME)}",
            )
        yield key, value, where


def _within(section: str, inside: Mapping[str, Any]) -> str:
    """The setting that a section was probably meant to hold."""
    names = [nearest(f"{section}_{key}", _BY_NAME) for key in inside]
    return next(filter(None, names), "") or OPTIONS[0].name


def _line(text: str, key: str) -> int:
    """The line that sets the key (1 where it cannot be told)."""
    pattern = re.compile(rf"""\s*(?:\[\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _hostname(name: str) -> str:
    if not values.NODE_NAME.match(name):
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
