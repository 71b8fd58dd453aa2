"""Asking the daemon over its control socket (control.py has the protocol).

Rule: imports nearly nothing: a command that only asks starts at once.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

from bgp.daemon.errors import CommandError, RequestError


def ask(path: str, request: dict[str, Any]) -> Iterator[Any]:
    """The items of the daemon's answer, as they come. Raises CommandError, RequestError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        try:
            sock.connect(path)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as stream:
                for line in stream:
                    reply = json.loads(line)
                    if "error" in reply:
                        raise (RequestError if reply.get("wrong") else CommandError)(reply["error"])
                    if reply.get("end"):
                        return
                    yield reply["item"]
        except (ValueError, TypeError, LookupError, AttributeError):
            raise CommandError(f"what answers at {path} is no BGP daemon; say where: --control PATH") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise CommandError(f"no daemon answers at {path}; start it, or say where: --control PATH") from None
        except PermissionError:
            raise CommandError(f"no permission for {path}; be root or the daemon's user") from None
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror or error}") from None
    raise CommandError(f"the daemon at {path} ended its answer too early; see its log")
