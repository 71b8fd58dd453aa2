"""`netagent-udp`: the process that carries the udp backend's packets, and outlives the agent that started it.

One thread, one poll loop: the TUN, the UDP sockets, the control socket (control.py), and rtnetlink for a TUN device
that comes and goes. Rules: it writes nothing to the kernel but packets, the reconciler makes the device; what it
cannot do yet (no device, port taken) is a problem that it tells and tries again; an agent that comes back finds it
by its socket and compares digests; a successor takes its descriptors while packets wait in them, so none is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from backends.udp import control
from backends.udp.control import Config, ControlError
from backends.udp.datapath import DataPath, open_socket
from backends.udp.handover import Inheritance, take_over
from backends.udp.session import Session, listen, process_at
from backends.udp.table import Peer, Table, parse_address

_RTMGRP_LINK = 1
_MAX_SESSIONS = 16
_STATS_LIMIT = 1000  # peers in one page at most: a page is one pause of the packets

# Milliseconds to the next try where no event tells: a port may be freed, a device be let go, without notice.
_RETRY = 500
_RETRY_BUSY = 20


class Engine:
    """The poll loop and what it serves. `path` is where it listens, `tag` names the release that started it."""

    def __init__(self, path: Path, listener: socket.socket, tag: str) -> None:
        self.table = Table()
        self.path = DataPath(self.table)
        self.config: Config | None = None
        self.problems: dict[str, str] = {}  # "device", "socket4", "socket6" -> what is wrong
        self._control = path
        self._tag = tag
        self._started = time.monotonic()
        self._listener = listener
        self._sessions: dict[int, Session] = {}
        self._successor: Session | None = None
        self._bound: dict[int, tuple[str, int]] = {}  # outer family -> what its socket is bound to
        self._device = ""  # what the TUN descriptor is attached to
        self._busy = False
        self._retry_at = 0.0
        self._running = True
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._links.bind((0, _RTMGRP_LINK))
        self._watch(self._links.fileno(), self._on_links)
        self._watch(listener.fileno(), self._on_client)

    def inherit(self, inheritance: Inheritance) -> None:
        """Go on with a predecessor's peers and descriptors."""
        self.table.set(inheritance.peers)
        for key, numbers in inheritance.traffic.items():
            peer = self.table.get(key)
            if peer is not None:
                peer.restore(numbers)
        now = time.monotonic()
        for peer in self.table:  # on the wire it is "seconds since", -1 for never
            peer.heard = now - peer.heard if peer.heard >= 0 else 0.0
        config = inheritance.config
        if config is None:
            return
        for family, sock in inheritance.sockets.items():
            self.path.sockets[family] = sock
            address = next(a for a in config.addresses if parse_address(a)[0] == family)
            self._bound[family] = (address, config.port)
            self._watch_socket(sock)
        if inheritance.tun is not None:
            self.path.tun, self._device = inheritance.tun, config.device
            self._watch(inheritance.tun, self._on_tun)
        self._apply(config)

    def run(self) -> None:
        """Until told to stop, or until a successor runs."""
        self._listener.listen()  # again, in the process that serves: clients learn its pid from the socket
        gc.collect()
        gc.freeze()
        gc.disable()  # nothing here makes cycles, and a collection is a pause
        while self._running:
            for descriptor, _ in self._poll.poll(self._timeout()):
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler()
                if self._successor is not None:
                    break
            if self.problems and time.monotonic() >= self._retry_at:
                self._retry()
        self.close()

    def close(self) -> None:
        """Let go of all descriptors. What a successor has is its own."""
        self.path.detach()
        sessions = [session.sock for session in self._sessions.values()]
        for sock in (self._links, self._listener, *self.path.sockets.values(), *sessions):
            sock.close()

    # ------------------------------------------------------------------------------------- events

    def _timeout(self) -> int | None:
        if not self.problems or self._successor is not None:
            return None
        return _RETRY_BUSY if self._busy else _RETRY

    def _watch(self, descriptor: int, handler: Callable[[], None], events: int = select.POLLIN) -> None:
        self._poll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def _watch_socket(self, sock: socket.socket) -> None:
        self._watch(sock.fileno(), lambda: self.path.incoming(sock))

    def _on_tun(self) -> None:
        if not self.path.outgoing():
            self._let_go()
            self.problems["device"] = f"{self._name()} is gone"
            self._attach()

    def _on_links(self) -> None:
        try:
            while self._links.recv(1 << 16):
                pass
        except OSError:  # nothing more, or too much to hold (ENOBUFS): either way look once
            pass
        if self.path.tun is None:
            self._attach()

    def _on_client(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        _, uid = process_at(sock)
        if uid not in (0, os.geteuid()) or len(self._sessions) >= _MAX_SESSIONS:
            sock.close()
            return
        session = Session(sock)
        self._sessions[sock.fileno()] = session
        self._watch(sock.fileno(), lambda: self._on_session(session))

    def _on_session(self, session: Session) -> None:
        try:
            if session.waiting:
                session.flush()
            else:
                for request in session.read():
                    self._serve(session, request)
        except (OSError, ControlError):
            self._close(session)
            return
        if self._handlers.get(session.sock.fileno()) is not None:
            self._poll.modify(session.sock.fileno(), select.POLLOUT if session.waiting else select.POLLIN)

    def _close(self, session: Session) -> None:
        descriptor = session.sock.fileno()
        self._unwatch(descriptor)
        self._sessions.pop(descriptor, None)
        session.close()
        if session is self._successor:  # it died before it ran: go on
            self._successor = None
            self._resume()

    # ------------------------------------------------------------------------------------- requests

    def _serve(self, session: Session, request: dict[str, Any]) -> None:
        try:
            name = control.text(request, "do")
            if name == control.DO_HANDOVER:
                self._hand_over(session, request)
                return
            if name == control.DO_RELEASE:
                if session is not self._successor:
                    raise ControlError("release comes after handover")
                self._running = False
                return
            handler = self._REQUESTS.get(name)
            if handler is None:
                raise ControlError(f"{name[:40]!r} is not a request of protocol {control.PROTOCOL}")
            answer = handler(self, request)
        except (ControlError, ValueError) as error:
            answer = {"ok": False, "error": str(error)}
        else:
            answer["ok"] = True
        session.answer(answer)

    def _do_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        return {
            "protocol": control.PROTOCOL,
            "tag": self._tag,
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._started,
            "peers": len(self.table),
            "digest": self.table.digest(),
            "config": self.config.to_json() if self.config else None,
        }

    def _do_configure(self, request: dict[str, Any]) -> dict[str, Any]:
        self._apply(control.config_of(request))
        return {"problems": self.problems}

    def _do_set_peers(self, request: dict[str, Any]) -> dict[str, Any]:
        self.table.set(control.peers_of(request))
        return {"peers": len(self.table)}

    def _do_add_peers(self, request: dict[str, Any]) -> dict[str, Any]:
        self.table.add(control.peers_of(request))
        return {"peers": len(self.table)}

    def _do_remove_peers(self, request: dict[str, Any]) -> dict[str, Any]:
        self.table.remove(control.texts(request, "keys"))
        return {"peers": len(self.table)}

    def _do_stats(self, request: dict[str, Any]) -> dict[str, Any]:
        offset = control.whole(request, "offset", 0, 1 << 31)
        limit = control.whole(request, "limit", 1, _STATS_LIMIT)
        now = time.monotonic()
        return {
            "problems": self.problems,
            "drops": dict(self.path.drops),
            "traffic": {p.key: _traffic(p, now) for p in islice(self.table, offset, offset + limit)},
            "more": offset + limit < len(self.table),
        }

    def _do_export(self, request: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "config": self.config.to_json() if self.config else None,
            "peers": [peer.entry for peer in self.table],
            "traffic": {peer.key: _traffic(peer, now) for peer in self.table},
        }

    def _do_stop(self, request: dict[str, Any]) -> dict[str, Any]:
        self._control.unlink(missing_ok=True)
        self._running = False
        return {}

    _REQUESTS: dict[str, Callable[[Engine, dict[str, Any]], dict[str, Any]]] = {
        control.DO_HELLO: _do_hello,
        control.DO_CONFIGURE: _do_configure,
        control.DO_SET_PEERS: _do_set_peers,
        control.DO_ADD_PEERS: _do_add_peers,
        control.DO_REMOVE_PEERS: _do_remove_peers,
        control.DO_STATS: _do_stats,
        control.DO_EXPORT: _do_export,
        control.DO_STOP: _do_stop,
    }

    def _hand_over(self, session: Session, request: dict[str, Any]) -> None:
        """Stop reading packets and pass the descriptors on; packets wait in them until the successor reads.

        Nobody else is heard meanwhile: a change that this engine took would be lost with it.
        """
        if control.text(request, "digest") != self.table.digest():
            raise ControlError("the table has changed: export again")
        if self._successor is not None:
            raise ControlError("another successor is taking over")
        descriptors = {"listener": self._listener.fileno()}
        if self.path.tun is not None:
            descriptors["tun"] = self.path.tun
        for family, sock in self.path.sockets.items():
            descriptors[f"socket{family}"] = sock.fileno()
        self._successor = session
        for descriptor in [d for d in self._handlers if d != session.sock.fileno()]:
            self._poll.unregister(descriptor)
        session.answer_with({"ok": True, "descriptors": list(descriptors)}, list(descriptors.values()))

    def _resume(self) -> None:
        for descriptor in self._handlers:
            session = self._sessions.get(descriptor)
            self._poll.register(descriptor, select.POLLOUT if session and session.waiting else select.POLLIN)

    # ------------------------------------------------------------------------------------- configuration

    def _name(self) -> str:
        return self.config.device if self.config else self._device

    def _apply(self, config: Config) -> None:
        self.config = config
        self.path.mtu, self.path.port = config.mtu, config.port
        self.table.own(config.subnets)
        for family in (4, 6):
            self._bind(family)
        if self.path.tun is not None and self._device != config.device:
            self._let_go()
        if self.path.tun is None:
            self._attach()

    def _bind(self, family: int) -> None:
        """Open, replace or close the socket of one outer family, as the configuration says."""
        assert self.config is not None
        address = next((a for a in self.config.addresses if parse_address(a)[0] == family), None)
        wanted = (address, self.config.port) if address is not None else None
        if self._bound.get(family) == wanted:
            self.problems.pop(f"socket{family}", None)
            return
        fresh = None
        if wanted is not None:
            try:
                fresh = open_socket(*wanted)
            except OSError as error:
                self.problems[f"socket{family}"] = f"{wanted[0]} port {wanted[1]}: {error.strerror or error}"
                return
        self.problems.pop(f"socket{family}", None)
        old = self.path.sockets.pop(family, None)
        if old is not None:
            self._unwatch(old.fileno())
            self.path.incoming(old)  # what had arrived already
            old.close()
            del self._bound[family]
        if fresh is not None and wanted is not None:
            self.path.sockets[family] = fresh
            self._bound[family] = wanted
            self._watch_socket(fresh)

    def _attach(self) -> None:
        if self.config is None:
            return
        try:
            self.path.attach(self.config.device)
        except OSError as error:
            self._busy = error.errno == errno.EBUSY
            text = "does not exist" if not self._busy else "is held by another process"
            if error.errno not in (errno.ENODEV, errno.EBUSY):
                text = error.strerror or str(error)
            self.problems["device"] = f"{self.config.device} {text}"
            return
        self._busy = False
        self.problems.pop("device", None)
        self._device = self.config.device
        assert self.path.tun is not None
        self._watch(self.path.tun, self._on_tun)

    def _let_go(self) -> None:
        if self.path.tun is not None:
            self._unwatch(self.path.tun)
            self.path.detach()

    def _retry(self) -> None:
        if self.config is None or self._successor is not None:
            return
        self._retry_at = time.monotonic() + (self._timeout() or 0) / 1000
        for family in (4, 6):
            if f"socket{family}" in self.problems:
                self._bind(family)
        if self.path.tun is None:
            self._attach()


def _traffic(peer: Peer, now: float) -> tuple[float, ...]:
    *numbers, heard = peer.counters()
    return *numbers, round(now - heard, 3) if heard else -1


# ------------------------------------------------------------------------------------------- the process


def main(arguments: list[str] | None = None) -> int:
    """Start the engine. Prints `ready` and returns when it serves in the background (with --foreground: never)."""
    parser = argparse.ArgumentParser(
        prog="netagent-udp", description="Carries the packets of netagent's udp backend."
    )
    parser.add_argument("--control", type=Path, required=True, help="path of the control socket")
    parser.add_argument("--tag", default="", help="release that this engine belongs to, told in its hello")
    parser.add_argument("--takeover", action="store_true", help="take over from the engine that listens there")
    parser.add_argument("--foreground", action="store_true", help="do not go into the background")
    options = parser.parse_args(arguments)
    inheritance: Inheritance | None = None
    try:
        inheritance = take_over(options.control) if options.takeover else None
        engine = Engine(
            options.control, inheritance.listener if inheritance else listen(options.control), options.tag
        )
        if inheritance is not None:
            engine.inherit(inheritance)
    except (OSError, ControlError, ValueError) as error:
        print(f"{options.control}: {error}", flush=True)
        return 1
    if not options.foreground and not _background():
        return 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if inheritance is not None:
        inheritance.release()
    engine.run()
    return 0


def _background() -> bool:
    """Fork; True in the child, which has a session of its own and no ties to whoever started it but stderr."""
    if os.fork():
        with contextlib.suppress(BrokenPipeError):  # whoever waited for it is gone; the next one adopts the engine
            os.write(1, b"ready\n")
        return False
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return True


if __name__ == "__main__":
    sys.exit(main())
