"""Ways to nf_tables: a netlink socket for elements, dumps and events; libnftables, or the nft command, for text.

Rules: whatever is opened here belongs to the network namespace of the thread that opened it. Every call is
synchronous and short; the command, taken only where the library is missing, has a deadline. Errors come out as
KernelError with the errno that the kernel gave.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from netagent.errors import KernelError
from netagent.kernel import nftwire as wire
from netagent.kernel.netlink import drop_port, set_buffer

_BUFFER = 4 << 20  # bytes of socket buffer, for the notifications of 20,000 elements
_KEYS = 4000  # in one transaction
_COMMAND_DEADLINE = 10.0  # seconds

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NETLINK_CAP_ACK = 270, 1, 10
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

# libnftables.h: what a listing shows.
_STATELESS, _JSON, _NUMERIC_PRIO, _TERSE = 1 << 2, 1 << 4, 1 << 8, 1 << 11


class NftSocket:
    """Requests to nf_tables. `port` is its netlink address, which notifications of our own requests carry."""

    def __init__(self) -> None:
        self._socket = _netlink()
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # errors come without the request
        self._seq = 0
        self.port: int = self._socket.getsockname()[0]

    def elements(
        self, kind: int, family: str, table: str, sets: Sequence[tuple[str, Sequence[bytes]]]
    ) -> tuple[int, ...]:
        """Add (NEWSETELEM) or delete (DELSETELEM) keys; errnos, empty when it went through.

        One transaction for each few thousand keys: a batch must fit into the socket's buffer, which is small in a
        user namespace. After an error the rest is not tried.
        """
        for name, keys in sets:
            for start in range(0, len(keys), _KEYS):
                part = [(name, keys[start : start + _KEYS])]
                batch, self._seq = wire.elements_batch(kind, self._seq + 1, family, table, part)
                errnos = self._transact(batch)
                if errnos:
                    return errnos
        return ()

    def delete_table(self, family: str, table: str) -> tuple[int, ...]:
        """Errnos, empty when it is gone now. ENOENT: there was none."""
        body = wire.text(wire.TABLE, table)
        first = self._seq + 1
        self._seq += 3
        return self._transact(
            wire.message(wire.BATCH_BEGIN, 0, first, 0, resource=wire.SUBSYSTEM)
            + wire.message(
                wire.SUBSYSTEM << 8 | wire.DELTABLE, wire.NLM_F_ACK, first + 1, wire.FAMILIES[family], body
            )
            + wire.message(wire.BATCH_END, 0, first + 2, 0, resource=wire.SUBSYSTEM)
        )

    def dump(self, kind: int, family: str, payload: bytes = b"") -> list[wire.Message]:
        """All messages that answer a dump request (GETRULE, GETCHAIN ...); a torn dump is asked again."""
        for _ in range(5):
            found, torn = self._dump_once(kind, family, payload)
            if not torn:
                return found
        raise KernelError("the nft ruleset changes faster than it can be read", errno=errno.EAGAIN)

    def generation(self) -> int:
        """The number of the last transaction, whoever made it."""
        self._seq += 1
        self._socket.send(wire.request(wire.GETGEN, self._seq, ""))
        for found in wire.messages(self._receive()):
            if found.seq == self._seq and found.type == wire.SUBSYSTEM << 8 | wire.NEWGEN:
                return wire.generation(found)
        return 0

    def close(self) -> None:
        self._socket.close()

    def _transact(self, batch: bytes) -> tuple[int, ...]:
        """The kernel carries a batch out while send runs: all the answers are there when it returns."""
        try:
            self._socket.send(batch)
        except OSError as error:
            return (error.errno or errno.EIO,)
        errnos: list[int] = []
        while True:
            try:
                data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return tuple(errnos)
            except OSError as error:  # ENOBUFS: answers were lost, so was what they said
                return (*errnos, error.errno or errno.EIO)
            errnos += [
                code for m in wire.messages(data) if m.type == wire.NLMSG_ERROR and (code := wire.error(m)) != 0
            ]

    def _dump_once(self, kind: int, family: str, payload: bytes) -> tuple[list[wire.Message], bool]:
        self._seq += 1
        self._socket.send(wire.request(kind, self._seq, family, payload, dump=True))
        out: list[wire.Message] = []
        torn = False
        while True:
            for found in wire.messages(self._receive()):
                if found.seq != self._seq:
                    continue
                torn |= bool(found.flags & wire.NLM_F_DUMP_INTR)
                if found.type == wire.NLMSG_DONE:
                    return out, torn
                if found.type == wire.NLMSG_ERROR:
                    code = wire.error(found)
                    if code == errno.EINTR:
                        return out, True
                    if code == errno.ENOENT:
                        return [], False
                    raise KernelError(f"cannot read the nft ruleset: {os.strerror(code)}", errno=code)
                out.append(found)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_BUFFER)
        except OSError as error:
            number = error.errno or errno.EIO
            raise KernelError(f"no answer from nf_tables: {error.strerror}", errno=number) from error


class NftEvents:
    """Notifications of every change to the ruleset of this namespace but those that `own_port` asked for."""

    def __init__(self, own_port: int) -> None:
        self._socket = _netlink()
        self._socket.setblocking(False)
        # The kernel may put several notifications into a datagram, but only those of one transaction.
        drop_port(self._socket, own_port)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, wire.NFNLGRP_NFTABLES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[list[wire.Event], bool]:
        """What came in, and whether something was lost."""
        events: list[wire.Event] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except BlockingIOError:
                return events, lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(
                        f"nft notifications end: {error.strerror}", errno=error.errno or errno.EIO
                    ) from error
                lost = True
                continue
            events += filter(None, map(wire.event, wire.messages(data)))

    def close(self) -> None:
        self._socket.close()


def _netlink() -> socket.socket:
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, wire.NETLINK_NETFILTER)
    try:
        set_buffer(found, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _BUFFER)
        set_buffer(found, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _BUFFER)
        # A deadline although the kernel answers at once: nothing may block the agent for ever.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
        found.bind((0, 0))
    except BaseException:
        found.close()
        raise
    return found


# ------------------------------------------------------------------------------------------------ text


class NftRunner(Protocol):
    """Runs nft commands given as text, each call one transaction."""

    name: str

    def run(self, commands: str) -> None:
        """KernelError when it was refused; then nothing of it was carried out."""
        ...

    def ruleset(self) -> list[dict[str, Any]]:
        """`nft -j list ruleset` without set elements: the list under "nftables"."""
        ...


class LibNftables:
    """libnftables in this process: about ten times faster than starting the command."""

    name = "libnftables"

    def __init__(self, library: ctypes.CDLL) -> None:
        signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "nft_ctx_new": (ctypes.c_void_p, (ctypes.c_uint32,)),
            "nft_ctx_free": (None, (ctypes.c_void_p,)),
            "nft_ctx_buffer_output": (ctypes.c_int, (ctypes.c_void_p,)),
            "nft_ctx_buffer_error": (ctypes.c_int, (ctypes.c_void_p,)),
            "nft_ctx_get_output_buffer": (ctypes.c_char_p, (ctypes.c_void_p,)),
            "nft_ctx_get_error_buffer": (ctypes.c_char_p, (ctypes.c_void_p,)),
            "nft_ctx_output_set_flags": (None, (ctypes.c_void_p, ctypes.c_uint)),
            "nft_run_cmd_from_buffer": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
        }
        self._call: dict[str, Callable[..., Any]] = {}
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            self._call[name] = function

    def run(self, commands: str) -> None:
        self._run(commands, 0)

    def ruleset(self) -> list[dict[str, Any]]:
        return _listing(self._run("list ruleset", _JSON | _STATELESS | _NUMERIC_PRIO | _TERSE))

    def _run(self, commands: str, flags: int) -> str:
        # A context keeps a copy of the ruleset; a new one each time costs 0.1 ms and leaves no memory behind.
        context = self._call["nft_ctx_new"](0)
        if not context:
            raise KernelError("libnftables gives no context", errno=errno.ENOMEM)
        try:
            self._call["nft_ctx_buffer_output"](context)
            self._call["nft_ctx_buffer_error"](context)
            self._call["nft_ctx_output_set_flags"](context, flags)
            if self._call["nft_run_cmd_from_buffer"](context, commands.encode()):
                raise _refused(self._call["nft_ctx_get_error_buffer"](context))
            return (self._call["nft_ctx_get_output_buffer"](context) or b"").decode("utf-8", "replace")
        finally:
            self._call["nft_ctx_free"](context)


class NftCommand:
    """The nft command, where the library is missing."""

    name = "nft"

    def __init__(self, path: str) -> None:
        self._path = path

    def run(self, commands: str) -> None:
        self._run("-f", "-", commands=commands)

    def ruleset(self) -> list[dict[str, Any]]:
        return _listing(self._run("-j", "-s", "-t", "-y", "list", "ruleset"))

    def _run(self, *arguments: str, commands: str | None = None) -> str:
        try:
            done = subprocess.run(
                (self._path, *arguments),
                input=None if commands is None else commands.encode(),
                stdin=subprocess.DEVNULL if commands is None else None,
                capture_output=True,
                timeout=_COMMAND_DEADLINE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"cannot run {self._path}: {error}", errno=errno.EIO) from error
        if done.returncode:
            raise _refused(done.stderr)
        return done.stdout.decode("utf-8", "replace")


def runner(environment: dict[str, str] | None = None) -> NftRunner:
    """The best way there is here: the library (NETAGENT_LIBNFTABLES names it), or else the command."""
    env = dict(os.environ) if environment is None else environment
    library = load_library(env.get("NETAGENT_LIBNFTABLES", ""))
    if library is not None:
        return LibNftables(library)
    path = shutil.which("nft", path=env.get("PATH"))
    if path is None:
        raise KernelError(
            "neither libnftables.so.1 nor the nft command is on this host",
            errno=errno.ENOENT,
            where="firewall",
            remedy="Install nftables (Debian, Ubuntu, Fedora, Arch: package nftables)",
        )
    return NftCommand(path)


def load_library(path: str = "") -> ctypes.CDLL | None:
    """libnftables, from `path` or where the loader finds it; None if it cannot be loaded.

    A library unpacked beside what it needs is loaded after those: the loader goes by names already loaded.
    """
    name = path or "libnftables.so.1"
    for _ in range(20):
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            missing = str(error).partition(":")[0]
            beside = Path(path).parent / missing
            if not path or missing == path or not beside.exists() or load_library(str(beside)) is None:
                return None
    return None


def _listing(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)["nftables"] if text.strip() else []
        if not isinstance(found, list):
            raise TypeError("it is not a list of objects")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KernelError(f"nft's listing cannot be read: {error}", errno=errno.EPROTO) from error
    return [entry for entry in found if isinstance(entry, dict)]


def _refused(text: bytes | None) -> KernelError:
    """nft's complaint as one line, with the errno that its words stand for."""
    lines = [line.strip() for line in (text or b"").decode("utf-8", "replace").splitlines()]
    complaint = next((line for line in lines if "Error" in line), lines[0] if lines else "no reason given")
    words = re.sub(r"^\S*?Error:\s*", "", complaint)
    codes = (errno.ENOENT, errno.EEXIST, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP, errno.ENOMEM)
    code = next((code for code in codes if os.strerror(code) in complaint), errno.EINVAL)
    return KernelError(f"nft: {words}", errno=code)
