"""The `netagent` command: finds the module of the command, runs it, turns errors into one line and an exit code.

Exit codes: 0 done; 1 failed (`status`: degraded); 2 wrong usage or configuration, or the agent is down; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from netagent.cli.parser import build_parser
from netagent.errors import NetagentError


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("NETAGENT_DEBUG", "") not in ("", "0")
    try:
        # The first word that is no option names the command: the top level has no option with a value.
        named = next((word for word in words if not word.startswith("-")), "")
        args = build_parser({named}).parse_args(words)
        code = int(args.run(args))
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
    except BrokenPipeError:
        # The reader (head, less) went away. Point stdout elsewhere, or the interpreter complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
