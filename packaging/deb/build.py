#!/usr/bin/env python3
"""Builds the Debian package for the release that this runs on: `make deb`.

Rules: nothing is installed on the machine, and root is not needed. The wheels are those of uv.lock, checked against
its hashes, for Debian's own /usr/bin/python3; they go into a virtual environment under /opt/netagent, since
`netagent`, `backends`, `bgp` and `bfd` are generic names. The same commit gives the same package, octet by octet:
every time is that of the commit ($SOURCE_DATE_EPOCH), every owner is root. Byte code is made here and not on each
host, where it takes a minute of a slow machine's. Standard library only.
"""

from __future__ import annotations

import argparse
import email.parser
import email.utils
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "packaging" / "deb"
PYTHON = Path("/usr/bin/python3")
HOME = Path("opt/netagent")
MAINTAINER = "The netagent authors <netagent@localhost>"

# Nothing of these is needed at run time, and each differs from machine to machine.
TRACES = ("direct_url.json", "uv_cache.json", "REQUESTED")

# source below packaging/ -> place in the package
FILES = {
    "netagent.toml": "etc/netagent/netagent.toml",
    "netagent.service": "usr/lib/systemd/system/netagent.service",
    "systemd/group.conf": "usr/lib/systemd/system/netagent.service.d/10-group.conf",
    "systemd/sysusers.conf": "usr/lib/sysusers.d/netagent.conf",
    "systemd/tmpfiles.conf": "usr/lib/tmpfiles.d/netagent.conf",
    "systemd/10-netagent.link": "usr/lib/systemd/network/10-netagent.link",
    "systemd/10-netagent.network": "usr/lib/systemd/network/10-netagent.network",
    "NetworkManager.conf": "usr/lib/NetworkManager/conf.d/10-netagent.conf",
    "completion/netagent.bash": "usr/share/bash-completion/completions/netagent",
    "completion/_netagent": "usr/share/zsh/vendor-completions/_netagent",
    "completion/netagent.fish": "usr/share/fish/vendor_completions.d/netagent.fish",
    "deb/lintian-overrides": "usr/share/lintian/overrides/netagent",
}
COMPRESSED = {
    "packaging/man/netagent.1": "usr/share/man/man1/netagent.1.gz",
    "packaging/man/netagent.toml.5": "usr/share/man/man5/netagent.toml.5.gz",
    "CHANGELOG.md": "usr/share/doc/netagent/changelog.gz",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build netagent's Debian package for this release.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist/")
    parser.add_argument("--version", default="", help="another version than pyproject.toml's (for tests of upgrades)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="netagent-deb-") as place:
        print(build(Path(place), args.output.resolve(), args.version))


def build(place: Path, output: Path, version: str) -> Path:
    """The package, built in the empty directory `place`."""
    uv = find_uv()
    release, python = this_release()
    epoch = commit_time()
    os.environ.update(SOURCE_DATE_EPOCH=str(epoch), UV_PYTHON_DOWNLOADS="never", UV_LINK_MODE="copy")
    if Path("/etc/ssl/certs/ca-certificates.crt").exists():
        os.environ.update(UV_SYSTEM_CERTS="1", UV_NATIVE_TLS="1")
    source, tree = place / "source", place / "tree"
    copy_source(source)
    version = set_version(source, version)
    full = f"{version}-1~{release}"

    packages = tree / HOME / "lib" / f"python{python}" / "site-packages"
    fill(uv, source, place, packages)
    environment(tree, python)
    for name, target in FILES.items():
        put(tree / target, (source / "packaging" / name).read_bytes())
    for name, target in COMPRESSED.items():
        put(tree / target, gzip.compress((source / name).read_bytes(), 9, mtime=0))
    put(tree / "usr/share/doc/netagent/changelog.Debian.gz", gzip.compress(changelog(full, epoch), 9, mtime=0))
    put(tree / "usr/share/doc/netagent/copyright", copyright_file(packages).encode())
    with_group(tree / FILES["netagent.toml"])
    settle(tree, epoch)
    byte_code(tree)
    control(tree, full, python)
    settle(tree, epoch)
    architecture = run("dpkg", "--print-architecture").strip()
    package = output / f"netagent_{full}_{architecture}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "-z2", "--build", str(tree), str(package))
    return package


# ------------------------------------------------------------------------------------------- what it is built of


def find_uv() -> Path:
    found = shutil.which(ROOT / ".tools/uv/bin/uv") or shutil.which("uv")
    return Path(found) if found else die("no uv here: run `make tools` first")


def this_release() -> tuple[str, str]:
    """The release as it stands in the version ("deb12", "ubuntu24.04"), and the version of its Python ("3.11")."""
    for program in ("dpkg-deb", "dpkg"):
        if shutil.which(program) is None:
            die(f"{program} is missing: packages are built on Debian or Ubuntu")
    text = Path("/etc/os-release").read_text()
    words = {key: value.strip('"') for key, _, value in (line.partition("=") for line in text.splitlines())}
    if not PYTHON.exists():
        die(f"{PYTHON} is missing. As root: apt-get install python3")
    python = run(str(PYTHON), "-IS", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    return words["ID"].replace("debian", "deb") + words.get("VERSION_ID", ""), python


def commit_time() -> int:
    """Seconds since 1970 for every file in the package."""
    if text := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(text)
    if under_git():
        return int(run("git", "-C", str(ROOT), "log", "-1", "--format=%ct"))
    return int((ROOT / "CHANGELOG.md").stat().st_mtime)


def under_git() -> bool:
    return (ROOT / ".git").exists() and shutil.which("git") is not None


def copy_source(target: Path) -> None:
    """What git would keep, as it is now; without git, what an archive of the source holds."""
    if under_git():
        listed = run("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        names: Iterable[Path] = map(Path, filter(None, listed.split("\0")))
    else:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        tops = [*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "packaging"]
        names = (f.relative_to(ROOT) for top in tops for f in (ROOT / top).rglob("*") if "__pycache__" not in f.parts)
        names = [*names, *(Path(n) for n in ("pyproject.toml", "uv.lock", "README.md", "CHANGELOG.md", "LICENSE"))]
    for name in names:
        if name.parts[0] != "tests" and (ROOT / name).is_file():
            put(target / name, (ROOT / name).read_bytes())


def set_version(source: Path, version: str) -> str:
    """Put another version in place of the project's own, if one is given; the version."""
    project = source / "pyproject.toml"
    own = str(tomllib.loads(project.read_text())["project"]["version"])
    if not version or version == own:
        return own
    for path in (project, source / "netagent" / "__init__.py", source / "uv.lock"):
        text = path.read_text()
        pattern = rf'^((?:__version__|version) = ")({re.escape(own)})(")$'
        if path.name == "uv.lock":  # only our own entry, which the lock is checked against
            pattern = rf'(name = "netagent"\nversion = ")({re.escape(own)})(")'
        changed, count = re.subn(pattern, rf"\g<1>{version}\g<3>", text, flags=re.MULTILINE)
        if count != 1:
            die(f"{path.name} does not hold version {own} where it was expected")
        path.write_text(changed)
    return version


def fill(uv: Path, source: Path, place: Path, packages: Path) -> None:
    """The locked wheels and our own into site-packages."""
    export = (str(uv), "export", "--locked", "--quiet", "--no-header", "--no-annotate")
    locked, building = place / "locked.txt", place / "building.txt"
    run(*export, "--no-dev", "--no-emit-project", "-o", str(locked), cwd=source)
    run(*export, "--only-group", "build", "-o", str(building), cwd=source)
    wheels = place / "wheels"
    hashed = ("--require-hashes", "--build-constraints", str(building))
    run(str(uv), "build", "--quiet", "--wheel", "--python", str(PYTHON), *hashed, "-o", str(wheels), cwd=source)
    install = (str(uv), "pip", "install", "--quiet", "--python", str(PYTHON), "--target", str(packages), "--no-deps")
    run(*install, "--require-hashes", "--only-binary", ":all:", "-r", str(locked))
    run(*install, *map(str, wheels.glob("*.whl")))
    for extra in ("bin", ".lock"):
        path = packages / extra
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for info in packages.glob("*.dist-info"):
        for name in TRACES:
            (info / name).unlink(missing_ok=True)
        record = info / "RECORD"  # without what is not here any more
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if (packages / line.split(",")[0]).exists()))


def environment(tree: Path, python: str) -> None:
    """What makes a folder a virtual environment (PEP 405), and its commands."""
    home = tree / HOME
    put(home / "pyvenv.cfg", b"home = /usr/bin\ninclude-system-site-packages = false\n")
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(f"/usr/bin/python{python}")
    (home / "bin" / "python").symlink_to("python3")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        # -I: nobody's PYTHONPATH and nobody's home directory belong into a daemon of root's.
        lines = (
            f"#!/{HOME}/bin/python3 -I",
            "import sys",
            f"from {module} import {function}",
            f"sys.exit({function}())",
        )
        put(home / "bin" / name, ("\n".join(lines) + "\n").encode(), 0o755)
        link = tree / "usr/bin" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/{HOME}/bin/{name}")


def byte_code(tree: Path) -> None:
    """Every module's .pyc, held to its source by time and size; a Python with another magic number passes it over.

    The sources have their final times already. One process in one order with one hash seed, since what is marshalled
    depends on the objects that were there before.
    """
    options = ("-q", "-s", str(tree), "-p", "/", "--invalidation-mode", "timestamp")
    plain = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    # -Ss and no -I, which would not let it see the hash seed.
    run(str(PYTHON), "-Ss", "-m", "compileall", *options, str(tree / HOME / "lib"), env=plain)


# ----------------------------------------------------------------------------------------- what Debian wants of it


def with_group(path: Path) -> None:
    """The packaged settings name the group that the package makes; the service is a member of it (group.conf)."""
    text = path.read_text()
    changed = text.replace('#socket_group = ""', 'socket_group = "netagent"')
    if changed == text:
        die("netagent.toml has no line for socket_group")
    head, _, rest = changed.partition("\n")
    path.write_text(f"{head.replace('Every line is the default', 'Every commented line is the default')}\n{rest}")


def control(tree: Path, version: str, python: str) -> None:
    major, minor = map(int, python.split("."))
    size = sum(-(-f.lstat().st_size // 1024) for f in tree.rglob("*") if not f.is_dir())
    fields = (
        (HERE / "control")
        .read_text()
        .format(
            version=version,
            architecture=run("dpkg", "--print-architecture").strip(),
            maintainer=MAINTAINER,
            size=size,
            python=python,
            next=f"{major}.{minor + 1}",
        )
    )
    put(tree / "DEBIAN/control", fields.encode())
    put(tree / "DEBIAN/conffiles", b"/etc/netagent/netagent.toml\n")
    for name in ("postinst", "prerm", "postrm"):
        put(tree / "DEBIAN" / name, (HERE / name).read_bytes(), 0o755)
    files = sorted(f for f in tree.rglob("*") if f.is_file() and not f.is_symlink() and "DEBIAN" not in f.parts)
    sums = run("md5sum", *(str(f.relative_to(tree)) for f in files), cwd=tree)
    put(tree / "DEBIAN/md5sums", sums.encode())


def changelog(version: str, epoch: int) -> bytes:
    date = email.utils.formatdate(epoch)
    text = f"netagent ({version}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {MAINTAINER}  {date}\n"
    return text.encode()


def copyright_file(packages: Path) -> str:
    """Ours, and for each wheel in the package what it says of its own licence."""
    return (HERE / "copyright").read_text() + "".join(bundled(packages))


def bundled(packages: Path) -> Iterator[str]:
    for info in sorted(packages.glob("*.dist-info")):
        meta = email.parser.HeaderParser().parsestr((info / "METADATA").read_text(errors="replace"))
        name = meta["Name"]
        if name == "netagent":
            continue
        listed = (line.split(",")[0] for line in (info / "RECORD").read_text().splitlines())
        tops = sorted({path.split("/")[0] for path in listed} - {info.name})
        where = packages.relative_to(packages.parents[4])
        files = "\n ".join(f"{where}/{top}{'/*' if (packages / top).is_dir() else ''}" for top in [*tops, info.name])
        licence = meta.get("License-Expression") or first_line(meta.get("License")) or classified(meta) or "see-below"
        word = re.sub(r"[^A-Za-z0-9.+-]+", "-", licence).strip("-")
        texts = sorted(f.name for f in info.rglob("*") if re.match(r"(?i)licen[cs]e|copying|notice", f.name))
        said = f"The full text is in /{where}/{info.name} ({', '.join(texts) or 'METADATA'})."
        author = meta.get("Author") or meta.get("Author-email") or f"the authors of {name}"
        fields = f"Files: {files}", f"Copyright: {' '.join(author.split())}", f"License: {word}-of-{name}"
        yield "\n".join(("", *fields, f" {licence}. {said}", ""))


def first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def classified(meta: email.message.Message) -> str:
    found = [c.rpartition("::")[2].strip() for c in meta.get_all("Classifier", []) if c.startswith("License ::")]
    return " or ".join(found)


def settle(tree: Path, epoch: int) -> None:
    """Modes and times that do not depend on who builds."""
    for path in [*tree.rglob("*"), tree]:
        if not path.is_symlink():
            library = "site-packages" in path.parts  # where some wheels mark any file as executable
            executable = path.is_dir() or (path.stat().st_mode & 0o100 and not library)
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def put(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints; the build ends with its words if it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        die(f"{' '.join(command[:4])} failed:\n{done.stderr or done.stdout}")
    return done.stdout


def die(text: str) -> NoReturn:
    sys.exit(f"deb: {text}")


if __name__ == "__main__":
    main()
