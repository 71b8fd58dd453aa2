"""`make bench`: the machine, then every benchmark as Markdown tables with ratios; progress on standard error.

    python -m tests.bench [all|imports|scale|datapath|udp|bgp|bgp-scale|bfd] [options of that benchmark]

Rule: each benchmark sees to a namespace of its own, so that none touches the machine's. `all` runs every one with its
own defaults; it leaves out `udp`, whose figures `datapath` has too, `bgp` and `bfd`, which need other daemons
(`make bench-bgp`, `make bench-bfd`), and `bgp-scale`, which needs some minutes and gigabytes. Exit status: the worst
of theirs.
"""

from __future__ import annotations

import os
import sys

from netagent.lab.space import environment
from tests.bench import bfd, bgp, bgp_scale, datapath, imports, scale
from tests.bench.report import flanneld, machine

BENCHMARKS = {
    "imports": imports.main,
    "scale": scale.main,
    "datapath": datapath.main,
    "udp": datapath.main_udp,
    "bgp": bgp.main,
    "bgp-scale": bgp_scale.main,
    "bfd": bfd.main,
}
ALL = ("imports", "scale", "datapath")


def main() -> int:
    name, *options = sys.argv[1:] or ["all"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in ("all", *BENCHMARKS):
        print(f"there is no benchmark {name!r}; there are all, {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    if name == "all" and options:
        print(f"{options[0]}: name the benchmark that it is for; all runs each with its defaults", file=sys.stderr)
        return 2
    os.environ.update(environment())
    if not {"-h", "--help"} & set(options):
        print(machine(), flush=True)
        if program := flanneld():
            print(f"flanneld: {program}", flush=True)
    code = 0
    for each in ALL if name == "all" else (name,):
        print(f"\n## {each}\n", flush=True)
        code = max(code, BENCHMARKS[each](options))
    return code


if __name__ == "__main__":
    sys.exit(main())
