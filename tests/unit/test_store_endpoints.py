"""Endpoints and gRPC's answers: what is accepted, and in which words the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from netagent.errors import (
    ConfigError,
    LeaseNotFound,
    StoreAuthError,
    StoreCompacted,
    StoreError,
    StorePermissionDenied,
    StoreUnavailable,
    StoreUnknownOutcome,
)
from netagent.store.endpoints import TLS, Endpoint, parse_endpoints, password_from
from netagent.store.grpc_errors import not_carried_out, store_error


@pytest.mark.parametrize(
    ("text", "expected", "target"),
    [
        ("http://10.0.0.1:2379", Endpoint("http", "10.0.0.1", 2379), "ipv4:10.0.0.1:2379"),
        ("HTTPS://etcd.example:4001/", Endpoint("https", "etcd.example", 4001), "dns:///etcd.example:4001"),
        ("http://[fd00::1]:2379", Endpoint("http", "fd00::1", 2379), "ipv6:[fd00::1]:2379"),
        ("http://[fd00::1]", Endpoint("http", "fd00::1", 2379), "ipv6:[fd00::1]:2379"),
        ("127.0.0.1", Endpoint("http", "127.0.0.1", 2379), "ipv4:127.0.0.1:2379"),
        ("localhost:4001", Endpoint("http", "localhost", 4001), "dns:///localhost:4001"),
    ],
)
def test_endpoints(text: str, expected: Endpoint, target: str) -> None:
    (endpoint,) = parse_endpoints([text])
    assert endpoint == expected
    assert endpoint.target == target
    assert parse_endpoints([str(endpoint)]) == (endpoint,)


def test_lists_and_commas_without_repetition() -> None:
    found = parse_endpoints(["http://a:1,http://b:1", " http://a:1 ", ""])
    assert [str(endpoint) for endpoint in found] == ["http://a:1", "http://b:1"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "no etcd endpoint"),
        (["ftp://a:1"], "scheme 'ftp'"),
        (["http://a:0"], "port '0'"),
        (["http://a:99999"], "port '99999'"),
        (["http://a:b"], "port 'b'"),
        (["http://:2379"], "host is missing"),
        (["http://a:1/v3"], "only host and port"),
        (["http://u:p@a:1"], "only host and port"),
        (["http://fd00::1:2379"], "brackets"),
        (["http://[fd00::1"], "brackets"),
        (["http://[fd00::1]2379"], "brackets"),
        (["http://[etcd-1]:2379"], "brackets"),
        (["http://a b:2379"], "no name of a host"),
        (["http://a]:2379"], "no name of a host"),
        (["http://a:1", "https://b:1"], "mixed"),
    ],
)
def test_wrong_endpoints_say_what_to_write(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_endpoints(texts)
    assert caught.value.remedy and caught.value.where


def test_certificates_must_fit_the_endpoints() -> None:
    with pytest.raises(ConfigError, match="plain http"):
        parse_endpoints(["http://a:1"], TLS(ca=Path("ca.pem")))
    with pytest.raises(ConfigError, match="certificate without its key"):
        parse_endpoints(["https://a:1"], TLS(cert=Path("c.pem")))
    with pytest.raises(ConfigError, match="key without its certificate"):
        parse_endpoints(["https://a:1"], TLS(key=Path("k.pem")))


def test_the_password_is_read_at_each_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    source = password_from(file)
    with pytest.raises(StoreAuthError, match="No such file") as caught:
        source()
    assert "etcd_password_file" in caught.value.remedy
    file.write_text("")
    with pytest.raises(StoreAuthError, match="empty"):
        source()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreAuthError, match="not text"):
        source()
    for password in ("one", "two words"):
        file.write_text(password + "\n")
        assert source() == password

    source = password_from(None)
    monkeypatch.delenv("NETAGENT_ETCD_PASSWORD", raising=False)
    with pytest.raises(StoreAuthError, match="no password"):
        source()
    monkeypatch.setenv("NETAGENT_ETCD_PASSWORD", "three")
    assert source() == "three"


@pytest.mark.parametrize(
    ("code", "details", "read", "write"),
    [
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", StoreCompacted, StoreCompacted),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision", StoreCompacted, StoreCompacted),
        ("NOT_FOUND", "etcdserver: requested lease not found", LeaseNotFound, LeaseNotFound),
        ("PERMISSION_DENIED", "etcdserver: permission denied", StorePermissionDenied, StorePermissionDenied),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", StoreAuthError, StoreAuthError),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", StoreAuthError, StoreAuthError),
        (
            "INVALID_ARGUMENT",
            "etcdserver: authentication failed, invalid user ID or password",
            StoreAuthError,
            StoreAuthError,
        ),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", StoreUnavailable, StoreUnknownOutcome),
        ("UNAVAILABLE", "Socket closed", StoreUnavailable, StoreUnknownOutcome),
        ("UNAVAILABLE", "Stream removed (ping timeout)", StoreUnavailable, StoreUnknownOutcome),
        ("UNAVAILABLE", "etcdserver: request timed out", StoreUnavailable, StoreUnknownOutcome),
        ("UNAVAILABLE", "etcdserver: leader changed", StoreUnavailable, StoreUnknownOutcome),
        ("UNAVAILABLE", "etcdserver: no leader", StoreUnavailable, StoreUnavailable),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: ...", StoreUnavailable, StoreUnavailable),
        ("CANCELLED", "", StoreUnavailable, StoreUnknownOutcome),
        ("UNKNOWN", "raft: stopped", StoreUnavailable, StoreUnknownOutcome),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StoreUnavailable, StoreUnavailable),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", StoreUnavailable, StoreUnavailable),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", StoreError, StoreError),
        ("UNIMPLEMENTED", "unknown service etcdserverpb.KV", StoreError, StoreError),
    ],
)
def test_every_answer_has_its_error(code: str, details: str, read: type[StoreError], write: type[StoreError]) -> None:
    for is_write, expected in ((False, read), (True, write)):
        error = store_error(code, details, write=is_write, where="http://a:1", timeout=5.0)
        assert type(error) is expected
        assert "http://a:1" in str(error)
        assert "etcdserver" not in str(error) or code == "UNIMPLEMENTED"
        assert (type(error) is StoreUnknownOutcome) <= (not not_carried_out(code, details))
