"""Documentation held to the code: links lead somewhere, commands exist, every finding and flag has its page."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent.cli.tree import Node, read

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    prose = FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    seen, ahead = {index}, [index]
    while ahead:
        page = ahead.pop()
        for target in LINK.findall(page.read_text()):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.exists() and file not in seen:
                seen.add(file)
                ahead.append(file)
    assert set((ROOT / "docs").rglob("*.md")) - seen == set()


# ------------------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def commands() -> dict[tuple[str, ...], Node]:
    return {node.path: node for node in read().walk()}


def shown(page: Path) -> Iterator[str]:
    """Every netagent command in a page's fenced blocks and code spans."""
    text = page.read_text()
    blocks = "\n".join(block for block in FENCE.findall(text) if not block.startswith(("```json", "```toml")))
    for line in blocks.splitlines():
        if line.startswith("etcdctl"):
            continue  # where netagent is a user's name
        yield from (f"netagent {rest}" for rest in re.split(r"(?:^|\s)netagent (?=[a-z])", line.split("#")[0])[1:])
    yield from re.findall(r"`(netagent [a-z][^`]*)`", FENCE.sub("", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_exist(page: Path, commands: dict[tuple[str, ...], Node]) -> None:
    if page.name == "cli.md":
        return  # made from the commands themselves
    for command in shown(page):
        words = command.split()[1:]
        path: tuple[str, ...] = ()
        while len(path) < len(words) and (*path, words[len(path)]) in commands:
            path = (*path, words[len(path)])
        assert path, f"{command!r} names no command"
        known = {name for option in commands[path].options for name in option.names}
        for word in words[len(path) :]:
            if word == "--":
                break
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{command!r}: no option {word}"


# ----------------------------------------------------------------------------------------- made from the code


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_man_page_has_every_flag(commands: dict[tuple[str, ...], Node]) -> None:
    page = (ROOT / "packaging" / "man" / "netagent.1").read_text().replace("\\-", "-")
    sections = dict(section.partition("\n")[::2] for section in re.split(r"^\.SS ", page, flags=re.MULTILINE)[1:])
    for path, node in commands.items():
        section = sections[" ".join(("netagent", *path))] if path else page
        for option in node.options:
            if "--help" not in option.names or not path:  # said once, for all commands
                assert [name for name in option.names if name not in section] == [], path


# ------------------------------------------------------------------------------------------------- findings


def codes() -> dict[str, str]:
    """Every finding code in the code, with the file that reports it."""
    found: dict[str, str] = {}
    for top in ("netagent", "backends"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if "proto" not in path.parts:
                found |= dict.fromkeys(_codes(ast.parse(path.read_text())), str(path.relative_to(ROOT)))
    return found


def _codes(module: ast.Module) -> Iterator[str]:
    """Constants given as `code` to Finding, or to a function of the module that passes its own argument on to it."""
    makers = {"Finding"}
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        arguments = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        for call in _calls(function, {"Finding"}):
            if any(isinstance(part, ast.Name) and part.id in arguments for part in _code(call)):
                makers.add(function.name)
    for call in _calls(module, makers):
        parts = _code(call) if _name(call) == "Finding" else ast.walk(call)
        for part in parts:
            if isinstance(part, ast.Constant) and CODE.fullmatch(str(part.value)):
                yield str(part.value)


def _calls(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node) in names)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _code(call: ast.Call) -> Iterator[ast.AST]:
    for keyword in call.keywords:
        if keyword.arg == "code":
            yield from ast.walk(keyword.value)


def test_every_finding_has_its_section_and_no_other() -> None:
    page = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text()
    sections = re.findall(rf"^### ({CODE.pattern})$", page.partition("## From a finding")[2], re.MULTILINE)
    assert len(sections) == len(set(sections))
    reported = codes()
    assert {code: where for code, where in reported.items() if code not in sections} == {}
    assert set(sections) - set(reported) == set()


def test_decisions_are_numbered_and_listed() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    listed = (ROOT / "docs" / "adr" / "README.md").read_text()
    for number, record in enumerate(records, 1):
        text = record.read_text()
        title = text.splitlines()[0]
        assert title.startswith(f"# {number:04}: ")
        assert record.name.startswith(f"{number:04}-")
        assert f"({record.name}) | {title.partition(': ')[2]} |" in listed
        for part in ("Status: ", "## Context", "## Decision", "## Consequences"):
            assert part in text
