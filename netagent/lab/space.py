"""A lab's namespaces from outside: made, entered, and ended.

Rules: the machine's own namespaces are never entered for writing; without root everything lies in a user namespace
in which we are root. A lab lives as long as its holder does (holder.py), and whether that lives is asked of its
socket, never of a process id in a file. Entering is nsenter(1), so that what is started is a plain child process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from netagent.errors import NetagentError
from netagent.lab import holder

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 20.0
REQUEST_TIMEOUT = 10.0
END_TIMEOUT = 10.0


class LabError(NetagentError):
    """The lab cannot do what was asked of it."""


class Unable(LabError):
    """This machine cannot do it at all, whatever the lab does."""


class Result(NamedTuple):
    """What a command inside left: exit code, standard output and error."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """The environment inside a lab: the unpacked tools are found, and no setting of the caller's agent is."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NETAGENT_")}
    tools = ROOT / ".tools"
    places = [str(tools / "bin"), str(Path(sys.executable).parent), env.get("PATH", ""), "/usr/sbin", "/sbin"]
    env["PATH"] = os.pathsep.join(places)
    if (tools / "lib").is_dir():
        env["LD_LIBRARY_PATH"] = str(tools / "lib")
    return {**env, "ETCDCTL_API": "3", "PYTHONUNBUFFERED": "1"}


def find_program(name: str) -> str:
    """A program's path, from .tools or the machine."""
    if path := shutil.which(name, path=environment()["PATH"]):
        return path
    raise LabError(f"{name} is not here", remedy="`make tools` fetches it into .tools/, with nothing installed")


