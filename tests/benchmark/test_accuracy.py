"""The runner, the experiments and the report of benchmark/accuracy, on small synthetic data."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


pytestmark = pytest.mark.usefixtures("scripts")


def records(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_run_records_scores_and_resumes(passed: Callable[..., str], data: Path, tmp_path: Path) -> None:
    options = ["mnist_mlp", "--data", data, "--results", tmp_path, "--seeds", 0, "--methods", "fp32", "ternary", "ttq"]
    recipe = ["--set", "epochs=6", "batch=32"]
    passed("run.py", *options, *recipe)
    fp32, ternary, ttq = records(tmp_path, "mnist_mlp")
    assert [r["method"] for r in (fp32, ternary, ttq)] == ["fp32", "ternary", "ttq"]
    assert fp32["exported_equal"] is None
    assert ttq["exported_equal"] is None
    assert ternary["exported_equal"] is True
    assert ternary["exported_score"] == ternary["score"] > 90
    assert ternary["split"] == "held-out"
    assert ternary["recipe"] == "batch=32,epochs=6"
    assert ternary["curve"][-1]["step"] == 6 * -(-500 // 32)  # 600 images less the held-out sixth
    assert "there already" in passed("run.py", *options, *recipe)
    passed("run.py", *options, *recipe, "--final")
    final = records(tmp_path, "mnist_mlp")
    assert len(final) == 6
    assert final[-1]["split"] == "final"
    assert final[-1]["curve"][-1]["step"] == 6 * -(-600 // 32)


def test_distilled_student_starts_from_the_kept_teacher(passed: Callable[..., str], data: Path, tmp_path: Path) -> None:
    options = ["--data", data, "--results", tmp_path, "--teachers", tmp_path / "kept", "--seeds", 0]
    recipe = ["--set", "epochs=1", "batch=32", "distill=1", "from_fp32=1"]
    passed("run.py", "fashion_mlp", *options, "--methods", "ternary", *recipe)
    assert len(list((tmp_path / "kept").glob("*.pt"))) == 1
    passed("run.py", "fashion_mlp", *options, "--methods", "fp32", *recipe)
    ternary, fp32 = records(tmp_path, "fashion_mlp")
    assert ternary["exported_equal"] is True
    assert fp32["curve"], "the twin of a seed is the teacher, with its curve"


def test_convolutions_take_the_default_where_the_method_is_for_linear_layers(
    passed: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    recipe = ["--set", "epochs=1", "train_size=64", "batch=32"]
    options = ["--data", data, "--results", tmp_path, "--seeds", 0, "--methods", "lsq", "a8"]
    passed("run.py", "mnist_lenet", *options, *recipe)
    assert [r["exported_equal"] for r in records(tmp_path, "mnist_lenet")] == [True, True]


def test_resnet20_trains_and_exports(passed: Callable[..., str], data: Path, tmp_path: Path) -> None:
    options = ["--data", data, "--results", tmp_path, "--seeds", 0, "--methods", "ternary"]
    passed("run.py", "cifar_resnet20", *options, "--set", "epochs=1", "batch=32", "--final")
    (record,) = records(tmp_path, "cifar_resnet20")
    assert record["exported_equal"] is True
    assert record["curve"][-1]["step"] == 2


@pytest.mark.slow
def test_report_fills_the_document(passed: Callable[..., str], data: Path, tmp_path: Path) -> None:
    options = ["--data", data, "--results", tmp_path, "--methods", "fp32", "max+ls", "--seeds", 3, 4]
    passed("run.py", "char_lm", *options, "--final", "--set", "steps=2")
    text = (tmp_path / "char_lm.jsonl").read_text()
    (tmp_path / "char_lm.jsonl").write_text(text.replace('"steps=2"', '"default"'))
    document = ROOT.joinpath("docs", "notes", "accuracy.md").read_text(encoding="utf-8")
    doc = tmp_path / "accuracy.md"
    doc.write_text(document)
    passed("report.py", "--results", tmp_path, "--doc", doc, "--images", tmp_path)
    scores = {r["method"]: [] for r in records(tmp_path, "char_lm")}
    for record in records(tmp_path, "char_lm"):
        scores[record["method"]].append(record["score"])
    row = next(line for line in doc.read_text().splitlines() if line.startswith("| char LM 4L"))
    lost = sum(scores["max+ls"]) / 2 - sum(scores["fp32"]) / 2
    assert f"{sum(scores['fp32']) / 2:.4f} ± " in row
    assert f"(worst {max(scores['max+ls']):.4f})" in row
    assert f"| {lost:.4f} nat |" in row
    assert "with 2 seed(s) of 3 |" in row
    assert "| 2 of 2 |" in row
    assert (tmp_path / "accuracy_char_lm.png").stat().st_size > 5000


@pytest.mark.parametrize("task", ["cifar_resnet20", "char_lm"])
def test_a_stopped_run_goes_on_bit_for_bit(
    passed: Callable[..., str],
    failed: Callable[..., str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
) -> None:
    length = ["steps=7", "batch=8", "bf16=1"]
    options = [task, "--data", data, "--seeds", 0, "--methods", "ternary", "--keep", tmp_path / "kept"]
    passed("run.py", *options, "--results", tmp_path / "whole", "--set", *length)
    keep = importlib.import_module("keep")
    plain = keep.Kept.__init__
    monkeypatch.setattr(keep.Kept, "__init__", lambda self, path, what: plain(self, path, what, seconds=0.0))
    loss_of, calls = importlib.import_module("loop").loss_of, []

    def stopped(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss_of(*arguments)

    monkeypatch.setattr(importlib.import_module("loop"), "loss_of", stopped)
    options += ["--results", tmp_path / "stopped", "--set", *length]
    with pytest.raises(KeyboardInterrupt):
        passed("run.py", *options)
    (state,) = (tmp_path / "kept").iterdir()
    mine, other = state.read_bytes(), torch.load(state)
    torch.save({**other, "what": {**other["what"], "lr": 1.0}}, state)
    assert "is of another run: lr was 1.0 and is " in failed("run.py", *options)
    state.write_bytes(mine)
    passed("run.py", *options)
    assert len(calls) == 5 + 3, "four steps are not done again"
    assert not state.exists()
    (whole,), (gone_on,) = (records(tmp_path / name, task) for name in ("whole", "stopped"))
    assert gone_on["score"] == whole["score"]
    assert gone_on["curve"] == whole["curve"]


def test_damaged_result_file_names_its_line(failed: Callable[..., str], data: Path, tmp_path: Path) -> None:
    (tmp_path / "mnist_mlp.jsonl").write_text('{"task": "mnist_mlp"\n')
    message = failed("run.py", "mnist_mlp", "--data", data, "--results", tmp_path)
    assert "mnist_mlp.jsonl, line 1" in message


def test_another_recipe_of_the_same_name_is_refused(
    passed: Callable[..., str], failed: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    options = ["mnist_mlp", "--data", data, "--results", tmp_path, "--seeds", 0, "--methods", "fp32"]
    recipe = ["--set", "epochs=1", "train_size=64"]
    passed("run.py", *options, *recipe)
    results = tmp_path / "mnist_mlp.jsonl"
    results.write_text(results.read_text().replace('"lr_end": 0.0', '"lr_end": 0.5'))
    assert "lr_end was 0.5 and is 0.0" in failed("run.py", *options, *recipe)
    results.write_text(results.read_text().replace('"lr_end": 0.5, ', ""))
    assert "there already" in passed("run.py", *options, *recipe), "a record without the field had its default"


def test_cut_off_training_data_are_the_first(data: Path) -> None:
    split = importlib.import_module("data").images(importlib.import_module("data").mnist, data, False, 50)
    with np.load(data / "mnist.npz") as arrays:
        x, y = arrays["x_train"], arrays["y_train"]
    assert split.y.tolist() == y[:50].tolist()
    assert split.y_scored.tolist() == y[500:].tolist(), "the last sixth is held out"
    expected = (x[500:].astype(np.float64) - x[:50].mean()) / x[:50].std()
    np.testing.assert_allclose(split.x_scored[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_characters_of_both_splits_do_not_overlap(data: Path) -> None:
    text = importlib.import_module("data").characters
    chosen, final = (text(data / "tinyshakespeare.txt", 8, final) for final in (False, True))
    whole = (data / "tinyshakespeare.txt").read_text()
    assert len(chosen.x) == len(whole) * 8 // 10
    assert len(final.x) == len(whole) * 9 // 10
    assert torch.equal(chosen.x_scored.flatten(), final.x[len(chosen.x) :][: chosen.x_scored.numel()])
    assert torch.equal(final.x_scored[0, 1:], final.y_scored[0, :-1])


def test_crops_are_windows_of_the_padded_image() -> None:
    crop_and_flip = importlib.import_module("task").crop_and_flip
    x = torch.rand(32, 3, 8, 8)
    cropped = crop_and_flip(x, torch.Generator().manual_seed(0))
    seen = set()
    for image, out in zip(torch.nn.functional.pad(x, (4, 4, 4, 4)), cropped, strict=True):
        places = [(t, left) for t in range(9) for left in range(9)]
        windows = {
            (*place, m): image[:, place[0] : place[0] + 8, place[1] : place[1] + 8] for place in places for m in (0, 1)
        }
        found = [key for key, window in windows.items() if torch.equal(window.flip(2) if key[2] else window, out)]
        assert found, "no window, mirrored or not, is this crop"
        seen.add(found[0])
    assert len(seen) > 16, "every image has its own crop"
    assert {mirrored for _, _, mirrored in seen} == {0, 1}


def test_experiments_run_rows_of_a_recipe_in_one_call() -> None:
    experiments = importlib.import_module("experiments")
    (call,) = experiments.commands(experiments.EXPERIMENTS["E1"], ["char_lm"])
    assert call[:4] == ["char_lm", "--methods", "fp32", "max+max"]
    for experiment in experiments.EXPERIMENTS.values():
        for column, row in experiment.cells():
            assert experiment.key(column, row)[0] == column.task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "speed=3"], "there is no 'speed'"),
        (["--set", "epochs=many"], "epochs must be int"),
        (["--data", "nowhere"], "mnist.npz"),
    ],
)
def test_bad_options_say_what_is_wrong(
    options: list[str], message: str, failed: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    assert message in failed("run.py", "mnist_mlp", "--data", data, "--results", tmp_path, *options)
