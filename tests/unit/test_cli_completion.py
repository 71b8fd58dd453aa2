"""Completion scripts: made from the command line, offering what can stand where the cursor is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from netagent.cli import examples
from netagent.cli.completion import bash, fish, zsh
from netagent.cli.parser import build_parser
from netagent.cli.tree import Argument, Node, Option, read

HELP = Option(("-h", "--help"), "", "show this help message and exit", (), False)
UP = Node(
    ("lab", "up"),
    "start a lab",
    "",
    (HELP, Option(("--backend",), "BACKEND", "which backend", ("vxlan", "host-gw"), False)),
    (),
    (),
)
ROOT = Node(
    (),
    "",
    "",
    (HELP,),
    (),
    (
        Node(("lab",), "run a lab: it's all here", "", (HELP,), (), (UP,)),
        Node(
            ("status",),
            "say how it is",
            "",
            (
                HELP,
                Option(("--state-dir",), "DIR", "state", (), False),
                Option(("--wait",), "SECONDS", "", (), False),
            ),
            (),
            (),
        ),
        Node(("completion",), "print a script", "", (HELP,), (Argument("bash|zsh", "a shell", ("bash", "zsh")),), ()),
    ),
)


def offers(tmp_path: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    (tmp_path / "script").write_text("\n".join(bash(ROOT)))
    state = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}"
    code = f"source ./script; {state}; _netagent; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("netagent", ""), {"lab", "status", "completion", "-h", "--help"}),
        (("netagent", "st"), {"status"}),
        (("netagent", "lab", ""), {"up", "-h", "--help"}),
        (("netagent", "lab", "up", "--b"), {"--backend"}),
        (("netagent", "lab", "up", "--backend", ""), {"vxlan", "host-gw"}),
        (("netagent", "lab", "up", "--backend", "host-gw", "--b"), {"--backend"}),
        (("netagent", "status", "--wait", ""), set()),
        (("netagent", "status", "--state-dir", "d"), {"directory"}),
        (("netagent", "status", "lab"), set()),
        (("netagent", "completion", "z"), {"zsh"}),
        (("netagent", "lab", "--", "u"), set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash(tmp_path: Path, words: tuple[str, ...], wanted: set[str]) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "data").write_text("")
    assert offers(tmp_path, *words) == wanted


def test_zsh_and_fish_know_each_command_and_option() -> None:
    for text in ("\n".join(zsh(ROOT)), "\n".join(fish(ROOT))):
        for word in ("lab", "up", "status", "completion", "backend", "host-gw", "state-dir", "bash"):
            assert word in text
    assert "'lab:run a lab: it'\\''s all here'" in "\n".join(zsh(ROOT))
    assert "-a lab -d 'run a lab: it\\'s all here'" in "\n".join(fish(ROOT))


def test_every_command_teaches_by_examples_that_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for node in read().walk():
        if not node.path:
            continue
        path = " ".join(node.path)
        assert examples.words(path), path
        for words in examples.words(path):
            assert build_parser({words[0]}).parse_args(words).command == node.path[0]
        with pytest.raises(SystemExit):
            build_parser({node.path[0]}).parse_args([*node.path, "--help"])
        shown = capsys.readouterr().out
        assert f"Examples:\n  {node.examples[0][0]}" in shown
        assert "Exit code" in " ".join(shown.split())
    assert set(examples.EXAMPLES) == {" ".join(node.path) for node in read().walk() if node.path}


def test_the_tree_is_read_from_argparse() -> None:
    root = read(("objects", "completion"))
    commands = {node.path: node for node in root.walk()}
    kind = next(option for option in commands["objects",].options if option.names == ("--kind",))
    assert kind.repeatable
    assert {"route", "link"} <= set(kind.choices)
    assert commands["objects",].usage == "netagent objects [OPTION ...] [MATCH]"
    assert commands["completion",].arguments[0].choices == ("bash", "zsh", "fish")
    assert root.usage == "netagent [OPTION ...] COMMAND ..."
