"""500 pairs of a key and a value in one vector of trits: bind, bundle, and read each value back.

Run: python examples/key_value_memory.py            (a fraction of a second on a CPU)
Prints the share of values that are found, beside the theory; exits with 1 below 90 %.
"""

import argparse
import sys
import time

import numpy as np

from bittorch import vsa


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Superpose pairs of keys and values in one vector of trits.")
    parser.add_argument("--pairs", type=int, default=500, help="pairs in the memory (default: 500)")
    parser.add_argument("--dimension", type=int, default=16384, help="trits of a vector (default: 16384)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random vectors (default: 0)")
    args = parser.parse_args()
    if args.pairs < 1 or args.dimension < 1:
        parser.error("--pairs and --dimension must be at least 1")
    return args


def main() -> None:
    args = parse_args()
    started = time.perf_counter()
    generator = np.random.default_rng(args.seed)
    countries = vsa.ItemMemory.random([f"country {i}" for i in range(args.pairs)], args.dimension, seed=generator)
    capitals = vsa.ItemMemory.random([f"capital {i}" for i in range(args.pairs)], args.dimension, seed=generator)
    memory = vsa.record(countries.vectors, capitals.vectors)  # one vector for all pairs
    read = vsa.unbind(memory, countries.vectors)  # each value, with the noise of all the others
    found = capitals.clean_up(read)
    share = float((found.indices[:, 0] == np.arange(args.pairs)).mean())
    seconds = time.perf_counter() - started

    expected = vsa.expected_accuracy(args.dimension, args.pairs, args.pairs)
    print(f"{args.pairs} pairs in one vector of {args.dimension} trits, {memory.nbytes} bytes")
    print(f"of {countries.names[0]}: {capitals.name_of(vsa.unbind(memory, countries['country 0']))}")
    print(f"mean cosine with the right value {capitals.similarities(read).diagonal().mean():.4f}, ", end="")
    print(f"expected {vsa.expected_similarity(args.pairs):.4f}")
    print(f"found {share:.1%} of the values in {seconds:.2f} s, expected {expected:.1%}")
    if share < 0.9:
        sys.exit("FAIL: below 90 %; a larger --dimension holds more")
    print("OK: at least 90 % retrieved")


if __name__ == "__main__":
    main()
