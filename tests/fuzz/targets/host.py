"""What stands on the host: settings, the files of earlier runs, and what an agent of another version answers.

Rule: an operator's file is refused with its place and a remedy, a file of ours that is damaged is ignored or put
aside with a finding. No traceback.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from netagent import setting_values, subnet_env
from netagent.api.client import Client, _refused
from netagent.api.server import parse_listen
from netagent.config import OPTIONS, Settings, default_file, load
from netagent.errors import ConfigError, NetagentError
from netagent.identity import load_identity
from netagent.kernel.journal import Entry, Journal
from netagent.leasing import read_kept
from netagent.model import Network
from netagent.store.endpoints import parse_endpoints
from tests.fuzz.target import target
from tests.fuzz.targets.records import shown

# In memory where there is such a place. The engine ends without a word: whoever starts it removes its TMPDIR.
_SHM = "/dev/shm" if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir() else None
_FOLDER = Path(tempfile.mkdtemp(prefix="netagent-fuzz-", dir=_SHM))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def written(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------------ settings


@target(
    "settings",
    covers=("netagent.config:load",),
    seeds=lambda: {
        "all": b"".join(line[1:].encode() + b"\n" for line in default_file().splitlines() if line[1:2].islower()),
        "etcd": b'etcd_endpoints = ["http://127.0.0.1:2379"]\netcd_prefix = "/network"\nlease_ttl = "24h"\n',
        "interface": b'iface = "eth0,eth1"\niface_regex = ["eth[0-9]+"]\npublic_ip = "192.168.50.11"\n',
        "typed": b'ip_masq = true\nroute_protocol = 9\nnode_name = "h"\nmetrics_listen = "[::1]:9480"\n',
        "bounds": b'iface_regex = ["a{9}", "[[a]", "(?i)b"]\nstate_dir = "a\\u0000"\nnode_name = []\n',
        "regex": b'iface_regex = ["a{99999999999999999999}"]\n',
        "wrong": b'etcd_password = "x"\n[table]\na = 1979-05-27T07:32:00Z\nb = [1, {c = 0x1F}]\nd = """\nx"""\n',
    },
    words=tuple(option.name.encode() + b" = " for option in OPTIONS),
)
def settings(data: bytes) -> None:
    """netagent.toml: settings that can be used as they stand, or a ConfigError with place and remedy."""
    path = written("netagent.toml", data)
    try:
        found = load(None, {"NETAGENT_CONFIG": str(path)}, hostname=lambda: "h1")
    except ConfigError as error:
        assert str(path) in error.where or error.where.startswith("etcd_certfile=")
        assert error.message
        assert error.remedy
        return
    assert setting_values.NODE_NAME.match(found.node_name)
    for name in Settings.__struct_fields__:
        value = getattr(found, name)
        assert not isinstance(value, Path) or "\0" not in str(value)
    if found.metrics_listen:
        with contextlib.suppress(ConfigError):
            parse_listen(found.metrics_listen)
    with contextlib.suppress(ConfigError):
        parse_endpoints(found.etcd_endpoints)


@target(
    "addresses",
    covers=("netagent.store.endpoints:parse_endpoints", "netagent.api.server:parse_listen"),
    seeds=lambda: {
        "plain": b"http://127.0.0.1:2379,http://[fd50::1]:2379/",
        "name": b"https://etcd-1.example.net",
        "listen": b"[::1]:9480",
        "every": b":9480",
    },
    words=(b"http://", b"https://", b"[::1]", b":2379"),
    longest=200,
)
def addresses(data: bytes) -> None:
    """Endpoints and addresses to listen on, as text: what is read is written the same, and read again."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ConfigError):
        found = parse_endpoints([text])
        assert parse_endpoints(map(str, found)) == found
        for endpoint in found:
            assert endpoint.target.endswith(endpoint.authority)
    with contextlib.suppress(ConfigError):
        host, port = parse_listen(text)
        assert host
        assert 0 < port < 65536
        assert parse_listen(f"[{host}]:{port}") == (host, port)


# --------------------------------------------------------------------------------------------- files of ours


def _identity() -> None:
    with contextlib.suppress(ConfigError):
        found = load_identity(_FOLDER, "h1")
        assert len(found.id) == 32


