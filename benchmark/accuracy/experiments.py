"""The experiments of docs/accuracy.md: what is run, and what stands in each table.

Run: python benchmark/accuracy/experiments.py E1 --data FOLDER    (options of run.py; done runs are skipped)
"""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from recipe import changed
from run import task_of


@dataclasses.dataclass(frozen=True)
class Row:
    """A net of a table: a method, and what it changes in the recipe."""

    label: str
    method: str
    settings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Column:
    """A task, and how its runs are shortened."""

    task: str
    settings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Every row on every column, with every seed; the first row is what the others are compared with."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    final: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)

    def cells(self) -> Iterator[tuple[Column, Row]]:
        return ((column, row) for column in self.columns for row in self.rows)

    def key(self, column: Column, row: Row) -> tuple[str, str, str, str]:
        """Task, split, recipe and method, as in the result files."""
        _, recipe = changed(task_of(column.task).recipe, [*column.settings, *row.settings])
        return column.task, "final" if self.final else "held-out", recipe, row.method


FP32 = Row("FP32", "fp32")
TERNARY = Row("ternary", "ternary")
DISTIL = ("distill=1.0", "from_fp32=1")
MLPS = (Column("mnist_mlp"), Column("fashion_mlp"))
SHORT = (
    Column("mnist_mlp", ("epochs=4",)),
    Column("fashion_cnn", ("epochs=1", "train_size=20000")),
    Column("char_lm", ("steps=400",)),
)
E1_METHODS = ("max+max", "max+ls", "twn", "absmean/tensor", "absmean+ls", "optimal", "nm34", "lsq", "seq", "ttq")
FINAL_TASKS = ("mnist_mlp", "mnist_lenet", "fashion_mlp", "fashion_cnn", "cifar_resnet20", "char_lm", "char_lm_gpu")

EXPERIMENTS = {
    "final": Experiment(
        rows=(
            FP32,
            TERNARY,
            Row("W1.58A8", "a8"),
            Row("scale=max", "max+max"),
            Row("with distillation", "ternary", DISTIL),
        ),
        columns=tuple(Column(task) for task in FINAL_TASKS),
        final=True,
    ),
    "E1": Experiment(rows=(FP32, *(Row(name, name) for name in E1_METHODS)), columns=SHORT),
    "E2": Experiment(
        rows=tuple(
            Row(f"{label}, {estimator}", method, settings)
            for label, settings in (("Adam", ()), ("SGD", ("optimizer=sgd", "lr=0.1", "lr_fp32=0.05")))
            for estimator, method in (("FP32", "fp32"), ("identity", "ternary"), ("clipped", "max+ls clipped"))
        ),
        columns=MLPS,
    ),
    "E3": Experiment(
        rows=(
            FP32,
            TERNARY,
            Row("lambda warm-up, 25 % of the steps", "ternary", ("quant_warmup=0.25",)),
            Row("FP32 first, 20 % of the steps", "ternary", ("ternary_after=0.2",)),
            Row("weight decay 0.01", "ternary", ("weight_decay=0.01",)),
            Row("weight decay 0.01, off at half", "ternary", ("weight_decay=0.01", "decay_off=0.5")),
            Row("from the trained FP32 net", "ternary", ("from_fp32=1",)),
            Row("from the trained FP32 net, distilled", "ternary", DISTIL),
        ),
        columns=MLPS,
    ),
    "E4": Experiment(
        rows=tuple(
            Row(f"{label}, lr {lr}", method, (f"{field}={lr}",))
            for lr in ("1e-3", "2e-3", "4e-3", "8e-3")
            for label, method, field in (("FP32", "fp32", "lr_fp32"), ("ternary", "ternary", "lr"))
        ),
        columns=MLPS,
    ),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in EXPERIMENTS:
        sys.exit(f"usage: experiments.py {'|'.join(EXPERIMENTS)} --data FOLDER [options of run.py]")
    experiment = EXPERIMENTS[sys.argv[1]]
    runner = Path(__file__).with_name("run.py")
    for column, row in experiment.cells():
        settings = [*column.settings, *row.settings]
        options = ["--methods", row.method, "--seeds", *map(str, experiment.seeds)]
        options += ["--set", *settings] if settings else []
        options += ["--final"] if experiment.final else []
        done = subprocess.run([sys.executable, runner, column.task, *options, *sys.argv[2:]])
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
