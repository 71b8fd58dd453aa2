"""The command line against an agent made of values: text, JSON, exit codes, and what happens when nobody answers."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from netagent import __version__
from netagent.__main__ import main
from netagent.cli import COMMANDS, aftermath, output, report
from netagent.errors import ConfigError
from netagent.health import judged
from netagent.model import Finding
from netagent.status import BackendStatus, Failing, ObjectView, Peer, Status, Step, summary
from tests.support.views import HEALTHY, NOW, PEERS, View, altered, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def view() -> View:
    return View()


@pytest.fixture
def agent(view: View, tmp_path: Path) -> Iterator[Path]:
    """A running agent; its run directory."""
    with serving(view, tmp_path):
        yield tmp_path


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, asking the agent in tmp_path: exit code, stdout, stderr."""
    monkeypatch.setenv("NETAGENT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("NETAGENT_STATE_DIR", str(tmp_path / "state"))

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def script(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "netagent", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environ)


# ------------------------------------------------------------------------------------------ the front door


def test_help_names_every_command() -> None:
    done = script("--help")
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert re.search(rf"^    {name}\s+{re.escape(command.help)}", done.stdout, re.MULTILINE)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, netagent.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded.isdisjoint({"rich", "grpc", "aiohttp", "asyncio", "msgspec", "http.client", "prometheus_client"})


def test_version() -> None:
    assert script("--version").stdout == f"netagent {__version__}\n"


def test_version_lists_what_a_report_needs(run: Run) -> None:
    code, out, _ = run("version", "--json")
    assert code == 0
    assert {"netagent", "python", "kernel", "grpcio", "aiohttp"} <= set(json.loads(out))
    assert run("version")[1].startswith("netagent ")


@pytest.mark.parametrize("words", [(), ("fly",), ("status", "--no-such-flag"), ("status", "--wait", "soon")])
def test_wrong_usage_is_2(words: tuple[str, ...], run: Run) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2


def test_an_error_is_a_line_and_an_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_args: object) -> int:
        raise ConfigError("SubnetLen 8 is too short", where="net.json", remedy="Give one of 18 to 30")

    monkeypatch.setattr("netagent.cli.version.run", fail)
    assert run("version") == (2, "", "netagent: error: net.json: SubnetLen 8 is too short. Give one of 18 to 30\n")
    monkeypatch.setenv("NETAGENT_DEBUG", "1")
    with pytest.raises(ConfigError):
        run("version")


def test_ctrl_c_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("netagent.cli.version.run", interrupt)
    assert run("version")[0] == 130


