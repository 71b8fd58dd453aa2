"""The agent's API: JSON over HTTP on a unix socket, and /metrics.

Rule: aiohttp and prometheus_client (11 MiB and a quarter of a second to import) come in only through `start`, which
the agent calls when its first pass stands, and which imports them in a thread, so that events are handled meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from netagent import memory

if TYPE_CHECKING:
    from netagent.api.server import Server
    from netagent.status import AgentView

SOCKET_NAME = "netagent.sock"


async def start(view: AgentView, run_dir: Path, *, group: str = "", metrics_listen: str = "") -> Server:
    """Serve `view` on `run_dir`/netagent.sock, and its metrics on `metrics_listen` ("HOST:PORT") where given.

    The caller stops it with `await server.stop()`. What could not be opened does not raise: see `server.findings`.
    """
    import asyncio  # here, because the CLI imports this package and has no use for it
    import importlib

    module = await asyncio.to_thread(importlib.import_module, "netagent.api.server")
    server: Server = module.Server(view)
    await server.start(run_dir / SOCKET_NAME, group=group, metrics_listen=metrics_listen)
    memory.trim()  # the importing thread and the agent's start leave much that is free
    return server
