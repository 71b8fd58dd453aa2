"""Runs the targets under the fuzzing engine, one after the other, and says what came of it.

    python -m tests.fuzz [--seconds N] [--jobs N] [TARGET...]
    python -m tests.fuzz seeds             write the seed corpus anew from our encoders

Rule: what a run learns stays in .fuzz/<target>/ for the next one; what crashes a target goes into
tests/fuzz/crashes/<target>/, where `make test` replays it. Exit status 1 when there was a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.target import CORPUS, CRASHES, Target
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".fuzz"

_TIMEOUT = 10  # seconds for one input
_MEMORY = 1024  # MiB for the process, the interpreter and all that is instrumented included
_STATE = re.compile(
    r"^#(?P<runs>\d+)\s+\S+\s+cov: (?P<edges>\d+) ft: (?P<features>\d+) "
    r"corp: (?P<corpus>\d+)/\S+.*?rss: (?P<rss>\d+)Mb"
)


class Result(NamedTuple):
    """What a target's run came to. `edges` are those of the bytecode; `corpus` inputs that reach something new."""

    target: str
    seconds: float
    cpu: float  # seconds of a core, which a busy machine does not give in as many seconds
    executions: int
    edges: int
    features: int
    corpus: int
    memory: int  # MiB
    crashes: tuple[str, ...]


def read_state(output: str) -> tuple[int, int, int, int, int]:
    """(executions, edges, features, corpus, MiB) of libFuzzer's last line that tells them; of MiB the most."""
    found = (0, 0, 0, 0, 0)
    for line in output.splitlines():
        match = _STATE.match(line)
        if match:
            runs, edges, features, corpus, memory = map(int, match.groups())
            found = (runs, edges, features, corpus, max(found[4], memory))
    return found


def table(results: list[Result]) -> str:
    """The results as Markdown, with a sum."""
    rows = [
        (
            *(result.target, f"{result.seconds:.0f}", f"{result.cpu:.0f}", f"{result.executions:,}"),
            *(
                f"{result.edges:,}",
                f"{result.features:,}",
                f"{result.corpus:,}",
                str(result.memory),
                str(len(result.crashes)),
            ),
        )
        for result in results
    ]
    runs = sum(result.executions for result in results)
    crashes = sum(len(result.crashes) for result in results)
    corpus = sum(result.corpus for result in results)
    seconds = sum(result.seconds for result in results)
    cpu = sum(result.cpu for result in results)
    rows.append(("**all**", f"{seconds:.0f}", f"{cpu:.0f}", f"{runs:,}", "", "", f"{corpus:,}", "", str(crashes)))
    head = ("Target", "s", "CPU s", "Executions", "Edges", "Features", "Corpus", "MiB", "Crashes")
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---", *["---:"] * 8), *rows)]
    return "\n".join(lines)


def fuzz(target: Target, seconds: int) -> Result:
    """Run one target in a process of its own."""
    learnt, crashes = WORK / target.name, CRASHES / target.name
    learnt.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="netagent-fuzz-", dir=_memory()) as scratch:
        folder = Path(scratch)
        (folder / "found").mkdir()
        words = folder / "words"
        words.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words))
        known = [str(path) for path in (CORPUS / target.name, crashes) if path.is_dir()]
        command = [
            *(sys.executable, "-m", "tests.fuzz.engine", target.name, str(learnt), *known),
            *(f"-max_total_time={seconds}", f"-max_len={target.longest}", f"-timeout={_TIMEOUT}"),
            *(f"-rss_limit_mb={_MEMORY}", f"-artifact_prefix={folder}/found/"),
            *([f"-dict={words}"] if target.words else []),
        ]
        begun = time.monotonic()
        log = WORK / f"{target.name}.log"
        with log.open("w") as output:
            engine = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "TMPDIR": scratch, "PYTHONHASHSEED": "0"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, used = os.wait4(engine.pid, 0)
            engine.returncode = os.waitstatus_to_exitcode(status)
        seconds_taken = time.monotonic() - begun
        kept = tuple(_keep(path, crashes) for path in sorted((folder / "found").glob("[!s]*")))
    said = log.read_text(errors="replace")
    if engine.returncode and not kept:
        print(said[-2000:], file=sys.stderr)
        raise SystemExit(f"{target.name}: the engine failed with {engine.returncode}, see {log}")
    return Result(target.name, seconds_taken, used.ru_utime + used.ru_stime, *read_state(said), kept)


def _keep(path: Path, crashes: Path) -> str:
    """Put what crashed the target among the regressions, by kind and digest."""
    data = path.read_bytes()
    crashes.mkdir(parents=True, exist_ok=True)
    name = f"{path.name.partition('-')[0]}-{hashlib.sha256(data).hexdigest()[:12]}"
    (crashes / name).write_bytes(data)
    return name


def _quoted(word: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def write_seeds(targets: list[Target]) -> None:
    for target in targets:
        folder = CORPUS / target.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in target.seeds().items():
            (folder / name).write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all without one: {', '.join(sorted(TARGETS))}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once, one process each (1)")
    args = parser.parse_args()
    seeds = args.targets[:1] == ["seeds"]
    names = args.targets[1:] if seeds else args.targets
    unknown = sorted(set(names) - TARGETS.keys())
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(sorted(TARGETS))}")
    chosen = [TARGETS[name] for name in names or sorted(TARGETS)]
    if seeds:
        write_seeds(chosen)
        return 0
    WORK.mkdir(exist_ok=True)
    results: list[Result] = []
    with ThreadPoolExecutor(args.jobs) as pool, contextlib.suppress(KeyboardInterrupt):
        for result in pool.map(lambda target: fuzz(target, args.seconds), chosen):
            results.append(result)
            wrong = f"  CRASHES: {', '.join(result.crashes)}" if result.crashes else ""
            print(f"{result.target}: {result.executions:,} executions{wrong}", file=sys.stderr, flush=True)
    print(table(results))
    crashed = [result for result in results if result.crashes]
    for result in crashed:
        where = (CRASHES / result.target).relative_to(ROOT)
        print(f"{result.target}: inputs in {where}, tracebacks in {WORK.name}/{result.target}.log", file=sys.stderr)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
