"""docs/howto/etcd.md, run as it stands: three members with TLS, roles, and what a stolen key of a node can do."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from netagent.lab.lab import Lab
from netagent.lab.node import Node
from netagent.lab.space import environment
from tests.netns.test_cluster_etcd import until_status
from tests.support.netns import need_tool

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.slow]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "etcd.md"
CERTIFICATES, MEMBERS, ROLES, INIT, REVOKE = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
(SETTINGS,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.M | re.S)


async def typed(node: Node, folder: Path, script: str, *, check: bool = True) -> tuple[int, str]:
    """A block of the page, typed in a shell of the administrator's."""
    exports = "".join(re.findall(r"^export .*\n", ROLES, re.M))
    whole = f'cd {folder}\n{exports}netagent() {{ python3 -m netagent "$@"; }}\n{script}'
    done = await node.exec("bash", "-euc", whole, timeout=60, check=check)
    return done.code, done.out + done.err


async def test_the_page_as_it_stands(tmp_path: Path) -> None:
    need_tool("openssl")
    lab = Lab(nodes=3, backend="vxlan")
    try:
        await lab.up(ephemeral=True, agents=False)
        admin = lab["h1"]
        assert [node.host.v4 for node in lab.nodes.values()] == [f"192.168.50.1{i}/24" for i in (1, 2, 3)]
        admin.settings_file.parent.mkdir(exist_ok=True)
        admin.settings_file.touch()
        await typed(admin, tmp_path, CERTIFICATES)
        await typed(admin, tmp_path, MEMBERS)
        for i, name in enumerate(lab.nodes, 1):
            text = (tmp_path / f"etcd{i}.env").read_text()
            text = text.replace("/etc/etcd/etcd.", f"{tmp_path}/etcd{i}.").replace("/etc/etcd/", f"{tmp_path}/")
            text = text.replace("/var/lib/etcd/netagent", f"{lab.path}/member{i}")
            env = dict(line.split("=", 1) for line in text.splitlines())
            command = ["etcd", "--logger=zap"]
            await lab.space.spawn(f"member{i}", name, command, lab.path / f"member{i}.log", {**environment(), **env})

        async def serves() -> str:
            code, said = await typed(admin, tmp_path, "etcdctl endpoint health", check=False)
            return said if code else ""

        await lab.until(serves, "three members", 60)
        await typed(admin, tmp_path, ROLES)
        await typed(admin, tmp_path, INIT)

        for name, node in lab.nodes.items():
            await node.start_agent(*flags(name, tmp_path))
        await lab.ready()
        assert (await lab.ping()).ok

        # The stolen key.
        stolen = "export ETCDCTL_CERT=node-h2.crt ETCDCTL_KEY=node-h2.key; "
        code, said = await typed(admin, tmp_path, stolen + "etcdctl get --prefix /coreos.com/network/subnets/")
        assert (code, said.count('"BackendType"')) == (0, 3)
        for forbidden in (
            "etcdctl put /coreos.com/network/config '{}'",
            "etcdctl put /elsewhere x",
            "etcdctl get --prefix /",
            "etcdctl user add other --no-password",
            "etcdctl role grant-permission netagent --prefix=true readwrite /",
        ):
            code, said = await typed(admin, tmp_path, stolen + forbidden, check=False)
            assert (code != 0, "permission denied" in said) == (True, True), (forbidden, said)

        await typed(admin, tmp_path, REVOKE)
        code, said = await typed(admin, tmp_path, stolen + "etcdctl get /coreos.com/network/config", check=False)
        assert code != 0, said
        await lab["h2"].restart_agent(*flags("h2", tmp_path))
        await until_status(lab, "h2", "not let in", lambda s: not s.etcd.connected)
        for name in ("h1", "h3"):
            assert (await lab[name].status()).etcd.connected
        assert (await lab.ping()).ok  # it goes on with what it knows, and so do they
    finally:
        await lab.down()


def flags(name: str, folder: Path) -> list[str]:
    """The page's settings for a host, as flags: they win over the lab's own."""
    settings = tomllib.loads(SETTINGS.replace("/etc/netagent", str(folder)).replace("node-h1", f"node-{name}"))
    values = {key: ",".join(value) if isinstance(value, list) else value for key, value in settings.items()}
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
