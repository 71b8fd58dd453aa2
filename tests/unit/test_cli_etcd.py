"""The commands that talk to etcd themselves: init, config, lease; on a cluster in memory."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from netagent.__main__ import main
from netagent.cli import store as cli_store
from netagent.lab.labs import Entry
from netagent.model import NodeRecord
from netagent.store import schema
from netagent.store.base import Put
from netagent.store.memory import MemoryCluster, MemoryStore

Run = Callable[..., tuple[int, str, str]]
KEYS = schema.Keys("/coreos.com/network")


@pytest.fixture
def etcd() -> MemoryCluster:
    return MemoryCluster()


@pytest.fixture
def run(
    etcd: MemoryCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(cli_store, "open_store", lambda settings: MemoryStore(etcd))
    monkeypatch.setenv("NETAGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NETAGENT_NODE_NAME", "here")
    monkeypatch.delenv("NETAGENT_CONFIG", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def put(etcd: MemoryCluster, key: str, value: bytes, lease: int = 0) -> None:
    etcd.txn((), (Put(key, value, lease),), ())


def lease(etcd: MemoryCluster, key: str, node: str = "", ip: str = "192.168.50.11", *, alive: bool = False) -> None:
    """A lease as an agent (or, without a node's name, a flanneld) writes it."""
    number = etcd.grant(86400).id
    writes = [Put(KEYS.subnet(key), schema.lease_value(ip, None, "vxlan"), number)]
    if node:
        owner = schema.owner_value(schema.Owner(node, f"id-{node}"))
        writes.append(Put(KEYS.owner(key), owner, number))
        if alive:
            put(etcd, KEYS.alive(node), owner)
    etcd.txn((), writes, ())


def config(etcd: MemoryCluster) -> object:
    found = etcd.get(KEYS.config)
    return json.loads(found.value) if found else None


# -------------------------------------------------------------------------------------------------------- init


def test_init_writes_vxlan_unless_told_otherwise(run: Run, etcd: MemoryCluster) -> None:
    code, out, err = run("init", "--network", "10.5.0.0/16")
    assert (code, err) == (0, "")
    assert config(etcd) == {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
    assert out == 'wrote /coreos.com/network/config: {"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}\n'
    assert run("init", "--network", "10.5.0.0/16")[:2] == (
        0,
        "/coreos.com/network/config already holds this configuration\n",
    )


def test_init_with_every_option(run: Run, etcd: MemoryCluster) -> None:
    code, _, _ = run(
        "init",
        "--network=10.5.0.0/16",
        "--subnet-len=26",
        "--subnet-min=10.5.1.0",
        "--network-v6=fd00:5::/48",
        "--backend=vxlan",
        "--option=VNI=7",
        "--option=DirectRouting=true",
    )
    assert code == 0
    assert config(etcd) == {
        "Network": "10.5.0.0/16",
        "SubnetLen": 26,
        "SubnetMin": "10.5.1.0",
        "EnableIPv6": True,
        "IPv6Network": "fd00:5::/48",
        "Backend": {"Type": "vxlan", "VNI": 7, "DirectRouting": True},
    }


def test_init_shows_the_difference_and_needs_force(run: Run, etcd: MemoryCluster) -> None:
    run("init", "--network", "10.5.0.0/16")
    lease(etcd, "10.5.9.0-24", "h1")
    code, _, err = run("init", "--network", "10.6.0.0/16", "--backend", "host-gw")
    assert code == 1
    assert 'Network: "10.5.0.0/16" -> "10.6.0.0/16"' in err
    assert '"vxlan"} -> {"Type": "host-gw"}' in err
    assert "--force" in err
    assert config(etcd) == {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
    code, _, err = run("init", "--network", "10.6.0.0/16", "--backend", "host-gw", "--force")
    assert code == 0
    assert config(etcd) == {"Network": "10.6.0.0/16", "Backend": {"Type": "host-gw"}}
    assert "h1 keeps 10.5.9.0-24" in err


def test_init_replaces_garbage_only_with_force(run: Run, etcd: MemoryCluster) -> None:
    put(etcd, KEYS.config, b"{broken")
    assert run("init", "--network", "10.5.0.0/16")[0] == 1
    assert run("init", "--network", "10.5.0.0/16", "--force")[0] == 0


def test_init_from_a_file(run: Run, etcd: MemoryCluster, tmp_path: Path) -> None:
    file = tmp_path / "net.json"
    file.write_text('{"Network": "10.5.0.0/16", "Backend": {"Type": "bgp", "Nodes": [{"Match": "*", "AS": 65001}]}}')
    assert run("init", "--file", str(file))[0] == 0
    assert config(etcd)["Backend"]["Nodes"] == [{"Match": "*", "AS": 65001}]
    file.write_text(json.dumps(json.loads(run("config", "show", "--json")[1])["config"]))
    assert "already holds this configuration" in run("init", "--file", str(file))[1]
    for words in (("--network", "10.5.0.0/16"), ("--backend", "vxlan"), ("--option", "VNI=7")):
        code, _, err = run("init", "--file", str(file), *words)
        assert code == 2
        assert f"--file has all of it, and {words[0]} is given too" in err
    file.write_text('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x"}}')
    code, _, err = run("init", "--file", str(file), "--force")
    assert code == 2
    assert f"{file}: Backend.VNI: 'x' is not a whole number" in err
    assert run("init", "--file", str(tmp_path / "absent"))[0] == 2


def test_init_takes_no_backend_away_unasked(run: Run, etcd: MemoryCluster) -> None:
    """Who adds IPv6 and forgets --backend does not mean that all hosts shall leave host-gw."""
    run("init", "--network", "10.5.0.0/16", "--backend", "host-gw")
    both = ("init", "--network", "10.5.0.0/16", "--network-v6", "fc00:5::/48", "--force")
    code, out, err = run(*both)
    assert (code, out) == (2, "")
    assert "the network's backend is host-gw, and none was named. Nothing was written; add --backend host-gw" in err
    assert run(*both, "--backend", "host-gw")[0] == 0
    assert run("init", "--network", "10.5.0.0/16", "--backend", "vxlan", "--force")[0] == 0
    assert run(*both)[0] == 0


def test_init_dry_run_writes_nothing(run: Run, etcd: MemoryCluster) -> None:
    code, out, _ = run("init", "--network", "10.5.0.0/16", "--dry-run")
    assert (code, json.loads(out)) == (0, {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}})
    assert etcd.revision == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--network 10.5.0.0/16"),
        (("--network", "10.5.0.0/29"), "/28"),
        (("--network", "10.5.0.0/16", "--backend", "wireguard"), "Known types: "),
        (("--network", "10.5.0.0/16", "--option", "VNI"), "VNI=7"),
        (("--network", "10.5.0.0/16", "--option", "VNI=x"), "VNI"),
        (("--network", "10.5.0.0/16", "--subnet-min", "10.5.3.7"), "10.5.3.0"),
    ],
)
def test_init_errors_name_the_remedy(run: Run, etcd: MemoryCluster, words: tuple[str, ...], said: str) -> None:
    code, out, err = run("init", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert etcd.revision == 1


# ------------------------------------------------------------------------------------------------------ config


def test_config_check_prints_what_is_in_force(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "net.json"
    file.write_text('{"network":"10.5.0.0/16","Backend":{"Type":"vxlan"},"SubnetLan":24}')
    code, out, _ = run("config", "check", str(file))
    assert code == 0
    assert 'SubnetMin   "10.5.1.0"' in out
    assert "did you mean SubnetLen?" in out
    code, out, _ = run("config", "check", "--json", str(file))
    assert json.loads(out)["config"]["SubnetLen"] == 24


def test_config_check_refuses_with_exit_code_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"Network":"10.5.0.0/16","SubnetLen":"24"}')))
    code, out, err = run("config", "check", "-")
    assert (code, out) == (2, "")
    assert 'standard input: SubnetLen="24"' in err
    assert run("config", "check", "/nonexistent")[0] == 2


def test_config_show(run: Run, etcd: MemoryCluster) -> None:
    assert run("config", "show")[0] == 2
    run("init", "--network", "10.5.0.0/16")
    code, out, _ = run("config", "show")
    assert code == 0
    assert '"10.5.0.0/16"' in out


# ------------------------------------------------------------------------------------------------------- lease


def test_lease_list(run: Run, etcd: MemoryCluster) -> None:
    run("init", "--network", "10.5.0.0/16")
    lease(etcd, "10.5.10.0-24", "h1", alive=True)
    lease(etcd, "10.5.9.0-24", "", "192.168.50.12")
    put(etcd, KEYS.subnet("10.5.11.0-24"), b'{"PublicIP":"192.168.50.13"}')
    put(etcd, KEYS.subnet("10.5.12.0-24"), b'{"PublicIP":"192.168.50.14"}', etcd.grant(86400).id)
    put(etcd, KEYS.subnet("junk"), b"")
    code, out, _ = run("lease", "list")
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:5]] == [
        ["10.5.9.0/24", "-", "192.168.50.12", "vxlan", "lease", "unknown"],
        ["10.5.10.0/24", "h1", "192.168.50.11", "vxlan", "lease", "up"],
        ["10.5.11.0/24", "-", "192.168.50.13", "-", "reservation", "unknown"],
        ["10.5.12.0/24", "-", "192.168.50.14", "udp", "lease", "unknown"],
    ]
    assert "etcdctl del '/coreos.com/network/subnets/junk'" in out
    code, out, _ = run("lease", "list", "--json", "--ttl")
    assert [(row["key"], row["ttl"], row["reservation"]) for row in json.loads(out)] == [
        ("10.5.9.0-24", 86400, False),
        ("10.5.10.0-24", 86400, False),
        ("10.5.11.0-24", None, True),
        ("10.5.12.0-24", 86400, False),
    ]


