"""Whole agents on an etcd that is guarded (TLS, certificates, users) or has several members: they work, and when they
are not let in they say why in one line.

The lab's switch reaches only what is inside the lab, so these servers run in the namespace of the lab's own etcd,
which stands idle, and agents are started with other --etcd-endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from netagent.lab.lab import Lab
from netagent.status import Status
from tests.netns.test_cluster_etcd import until_status
from tests.support.certs import Authority
from tests.support.etcd import Etcd, ServerTLS, etcd, etcd_cluster
from tests.support.netns import eventually

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

PASSWORD = "correct horse"
TOKEN_TTL = 1  # seconds


@contextlib.asynccontextmanager
async def bare_lab(nodes: int = 2) -> AsyncIterator[tuple[Lab, str, str]]:
    """A lab whose agents do not run yet, with the path of its etcd host's namespace and that host's address."""
    lab = Lab(nodes=nodes, backend="vxlan")
    try:
        await lab.up(ephemeral=True, agents=False)
        pid = await lab.space.pid_of("etcd")
        yield lab, f"/proc/{pid}/ns/net", lab.topology.etcd.v4.partition("/")[0]
    finally:
        await lab.down()


async def configure(lab: Lab, server: Etcd) -> None:
    await server.ctl("put", f"{lab.etcd.prefix}/config", json.dumps(lab.topology.config))


async def start(lab: Lab, *arguments: str) -> None:
    """Every agent, with these arguments beside the lab's; of two endpoints arguments the last counts."""
    lab.extra = arguments
    for node in lab.nodes.values():
        await node.start_agent()


async def works(lab: Lab) -> None:
    """Every node is healthy, every container reaches every other, and no agent has logged a traceback."""
    await lab.ready()
    for name in lab.nodes:
        await until_status(lab, name, "healthy", lambda s: s.verdict.state == "healthy")
    matrix = await lab.ping()
    assert matrix.ok, matrix.failed
    no_traceback(lab)


def no_traceback(lab: Lab) -> None:
    for node in lab.nodes.values():
        assert "Traceback" not in node.log.read_text(), node.log_tail(40)


# ------------------------------------------------------------------------------------------------------- TLS


@pytest.mark.parametrize("client_cert", [False, True], ids=["CA only", "client certificates"])
async def test_tls(client_cert: bool, tmp_path: Path) -> None:
    async with bare_lab() as (lab, netns, address):
        authority = Authority(tmp_path)
        tls = ServerTLS(authority, authority.issue("etcd", hosts=(address,)), client_cert)
        async with etcd(netns=netns, host=address, tls=tls) as server:
            await configure(lab, server)
            arguments = [f"--etcd-endpoints={server.endpoint}", f"--etcd-cafile={authority.ca}"]
            if client_cert:
                pair = authority.issue("netagent")
                arguments += [f"--etcd-certfile={pair.cert}", f"--etcd-keyfile={pair.key}"]
            await start(lab, *arguments)
            await works(lab)
            # The connection is made anew, with the same certificates.
            await server.kill()
            await until_status(lab, "h1", "the outage is told", lambda s: not s.etcd.connected)
            await server.start()
            await lab.add_node()
            await works(lab)


# ---------------------------------------------------------------------------------------- user and password


def password_file(directory: Path, text: str = PASSWORD) -> Path:
    path = directory / "password"
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return path


async def test_user_and_password_with_a_token_that_expires(tmp_path: Path) -> None:
    """The role grants the prefix and nothing else; the lease outlives its token, and later events still arrive."""
    async with bare_lab() as (lab, netns, address), etcd(netns=netns, host=address, token_ttl=TOKEN_TTL) as server:
        await configure(lab, server)
        await server.enable_auth(users={"netagent": (PASSWORD, {f"{lab.etcd.prefix}/": "readwrite"})})
        await start(
            lab,
            f"--etcd-endpoints={server.endpoint}",
            "--etcd-username=netagent",
            f"--etcd-password-file={password_file(tmp_path)}",
        )
        await works(lab)
        subnet = lab["h1"].subnet_env()["FLANNEL_SUBNET"]
        await eventually(lambda: expired(server) >= 2, "the agents' tokens expire", timeout=15)
        seen = expired(server)
        async with lab.flow() as flow:
            new = await lab.add_node()
            await lab.ready(attach=False)
            # What every agent writes of itself changes with the backend's VNI: each needs a new token for that.
            config = {**lab.topology.config, "Backend": {"Type": "vxlan", "VNI": 7}}
            await server.ctl("put", f"{lab.etcd.prefix}/config", json.dumps(config), user="root:root")

            async def rewritten() -> str:
                text = await server.ctl("get", "--prefix", f"{lab.etcd.prefix}/subnets/", user="root:root")
                return "" if text.count('"VNI":7') == len(lab.nodes) else text

            await lab.until(rewritten, "every lease carries the new VNI", 20)
        await works(lab)
        await eventually(lambda: expired(server) >= seen + 3, "all three had had new tokens", timeout=15)
        assert flow.gap < 1.0, flow
        assert lab["h1"].subnet_env()["FLANNEL_SUBNET"] == subnet
        assert new.subnet_env()["FLANNEL_SUBNET"] != subnet
        assert PASSWORD not in "".join(node.log.read_text() for node in lab.nodes.values())


