"""etcd by its JSON gateway, with http.client: keys and values in base64, numbers of 64 bits as strings."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

TTL = 86400  # seconds, of a lease in etcd


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def unb64(text: str) -> str:
    return base64.b64decode(text).decode(errors="replace")


def prefix_end(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class Etcd:
    """etcd's JSON gateway: every call tries the endpoints in turn. OSError when none answers well."""

    def __init__(self, endpoints: str) -> None:
        self.endpoints = [urlsplit(each) for each in endpoints.split(",")]

    def _ask(self, endpoint: Any, path: str, body: dict[str, Any], timeout: float | None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(endpoint.hostname, endpoint.port or 80, timeout=5)
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"etcd: {path}: {answer.status} {answer.read()[:200]!r}")
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return answer

    def call(self, path: str, body: dict[str, Any], timeout: float | None = 5) -> http.client.HTTPResponse:
        error: Exception = OSError("no endpoint")
        for endpoint in self.endpoints:
            try:
                return self._ask(endpoint, path, body, timeout)
            except (OSError, http.client.HTTPException) as found:
                error = found
        raise OSError(str(error)) from error

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call(path, body).read())
        return answer

    def get(self, key: str) -> str | None:
        found = self.ask("/v3/kv/range", key=b64(key)).get("kvs")
        return unb64(found[0].get("value", "")) if found else None

    def list(self, prefix: str) -> tuple[int, list[tuple[str, str]]]:
        """Revision, and keys with their values."""
        answer = self.ask("/v3/kv/range", key=b64(prefix), range_end=b64(prefix_end(prefix)))
        pairs = [(unb64(kv["key"]), unb64(kv.get("value", ""))) for kv in answer.get("kvs", ())]
        return int(answer["header"]["revision"]), pairs

    def grant(self) -> str:
        return str(self.ask("/v3/lease/grant", TTL=TTL)["ID"])

    def put(self, key: str, value: str) -> None:
        """Unconditional, on a new lease; the old one ages out."""
        self.ask("/v3/kv/put", key=b64(key), value=b64(value), lease=self.grant())

    def create(self, key: str, value: str) -> bool:
        """Put if the key does not exist, on a new lease, which is revoked if it does."""
        lease = self.grant()
        answer = self.ask(
            "/v3/kv/txn",
            compare=[{"key": b64(key), "target": "VERSION", "result": "EQUAL", "version": 0}],
            success=[{"request_put": {"key": b64(key), "value": b64(value), "lease": lease}}],
        )
        if not answer.get("succeeded"):
            self.ask("/v3/lease/revoke", ID=lease)
        return bool(answer.get("succeeded"))

    def delete(self, key: str) -> None:
        self.ask("/v3/kv/deleterange", key=b64(key))

    def watch(self, prefix: str, revision: int) -> Iterator[dict[str, Any]]:
        """WatchResponses from a revision on, until the connection ends."""
        create = {"key": b64(prefix), "range_end": b64(prefix_end(prefix)), "start_revision": revision}
        answer = self.call("/v3/watch", {"create_request": create}, timeout=None)
        while line := answer.readline():
            yield json.loads(line)["result"]
