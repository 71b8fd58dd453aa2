"""The command line when something is in the way: no root, no right to ask, a reader that leaves, a word misspelt."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from netagent.__main__ import main
from netagent.cli import COMMANDS
from netagent.lab.lab import Lab
from netagent.model import Finding
from tests.support.views import HEALTHY, View, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, asking the agent in tmp_path: exit code, stdout, stderr."""
    monkeypatch.setenv("NETAGENT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("NETAGENT_STATE_DIR", str(tmp_path / "state"))

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def script(*words: str, before: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own; `before` is a command that starts it."""
    command = [*before, sys.executable, "-m", "netagent", *words]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, env=os.environ | environ)


# --------------------------------------------------------------------------------------------- no right to it


@pytest.mark.parametrize("words", [("cleanup", "--yes"), ("run",)])
def test_without_the_right_to_the_network(words: tuple[str, ...], tmp_path: Path) -> None:
    """A state directory of one's own is not enough."""
    powerless = ("setpriv", "--bounding-set=-net_admin,-net_raw") if os.geteuid() == 0 else ()
    if powerless and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux)")
    environ = {"NETAGENT_STATE_DIR": str(tmp_path / "state"), "NETAGENT_RUN_DIR": str(tmp_path / "run")}
    done = script(*words, before=powerless, **environ)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert "Traceback" not in said
    assert "the network of this host may not be changed: Operation not permitted. Run it as root" in said


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environ = {"NETAGENT_STATE_DIR": str(tmp_path / "state"), "NETAGENT_RUN_DIR": str(tmp_path / "file" / "run")}
    done = script("run", **environ)
    said = done.stderr.decode()
    assert done.returncode == 2
    assert f"{tmp_path}/file/run: the run directory cannot be used: Not a directory" in said
    assert "Traceback" not in said


def test_what_the_system_refuses_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_args: object) -> int:
        raise PermissionError(13, "Permission denied", "/etc/netagent/x")

    monkeypatch.setattr("netagent.cli.version.run", fail)
    code, out, err = run("version")
    assert (code, out) == (1, "")
    assert err == "netagent: error: /etc/netagent/x: Permission denied. NETAGENT_DEBUG=1 shows where\n"
    monkeypatch.setenv("NETAGENT_DEBUG", "1")
    with pytest.raises(PermissionError):
        run("version")


class _Forbidden(socket.socket):
    def connect(self, _address: object) -> None:
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    "words", [("status",), ("status", "--json"), ("status", "--wait", "60"), ("status", "--watch"), ("peers",)]
)
def test_an_agent_that_may_not_be_asked(
    words: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not down, nobody waits for it, and the way in is told."""
    monkeypatch.setattr(socket, "socket", _Forbidden)
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("waits"))
    (tmp_path / "netagent.sock").touch()
    monkeypatch.setattr(Path, "group", lambda _path: "netagent")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "this user may not ask the agent" in err
    assert "Run it as root, or as a member of the group netagent (`adduser USER netagent`" in err


def test_an_agent_that_only_root_may_ask(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", _Forbidden)
    monkeypatch.setattr(Path, "group", lambda _path: "root")
    assert "Run it as root; socket_group in netagent.toml lets a group ask" in run("status")[2]


def test_a_socket_that_cannot_be_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("peers", "--socket", str(tmp_path / "file" / "netagent.sock"))
    assert code == 2
    assert "no agent answers. Correct --run-dir or --socket: Not a directory" in err
    code, _, err = run("peers", "--socket", "/" + "x" * 200)
    assert code == 2
    assert "path too long. Give a shorter --run-dir or --socket" in err


# ------------------------------------------------------------------------------------------- wrong words


@pytest.mark.parametrize("words", [(), ("lease",), ("bgp",), ("config",), ("lab",)])
def test_a_command_without_its_word_shows_the_help(words: tuple[str, ...], run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"usage: {' '.join(('netagent', *words))} ")
    shown = (
        COMMANDS
        if not words
        else {"lease": ("list",), "bgp": ("peers",), "config": ("check",), "lab": ("up",)}[words[0]]
    )
    assert set(shown) <= set(err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stats",), "netagent: error: there is no command 'stats'; did you mean status?"),
        (("lease", "lst"), "netagent lease: error: there is no command 'lst'; did you mean list?"),
        (("status", "--jsn"), "netagent status: error: there is no option --jsn here; did you mean --json?"),
        (("run", "--etcd-endpoint=http://x"), "netagent run: error: there is no option --etcd-endpoint here; did"),
        (("--json", "status"), "netagent: error: there is no option --json here; options stand after the command"),
        (
            ("lab", "exec", "h1", "ip", "-br", "addr"),
            "there is no option -br here; where it is CMD's, write -- before CMD",
        ),
        (("version", "7"), "netagent version: error: one word too many: 7"),
        (("peers", "--state", "upp"), "argument --state: 'upp' is none of up, unknown, down, pending, unreachable"),
        (("objects", "--state", "x"), "argument --state: 'x' is none of installed, pending, failing"),
        (
            ("run", "--log-level", "warn"),
            "argument --log-level: 'warn' is none of debug, info, warning, error; did you",
        ),
        (("objects", "--kind", "routes"), "argument --kind: 'routes' is none of sysctl, link"),
    ],
)
def test_a_misspelt_word(words: tuple[str, ...], said: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err


def test_help_may_be_asked_for_by_its_word(run: Run) -> None:
    assert run("help") == run("--help")
    assert run("help", "lease", "list") == run("lease", "list", "--help")
    assert run("help")[0] == 0


# ------------------------------------------------------------------------------------------------- output


def test_help_to_a_reader_that_went_away() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "netagent", "--help"]
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_verdict_survives_a_reader_that_goes_away(tmp_path: Path) -> None:
    """`netagent status | head -1` in a script with pipefail."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "netagent", "status", "--run-dir", str(tmp_path)]
    environ = os.environ | {"PYTHONUNBUFFERED": ""}
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False, env=environ)
    assert (done.returncode, done.stderr) == (2, b"")


