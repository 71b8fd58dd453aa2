"""The BGP daemon's own input: its configuration, a request on its control socket, a password file."""

from __future__ import annotations

import asyncio
import json
from random import Random
from types import SimpleNamespace
from typing import Any

from backends.bgp.sessions import read_secret
from bgp.aio.liveness import Liveness
from bgp.connection import Direction
from bgp.daemon.config import parse
from bgp.daemon.control import ControlSocket
from bgp.daemon.errors import ConfigError
from bgp.daemon.run import Daemon
from bgp.message import KEEPALIVE, Capabilities, Open, encode_announcement, nlri
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.speaker import Speaker
from bgp.transport import LONGEST_PASSWORD
from tests.fuzz.target import target
from tests.fuzz.targets.bgp_messages import PLAIN, PREFIXES4, V4, V6

# ------------------------------------------------------------------------------------------------ configuration

WHOLE = b"""[speaker]
asn = 65001
router-id = "192.0.2.1"
listen = ["192.0.2.1", "::1"]
[[announce]]
prefixes = ["10.9.0.0/16", "2001:db8::/32"]
communities = ["65001:7", "no-export"]
large-communities = ["65001:1:2"]
[[peers]]
name = "tor"
address = "192.0.2.254"
asn = 65000
import = "in"
password-file = "password"
ttl-security = 1
[[ranges]]
name = "clients"
prefix = "192.0.2.0/24"
limit = 500
[policies.in]
default = "accept"
[[policies.in.rules]]
action = "reject"
prefixes = ["10.0.0.0/8{25,32}", "192.168.0.0/16+"]
through = [64512]
longest-path = 10
[[policies.in.rules]]
action = "accept"
[policies.in.rules.set]
local-pref = 200
prepend = [65001, 65001]
add-communities = ["blackhole"]
"""
_KEYS = (
    *("asn", "router-id", "families", "addresses", "listen", "port", "prefix", "med", "communities", "guard", "name"),
    *("address", "hold-time", "import", "export", "max-prefixes", "warn-at", "password", "multihop", "limit"),
)


@target(
    "bgp-daemon-config",
    covers=("bgp.daemon.config:parse",),
    seeds=lambda: {
        "whole": WHOLE,
        "least": WHOLE[:48],
        "digits": b"[speaker]\nasn = " + b"9" * 4400,
        "deep": b"[speaker]\nasn = " + b"[" * 2000,
        "text": b'[speaker]\nasn = 1\nrouter-id = "192.0.2.1"\n[[announce]]\nprefix = "10.0.0.0/\xd9\xa1"\n',
    },
    words=tuple(key.encode() + b" = " for key in _KEYS),
    longest=8192,
)
def configuration(data: bytes) -> None:
    """A file that can be used as it stands, and is the same when it is read again; or a ConfigError that names it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # refused before
    try:
        found = parse(text, "speaker.toml", lambda _: "secret\n")
    except ConfigError as error:
        assert str(error).startswith("speaker.toml")
        return
    again = parse(text, "speaker.toml", lambda _: "secret\n", found)
    assert (again.speaker, again.peers, again.ranges) == (found.speaker, found.peers, found.ranges)
    speaker = Speaker(found.speaker, Random(0).random)
    for each in found.announcements:
        if each.family in speaker.ribs:
            speaker.originate(each.family, each.prefix, each.attributes)
    speaker.set_peers(found.peers, 0.0, found.ranges)
    speaker.take(0.0)


# ----------------------------------------------------------------------------------------------- control socket


class _Daemon(Daemon):
    """A daemon without file, sockets and loop."""

    def __init__(self) -> None:
        config = SpeakerConfig(65001, bytes((192, 0, 2, 1)), (V4, V6))
        self.speaker = Speaker(config, Random(0).random)
        liveness = Liveness(self.speaker, lambda: 1.0, lambda _: (), lambda: None, lambda *_: None)
        driver = SimpleNamespace(now=lambda: 1.0, wake=lambda: None, unsigned={}, liveness=liveness)
        self.driver = driver  # type: ignore[assignment]
        self.speaker.add_peer(PeerConfig("tor", nlri.parse_address("10.0.1.1"), 65002), 0.0)
        self.speaker.add_peer(PeerConfig("other", nlri.parse_address("10.0.1.2"), 65003), 0.0)
        self.speaker.connected("tor", 0.0)
        hello = Open(65002, 90, bytes((10, 0, 1, 1)), Capabilities((V4, V6))).encode()
        announced = encode_announcement(V4, PLAIN, PREFIXES4, as4=True)[0]
        self.speaker.receive("tor", Direction.OUTGOING, hello + KEEPALIVE + announced, 0.0)
        self.speaker.take(0.0)

    def reload(self) -> None:
        raise ConfigError("speaker.toml: cannot be read")


class _Writer:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, line: bytes) -> None:
        self.lines.append(json.loads(line))

    async def drain(self) -> None:
        pass


@target(
    "bgp-daemon-control",
    covers=("bgp.daemon.control:ControlSocket",),
    seeds=lambda: {
        name: json.dumps(request).encode()
        for name, request in {
            "routes": {"command": "routes", "prefix": "10.1.0.0/16", "more_specific": True},
            "address": {"command": "routes", "prefix": "10.1.2.3"},
            "peers": {"command": "peers", "peer": "tor"},
            "received": {"command": "received", "peer": "tor"},
            "advertised": {"command": "advertised", "peer": "other"},
            "log": {"command": "log", "peer": "10.0.1.1"},
            "reset": {"command": "reset-peer", "peer": "tor", "text": "so \u00fc"},
            "stop": {"command": "shutdown-peer", "peer": "tor", "text": "x" * 300},
            "start": {"command": "start-peer", "peer": "tor"},
            "refresh": {"command": "refresh-peer", "peer": "other"},
            "summary": {"command": "summary"},
            "metrics": {"command": "metrics"},
            "reload": {"command": "reload"},
        }.items()
    },
    words=tuple(
        f'"{word}"'.encode() for word in ("command", "peer", "prefix", "text", "summary", "metrics", "routes")
    ),
    longest=600,
)
def control(data: bytes) -> None:
    """Any line is answered with items and an end, or with an error; and the daemon can do the next one."""
    daemon = _Daemon()
    socket = ControlSocket("/nowhere", daemon._answer)
    for line in (data, b'{"command":"peers"}'):
        writer = _Writer()
        asyncio.run(socket._reply(line, writer))  # type: ignore[arg-type]
        *items, last = writer.lines
        assert all(item.keys() == {"item"} for item in items)
        assert last == {"end": True} or {"error"} <= last.keys() <= {"error", "wrong"}
    assert len(items) == 2
    daemon.speaker.take(2.0)


# ---------------------------------------------------------------------------------------------------- passwords


@target(
    "password-file",
    covers=("backends.bgp.sessions:read_secret",),
    seeds=lambda: {"line": b" secret \nmore\n", "empty": b"\nsecret", "long": b"x" * (LONGEST_PASSWORD + 1)},
    longest=200,
)
def password(data: bytes) -> None:
    """The first line, as the kernel takes it for TCP MD5; or what is wrong, without the password in it."""
    found = read_secret(data)
    if found.problem:
        assert not found.password
    else:
        assert 0 < len(found.password) <= LONGEST_PASSWORD
        assert data.startswith(found.password) or found.password in data.split(b"\n")[0]
