"""`netagent cleanup --dry-run`: what would be done, a line each, and nothing done, whether an agent runs or not."""

from __future__ import annotations

import fcntl
import json
import socket
from pathlib import Path

import pytest

from netagent.__main__ import main
from netagent.kernel import journal
from netagent.kernel.fake import FakeHost
from netagent.kernel.journal import Journal
from netagent.model import Hop, Object, Route, Sysctl

FORWARD = "net/ipv4/ip_forward"


class Host(FakeHost):
    """A host whose kernel holds a route of ours and two settings that were written down."""

    def dump(self, *_: object, **__: object) -> list[Object]:
        return [
            Route("10.5.72.0/24", (Hop("eth0", "192.168.50.12"),)),
            Sysctl(FORWARD, "1"),
            Sysctl("net/ipv4/conf/all/rp_filter", "1"),
        ]

    def apply(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
        pytest.fail("something was changed")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    state = tmp_path / "state"
    monkeypatch.setenv("NETAGENT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("NETAGENT_STATE_DIR", str(state))
    monkeypatch.setattr("netagent.kernel.host.open_host", lambda settings: Host())
    monkeypatch.setattr(journal, "_present_epoch", lambda: "boot/1")
    return state


def test_what_would_be_done(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody else has changed rp_filter since we wrote it: that stays."""
    state.mkdir()
    written = Journal(state / "journal.json")
    written.record(f"sysctl:{FORWARD}", "0", "1")
    written.record("sysctl:net/ipv4/conf/all/rp_filter", "1", "2")
    (state / "id").write_text("x")
    run = state.parent / "run"
    run.mkdir()
    (run / "subnet.env").write_text("FLANNEL_MTU=1450\n")
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(run / "udp.sock"))
        engine.listen()
        before = sorted(state.parent.rglob("*"))
        assert main(["cleanup", "--dry-run"]) == 0
    assert sorted(state.parent.rglob("*")) == before
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "would remove route 10.5.72.0/24 via 192.168.50.12 dev eth0",
        "would put back sysctl net.ipv4.ip_forward = 1, which was 0",
        f"would end the process that answers at {run}/udp.sock",
        f"would remove {run}/subnet.env",
        f"would remove {run}/udp.sock",
    ]
    assert printed.err == ""
    assert json.loads((state / "journal.json").read_text())["entries"]
    assert main(["cleanup", "--dry-run", "--purge"]) == 0
    assert f"would remove {state}/id\n" in capsys.readouterr().out


def test_an_agent_that_runs_is_told_of_and_left_alone(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.mkdir()
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["cleanup", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("would remove route 10.5.72.0/24 ")
    assert printed.err == "an agent runs here: stop it before cleanup (`systemctl stop netagent`)\n"


def test_nobody_is_asked_while_an_agent_runs(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _prompt: pytest.fail("asks"))
    state.mkdir()
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["cleanup"]) == 2
    assert "another agent is running with this state directory. Stop it first" in capsys.readouterr().err


def test_nothing_is_made(state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "dump", lambda *_: [])
    assert main(["cleanup", "--dry-run"]) == 0
    assert capsys.readouterr().out == "nothing of netagent's is here\n"
    assert not list(state.parent.iterdir())
