"""Asks the agent over its unix socket. Standard library only: the CLI must start fast, and never imports aiohttp.

Rule: a deadline over the whole request, and every failure is a NetagentError that says what to do.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from netagent.errors import AgentForbidden, AgentUnavailable, NetagentError
from netagent.status import ObjectView, Peer, Status, Step

T = TypeVar("T")

DEADLINE = 12.0  # seconds; the agent itself gives up at 10


_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_making = threading.Lock()


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """msgspec (0.22) makes what it knows of a type at its first use; two threads at once in that end the process."""
    with _making:
        found = _decoders.get(kind)
        if found is None:
            found = _decoders[kind] = msgspec.json.Decoder(kind)
        return found


class Client:
    """One request, one connection: the agent may be restarted between two of them."""

    def __init__(self, path: Path, *, deadline: float = DEADLINE) -> None:
        self.path = path
        self.deadline = deadline

    def status(self, *, all_peers: bool = False) -> Status:
        return self._get("/v1/status" + ("?peers=all" if all_peers else ""), Status)

    def peers(self) -> list[Peer]:
        return self._get("/v1/peers", list[Peer])

    def routes(self) -> list[ObjectView]:
        return self._get("/v1/routes", list[ObjectView])

    def objects(self, kinds: tuple[str, ...] = ()) -> list[ObjectView]:
        return self._get("/v1/objects?" + "&".join(f"kind={kind}" for kind in kinds), list[ObjectView])

    def plan(self) -> list[Step]:
        return self._get("/v1/plan", list[Step])

    def backend(self, backend: str, view: str, **arguments: str) -> list[Any]:
        """What the running part of a backend says of itself; the arguments that are not empty go along."""
        query = urllib.parse.urlencode({name: value for name, value in arguments.items() if value})
        return self._get(f"/v1/backend/{backend}/{view}?{query}", list[Any])

    def post(self, path: str) -> Any:
        """Ask for a change ("/v1/resync", "/v1/reload"); the decoded answer."""
        return self._decoded(self.request("POST", path), Any)

    def _get(self, path: str, kind: type[T]) -> T:
        found: T = self._decoded(self.request("GET", path), kind)
        return found

    def _decoded(self, body: bytes, kind: Any) -> Any:
        try:
            return _decoder(kind).decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NetagentError(
                f"the agent's answer is not understood: {error}",
                where=str(self.path),
                remedy="Agent and command may be of different versions: compare `netagent version` with `status`",
            ) from error

    def request(self, method: str, path: str) -> bytes:
        """The body of a good answer. AgentUnavailable when none comes, AgentForbidden where it may not be
        asked, NetagentError for what the agent refuses."""
        end = time.monotonic() + self.deadline
        connection = _UnixConnection(self.path, timeout=self.deadline)
        try:
            connection.request(method, path, headers={"Host": "netagent", "Connection": "close"})
            response = connection.getresponse()
            body = bytearray()
            while chunk := response.read1(1 << 16):
                body += chunk
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                if connection.sock is not None:
                    connection.sock.settimeout(left)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise self._unavailable(
                "no agent answers", "Is it running? `systemctl status netagent`; another --run-dir or --socket?"
            ) from error
        except PermissionError as error:
            raise AgentForbidden(
                "this user may not ask the agent", where=str(self.path), remedy=self._way_in()
            ) from error
        except TimeoutError as error:
            raise self._unavailable(
                f"the agent gave no answer within {self.deadline:g} s", "See its log: `journalctl -u netagent`"
            ) from error
        except (NotADirectoryError, IsADirectoryError) as error:
            raise self._unavailable("no agent answers", f"Correct --run-dir or --socket: {error.strerror}") from error
        except OSError as error:
            if error.errno is None:  # "AF_UNIX path too long", which Python finds by itself
                raise self._unavailable(str(error), "Give a shorter --run-dir or --socket") from error
            raise self._gone(error) from error
        except http.client.HTTPException as error:
            raise self._gone(error) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise _refused(response.status, bytes(body))
        return bytes(body)

    def _gone(self, error: Exception) -> AgentUnavailable:
        return self._unavailable(
            f"the agent went away while answering ({error or type(error).__name__})",
            "See its log: `journalctl -u netagent`",
        )

    def _unavailable(self, message: str, remedy: str) -> AgentUnavailable:
        return AgentUnavailable(message, where=str(self.path), remedy=remedy)

    def _way_in(self) -> str:
        try:
            group = self.path.group()
        except (OSError, KeyError):
            group = "root"  # not even the directory can be looked into
        if group == "root":
            return "Run it as root; socket_group in netagent.toml lets a group ask"
        return f"Run it as root, or as a member of the group {group} (`adduser USER {group}`, then log in again)"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, *, timeout: float) -> None:
        super().__init__("netagent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _refused(status: int, body: bytes) -> NetagentError:
    try:
        answer = msgspec.json.decode(body)
        return NetagentError(str(answer["error"]), remedy=str(answer["remedy"]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return NetagentError(f"the agent answered {status}", remedy="See its log: `journalctl -u netagent`")
