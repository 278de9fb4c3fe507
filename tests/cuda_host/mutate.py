"""Every barrier of the CUDA kernels is needed: removes each __syncthreads() and __syncwarp(), and each wait for copies
to shared memory, in turn and expects a test to fail.

Works on a copy under build/cuda_host/mutants. Run: make -C tests/cuda_host mutations, which takes minutes; for some
files alone: python tests/cuda_host/mutate.py skinny.cuh reduce.cuh
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "build" / "cuda_host" / "mutants"
KERNELS = WORK / "kernels"
PROGRAM = WORK / "objects" / "cuda_host_tests"
BARRIER = re.compile(r"\b(__sync(threads|warp)\(\)|bt_copy_wait<[^>]*>\(\));")


def build() -> None:
    command = ["make", "--silent", "--no-print-directory", f"-j{os.cpu_count()}", "-C", str(HERE)]
    command += [f"KERNELS={KERNELS}", f"BUILD={PROGRAM.parent}", "SANITIZE=", str(PROGRAM)]
    subprocess.run(command, check=True)


PRODUCTS = ("ternary_linear_packed", "ternary_linear_w2a8")
# The tests that should see a change of a file; all are run where these do not.
NEAREST = {"bulk.cuh": PRODUCTS, "skinny.cuh": PRODUCTS, "quantize_sort.cuh": ("ternary_quantize",)}


# Barriers after the last product of a step: in the emulator mma.sync is a barrier of the warp too, and tests/cuda_ptx,
# where it is none, removes them.
UNSEEN = {"skinny.cuh": 1}


def passes(*tests: str) -> bool:
    run = subprocess.run(
        [str(PROGRAM), "--stop", *tests], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900
    )
    return run.returncode == 0


def main(files: list[str]) -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(ROOT / "csrc" / "kernels", KERNELS)
    build()
    if not passes():
        print("the tests fail without any change")
        return 1
    killed, survivors, unseen = 0, [], dict(UNSEEN)
    for path in sorted(path for path in KERNELS.glob("cuda/*.cu*") if not files or path.name in files):
        source = path.read_text()
        for barrier in BARRIER.finditer(source):
            where = f"{path.name}:{source.count(chr(10), 0, barrier.start()) + 1}"
            path.write_text(source[: barrier.start()] + ";" + source[barrier.end() :])
            build()
            outcome = "killed"
            if passes(*NEAREST.get(path.name, (path.stem,))) and passes():
                outcome = "unseen" if unseen.get(path.name, 0) > 0 else "SURVIVES"
                unseen[path.name] = unseen.get(path.name, 0) - 1
            killed += outcome == "killed"
            survivors += [where] * (outcome == "SURVIVES")
            print(f"{where}: {outcome}", flush=True)
        path.write_text(source)
    print(f"{killed} killed, {len(survivors)} survive")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
