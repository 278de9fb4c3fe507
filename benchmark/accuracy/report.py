"""Writes the tables of docs/notes/accuracy.md between their markers, and the learning curves to docs/images.

Run: python benchmark/accuracy/report.py            (--print only prints the tables)
"""

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from experiments import DISTIL, EXPERIMENTS, FP32, TERNARY, Column, Experiment, Row
from records import RESULTS, key_of, read
from run import TASKS, task_of

ROOT = Path(__file__).parent.parent.parent
DOC = ROOT / "docs" / "notes" / "accuracy.md"
TARGETS = {  # largest gap wanted: points, or nats for text
    "mnist_mlp": 0.3,
    "mnist_lenet": 0.10,
    "fashion_mlp": 0.5,
    "fashion_cnn": 0.6,
    "cifar_resnet20": 0.7,
    "char_lm": 0.06,
    "char_lm_gpu": 0.03,
}
SEEDS = 3  # the usual number, which the tables do not name
Records = dict[tuple[str, str, str, str], dict[int, dict[str, Any]]]


class Cell(NamedTuple):
    """The scores of one net on one task."""

    mean: float
    deviation: float | None
    worst: float
    seeds: int


def load(folder: Path) -> Records:
    """Records by task, split, recipe and method, then by seed."""
    found: Records = defaultdict(dict)
    for name in TASKS:
        for record in read(folder / f"{name}.jsonl"):
            *key, seed = key_of(record)
            found[tuple(key)][seed] = record
    return found


def is_text(task: str) -> bool:
    return task_of(task).metric == "nats"


def number(task: str, value: float, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.{4 if is_text(task) else 2}f}"


def cell_of(task: str, runs: dict[int, dict[str, Any]]) -> Cell | None:
    scores = [run["score"] for run in runs.values()]
    if not scores:
        return None
    worst = max(scores) if is_text(task) else min(scores)
    return Cell(statistics.mean(scores), statistics.stdev(scores) if scores[1:] else None, worst, len(scores))


def cell_text(task: str, cell: Cell | None, worst: bool = False) -> str:
    if cell is None:
        return "-"
    text = number(task, cell.mean)
    if cell.deviation is None:
        return f"{text} (1 seed)"
    text += f" ± {number(task, cell.deviation)}"
    text += f" (worst {number(task, cell.worst)})" if worst else ""
    return text if cell.seeds == SEEDS else f"{text}, {cell.seeds} seeds"


def gap(task: str, better: dict[int, dict[str, Any]], runs: dict[int, dict[str, Any]]) -> float | None:
    """Mean over the common seeds of what is lost: points of accuracy, or nats."""
    seeds = sorted(better.keys() & runs.keys())
    if not seeds:
        return None
    lost = statistics.mean(better[seed]["score"] - runs[seed]["score"] for seed in seeds)
    return -lost if is_text(task) else lost


def exported_text(groups: list[dict[int, dict[str, Any]]]) -> str:
    equal = [run["exported_equal"] for runs in groups for run in runs.values() if run["exported_equal"] is not None]
    return f"{sum(equal)} of {len(equal)}" if equal else "-"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def length(task: str) -> str:
    recipe = task_of(task).recipe
    return f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epochs"


def final_table(found: Records) -> str:
    experiment = EXPERIMENTS["final"]
    header = ["task", "length", "FP32", "ternary", "gap", "wanted", "W1.58A8", "below W1.58A16", "with distillation",
              "scale=max", "scale=rms", "exported equal"]  # fmt: skip
    lines = []
    for column in experiment.columns:
        task = column.task
        runs = {row.label: found.get(experiment.key(column, row), {}) for row in experiment.rows}
        cells = {label: cell_of(task, group) for label, group in runs.items()}
        lost = gap(task, runs["FP32"], runs["ternary"])
        below = gap(task, runs["ternary"], runs["W1.58A8"])
        wanted = f"≤ {TARGETS[task]:g}"
        if lost is None:
            wanted += ", not run"
        else:
            wanted += ", met" if lost <= TARGETS[task] else ", missed"
            common = len(runs["FP32"].keys() & runs["ternary"].keys())
            wanted += f" with {common} seed(s) of {SEEDS}" if common < SEEDS else ""
        lines.append(
            [
                task_of(task).title,
                length(task),
                cell_text(task, cells["FP32"]),
                cell_text(task, cells["ternary"], worst=True),
                "-" if lost is None else f"{number(task, lost)} {'nat' if is_text(task) else 'pt'}",
                wanted,
                cell_text(task, cells["W1.58A8"]),
                "-" if below is None else number(task, below, sign=True),
                cell_text(task, cells["with distillation"]),
                cell_text(task, cells["scale=max"]),
                cell_text(task, cells["scale=rms"]),
                exported_text(list(runs.values())),
            ]
        )
    return table(header, lines)


def experiment_table(found: Records, experiment: Experiment) -> str:
    header = ["", *(" ".join([column.task, *column.settings]) for column in experiment.columns)]

    def text(column: Column, row: Row) -> str:
        return cell_text(column.task, cell_of(column.task, found.get(experiment.key(column, row), {})))

    return table(
        header, [[row.label, *(text(column, row) for column in experiment.columns)] for row in experiment.rows]
    )