def _kept() -> None:
    with contextlib.suppress(ValueError):
        found = read_kept(_FOLDER / "lease.json")
        assert found is not None


def _journal() -> None:
    path = _FOLDER / "journal.json"
    found = Journal(path, epoch="boot/1")
    if found.finding is not None:
        shown(found.finding)
        return
    before = dict(found.entries())
    found.record("sysctl:x", "1", "2")
    old = before.get("sysctl:x", Entry("1", "2")).old
    assert Journal(path, epoch="boot/1").entries() == {**before, "sysctl:x": Entry(old, "2")}


_FILES: tuple[tuple[str, Callable[[], None]], ...] = (
    ("id", _identity),
    ("lease.json", _kept),
    ("journal.json", _journal),
)


@target(
    "state-files",
    covers=("netagent.leasing:read_kept", "netagent.identity:load_identity", "netagent.kernel.journal:Journal"),
    seeds=lambda: {
        "id": b"\0" + b"0123456789abcdef" * 2 + b"\n",
        "lease": b'\1{"boot":"b","v4":"10.5.72.0/24","v6":"fc00:0:0:2::/64"}',
        "journal": b'\2{"version":1,"entries":{"boot/1":{"y":{"old":"0","new":"1"},"z":{"old":null,"new":true}}}}',
    },
    words=(b'"version"', b'"entries"', b'"old"', b'"new"', b'"boot"', b'"v4"', b'"v6"', b"boot/1"),
)
def state_files(data: bytes) -> None:
    """A damaged file is told, never believed and never in the way; what is sound is kept on rewriting."""
    name, check = _FILES[data[0] % len(_FILES)] if data else _FILES[0]
    written(name, data[1:])
    check()


@target(
    "subnet-env",
    covers=("netagent.subnet_env:read",),
    seeds=lambda: {
        "dual": subnet_env.render(
            Network(v4="10.5.0.0/16", v6="fc00::/48"), "10.5.72.0/24", "fc00:0:0:2::/64", 1450, True
        ).encode(),
        "host": b"FLANNEL_SUBNET=10.5.72.1/32\nFLANNEL_IPV6_SUBNET=fc00::1/0\n",
        "quoted": b"FLANNEL_SUBNET=\"10.5.72.1/24\"\r\nFLANNEL_MTU='1450'\nX\nFLANNEL_IPV6_SUBNET=fc00::1/64\n",
    },
    words=(b"FLANNEL_SUBNET=", b"FLANNEL_IPV6_SUBNET=", b"FLANNEL_MTU="),
    longest=600,
)
def environment(data: bytes) -> None:
    """flannel's subnet.env: what is read is two subnets at most, and is read the same when we have written it."""
    found = subnet_env.read(written("subnet.env", data))
    assert 0 <= found.mtu < 100000
    written("subnet.env", subnet_env.render(Network(), found.v4, found.v6, found.mtu, False).encode())
    assert subnet_env.read(_FOLDER / "subnet.env") == found


# ------------------------------------------------------------------------------------------------ the agent's API


class _Answers(Client):
    """A client whose agent answers `body`, with a status of its own."""

    def __init__(self, body: bytes) -> None:
        super().__init__(_FOLDER / "socket")
        self.body = body

    def request(self, method: str, path: str) -> bytes:
        return self.body


@target(
    "api-answer",
    covers=("netagent.api.client:Client",),
    seeds=lambda: {
        "error": b'{"error":"no","remedy":"ask again"}',
        "peers": b'[{"key":"10.5.72.0-24","node":"h2"}]',
        "steps": b'[{"op":"add","kind":"route","key":["route","10.5.72.0/24",0]}]',
        "done": b'{"done":true,"findings":[]}',
    },
    words=tuple(f'"{word}"'.encode() for word in ("error", "remedy", "key", "node", "state", "verdict", "peers")),
)
def answer(data: bytes) -> None:
    """What an agent of another version, or something else on the socket, answers: a value or a NetagentError."""
    client = _Answers(data)
    for ask in (client.status, client.peers, client.routes, client.plan):
        with contextlib.suppress(NetagentError):
            msgspec.json.encode(ask())
    with contextlib.suppress(NetagentError):
        client.post("/v1/resync")
    assert _refused(500, data).message