def test_a_reader_that_goes_away_is_no_error(agent: Path, view: View) -> None:
    view.views = [ObjectView(kind="route", text=f"10.{n >> 8}.{n & 255}.0/24 dev na-vx1") for n in range(20_000)]
    command = [sys.executable, "-m", "netagent", "routes", "--run-dir", str(agent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"ROUTE")
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


# ------------------------------------------------------------------------------------------------ status


def test_status_of_a_healthy_node(agent: Path, run: Run) -> None:
    code, out, err = run("status")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "healthy: 10.5.59.0/24 over vxlan, 2 peers (2 up)"
    for words in (
        "node        h1 (01234567), netagent 0.1.0, started 60 m ago",
        "etcd        connected to http://192.168.50.2:2379 (etcd 3.4.23), prefix /coreos.com/network",
        "            revision 42, last event 30 s ago, watch proved 4 s ago",
        "network     10.5.0.0/16 in /24s, backend vxlan, revision 2",
        "lease       10.5.59.0/24, held, expires in 22 h 13 m (TTL 24 h), renewed 106 m ago",
        "interface   eth0 192.168.50.11, MTU 1500 (it holds the default route)",
        "            not chosen: eth1 10.0.2.15",
        "backend     vxlan (VNI 1), containers' MTU 1450",
        "kernel      4 of 4 objects installed, 0 failing, last whole pass 58 m ago in 12 ms",
        "            1 link, 3 route",
        "peers  2 (2 up)",
    ):
        assert words in lines
    assert re.search(r"^  h2 +10\.5\.72\.0/24 +192\.168\.50\.12 +vxlan na-vx1 +up +5 m$", out, re.MULTILINE)
    assert "\x1b" not in out


def test_options_are_shown_as_they_stand_in_etcd() -> None:
    options = {"Mesh": False, "Encapsulation": "ipip", "Reflectors": ["h1"], "Nodes": [{"Match": "*", "AS": 64512}]}
    backend = BackendStatus(type="bgp", options=options, mtu=1480)
    lines = dict(report.sections(msgspec.structs.replace(HEALTHY, backend=backend)))
    shown = 'bgp (Mesh false, Encapsulation ipip, Reflectors ["h1"], Nodes [{"Match": "*", "AS": 64512}])'
    assert lines["backend"] == f"{shown}, containers' MTU 1480"


def test_status_while_etcd_is_away(agent: Path, view: View, run: Run) -> None:
    view.unjudged = altered(
        etcd={
            "connected": False,
            "since": NOW - 180,
            "error": "connection refused",
            "source": "snapshot",
            "as_of": NOW - 900,
        },
        lease={"state": "restored", "problem": "not confirmed by etcd yet"},
    )
    code, out, _ = run("status")
    assert code == 1
    assert out.startswith(
        "degraded: etcd unreachable for 3 m (connection refused); "
        "forwarding from the snapshot of 2026-09-21 13:58:20 UTC (and 1 more)\n  also: not confirmed by etcd yet\n"
    )
    assert "etcd        unreachable for 3 m (http://192.168.50.2:2379): connection refused" in out
    assert "            records in force: a snapshot, taken 15 m ago" in out


def test_status_of_a_node_that_is_down(agent: Path, view: View, run: Run) -> None:
    view.unjudged = Status(at=NOW)
    code, out, _ = run("status")
    assert code == 2
    assert out.startswith("down: etcd has not answered yet")
    for words in (
        "network     not configured",
        "lease       none",
        "interface   none chosen",
        "backend     none yet",
    ):
        assert words in out


def test_status_shows_failures_and_findings_with_the_next_step(agent: Path, view: View, run: Run) -> None:
    failing = Failing(
        object="10.5.80.0/24 via 192.168.50.13 dev eth0",
        kind="route",
        error="File exists",
        foreign="10.5.80.0/24 via 192.168.50.1 proto static",
        since=NOW - 60,
        attempts=7,
    )
    status = altered(
        reconciler={"failing": {"route": 1}, "failures": (failing,), "drifts": 2, "last_drift": NOW - 9}
        | {"last_drift_what": "route 10.5.72.0/24 was put back"},
        network={"valid": False, "error": "no such backend"},
        lease={"reservation": True, "ttl": 0, "expires": 0.0},
        interface={"public_ip": "203.0.113.7"},
        backend={"service": {"state": "running", "drops": {"ttl": 3, "no-peer": 0}}},
    )
    view.unjudged = msgspec.structs.replace(
        status,
        findings=(
            Finding(code="rp-filter", subject="eth0", message="rp_filter is strict", severity="info"),
            Finding(
                code="firewall-drop",
                subject="ip filter FORWARD",
                message="the chain drops the network's traffic",
                severity="error",
                evidence="policy drop",
                remedy="iptables -I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT",
            ),
        ),
    )
    code, out, _ = run("status")
    assert code == 1
    for words in (
        "  route 10.5.80.0/24 via 192.168.50.13 dev eth0: File exists "
        "(in the way: 10.5.80.0/24 via 192.168.50.1 proto static), 7 tries for 60 s",
        "            repaired 2 times, last 9 s ago: route 10.5.72.0/24 was put back",
        "            a newer configuration is invalid and not in force (no such backend)",
        "lease       10.5.59.0/24, held, reserved",
        "            service running, dropped 3 (ttl)",
        "            192.168.50.11 here, 203.0.113.7 for the peers",
        "  error firewall-drop (ip filter FORWARD)\n    the chain drops the network's traffic\n"
        "    seen: policy drop\n    do:   iptables -I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT\n  info rp-filter (eth0)",
    ):
        assert words in out


def test_status_of_five_thousand_peers_stays_readable(agent: Path, view: View, run: Run) -> None:
    view.every = [Peer(node=f"n{n}", v4=f"10.{n >> 8}.{n & 255}.0/24", state="up") for n in range(4999)]
    view.every.append(Peer(node="lonely", state="unreachable", reason="not on the same segment"))
    view.unjudged = msgspec.structs.replace(HEALTHY, peers=summary(view.every))
    code, out, _ = run("status")
    assert code == 1
    assert len(out.splitlines()) < 40
    assert "1 of 5000 peers cannot be reached from here" in out
    assert "lonely" in out and "not on the same segment" in out
    assert "4999 more are not shown (--all, or `netagent peers`)" in out
    code, out, _ = run("status", "--all")
    assert len(out.splitlines()) > 5000
    assert "not shown" not in out


def test_status_as_json(agent: Path, run: Run) -> None:
    code, out, _ = run("status", "--json")
    assert code == 0
    assert msgspec.json.decode(out, type=Status) == judged(HEALTHY)


def test_names_from_elsewhere_do_not_steer_the_terminal(agent: Path, view: View, run: Run) -> None:
    view.unjudged = msgspec.structs.replace(HEALTHY, peers=summary([Peer(node="\x1b[2Jevil\n", state="up")]))
    _, out, _ = run("status")
    assert "\x1b" not in out
    assert "\N{REPLACEMENT CHARACTER}[2Jevil" in out


def test_status_without_an_agent_says_what_is_left(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "_devices", lambda: ("na-vx1",))
    monkeypatch.setattr(aftermath, "_routes", lambda: 12)
    code, out, _ = run("status")
    assert code == 2
    first, *rest = out.splitlines()
    assert first.startswith(f"down: {tmp_path}/netagent.sock: no agent answers. Is it running?")
    assert "  still in the kernel: 12 routes, devices na-vx1; traffic that uses them goes on" in rest
    assert any("no snapshot of an earlier run" in line for line in rest)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / aftermath.SNAPSHOT_NAME).write_bytes(b"{}")
    os.utime(tmp_path / "state" / aftermath.SNAPSHOT_NAME, (time.time() - 190, time.time() - 190))
    assert f"last snapshot of the cluster: 3 m ago ({tmp_path}/state/" in run("status")[1]
    code, out, _ = run("status", "--json")
    assert (code, json.loads(out)["left"]["routes"]) == (2, 12)


