"""Trains nets of one task by several methods and seeds, and records their scores.

Run: python benchmark/accuracy/run.py mnist_mlp --methods fp32 ternary --seeds 0 1 2 --data FOLDER --final
Each run adds a line to benchmark/results/accuracy/TASK.jsonl; runs that are there are skipped. Without --final the last
part of the training data is held out and scored, with it the test data are. Every ternary net is exported, and the
packed net must give the same logits bit for bit (exit code 1 otherwise). report.py makes the tables of
docs/notes/accuracy.md.
"""

import argparse
import dataclasses
import importlib
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from data import DataError, Split
from keep import KeptError
from loop import fit
from methods import FP32, METHODS, config_of
from recipe import Recipe, changed, for_fp32
from records import RESULTS, append, command, environment, key_of, read
from task import Task, logits, score_of
from torch import nn

import bittorch
from bittorch.utils.replacement import replacing

TASKS = {
    "mnist_mlp": ("mnist_mlp", "TASK"),
    "mnist_lenet": ("mnist_lenet", "TASK"),
    "fashion_mlp": ("fashion_mlp", "TASK"),
    "fashion_cnn": ("fashion_cnn", "TASK"),
    "cifar_resnet20": ("cifar_resnet20", "TASK"),
    "char_lm": ("char_lm", "CPU"),
    "char_lm_gpu": ("char_lm", "GPU"),
    "plain_mlp2": ("no_norm", "MLP2"),
    "plain_mlp4": ("no_norm", "MLP4"),
    "plain_mlp8": ("no_norm", "MLP8"),
    "plain_cnn": ("no_norm", "CNN"),
    "sort": ("no_norm", "SORT"),
    "friedman": ("no_norm", "FRIEDMAN"),
}


def task_of(name: str) -> Task:
    module, attribute = TASKS[name]
    return getattr(importlib.import_module(module), attribute)


def parse_args(options: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["fp32", "ternary"],
        choices=METHODS,
        metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default: fp32 ternary)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data; data.py says what it holds")
    parser.add_argument("--final", action="store_true", help="train on all training data, score the test data")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes of the recipe, see recipe.py"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--teachers", type=Path, help="folder that keeps trained FP32 nets for later runs that distil")
    parser.add_argument("--keep", type=Path, help="folder for states of runs that are stopped: they go on from there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args(options)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch.cuda.is_available() is False; use --device cpu")
    torch.set_num_threads(args.threads)
    return args


def kept_state(task: Task, recipe: Recipe, method: str, seed: int, args: argparse.Namespace) -> Path | None:
    """The file of a run's state, a file a run."""
    if args.keep is None:
        return None
    settings = zlib.crc32(repr(recipe).encode())
    split = "final" if args.final else "held-out"
    return args.keep / f"{task.name}-{split}-{method.replace('/', '-')}-{seed}-{settings:08x}.pt"


def trained_fp32(
    task: Task, split: Split, recipe: Recipe, seed: int, args: argparse.Namespace
) -> tuple[nn.Module, list]:
    """The FP32 twin and its curve, from the folder of teachers where it is there."""
    own = for_fp32(recipe)
    torch.manual_seed(seed)
    model = task.build(own).to(args.device, memory_format=torch.channels_last)  # a third faster on CPUs
    name = "-".join(f"{value}" for value in dataclasses.astuple(own))
    path = (
        args.teachers / f"{task.name}-{'final' if args.final else 'held-out'}-{seed}-{name}.pt"
        if args.teachers
        else None
    )
    if path and path.exists():
        kept = torch.load(path, map_location=args.device)
        model.load_state_dict(kept["model"])
        return model, kept["curve"]
    curve = fit(
        model, task, split, own, seed, f"{task.name} fp32 {seed}", keep=kept_state(task, own, "fp32", seed, args)
    )
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, directory=False, overwrite=True) as partial:
            torch.save({"model": model.state_dict(), "curve": curve}, partial)
    return model, curve


def trained_ternary(
    task: Task, split: Split, recipe: Recipe, method: str, seed: int, args: argparse.Namespace
) -> tuple:
    config = config_of(method)
    teacher = trained_fp32(task, split, recipe, seed, args)[0] if recipe.needs_teacher else None
    torch.manual_seed(seed)
    if teacher is not None and recipe.from_fp32:
        start = teacher
    else:
        start = task.build(recipe).to(args.device, memory_format=torch.channels_last)
    model = bittorch.quantize_model(start, config)
    if recipe.norm_start:
        bittorch.nn.init.norm_preserving_(model)
    keep = kept_state(task, recipe, method, seed, args)
    return model, fit(model, task, split, recipe, seed, f"{task.name} {method} {seed}", teacher, keep=keep)


def one_run(
    task: Task, split: Split, recipe: Recipe, method: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    start = time.perf_counter()
    if method == FP32:
        model, curve = trained_fp32(task, split, recipe, seed, args)
    else:
        model, curve = trained_ternary(task, split, recipe, method, seed, args)
    seconds = time.perf_counter() - start
    out = logits(model, split.x_scored)
    record = {"score": score_of(task, out, split.y_scored), "curve": curve, "seconds": round(seconds, 1)}
    exported: dict[str, Any] = {"exported_score": None, "exported_equal": None}
    config = config_of(method)
    if config is not None and config.packs:
        packed = logits(bittorch.export_for_inference(model), split.x_scored)
        exported = {
            "exported_score": score_of(task, packed, split.y_scored),
            "exported_equal": torch.equal(out, packed),
        }
    return record | exported


def check_same(path: Path, record: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    """Stops where a task's default recipe has changed since a run: the two would stand in one table.

    A field that is younger than the run had its default there.
    """
    old = dataclasses.asdict(Recipe()) | old
    other = {name: (old.get(name), value) for name, value in new.items() if old.get(name) != value}
    if other:
        told = ", ".join(f"{name} was {a!r} and is {b!r}" for name, (a, b) in other.items())
        key = " ".join(map(str, key_of(record)))
        sys.exit(f"run.py: {path} has {key} with another recipe: {told}; delete its line, or give other --results")


def main(options: list[str]) -> None:
    args = parse_args(options)
    task = task_of(args.task)
    try:
        recipe, recipe_name = changed(task.recipe, args.set)
        path = args.results / f"{task.name}.jsonl"
        there = {key_of(record): record["settings"] for record in read(path)}
        split = task.load(args.data, args.final, recipe)
    except (ValueError, DataError) as error:
        sys.exit(f"run.py: {error}")
    split = Split(*(part.to(args.device) for part in split))
    for seed in args.seeds:
        for method in args.methods:
            record = {
                "task": task.name,
                "split": "final" if args.final else "held-out",
                "recipe": recipe_name,
                "method": method,
                "seed": seed,
            }
            if key_of(record) in there:
                check_same(path, record, there[key_of(record)], dataclasses.asdict(recipe))
                print(f"there already: {' '.join(map(str, key_of(record)))}")
                continue
            try:
                record |= one_run(task, split, recipe, method, seed, args)
            except KeptError as error:
                sys.exit(f"run.py: {error}")
            record |= {"settings": dataclasses.asdict(recipe), "command": command(options), **environment(args.device)}
            if record["exported_equal"] is False or record["exported_score"] not in (None, record["score"]):
                sys.exit(
                    f"FAIL: {task.name} {method} seed {seed}: the exported net gives other logits than the trained one"
                )
            append(path, record)
            print(
                f"{' '.join(map(str, key_of(record)))}: {record['score']:.4f} in {record['seconds']:.0f} s", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
