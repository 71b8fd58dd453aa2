"""What the stand-in says, and how it ends early."""

from __future__ import annotations

import sys


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fatal(text: str, code: int = 1) -> SystemExit:
    """To be raised."""
    log(text)
    return SystemExit(code)
