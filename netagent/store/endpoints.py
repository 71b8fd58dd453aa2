"""Where etcd is, how to speak TLS with it, and as whom: the settings of the connection, checked.

Rule: a mistake in them is a ConfigError with a remedy, found before the first packet; secrets and certificates are
not kept, but read again whenever they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from socket import AF_INET6, inet_pton
from typing import NamedTuple

from netagent.errors import ConfigError, StoreAuthError

DEFAULT_PORT = 2379
PASSWORD_VARIABLE = "NETAGENT_ETCD_PASSWORD"  # noqa: S105 - a variable's name


class TLS(NamedTuple):
    """Files of the TLS connection. `ca` None: the system's authorities. `server_name`: if not the endpoint's host.

    Files are read again at each connection, so that renewed certificates need no restart.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""


class Endpoint(NamedTuple):
    """One member's client address. `host` is a name or an address, IPv6 without brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """The address in gRPC's syntax."""
        if ":" in self.host:
            return f"ipv6:{self.authority}"
        if self.host.replace(".", "").isdigit():
            return f"ipv4:{self.authority}"
        return f"dns:///{self.authority}"


def parse_endpoints(texts: Iterable[str], tls: TLS | None = None) -> tuple[Endpoint, ...]:
    """Endpoints from "https://host:port" (scheme http and port 2379 if left out), each text maybe a comma list."""
    found: dict[Endpoint, None] = {}
    for text in texts:
        for part in text.split(","):
            if part.strip():
                found[_parse(part.strip())] = None
    if not found:
        raise ConfigError("no etcd endpoint given", where="etcd endpoints", remedy="Give http://HOST:2379")
    endpoints = tuple(found)
    schemes = {endpoint.scheme for endpoint in endpoints}
    where = ", ".join(map(str, endpoints))
    if len(schemes) > 1:
        raise ConfigError(
            "http and https endpoints are mixed",
            where=where,
            remedy="Write all with https:// or all with http://, as the members' --listen-client-urls say",
        )
    if tls is not None and schemes == {"http"} and (tls.ca or tls.cert or tls.key):
        raise ConfigError(
            "certificates are given, but the endpoints are plain http",
            where=where,
            remedy="Write the endpoints with https://, or give no certificate files",
        )
    if tls is not None and bool(tls.cert) != bool(tls.key):
        given, missing = ("certificate", "key") if tls.cert else ("key", "certificate")
        raise ConfigError(
            f"a client {given} without its {missing}", where=str(tls.cert or tls.key), remedy="Give both files"
        )
    return endpoints


def _parse(text: str) -> Endpoint:
    def wrong(what: str) -> ConfigError:
        return ConfigError(what, where=f"etcd endpoint {text!r}", remedy="Write it as http(s)://HOST:PORT")

    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise wrong(f"scheme {scheme!r} is not http or https")
    rest = rest.removesuffix("/")
    if "/" in rest or "@" in rest or "?" in rest:
        raise wrong("only host and port may follow the scheme")
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (port and not port.startswith(":")):
            raise wrong("what stands in brackets is no IPv6 address, or not followed by a port")
        port = port.removeprefix(":")
    elif rest.count(":") > 1:
        raise wrong("an IPv6 address must stand in brackets")
    else:
        host, _, port = rest.partition(":")
    if not host:
        raise wrong("the host is missing")
    if not host.isprintable() or not set(" []").isdisjoint(host):
        raise wrong(f"{host!r} is no name of a host")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise wrong(f"port {port!r} is not a number from 1 to 65535")
    return Endpoint(scheme, host, int(port or DEFAULT_PORT))


def _is_ipv6(text: str) -> bool:
    """An address, a link-local one with its interface."""
    try:
        inet_pton(AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def password_from(file: Path | None) -> Callable[[], str]:
    """Where each authentication gets the password: the file's first line, else NETAGENT_ETCD_PASSWORD.

    The source raises StoreAuthError when there is none.
    """

    def read() -> str:
        if file is None:
            if password := os.environ.get(PASSWORD_VARIABLE, ""):
                return password
            raise StoreAuthError(
                "a user is set for etcd, but no password",
                remedy=f"Set etcd_password_file, or {PASSWORD_VARIABLE} in the environment",
            )
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise StoreAuthError(
                f"etcd's password cannot be read: {reason}",
                where=str(file),
                remedy="Run it as root, or correct etcd_password_file",
            ) from None
        if not lines or not lines[0]:
            raise StoreAuthError("the file with etcd's password is empty", where=str(file))
        return lines[0]

    return read
