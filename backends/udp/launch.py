"""Starting the engine's process, and ending one that no longer answers.

Rule: the engine is nobody's child. What is started here only prepares it, forks it off into a session of its own and
says whether that went well; so neither the agent's end nor its event loop's takes the engine along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from backends.udp.control import ControlError

DEADLINE = 10.0  # seconds until it listens


async def start(path: Path, tag: str, *, takeover: bool = False) -> None:
    """Start an engine that listens at `path`, or takes over from the one that does.

    ControlError with what it said if it cannot; TimeoutError if it says nothing.
    """
    command = [sys.executable, "-P", "-m", "backends.udp.engine", "--control", str(path), "--tag", tag]
    if takeover:
        command.append("--takeover")
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(DEADLINE):
            said, _ = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise TimeoutError(f"the engine was not ready within {DEADLINE:.0f} s") from None
    if process.returncode != 0:
        raise ControlError(said.decode(errors="replace").strip() or f"exit status {process.returncode}")


def kill(pid: int) -> None:
    """End an engine that does not answer any more."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
