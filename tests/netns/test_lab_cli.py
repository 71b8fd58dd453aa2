"""`netagent lab` as typed: labs by name, side by side, interrupted, crashed, with a stand-in for the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netagent.errors import UsageError
from netagent.lab import labs
from netagent.lab.lab import Lab, obstacle
from netagent.lab.space import LabError, Unable
from tests.netns.test_lab import standin
from tests.support.netns import eventually

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NETAGENT_LAB_DIR", str(tmp_path / "labs"))
    return tmp_path / "labs"


@pytest.fixture
async def made(home: Path) -> AsyncIterator[Lab]:
    """A lab as `up` makes it, named "lab"."""
    lab = Lab(nodes=2, backend="host-gw", agent=standin)
    try:
        with labs.making("lab") as lab.directory:
            await lab.up(ephemeral=False)
        await lab.leased()
        await lab.attach()
        yield lab
    finally:
        await lab.down()


async def netagent(*words: str) -> tuple[int, str, str]:
    """Run `netagent lab WORDS`: exit code, standard output and error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "netagent", "lab", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_another_process_uses_the_lab(made: Lab) -> None:
    code, out, _ = await netagent("ping", "--json")
    result = json.loads(out)
    assert (code, result["ok"], len(result["pairs"])) == (0, True, 4)
    code, out, _ = await netagent("ping")
    assert code == 0
    assert "4 of 4 pairs answered" in out
    assert await netagent("exec", "h1", "--", "sh", "-c", "echo $NETAGENT_RUN_DIR; exit 3") == (
        3,
        f"{made['h1'].run_dir}\n",
        "",
    )
    code, out, _ = await netagent("exec", "h2", "--container", "--", "ip", "-4", "-br", "address", "show", "eth0")
    assert "10.5.2.2/24" in out
    code, out, _ = await netagent("exec", "etcd", "etcdctl", "get", "/coreos.com/network/config")
    assert '"host-gw"' in out
    assert await netagent("logs", "h1") == (0, "stand-in 1 is up\n", "")
    code, out, _ = await netagent("logs")
    assert out.splitlines() == ["h1    stand-in 1 is up", "h2    stand-in 2 is up"]
    code, out, _ = await netagent("list", "--json")
    assert [(lab["name"], lab["state"], lab["nodes"]) for lab in json.loads(out)] == [("lab", "up", 2)]
    # The stand-in has no API: the status says that, and its exit code is that of a node that is down.
    code, out, _ = await netagent("status", "--json")
    assert code == 2
    assert [node["state"] for node in json.loads(out)["nodes"]] == ["down", "down"]


async def test_a_pair_without_reply_is_an_exit_code(made: Lab) -> None:
    await made["h2"].cut()
    code, out, _ = await netagent("ping", "--timeout", "0.2")
    assert code == 1
    assert "no reply" in out


async def test_errors_say_what_to_do(made: Lab) -> None:
    for words, exit_code, says in (
        (("exec", "h7", "true"), 2, "Its nodes are h1, h2"),
        (("status", "--name", "other"), 1, "`netagent lab up --name other` makes it"),
        (("up",), 1, "is up already"),
        (("up", "--name", "../x"), 2, "no name for a lab"),
        (("up", "--backend", "{"), 2, "--backend: not valid JSON"),
    ):
        code, out, err = await netagent(*words)
        assert (code, out) == (exit_code, "")
        assert says in err
        assert "Traceback" not in err


async def test_two_labs_side_by_side_and_down(made: Lab) -> None:
    second = Lab(nodes=2, backend="host-gw", agent=standin)
    try:
        with labs.making("second") as second.directory:
            with pytest.raises(LabError, match="being made by another"), labs.making("second"):
                pass
            assert second.directory.exists()
            await second.up(ephemeral=False)
        await second.leased()
        await second.attach()
        assert (await second.ping()).ok
        assert await netagent("down") == (0, "lab 'lab' is gone\n", "")
        assert not made.path.exists()
        assert (await second.ping()).ok
        assert await netagent("down", "--all") == (0, "lab 'second' is gone\n", "")
        assert await netagent("down") == (0, "there is no lab 'lab'\n", "")
    finally:
        await second.down()


