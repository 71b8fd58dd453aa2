"""Runs what a backend has beside its plan: the udp engine, the BGP speaker.

Rules: a service that raises is started again with jittered back-off, or at once when what it works with changes; it
is reported, and never takes the agent down; while it is away its kernel objects stay. Cancelling `run` is the agent
going away: what carries traffic stays. `end` is the backend no longer wanted: what the service published is
withdrawn, and it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from netagent.contract import RANK_SERVICE, STOPPING, Answer, Backend, Context, Service, Viewer
from netagent.errors import UsageError
from netagent.model import Finding, Lease, NodeRecord, Object
from netagent.reconcile import Reconciler

log = logging.getLogger(__name__)

BACKOFF_FIRST, BACKOFF_MAX = 0.2, 10.0  # seconds
STOP_DEADLINE = 5.0


class Port:
    """What the agent lends to one service (contract.ServicePort)."""

    def __init__(
        self,
        name: str,
        reconciler: Reconciler,
        run_dir: Path,
        state_dir: Path,
        share: Callable[[Mapping[str, str]], Awaitable[None]],
    ) -> None:
        self.run_dir = run_dir
        self.state_dir = state_dir
        self.findings: tuple[Finding, ...] = ()
        self._prefix = f"service/{name}/"
        self._reconciler = reconciler
        self._share = share
        self._rank = RANK_SERVICE
        self._published: dict[str, tuple[Object, ...]] = {}
        self._closed = False

    def publish(self, objects: Mapping[str, Iterable[Object]]) -> None:
        if self._closed:
            return
        wishes: dict[str, tuple[Object, ...]] = {}
        for name, some in objects.items():
            wanted = tuple(some)
            if wanted:
                self._published[name] = wanted
            else:
                self._published.pop(name, None)
            wishes[self._prefix + name] = wanted
        self._reconciler.put_all(wishes, self._rank)

    def set_rank(self, rank: int) -> None:
        """Of all that is published, now and from now on."""
        if rank != self._rank:
            self._rank = rank
            wishes = {self._prefix + name: objects for name, objects in self._published.items()}
            self._reconciler.put_all(wishes, rank)

    def report(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)

    async def share(self, attributes: Mapping[str, str]) -> None:
        await self._share(attributes)

    def close(self) -> None:
        """Withdraw everything that the service published, and take nothing from it any more."""
        self.publish(dict.fromkeys(self._published, ()))
        self._closed = True


class Runner:
    """One service of one standing backend, kept running."""

    def __init__(self, backend: Backend, port: Port) -> None:
        self.backend = backend
        self.port = port
        self._service: Service | None = None
        self._task: asyncio.Task[None] | None = None
        self._error = ""
        self._context: Context | None = None
        self._changed = asyncio.Event()

    @property
    def serves(self) -> bool:
        """Whether the backend has a service at all."""
        return self._service is not None

    def start(self, context: Context, nodes: Mapping[str, NodeRecord]) -> None:
        """Make the service, if the backend has one, and run it as a task. Its peers are told by `peers`."""
        service = self.backend.service(context, self.port)
        if service is None:
            return
        self._context = context
        service.configure(context)
        service.nodes(nodes)
        service.peers({}, (), whole=True)
        self._service = service
        self._task = asyncio.create_task(self._keep(service), name=f"service {self.backend.name}")

    def configure(self, context: Context) -> None:
        if self._service is not None:
            self._service.configure(context)
            if context != self._context:
                self._context = context
                self._changed.set()

    def peers(self, changed: Mapping[str, Lease], removed: Iterable[str]) -> None:
        if self._service is not None:
            self._service.peers(changed, removed, whole=False)

    def nodes(self, nodes: Mapping[str, NodeRecord]) -> None:
        if self._service is not None:
            self._service.nodes(nodes)

    async def settled(self) -> None:
        if self._service is not None:
            await self._service.settled()

    def status(self) -> Mapping[str, Any]:
        """What the service says of itself; "state" is "failed" while it waits to be started again."""
        if self._service is None:
            return {}
        status = self._service.status()
        return {**status, "state": "failed", "error": self._error} if self._error else status

    def view(self, name: str, arguments: Mapping[str, str]) -> Answer:
        """What the service answers. UsageError if it has no views or not that one."""
        service: object = self._service
        if isinstance(service, Viewer):
            return service.view(name, arguments)
        raise UsageError(
            f"the {self.backend.name} backend has no views", remedy="`netagent status` shows all there is"
        )

    async def leave(self, message: str | None = None) -> None:
        """The agent goes away: stop running the service, leave what carries traffic."""
        if self._task is not None:
            self._task.cancel(message)
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def end(self) -> None:
        """The backend is no longer wanted. At once a successor may publish under the same keys."""
        self.port.close()
        await self.leave(STOPPING)
        if self._service is not None:
            try:
                async with asyncio.timeout(STOP_DEADLINE):
                    await self._service.stop()
            except Exception as error:
                log.warning("stopping the %s service: %s", self.backend.name, error or type(error).__name__)

    async def _keep(self, service: Service) -> None:
        delay = BACKOFF_FIRST
        while True:
            started = asyncio.get_running_loop().time()
            try:
                self._error = ""
                await service.run()
                self._error = "it ended by itself"
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._error = str(error) or type(error).__name__
                log.exception("the %s service failed", self.backend.name)
            if asyncio.get_running_loop().time() - started > BACKOFF_MAX:
                delay = BACKOFF_FIRST
            self._changed.clear()
            try:
                async with asyncio.timeout(delay * random.uniform(0.5, 1.5)):  # noqa: S311
                    await self._changed.wait()
                delay = BACKOFF_FIRST
            except TimeoutError:
                delay = min(delay * 2, BACKOFF_MAX)