def losses_table(found: Records, experiment: Experiment) -> str:
    """Scores, what each row loses to the first on the seeds of both, and the largest of a row's losses."""
    first, *others = experiment.rows
    runs = {(column, row): found.get(experiment.key(column, row), {}) for column, row in experiment.cells()}
    texts = {key: cell_text(key[0].task, cell_of(key[0].task, group)) for key, group in runs.items()}
    lines = [[first.label, *(texts[column, first] for column in experiment.columns), ""]]
    for row in others:
        losses = {column: gap(column.task, runs[column, first], runs[column, row]) for column in experiment.columns}
        known = {column: lost for column, lost in losses.items() if lost is not None}
        line = [
            f"{texts[column, row]}: {number(column.task, losses[column])}" if column in known else "-"
            for column in experiment.columns
        ]
        worst = max(known, key=known.__getitem__, default=None)
        complete = worst is not None and len(known) == len(losses)
        lines.append([row.label, *line, f"{number(worst.task, known[worst])} ({worst.task})" if complete else "-"])
    alike = set.intersection(*(set(column.settings) for column in experiment.columns))  # the text names them
    names = (
        " ".join([column.task, *(set_to for set_to in column.settings if set_to not in alike)])
        for column in experiment.columns
    )
    return table(["", *names, "worst loss"], lines)


def recipes_table() -> str:
    fields = ("batch", "lr", "lr_fp32", "lr_end", "warmup", "weight_decay", "decay_off", "clip", "norm")
    lines = [[name, length(name), *(f"{getattr(task_of(name).recipe, field)}" for field in fields)] for name in TASKS]
    return table(["task", "length", *fields], lines)


def environments(found: Records) -> str:
    """One line for each machine and set of versions that measured."""
    kinds = defaultdict(int)
    for runs in found.values():
        for run in runs.values():
            kinds[run["machine"], run["threads"], run["torch"], run["bittorch"], run["python"]] += 1
    return "\n".join(
        f"- {count} runs: {machine}, {threads} thread(s), torch {torch}, bittorch {own}, Python {python}"
        for (machine, threads, torch, own, python), count in sorted(kinds.items())
    )


def mean_curve(runs: dict[int, dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    curves = [run["curve"] for run in runs.values()]
    points = zip(*curves, strict=False)
    steps, values = [], []
    for point in points:
        steps.append(point[0]["step"])
        values.append(statistics.mean(p[key] for p in point))
    return steps, values


LINES = (
    (FP32, "#222222", "-"),
    (TERNARY, "#d55e00", "-"),
    (Row("W1.58A8", "max+ls/a8"), "#0072b2", "--"),
    (Row("with distillation", TERNARY.method, DISTIL), "#009e73", "-"),
    (Row("scale=max", "max+max"), "#cc79a7", ":"),
)


def draw(found: Records, column: Column, path: Path) -> bool:
    """Training loss and score by step, mean over the seeds; False where nothing has run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    experiment = EXPERIMENTS["final"]
    groups = [(row, color, style, found.get(experiment.key(column, row), {})) for row, color, style in LINES]
    groups = [group for group in groups if group[3]]
    if not groups:
        return False
    text = is_text(column.task)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    titles = ("Training loss", "Validation loss (nats)" if text else "Test accuracy (%)")
    for axis, key, title in zip(axes, ("loss", "score"), titles, strict=True):
        low: list[float] = []
        for row, color, style, runs in groups:
            steps, values = mean_curve(runs, key)
            label = f"{row.label} ({len(runs)} seed{'s' * (len(runs) > 1)})"
            axis.plot(steps, values, style, color=color, marker=".", label=label)
            low += values
        if key == "loss":
            axis.set_yscale("log")
        elif not text:
            axis.set_ylim(bottom=max(min(low), statistics.quantiles(low, n=10)[0] - 0.5))
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(task_of(column.task).title.partition(" (")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return True


def sections(found: Records) -> dict[str, str]:
    made = {
        name: (losses_table if experiment.losses else experiment_table)(found, experiment)
        for name, experiment in EXPERIMENTS.items()
        if name != "final"
    }
    return {"final": final_table(found), "recipes": recipes_table(), "machines": environments(found)} | made


def write(doc: Path, made: dict[str, str]) -> None:
    """Replaces what stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""
    text = doc.read_text(encoding="utf-8")
    for name, section in made.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            sys.exit(f"report.py: {doc} must hold {begin} and {end} once each")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{section}\n{end}{rest.split(end)[1]}"
    partial = doc.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(doc)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--doc", type=Path, default=DOC, help="Markdown file with the markers")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the plots")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    args = parser.parse_args()
    try:
        found = load(args.results)
    except ValueError as error:
        sys.exit(f"report.py: {error}")
    made = sections(found)
    if args.print:
        print("\n\n".join(f"{name}\n\n{section}" for name, section in made.items()))
        return
    write(args.doc, made)
    for column in EXPERIMENTS["final"].columns:
        path = args.images / f"accuracy_{column.task}.png"
        if draw(found, column, path):
            print(f"written: {path}")


if __name__ == "__main__":
    main()
