"""Process 1 of a lab: holds its namespaces, starts its daemons, reaps what they leave. Ends, and all is gone.

    unshare [--user --map-root-user] --mount --net --pid --fork --mount-proc python -m netagent.lab.holder DIR
        [--until-eof [--remove]]      end with standard input, and then remove DIR

Rules: standard library only; nothing but the lab's own directory is written. /run is a private tmpfs, so that
`ip netns` keeps its names in here. The kernel kills every process of a PID namespace when its process 1 ends, and
namespaces end with their last process: there is nothing to clean up, whatever the end was.

On DIR/holder.sock, one request a connection, a JSON line each way:

    {"op": "spawn", "name": N, "argv": [...], "log": PATH, "env": {...}, "netns": N?}  ->  {"pid": P}
    {"op": "signal", "name": N, "number": 15}                            ->  {"sent": true|false}
    {"op": "wait", "name": N}                    when it has ended       ->  {"code": C}    (-S: killed by signal S)
    {"op": "list"}                                                       ->  {N: {"pid": P, "code": C|null}, ...}

and {"error": TEXT} for what cannot be done. Process ids are those of this PID namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOCKET = "holder.sock"
LOG = "holder.log"


class Holder:
    def __init__(self, listener: socket.socket, remove: Path | None) -> None:
        self.listener = listener
        self.remove = remove
        self.selector = selectors.DefaultSelector()
        self.pids: dict[str, int] = {}
        self.codes: dict[str, int | None] = {}
        self.waiting: dict[str, list[socket.socket]] = {}

    def serve(self, *, until_eof: bool) -> None:
        """Until killed; with `until_eof` also until standard input, held by whoever started us, is closed."""
        wake, woken = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        self.selector.register(wake, selectors.EVENT_READ, lambda: self._reap(wake))
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        if until_eof:
            self.selector.register(sys.stdin, selectors.EVENT_READ, self._starter_gone)
        while True:
            for key, _ in self.selector.select():
                react: Callable[[], None] = key.data
                react()

    def _starter_gone(self) -> None:
        """Standard input ended: so did our starter, and nobody else will clear its temporary directory away."""
        if not os.read(sys.stdin.fileno(), 64):
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # everything in this PID namespace but ourselves
            if self.remove is not None:
                shutil.rmtree(self.remove, ignore_errors=True)
            sys.exit(0)

    def _accept(self) -> None:
        peer, _ = self.listener.accept()
        peer.settimeout(5)  # the requester writes its line at once; a silent one must not hold up the rest
        try:
            request = peer.makefile("rb").readline()
            answer = self._answer(json.loads(request), peer)
        except (OSError, ValueError, KeyError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        if answer is not None:
            _reply(peer, answer)

    def _answer(self, request: dict[str, Any], peer: socket.socket) -> dict[str, Any] | None:
        """The answer, or None when it comes later (`wait`)."""
        match request["op"]:
            case "spawn":
                return self._spawn(request)
            case "signal":
                return {"sent": self._signal(request["name"], request["number"])}
            case "wait":
                name = request["name"]
                if name not in self.codes:
                    return {"error": f"no process {name}"}
                if self.codes[name] is not None:
                    return {"code": self.codes[name]}
                self.waiting.setdefault(name, []).append(peer)
                return None
            case "list":
                return {name: {"pid": self.pids[name], "code": code} for name, code in self.codes.items()}
            case other:
                return {"error": f"unknown request {other!r}"}

    def _spawn(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["name"]
        if self.codes.get(name, 0) is None:
            return {"error": f"{name} already runs"}
        enter = ["ip", "netns", "exec", request["netns"]] if request.get("netns") else []
        with Path(request["log"]).open("ab") as log:
            process = subprocess.Popen(
                [*enter, *request["argv"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=request["env"],
                cwd="/",
                start_new_session=True,
            )
        process.returncode = 0  # we reap it ourselves: keep Popen from warning that nobody did
        self.pids[name], self.codes[name] = process.pid, None
        return {"pid": process.pid}

    def _signal(self, name: str, number: int) -> bool:
        if self.codes.get(name, 0) is not None:
            return False  # never started, or ended: its process id may be another's now
        os.kill(self.pids[name], number)
        return True

    def _reap(self, wake: socket.socket) -> None:
        """Every child that has ended: our daemons, and orphans that the kernel gave to process 1."""
        wake.recv(4096)
        names = {pid: name for name, pid in self.pids.items() if self.codes[name] is None}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (name := names.get(pid)) is not None:
                self.codes[name] = code = os.waitstatus_to_exitcode(status)
                for peer in self.waiting.pop(name, []):
                    _reply(peer, {"code": code})


def _reply(peer: socket.socket, answer: dict[str, Any]) -> None:
    try:
        peer.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        pass  # the requester went away
    finally:
        peer.close()


def main() -> None:
    directory = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.chdir(directory)  # a relative name: socket paths are limited to 107 bytes
    listener.bind(SOCKET)
    listener.listen(64)
    os.chdir("/")
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    options = sys.argv[2:]
    Holder(listener, directory if "--remove" in options else None).serve(until_eof="--until-eof" in options)


if __name__ == "__main__":
    main()
