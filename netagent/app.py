"""Composition root: builds the objects, owns the task group and the signals.

Rules: SIGTERM and SIGINT leave the traffic flowing and end with exit code 0; SIGHUP reads the settings again; one
agent per state directory (a lock in it). The API and the metrics are imported and started after the first pass, or
soon after the start where there is none yet: they cost a quarter of a second and 11 MiB that no packet should wait
for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from netagent import __version__, api, memory
from netagent import log as logs
from netagent.agent import Agent
from netagent.config import Settings, unknown_variables
from netagent.errors import ConfigError
from netagent.identity import load_identity
from netagent.kernel.host import open_host
from netagent.registry import Registry
from netagent.store.etcd import open_store
from netagent.systemd import Notifier

log = logging.getLogger(__name__)

# A node that waits (for etcd, for a configuration) must answer too: the API starts then without a first pass.
API_AFTER = 2.0
EXPLAIN_EVERY = 2.0
STATUS_EVERY = 30.0  # seconds between two lines for `systemctl status`
CLOSE_DEADLINE = 2.0


def run(load: Callable[[], Settings]) -> int:
    """Run the agent until a signal ends it; the exit code. `load` reads the settings, now and on SIGHUP."""
    memory.tune()
    settings = load()
    logs.setup(settings.log_level, json=settings.log_format == "json")
    with alone(settings.state_dir):
        asyncio.run(_serve(settings, load))
    return 0


async def _serve(settings: Settings, load: Callable[[], Settings]) -> None:
    identity = load_identity(settings.state_dir, settings.node_name)
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the run directory cannot be used: {error.strerror}",
            where=str(settings.run_dir),
            remedy="Run the agent as root, or choose another with --run-dir",
        ) from None
    log.info("netagent %s on node %s", __version__, identity.name)
    store = open_store(settings)
    try:
        host = open_host(settings)
        try:
            agent = Agent(settings, identity, store, host, Registry(), load)
            agent.note("environment", unknown_variables())
            await _supervise(agent, Notifier())
        finally:
            host.close()
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_DEADLINE):
                await store.close()


async def _supervise(agent: Agent, notifier: Notifier) -> None:
    """The agent, the API and systemd's wishes side by side, until a signal ends them or one of them fails."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        task = loop.create_task(_reload(agent, notifier), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    tasks = [
        asyncio.create_task(agent.run(), name="agent"),
        asyncio.create_task(_offer(agent), name="API"),
        asyncio.create_task(_tell(agent, notifier), name="systemd"),
        asyncio.create_task(_explain(agent), name="explain"),
        asyncio.create_task(_end(stop, notifier), name="signals"),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _end(stop: asyncio.Event, notifier: Notifier) -> None:
    await stop.wait()
    notifier.stopping("traffic keeps flowing")
    log.info("stopping; traffic keeps flowing")


async def _reload(agent: Agent, notifier: Notifier) -> None:
    notifier.reloading()
    for finding in await agent.reload():
        log.warning("%s: %s", finding.subject, finding.message)
    notifier.ready()


async def _offer(agent: Agent) -> None:
    """The API, from the first pass on, or soon after the start."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(API_AFTER):
            await agent.first_pass.wait()
    settings = agent.settings
    server = await api.start(
        agent, settings.run_dir, group=settings.socket_group, metrics_listen=settings.metrics_listen
    )
    agent.note("api", server.findings)
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop()


async def _tell(agent: Agent, notifier: Notifier) -> None:
    """systemd: ready once containers may be started, then a line of status and signs of life."""
    interval = notifier.watchdog_interval
    if interval is not None:
        notifier.watchdog()
    pause = min(interval or STATUS_EVERY, STATUS_EVERY)
    loop = asyncio.get_running_loop()
    told = 0.0
    ready = False
    while True:
        if not ready and agent.first_pass.is_set():
            ready = True
            log.info("ready: containers can be started")
            notifier.ready()
            told = 0.0
        if notifier.wanted and loop.time() - told >= STATUS_EVERY:
            told = loop.time()
            notifier.status(agent.headline())
        if interval is not None:
            notifier.watchdog()
        if ready:
            await asyncio.sleep(pause)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await agent.first_pass.wait()


async def _explain(agent: Agent) -> None:
    """Log what a start that takes its time waits for: once, and again when that is something else. Never ends."""
    said = ""
    while not agent.first_pass.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXPLAIN_EVERY):
                await agent.first_pass.wait()
        blockers = "; ".join(agent.status().verdict.blockers)
        timeless = re.sub(r"[0-9.]+ s\b", "", blockers)  # how long each endpoint was waited for is no news
        if blockers and timeless != said:
            said = timeless
            log.warning("not ready: %s", blockers)
    await asyncio.Event().wait()


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the lock of the state directory. ConfigError if another agent does."""
    path = directory / "lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise ConfigError(
            f"the state directory cannot be used: {error.strerror}",
            where=str(directory),
            remedy="Run the agent as root, or choose another with --state-dir",
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "another agent is running with this state directory",
                where=str(path),
                remedy="Stop it first, or give this one its own --state-dir and --run-dir",
            ) from None
        yield
