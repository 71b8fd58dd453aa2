"""Writes what is made from the code: references of commands and settings, man pages, completion scripts.

`python docs/generate.py` writes them, `python docs/generate.py --check` says which are out of date (exit code 1).
A test runs the check, so that no flag is without its page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from netagent import __version__
from netagent.cli import completion
from netagent.cli.tree import Node, Option, read
from netagent.config import DEFAULT_FILE, GROUPS, OPTIONS

ROOT = Path(__file__).resolve().parents[1]
MADE = "Made by docs/generate.py from the code: do not edit."


def files() -> dict[Path, str]:
    """Every generated file with what should be in it."""
    root = read()
    return {
        ROOT / "docs/reference/cli.md": _text(markdown(root)),
        ROOT / "docs/reference/settings.md": _text(settings_markdown()),
        ROOT / "packaging/man/netagent.1": _text(man(root)),
        ROOT / "packaging/man/netagent.toml.5": _text(settings_man()),
        ROOT / "packaging/completion/netagent.bash": _text(completion.bash(root)),
        ROOT / "packaging/completion/_netagent": _text(completion.zsh(root)),
        ROOT / "packaging/completion/netagent.fish": _text(completion.fish(root)),
    }


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"


# ---------------------------------------------------------------------------------------------- markdown


def markdown(root: Node) -> Iterator[str]:
    yield from ("# Command line", "", f"<!-- {MADE} -->", "")
    yield "Every command has `--help`. A command that asks the agent finds its socket by `--socket`, `--run-dir`,"
    yield "`$NETAGENT_RUN_DIR`, `run_dir` in the settings file, then /run/netagent. Errors are one line on stderr"
    yield "with the next step; `NETAGENT_DEBUG=1` adds the traceback. With `--json` there is nothing but JSON on"
    yield "stdout, in UTF-8."
    yield from ("", "| Exit code | Means |", "|---|---|")
    for code, meaning in EXIT_CODES:
        yield f"| {code} | {meaning} |"
    for node in root.walk():
        if not node.path:
            continue
        yield from ("", f"{'#' * min(len(node.path) + 1, 4)} netagent {' '.join(node.path)}", "")
        yield node.description or f"{node.help[:1].upper()}{node.help[1:]}."
        yield from ("", "```", node.usage, "```")
        if node.examples:
            yield from ("", "```", *(_example(command, text) for command, text in node.examples), "```")
        rows = [(argument.usage, argument.help) for argument in node.arguments]
        rows += [(_spelled(option), _explained(option)) for option in _own(node)]
        if rows:
            yield from ("", "| Argument | Meaning |", "|---|---|")
            yield from (f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows)


def _example(command: str, text: str) -> str:
    return f"{command}  # {text}" if text else command


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _own(node: Node) -> list[Option]:
    return [option for option in node.options if option.names != ("-h", "--help")]


def _spelled(option: Option) -> str:
    value = "|".join(option.choices) or option.value
    return ", ".join(f"{name} {value}" if option.value else name for name in option.names)


def _explained(option: Option) -> str:
    again = "" if not option.repeatable or "repeat" in option.help else " (repeatable)"
    return option.help + again


EXIT_CODES = (
    (0, "done; `status`: healthy"),
    (1, "failed; `status`: degraded"),
    (2, "wrong usage or configuration; the agent does not answer, or not to this user; `status`: down"),
    (3, "`plan --exit-code`: something would change"),
    (130, "interrupted"),
)

# --------------------------------------------------------------------------------------------------- man


def man(root: Node) -> Iterator[str]:
    yield f'.\\" {MADE}'
    yield f'.TH NETAGENT 1 "" "netagent {__version__}" "netagent manual"'
    yield ".SH NAME"
    yield "netagent \\- connect containers across hosts: leases a subnet in etcd, keeps routes to all others"
    yield ".SH SYNOPSIS"
    yield ".B netagent"
    yield ".I COMMAND"
    yield "[\\fIOPTION\\fR ...]"
    yield ".SH DESCRIPTION"
    yield _roff(
        "One netagent runs on each Linux host. It leases a subnet for the host in etcd and makes the containers on "
        "that subnet reachable from every other host, through a backend: routes (host-gw, bgp), VXLAN (vxlan), IP in "
        "IP (ipip) or a tunnel in user space (udp). It shares etcd's records and the wire formats with flannel. "
        "Traffic outlives the agent: what it has set up in the kernel stays when it stops, and the next one takes it "
        "over."
    )
    yield ".SH OPTIONS"
    for option in root.options:
        again = " Every command has this option." if "--help" in option.names else ""
        yield from (".TP", f"\\fB{_roff(_spelled(option))}\\fR", _roff(_explained(option) + "." + again))
    yield ".SH COMMANDS"
    for node in root.walk():
        if not node.path:
            continue
        yield f".SS {_roff(' '.join(('netagent', *node.path)))}"
        yield f".B {_roff(node.usage)}"
        yield ".PP"
        yield _roff(node.description or f"{node.help[:1].upper()}{node.help[1:]}.")
        for argument in node.arguments:
            yield from (".TP", f"\\fI{_roff(argument.usage)}\\fR", _roff(argument.help))
        for option in _own(node):
            yield from (".TP", f"\\fB{_roff(_spelled(option))}\\fR", _roff(_explained(option)))
        if node.examples:
            yield from (".PP", "Examples:", ".nf")
            yield from (_roff(f"  {_example(command, text)}") for command, text in node.examples)
            yield ".fi"
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from (".TP", f".B {code}", _roff(meaning.replace("`", "")))
    yield ".SH ENVIRONMENT"
    for name, meaning in ENVIRONMENT:
        yield from (".TP", f".B {name}", _roff(meaning))
    yield ".SH FILES"
    for name, meaning in FILES:
        yield from (".TP", f".I {name}", _roff(meaning))
    yield ".SH SEE ALSO"
    yield ".BR netagent.toml (5),"
    yield ".BR ip-route (8),"
    yield ".BR bridge (8),"
    yield ".BR nft (8),"
    yield ".BR systemctl (1)"


ENVIRONMENT = (
    ("NETAGENT_DEBUG", "Show tracebacks."),
    ("NETAGENT_RUN_DIR", "Run directory of the agent to ask or to run (/run/netagent)."),
    ("NETAGENT_STATE_DIR", "State directory (/var/lib/netagent)."),
    ("NETAGENT_*", "Every setting of netagent.toml(5): its name in capitals with this prefix."),
    ("NO_COLOR", "No colour on terminals."),
)
FILES = (
    ("/etc/netagent/netagent.toml", "Settings of this host: netagent.toml(5)."),
    ("/run/netagent/subnet.env", "The subnet and MTU for container engines, in flannel's form."),
    ("/run/netagent/netagent.sock", "The agent's API."),
    ("/var/lib/netagent", "The node's identity, the last known records, and what to restore on cleanup."),
)


# ------------------------------------------------------------------------------------------------ settings


def settings_markdown() -> Iterator[str]:
    yield from ("# Settings of a host", "", f"<!-- {MADE} -->", "")
    yield f"Settings are flags of `netagent run`, environment variables, or keys in `{DEFAULT_FILE}`"
    yield "(another file with `--config` or `$NETAGENT_CONFIG`). A flag wins over a variable, a variable over the"
    yield "file. A key that is not known, and a value that is not valid, is an error that names file and line."
    yield "`systemctl reload netagent` (SIGHUP) reads them again, and says which need a restart."
    yield from (
        "",
        "The flag of `etcd_prefix` is `--etcd-prefix`, its variable `NETAGENT_ETCD_PREFIX`; so for every other.",
    )
    yield from ("", "```toml")
    yield 'etcd_endpoints = ["https://192.168.50.2:2379", "https://192.168.50.3:2379"]'
    yield 'etcd_cafile = "/etc/netagent/ca.pem"'
    yield 'iface = ["eth1"]'
    yield from ("ip_masq = true", "```")
    for group, title in GROUPS.items():
        yield from (
            "",
            f"## {title if title == 'etcd' else title.capitalize()}",
            "",
            "| Key | Default | Meaning |",
            "|---|---|---|",
        )
        for option in OPTIONS:
            if option.group == group:
                default = "" if option.example in ('""', "[]") else f"`{option.example}`"
                yield f"| `{option.name}` | {default} | {_cell(option.help)} |"
    yield from ("", "The password of etcd is no setting: it comes from the file in `etcd_password_file` or from")
    yield "`$NETAGENT_ETCD_PASSWORD`, and never from a flag, where every user of the host could read it."


def settings_man() -> Iterator[str]:
    yield f'.\\" {MADE}'
    yield f'.TH NETAGENT.TOML 5 "" "netagent {__version__}" "netagent manual"'
    yield from (".SH NAME", "netagent.toml \\- settings of netagent on this host")
    yield from (".SH SYNOPSIS", f".I {DEFAULT_FILE}")
    yield ".SH DESCRIPTION"
    yield _roff(
        "A TOML file of key = value lines. Every setting can also be given in the environment, its name in capitals "
        "after NETAGENT_, and as a flag of netagent run, with dashes for underscores; a flag wins over a variable, a "
        "variable over the file. SIGHUP reads them again. Durations are seconds, or text such as 30s or 24h."
    )
    for group, title in GROUPS.items():
        yield f".SH {title.upper()}"
        for option in OPTIONS:
            if option.group == group:
                yield from (".TP", f"\\fB{_roff(option.name)}\\fR = {_roff(option.example)}")
                yield _roff(option.help[:1].upper() + option.help[1:] + ".")
    yield from (".SH SEE ALSO", ".BR netagent (1)")


def _roff(text: str) -> str:
    """Text for roff: hyphens as typed, no line that begins with a control character."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + safe if safe.startswith((".", "'")) else safe


def main(words: list[str]) -> int:
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if words == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
