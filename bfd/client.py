"""The process that keeps BFD's time (engine.py), as asyncio sees it: started when there is a session, kept alive.

Rule: what the process says is news, its silence or its end is none. When it dies another one goes on with the
sessions that were Up, with their discriminators and timers, so that neither side takes the other for gone.
With a `path` it outlives us for a while, and who comes next finds it there: one of the same make goes on under its
new owner, another yields to a new one. Nobody waits for it but `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bfd import orders
from bfd.orders import Health, Status
from bfd.session import Timing
from bfd.sessions import LONGEST_FAREWELL, Place, Wanted

log = logging.getLogger("bfd")

_AGAIN = (0.0, 0.2, 1.0, 5.0)
"""Seconds until the process is started anew, after one, two, ... ends soon after each other."""
_STEADY = 30.0
_ANSWER = 2.0
"""Seconds for a process that waits for an owner to say what it has."""
_ROOT = str(Path(__file__).absolute().parent.parent)
_ENDING = 1.0
"""Seconds that the process may take to end after its last word."""
STOP_TIME = LONGEST_FAREWELL + 0.5


class Client:
    """Sessions by name. `on_change` is told what was known of one before, and what is now.

    `path` is for the socket at which a process that outlives us waits; its directory exists.
    """

    def __init__(
        self,
        on_change: Callable[[str, Status, Status], None] = lambda name, before, now: None,
        path: str = "",
    ) -> None:
        self.path = path
        self._outlive = 0.0
        self._pid: int | None = None
        self._found: dict[Place, Status] = {}
        """What a process of another make had: the next one goes on with it."""
        self.status: dict[str, Status] = {}
        self.health = Health()
        self.restarts = 0
        self._on_change = on_change
        self._wanted: dict[str, Wanted] = {}
        self._keys: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._last_key = 0
        self._failures: dict[str, int] = {}
        """What the process has counted for us, as far as it was acted on."""
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

    def set(self, name: str, wanted: Wanted, past: Status | None = None) -> None:
        """Have that session, begun anew where its place is another one. To be called in a running loop.

        `past` is what is known of an earlier one by that name: it goes on counting from there.
        """
        before = self._wanted.get(name)
        if before == wanted:
            return
        if before is not None and before.place != wanted.place:
            past = self.status[name]
            self.unset(name)
        self._wanted[name] = wanted
        if name not in self._keys:
            self._last_key += 1
            self._keys[name] = self._last_key
            self._names[self._last_key] = name
            self.status[name] = _after(past)
        if self._control is not None:
            self._order(orders.to_set(self._keys[name], wanted.place, wanted.timing))
        elif self._starting is None and self._again is None and self._stopped is None:
            self._start_soon(0.0)

    def unset(self, name: str) -> None:
        """End that session, if there is one: its neighbour is told AdminDown."""
        if self._wanted.pop(name, None) is None:
            return
        key = self._keys.pop(name)
        del self._names[key], self.status[name]
        self._failures.pop(name, None)
        self._order({"do": "remove", "key": key})

    def outlive(self, seconds: float) -> None:
        """For how long the process goes on after us when we go without a word; 0: not at all. Needs a path."""
        if seconds != self._outlive:
            self._outlive = seconds
            self._order({"do": "outlive", "seconds": seconds})

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._pid

    async def leave(self) -> None:
        """Go without a word: the process outlives us, if it was told to; else it says AdminDown and ends."""
        lasting = bool(self.path) and self._outlive > 0
        await self._cease()
        self._hang_up()
        process, self._process = self._process, None
        if process is not None and not lasting:
            await _end(process)

    async def stop(self) -> None:
        """Have every neighbour told AdminDown, and end the process; at most STOP_TIME seconds."""
        await self._cease()
        assert self._stopped is not None
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

    async def _cease(self) -> None:
        """Begin nothing any more."""
        self._stopped = self._stopped or asyncio.Event()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)

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
        try:
            control = await self._take_over() or await self._spawn()
        except OSError as error:
            log.error("BFD's process cannot be started: %s", error.strerror)
            self._starting = None
            self._ended()
            return
        self._starting = None
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        self._control = control
        self._orders.clear()
        self._writing = False
        self._failures.clear()
        loop.add_reader(control, self._readable)
        self._order({"do": "outlive", "seconds": self._outlive})
        for number, (place, known) in enumerate(self._found.items(), 1):  # for whoever wants them later
            with contextlib.suppress(ValueError):  # its release had other bounds
                self._resume(-number, place, known)
        self._found = {}
        for name, wanted in self._wanted.items():
            self._resume(self._keys[name], wanted.place, self.status[name])
            self._order(orders.to_set(self._keys[name], wanted.place, wanted.timing))
        if before is not None:
            await _end(before)

    def _resume(self, key: int, place: Place, known: Status) -> None:
        """Have a session gone on with, if it was Up, with the timers that its neighbour knows. Raises ValueError."""
        if (resumed := known.resumable()) is not None:
            timing = Timing(known.min_tx, known.min_rx, known.multiplier)
            self._order(orders.to_set(key, place, timing, resumed))

    async def _take_over(self) -> socket.socket | None:
        """The process that has outlived another owner; None where there is none, or none of our make."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            if not self.path:
                raise FileNotFoundError
            control.connect(self.path)
            with contextlib.suppress(TimeoutError, ValueError, KeyError, TypeError):  # silent, or of another language
                async with asyncio.timeout(_ANSWER):
                    if await self._hear_out(control):
                        return control
            # It is to let go of the ports: when this returns, unless it is stuck.
            control.send(orders.message({"do": "yield"}))
            async with asyncio.timeout(_ANSWER):
                while await asyncio.get_running_loop().sock_recv(control, orders.LONGEST):
                    pass
        except (OSError, TimeoutError):
            pass
        except BaseException:
            control.close()
            raise
        control.close()
        return None

    async def _hear_out(self, control: socket.socket) -> bool:
        """What the process has; whether it is of our make."""
        loop = asyncio.get_running_loop()
        control.send(orders.message({"do": "hello"}))
        tag = ""
        while True:
            report = orders.value_of(await loop.sock_recv(control, orders.LONGEST))
            if "hello" in report:
                self._pid, tag = report["hello"], report["tag"]
            elif "scheduling" in report:
                self.health.scheduling = report["scheduling"]
            elif "found" in report:
                self._found[orders.place_of(report["found"])] = orders.known_of(report["status"])
            elif "found_all" in report:
                break
        if tag != make():
            return False
        self._found = {}
        return True

    async def _spawn(self) -> socket.socket:
        """A process of our own. Raises OSError."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = ["--fd", str(its.fileno()), "--tag", make(), *(["--path", self.path] if self.path else [])]
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH", ""))))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-P", "-m", "bfd", *options),  # it needs no site-packages
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the owner
                pass_fds=(its.fileno(),),
                env={**os.environ, "PYTHONPATH": path},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        self._pid = self._process.pid
        ours.setblocking(False)
        return ours

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
        self._pid = None

    # -------------------------------------------------------------------------------------------------- what is said

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
                    before = self.status[name]
                    now = self.status[name] = replace(before, sent=sent, received=received, heard_at=heard_at)
                    self._on_change(name, before, now)
        elif "scheduling" in report:
            self.health.scheduling = report["scheduling"]
        elif "dropped" in report:
            self.health.dropped = report["dropped"]
            self.health.latest, self.health.slowdown = report["latest"], report["slowdown"]
        elif "problem" in report:
            log.warning("BFD's process will not outlive us: %s", report["problem"])
        elif "refused" in report:
            log.error("BFD's process does not understand an order: %s", report["refused"])
        elif "stopped" in report and self._stopped is not None:
            self._stopped.set()

    def _learn(self, name: str, fields: dict[str, Any]) -> None:
        before = self.status[name]
        # Counted over all processes, so that nobody sees a number grow smaller.
        missed = fields["failures"] - self._failures.get(name, 0)
        self._failures[name] = fields["failures"]
        fields["failures"] = before.failures + missed
        now = Status(
            **fields,
            sent=before.sent,
            received=before.received,
            heard_at=before.heard_at,
        )
        self.status[name] = now
        self._on_change(name, before, now)


def _after(past: Status | None) -> Status:
    """What is known of a session that begins, with what is known of the one before."""
    if past is None:
        return Status()
    return Status(diag=past.diag, failures=past.failures, sent=past.sent, received=past.received)


@functools.cache
def make() -> str:
    """What the process is made of: one of another release is not adopted."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))).hexdigest()[:16]


async def end_at(path: str) -> None:
    """End a process that waits for an owner there, if one does; its neighbours are told AdminDown."""
    with contextlib.suppress(OSError, TimeoutError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.setblocking(False)
        control.connect(path)
        control.send(orders.message({"do": "stop"}))
        async with asyncio.timeout(STOP_TIME):
            while await asyncio.get_running_loop().sock_recv(control, orders.LONGEST):
                pass


async def _end(process: asyncio.subprocess.Process) -> None:
    """See that it is gone."""
    try:
        async with asyncio.timeout(_ENDING):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