class Space:
    """The namespaces of one lab, by its directory."""

    def __init__(self, directory: Path, pid: int, *, userns: bool) -> None:
        self.directory = directory
        self.pid = pid  # of the holder, as seen from here
        self.userns = userns
        self._starter: subprocess.Popen[bytes] | None = None
        self._enter = ["nsenter", *(["--user", "--preserve-credentials"] if userns else [])]
        self._enter += [f"--target={pid}", "--mount", "--net", "--pid", "--"]
        # nsenter forks to get into the PID namespace: without this its child would outlive it when it is killed.
        self._enter += ["setpriv", "--pdeathsig", "KILL", "--"]

    # ------------------------------------------------------------------------------------- beginning and end

    @classmethod
    async def make(cls, directory: Path, *, ephemeral: bool, remove: bool = False) -> Space:
        """New namespaces. `ephemeral`: they end with this process, however it ends (and with `remove` the directory
        goes too); else only by `end`."""
        userns = os.geteuid() != 0
        env = environment()
        for program in ("unshare", "nsenter", "setpriv", "mount", "ip"):
            find_program(program)
        command = ["unshare", *(["--user", "--map-root-user"] if userns else [])]
        command += ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += [sys.executable, "-m", holder.__name__, str(directory)]
        with (directory / holder.LOG).open("wb") as log:
            starter = subprocess.Popen(  # noqa: ASYNC220 (asyncio would kill it when its loop closes)
                [*command, *(["--until-eof"] if ephemeral else []), *(["--remove"] if remove else [])],
                stdin=subprocess.PIPE if ephemeral else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        assert starter.stdout is not None
        try:
            said = await asyncio.wait_for(_read_line(starter.stdout.fileno()), START_TIMEOUT)
        except BaseException:
            _end_starter(starter)
            raise
        finally:
            starter.stdout.close()
        if said != b"ready\n":
            _end_starter(starter)
            raise _refused((directory / holder.LOG).read_text(errors="replace").strip(), userns=userns)
        space = cls(directory, _holder_pid(directory), userns=userns)
        space._starter = starter
        return space

    @classmethod
    def open(cls, directory: Path, *, userns: bool) -> Space | None:
        """The namespaces of a running lab, or None when its holder is gone."""
        try:
            return cls(directory, _holder_pid(directory), userns=userns)
        except OSError:
            return None

    async def end(self) -> None:
        """End the holder, and with it every process and namespace of the lab. Returns when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self.pid)
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                await _readable(fd, END_TIMEOUT)
            finally:
                os.close(fd)
        if self._starter is not None:
            _end_starter(self._starter)
            self._starter = None

    # -------------------------------------------------------------------------------------------- commands

    def command(self, netns: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a namespace of the lab ("": in the lab's own)."""
        return [*self._enter, *(["ip", "netns", "exec", netns] if netns else []), *argv]

    async def start(self, netns: str, argv: Sequence[str], **options: Any) -> asyncio.subprocess.Process:
        """Start a command inside, as a child of ours. `options` are those of asyncio.create_subprocess_exec."""
        return await asyncio.create_subprocess_exec(
            *self.command(netns, argv), **{"env": environment(), "stdin": asyncio.subprocess.DEVNULL, **options}
        )

    async def run(
        self,
        netns: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout: float = 30.0,
        check: bool = True,
    ) -> Result:
        """Run a command inside and wait for it. `check`: LabError when it fails."""
        process = await self.start(
            netns,
            argv,
            env=env or environment(),
            stdin=asyncio.subprocess.DEVNULL if input is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            given = None if input is None else input.encode()
            out, err = await asyncio.wait_for(process.communicate(given), timeout)
        except TimeoutError:
            raise LabError(f"no end after {timeout:g} s: {' '.join(argv)}", where=netns) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        result = Result(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
        if check and result.code:
            said = (result.err or result.out).strip()
            raise LabError(f"{' '.join(argv)}: exit code {result.code}: {said}", where=netns)
        return result

    # ---------------------------------------------------------------------------- daemons, kept by the holder

    async def spawn(self, name: str, netns: str, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
        """Start a daemon under a name of its own; its process id inside."""
        request = {"op": "spawn", "name": name, "netns": netns, "argv": list(argv), "log": str(log), "env": dict(env)}
        return int((await self.request(request))["pid"])

    async def signal(self, name: str, number: int) -> bool:
        """Signal a daemon; False when it has ended or never ran."""
        return bool((await self.request({"op": "signal", "name": name, "number": number}))["sent"])

    async def wait(self, name: str, timeout: float | None = REQUEST_TIMEOUT) -> int:
        """A daemon's exit code (-9: killed by SIGKILL), when it has ended."""
        return int((await self.request({"op": "wait", "name": name}, timeout))["code"])

    async def daemons(self) -> dict[str, int | None]:
        """Exit code of each daemon ever started, None while it runs."""
        return {name: entry["code"] for name, entry in (await self.request({"op": "list"})).items()}

    async def request(self, request: Mapping[str, Any], timeout: float | None = REQUEST_TIMEOUT) -> dict[str, Any]:
        """One request to the holder (holder.py has them)."""
        folder = os.open(self.directory, os.O_PATH)
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/{holder.SOCKET}")
                try:
                    writer.write(json.dumps(request).encode() + b"\n")
                    line = await reader.readline()
                finally:
                    writer.close()
        except TimeoutError:
            raise LabError(
                f"no answer to {request['op']} {request.get('name', '')}", where=str(self.directory)
            ) from None
        except OSError as error:
            raise LabError(
                f"the lab is gone ({error.strerror})",
                where=str(self.directory),
                remedy="`netagent lab up` makes it anew",
            ) from error
        finally:
            os.close(folder)
        answer: dict[str, Any] = json.loads(line or b'{"error": "the holder ended"}')
        if "error" in answer:
            raise LabError(answer["error"], where=str(self.directory))
        return answer

    async def pid_of(self, name: str) -> int | None:
        """A daemon's process id as seen from here, None when it does not run."""
        entry = (await self.request({"op": "list"})).get(name)
        return None if entry is None or entry["code"] is not None else self._outer(entry["pid"])

    def _outer(self, inner: int) -> int | None:
        """The process id out here of a child of the holder that has the id `inner` in there."""
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                if int(ids[-1]) == inner:
                    return int(pid)
        return None


def _holder_pid(directory: Path) -> int:
    """Process id of whoever listens on the holder's socket, as seen from here. OSError when nobody does."""
    folder = os.open(directory, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(f"/proc/self/fd/{folder}/{holder.SOCKET}")
            pid, _uid, _gid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(pid)
    finally:
        os.close(folder)


async def _read_line(fd: int) -> bytes:
    """What comes on a pipe up to its first line's end, or to its end."""
    said = b""
    while not said.endswith(b"\n"):
        await _readable(fd, START_TIMEOUT)
        if not (chunk := os.read(fd, 4096)):
            break
        said += chunk
    return said


async def _readable(fd: int, timeout: float) -> None:
    """Until a descriptor is readable (a pidfd: until the process has ended)."""
    if select.select([fd], [], [], 0)[0]:
        return
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    finally:
        loop.remove_reader(fd)


def _end_starter(starter: subprocess.Popen[bytes]) -> None:
    """The unshare(1) that started the holder: with --kill-child its end is the holder's end."""
    starter.kill()
    starter.wait()
    if starter.stdin is not None:
        starter.stdin.close()


def _refused(said: str, *, userns: bool) -> Unable:
    """Why no namespaces could be made, in an operator's words."""
    if not userns:
        return Unable(f"the lab's namespaces could not be made: {said}")
    switches = {
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone=1"),
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        "/proc/sys/user/max_user_namespaces": ("0", "user.max_user_namespaces=10000"),
    }
    for path, (off, remedy) in switches.items():
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == off:
                return Unable(
                    f"this machine lets only root make user namespaces ({said})",
                    remedy=f"Run the lab as root, or allow them: sysctl -w {remedy}",
                )
    return Unable(f"no user namespace could be made: {said}", remedy="Run the lab as root")