async def test_down_after_a_crash(made: Lab, home: Path) -> None:
    os.kill(made.space.pid, signal.SIGKILL)
    await eventually(lambda: [entry.state for entry in labs.every()] == ["remains"], "the lab is seen to be gone")
    code, _, err = await netagent("status")
    assert code == 1
    assert "not up any more" in err
    assert await netagent("down") == (0, "lab 'lab' is gone\n", "")
    assert list(labs.every()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_on_the_way_up(home: Path, number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        # so many that it is not up before the signal comes
        *(sys.executable, "-m", "netagent", "lab", "up", "--nodes", "8"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"starting etcd" not in await process.stderr.readline():
            pass
        process.send_signal(number)
        await process.communicate()
    assert process.returncode == 130
    assert list(labs.every()) == []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            assert os.fsencode(home) not in path.read_bytes()


def test_a_lab_that_was_not_made_leaves_nothing(home: Path) -> None:
    with pytest.raises(RuntimeError), labs.making("lab") as directory:
        (directory / "file").touch()
        raise RuntimeError
    assert list(labs.every()) == []


def test_the_folder_of_labs_must_be_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("NETAGENT_LAB_DIR", str(tmp_path / "link"))
    with pytest.raises(LabError, match="another user"):
        labs.home()
    monkeypatch.setenv("NETAGENT_LAB_DIR", str(tmp_path))
    for name in ("", "..", "a/b", "-x", "x" * 50):
        with pytest.raises(UsageError):
            labs.directory(name)


# ------------------------------------------------------------------------------------------- with the real agent


async def test_up_with_the_agent(home: Path) -> None:
    code, out, err = await netagent("up", "--nodes", "2", "--backend", '{"Type": "vxlan", "VNI": 7}', "--ipv6")
    try:
        assert code == 0, err
        assert "4 of 4 pairs of containers reach each other" in out
        code, out, _ = await netagent("status", "--json")
        assert code == 0
        assert [node["state"] for node in json.loads(out)["nodes"]] == ["healthy", "healthy"]
        # A command on a host finds that host's agent without being told where it is.
        code, out, _ = await netagent("exec", "h2", "--", "netagent", "status", "--json")
        assert json.loads(out)["node"]["name"] == "h2"
        code, out, _ = await netagent("exec", "h1", "--", "ip", "link", "show", "type", "vxlan")
        assert "na-vx7" in out
    finally:
        await netagent("down")
    assert list(labs.every()) == []


async def test_what_make_lab_shows(home: Path) -> None:
    tried = 2 if obstacle("udp") else 3
    try:
        for _ in range(2):  # again, over the one that was left up
            code, out, err = await netagent("demo")
            assert code == 0, err
            assert out.count("6/6") == tried
            assert "dev na-vx1" in out
            assert "dev eth0" in out
            assert ("dev na-tun" in out) == (tried == 3)
        code, out, _ = await netagent("list", "--json")
        assert [(lab["state"], lab["backend"]) for lab in json.loads(out)] == [("up", "vxlan")]
        assert (await netagent("ping"))[0] == 0
    finally:
        await netagent("down")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["host-gw", "vxlan", "udp"])
async def test_ten_hosts(home: Path, backend: str) -> None:
    if reason := obstacle(backend):
        raise Unable(reason)
    code, out, err = await netagent("up", "--nodes", "10", "--backend", backend, "--ipv6")
    try:
        assert code == 0, err
        assert "180 of 180 pairs of containers reach each other" in out
        code, out, _ = await netagent("ping", "--count", "3", "--json")
        result = json.loads(out)
        assert (code, result["ok"], len(result["pairs"])) == (0, True, 360)
    finally:
        await netagent("down")
