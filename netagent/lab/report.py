"""What `netagent lab status` and `logs` show: each host with its agent's own words, and the logs side by side."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from netagent.errors import NetagentError
from netagent.lab.lab import Lab
from netagent.lab.node import Node

EXIT = {"healthy": 0, "degraded": 1, "down": 2}
POLL = 0.2  # seconds between two looks at a log that is followed
SHOWN = 200  # lines of each log shown at first


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One host. `state` is the agent's verdict (healthy, degraded, down), `says` its reason."""

    name: str
    rack: str
    address: str
    subnet: str
    container: str
    state: str
    says: str
    pid: int | None


async def look(lab: Lab) -> list[NodeView]:
    return list(await asyncio.gather(*(_view(lab, node) for node in lab.nodes.values())))


async def _view(lab: Lab, node: Node) -> NodeView:
    code = await node.agent_code()
    try:
        verdict = (await node.status()).verdict
        state, says = verdict.state, verdict.reason
    except NetagentError as error:
        state = "down"
        says = str(error) if code is None else f"its agent ended with code {code}: see its log"
    env = node.subnet_env()
    return NodeView(
        name=node.name,
        rack=node.host.rack,
        address=node.host.v4.partition("/")[0],
        subnet=" ".join(filter(None, (env.get("FLANNEL_SUBNET"), env.get("FLANNEL_IPV6_SUBNET")))) or "-",
        container=" ".join(filter(None, (node.container_ip(family) for family in lab.topology.families))) or "-",
        state=state,
        says=says,
        pid=await lab.space.pid_of(f"{node.name}/agent"),
    )


def logs(paths: Mapping[str, Path], *, follow: bool) -> None:
    """Print the end of each log, with the host's name before each line if there are several; then what comes,
    until Ctrl-C."""
    places = dict.fromkeys(paths, 0)
    first = True
    while True:
        for name, path in paths.items():
            lines, places[name] = _since(path, places[name])
            for line in lines[-SHOWN:] if first else lines:
                print(f"{name:5} {line}" if len(paths) > 1 else line)
        if not follow:
            return
        first = False
        sys.stdout.flush()
        time.sleep(POLL)


def _since(path: Path, place: int) -> tuple[list[str], int]:
    """The whole lines of a file after `place` (bytes), and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            data = file.read()
    except FileNotFoundError:
        return [], place
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), place + len(whole)