def test_reserve_for_a_node_by_name_and_by_address(run: Run, etcd: MemoryCluster) -> None:
    run("init", "--network", "10.5.0.0/16")
    put(etcd, KEYS.node("h7"), schema.node_value(NodeRecord(name="h7", id="x", addresses=("192.168.50.17",))))
    assert run("lease", "reserve", "10.5.7.0/24", "--node", "h7")[0] == 0
    assert run("lease", "reserve", "10.5.8.0/24", "--node", "h8")[0] == 0
    assert run("lease", "reserve", "10.5.9.0/24", "--public-ip", "192.168.50.19")[0] == 0
    values = {kv.key.rpartition("/")[2]: (kv.value, kv.lease) for kv in etcd.range(KEYS.subnets, 0).items}
    assert values == {
        "10.5.7.0-24": (b'{"PublicIP":"192.168.50.17","PublicIPv6":null}', 0),
        "10.5.8.0-24": (b'{"PublicIP":"0.0.0.0","PublicIPv6":null}', 0),
        "10.5.9.0-24": (b'{"PublicIP":"192.168.50.19","PublicIPv6":null}', 0),
    }
    owner = etcd.get(KEYS.owner("10.5.8.0-24"))
    assert owner is not None and json.loads(owner.value) == {"node": "h8", "id": ""}
    assert etcd.get(KEYS.owner("10.5.9.0-24")) is None


