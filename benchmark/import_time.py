"""How much `import bittorch` adds to `import torch`: median over fresh processes, wanted below 50 ms.

Run: python benchmark/import_time.py
Each process imports torch first, then times `import bittorch`.
"""

import argparse
import subprocess
import sys
from statistics import median

CODE = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import bittorch
print(middle - start, time.perf_counter() - middle)
"""
WANTED_MS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="Time `import bittorch` after `import torch`.")
    parser.add_argument("--runs", type=int, default=9, help="fresh processes (default: 9)")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    torch_ms, extra_ms = [], []
    for _ in range(args.runs):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the import failed; run: pip install --no-build-isolation -e .\n{done.stderr}")
        first, second = (1e3 * float(word) for word in done.stdout.split())
        torch_ms.append(first)
        extra_ms.append(second)
    value = median(extra_ms)
    print(f"import torch: median {median(torch_ms):.0f} ms of {args.runs} processes")
    print(f"import bittorch: {value:.1f} ms more ({min(extra_ms):.1f} to {max(extra_ms):.1f})")
    print(f"{'PASS' if value < WANTED_MS else 'MISS'}  import bittorch: {value:.1f} ms (wanted < {WANTED_MS})")


if __name__ == "__main__":
    main()
