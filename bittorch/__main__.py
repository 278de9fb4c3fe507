"""`python -m bittorch`, the same program as `bittorch`."""

import sys

from bittorch.cli import main

if __name__ == "__main__":
    sys.exit(main())