def test_reserve_makes_a_held_lease_permanent(run: Run, etcd: MemoryCluster) -> None:
    lease(etcd, "10.5.9.0-24", "h1")
    before = etcd.get(KEYS.subnet("10.5.9.0-24"))
    assert run("lease", "reserve", "10.5.9.0/24")[0] == 0
    after, owner = etcd.get(KEYS.subnet("10.5.9.0-24")), etcd.get(KEYS.owner("10.5.9.0-24"))
    assert before is not None and after is not None and owner is not None
    assert (after.value, after.lease, owner.lease) == (before.value, 0, 0)
    assert json.loads(owner.value) == {"node": "h1", "id": "id-h1"}


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("10.5.9.0/24", "--node", "h2"), "h1 holds it", 1),
        (("10.5.9.0/25", "--node", "h2"), "not one of the subnets", 1),
        (("10.5.8.0/24",), "--node NAME", 2),
        (("10.5.8.1/24", "--node", "h2"), "10.5.9.0/24", 2),
        (("10.5.8.0/24", "--node", "a/b"), "a/b", 2),
        (("10.5.8.0/24", "--public-ip", "nowhere"), "not an address", 2),
    ],
)
def test_reserve_errors(run: Run, etcd: MemoryCluster, words: tuple[str, ...], said: str, code: int) -> None:
    run("init", "--network", "10.5.0.0/16")
    lease(etcd, "10.5.9.0-24", "h1")
    revision = etcd.revision
    found = run("lease", "reserve", *words)
    assert found[0] == code
    assert said in found[2]
    assert etcd.revision == revision