def test_a_full_disk_is_told_in_one_line() -> None:
    command = [sys.executable, "-m", "netagent", "version"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("netagent: error: No space left on device")
    assert done.stderr.count(b"\n") == 1


def test_without_standard_output() -> None:
    done = script("version", before=("sh", "-c", 'exec "$@" >&-', "sh"))
    assert b"Traceback" not in done.stderr


def test_letters_that_the_terminal_does_not_have(tmp_path: Path) -> None:
    finding = Finding(code="x", subject="h\u00f6st", message="l\u00f6st \u2192")
    view = View(msgspec.structs.replace(HEALTHY, findings=(finding,)))
    with serving(view, tmp_path):
        text = script("status", "--run-dir", str(tmp_path), PYTHONIOENCODING="ascii")
        document = script("status", "--json", "--run-dir", str(tmp_path), PYTHONIOENCODING="ascii")
    assert (text.returncode, text.stderr) == (0, b"")
    assert b"l\\xf6st" in text.stdout
    assert json.loads(document.stdout)["findings"][0]["subject"] == "h\u00f6st"


def test_end_of_input_is_no_answer(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-D at the question of cleanup."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def end(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    code, _, err = run("cleanup")
    assert code == 1
    assert err.endswith("netagent: error: nothing was removed\n")


# --------------------------------------------------------------------------------------------------- lab


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "vxlam"), "--backend: Backend.Type: there is no backend 'vxlam'. Known types: bgp, host-gw"),
        (("--backend", '{"Type": "vxlan", "VNI": "x"}'), "--backend: Backend.VNI: 'x' is not a whole number"),
        (("--backend", '{"VNI": 7}'), "--backend: Backend has no Type"),
        (("--backend", '{"Typ'), "--backend: not valid JSON"),
        (("--nodes", "0"), "argument --nodes: '0' is not a number from 1 to 200"),
        (("--nodes", "500"), "argument --nodes: '500' is not a number from 1 to 200"),
        (("--topology", "ring"), "argument --topology: 'ring' is none of flat, racks"),
        (("--no-ipv4",), "--no-ipv4 leaves no family. Add --ipv6"),
        (("--name", "a/b"), "'a/b' is no name for a lab"),
    ],
)
def test_a_lab_that_cannot_be_is_not_begun(
    words: tuple[str, ...], said: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETAGENT_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setattr("netagent.lab.lab.Lab.up", lambda *_, **__: pytest.fail("a lab is made"))
    code, out, err = run("lab", "up", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert not list((tmp_path / "labs").glob("*"))


def test_how_long_a_lab_waits_for_replies(run: Run) -> None:
    for text in ("-1", "x", "nan", "1e9"):
        code, _, err = run("lab", "ping", f"--timeout={text}")
        assert code == 2
        assert f"argument --timeout: '{text}' is no number of seconds" in err


async def test_what_a_lab_waits_for_is_told_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    lab = Lab(nodes=1, progress=told.append)
    missing = iter(["a"] * 5 + ["b"] * 5 + [""])
    clock = itertools.count(step=0.7)
    monkeypatch.setattr("netagent.lab.lab.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("netagent.lab.lab.POLL", 0)

    async def look() -> str:
        return next(missing)

    await lab.until(look, "it", 60)
    assert told == ["waiting for it (a)", "waiting for it (b)"]
