"""The targets that .ci/run adds to its tests: which run, which end it, and that each says what became of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINE = "===== 2 passed, 3 deselected in 61.00s (0:01:01) ====="


@pytest.fixture
def slower(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("slower", ROOT / ".ci" / "slower.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "slower", module)
    spec.loader.exec_module(module)
    return module


def names(slower: ModuleType, *changed: str) -> set[str]:
    return {target.name for target in slower.TARGETS if slower.wanted(target, changed)}


def test_what_changed_decides_what_runs(slower: ModuleType) -> None:
    assert names(slower) == set()
    assert names(slower, "docs/index.md", "README.md", "tests/unit/test_wire.py") == set()
    for path in (
        "vagrant/topology.json",
        "scripts/vm-box",
        "tests/hosts/test_vagrant.py",
        "tests/hosts/vagrant-first",
    ):
        assert names(slower, path) == {"test-vagrant"}
    for path in ("tests/hosts/test_vms_bgp.py", "tests/support/vmlab.py"):
        assert names(slower, path) == {"test-vms"}
    for path in (
        "packaging/deb/postinst",
        "netagent/agent.py",
        "backends/ipip.py",
        "bgp/fsm.py",
        "bfd/session.py",
        "uv.lock",
    ):
        assert names(slower, "docs/index.md", path) == {"test-vagrant", "test-vms"}
    assert names(slower, "tests/bench/bgp.py") == {"bench-bgp"}
    # All of the path is compared.
    assert names(slower, "netagent.md", "docs/vagrant/x", "uv.lock.bak") == set()
    assert {target.name for target in slower.TARGETS if slower.wanted(target, None)} == {"test-vagrant", "test-vms"}


def test_the_paths_exist_and_the_targets_too(slower: ModuleType) -> None:
    rules = (ROOT / "Makefile").read_text()
    for target in slower.TARGETS:
        assert re.search(rf"^{target.name}:", rules, re.MULTILINE)
        assert [path for path in target.paths if not list(ROOT.glob(path))] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [name for name in shipped if f"{name}/*" not in slower.PRODUCT] == []


def test_what_would_not_be_done_in_time_is_not_begun(slower: ModuleType) -> None:
    target = slower.Target("some", (), seconds=600)
    assert slower.too_late(target, spent=300, now=300) == ""
    assert slower.too_late(target, spent=600, now=slower.STOP - 600) == ""
    assert "about 10 " in slower.too_late(target, spent=600, now=slower.STOP - 599)
    # The tests took twice the time, and so will this.
    twice = 2 * slower.USUAL
    assert slower.too_late(target, twice, now=slower.STOP - 1200) == ""
    assert "about 20 " in slower.too_late(target, twice, now=slower.STOP - 1199)


def test_on_a_quiet_machine_every_test_has_its_time(slower: ModuleType) -> None:
    now = slower.USUAL
    for target in slower.TARGETS:
        assert target.benchmark or slower.too_late(target, slower.USUAL, now) == ""
        now += target.seconds


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        "1 failed, 2 passed, 1 warning in 0.40s",
        "===== 1 error in 1.20s =====",
        "===== no tests ran in 0.01s =====",
    ],
)
def test_the_closing_line_is_pytests_own(slower: ModuleType, line: str) -> None:
    text = f"collected 5 items\n2 passed so far, in 3 s\n{line}\nmade 3 tables in 2.00s of time\n"
    assert slower.closing_line(text) == line
    assert slower.closing_line(text.replace(line, "")) == ""


# ---------------------------------------------------------------------------------------------------- in git


def git(where: Path, *words: str) -> str:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = [word for role in ("user.name=a", "user.email=a@localhost") for word in ("-c", role)]
    done = subprocess.run(
        ["git", *who, *words], cwd=where, env={**os.environ, **own}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(where: Path, name: str) -> str:
    (where / name).write_text(name)
    git(where, "add", name)
    git(where, "commit", "-q", "-m", name)
    return git(where, "rev-parse", "HEAD")


@pytest.fixture
def clone(tmp_path: Path, slower: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of a repository with one commit, and .ci/run in it."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    commit(origin, "first")
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    monkeypatch.setattr(slower, "ROOT", clone)
    monkeypatch.delenv("CI_BASE", raising=False)
    return clone


def test_a_branch_is_compared_with_where_it_left_main(clone: Path, slower: ModuleType, tmp_path: Path) -> None:
    git(clone, "checkout", "-q", "-b", "work")
    commit(clone, "second")
    commit(clone, "third file")
    commit(tmp_path / "origin", "of others")
    git(clone, "fetch", "-q")
    changed, base = slower.changed_files()
    assert sorted(changed) == ["second", "third file"]
    assert base.startswith("origin/")


def test_the_base_that_is_given_counts(clone: Path, slower: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    second = commit(clone, "second")
    commit(clone, "third")
    monkeypatch.setenv("CI_BASE", second)
    assert slower.changed_files()[0] == ["third"]
    monkeypatch.setenv("CI_BASE", "HEAD")
    assert slower.changed_files()[0] == []
    monkeypatch.setenv("CI_BASE", "no-such-commit")
    changed, why = slower.changed_files()
    assert changed is None
    assert "no-such-commit" in why


def test_where_nobody_knows_everything_counts_as_changed(clone: Path, slower: ModuleType, tmp_path: Path) -> None:
    """main itself, a shallow clone that has no commit in common with main, an archive without git."""
    assert slower.changed_files()[0] is None
    commit(tmp_path / "origin", "second")
    commit(tmp_path / "origin", "third")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{tmp_path}/origin", str(shallow))
    slower.ROOT = shallow
    assert slower.changed_files()[0] is None
    (tmp_path / "archive").mkdir()
    slower.ROOT = tmp_path / "archive"
    assert slower.changed_files()[0] is None


# ---------------------------------------------------------------------------------------------------- at work


@pytest.fixture
def at_work(
    clone: Path, slower: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Any:
    """Runs main() with targets whose commands are given; their exit code and what was printed."""

    def run(*recipes: tuple[str, str], ago: float = 300, stop: float = 2520, **fields: Any) -> tuple[int, list[str]]:
        rules = "".join(f"{name}:\n\t@{recipe}\n" for name, recipe in recipes)
        (clone / "Makefile").write_text(rules)
        targets = [slower.Target(name, ("netagent/*",), seconds=1, memory=0, disk=0, **fields) for name, _ in recipes]
        monkeypatch.setattr(slower, "TARGETS", targets)
        monkeypatch.setattr(slower, "STOP", stop)
        monkeypatch.setattr(sys, "argv", ["slower.py", str(time.time() - ago), "== 9 passed in 9.00s =="])
        code = slower.main()
        return code, capfd.readouterr().out.splitlines()

    return run


def test_all_that_passed_is_told_and_the_last_line_is_that_of_the_tests(at_work: Any) -> None:
    code, lines = at_work(("one", f"echo '{LINE}'"), ("two", "echo done"))
    assert code == 0
    assert lines[-3:-1] == [
        "  one: passed in 0 minutes; 2 passed, 3 deselected in 61.00s (0:01:01)",
        "  two: passed in 0 minutes; no tests in it",
    ]
    assert lines[-1] == "== 9 passed in 9.00s =="


def test_one_that_fails_ends_the_run_with_its_own_line(at_work: Any) -> None:
    failed = "== 1 failed in 3.00s =="
    code, lines = at_work(("one", f"echo '{failed}'; exit 1"), ("two", "echo never"))
    assert code == 2  # make's
    assert "never" not in lines
    assert lines[-2] == "  one: FAILED after 0 minutes (exit code 2)"
    assert lines[-1] == failed


def test_a_benchmark_fails_nobody(at_work: Any, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_BASE", "HEAD~1")
    (clone / "netagent").mkdir()
    commit(clone, "netagent/agent.py")
    code, lines = at_work(("one", "exit 1"), ("two", "echo on"), benchmark=True)
    assert code == 0
    assert "on" in lines
    assert lines[-3].startswith("  one: exit code 2 after 0 minutes")
    assert lines[-1] == "== 9 passed in 9.00s =="


def test_one_that_is_cut_off_is_no_failure_and_leaves_nothing(
    at_work: Any, clone: Path, slower: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slower, "GRACE", 2.0)
    # Neither it nor what it began listens to a polite word.
    stubborn = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$$$ >pid; sleep 600' & wait; sleep 600"
    code, lines = at_work(("one", stubborn), ago=0, stop=3)
    assert code == 0
    assert "CUT OFF" in lines[-2]
    assert lines[-1] == "== 9 passed in 9.00s =="
    pid = int((clone / "pid").read_text())
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, "what it began still runs"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_time_and_machine_are_reasons_not_to_run(
    at_work: Any, slower: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, lines = at_work(("one", "echo never"), ago=2519)
    assert code == 0
    assert "never" not in lines
    assert "NOT RUN for lack of time" in lines[-2]
    monkeypatch.setattr(slower.os, "geteuid", lambda: 1000)
    code, lines = at_work(("one", "echo never"), machines=True)
    assert code == 0
    assert lines[-2] == "  one: NOT RUN, this machine cannot: virtual machines need root here"


def test_what_did_not_change_is_not_run(at_work: Any, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_BASE", "HEAD")
    code, lines = at_work(("one", "echo never"))
    assert code == 0
    assert lines[-2] == "  one: not needed, none of its files is known to have changed"


def test_a_machine_that_is_too_small_is_told_so(slower: ModuleType) -> None:
    target = slower.Target("some", (), seconds=1, memory=1 << 30, disk=0)
    assert "MiB of memory" in slower.lacks(target)
    assert "on the disk" in slower.lacks(target._replace(disk=1 << 40))
