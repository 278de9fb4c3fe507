"""The data sets, read from a folder (--data), and their splits.

mnist.npz           arrays x_train (60000, 28, 28) uint8, y_train, x_test, y_test
cifar10_jpeg.npz    jpeg_train, jpeg_test (files joined), end_train, end_test (where each ends), y_train, y_test
tinyshakespeare.txt the text of nanoGPT's data/shakespeare_char
fashion-mnist/      the four .gz files of Zalando's Fashion-MNIST, as in Debian's package dataset-fashion-mnist:
                    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb FOLDER

Two splits of each: for choosing, the last part of the training data is held out and the test data are not read; with
``final`` all training data train and the test data are scored.
"""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 6  # one of so many training images


class Split(NamedTuple):
    """Images ``(n, channels, height, width)`` float32 and labels, or ids of characters in ``x`` and no ``y``."""

    x: Tensor
    y: Tensor
    x_scored: Tensor
    y_scored: Tensor


class DataError(Exception):
    """A data set that is missing or not as described."""


def _npz(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    try:
        with np.load(path) as arrays:
            return [arrays[key] for key in keys]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: {error}; benchmark/accuracy/data.py says what it must hold") from None


def mnist(folder: Path) -> list[np.ndarray]:
    return _npz(folder / "mnist.npz", ("x_train", "y_train", "x_test", "y_test"))


def _idx(path: Path, offset: int) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=offset)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: {error}; benchmark/accuracy/data.py says where to get it") from None


def fashion(folder: Path) -> list[np.ndarray]:
    found = [*sorted(folder.glob("**/fashion-mnist")), folder / "fashion-mnist"]
    parts = []
    for name in ("train", "t10k"):
        parts.append(_idx(found[0] / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28))
        parts.append(_idx(found[0] / f"{name}-labels-idx1-ubyte.gz", 8))
    return parts


def cifar(folder: Path) -> list[np.ndarray]:
    from PIL import Image

    parts = []
    for name in ("train", "test"):
        joined, ends, labels = _npz(folder / "cifar10_jpeg.npz", (f"jpeg_{name}", f"end_{name}", f"y_{name}"))
        starts = [0, *ends[:-1]]
        files = (joined[a:b].tobytes() for a, b in zip(starts, ends, strict=True))
        parts += [np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]), labels]
    return parts


def images(read: Callable[[Path], list[np.ndarray]], folder: Path, final: bool, size: int = 0) -> Split:
    """Standardised by mean and deviation of each channel of the images that train."""
    x, y, x_test, y_test = read(folder)
    if not final:
        cut = len(x) - len(x) // HELD_OUT
        x, y, x_test, y_test = x[:cut], y[:cut], x[cut:], y[cut:]
    if size:
        x, y = x[:size], y[:size]
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))

    def tensor(pixels: np.ndarray) -> Tensor:
        scaled = torch.from_numpy(((pixels - mean) / std).astype(np.float32))
        return scaled.unsqueeze(1) if scaled.dim() == 3 else scaled.permute(0, 3, 1, 2).contiguous()

    return Split(
        tensor(x), torch.from_numpy(y.astype(np.int64)), tensor(x_test), torch.from_numpy(y_test.astype(np.int64))
    )


def characters(path: Path, context: int, final: bool) -> Split:
    """The last tenth is validation text; for choosing, the tenth before it. ``x_scored`` holds windows."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; benchmark/accuracy/data.py says which text it is") from None
    code = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([code[character] for character in text])
    cut, end = (len(ids) * 9 // 10, len(ids)) if final else (len(ids) * 8 // 10, len(ids) * 9 // 10)
    if end - cut <= context:
        raise DataError(f"{path}: {len(text)} characters; validation windows of {context + 1} need more text")
    windows = ids[cut:end].unfold(0, context + 1, context)
    return Split(ids[:cut], ids[:0], windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
