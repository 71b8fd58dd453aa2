"""UDP ping-pong between two processes, one datagram of 64 bytes in flight: run as a script, in each end's namespace.

    pingpong.py serve ADDRESS           says "ready", answers until it is killed
    pingpong.py ask ADDRESS COUNT       prints the round trips as JSON, in microseconds, and how many were lost

Rule: only the standard library, so that it starts at once. Both ends wake up for each datagram, as a server does:
what Python adds is the same on every path, so that ratios come out nearer to 1 than the paths alone are.
"""

from __future__ import annotations

import json
import socket
import sys
import time

PORT, SIZE, WARM_UP = 9064, 64, 50


def serve(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, PORT))
        print("ready", flush=True)
        while True:
            data, peer = server.recvfrom(2048)
            server.sendto(data, peer)


def ask(address: str, count: int) -> None:
    times, lost = [], 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((address, PORT))
        client.settimeout(1)
        for number in range(WARM_UP + count):
            wanted = number.to_bytes(SIZE, "big")
            begun = time.perf_counter_ns()
            client.send(wanted)
            try:
                while client.recv(2048) != wanted:
                    pass  # a late answer to one that was given up
            except TimeoutError:
                lost += 1
                continue
            if number >= WARM_UP:
                times.append((time.perf_counter_ns() - begun) / 1000)
    print(json.dumps({"times": times, "lost": lost}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(sys.argv[2], int(sys.argv[3]))
