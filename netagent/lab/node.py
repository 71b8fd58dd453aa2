"""One host of a lab: its agent, its container, its uplink.

Rule: what is asked of the host is done with the tools an operator has (ip, kill, the agent's own API).
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from netagent.api import SOCKET_NAME
from netagent.api.client import Client
from netagent.lab import wiring
from netagent.lab.space import LabError, Result, environment
from netagent.lab.topology import Host
from netagent.status import Peer, Status

if TYPE_CHECKING:
    from netagent.lab.lab import Lab

STOP_TIMEOUT = 20.0


class Node:
    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.agent_pid: int | None = None  # as seen from here; None when it does not run or another process made it

    def __repr__(self) -> str:
        return f"<Node {self.name}>"

    @property
    def host(self) -> Host:
        return self.lab.topology.host(self.name)

    @property
    def directory(self) -> Path:
        return self.lab.path / self.name

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def subnet_file(self) -> Path:
        return self.run_dir / "subnet.env"

    @property
    def settings_file(self) -> Path:
        """Its netagent.toml, empty at first: the machine's own must not be read in a lab."""
        return self.directory / "netagent.toml"

    @property
    def log(self) -> Path:
        return self.directory / "agent.log"

    def log_tail(self, lines: int = 20) -> str:
        if not self.log.exists():
            return "(no log yet)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # ---------------------------------------------------------------------------------------------- the agent

    def agent_command(self, *extra: str) -> list[str]:
        """The command line of this node's agent."""
        if self.lab.agent is not None:
            return [*self.lab.agent(self), *extra]
        return [
            sys.executable,
            "-m",
            "netagent",
            "run",
            f"--config={self.settings_file}",
            f"--etcd-endpoints={self.lab.etcd.endpoint}",
            f"--etcd-prefix={self.lab.etcd.prefix}",
            f"--node-name={self.name}",
            f"--state-dir={self.state_dir}",
            f"--run-dir={self.run_dir}",
            f"--subnet-file={self.subnet_file}",
            "--ip-masq",
            *self.lab.extra,
            *extra,
        ]

    async def start_agent(self, *extra: str, command: Sequence[str] | None = None) -> None:
        """Start it (with further arguments, or another command); returns at once: `lab.ready` waits."""
        for folder in (self.run_dir, self.state_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.settings_file.touch()
        argv = list(command) if command is not None else self.agent_command(*extra)
        await self.lab.space.spawn(f"{self.name}/agent", self.name, argv, self.log, environment())
        self.agent_pid = await self.lab.space.pid_of(f"{self.name}/agent")

    async def stop_agent(self, number: int = signal.SIGTERM, *, timeout: float = STOP_TIMEOUT) -> int:
        """Signal it and await its end; its exit code (-9: killed by SIGKILL)."""
        if not await self.lab.space.signal(f"{self.name}/agent", number):
            raise LabError(f"{self.name}'s agent does not run")
        code = await self.lab.space.wait(f"{self.name}/agent", timeout)
        self.agent_pid = None
        return code

    async def kill_agent(self) -> None:
        """SIGKILL, as a crash."""
        await self.stop_agent(signal.SIGKILL)

    async def restart_agent(self, *extra: str) -> None:
        """An orderly stop and a new start."""
        await self.stop_agent()
        await self.start_agent(*extra)

    async def signal_agent(self, number: int) -> None:
        await self.lab.space.signal(f"{self.name}/agent", number)

    async def agent_code(self) -> int | None:
        """Its exit code once it has ended; None while it runs or if it never did."""
        return (await self.lab.space.daemons()).get(f"{self.name}/agent")

    async def kill_all(self) -> None:
        """Kill every process of the host and its container."""
        for netns in (self.name, wiring.container(self.name)):
            pids = (await self.lab.space.run("", ["ip", "netns", "pids", netns])).out.split()
            if pids:
                await self.lab.space.run("", ["sh", "-c", f"kill -KILL {' '.join(pids)}"], check=False)
        if f"{self.name}/agent" in await self.lab.space.daemons():
            await self.lab.space.wait(f"{self.name}/agent")
        self.agent_pid = None

    async def status(self) -> Status:
        """What the agent says of itself. AgentUnavailable when it does not answer."""
        return await asyncio.to_thread(self.client().status, all_peers=True)

    async def peers(self) -> list[Peer]:
        return await asyncio.to_thread(self.client().peers)

    def client(self) -> Client:
        """The agent's API. Unix sockets are files: they are reached from any network namespace."""
        return Client(self.run_dir / SOCKET_NAME)

    def subnet_env(self) -> dict[str, str]:
        """What subnet.env says; empty if there is none."""
        try:
            lines = self.subnet_file.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    # ------------------------------------------------------------------------------- commands on host, in container

    def environment(self) -> dict[str, str]:
        """In which `netagent` commands find this host's agent and its etcd, as they would on a real host."""
        return {
            **environment(),
            "NETAGENT_CONFIG": str(self.settings_file),
            "NETAGENT_RUN_DIR": str(self.run_dir),
            "NETAGENT_STATE_DIR": str(self.state_dir),
            "NETAGENT_SUBNET_FILE": str(self.subnet_file),
            "NETAGENT_ETCD_ENDPOINTS": self.lab.etcd.endpoint,
            "NETAGENT_ETCD_PREFIX": self.lab.etcd.prefix,
            "NETAGENT_NODE_NAME": self.name,
        }

    def _netns(self, container: bool) -> str:
        return wiring.container(self.name) if container else self.name

    def command(self, *argv: str, container: bool = False) -> list[str]:
        """The command line that runs `argv` on the host, or in its container."""
        return self.lab.space.command(self._netns(container), argv)

    async def exec(
        self, *argv: str, container: bool = False, input: str | None = None, timeout: float = 30.0, check: bool = True
    ) -> Result:
        """Run a command and wait for it. `check`: LabError when it fails."""
        netns, env = self._netns(container), self.environment()
        return await self.lab.space.run(netns, argv, env=env, input=input, timeout=timeout, check=check)

    async def start(self, *argv: str, container: bool = False, **options: int) -> asyncio.subprocess.Process:
        """Start a command that runs on; the caller sees to its end. `options`: stdin, stdout, stderr."""
        return await self.lab.space.start(self._netns(container), argv, env=self.environment(), **options)

    async def ip(self, command: str, *, container: bool = False) -> str:
        """`ip` with these words ("route show"); what it printed."""
        netns = self._netns(container)
        return (await self.lab.space.run("", ["ip", "-n", netns, *command.split()])).out

    async def route_to(self, address: str) -> str:
        """The most specific route that the host has for an address, as ip prints it."""
        family = "-6" if ":" in address else "-4"
        out = (await self.exec("ip", "-j", family, "route", "show", "match", address)).out
        routes = [route for route in json.loads(out or "[]") if route.get("dev")]
        if not routes:
            return "none"
        best = max(routes, key=lambda r: (_length(r["dst"]), -r.get("metric", 0)))
        via = f" via {best['gateway']}" if best.get("gateway") else ""
        return f"{best['dst']}{via} dev {best['dev']}"

    # --------------------------------------------------------------------------------------------- container

    def container_ip(self, family: int = 4) -> str:
        """The address of its container; "" while there is none."""
        for _, own in wiring.addresses(self._attached()):
            if (":" in own) == (family == 6):
                return own.partition("/")[0]
        return ""

    def _attached(self) -> dict[str, str]:
        """The subnet.env by which the container was attached."""
        path = self.directory / "container.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}

    async def attach(self) -> None:
        """Attach the container by subnet.env, as a container runtime does when it starts one; later calls follow a
        changed MTU. A changed subnet is refused: a running container is never renumbered."""
        env = self.subnet_env()
        if not env:
            raise LabError(f"{self.name} has no subnet.env yet:\n{self.log_tail()}", where=str(self.subnet_file))
        before = self._attached()
        if env == before:
            return
        if before and wiring.addresses(env) != wiring.addresses(before):
            raise LabError(
                f"subnet.env names another subnet than its container has ({wiring.addresses(before)})",
                where=str(self.subnet_file),
            )
        await self.lab.change(wiring.attach(self.name, env, again=bool(before)))
        (self.directory / "container.json").write_bytes(msgspec.json.encode(env))

    # ------------------------------------------------------------------------------------------------ uplink

    async def cut(self) -> None:
        """Pull the cable of eth0: it loses its carrier."""
        await self.lab.space.run("", ["ip", "-n", self.host.rack, "link", "set", self.name, "down"])

    async def mend(self) -> None:
        """Put the cable back."""
        await self.lab.space.run("", ["ip", "-n", self.host.rack, "link", "set", self.name, "up"])

    async def set_address(self, v4: str, v6: str = "") -> None:
        """Give eth0 another address (IP/LENGTH, in the same prefix); the old one goes, default routes stay."""
        await self._readdress(msgspec.structs.replace(self.host, v4=v4, v6=v6 or self.host.v6))

    async def _readdress(self, changed: Host) -> None:
        lab = self.lab
        hosts = tuple(changed if host.name == self.name else host for host in lab.topology.hosts)
        lab.topology = msgspec.structs.replace(lab.topology, hosts=hosts)
        lines = ("address flush dev eth0 scope global", *wiring.uplink(lab.topology, changed))
        await lab.change([wiring.Step(self.name, lines)])

    async def set_mtu(self, mtu: int) -> None:
        """Change the MTU of eth0 (bytes)."""
        await self.ip(f"link set eth0 mtu {mtu}")


def _length(prefix: str) -> int:
    if prefix == "default":
        return 0
    return int(prefix.partition("/")[2] or (128 if ":" in prefix else 32))
