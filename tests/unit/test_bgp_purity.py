"""The library's promise: the standard library alone, and but for driver and daemon no socket, clock or loop."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import bgp

ROOT = Path(bgp.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
# `socket` is allowed in one place, for inet_pton and inet_ntop, which are in C there.
EDGES = {"aio", "daemon", "__main__.py"}
IMPURE = {"asyncio", "os", "random", "select", "selectors", "subprocess", "threading", "time"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports(path: Path) -> None:
    modules: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add((node.module or "").partition(".")[0])
    assert modules <= sys.stdlib_module_names | {"bgp", "bfd"}
    if path.parts[0] in EDGES:
        return
    assert not modules & IMPURE
    assert "socket" not in modules or path == Path("message/nlri.py")
