"""A stand-in for the agent, for tests of the lab itself: host-gw routes from fixed numbers, and a subnet.env.

python -m tests.support.standin NUMBER RUN_DIR PEERS...     host NUMBER has 10.5.NUMBER.0/24 (fc00:5:0:NUMBER::/64)
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    number, run_dir, *peers = sys.argv[1:]
    for peer in peers:
        for prefix, via in (
            (f"10.5.{peer}.0/24", f"192.168.50.1{peer}"),
            (f"fc00:5:0:{peer}::/64", f"fd00:50::1{peer}"),
        ):
            subprocess.run(["ip", "route", "replace", prefix, "via", via], check=True)
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        (Path("/proc/sys/net") / name).write_text("1")
    text = f"FLANNEL_SUBNET=10.5.{number}.1/24\nFLANNEL_IPV6_SUBNET=fc00:5:0:{number}::1/64\nFLANNEL_MTU=1400\n"
    written = Path(run_dir) / "subnet.env.new"
    written.write_text(text)
    written.rename(written.with_name("subnet.env"))
    print(f"stand-in {number} is up", flush=True)
    signal.sigwait([signal.SIGTERM])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    main()
