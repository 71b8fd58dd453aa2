"""The lab's etcd: one real server on a host of its own, started, stopped, paused, killed, wiped.

Rule: it always has the same address and directory; only `wipe` makes its revisions start again at 1.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netagent.lab.space import LabError, environment, find_program

if TYPE_CHECKING:
    from netagent.lab.lab import Lab

NAME = "etcd"
PORT = 2379
PREFIX = "/coreos.com/network"
SERVING = b"serving client traffic"
START_TIMEOUT = 20.0
POLL = 0.01


class Etcd:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.prefix = PREFIX

    @property
    def endpoint(self) -> str:
        return f"http://{self.lab.topology.etcd.v4.partition('/')[0]}:{PORT}"

    @property
    def log(self) -> Path:
        return self.lab.path / "etcd" / "etcd.log"

    async def start(self) -> None:
        """Start it; returns when it serves."""
        data = self.lab.path / "etcd" / "data"
        data.parent.mkdir(exist_ok=True)
        self.log.touch()
        start = self.log.stat().st_size
        command = [
            find_program("etcd"),
            f"--name={NAME}",
            f"--data-dir={data}",
            f"--listen-client-urls={self.endpoint},http://127.0.0.1:{PORT}",
            f"--advertise-client-urls={self.endpoint}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            f"--initial-cluster={NAME}=http://127.0.0.1:2380",
            "--heartbeat-interval=10",
            "--election-timeout=100",
            "--logger=zap",
            "--unsafe-no-fsync",  # the data does not outlive the lab
        ]
        await self.lab.space.spawn(NAME, NAME, command, self.log, environment())
        end = time.monotonic() + START_TIMEOUT
        while not self._serves(start):
            if (code := (await self.lab.space.daemons()).get(NAME)) is not None:
                raise LabError(f"etcd ended with code {code}:\n{self._tail()}", where=str(self.log))
            if time.monotonic() > end:
                raise LabError(f"etcd does not serve after {START_TIMEOUT:g} s:\n{self._tail()}", where=str(self.log))
            await asyncio.sleep(POLL)

    def _serves(self, start: int) -> bool:
        with self.log.open("rb") as log:
            log.seek(start)
            return SERVING in log.read()

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    async def stop(self) -> None:
        """SIGTERM, as an orderly stop."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL, as a crash."""
        await self._end(signal.SIGKILL)

    async def _end(self, number: int) -> None:
        if await self.lab.space.signal(NAME, number):
            await self.lab.space.wait(NAME)

    async def restart(self) -> None:
        """Killed and started again on its data."""
        await self.kill()
        await self.start()

    async def wipe(self) -> None:
        """Killed, its data gone, started anew with the network's configuration, and nothing else, in it."""
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.lab.path / "etcd" / "data", ignore_errors=True)
        await self.start()
        await self.put_config(self.lab.topology.config)

    async def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        await self.lab.space.signal(NAME, signal.SIGSTOP)

    async def resume(self) -> None:
        await self.lab.space.signal(NAME, signal.SIGCONT)

    async def ctl(self, *args: str, input: str | None = None, timeout: float = 20.0) -> str:
        """Run etcdctl against it; what it printed."""
        command = [find_program("etcdctl"), f"--endpoints=http://127.0.0.1:{PORT}", *args]
        return (await self.lab.space.run(NAME, command, input=input, timeout=timeout)).out

    async def put_config(self, config: Mapping[str, Any] | str) -> None:
        """Write <prefix>/config. A string is written as it is, right or wrong."""
        text = config if isinstance(config, str) else json.dumps(config)
        await self.ctl("put", f"{self.prefix}/config", text)

    async def leases(self) -> dict[str, str]:
        """What stands under <prefix>/subnets: key to JSON."""
        lines = (await self.ctl("get", "--prefix", f"{self.prefix}/subnets/")).splitlines()
        return {key.rpartition("/")[2]: value for key, value in zip(lines[::2], lines[1::2], strict=False)}
