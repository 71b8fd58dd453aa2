"""What each import costs the agent: CPU seconds and resident memory, in fresh processes.

    python -m tests.bench imports [--rounds 5]

"alone" is a process that imports nothing else; "in order" what the module adds where those above it are there
already, in the order in which the agent has them; "so far" the whole process then. Those marked come in after the
first pass over the peers, so that they do not delay it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from tests.bench.report import progress, table

MODULES = (
    "asyncio",
    "msgspec",
    "grpc.aio",
    "netagent.store.etcd",
    "netagent.agent",
    "netagent.app",
    "backends.vxlan",
)
LATER = ("prometheus_client", "aiohttp.web", "netagent.api.server")

PROBE = """
import importlib, json, sys, time

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

*first, last = sys.argv[1:]
for name in first:
    importlib.import_module(name)
cpu, memory = time.process_time(), resident()
importlib.import_module(last)
print(json.dumps([(time.process_time() - cpu) * 1000, resident() - memory, resident(), time.process_time() * 1000]))
"""


def cost(names: Sequence[str], rounds: int) -> list[float]:
    """Of the last module, with the others there: CPU ms, MiB; of the process: MiB, CPU ms. Medians."""
    command = [sys.executable, "-c", PROBE, *names]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*runs, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.bench imports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    *_, memory, cpu = cost(["sys"], args.rounds)
    rows = [["(the interpreter)", f"{cpu:.0f}", f"{memory:.1f}", "", "", f"{memory:.1f}"]]
    order = [*MODULES, *LATER]
    for number, name in enumerate(order, 1):
        progress(f"importing {name}")
        alone_cpu, alone_memory, *_ = cost([name], args.rounds)
        added_cpu, added_memory, memory, _ = cost(order[:number], args.rounds)
        title = f"{name} (after the first pass)" if name in LATER else name
        row = [title, f"{alone_cpu:.0f}", f"{alone_memory:.1f}", f"{added_cpu:.0f}", f"{added_memory:.1f}"]
        rows.append([*row, f"{memory:.1f}"])
    columns = ["import", "alone, CPU ms", "alone, MiB", "in order, CPU ms", "in order, MiB", "so far, MiB"]
    print(table(columns, rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
