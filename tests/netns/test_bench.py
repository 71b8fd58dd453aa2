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


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """What takes flanneld's flags and does flanneld's work: an agent of ours, with directories of its own."""
    script = tmp_path / "flanneld"
    own = f'--config=/dev/null --state-dir="{tmp_path}/$$" --run-dir="{tmp_path}/$$"'
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m netagent run {own} "$@"\n')
    script.chmod(0o755)
    return str(script)


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


def test_flanneld_gets_a_row_of_its_own(stand_in: str) -> None:
    words = ("--rounds", "1", "--seconds", "1", "--measures", "tcp1", "--backends", "host-gw")
    rows, _ = bench("datapath", *words, flanneld=stand_in)
    assert [row["path"] for row in rows][2:] == ["host-gw", "flanneld host-gw"]


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
