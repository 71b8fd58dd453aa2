"""The process that keeps BFD's time (engine.py), as asyncio sees it: started when there is a session, kept alive.

Rule: what the process says is news, its silence or its end is none. When it dies another one goes on with the sessions
that were Up, with their discriminators and timers, so that neither we nor the neighbours take each other for gone.
Nobody waits for it but `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bfd import orders
from bfd.orders import Health, Status
from bfd.session import Timing
from bfd.sessions import LONGEST_FAREWELL, Place

log = logging.getLogger("bfd")

_AGAIN = (0.0, 0.2, 1.0, 5.0)
"""Seconds until the process is started anew, after one, two, ... ends soon after each other."""
_STEADY = 30.0
_ENDING = 1.0
"""Seconds that the process may take to end after its last word."""
STOP_TIME = LONGEST_FAREWELL + 0.5


class Wanted(NamedTuple):
    place: Place
    timing: Timing


class Client:
    """Sessions by name. `on_change` is told what was known of one before, and what is now."""

    def __init__(self, on_change: Callable[[str, Status, Status], None] = lambda name, before, now: None) -> None:
        self.status: dict[str, Status] = {}
        self.health = Health()
        self.restarts = 0
        self._on_change = on_change
        self._wanted: dict[str, Wanted] = {}
        self._keys: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._last_key = 0
        self._told: dict[str, Wanted] = {}
        """What the process that runs has been told."""
        self._failures: dict[str, int] = {}
        """Of the process that runs: what it has counted, as far as it was acted on."""
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._ends = 0
        self._started_at = 0.0
        self._orders: deque[bytes] = deque()
        self._writing = False
        self._stopped: asyncio.Event | None = None

    # ------------------------------------------------------------------------------------------------- the owner's

    def keep(self, wanted: Mapping[str, Wanted]) -> None:
        """Have these sessions and no others. To be called in a running loop."""
        if wanted == self._wanted:
            return
        self._wanted = dict(wanted)
        for name in self._keys.keys() - wanted.keys():
            self.status.pop(name, None)
            self._forget(name)
        for name in wanted.keys() - self._keys.keys():
            self._name(name)
        if self._control is not None:
            self._tell_wanted()
        elif wanted and self._starting is None and self._again is None and self._stopped is None:
            self._start_soon(0.0)

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid if self._process is not None else None

    async def stop(self) -> None:
        """Have every neighbour told AdminDown, and end the process; at most STOP_TIME seconds."""
        self._stopped = asyncio.Event()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._control is not None:
            self._order({"do": "stop"})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIME):
                    await self._stopped.wait()
        self._hang_up()
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        self.status.clear()

    # ------------------------------------------------------------------------------------------------ its process

    def _start_soon(self, wait: float) -> None:
        loop = asyncio.get_running_loop()

        def begin() -> None:
            self._again = None
            self._starting = loop.create_task(self._start())

        if wait:
            self._again = loop.call_later(wait, begin)
        else:
            begin()

    async def _start(self) -> None:
        before, self._process = self._process, None
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            root = str(Path(__file__).resolve().parent.parent)
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "bfd.engine", "--fd", str(its.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the owner
                pass_fds=(its.fileno(),),
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            ours.close()
            log.error("BFD's process cannot be started: %s", error.strerror)
            self._starting = None
            self._ended()
            return
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        self._starting = None
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        ours.setblocking(False)
        self._control = ours
        self._orders.clear()
        self._writing = False
        self._failures.clear()
        loop.add_reader(ours, self._readable)
        self._told = {}
        self._tell_wanted()
        if before is not None:
            await _end(before)

    def _ended(self) -> None:
        """The process has gone by itself."""
        self._hang_up()
        if self._stopped is not None:
            self._stopped.set()
            return
        loop = asyncio.get_running_loop()
        self._ends = 1 if loop.time() - self._started_at > _STEADY else self._ends + 1
        self.restarts += 1
        log.warning("BFD's process has ended; another one goes on with its sessions")
        if self._wanted:
            self._start_soon(_AGAIN[min(self._ends, len(_AGAIN)) - 1])

    def _hang_up(self) -> None:
        if self._control is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._control)
            loop.remove_writer(self._control)
            self._control.close()
            self._control = None

    # -------------------------------------------------------------------------------------------------- what is said

    def _name(self, name: str) -> None:
        self._last_key += 1
        self._keys[name] = self._last_key
        self._names[self._last_key] = name
        self.status[name] = Status()

    def _forget(self, name: str) -> None:
        key = self._keys.pop(name)
        del self._names[key]
        self._failures.pop(name, None)
        if self._told.pop(name, None) is not None:
            self._order({"do": "remove", "key": key})

    def _tell_wanted(self) -> None:
        for name, wanted in self._wanted.items():
            before = self._told.get(name)
            if before == wanted:
                continue
            if before is not None and before.place != wanted.place:  # another session altogether
                self._forget(name)
                self._name(name)
                self._told.pop(name, None)
            self._told[name] = wanted
            resumed = self.status[name].resumable()
            self._order(orders.to_set(self._keys[name], wanted.place, wanted.timing, resumed if not before else None))

    def _order(self, order: dict[str, Any]) -> None:
        if self._control is not None:
            self._orders.append(orders.message(order))
            self._flush()

    def _flush(self) -> None:
        assert self._control is not None
        try:
            while self._orders:
                self._control.send(self._orders[0])
                self._orders.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._orders.clear()  # it has gone: reading will tell
        if bool(self._orders) is not self._writing:
            self._writing = not self._writing
            loop = asyncio.get_running_loop()
            if self._writing:
                loop.add_writer(self._control, self._flush)
            else:
                loop.remove_writer(self._control)

    def _readable(self) -> None:
        """Reports, all that are there: a speaker that was busy has the latest at once."""
        while self._control is not None:
            try:
                octets = self._control.recv(orders.LONGEST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                octets = b""
            if not octets:
                self._ended()
                return
            self._hear(orders.value_of(octets))

    def _hear(self, report: dict[str, Any]) -> None:
        if "status" in report:
            name = self._names.get(report["key"])
            if name is not None:
                self._learn(name, report["status"])
        elif "counters" in report:
            for key, sent, received, heard_at in report["counters"]:
                name = self._names.get(key)
                if name is not None:
                    known = self.status[name]
                    self.status[name] = replace(known, sent=sent, received=received, heard_at=heard_at)
        elif "scheduling" in report:
            self.health.scheduling = report["scheduling"]
        elif "dropped" in report:
            self.health.dropped = report["dropped"]
            self.health.latest, self.health.slowdown = report["latest"], report["slowdown"]
        elif "stopped" in report and self._stopped is not None:
            self._stopped.set()

    def _learn(self, name: str, fields: dict[str, Any]) -> None:
        before = self.status[name]
        # Counted over all processes, so that nobody sees a number grow smaller.
        missed = fields["failures"] - self._failures.get(name, 0)
        self._failures[name] = fields["failures"]
        now = Status(
            **{**fields, "failures": before.failures + missed},
            sent=before.sent,
            received=before.received,
            heard_at=before.heard_at,
        )
        self.status[name] = now
        self._on_change(name, before, now)


async def _end(process: asyncio.subprocess.Process) -> None:
    """See that it is gone."""
    try:
        async with asyncio.timeout(_ENDING):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
