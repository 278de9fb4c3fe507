"""The experiments of docs/notes/accuracy.md: what is run, and what stands in each table.

Run: python benchmark/accuracy/experiments.py E1 --data FOLDER    (options of run.py; done runs are skipped)
"""

import argparse
import dataclasses
from collections.abc import Iterator

import run
from methods import same_as
from recipe import changed
from run import TASKS, task_of


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
    """Every row on every column, with every seed; the first row is what the others are compared with.

    With ``losses`` the table says what each row loses to the first, on each column and at worst.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    final: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    losses: bool = False

    def cells(self) -> Iterator[tuple[Column, Row]]:
        return ((column, row) for column in self.columns for row in self.rows)

    def key(self, column: Column, row: Row) -> tuple[str, str, str, str]:
        """Task, split, recipe and method, as in the result files."""
        _, recipe = changed(task_of(column.task).recipe, [*column.settings, *row.settings])
        return column.task, "final" if self.final else "held-out", recipe, same_as(row.method)


FP32 = Row("FP32", "fp32")
TERNARY = Row("ternary", "max+ls")
DEFAULT = Row("scale=rms", "ternary")
DISTIL = ("distill=1.0", "from_fp32=1")
FEW = ("train_size=6000", "epochs=10")
MLPS = (Column("mnist_mlp", FEW), Column("fashion_mlp", FEW))
FULL = (
    Column("mnist_mlp"),
    Column("fashion_mlp"),
    Column("fashion_cnn", ("train_size=12000", "epochs=5")),
    Column("char_lm"),
)
NO_NORM = ("plain_mlp2", "plain_mlp4", "plain_mlp8", "plain_cnn", "sort", "friedman")
E9_ROWS = (
    *(
        row
        for method, rms in (
            ("max+ls", "max+rms"),
            ("twn", "twn+rms"),
            ("optimal", "optimal+rms"),
            ("absmean+ls", "absmean+rms"),
        )
        for row in (Row(method, method), Row(f"{method}, stretched start", method, ("norm_start=1",)), Row(rms, rms))
    ),
    Row("absmean", "absmean"),
)
RATES = {"E9": (), "E9-3e-3": ("lr=3e-3", "lr_fp32=3e-3")}
E1_METHODS = (
    "max+max",
    "max+ls",
    "max+rms",
    "twn",
    "twn+rms",
    "absmean/tensor",
    "absmean+ls",
    "absmean+rms",
    "optimal",
    "nm34",
    "lsq",
    "seq",
    "ttq",
)
E5_METHODS = ("max+ls", "max+max", "twn", "optimal", "absmean+ls", "lsq", "seq")
FINAL_TASKS = ("mnist_mlp", "mnist_lenet", "fashion_mlp", "fashion_cnn", "cifar_resnet20", "char_lm", "char_lm_gpu")

EXPERIMENTS = {
    "final": Experiment(
        rows=(
            FP32,
            TERNARY,
            Row("W1.58A8", "max+ls/a8"),
            Row("scale=max", "max+max"),
            Row("with distillation", TERNARY.method, DISTIL),
            DEFAULT,
        ),
        columns=tuple(Column(task) for task in FINAL_TASKS),
        final=True,
    ),
    "E1": Experiment(rows=(FP32, *(Row(name, name) for name in E1_METHODS)), columns=FULL),
    "E2": Experiment(
        rows=tuple(
            Row(f"{label}, {estimator}", method, settings)
            for label, settings in (("Adam", ()), ("SGD", ("optimizer=sgd", "lr=0.1", "lr_fp32=0.05")))
            for estimator, method in (("FP32", "fp32"), ("identity", "max+ls"), ("clipped", "max+ls clipped"))
        ),
        columns=MLPS,
    ),
    "E3": Experiment(
        rows=(
            FP32,
            TERNARY,
            Row("lambda warm-up, 25 % of the steps", "max+ls", ("quant_warmup=0.25",)),
            Row("FP32 first, 20 % of the steps", "max+ls", ("ternary_after=0.2",)),
            Row("weight decay 0.01", "max+ls", ("weight_decay=0.01",)),
            Row("weight decay 0.01, off at half", "max+ls", ("weight_decay=0.01", "decay_off=0.5")),
            Row("from the trained FP32 net", "max+ls", ("from_fp32=1",)),
            Row("from the trained FP32 net, distilled", "max+ls", DISTIL),
        ),
        columns=MLPS,
    ),
    "E4": Experiment(
        rows=tuple(
            Row(f"{label}, lr {lr}", method, (f"lr={lr}", f"lr_fp32={lr}"))
            for label, method in (("FP32", "fp32"), ("ternary", "max+ls"))
            for lr in ("1e-3", "2e-3", "4e-3", "8e-3")
        ),
        columns=MLPS,
    ),
    "E5": Experiment(
        rows=tuple(
            Row(f"{label}, {norm}", method, settings)
            for norm, settings in (("BatchNorm", ()), ("none", ("norm=none",)))
            for label, method in (("FP32", "fp32"), *((name, name) for name in E5_METHODS))
        ),
        columns=(*MLPS, Column("mnist_mlp")),
    ),
    "E6": Experiment(
        rows=(
            *(
                Row(f"{label}, lr {lr}", method, settings)
                for label, method in (("FP32", "fp32"), ("ternary", "max+ls"), ("twn", "twn"))
                for lr, settings in (
                    ("1e-3", ("lr=1e-3", "lr_fp32=1e-3")),
                    ("3e-3", ()),
                    ("1e-2", ("lr=1e-2", "lr_fp32=1e-2")),
                )
            ),
            Row("optimal, lr 3e-3", "optimal"),
            Row("max+max, lr 3e-3", "max+max"),
            Row("ternary, lr 3e-3, lambda warm-up", "max+ls", ("quant_warmup=0.25",)),
            *(
                Row(f"{label}, lr 3e-3, {change}", method, settings)
                for change, settings in (("20 epochs", ("epochs=20",)), ("weight decay 0.1", ("weight_decay=0.1",)))
                for label, method in (("FP32", "fp32"), ("ternary", "max+ls"))
            ),
            *(
                Row(f"{label}, lr 1e-2, {change}", method, ("lr=1e-2", "lr_fp32=1e-2", setting))
                for change, setting in (
                    ("label smoothing 0.1", "label_smoothing=0.1"),
                    ("beta2 0.99", "beta2=0.99"),
                    ("batch 64", "batch=64"),
                    ("batch 256", "batch=256"),
                )
                for label, method in (("FP32", "fp32"), ("ternary", "max+ls"))
            ),
            *(
                Row(f"ternary, lr 1e-2, {change}", "max+ls", ("lr=1e-2", "lr_fp32=1e-2", setting))
                for change, setting in (
                    ("FP32 first, 20 % of the steps", "ternary_after=0.2"),
                    ("lambda warm-up, 25 %", "quant_warmup=0.25"),
                    ("lambda warm-up, 50 %", "quant_warmup=0.5"),
                    ("lambda warm-up, 75 %", "quant_warmup=0.75"),
                )
            ),
        ),
        columns=FULL[:3],
        seeds=(0, 1),
    ),
    "E7": Experiment(
        rows=(
            FP32,
            TERNARY,
            Row("ternary, warm-up 5 %", "max+ls", ("warmup=0.05",)),
            Row("ternary, clip 1", "max+ls", ("clip=1.0",)),
            Row("FP32, warm-up 5 %, clip 1", "fp32", ("warmup=0.05", "clip=1.0")),
            Row("ternary, warm-up 5 %, clip 1", "max+ls", ("warmup=0.05", "clip=1.0")),
            Row("ternary, lr 8e-3", "max+ls", ("lr=8e-3",)),
            Row("FP32, warm-up 5 %, clip 1, lr 2e-3", "fp32", ("warmup=0.05", "clip=1.0", "lr_fp32=2e-3")),
            *(
                Row(f"ternary, warm-up 5 %, clip 1, lr {lr}", "max+ls", ("warmup=0.05", "clip=1.0", f"lr={lr}"))
                for lr in ("3e-3", "2e-3")
            ),
        ),
        columns=(Column("char_lm"),),
    ),
    "E8": Experiment(
        rows=(
            Row("FP32", "fp32", ("lr=1e-2", "lr_fp32=1e-2")),
            Row("ternary, lambda warm-up, 50 %", "max+ls", ("lr=1e-2", "lr_fp32=1e-2", "quant_warmup=0.5")),
        ),
        columns=(Column("fashion_mlp"),),
        final=True,
        seeds=(0, 1, 2, 3, 4),
    ),
    **{
        name: Experiment(
            rows=(FP32, *E9_ROWS),
            columns=tuple(Column(task, rate) for task in NO_NORM),
            losses=True,
        )
        for name, rate in RATES.items()
    },
    "E10": Experiment(
        rows=(FP32, Row("max+rms", "max+rms"), Row("twn+rms", "twn+rms")),
        columns=(Column("sort"), Column("sort", ("steps=1400",))),
        losses=True,
    ),
}


def commands(experiment: Experiment, tasks: list[str]) -> Iterator[list[str]]:
    """The arguments of run.py; rows that share a recipe share a call."""
    for column in experiment.columns:
        methods: dict[tuple[str, ...], list[str]] = {}
        for row in experiment.rows:
            methods.setdefault((*column.settings, *row.settings), []).append(row.method)
        for settings, names in methods.items() if not tasks or column.task in tasks else ():
            options = ["--methods", *names, "--seeds", *map(str, experiment.seeds)]
            options += ["--set", *settings] if settings else []
            yield [column.task, *options, *(["--final"] if experiment.final else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="Other options go to run.py.")
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--tasks", nargs="+", default=[], choices=TASKS, help="(default: all of the experiment)")
    args, others = parser.parse_known_args()
    for options in commands(EXPERIMENTS[args.experiment], args.tasks):
        run.main([*options, *others])


if __name__ == "__main__":
    main()
