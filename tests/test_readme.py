"""Code of the README and of the guides runs, and prints what they say it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

CONVERSION = Path(__file__).parents[1] / "docs" / "guide" / "convert.md"
QUICKSTART = Path(__file__).parents[1] / "docs" / "guide" / "quickstart.md"
NO_NORM = Path(__file__).parents[1] / "docs" / "guide" / "no_norm.md"
RECIPES = Path(__file__).parents[1] / "docs" / "guide" / "train.md"
TRAINER = Path(__file__).parents[1] / "docs" / "guide" / "trainer.md"
README = (Path(__file__).parents[1] / "README.md").read_text()


def test_readme_snippet_prints_its_output() -> None:
    code, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.S).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == output


def test_conversion_guide_runs() -> None:  # FIELD N16
    code = re.search(r"```python\n(.*?)```", CONVERSION.read_text(), re.S)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, CONVERSION.name, "exec"), {})
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith("2 layers became ternary; ternary are 16,384 of ")
    assert lines[-1] == "[('0', '1'), ('3', '4')]"


def _run_blocks(page: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runs the blocks of a page in one namespace; returns it, with what was printed."""
    monkeypatch.chdir(directory)
    space: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
            exec(compile(block, f"{page.name}, block {number}", "exec"), space)
    return {**space, "printed": printed.getvalue()}


def test_the_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = _run_blocks(QUICKSTART, tmp_path, monkeypatch)
    x, labels, packed = space["x"], space["labels"], space["packed"]
    assert (packed(x).argmax(1) == labels).float().mean() > 0.9  # by chance 0.2
    assert "2 layers became ternary" in space["printed"]


def test_the_page_of_nets_without_normalisation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = _run_blocks(NO_NORM, tmp_path, monkeypatch)
    assert [type(layer).__name__ for layer in space["plain"]] == ["TernaryLinear", "ReLU", "TernaryLinear"]
    assert space["plain"][0].config.scale == "rms"


@pytest.mark.slow
def test_training_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = _run_blocks(RECIPES, tmp_path, monkeypatch)
    first, last = space["printed"].splitlines()
    assert first.startswith("suggested learning rate ")
    assert f"```\n{last}\n```" in RECIPES.read_text()
    x, y, student = space["x"], space["y"], space["student"]
    assert (student.eval()(x).argmax(1) == y).float().mean() > 0.6  # by chance 0.25


@pytest.mark.slow
def test_the_recipe_of_the_trainer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    space = _run_blocks(TRAINER, tmp_path, monkeypatch)
    saved = torch.load("out/checkpoint-4/recipe.pt", weights_only=True)
    assert saved["schedules"] == [{"last_step": 4}, {"last_step": 4}]
    resumed = space["trainer"](4)
    recipe = next(part.recipe for part in resumed.callback_handler.callbacks if hasattr(part, "recipe"))
    assert resumed.model.model.layers[0].mlp.up_proj.quant_lambda == 0
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert [schedule.last_step for schedule in recipe.schedules] == [4, 4]
    assert resumed.model.model.layers[0].mlp.up_proj.quant_lambda == 1
    with pytest.raises(ValueError, match="recipe: steps is 6 here and 4 in the checkpoint"):
        space["trainer"](6).train(resume_from_checkpoint="out/checkpoint-2")
