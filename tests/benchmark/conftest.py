"""The scripts of benchmark/accuracy, and small synthetic data for them."""

import gzip
import io
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parent.parent.parent / "benchmark" / "accuracy"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name, as they do when one of them is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(script: str, *options: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(FOLDER / script), *map(str, options)])
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture
def failed(passed: Callable[..., str]) -> Callable[..., str]:
    """The message with which a script stops."""

    def call(script: str, *options: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            passed(script, *options)
        assert isinstance(stopped.value.code, str), "a message, and exit code 1"
        return stopped.value.code

    return call


def digits(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that tell their class by a bright column."""
    noise = np.random.default_rng(seed)
    labels = noise.integers(0, 10, count)
    pixels = noise.integers(0, 60, (count, 28, 28))
    pixels[np.arange(count), :, 2 * labels + 4] += 180
    return pixels.astype(np.uint8), labels.astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    """32 x 32, three channels."""
    file = io.BytesIO()
    Image.fromarray(np.pad(image, 2)).convert("RGB").save(file, "jpeg")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    x, y = digits(0, 600)
    x_test, y_test = digits(1, 200)
    np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    (folder / "fashion-mnist").mkdir()
    for name, pixels, labels in (("train", x, y), ("t10k", x_test, y_test)):
        with gzip.open(folder / "fashion-mnist" / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(bytes(16) + pixels.tobytes())
        with gzip.open(folder / "fashion-mnist" / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(bytes(8) + labels.tobytes())
    arrays = {}
    for name, pixels, labels in (("train", x[:64], y[:64]), ("test", x_test[:32], y_test[:32])):
        files = [jpeg(image) for image in pixels]
        joined = np.frombuffer(b"".join(files), np.uint8)
        arrays |= {f"jpeg_{name}": joined, f"end_{name}": np.cumsum([len(file) for file in files]), f"y_{name}": labels}
    np.savez(folder / "cifar10_jpeg.npz", **arrays)
    (folder / "tinyshakespeare.txt").write_text("What is the city but the people? " * 150)
    return folder
