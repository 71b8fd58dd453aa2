"""The Debian package itself: what is in it, that two builds are one, what lintian says, and the other release."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.package import ROOT, build, other_release, package, run

pytestmark = [pytest.mark.nspawn, pytest.mark.timeout(900)]

# One of each kind; the rest follows from it.
PARTS = (
    "./etc/netagent/netagent.toml",
    "./opt/netagent/pyvenv.cfg",
    "./usr/bin/netagent",
    "./usr/lib/systemd/system/netagent.service",
    "./usr/lib/systemd/network/10-netagent.network",
    "./usr/lib/systemd/network/10-netagent.link",
    "./usr/lib/NetworkManager/conf.d/10-netagent.conf",
    "./usr/share/man/man1/netagent.1.gz",
    "./usr/share/man/man5/netagent.toml.5.gz",
    "./usr/share/bash-completion/completions/netagent",
    "./usr/share/zsh/vendor-completions/_netagent",
    "./usr/share/fish/vendor_completions.d/netagent.fish",
)


def test_what_is_in_it() -> None:
    listed = run("dpkg-deb", "--contents", package()).splitlines()
    names = [line.split()[5] for line in listed]
    assert [part for part in PARTS if part not in names] == []
    assert [name for name in names if name.endswith("direct_url.json") or "/tests/" in name] == []
    assert {line.split()[1] for line in listed} == {"root/root"}
    assert {line[5] + line[8] for line in listed if line[0] != "l"} == {"--"}  # nobody else may write
    assert run("dpkg-deb", "--info", package(), "conffiles") == "/etc/netagent/netagent.toml\n"


def test_no_host_compiles_what_it_gets(tmp_path: Path) -> None:
    """Each module has byte code that the release's Python takes: of its magic number, and of this very source."""
    run("dpkg-deb", "--extract", package(), tmp_path)
    home = tmp_path / "opt/netagent"
    tag, magic = run(
        "/usr/bin/python3",
        "-c",
        "import sys, importlib.util as u; print(sys.implementation.cache_tag, u.MAGIC_NUMBER.hex())",
    ).split()
    sources = sorted(home.rglob("*.py"))
    assert len(sources) > 500
    for source in sources:
        code = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
        stat = source.stat()
        assert code.read_bytes()[:16] == struct.pack(
            "<4sIII", bytes.fromhex(magic), 0, int(stat.st_mtime), stat.st_size
        )
    assert len(list(home.rglob("*.pyc"))) == len(sources)
    # A traceback names the file where it is on a host, and not where it was built.
    told = run(
        "/usr/bin/python3",
        "-IS",
        "-c",
        f"import marshal; c = marshal.loads(open({str(code)!r}, 'rb').read()[16:]); print(c.co_filename)",
    )
    assert told.strip() == f"/{source.relative_to(tmp_path)}"


def test_the_same_source_gives_the_same_package(tmp_path: Path) -> None:
    again = build(tmp_path)
    assert again.name == package().name
    assert again.read_bytes() == package().read_bytes()


def test_lintian_finds_no_error() -> None:
    command = [str(ROOT / ".tools/bin/lintian"), "--allow-root", "--no-cfg", "--tag-display-limit=0", str(package())]
    if not Path(command[0]).exists():
        command[0] = "lintian"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert [line for line in done.stdout.splitlines() if line.startswith("E:")] == [], done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_another_release_builds_installs_and_runs_it() -> None:
    """In a chroot of it (scripts/deb-in); test_nspawn_release.py boots it."""
    here, there = ("deb12", "deb13") if other_release() == "trixie" else ("deb13", "deb12")
    assert package(suite=other_release()).name == package().name.replace(here, there)
