"""`python -m bittorch doctor`."""

import argparse
import sys

from bittorch import doctor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bittorch", description="Ternary neural networks for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="print what this installation runs on, and test it; exit code 1 if it fails")
    parser.parse_args()
    return doctor.run()


if __name__ == "__main__":
    sys.exit(main())
