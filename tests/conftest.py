"""What holds for the whole run: the tools' place, what this machine can do, and the machine left as it was.

Rule: a test that needs what the machine lacks is skipped with the reason; with CI=true it fails instead. When the
run ends, the network namespace it started in must be what it was, object by object; if not, the run fails.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

from netagent.lab.space import Unable
from tests.support.package import lacks_hosts

# An example may take any time: the machine is shared, and no test asserts a time.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")

# Children must not see it: what they do not know of NETAGENT_* they complain of.
SANDBOX = os.environ.pop("NETAGENT_SANDBOX", "")
# Who runs the tests in the background of a shell has Ctrl-C ignored, and all children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"


def _use_tools() -> None:
    """Put .tools first where programs are looked for, and its libraries where ctypes and children find them."""
    os.environ["PATH"] = os.pathsep.join([str(TOOLS / "bin"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if (TOOLS / "lib").is_dir():
        os.environ["LD_LIBRARY_PATH"] = str(TOOLS / "lib")
        _preload("libnftables.so.1")


def _preload(name: str) -> None:
    """Load an unpacked library and before it those it needs: the loader read LD_LIBRARY_PATH before we set it."""
    while (TOOLS / "lib" / name).exists():
        try:
            ctypes.CDLL(str(TOOLS / "lib" / name))
            return
        except OSError as error:
            missing = str(error).partition(":")[0]
            if missing == name or not (TOOLS / "lib" / missing).exists():
                return
            _preload(missing)


_use_tools()


# ------------------------------------------------------------------------------------ what the machine can do


@functools.cache
def _lacks_netns() -> str:
    if not shutil.which("ip"):
        return "ip is not installed (make tools fetches it)"
    probe = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else "no network namespaces here: run make test, or be root"


@functools.cache
def _lacks_etcd() -> str:
    found = os.environ.get("ETCD") or shutil.which("etcd")
    return "" if found else "no etcd: run make tools, or set ETCD=/path/to/etcd"


@functools.cache
def _lacks_flanneld() -> str:
    path = os.environ.get("FLANNELD", "")
    return "" if path and os.access(path, os.X_OK) else "no flanneld given: make test-flannel FLANNELD=/path"


@functools.cache
def _lacks_qemu() -> str:
    return "" if shutil.which("qemu-system-x86_64") else "no QEMU: make test-vms fetches it"


NEEDS: dict[str, Callable[[], str]] = {
    "netns": _lacks_netns,
    "etcd": _lacks_etcd,
    "nspawn": lacks_hosts,
    "flannel": _lacks_flanneld,
    "vms": _lacks_qemu,
}


def _unable(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, lacks in NEEDS.items():
        if item.get_closest_marker(marker) and (reason := lacks()):
            _unable(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A lab that this machine cannot run (udp without a TUN that one may open) is a lack like any other."""
    try:
        yield
    except Unable as error:
        _unable(str(error))


# --------------------------------------------------------------------------------------- the machine untouched


def _printed(*command: str) -> str:
    """What a command prints; "" where it is not installed or has nothing to say here."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _machine() -> Iterator[str]:
    """One line for each network object of the namespace that the run was started in; volatile fields left out."""
    for link in json.loads(_printed("ip", "-j", "address", "show") or "[]"):
        yield f"link {link['ifname']} mtu {link['mtu']} mac {link.get('address')} master {link.get('master')}"
        for address in link["addr_info"]:
            yield f"address {address.get('local')}/{address.get('prefixlen')} dev {link['ifname']}"
    for family in ("-4", "-6"):
        for line in _printed("ip", family, "route", "show", "table", "all").splitlines():
            if " expires " not in line:  # learnt from router advertisements: comes and goes by itself
                yield f"route {line.strip()}"
        for line in _printed("ip", family, "rule", "show").splitlines():
            yield f"rule {family} {line}"
    for line in _printed("ip", "nexthop", "show").splitlines():
        yield f"nexthop {line}"
    for line in _printed("nft", "--stateless", "list", "ruleset").splitlines():
        yield f"nft {line}"
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"):
        if (path := Path("/proc/sys") / name).exists():
            yield f"sysctl {name} = {path.read_text().strip()}"
    if SANDBOX:  # without it other people's namespaces come and go here
        for line in _printed("ip", "netns", "list").splitlines():
            yield f"namespace {line.split()[0]}"


class _Untouched:
    """Compares the machine at the end of the run with the machine at its start; in the one process that reports."""

    def __init__(self) -> None:
        self.before = set(_machine())
        self.differences: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        after = set(_machine())
        self.differences = [
            *(f"gone: {line}" for line in sorted(self.before - after)),
            *(f"left behind: {line}" for line in sorted(after - self.before)),
        ]
        if self.differences:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.differences:
            terminalreporter.section("the tests changed the machine's network", red=True)
            for line in self.differences:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Untouched(), "machine-untouched")
