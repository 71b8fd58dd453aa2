"""`python -m bgp`."""

import sys

from bgp.daemon.cli import main

sys.exit(main())
