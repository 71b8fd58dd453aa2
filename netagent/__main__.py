"""The `netagent` command: finds the module of the command, runs it, turns errors into one line and an exit code.

Exit codes: 0 done; 1 failed (`status`: degraded); 2 wrong usage or configuration, or the agent is down; 130 Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from netagent.cli.parser import build_parser
from netagent.errors import NetagentError


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("NETAGENT_DEBUG", "") not in ("", "0")
    _letters()
    code = 0
    try:
        try:
            if words[:1] == ["help"]:
                words = [*words[1:], "--help"]
            # The first word that is no option names the command: the top level has no option with a value.
            named = next((word for word in words if not word.startswith("-")), "")
            args = build_parser({named}).parse_args(words)
            code = int(args.run(args))
        finally:  # --help, too, finds out here that nobody reads it
            if sys.stdout is not None:
                sys.stdout.flush()
    except NetagentError as error:
        if debug:
            raise
        print(f"netagent: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        return 130
    except BrokenPipeError:  # the reader (head, less) went away
        _leave_stdout()
    except OSError as error:
        if debug:
            raise
        _leave_stdout()
        where = f"{error.filename}: " if error.filename else ""
        print(f"netagent: error: {where}{error.strerror or error}. NETAGENT_DEBUG=1 shows where", file=sys.stderr)
        return 1
    return code


def _letters() -> None:
    """What the terminal's encoding lacks is written as its number, and is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _leave_stdout() -> None:
    """Where stdout cannot be written to it points elsewhere, or the interpreter complains when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
