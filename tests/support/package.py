"""The Debian package and the tree with it installed, built once for each state of the source.

Rule: what is built lies in .tools/cache, named after what it was built from; several test processes wait for the one
that builds. Nothing is installed on the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".tools" / "cache"
PACKAGES = ("netagent", "backends", "bgp", "bfd")
SOURCES = (*PACKAGES, "packaging", "pyproject.toml", "uv.lock", "README.md", "CHANGELOG.md")
LATER = "99.0.0"  # the version of the package that an upgrade goes to
BUILD_TIMEOUT = 600


def run(*command: str | Path, timeout: float = BUILD_TIMEOUT) -> str:
    """What a command prints on standard output. AssertionError with its words when it fails."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@functools.cache
def package(version: str = "", suite: str = "") -> Path:
    """The package of the source as it is now, in its own or in another version, for this release or another one."""
    kind = version or suite or "own"
    with _locked(f"package-{suite}"):
        folder = CACHE / f"deb-{_digest()}-{kind}"
        if not folder.exists():
            for old in CACHE.glob(f"deb-*-{kind}"):
                shutil.rmtree(old)
            making = CACHE / f"making-deb-{os.getpid()}"
            if suite:
                run(ROOT / "scripts/deb-in", suite, making)
            else:
                build(making, version)
            making.rename(folder)
        (found,) = folder.glob("*.deb")
        return found


def build(output: Path, version: str = "") -> Path:
    """A package built anew into a folder."""
    options = ["--version", version] if version else []
    return Path(run("/usr/bin/python3", ROOT / "packaging/deb/build.py", "--output", output, *options).strip())


@functools.cache
def image(suite: str = "") -> str:
    """Layers of a host with the package installed, as overlayfs takes them; of this release or of another."""
    return run(ROOT / "scripts/host-image", package(suite=suite), *([suite] if suite else [])).strip()


@functools.cache
def other_release() -> str:
    """The other one of the releases that the package is made for: Debian 13, or 12 where the tests run on 13."""
    return "bookworm" if "~deb13" in package().name else "trixie"


@functools.cache
def lacks_hosts() -> str:
    """Why systemd hosts, or the tools for packages, are not to be had on this machine; "" if they are."""
    if os.geteuid() != 0:
        return "systemd hosts need root"
    if not shutil.which("apt-get"):
        return "systemd hosts are made of Debian's packages, and there is no apt-get here"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun does not exist"
    probe = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay overlay "
    probe += "-o lowerdir=/usr,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    for command in (
        ["unshare", "--mount", "--pid", "--fork", "sh", "-c", probe],
        [str(ROOT / "scripts/setup-hosts")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
        if done.returncode:
            return f"no systemd hosts here: {(done.stderr or done.stdout).strip()[-300:]}"
    return "" if _cgroups() else "control groups may not be made here"


def _cgroups() -> bool:
    """Whether this process may make control groups where systemd wants them."""
    for top in ("systemd", "unified", ""):
        probe = Path("/sys/fs/cgroup") / top / f"netagent-probe-{os.getpid()}"
        if (probe.parent / "cgroup.procs").exists():
            with contextlib.suppress(OSError):
                probe.mkdir()
                probe.rmdir()
                return True
    return False


def _digest() -> str:
    sums = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                sums.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode & 0o777}\0".encode() + path.read_bytes())
    return sums.hexdigest()[:12]


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
