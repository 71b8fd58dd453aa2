"""One target under the fuzzing engine (atheris: libFuzzer with the coverage of Python's bytecode), in this process.

    python -m tests.fuzz.engine TARGET LIBFUZZER-ARGUMENT...

Rule: the code that is fuzzed is imported under instrumentation, so nothing may import it before. libFuzzer ends the
process itself, with 77 after a crash. `python -m tests.fuzz` (or `make fuzz`) is what people call.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["bfd", "bgp", "backends", "netagent"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
