#!/usr/bin/env python3
"""What .ci/run does after its tests: the targets that are slower still, each when its files changed and time allows.

Rules: a target that ran and failed is a failure, and the first one ends the run. One whose files did not change, that
this machine cannot run, that was not begun or that was cut off because time is short is said to be so, and is none.
What changed is seen against $CI_BASE (a commit), or else where the branch left the remote's main; where neither tells
(a shallow clone, main itself), everything but benchmarks counts as changed. The last line printed is pytest's own
closing line. Standard library only.

    .ci/slower.py BEGUN CLOSING     seconds since 1970 at which .ci/run began; the closing line of its tests
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
STOP = 42 * 60.0  # seconds after which .ci/run stops what still runs: it has 45 minutes
USUAL = 13 * 60.0  # seconds that .ci/run takes up to here on a quiet machine with two cores
GRACE = 20.0  # seconds for a target to take down what it made
ARCHIVE = "http://deb.debian.org/debian/dists/bookworm/Release"
CLOSING = re.compile(r"(?:=+ )?(?:no tests ran|(?:\d+ [a-z]+(?:, )?)+) in [\d.]+s\b.*")


class Target(NamedTuple):
    """`make NAME`. `paths`: patterns of the files whose change makes it run, `*` is anything; `seconds`: from a fresh
    clone on a quiet machine with two cores; `memory` and `disk` in MiB; `machines`: it needs virtual ones. A
    `benchmark` runs only when its files are known to have changed, and its exit code is told and not judged.
    """

    name: str
    paths: tuple[str, ...]
    seconds: float
    memory: int = 1000
    disk: int = 500
    machines: bool = False
    benchmark: bool = False


PRODUCT = ("netagent/*", "backends/*", "bgp/*", "bfd/*", "packaging/*", "pyproject.toml", "uv.lock")
MACHINES = tuple(f"scripts/{name}" for name in ("debian-tree", "fetch-debs", "setup-vms", "vm-accel", "vm-guest"))
HOSTS = ("tests/conftest.py", "tests/hosts/conftest.py", "scripts/sandbox", "scripts/test")
TARGETS = (
    Target(
        "test-vagrant",
        (*PRODUCT, *MACHINES, "vagrant/*", "scripts/vagrant-host", "scripts/vm-box", *HOSTS, "tests/hosts/*vagrant*"),
        seconds=11 * 60,
        memory=4000,
        disk=6000,
        machines=True,
    ),
    Target(
        "test-vms",
        (*PRODUCT, *MACHINES, "scripts/vm-image", *HOSTS, "tests/hosts/test_vms*", "tests/support/*"),
        seconds=15 * 60,
        memory=3000,
        disk=5000,
        machines=True,
    ),
    Target("bench-bgp", ("tests/bench/*",), seconds=6 * 60, benchmark=True),
)


# --------------------------------------------------------------------------------------------- what is decided


def wanted(target: Target, changed: Iterable[str] | None) -> str:
    """Why a target runs: the first of its files that changed; "" if none did. None in `changed`: nobody knows."""
    if changed is None:
        return "" if target.benchmark else "nobody knows what changed"
    for path in changed:
        if any(fnmatch.fnmatchcase(path, mine) for mine in target.paths):
            return f"{path} changed"
    return ""


def too_late(target: Target, spent: float, now: float) -> str:
    """Why a target is not begun `now`, in seconds since .ci/run began; "" if it will be done in time.

    `spent` are the seconds that the tests before took: on a machine that took longer for them all takes longer.
    """
    needs = target.seconds * max(1.0, spent / USUAL)
    if now + needs <= STOP:
        return ""
    return f"{_minutes(now)} of {_minutes(STOP)} minutes are over, and it would take about {_minutes(needs)} more"


def closing_line(text: str) -> str:
    """pytest's own closing line, the last one in `text`; "" if there is none."""
    found = [line for line in text.splitlines() if CLOSING.fullmatch(line.strip())]
    return found[-1] if found else ""


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}"


# ------------------------------------------------------------------------------------------- what is looked up


def changed_files() -> tuple[list[str] | None, str]:
    """Paths that differ from the base, with what the base is; None and why where there is no base."""
    if given := os.environ.get("CI_BASE"):
        base = _git("merge-base", given, "HEAD") or _git("rev-parse", "--verify", f"{given}^{{commit}}")
        if not base:
            return None, f"CI_BASE={given} is no commit here"
        name = given
    else:
        head = _git("rev-parse", "HEAD")
        for name in ("origin/HEAD", "origin/main"):
            if (base := _git("merge-base", name, "HEAD")) and base != head:
                break
        else:
            return None, "CI_BASE is not set, and this is no branch beside the remote's main"
    listed = _git("diff", "--name-only", "-z", base, "HEAD")
    if listed is None:
        return None, f"git cannot compare with {name}"
    return [path for path in listed.split("\0") if path], f"{name} ({base[:12]})"


