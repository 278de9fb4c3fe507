"""The tasks without normalisation of benchmark/accuracy, and the table of what they lose."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.mark.parametrize(
    ("task", "short"),
    [
        ("plain_mlp8", ("epochs=1", "train_size=64")),
        ("plain_cnn", ("epochs=1", "train_size=64")),
        ("sort", ("steps=2",)),
        ("friedman", ("steps=2",)),
    ],
)
def test_every_kind_of_task_trains_and_exports(
    task: str, short: tuple[str, ...], passed: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    options = ["--data", data, "--results", tmp_path, "--seeds", 0, "--methods", "fp32", "max+ls"]
    passed("run.py", task, *options, "--set", *short)
    fp32, ternary = (json.loads(line) for line in (tmp_path / f"{task}.jsonl").read_text().splitlines())
    assert fp32["curve"][-1]["step"] == ternary["curve"][-1]["step"] == 2 - ("train_size=64" in short)
    assert ternary["exported_equal"] is True
    assert math.isfinite(ternary["score"])


def test_a_stretched_start_computes_what_rms_does(passed: Callable[..., str], data: Path, tmp_path: Path) -> None:
    options = ["plain_mlp4", "--data", data, "--results", tmp_path, "--seeds", 0]
    still = ["--set", "epochs=1", "train_size=128", "lr=0"]
    passed("run.py", *options, "--methods", "max+ls", "max+rms", *still)
    passed("run.py", *options, "--methods", "max+ls", *still, "norm_start=1")
    lines = (tmp_path / "plain_mlp4.jsonl").read_text().splitlines()
    plain, rms, stretched = (json.loads(line)["curve"][-1]["loss"] for line in lines)
    assert stretched == pytest.approx(rms, rel=1e-5)
    assert stretched != pytest.approx(plain, rel=1e-5)


def test_the_rate_is_constant() -> None:
    task, loop = importlib.import_module("no_norm").MLP4, importlib.import_module("loop")
    optimizer = loop.make_optimizer(task.build(task.recipe), task.recipe)
    schedule = loop.make_schedule(optimizer, task.recipe, 20)
    for _ in range(20):
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
        optimizer.step()
        schedule.step()


def test_small_digits_are_means_of_four_pixels(data: Path) -> None:
    x, y, _, _ = importlib.import_module("no_norm").small_mnist(data)
    with np.load(data / "mnist.npz") as arrays:
        large, labels = arrays["x_train"].astype(np.float64), arrays["y_train"]
    assert y.tolist() == labels.tolist()
    expected = sum(large[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_friedman_is_its_formula_with_noise_of_deviation_1() -> None:
    no_norm = importlib.import_module("no_norm")
    split = no_norm.friedman(False, no_norm.FRIEDMAN.recipe)
    x = (split.x.double().numpy() + 3**0.5) / 12**0.5
    assert x.min() >= -1e-6
    assert x.max() <= 1 + 1e-6
    told = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    slope, _ = np.polyfit(split.y[:, 0].double().numpy(), told, 1)
    noise = split.y[:, 0].double().numpy() * 24.7**0.5 - (told - told.mean())  # 23.7, the formula's variance, and 1
    assert abs(noise.std() - 1) < 0.1
    assert 0.9 < slope / (23.7 / 24.7**0.5) < 1.1


def test_made_data_of_the_splits_do_not_overlap() -> None:
    no_norm = importlib.import_module("no_norm")
    chosen, final = (no_norm.unsorted(final, no_norm.SORT.recipe) for final in (False, True))
    assert torch.equal(chosen.y, torch.from_numpy(np.sort(chosen.x.numpy(), 1)))
    assert torch.equal(final.x, torch.cat([chosen.x, chosen.x_scored]))
    assert len(chosen.x_scored) == len(final.x_scored) == 4000
    assert not torch.equal(chosen.x_scored, final.x_scored)


def test_scores_of_places_and_of_regressions() -> None:
    task, no_norm = importlib.import_module("task"), importlib.import_module("no_norm")
    named = torch.nn.functional.one_hot(torch.tensor([[3, 1, 2], [0, 0, 5]]), 6).float()
    assert task.score_of(no_norm.SORT, named, torch.tensor([[3, 1, 1], [0, 0, 5]])) == pytest.approx(100 * 5 / 6)
    y = torch.tensor([[1.0], [2.0], [6.0]])
    assert task.score_of(no_norm.FRIEDMAN, y + 1, y) == pytest.approx(
        100 * (1 - 3 / 14)
    )  # 14 is the sum about the mean


def test_losses_are_to_the_first_row_on_common_seeds() -> None:
    report, experiments = importlib.import_module("report"), importlib.import_module("experiments")
    fp32, ternary = experiments.FP32, experiments.Row("max+ls", "max+ls")
    columns = experiments.Column("plain_mlp2"), experiments.Column("char_lm")
    experiment = experiments.Experiment(rows=(fp32, ternary), columns=columns, losses=True)
    scores = {(0, 0): {0: 90.0, 1: 92.0}, (0, 1): {1: 91.0}, (1, 0): {0: 1.0}, (1, 1): {0: 1.25}}
    found = {
        experiment.key(columns[c], (fp32, ternary)[r]): {seed: {"score": score} for seed, score in runs.items()}
        for (c, r), runs in scores.items()
    }
    lines = report.losses_table(found, experiment).splitlines()
    assert lines[0] == "|  | plain_mlp2 | char_lm | worst loss |"
    assert lines[3] == "| max+ls | 91.00 (1 seed): 1.00 | 1.2500 (1 seed): 0.2500 | 1.00 (plain_mlp2) |"
    del found[experiment.key(columns[1], ternary)]
    assert report.losses_table(found, experiment).splitlines()[3].endswith("| - | - |"), "no worst of some"
