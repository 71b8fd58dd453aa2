"""`make bench-bgp` and `make bench-bfd` run, with tiny numbers, so that they do not rot. Nothing here is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import bgpload
from tests.bench.bfd import KINDS
from tests.bench.bgp import DAEMONS
from tests.bench.bgp_fib import ROUTERS
from tests.support.routers import need_daemon

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.interop, pytest.mark.netns, pytest.mark.timeout(300)]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *words],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_every_daemon_is_measured() -> None:
    for kind in DAEMONS.values():
        for program in kind.programs:
            need_daemon(program)
    done = bench("bgp", "--routes", "40", "60", "--clients", "3", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip(" -") for line in done.stdout.splitlines() if line.startswith("|")]
    alone = ["the kernel alone, 256 metrics", "the kernel alone, one metric"]
    assert rows[2:] == [*DAEMONS, "", "", "ours", *ROUTERS, *alone]


def test_bfd_is_measured() -> None:
    """With each peer; whether a bar is met is not asked."""
    for kind in KINDS.values():
        for program in kind.programs:
            need_daemon(program)
    done = bench("bfd", "--rounds", "1", "--minutes", "0.1", "--routes", "100", "--hogs", "1")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    rows = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in done.stdout.splitlines() if "|" in line]
    assert {("ours", kind) for kind in KINDS} <= set(rows)
    assert ("bird", "ours") in rows


def test_what_is_sent_is_what_must_arrive() -> None:
    """The load's own reader, against values worked out by hand."""
    octets, expected = bgpload.routes(3)
    assert expected == {
        b"\x1a\x0a\x80\x00\x00": b"\x0a\x62\x40\x00",
        b"\x1a\x0a\x80\x00\x40": b"\x0a\x62\x40\x01",
        b"\x1a\x0a\x80\x00\x80": b"\x0a\x62\x40\x02",
    }
    keepalive = b"\xff" * 16 + b"\0\x13\x04"
    withdrawal = b"\xff" * 16 + b"\0\x1c\x02" + b"\0\5\x1a\x0a\x80\x00\x40" + b"\0\0"
    table, last = bgpload.read(octets + withdrawal + keepalive + octets[:30])
    assert set(table) == set(expected) - {b"\x1a\x0a\x80\x00\x40"}
    assert last == len(octets) + len(withdrawal)