def expired(server: Etcd) -> int:
    """How many tokens of ours the server has dropped, by its log."""
    return sum("deleted a simple token" in line and '"netagent"' in line for line in server.log)


# ------------------------------------------------------------------------------------------ several members


async def test_failover_and_loss_of_the_quorum() -> None:
    async with bare_lab() as (lab, netns, address), etcd_cluster(3, netns=netns, host=address) as cluster:
        await configure(lab, cluster.members[0])
        await start(lab, f"--etcd-endpoints={','.join(cluster.endpoints)}")
        await works(lab)
        async with lab.flow() as flow:
            used = await in_use(lab, cluster.members)
            await used.kill()
            await until_status(
                lab, "h1", "another member is used", lambda s: s.etcd.connected and s.etcd.endpoint != used.endpoint
            )
            await lab.add_node()
            await works(lab)
            # The second of three: what is left serves nothing, and the agents say so.
            second = await in_use(lab, [member for member in cluster.members if member is not used])
            await second.kill()
            for name in lab.nodes:
                status = await until_status(lab, name, "the outage is told", lambda s: not s.etcd.connected, 30)
                assert status.verdict.state == "degraded"
                assert status.etcd.error
            for member in (used, second):
                await member.start(wait=False)
            for member in (used, second):
                await member.serving()
            await lab.add_node()
            await works(lab)
        assert flow.lost == 0, flow


async def in_use(lab: Lab, members: Sequence[Etcd]) -> Etcd:
    """The member that h1's agent talks to."""
    endpoint = (await lab["h1"].status()).etcd.endpoint
    return next(member for member in members if member.endpoint == endpoint)


# ------------------------------------------------------------------------------------------------ not let in


async def told(lab: Lab, words: str, look: Callable[[Status], bool], *, code: int) -> None:
    """h1 says `words` in what `netagent status` prints, and in its log: each part that suffers says it once."""
    node = lab["h1"]
    await until_status(lab, "h1", f"it says: {words}", look)
    shown = await node.exec("netagent", "status", check=False)
    assert words in shown.out, shown.out
    assert (shown.code, shown.err) == (code, "")
    await asyncio.sleep(1.5)  # for some more attempts, each of which fails alike
    assert await node.stop_agent() == 0
    lines = [line for line in node.log.read_text().splitlines() if words in line]
    parts = {line.split()[3] for line in lines}  # after date, time and level
    assert len(parts) == len(lines) > 0, node.log.read_text()
    no_traceback(lab)


async def test_a_missing_client_certificate_is_told(tmp_path: Path) -> None:
    async with bare_lab(1) as (lab, netns, address):
        authority = Authority(tmp_path)
        tls = ServerTLS(authority, authority.issue("etcd", hosts=(address,)), client_cert=True)
        async with etcd(netns=netns, host=address, tls=tls) as server:
            await start(lab, f"--etcd-endpoints={server.endpoint}", f"--etcd-cafile={authority.ca}")
            words = "the server demands a client certificate and none is given"
            await told(lab, words, lambda s: words in s.etcd.error, code=2)


async def test_a_wrong_password_is_told(tmp_path: Path) -> None:
    async with bare_lab(1) as (lab, netns, address), etcd(netns=netns, host=address) as server:
        await configure(lab, server)
        await server.enable_auth(users={"netagent": (PASSWORD, {f"{lab.etcd.prefix}/": "readwrite"})})
        wrong = password_file(tmp_path, "battery staple")
        credentials = ("--etcd-username=netagent", f"--etcd-password-file={wrong}")
        await start(lab, f"--etcd-endpoints={server.endpoint}", *credentials)
        words = "etcd refuses user or password"
        await told(lab, words, lambda s: words in s.etcd.error, code=2)
        assert "battery staple" not in lab["h1"].log.read_text()


async def test_a_denied_prefix_is_told(tmp_path: Path) -> None:
    async with bare_lab(1) as (lab, netns, address), etcd(netns=netns, host=address) as server:
        await configure(lab, server)
        await server.enable_auth(users={"netagent": (PASSWORD, {"/elsewhere/": "readwrite"})})
        credentials = ("--etcd-username=netagent", f"--etcd-password-file={password_file(tmp_path)}")
        await start(lab, f"--etcd-endpoints={server.endpoint}", *credentials)
        words = "etcd denies this key to the user"
        await told(lab, words, lambda s: words in s.etcd.error, code=2)


async def test_a_role_that_may_only_read_is_told(tmp_path: Path) -> None:
    """The network is known, only nothing can be claimed: the reason stands with the lease."""
    async with bare_lab(1) as (lab, netns, address), etcd(netns=netns, host=address) as server:
        await configure(lab, server)
        await server.enable_auth(users={"netagent": (PASSWORD, {f"{lab.etcd.prefix}/": "read"})})
        credentials = ("--etcd-username=netagent", f"--etcd-password-file={password_file(tmp_path)}")
        await start(lab, f"--etcd-endpoints={server.endpoint}", *credentials)
        words = "etcd denies this key to the user"
        await told(lab, words, lambda s: words in s.lease.problem, code=2)


async def test_a_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "netagent", "run", "--etcd-password", PASSWORD),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"netagent: error: --etcd-password: ")
    assert err.count(b"\n") == 1
    assert PASSWORD.encode() not in err