def _git(*words: str) -> str | None:
    """What git prints, None where it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def lacks(target: Target) -> str:
    """Why this machine cannot run a target; "" if it can."""
    if (free := shutil.disk_usage(ROOT).free >> 20) < target.disk:
        return f"it needs {target.disk} MiB on the disk, and {free} are free"
    if (available := _available()) < target.memory:
        return f"it needs {target.memory} MiB of memory, and {available} are available"
    if not target.machines:
        return ""
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: os.geteuid() == 0, "virtual machines need root here"),
        (lambda: platform.machine() == "x86_64", f"the machines are x86_64, and this is {platform.machine()}"),
        (lambda: len(os.sched_getaffinity(0)) >= 2, "emulated machines need two processors"),
        (lambda: bool(shutil.which("apt-get") and shutil.which("dpkg")), "the images are made with apt-get and dpkg"),
        (lambda: Path("/dev/loop-control").exists(), "there are no loop devices"),
        (_namespaces, "namespaces and overlay file systems cannot be made here"),
        (_archive, f"{ARCHIVE} does not answer"),
    )
    return next((reason for holds, reason in checks if not holds()), "")


def _available() -> int:
    """MiB of memory that can be had, a control group's limit included."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+)", text, re.MULTILINE)
    here = int(found[1]) >> 10 if found else 0
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            here = min(here, int(Path(name).read_text()) >> 20)
    return here


def _namespaces() -> bool:
    probe = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay overlay "
    probe += "-o lowerdir=/usr,upperdir=/mnt/u,workdir=/mnt/w /mnt/r && ip link add na-probe type bridge"
    command = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "sh", "-c", probe]
    path = f"{ROOT}/.tools/bin:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _archive() -> bool:
    for _ in range(3):
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(ARCHIVE, timeout=30) as answer,
        ):
            return bool(answer.status == 200)
    return False


# ---------------------------------------------------------------------------------------------- what is done


class Outcome(NamedTuple):
    code: int | None  # None: cut off
    closing: str


def run(target: Target, seconds: float) -> Outcome:
    """A target, with its output passed on. After `seconds` it is told to end, then made to."""
    process = subprocess.Popen(
        ["make", "--no-print-directory", target.name],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    closing = ""

    def pass_on() -> None:
        nonlocal closing
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = closing_line(line) or closing

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    cut = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        cut = True
    finally:
        _end(process)
        reader.join(GRACE)
        if process.stdout is not None and not reader.is_alive():
            process.stdout.close()
    return Outcome(None if cut else process.returncode, closing)


def _end(process: subprocess.Popen[str]) -> None:
    """The target and all it began: the namespaces of tests and machines end with their first process."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def main() -> int:
    begun, closing = float(sys.argv[1]), sys.argv[2]
    spent = time.time() - begun
    changed, base = changed_files()
    print(f"\nslower targets: {f'{len(changed)} files differ from' if changed is not None else 'all, for'} {base}")
    told, code = [], 0
    for target in TARGETS:
        now = time.time() - begun
        if not (why := wanted(target, changed)):
            told.append(f"{target.name}: not needed, none of its files is known to have changed")
        elif reason := too_late(target, spent, now):
            told.append(f"{target.name}: NOT RUN for lack of time: {reason}")
        elif reason := lacks(target):
            told.append(f"{target.name}: NOT RUN, this machine cannot: {reason}")
        else:
            print(f"\n{target.name}: {why}", flush=True)
            outcome = run(target, STOP - now)
            took = _minutes(time.time() - begun - now)
            if outcome.code is None:
                told.append(f"{target.name}: CUT OFF after {took} minutes: it did not fail, and did not pass")
            elif outcome.code and target.benchmark:
                told.append(
                    f"{target.name}: exit code {outcome.code} after {took} minutes, and a benchmark fails nobody"
                )
            elif outcome.code:
                told.append(f"{target.name}: FAILED after {took} minutes (exit code {outcome.code})")
                code, closing = outcome.code, outcome.closing or closing
                break
            else:
                told.append(
                    f"{target.name}: passed in {took} minutes; {outcome.closing.strip('= ') or 'no tests in it'}"
                )
    print("\nslower targets, what became of them:")
    for line in told:
        print(f"  {line}")
    print(closing, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
