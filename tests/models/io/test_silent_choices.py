"""No reader or writer of checkpoints chooses silently: every choice has a name, and each name a file that shows it.

`CASES` has a smallest case for every name of `bittorch.models.io.choices.CHOICES`. A new choice without a case fails.
"""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import bittorch
from bittorch.models.io import CheckpointWarning, FormatError, LossyError, open_checkpoint
from bittorch.models.io.choices import CHOICES, refusal, warn
from tests.models.io.test_gguf import dense_values, write
from tests.models.io.tiny import BITNET

Case = Callable[[Path], object]
CASES: dict[str, Case] = {}


def case(choice: str) -> Callable[[Case], Case]:
    """A function that meets this choice, once, with files in the directory that it is given."""

    def add(run: Case) -> Case:
        assert choice not in CASES, choice
        CASES[choice] = run
        return run

    return add


@case("gguf-activation")  # FIELD L1
def _(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "bitnet", BITNET, "F16", dense_values(BITNET, "F16"))
    open_checkpoint(tmp_path / "x.gguf").close()


def test_every_choice_has_a_case() -> None:
    assert set(CASES) == set(CHOICES)


@pytest.mark.parametrize("choice", [name for name, choice in CHOICES.items() if choice.outcome == "warned"])
def test_choices_are_warned_about(choice: str, tmp_path: Path) -> None:
    with pytest.warns(CheckpointWarning) as caught:
        CASES[choice](tmp_path)
    assert [warning.message.choice for warning in caught] == [choice]
    assert {warning.filename for warning in caught} == {__file__}  # where the user's code is


@pytest.mark.parametrize("choice", [name for name, choice in CHOICES.items() if choice.outcome == "refused"])
def test_choices_are_refused(choice: str, tmp_path: Path) -> None:
    with pytest.raises((FormatError, LossyError)) as caught:
        CASES[choice](tmp_path)
    assert caught.value.choice == choice


def test_names_are_checked() -> None:
    with pytest.raises(KeyError):
        warn("no such choice", "")
    with pytest.raises(KeyError):
        refusal("no such choice", "")


def test_no_warning_goes_past_the_list() -> None:
    """Readers and writers warn through `choices.warn` alone."""
    folder = Path(bittorch.__file__).parent / "models"
    sources = [*folder.glob("io/*.py"), *folder.glob("*token*.py"), folder / "vocabulary.py", folder / "save.py"]
    for path in sources:
        if path.name == "choices.py":
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Attribute) and ast.unparse(call) == "warnings.warn" for call in calls), path
