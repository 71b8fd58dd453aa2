"""The benchmarks run, with tiny numbers, so that they do not rot. Nothing here is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netagent.lab.lab import Lab
from tests.bench import byhand, report

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = "tests/support/flanneld.py"  # as a user gives it: from the project's directory
BACKENDS = ("host-gw", "vxlan", "udp")

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.slow, pytest.mark.timeout(300)]


def bench(*words: str, flanneld: str = "") -> tuple[list[dict[str, str]], str]:
    """Run a benchmark: the rows of its tables by heading, and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *words],
        cwd=ROOT,
        env={**os.environ, "FLANNELD": flanneld},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, str]] = []
    heading: list[str] = []
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heading = []
        elif not heading:
            heading = cells
        elif set(line) - set("|-"):
            rows.append(dict(zip(heading, cells, strict=True)))
    return rows, done.stdout


def test_scale() -> None:
    rows, text = bench("scale", "--leases", "20", "--rounds", "1", "--burst", "130", "--puts", "20")
    assert text.startswith("Linux ")
    assert [row["backend"] for row in rows] == [*BACKENDS, *BACKENDS]
    assert {row["leases"] for row in rows[:3]} == {"20"}
    assert all(float(row["cold s"]) > 0 and float(row["RSS MiB"]) > 0 for row in rows[:3])
    assert all(row["flanneld cold s (CPU s)"] == report.NOT_GIVEN for row in rows[:3])


def test_datapath() -> None:
    rows, text = bench("datapath", "--rounds", "1", "--seconds", "1", "--pings", "50")
    assert [row["path"] for row in rows][2:] == [*BACKENDS, "flanneld"]
    assert all("(" in cell for row in rows[:-1] for name, cell in row.items() if name != "path"), text
    assert set(rows[-1].values()) == {"flanneld", report.NOT_GIVEN}


def test_flanneld_gets_rows_and_columns_of_its_own() -> None:
    """With the stand-in for it: that the columns are filled, not what is in them."""
    words = ("--rounds", "1", "--seconds", "1", "--measures", "tcp1")
    rows, text = bench("datapath", *words, flanneld=STAND_IN)
    assert f"flanneld: {ROOT / STAND_IN}\n" in text
    assert [row["path"] for row in rows][2:] == [*BACKENDS, *(f"flanneld {backend}" for backend in BACKENDS)]
    words = ("--leases", "20", "--rounds", "1", "--burst", "20", "--puts", "20", "--backends", "host-gw", "vxlan")
    rows, _ = bench("scale", *words, flanneld=STAND_IN)
    assert all(float(row["cold to flanneld"]) > 0 for row in rows[:2])


def test_the_bar_of_udp() -> None:
    _, text = bench("udp", "--rounds", "1", "--seconds", "1", "--bar", "0")
    assert "one TCP stream" in text


def test_imports() -> None:
    rows, _ = bench("imports", "--rounds", "1")
    assert "grpc.aio" in [row["import"] for row in rows]


async def test_a_changed_offload_stops_the_data_path() -> None:
    async with Lab(nodes=2, backend="vxlan") as lab:
        await lab.ready()
        await byhand.lay(lab, byhand.TUNNEL)
        await byhand.assert_default_offloads(lab)
        await lab["h2"].exec("ethtool", "-K", "na-vx1", "tx", "off")
        with pytest.raises(AssertionError, match="h2 na-vx1"):
            await byhand.assert_default_offloads(lab)