def test_what_cannot_be_seen_of_a_gone_agent_is_not_denied(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the state directory is closed; without `ip` no route is counted."""

    def closed(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(aftermath, "_devices", lambda: ())
    monkeypatch.setattr(aftermath, "_routes", lambda: None)
    monkeypatch.setattr(Path, "stat", closed)
    out = run("status")[1]
    assert "whether there is a snapshot of the cluster only root may see" in out
    assert "still in the kernel: routes not counted" in out


def test_devices_left_behind_are_known_by_their_alias(tmp_path: Path) -> None:
    for name, alias in (("eth0", ""), ("na-vx1", "netagent\n"), ("br0", "mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ifalias").write_text(alias)
    (tmp_path / "odd").mkdir()
    assert aftermath._devices(tmp_path) == ("na-vx1",)
    assert aftermath._devices(tmp_path / "absent") == ()


def test_wait_until_ready(agent: Path, view: View, run: Run) -> None:
    view.unjudged = altered(reconciler={"passed": False})
    threading.Timer(0.3, lambda: setattr(view, "unjudged", HEALTHY)).start()
    assert run("status", "--wait", "30")[0] == 0


def test_wait_for_an_agent_that_is_not_started_yet(view: View, tmp_path: Path, run: Run) -> None:
    done = threading.Event()

    def later() -> None:
        with serving(view, tmp_path):
            done.wait(30)

    starter = threading.Timer(0.3, later)
    starter.start()
    try:
        assert run("status", "--wait", "30")[0] == 0
    finally:
        done.set()
        starter.join()


def test_wait_gives_up(agent: Path, view: View, run: Run) -> None:
    view.unjudged = altered(reconciler={"passed": False})
    code, out, _ = run("status", "--wait", "0.2")
    assert code == 2
    assert out.startswith("down: the first pass over the peers is not done yet")


def test_watch_shows_each_change_once(agent: Path, view: View) -> None:
    command = [sys.executable, "-m", "netagent", "status", "--watch", "--json", "--run-dir", str(agent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            assert json.loads(process.stdout.readline())["verdict"]["state"] == "healthy"
            # Time passes and the watch is proved: no news. A peer goes: news.
            view.unjudged = altered(etcd={"last_proof": NOW + 5, "as_of": NOW + 5})
            view.unjudged = msgspec.structs.replace(view.unjudged, at=NOW + 6, peers=summary(PEERS[:1]))
            news = json.loads(process.stdout.readline())
            assert news["peers"]["total"] == 1
        finally:
            process.terminate()


# ------------------------------------------------------------------------------------------ other views


def test_peers(agent: Path, run: Run) -> None:
    code, out, _ = run("peers")
    assert code == 0
    title, *rows = out.splitlines()
    assert title.split() == ["NODE", "SUBNET", "ENDPOINT", "PATH", "STATE", "SINCE"]
    assert [row.split()[0] for row in rows] == ["h2", "h3"]
    assert run("peers", "10.5.80")[1].splitlines()[1].startswith("h3")
    assert run("peers", "--state", "down")[1] == "no peers that match\n"
    assert msgspec.json.decode(run("peers", "--json")[1], type=list[Peer]) == list(PEERS)


def test_routes_say_whose_they_are_and_why(agent: Path, run: Run) -> None:
    code, out, _ = run("routes")
    assert code == 0
    assert re.search(
        r"^10\.5\.72\.0/24 via 10\.5\.72\.0 dev na-vx1 onlink  peer h2  installed  subnet of h2$", out, re.M
    )
    assert run("routes", "10.9.")[1] == "none that match\n"
    assert json.loads(run("routes", "--json", "h2")[1])[0]["owner"] == "peer h2"


def test_an_address_finds_the_prefix_that_holds_it(agent: Path, run: Run) -> None:
    assert run("peers", "10.5.80.9")[1].splitlines()[1].startswith("h3")
    assert len(run("peers", "10.5.80.9")[1].splitlines()) == 2
    assert run("routes", "10.5.72.200")[1].splitlines()[1].startswith("10.5.72.0/24")
    assert run("routes", "10.9.0.1") == (0, "none that match\n", "")
    assert run("objects", "fd00::1") == (0, "none that match\n", "")


def test_objects(agent: Path, view: View, run: Run) -> None:
    view.views.append(ObjectView(kind="fdb", text="x", owner="peer h3", state="failing", error="No such device"))
    _, out, _ = run("objects")
    assert [line.split()[0] for line in out.splitlines()] == ["KIND", "link", "route", "fdb"]
    assert [line.split()[0] for line in run("objects", "--kind", "link")[1].splitlines()] == ["KIND", "link"]
    _, out, _ = run("objects", "--state", "failing")
    assert len(out.splitlines()) == 2
    assert "No such device" in out
    assert len(json.loads(run("objects", "--json")[1])) == 3


def test_plan(agent: Path, view: View, run: Run) -> None:
    assert run("plan") == (0, "nothing to do\n", "")
    assert run("plan", "--exit-code")[0] == 0
    view.steps = [
        Step(verb="add", kind="route", text="10.5.72.0/24 dev na-vx1", owner="peer h2"),
        Step(
            verb="change", kind="link", text="na-vx1 vxlan mtu 1450", was="na-vx1 vxlan mtu 1400", owner="base/vxlan"
        ),
        Step(verb="remove", kind="route", text="10.5.99.0/24 dev na-vx1"),
    ]
    code, out, _ = run("plan")
    assert code == 0
    assert out.splitlines() == [
        "+ route 10.5.72.0/24 dev na-vx1  [peer h2]",
        "~ link na-vx1 vxlan mtu 1450  (was na-vx1 vxlan mtu 1400)  [base/vxlan]",
        "- route 10.5.99.0/24 dev na-vx1",
    ]
    assert run("plan", "--exit-code")[0] == 3
    assert [step["verb"] for step in json.loads(run("plan", "--json")[1])] == ["add", "change", "remove"]


@pytest.mark.parametrize("command", ["peers", "routes", "objects", "plan"])
def test_views_without_an_agent(command: str, run: Run) -> None:
    code, out, err = run(command)
    assert (code, out) == (2, "")
    assert err.startswith("netagent: error: ")
    assert "no agent answers" in err
    assert len(err.splitlines()) == 1


def test_the_socket_can_be_named(agent: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NETAGENT_RUN_DIR")
    assert run("status", "--socket", str(agent / "netagent.sock"))[0] == 0
    assert run("status", "--run-dir", str(agent))[0] == 0


def test_the_socket_is_found_by_the_settings_file(
    agent: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NETAGENT_RUN_DIR")
    monkeypatch.setenv("NETAGENT_CONFIG", str(tmp_path / "netagent.toml"))
    (tmp_path / "netagent.toml").write_text(f'run_dir = "{agent}"\n')
    assert run("status")[0] == 0
    (tmp_path / "netagent.toml").write_text("run_dir = not TOML")
    code, out, _ = run("status")
    assert code == 2
    assert out.startswith("down: /run/netagent/netagent.sock: ")


# --------------------------------------------------------------------------------------------- terminals


def terminal(agent: Path, *words: str, **environ: str) -> str:
    """What the command prints to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "netagent", *words, "--run-dir", str(agent)]
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | environ
    with subprocess.Popen(command, stdout=theirs, env=env) as process:
        os.close(theirs)
        printed = b""
        try:
            while chunk := os.read(ours, 65536):
                printed += chunk
        except OSError:  # EIO: the other side is closed
            pass
        process.wait(60)
    os.close(ours)
    return printed.decode()


