"""Log lines for a person, for the journal and for a machine; and the limit on repetition."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent import log
from netagent.log import BURST, REPEATS, WINDOW, Limit, priority, setup, under_journald

logger = logging.getLogger("netagent.test")


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = {name: logging.getLogger(name).level for name in ("asyncio", "grpc")}
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def test_text() -> None:
    out = io.StringIO()
    setup("info", stream=out, environ={})
    logger.info("lease %s held", "10.5.59.0/24")
    logger.debug("not shown")
    assert out.getvalue().endswith("INFO    netagent.test: lease 10.5.59.0/24 held\n")
    assert out.getvalue().count("\n") == 1


def test_json_lines() -> None:
    out = io.StringIO()
    setup("debug", json=True, stream=out, environ={})
    logger.warning('with "quotes"\nand a new line')
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["message"] == 'with "quotes"\nand a new line'
    assert (first["level"], first["logger"]) == ("warning", "netagent.test")
    assert "ValueError: bad" in second["exception"]


def test_the_journal_gets_priorities_on_every_line(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as out:
        found = os.fstat(out.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert under_journald(out, environ)
        setup("debug", stream=out, environ=environ)
        logger.error("two\nlines")
        logger.debug("detail")
        out.seek(0)
        assert out.read().splitlines() == ["<3>netagent.test: two", "<3>lines", "<7>netagent.test: detail"]


@pytest.mark.parametrize("value", ["", "1:2", "nonsense"])
def test_another_stream_is_not_the_journal(tmp_path: Path, value: str) -> None:
    with (tmp_path / "file").open("w") as out:
        assert not under_journald(out, {"JOURNAL_STREAM": value})
    assert not under_journald(io.StringIO(), {"JOURNAL_STREAM": value})


@pytest.mark.parametrize(
    ("level", "number"), [(logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (5, 7)]
)
def test_priority(level: int, number: int) -> None:
    assert priority(level) == number


def record(message: str, line: int = 1, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("netagent.test", level, __file__, line, message, None, None)


def test_the_same_message_is_limited_and_counted(clock: list[float]) -> None:
    limit = Limit()
    assert [limit.filter(record("etcd is away")) for _ in range(REPEATS + 3)] == [True] * REPEATS + [False] * 3
    assert limit.filter(record("another message"))
    clock[0] += WINDOW
    again = record("etcd is away")
    assert limit.filter(again)
    assert again.getMessage() == "etcd is away (3 like it were left out)"
    later = record("etcd is away")
    assert limit.filter(later)
    assert later.getMessage() == "etcd is away"


def test_one_place_is_limited_whatever_it_says(clock: list[float]) -> None:
    limit = Limit()
    passed = [limit.filter(record(f"peer {n} is gone")) for n in range(5000)]
    assert sum(passed) == BURST
    assert limit.filter(record("peer 1 is gone", line=2))


def test_what_is_critical_always_passes(clock: list[float]) -> None:
    limit = Limit()
    assert all(limit.filter(record("the disk is full", level=logging.CRITICAL)) for _ in range(REPEATS * 3))


def test_the_limits_memory_is_bounded(clock: list[float]) -> None:
    limit = Limit()
    for n in range(log.MAX_MESSAGES * 3):
        limit.filter(record(f"message {n}"))
    assert len(limit._messages) <= log.MAX_MESSAGES


def test_asyncio_and_grpc_are_kept_quiet() -> None:
    setup("debug", stream=sys.stderr, environ={})
    assert logging.getLogger("asyncio").level == logging.WARNING
    assert logging.getLogger("grpc").level == logging.WARNING
