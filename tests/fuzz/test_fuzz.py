"""Every target over its committed inputs and mutations of them, without the engine; and what runs the engine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from bgp.message import Update
from tests.fuzz.__main__ import Result, read_state, table
from tests.fuzz.mutate import mutations
from tests.fuzz.target import CORPUS, CRASHES, Input, pieces
from tests.fuzz.targets import TARGETS, bgp_sessions

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = 300

# Decoders without a target of their own, and why.
WITHOUT = {
    "netagent.lab": "starts what it reads from itself",
    "backends.udp.handover": "reads by way of control's decoder and fields",
    "netagent.cli": "reads what the operator types, by way of the decoders that have one",
}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_target_holds_over_its_corpus(name: str) -> None:
    target = TARGETS[name]
    corpus = [path.read_bytes() for path in target.files()]
    assert len(corpus) >= len(target.seeds()), f"python -m tests.fuzz seeds {name}"
    for path, data in zip(target.files(), corpus, strict=True):
        try:
            target.check(data)
        except Exception as error:
            error.add_note(f"input: {path.relative_to(ROOT)}")
            raise
    for number, data in enumerate(mutations(corpus, target.words, MUTATIONS)):
        try:
            target.check(data)
        except Exception as error:
            error.add_note(f"mutation {number}: {data!r}")
            raise


def test_the_hostile_peers_routes_get_as_far_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the target would hold whatever the speaker does."""
    told: list[int] = []
    hear = bgp_sessions.Watcher.hear

    def listen(self: bgp_sessions.Watcher, update: Update) -> None:
        told.extend(len(prefixes) for _, prefixes, _ in update.announced)
        hear(self, update)

    monkeypatch.setattr(bgp_sessions.Watcher, "hear", listen)
    target = TARGETS["bgp-speaker"]
    for name, data in target.seeds().items():
        told.clear()
        target.check(data)
        assert told, name


def test_no_input_is_without_a_target() -> None:
    assert {
        path.name for folder in (CORPUS, CRASHES) if folder.exists() for path in folder.iterdir()
    } <= TARGETS.keys()


READS = re.compile(r"(decode|parse|unpack)(_\w+)?$|read_")


def decoders() -> set[str]:
    """Public functions and classes of ours that are named as what reads bytes or text is named, as "module:name"."""
    found = set()
    for package in ("bfd", "bgp", "backends", "netagent"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef):
                    reads = READS.match(node.name) is not None
                else:
                    reads = isinstance(node, ast.ClassDef) and node.name.endswith(("Decoder", "Framer"))
                if reads:
                    found.add(f"{module}:{node.name}")
    return found


def test_every_decoder_has_a_target() -> None:
    """Convention 11 of the design: a new decoder comes with a fuzz target."""
    covered = {name for target in TARGETS.values() for name in target.covers}
    assert {name for name in decoders() if not name.startswith(tuple(WITHOUT))} - covered == set()


def test_what_targets_say_they_cover_exists() -> None:
    import importlib

    for target in TARGETS.values():
        for name in target.covers:
            module, _, attribute = name.partition(":")
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)


# ------------------------------------------------------------------------------------------------ its own parts


def test_mutations_are_the_same_each_time_and_differ() -> None:
    corpus = [b"one input", b"and another"]
    made = list(mutations(corpus, (b"word",), 200))
    assert made == list(mutations(corpus, (b"word",), 200))
    assert len(set(made)) > 150
    assert any(b"word" in data for data in made)
    assert list(mutations([b""], (), 50))


def test_an_input_is_taken_apart_as_it_was_put_together() -> None:
    given = Input(pieces(7, b"piece", b"", 255))
    assert (given.byte(), given.piece(), given.piece(), given.byte()) == (7, b"piece", b"", 255)
    assert not given
    assert (given.byte(), given.piece(), given.rest()) == (0, b"", b"")


def test_the_engines_words_are_understood() -> None:
    said = (
        "#2\tINITED cov: 31 ft: 33 corp: 1/1b exec/s: 0 rss: 90Mb\n"
        "Traceback\n"
        "#131072\tpulse  cov: 412 ft: 1711 corp: 98/2313b lim: 1000 exec/s: 900 rss: 140Mb\n"
        "#131999\tDONE   cov: 413 ft: 1712 corp: 99/12Kb lim: 4096 exec/s: 900 rss: 120Mb\n"
    )
    assert read_state(said) == (131999, 413, 1712, 99, 140)
    assert read_state("") == (0, 0, 0, 0, 0)
    shown = table(
        [Result("one", 1.2, 0.8, 1000, 2, 3, 4, 5, ("crash-1",)), Result("two", 2.0, 1.6, 234, 2, 3, 4, 5, ())]
    )
    assert "| one | 1 | 1 | 1,000 | 2 | 3 | 4 | 5 | 1 |" in shown
    assert "| **all** | 3 | 2 | 1,234 |" in shown
