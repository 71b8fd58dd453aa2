"""flannel's iptables chains."""

from __future__ import annotations

import subprocess
import time
from ipaddress import IPv4Network

from tests.support.flannel.log import log


def forward_rules(network: IPv4Network) -> list[tuple[str, str]]:
    """Chain and rule, of table filter."""
    note = '-m comment --comment "flanneld forward"'
    return [
        ("FORWARD", f"{note} -j FLANNEL-FWD"),
        ("FLANNEL-FWD", f"-s {network} {note} -j ACCEPT"),
        ("FLANNEL-FWD", f"-d {network} {note} -j ACCEPT"),
    ]


def masquerade_rules(network: IPv4Network, subnet: IPv4Network) -> list[tuple[str, str]]:
    """Chain and rule, of table nat."""
    note = '-m comment --comment "flanneld masq"'
    chain = "FLANNEL-POSTRTG"
    return [
        ("POSTROUTING", f"{note} -j {chain}"),
        (chain, f"-m mark --mark 0x4000/0x4000 {note} -j RETURN"),
        (chain, f"-s {network} -d {network} {note} -j RETURN"),
        (chain, f"-s {network} ! -d 224.0.0.0/4 {note} -j MASQUERADE --random-fully"),
        (chain, f"! -s {network} -d {subnet} {note} -j RETURN"),
        (chain, f"! -s {network} -d {network} {note} -j MASQUERADE --random-fully"),
    ]


def keep_rules(table: str, rules: list[tuple[str, str]], every: float) -> None:
    """Write them, and again whenever one is missing: checked one by one, for ever."""
    (parent, jump), *own = rules
    chain = own[0][0]
    words = [rule.replace('"', "").replace("flanneld ", "flanneld\0").split() for _, rule in rules]

    def there(number: int) -> bool:
        argv = ["iptables", "-w", "-t", table, "-C", rules[number][0], *(w.replace("\0", " ") for w in words[number])]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    while True:
        if not all(there(number) for number in range(len(rules))):
            lines = [f"-D {parent} {jump}"] if there(0) else []
            lines += [f"-I {parent} {jump}", *(f"-A {chain} {rule}" for _, rule in own)]
            # a chain that is named is emptied, or made
            text = "\n".join([f"*{table}", f":{chain} - [0:0]", *lines, "COMMIT", ""])
            restore = ["iptables-restore", "--noflush", "--wait"]
            done = subprocess.run(restore, input=text, text=True, check=False, capture_output=True)
            if done.returncode:
                log(f"Failed to ensure iptables rules: {done.stderr.strip()}")
        time.sleep(every)
