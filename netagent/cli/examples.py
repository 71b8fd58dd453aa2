"""What each command is typed like: shown under its --help, in the man page and in docs/reference/cli.md.

Rule: each example is one that works as it stands, on a host or in the lab that the tutorial makes; a test parses
them all.
"""

from __future__ import annotations

import shlex

# command: (what follows it, what that does)
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "run": (
        ("--etcd-endpoints http://192.168.50.2:2379 --ip-masq", "with settings as flags"),
        ("", "with those of /etc/netagent/netagent.toml, as the package's unit does"),
    ),
    "init": (
        ("--network 10.5.0.0/16", "once for a cluster: vxlan"),
        ("--network 10.5.0.0/16 --backend host-gw --force", "another backend, under traffic"),
        ("--network 10.5.0.0/16 --option VNI=7 --option DirectRouting=true --dry-run", "only print it"),
        ("--network 10.5.0.0/16 --network-v6 fc00:5::/48", "both families"),
        ("--file net.json", "what `netagent config check net.json` has found to be good"),
    ),
    "config": (
        ("show", "what is in etcd, defaults included"),
        ("check net.json", "before it is written"),
    ),
    "config check": (("net.json", "exit code 0: good, 2: agents would refuse it"),),
    "config show": (
        ("", "from the etcd that this host's settings name"),
        ("--etcd-endpoints http://192.168.50.2:2379 --json", "from another, for scripts"),
    ),
    "lease": (
        ("list", "who has which subnet"),
        ("reserve 10.5.9.0/24 --node h9", "keep one for h9"),
        ("release --node h9", "forget h9, which is gone"),
    ),
    "lease list": (
        ("", "who has which subnet, and whether the node is alive"),
        ("--ttl --json", "for scripts, with the seconds left"),
    ),
    "lease reserve": (
        ("10.5.9.0/24 --node h9", "h9 gets it when it comes"),
        ("10.5.9.0/24,fd00:5:0:9::/64 --node h9", "in both families"),
        ("10.5.9.0/24 --public-ip 192.168.50.19", "for a host of flannel's, by its address"),
    ),
    "lease release": (
        ("10.5.9.0/24", "a lease or reservation that nobody uses"),
        ("--node h9", "all that a node has that is gone, and the node"),
    ),
    "status": (
        ("", "the first line is the verdict"),
        ("--wait 30", "after a start: until containers can be started"),
        ("--watch", "on and on, as things change"),
        ("--json", "for scripts; the exit code tells most"),
    ),
    "peers": (
        ("", "every other node"),
        ("--state unreachable", "those that cannot be reached"),
        ("10.5.72.9", "whose subnet has that address"),
    ),
    "routes": (
        ("", "all of ours"),
        ("10.5.72.9", "those for that address: by which way, for whom, why"),
    ),
    "objects": (
        ("--kind nft --kind element", "the firewall's"),
        ("--state failing", "what the kernel refuses"),
    ),
    "plan": (
        ("", "normally: nothing to do"),
        ("--exit-code", "exit code 3 when something would change"),
    ),
    "cleanup": (
        ("--dry-run", "what would be done, also while the agent runs"),
        ("--yes", "after `systemctl stop netagent`; exit code 1 if something stayed"),
    ),
    "bgp": (
        ("peers", "all sessions"),
        ("routes 10.5.72.9", "by which way to that address, and why"),
        ("received h2", "what h2 says, and what is not used of it"),
    ),
    "bgp peers": (
        ("", "a line for each session"),
        ("h2", "everything about that one"),
    ),
    "bgp routes": (
        ("", "every prefix"),
        ("10.5.72.9", "the one by which that address is reached"),
        ("10.5.0.0/16 --more-specific", "all inside that one"),
    ),
    "bgp received": (("h2", "by the node's or router's name"), ("192.168.50.12 --json", "by its address")),
    "bgp advertised": (("h2", ""),),
    "bgp log": (("h2", "from OPEN to NOTIFICATION"),),
    "lab": (
        ("up", "three hosts over vxlan"),
        ("exec h1 -- netagent status", "as on a host"),
        ("ping", "does everybody reach everybody?"),
        ("down", "nothing is left"),
    ),
    "lab up": (
        ("", "three hosts over vxlan"),
        ("--name two --nodes 4 --topology racks --backend bgp", "another beside it"),
        ('--backend \'{"Type": "vxlan", "VNI": 7}\' --ipv6', "with an option of the backend"),
    ),
    "lab demo": (("", "what `make lab` does"),),
    "lab ping": (("", "exit code 1 if a pair has no reply"), ("--count 5 --json", "for scripts")),
    "lab status": (("", "exit code: of the host that is worst, 0 healthy, 1 degraded, 2 down"),),
    "lab exec": (
        ("h1 -- netagent routes", "on a host"),
        ("h1 --container -- ip route", "in its container"),
        ("etcd -- etcdctl get --prefix /coreos.com/network", "what the agents see"),
    ),
    "lab logs": (("", "every agent's"), ("h1 --follow", "as it comes; Ctrl-C ends it")),
    "lab list": (("", ""),),
    "lab down": (("", "the lab named lab"), ("--all", "every lab of this user")),
    "completion": (("bash", "`source <(netagent completion bash)` in ~/.bashrc"),),
    "version": (("--json", ""),),
}

# Exit codes that mean something else, or something more; "" where the description has them.
EXIT = {
    "status": "",
    "plan": "",
    "config check": "0 good, though perhaps with warnings; 2 agents would refuse it",
    "cleanup": "0 done; 1 something stayed, and is named; 2 wrong usage, or the agent still runs",
    "lab ping": "0 every pair answered; 1 one did not",
    "lab status": "of the host that is worst: 0 healthy, 1 degraded, 2 down",
    "lab exec": "that of CMD",
    "run": "0 ended by SIGTERM or SIGINT; 1 failed; 2 wrong usage or settings",
}
USUAL = "0 done; 1 failed; 2 wrong usage or configuration, or the agent does not answer"


def lines(path: str) -> list[tuple[str, str]]:
    """(the whole command, what it does) for a command such as "lease list"; none for one that is not known."""
    return [(f"netagent {path} {rest}".rstrip(), text) for rest, text in EXAMPLES.get(path, ())]


def words(path: str) -> list[list[str]]:
    """Each example as the words that a shell would make of it."""
    return [shlex.split(command)[1:] for command, _ in lines(path)]


def epilog(path: str) -> str:
    """Under the options of --help."""
    found = lines(path)
    width = max((len(command) for command, text in found if text and len(command) < 60), default=0)
    shown = "\n".join(("Examples:", *(f"  {command:{width}}  {text}".rstrip() for command, text in found)))
    codes = EXIT.get(path, USUAL)
    return f"{shown}\n\nExit code: {codes}." if codes else shown