def test_colour_on_a_terminal(agent: Path) -> None:
    shown = terminal(agent, "status", COLUMNS="200")
    assert shown.startswith("\x1b[32mhealthy\x1b[0m: ")
    assert re.search(r"h2 .*\x1b\[32mup", shown)


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_on_request(agent: Path, environ: dict[str, str]) -> None:
    shown = terminal(agent, "status", COLUMNS="200", **environ)
    assert "\x1b[3" not in shown
    assert re.search(r"h2 .* up ", shown)


def test_a_narrow_terminal_loses_nothing(agent: Path) -> None:
    shown = terminal(agent, "peers", COLUMNS="60", NO_COLOR="1")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 60
    # What does not fit into its column goes on below in the same one.
    first = lines.index(next(line for line in lines if "h2" in line))
    rows = lines[first : lines.index(next(line for line in lines if "h3" in line))]
    assert len(rows) > 1
    start, end = lines[0].index("ENDPOINT"), lines[0].index("PATH")
    assert "".join(row[start:end].strip() for row in rows) == "192.168.50.12"


def test_a_table_in_a_pipe_is_plain_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "STATE"), [("x" * 500, "down")], states=1)
    assert capsys.readouterr().out.splitlines()[1] == "x" * 500 + "  down"


@pytest.mark.parametrize("text", ["x = ", "x = " + "9" * 5000, "x = " + "[" * 5000], ids=["cut", "digits", "deep"])
def test_a_settings_file_that_cannot_be_read_says_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netagent.cli.agent import setting

    (tmp_path / "netagent.toml").write_text(text)
    monkeypatch.setenv("NETAGENT_CONFIG", str(tmp_path / "netagent.toml"))
    monkeypatch.delenv("NETAGENT_RUN_DIR", raising=False)
    assert setting("run_dir") == ""
