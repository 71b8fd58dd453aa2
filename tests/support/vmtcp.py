"""TCP between containers of virtual machines: `serve`, or `send SIZE ADDRESS...`. Standard library only.

Rule: every octet counts: the server answers with the digest of what it got, and the sender compares. Prints for each
address why it failed, "" if it did not, as a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading

PORT = 9000
TIMEOUT = 60.0


def payload(size: int) -> bytes:
    block = hashlib.sha256(b"netagent").digest()
    return (block * (size // len(block) + 1))[:size]


def answer(peer: socket.socket) -> None:
    with peer:
        peer.settimeout(TIMEOUT)
        digest = hashlib.sha256()
        while data := peer.recv(65536):
            digest.update(data)
        peer.sendall(digest.hexdigest().encode())


def serve() -> None:
    with socket.create_server(("", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=answer, args=(peer,), daemon=True).start()


def send(address: str, data: bytes) -> str:
    try:
        with socket.create_connection((address, PORT), timeout=TIMEOUT) as peer:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            told = b"".join(iter(lambda: peer.recv(100), b"")).decode()
    except OSError as error:
        return str(error) or type(error).__name__
    return "" if told == hashlib.sha256(data).hexdigest() else f"other octets arrived: {told}"


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        data = payload(int(sys.argv[2]))
        json.dump({address: send(address, data) for address in sys.argv[3:]}, sys.stdout)
