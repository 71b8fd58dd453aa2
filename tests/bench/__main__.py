"""`make bench`: every benchmark, one after the other, each as a table with ratios.

    python -m tests.bench [scale|datapath|udp|imports ...]     those named; all without a name

Each runs in a process of its own, because each makes namespaces of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

MODULES = {"imports": "imports", "scale": "scale", "datapath": "datapath", "udp": "bench_udp"}


def main() -> int:
    names = sys.argv[1:] or list(MODULES)
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    print(f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if not os.environ.get("FLANNELD"):
        print("FLANNELD is not given, so there are no columns of flannel.")
    code = 0
    for name in names:
        print(f"\n## {name}\n", flush=True)
        code = max(
            code, subprocess.run([sys.executable, "-m", f"tests.bench.{MODULES[name]}"], check=False).returncode
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
