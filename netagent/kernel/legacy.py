"""Rules of iptables' old kernel interface, read as if they were nft's.

Rule: nft does not list them, so `iptables-legacy -S` is asked, and only where the kernel says that such tables exist:
asking would make them. Options that are not understood become matches that cannot be decided (see ruleset.py).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Behind the table's name, to tell it from the table that nft and iptables-nft have under that name.
SUFFIX = " (legacy)"

_DEADLINE = 5.0  # seconds
_TABLES = ("filter", "raw")
_HOOKS = {"INPUT": "input", "FORWARD": "forward", "PREROUTING": "prerouting", "OUTPUT": "output"}
_PORTS = re.compile(r"(?=[0-9:])(?P<first>[0-9]{0,5})(?::(?P<last>[0-9]{0,5}))?", re.ASCII)
_PROGRAMS = {"ip": ("iptables-legacy", "iptables"), "ip6": ("ip6tables-legacy", "ip6tables")}

# Extensions whose options are read here, or which match everything.
_UNDERSTOOD = frozenset(("udp", "tcp", "conntrack", "state", "comment"))


class Legacy(NamedTuple):
    """`ruleset` in the form of nft's listing; `unread`: tables ("ip filter") that exist and cannot be listed."""

    ruleset: list[dict[str, Any]]
    unread: list[str]


def read() -> Legacy:
    """The old tables of the calling thread's namespace."""
    found = Legacy([], [])
    for family, names in (("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")):
        try:
            present = Path("/proc/thread-self/net", names).read_text().split()
        except OSError:  # this kernel has no such interface
            continue
        for table in _TABLES:
            if table in present:
                listing = _listing(family, table)
                found.ruleset.extend(parse(listing, family, table))
                if not listing:  # a table has chains, and they are listed
                    found.unread.append(f"{family} {table}")
    return found


def _listing(family: str, table: str) -> str:
    program = _program(family)
    if program is None:
        return ""
    command = (program, "-w", "2", "-t", table, "-S")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _program(family: str) -> str | None:
    """The command for the old tables. On an old host plain `iptables` is it, elsewhere it is the nft variant."""
    own, plain = (shutil.which(name) for name in _PROGRAMS[family])
    if own is None and plain is not None and "nft" not in Path(plain).resolve().name:
        return plain
    return own


def parse(listing: str, family: str, table: str) -> list[dict[str, Any]]:
    """What `iptables -S` printed, as nft's JSON would have it."""
    where = {"family": family, "table": table + SUFFIX}
    found: list[dict[str, Any]] = []
    for line in listing.splitlines():
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        match words:
            case ["-P", name, policy, *_]:
                base = {"type": "filter", "hook": _HOOKS.get(name, name.lower()), "policy": policy.lower()}
                found.append({"chain": {**where, "name": name, **base}})
            case ["-N", name, *_]:
                found.append({"chain": {**where, "name": name}})
            case ["-A", name, *options]:
                found.append({"rule": {**where, "chain": name, "expr": list(_expressions(options, family))}})
    return found


def _expressions(options: Sequence[str], family: str) -> Iterator[Mapping[str, Any]]:
    words = iter(options)
    protocol, operator = "th", "=="
    for word in words:
        negated, operator = operator, "=="
        match word:
            case "!":
                operator = "!="
            case "-s" | "-d":
                field = "saddr" if word == "-s" else "daddr"
                yield _match({"payload": {"protocol": family, "field": field}}, negated, next(words, ""))
            case "-i" | "-o":
                name = next(words, "")
                name = name[:-1] + "*" if name.endswith("+") else name
                yield _match({"meta": {"key": "iifname" if word == "-i" else "oifname"}}, negated, name)
            case "-p":
                protocol = next(words, "")
                yield _match({"meta": {"key": "l4proto"}}, negated, protocol)
            case "--dport" | "--sport":
                ports = _ports(next(words, ""))
                yield _match({"payload": {"protocol": protocol, "field": word[2:]}}, negated, ports)
            case "--ctstate" | "--state":
                yield _match({"ct": {"key": "state"}}, negated, next(words, "").lower().split(","))
            case "--comment":
                next(words, "")
            case "-m":
                name = next(words, "")
                if name not in _UNDERSTOOD:
                    yield {"xt": {"type": "match", "name": name}}
            case "-j" | "-g":
                yield _verdict(word, next(words, ""))
                return  # what follows are the target's own options


def _ports(text: str) -> Any:
    """ "53", "8000:9000" or ":1023"; what is none of these is given back as it stands."""
    found = _PORTS.fullmatch(text)
    if found is None:
        return text
    first, last = found["first"] or "0", found["last"]
    return int(first) if last is None else {"range": [int(first), int(last or 65535)]}


def _match(left: Mapping[str, Any], operator: str, right: Any) -> Mapping[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


def _verdict(word: str, target: str) -> Mapping[str, Any]:
    if word == "-j" and target in ("ACCEPT", "DROP", "RETURN", "REJECT"):
        return {target.lower(): None}
    if target == "NFQUEUE":
        return {"queue": None}
    # An extension (LOG, MARK) is like a jump to a chain without rules: it decides nothing.
    return {"jump" if word == "-j" else "goto": {"target": target}}
