"""flanneld's flags, read as Go's flag package reads them: unknown ones are refused with status 2."""

from __future__ import annotations

import contextlib
from typing import Any

from tests.support.flannel.log import fatal

# name: default; the default's type is the flag's, a list may be given again and again
DONE: dict[str, Any] = {
    "etcd-endpoints": "http://127.0.0.1:4001,http://127.0.0.1:2379",
    "etcd-prefix": "/coreos.com/network",
    "iface": [],
    "public-ip": "",
    "subnet-file": "/run/flannel/subnet.env",
    "subnet-lease-renew-margin": 60,
    "ip-masq": False,
    "iptables-resync": 5,
    "iptables-forward-rules": True,
    "version": False,
}
UNHEEDED: dict[str, Any] = {"v": 0, "vmodule": "", "log_backtrace_at": ""}
NOT_DONE: dict[str, Any] = {
    "etcd-keyfile": "",
    "etcd-certfile": "",
    "etcd-cafile": "",
    "etcd-username": "",
    "etcd-password": "",
    "iface-regex": [],
    "iface-can-reach": "",
    "public-ipv6": "",
    "kube-subnet-mgr": False,
    "kube-api-url": "",
    "kube-annotation-prefix": "flannel.alpha.coreos.com",
    "kubeconfig-file": "",
    "net-config-path": "/etc/kube-flannel/net-conf.json",
    "set-node-network-unavailable": True,
    "healthz-ip": "0.0.0.0",
    "healthz-port": 0,
}
FLAGS = {**DONE, **UNHEEDED, **NOT_DONE}
TRUE, FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


def usage(complaint: str = "") -> SystemExit:
    """To be raised, as Go's flag package ends: the complaint, the flags, status 2; status 0 for -help."""
    lines = [complaint] if complaint else []
    lines += ["Usage of flannel:", *(f"  -{name}" for name in sorted(FLAGS))]
    return fatal("\n".join(lines), 2 if complaint else 0)


def converted(name: str, text: str, where: str) -> Any:
    kind = type(FLAGS[name])
    if kind is bool and text in (*TRUE, *FALSE):
        return text in TRUE
    if kind is int:
        with contextlib.suppress(ValueError):
            return int(text, 0)
    if kind in (bool, int):
        raise usage(f'invalid {"boolean " if kind is bool else ""}value "{text}" for {where}: parse error')
    return text


def parse(argv: list[str], environ: dict[str, str]) -> dict[str, Any]:
    """Flags as Go's flag package reads them, then FLANNELD_<NAME> for those that were not given."""
    values = {name: list(value) if isinstance(value, list) else value for name, value in FLAGS.items()}
    given = set()

    def take(name: str, text: str, where: str) -> None:
        given.add(name)
        value = converted(name, text, where)
        if isinstance(FLAGS[name], list):
            values[name].append(value)
        else:
            values[name] = value

    words = list(argv)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise usage(f"bad flag syntax: {word}")
        if name not in FLAGS:
            raise usage("" if name in ("h", "help") else f"flag provided but not defined: -{name}")
        if not equals:
            if isinstance(FLAGS[name], bool):
                text = "true"
            elif words:
                text = words.pop(0)
            else:
                raise usage(f"flag needs an argument: -{name}")
        take(name, text, f"-{name}")
    for name in FLAGS.keys() - given:
        variable = f"FLANNELD_{name.upper().replace('-', '_')}"
        if environ.get(variable):
            take(name, environ[variable], variable)
    for name, default in NOT_DONE.items():
        if values[name] != default:
            raise fatal(f"this stand-in for flanneld does not carry out -{name}")
    return values
