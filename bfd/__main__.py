"""`python -m bfd`: the process of engine.py, with the processor's favour before anything else is loaded."""

import sys

from bfd import scheduling


def main() -> int:
    """--fd N, a socket towards the owner; --path PATH, where the next one finds us; --tag TAG, our make."""
    scheduling.hurry()
    from bfd.engine import serve

    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    serve(int(options["--fd"]), options.get("--path", ""), options.get("--tag", ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
