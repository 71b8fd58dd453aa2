"""What is still to be seen of an agent that does not answer: its files, and what it left in the kernel.

Rule: only looks, never fails: whatever cannot be read is left out. Traffic outlives the agent, so the answer to
"is the network gone, too?" is mostly no, and this says so.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import msgspec

from netagent.cli import agent, output
from netagent.health import duration

SNAPSHOT_NAME = "snapshot"
PROTOCOL = "110"  # of our routes, unless the settings say otherwise
IP_SECONDS = 5.0


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """`snapshot_time` is unix seconds (0.0: there is none, None: this user may not look); `routes` are those of both
    families, None where they cannot be counted."""

    snapshot: str = ""
    snapshot_time: float | None = 0.0
    devices: tuple[str, ...] = ()
    routes: int | None = None


def look(state_dir: str | None = None) -> Left:
    directory = Path(state_dir or agent.setting("state_dir") or agent.STATE_DIR)
    snapshot = directory / SNAPSHOT_NAME
    taken: float | None
    try:
        taken = snapshot.stat().st_mtime
    except PermissionError:
        taken = None
    except OSError:
        taken = 0.0
    return Left(snapshot=str(snapshot), snapshot_time=taken, devices=_devices(), routes=_routes())


def show(left: Left) -> None:
    if left.snapshot_time is None:
        print(f"  whether there is a snapshot of the cluster only root may see ({output.clean(left.snapshot)})")
    elif left.snapshot_time:
        age = duration(time.time() - left.snapshot_time)
        print(f"  last snapshot of the cluster: {age} ago ({output.clean(left.snapshot)})")
    else:
        print(f"  no snapshot of an earlier run ({output.clean(left.snapshot)})")
    if left.routes is None or left.routes or left.devices:
        devices = f", devices {', '.join(left.devices)}" if left.devices else ""
        routes = "routes not counted" if left.routes is None else f"{left.routes} routes"
        print(f"  still in the kernel: {routes}{devices}; traffic that uses them goes on")
    else:
        print("  nothing of ours is in the kernel")


def _devices(root: Path = Path("/sys/class/net")) -> tuple[str, ...]:
    """Links whose alias is ours."""
    found = []
    try:
        for link in sorted(root.iterdir()):
            try:
                if (link / "ifalias").read_text().strip() == "netagent":
                    found.append(link.name)
            except OSError:
                continue
    except OSError:
        pass
    return tuple(found)


def _routes() -> int | None:
    protocol = agent.setting("route_protocol") or PROTOCOL
    total = 0
    for family in ("-4", "-6"):
        try:
            answer = subprocess.run(
                ["ip", family, "-j", "route", "show", "table", "main", "proto", protocol],
                capture_output=True,
                timeout=IP_SECONDS,
                check=True,
            )
            total += len(json.loads(answer.stdout or b"[]"))
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
    return total
