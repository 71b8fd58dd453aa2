"""`python -m bgp`: two daemons in a namespace, asked and told over their sockets, reloaded, restarted, ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgp.daemon.client import ask
from bgp.daemon.errors import CommandError
from bgp.daemon.run import load
from bgp.message import nlri
from tests.support.bgp_sockets import PORT, at, home
from tests.support.netns import Namespace, Namespaces, eventually

pytestmark = pytest.mark.netns

PATIENCE = 60.0


class Daemon:
    """A daemon in a namespace, with its files in a folder."""

    def __init__(self, space: Namespace, folder: Path, number: int) -> None:
        self.space, self.number = space, number
        self.address = nlri.address_text(at(number))
        self.config = folder / f"{number}.toml"
        self.control = folder / f"{number}.sock"
        self.state = folder / f"{number}.state"
        self.errors = folder / f"{number}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, rest: str, *, state: bool = False, **options: Any) -> None:
        lines = {"asn": 65001, "port": PORT, **options}
        self.config.write_text(
            f'[speaker]\nrouter-id = "{self.address}"\naddresses = ["{self.address}"]\nlisten = ["{self.address}"]\n'
            + f'control = "{self.control}"\n'
            + (f'state = "{self.state}"\n' if state else "")
            + "".join(f"{key.replace('_', '-')} = {json.dumps(value)}\n" for key, value in lines.items())
            + rest
        )

    def start(self) -> None:
        with self.errors.open("ab") as log:
            argv = [sys.executable, "-m", "bgp", "run", "--config", str(self.config)]
            self.process = self.space.call(subprocess.Popen, argv, stderr=log)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.process = None
        return code

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "bgp", *words]
        environment = {**os.environ, "BGP_CONTROL": str(self.control)}
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)

    def ask(self, *words: str) -> list[Any]:
        """The items of an answer; none while nobody answers."""
        command, *rest = words
        try:
            return list(ask(str(self.control), {"command": command, **({"peer": rest[0]} if rest else {})}))
        except CommandError:
            return []

    def told(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def prefixes(self) -> set[str]:
        return {item["prefix"] for item in self.ask("routes")}

    def flaps(self) -> list[int]:
        return [peer["flaps"] for peer in self.ask("peers")]

    def established(self) -> bool:
        return [peer["state"] for peer in self.ask("peers")] == ["established"]


def peer(number: int, more: str = "") -> str:
    address = nlri.address_text(at(number))
    return (
        f'[[peers]]\nname = "n{number}"\naddress = "{address}"\nasn = 65001\nport = {PORT}\nconnect-retry = 1\n'
        f"hold-time = 9\n{more}\n"
    )


def announce(*prefixes: str) -> str:
    return f"[[announce]]\nprefixes = {json.dumps(prefixes)}\n"


@pytest.fixture
def pair(namespaces: Namespaces, tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    space = home(namespaces, (1, 2))
    daemons = [Daemon(space, tmp_path, number) for number in (1, 2)]
    yield daemons[0], daemons[1]
    for daemon in daemons:
        if daemon.process is not None:
            daemon.end(signal.SIGKILL)


def local(number: int) -> str:
    return f'local-address = "{nlri.address_text(at(number))}"'


async def up(one: Daemon, two: Daemon) -> None:
    one.configure(announce("10.1.0.0/24") + peer(2, local(1)))
    two.configure(announce("10.2.0.0/24") + peer(1, local(2)))
    one.start()
    two.start()
    await eventually(lambda: two.prefixes() == {"10.1.0.0/24", "10.2.0.0/24"}, timeout=PATIENCE)


async def test_what_can_be_asked(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair
    await up(one, two)
    assert one.control.stat().st_mode & 0o777 == 0o600
    text = two.told("peers")
    assert "n1" in text
    assert "established" in text
    assert "router_id: 10.77.0.1" in two.told("peers", "n1")
    assert "* from n1: via 10.77.0.1 local-pref 100 origin IGP" in two.told("routes", "10.1.0.9").replace(
        "origin IGP local-pref 100", "local-pref 100 origin IGP"
    )
    assert "* 10.1.0.0/24" in two.told("received", "n1")
    assert "10.2.0.0/24" in two.told("advertised", "10.77.0.1")
    assert "received OPEN asn=65001" in two.told("log", "n1")
    assert 'bgp_peer_up{peer="n1"} 1' in two.told("metrics")
    assert "established: 1" in two.told("summary")
    two.told("refresh-peer", "n1")
    await eventually(lambda: "sent ROUTE_REFRESH" in two.told("log", "n1"), timeout=PATIENCE)


async def test_what_can_be_done_to_a_session(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair
    await up(one, two)
    one.told("shutdown-peer", "n2", "--text", "new cable")
    await eventually(lambda: two.prefixes() == {"10.2.0.0/24"}, timeout=PATIENCE)
    assert "new cable" in two.told("log", "n1")
    assert "shut down here" in one.told("peers") or "new cable" in one.told("peers")
    one.told("start-peer", "n2")
    await eventually(lambda: two.prefixes() == {"10.1.0.0/24", "10.2.0.0/24"}, timeout=PATIENCE)
    one.told("reset-peer", "n2", "--text", "once more")
    await eventually(lambda: "once more" in two.told("log", "n1") and two.established(), timeout=PATIENCE)


async def test_a_reload_changes_what_changed_and_no_more(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair
    await up(one, two)
    policy = '[policies.none]\ndefault = "reject"\n'
    one.configure(announce("10.1.1.0/24", "10.1.2.0/24") + peer(2, local(1) + '\nimport = "none"') + policy)
    assert one.process is not None
    one.process.send_signal(signal.SIGHUP)
    await eventually(
        lambda: (
            two.prefixes() == {"10.1.1.0/24", "10.1.2.0/24", "10.2.0.0/24"}
            and [item.get("rejected") for item in one.ask("received", "n2")] == ["rejected by the import policy"]
        ),
        timeout=PATIENCE,
    )
    assert two.flaps() == [0]
    # What is wrong is said, and nothing changes.
    good = one.config.read_text()
    one.config.write_text(good.replace("hold-time = 9", "hold-time = 1"))
    done = one.run("reload")
    assert done.returncode == 1
    assert "peers[1].hold-time = 1: must be 0" in done.stderr
    one.config.write_text(good.replace(f"port = {PORT}", "port = 1791", 1))
    assert "restart the daemon" in one.run("reload").stderr
    one.config.write_text(good.replace("asn = 65001", "asn = 65002", 1))
    assert "restart the daemon" in one.run("reload").stderr
    assert two.established()
    # Another hold time is another session.
    one.config.write_text(good.replace("hold-time = 9", "hold-time = 12"))
    one.told("reload")
    await eventually(
        lambda: [item["flaps"] for item in two.ask("peers")] == [1] and two.established(), timeout=PATIENCE
    )
    assert "other configuration change" in two.told("log", "n1")


async def test_another_password_on_one_side_and_then_on_the_other_costs_no_route(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair

    def configure(daemon: Daemon, other: int, password: str) -> None:
        here = f'{local(daemon.number)}\npassword = "{password}"'
        daemon.configure(announce(f"10.{daemon.number}.0.0/24") + peer(other, here))

    configure(one, 2, "old")
    configure(two, 1, "old")
    one.start()
    two.start()
    both = {"10.1.0.0/24", "10.2.0.0/24"}
    await eventually(lambda: one.prefixes() == two.prefixes() == both, timeout=PATIENCE)

    def kept(when: Callable[[], bool]) -> bool:
        assert one.prefixes() == two.prefixes() == both
        return when()

    configure(one, 2, "new")
    one.told("reload")
    await eventually(lambda: kept(lambda: two.flaps() == [1] and not one.established()), timeout=PATIENCE)
    configure(two, 1, "new")
    two.told("reload")
    await eventually(lambda: kept(lambda: one.established() and two.established()), timeout=PATIENCE)
    assert one.flaps() == two.flaps() == [1]


async def test_it_says_goodbye_when_it_is_ended(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair
    await up(one, two)
    assert one.end() == 0
    assert not one.control.exists()
    await eventually(lambda: two.prefixes() == {"10.2.0.0/24"}, timeout=PATIENCE)
    assert "the daemon was stopped" in two.told("log", "n1")
    assert b"Traceback" not in one.errors.read_bytes() + two.errors.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_with_a_state_file_a_restart_loses_no_route(pair: tuple[Daemon, Daemon], how: signal.Signals) -> None:
    one, two = pair
    one.configure(announce("10.1.0.0/24") + peer(2, local(1)), state=True)
    two.configure(announce("10.2.0.0/24") + peer(1, local(2)))
    one.start()
    two.start()
    both = {"10.1.0.0/24", "10.2.0.0/24"}
    await eventually(lambda: two.prefixes() == both, timeout=PATIENCE)
    await eventually(lambda: one.state.exists() and "n2" in one.state.read_text(), timeout=PATIENCE)
    one.end(how)
    await eventually(lambda: two.flaps() == [1], timeout=PATIENCE)
    assert two.prefixes() == both
    one.start()
    await eventually(lambda: two.established() and one.prefixes() == both, timeout=PATIENCE)
    assert two.prefixes() == both
    (shown,) = two.ask("peers")
    assert shown["capabilities"]["received"]["graceful_restart"]["restarting"] is True
    assert shown["prefixes"]["ipv4"]["stale"] == 0


def test_the_example_of_the_documentation_is_right(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/bgp/operating.md").read_text()
    script = page.split("```\n")[1].partition("python -m bgp run")[0]
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True, timeout=60)
    for name, asn in (("one", 65001), ("two", 65002)):
        config = load(str(tmp_path / f"{name}.toml"))
        assert config.speaker.asn == asn
        assert [peer.asn for peer in config.peers] == [65001 + 65002 - asn]
    reference = (Path(__file__).resolve().parents[2] / "docs/bgp/configuration.md").read_text()
    (tmp_path / "tor.key").write_text("secret\n")
    (tmp_path / "speaker.toml").write_text(reference.split("```toml\n")[1].partition("```")[0])
    assert load(str(tmp_path / "speaker.toml")).peers[0].transport.password == b"secret"


def test_what_is_wrong_at_the_start_is_one_line(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    one, _ = pair
    one.configure(announce("10.1.0.0/24"))
    assert "is right: AS 65001, 0 peers" in one.told("check", "--config", str(one.config))
    for words, code, wanted in (
        (("check", "--config", str(tmp_path / "none.toml")), 2, "cannot be read: No such file"),
        (("run", "--config", str(tmp_path / "none.toml")), 2, "say which file"),
        (("peers", "--control", str(tmp_path / "none.sock")), 1, "no daemon answers at"),
    ):
        done = one.run(*words)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert wanted in done.stderr
    one.config.write_text(one.config.read_text().replace("10.77.0.1", "192.0.2.99"))
    done = one.run("run", "--config", str(one.config))
    assert done.returncode == 1
    assert "192.0.2.99 is not an address of this host" in done.stderr


async def test_an_occupied_port_and_an_occupied_socket(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair
    await up(one, two)
    done = one.run("run", "--config", str(one.config))
    assert done.returncode == 1
    assert "another daemon answers there" in done.stderr
    config = one.config.read_text()
    one.config.write_text(config.replace(str(one.control), str(one.control) + "2"))
    done = one.space.run(sys.executable, "-m", "bgp", "run", "--config", str(one.config), check=False)
    assert done.returncode == 1
    assert f"port {PORT} of 10.77.0.1: it is in use by python" in done.stderr
    plain = one.control.with_name("file")
    plain.write_text("precious")
    one.config.write_text(config.replace(str(one.control), str(plain)))
    assert "no socket; remove it" in one.run("run", "--config", str(one.config)).stderr
    assert plain.read_text() == "precious"


async def test_nonsense_on_the_control_socket_harms_nobody(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair
    await up(one, two)
    for nonsense in (
        b"\n",
        b"x\n",
        b"[1]\n",
        b'{"command": 1}\n',
        b'{"command": "peers", "peer": 1}\n',
        b"x" * 200_000,
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(one.control))
            try:
                sock.sendall(nonsense)
                sock.shutdown(socket.SHUT_WR)
                reply = sock.recv(65536)
            except OSError:
                continue
            assert reply == b"" or "error" in json.loads(reply)
    assert one.established()
    assert b"Traceback" not in one.errors.read_bytes()
