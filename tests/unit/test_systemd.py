"""sd_notify against a socket of our own, by path and in the abstract namespace; the unit held to its promises."""

from __future__ import annotations

import configparser
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent.systemd import Notifier

UNIT = Path(__file__).resolve().parents[2] / "packaging" / "netagent.service"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The service manager's socket, and $NOTIFY_SOCKET for it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@napi-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.settimeout(10)
        yield sock, name


def test_what_systemd_hears(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("10.5.59.0/24 over vxlan")
    assert sock.recv(4096) == b"READY=1\nSTATUS=10.5.59.0/24 over vxlan"
    notifier.status("two\nlines")
    assert sock.recv(4096) == b"STATUS=two lines"
    notifier.watchdog()
    assert sock.recv(4096) == b"WATCHDOG=1"
    notifier.reloading()
    state, _, moment = sock.recv(4096).decode().partition("\n")
    assert state == "RELOADING=1"
    assert int(moment.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.stopping()
    assert sock.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_silent_outside_systemd(address: str) -> None:
    Notifier({"NOTIFY_SOCKET": address}).ready("up")


def test_a_manager_that_went_away_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "systemd is not notified of READY=1" in caplog.text


def test_a_manager_that_does_not_listen_blocks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "deaf")})
        for _ in range(10_000):  # its queue (net.unix.max_dgram_qlen) is full long before
            notifier.watchdog()
            if caplog.records:
                break
    assert "systemd is not notified of WATCHDOG=1" in caplog.text


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval(environ: dict[str, str], interval: float | None) -> None:
    assert Notifier(environ).watchdog_interval == interval


# --------------------------------------------------------------------------------------------- the unit


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_traffic_outlives_the_agent(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["KillMode"] == "process"  # the udp engine stays
    assert service["OOMPolicy"] == "continue"  # neither does another's lack of memory end it
    assert service["RuntimeDirectoryPreserve"] == "yes"  # and its control socket


def test_the_agent_tells_when_it_is_ready_and_alive(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["Type"] in ("notify", "notify-reload")
    assert int(service["WatchdogSec"]) > 0
    assert service["RuntimeDirectory"] == service["StateDirectory"] == "netagent"
    assert unit["Unit"]["After"].split()[0] == "network-online.target"
    assert "docker.service" in unit["Unit"]["Before"].split()


def test_capabilities_are_those_that_are_needed(unit: configparser.ConfigParser) -> None:
    wanted = {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"}
    assert set(unit["Service"]["CapabilityBoundingSet"].split()) == wanted


def test_a_crash_is_always_followed_by_a_restart(unit: configparser.ConfigParser) -> None:
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "always"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    # The product and its man pages are not installed where tests run.
    text = UNIT.read_text().replace("/opt/netagent/bin/netagent", shutil.which("true") or "")
    kept = [line for line in text.splitlines() if not line.startswith("Documentation=")]
    (tmp_path / UNIT.name).write_text("\n".join(kept))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "netagent" in line]
    assert ours == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_exposure_is_at_most_3() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_hardening_leaves_what_the_agent_writes(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    # ip_forward, rp_filter and accept_ra are written under /proc/sys: ProtectKernelTunables would forbid it.
    assert service.get("ProtectKernelTunables", "no") == "no"
    assert "/dev/net/tun" in service["DeviceAllow"]
    assert service["ProtectSystem"] == "strict"
    # These give the service a /proc of its own, where a host that is a container has another boot id.
    assert not {"ProtectControlGroups", "ProtectProc", "ProcSubset", "MountAPIVFS"} & set(service)
    families = set(service["RestrictAddressFamilies"].split())
    assert {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"} <= families
