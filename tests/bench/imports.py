"""What each import costs the agent: CPU seconds and resident memory, each in a fresh process on top of the last.

    python -m tests.bench.imports

The order is that in which the agent imports them; the last lines come in only after its first pass.
"""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "asyncio",
    "msgspec",
    "grpc.aio",
    "netagent.store.etcd",
    "netagent.agent",
    "netagent.app",
    "prometheus_client",
    "aiohttp.web",
    "netagent.api.server",
)

PROBE = """
import sys, time, importlib
def rss():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 2**20
for name in sys.argv[1:-1]:
    importlib.import_module(name)
before, memory = time.process_time(), rss()
importlib.import_module(sys.argv[-1])
print(time.process_time() - before, rss() - memory, rss())
"""


def main() -> None:
    print("| import | CPU, ms | memory, MiB | in all, MiB |\n|---|---|---|---|")
    for number, name in enumerate(MODULES, 1):
        command = [sys.executable, "-c", PROBE, *MODULES[: number - 1], name]
        runs = [
            [
                float(word)
                for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            ]
            for _ in range(3)
        ]
        cpu, memory, total = min(runs)
        print(f"| {name} | {cpu * 1000:.0f} | {memory:.1f} | {total:.1f} |", flush=True)


if __name__ == "__main__":
    main()