def test_release_by_subnet_and_by_node(run: Run, etcd: MemoryCluster) -> None:
    lease(etcd, "10.5.9.0-24", "h1")
    lease(etcd, "10.5.10.0-24", "h2")
    put(etcd, KEYS.node("h2"), schema.node_value(NodeRecord(name="h2", id="id-h2")))
    assert run("lease", "release", "10.5.9.0/24")[:2] == (0, "10.5.9.0-24 is free\n")
    assert run("lease", "release", "--node", "h2")[:2] == (0, "10.5.10.0-24 is free\n")
    assert etcd.range(KEYS.root, 0).items == ()
    assert run("lease", "release", "--node", "h2")[0] == 1
    assert run("lease", "release", "10.5.9.0/24")[0] == 1
    assert run("lease", "release")[0] == 2


def test_a_living_node_is_not_robbed(run: Run, etcd: MemoryCluster) -> None:
    lease(etcd, "10.5.9.0-24", "h1", alive=True)
    code, _, err = run("lease", "release", "--node", "h1")
    assert code == 1
    assert "h1 is alive" in err
    assert etcd.get(KEYS.subnet("10.5.9.0-24")) is not None
    assert run("lease", "release", "--node", "h1", "--force")[0] == 0


def test_release_on_the_host_itself_forgets_its_subnet(run: Run, etcd: MemoryCluster, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "lease.json").write_text("{}")
    lease(etcd, "10.5.9.0-24", "here", alive=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run("lease", "release", "--node", "here")
        assert code == 1
        assert "systemctl stop netagent" in err
    code, out, _ = run("lease", "release", "--node", "here")
    assert code == 0
    assert "takes a new subnet" in out
    assert not (state / "lease.json").exists()
    assert etcd.get(KEYS.subnet("10.5.9.0-24")) is None


def test_a_store_that_does_not_answer_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from netagent.errors import StoreUnavailable

    class Dead(MemoryStore):
        async def get(self, key: str, *, timeout: float | None = None) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            raise StoreUnavailable("no endpoint answers", where="http://127.0.0.1:2379", remedy="Start etcd")

    monkeypatch.setattr(cli_store, "open_store", lambda settings: Dead())
    code, out, err = run("config", "show")
    assert (code, out) == (1, "")
    assert err == "netagent: error: http://127.0.0.1:2379: no endpoint answers. Start etcd\n"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlam"}}', "Backend.Type: there is no backend 'vxlam'"),
        ('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":"x"}}', "Backend.VNI: 'x' is not a whole number"),
        ('{"Network":"10.5.0.0/16","Backend":{"Type":"bgp","Nodes":[{"AS":1,"as":2}]}}', "Backend.Nodes[0].AS and "),
        ('{"Network":"10.5.0.0/16",}', "not valid JSON"),
    ],
)
def test_config_check_names_the_file(run: Run, tmp_path: Path, document: str, said: str) -> None:
    file = tmp_path / "net.json"
    file.write_text(document)
    code, out, err = run("config", "check", str(file))
    assert (code, out) == (2, "")
    assert f"{file}: {said}" in err


def test_config_check_names_the_nearest_option(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "net.json"
    file.write_text('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRoutin":true,"Colour":1}}')
    out = run("config", "check", str(file))[1]
    assert "no option 'DirectRoutin'; it is ignored; did you mean DirectRouting?" in out
    assert "no option 'Colour'; it is ignored; known options: VNI, " in out
    assert run("config", "check", str(file), "--json")[0] == 0


def test_a_variable_that_sets_nothing_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETAGENT_ETCD_PREFX", "/x")
    code, out, err = run("lease", "list", "--json")
    assert (code, out) == (0, "[]\n")
    assert "NETAGENT_ETCD_PREFX sets nothing; did you mean NETAGENT_ETCD_PREFIX?" in err


def test_json_has_the_keys_that_the_reference_names(run: Run, etcd: MemoryCluster, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/reference/api.md").read_text()

    def documented(command: str) -> list[str]:
        row = next(line for line in page.splitlines() if line.startswith(f"| `netagent {command}`"))
        return re.findall(r'"(\w+)"', row)

    def printed(*words: str) -> list[str]:
        found = json.loads(run(*words, "--json")[1])
        return list(found[0] if isinstance(found, list) else found)

    run("init", "--network", "10.5.0.0/16")
    assert printed("config", "show") == documented("config show")
    assert printed("lease", "reserve", "10.5.9.0/24", "--node", "h9") == documented("lease reserve")
    assert printed("lease", "list") == documented("lease list")
    assert printed("lease", "release", "10.5.9.0/24") == documented("lease release")
    assert [field.name for field in msgspec.structs.fields(Entry)] == documented("lab list")
    assert printed("status", "--run-dir", str(tmp_path)) == documented("status")
