"""The labs of this user, by name: where they lie, which are up, which are remains of a crash.

Rule: a lab's directory is found by its name alone, so that another terminal finds it and a crash leaves nothing that
`down` does not find. The place is private to the user: /tmp/netagent-lab-<uid>, or $NETAGENT_LAB_DIR.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from netagent.errors import UsageError
from netagent.lab.lab import Lab, State, load
from netagent.lab.space import LabError, Space

DEFAULT = "lab"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}")


class Entry(msgspec.Struct, frozen=True):
    """One lab. `state` is "up", or "remains": its processes and namespaces are gone, its files are left."""

    name: str
    state: str
    directory: str
    nodes: int = 0
    backend: str = ""
    kind: str = ""


def home() -> Path:
    """The folder of all labs of this user, made if need be. LabError if somebody else owns it."""
    given = os.environ.get("NETAGENT_LAB_DIR")
    path = Path(given) if given else Path("/tmp") / f"netagent-lab-{os.geteuid()}"  # noqa: S108 (checked below)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if path.is_symlink() or found.st_uid != os.geteuid():
        raise LabError(
            "another user owns this folder", where=str(path), remedy="Set NETAGENT_LAB_DIR to a folder of your own"
        )
    path = path.resolve()
    if path.is_relative_to("/run"):
        raise LabError(
            "/run is private inside a lab", where=str(path), remedy="Set NETAGENT_LAB_DIR to another place"
        )
    path.chmod(0o700)
    return path


def directory(name: str) -> Path:
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a lab", remedy="Use letters, digits and dashes")
    return home() / name


@contextlib.contextmanager
def making(name: str) -> Iterator[Path]:
    """The empty directory for a new lab; remains of an earlier one are cleared away. LabError if one is up, or if
    another process is inside this context for the same name. Left by an exception, it leaves no directory."""
    path = directory(name)
    lock = os.open(path.with_name(f".{name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"the lab {name!r} is being made by another process", remedy="Give another --name"
            ) from None
        if _state(path) == "up":
            more = suffix(name)
            raise LabError(
                f"the lab {name!r} is up already",
                remedy=f"`netagent lab status{more}` shows it, `netagent lab down{more}` ends it; or add a --name",
            )
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        try:
            yield path
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def suffix(name: str) -> str:
    """What to add to a command so that it means this lab."""
    return "" if name == DEFAULT else f" --name {name}"


def find(name: str) -> Lab:
    """The lab of that name, which must be up."""
    path = directory(name)
    if not path.exists():
        raise LabError(f"there is no lab {name!r}", remedy=f"`netagent lab up{suffix(name)}` makes it")
    return Lab.open(path)


async def end(name: str) -> bool:
    """End a lab and remove what is left of it; False if there was nothing."""
    path = directory(name)
    if not path.exists():
        return False
    if (space := Space.open(path, userns=os.geteuid() != 0)) is not None:
        await space.end()
    shutil.rmtree(path, ignore_errors=True)
    return True


def every() -> Iterator[Entry]:
    for path in sorted(home().iterdir()):
        if not path.is_dir():
            continue
        try:
            known = load(path)
        except LabError:
            yield Entry(path.name, _state(path), str(path))
            continue
        yield _entry(path, known)


def _entry(path: Path, known: State) -> Entry:
    plan = known.topology
    return Entry(path.name, _state(path), str(path), len(plan.hosts), plan.backend, plan.kind)


def _state(path: Path) -> str:
    if not path.exists():
        return "none"
    return "remains" if Space.open(path, userns=False) is None else "up"
