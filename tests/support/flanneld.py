#!/usr/bin/env python3
"""A stand-in for flanneld, for tests: a program of its own that behaves as flanneld 0.22 does in a cluster on etcd.

It is not flanneld, and no proof of how flanneld behaves. Its worth is that it is a second reading of the same facts
(flannel's keys, records, wire formats, kernel objects, life cycle): it shares no line with netagent and talks to etcd
through its JSON gateway, so that a mistake in netagent's reading shows as two programs that do not understand each
other. A real one goes into the same tests by FLANNELD=/path.

    tests/support/flanneld.py -etcd-endpoints=http://192.168.50.2:2379 -iface=eth0 -subnet-file=/run/h2/subnet.env

What it does: host-gw, vxlan, udp over IPv4; lease, renewal and revocation; subnet.env; flannel's iptables chains. It
ends on SIGTERM with status 2, as the panic at flanneld's end does, and leaves all but a TUN behind. What flannel does
wrong it does too, where the other nodes have to bear it: a key under `subnets` that cannot be parsed removes every
route, and a peer's old FDB entry stays when its MAC changes. What it does otherwise: it asks no lease's time to live,
does not block after a failed removal, and tries again when another node took the subnet first. Flags of flanneld that
it does not carry out (kube, IPv6, TLS, healthz...) end it with status 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a program's imports start at its own directory

from tests.support.flannel.firewall import forward_rules, keep_rules, masquerade_rules
from tests.support.flannel.flags import parse
from tests.support.flannel.gateway import TTL, Etcd
from tests.support.flannel.kernel import HostGw, Vxlan, interface
from tests.support.flannel.leases import RETRY, Config, Lease, Subnets, own_value, write_subnet_env
from tests.support.flannel.log import fatal, log
from tests.support.flannel.peers import Daemon, Event, watch
from tests.support.flannel.udp import Udp

RENEW_RETRY = 60.0  # seconds
BACKENDS = {"host-gw": HostGw, "vxlan": Vxlan, "udp": Udp}


def terminated(*_: object) -> None:
    log("shutdownHandler sent cancel signal...\npanic: close of closed channel")
    os._exit(2)


def acquire(subnets: Subnets, config: Config, public: str, value: str) -> IPv4Network:
    """This node's subnet, as soon as etcd answers."""
    while True:
        try:
            return subnets.acquire(config, public, value)
        except OSError as error:
            log(f"failed to acquire lease: {error}")
            time.sleep(RETRY)


def run(daemon: Daemon, found: queue.Queue[list[Event]], renew: Callable[[], None], margin: float) -> NoReturn:
    """Events, the renewal when `margin` seconds of the lease are left, and the backend's look at its objects."""
    renewal = time.monotonic() + TTL - margin
    look = time.monotonic() + daemon.backend.check
    while True:
        with contextlib.suppress(queue.Empty):
            daemon.take(found.get(timeout=max(0.0, min(renewal, look) - time.monotonic())))
        now = time.monotonic()
        if now >= look:
            look = now + daemon.backend.check
            daemon.backend.look()
        if now >= renewal:
            try:
                renew()
                renewal = now + TTL - margin
            except OSError as error:
                log(f"Error renewing lease (trying again in 1 min): {error}")
                renewal = now + RENEW_RETRY


def main() -> None:
    options = parse(sys.argv[1:], dict(os.environ))
    if options["version"]:
        raise fatal("a stand-in for flanneld 0.22, of netagent's tests", 0)
    margin = options["subnet-lease-renew-margin"]
    if not 1 <= margin < 24 * 60:
        raise fatal("Invalid subnet-lease-renew-margin option, out of acceptable range")
    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGINT, terminated)

    uplink = interface(options["iface"])
    log(f"Using interface with name {uplink.name} and address {uplink.address}")
    public = options["public-ip"] or uplink.address
    subnet_file = Path(options["subnet-file"])
    subnets = Subnets(Etcd(options["etcd-endpoints"]), options["etcd-prefix"], subnet_file)
    config = subnets.config()
    if config.backend not in BACKENDS:
        raise fatal(f"Error fetching backend: unknown backend type: {config.backend}")
    backend = BACKENDS[config.backend](uplink, public, config)
    value = own_value(public, backend.kind, backend.data())
    subnet = acquire(subnets, config, public, value)
    backend.start(subnet)

    tables = [("filter", forward_rules(config.network))] if options["iptables-forward-rules"] else []
    tables += [("nat", masquerade_rules(config.network, subnet))] if options["ip-masq"] else []
    for table, rules in tables:
        threading.Thread(target=keep_rules, args=(table, rules, options["iptables-resync"]), daemon=True).start()
    write_subnet_env(subnet_file, config.network, subnet, backend.mtu, options["ip-masq"])
    log(f"Wrote subnet file to {subnet_file}")

    found: queue.Queue[list[Event]] = queue.Queue()
    threading.Thread(target=watch, args=(subnets, found), daemon=True).start()
    log("Running backend.")
    daemon = Daemon(backend, Lease(subnet, json.loads(value)))
    run(daemon, found, lambda: subnets.etcd.put(subnets.key(subnet), value), margin * 60)


if __name__ == "__main__":
    main()
