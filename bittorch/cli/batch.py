"""`bittorch batch`: a file of prompts in, a file of answers out, resumed where it was killed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bittorch.cli.answer import chat_tokens, prompt_tokens
from bittorch.cli.arguments import generation_config, model_options, output_options, sampling_options, utf8_text
from bittorch.cli.batch_input import FORMATS, STANDARD_STREAM, Row, format_of, read_rows
from bittorch.cli.batch_output import Output, Record
from bittorch.cli.console import Console
from bittorch.cli.errors import FAILURE, OK, CommandError, UsageError, one_line
from bittorch.cli.model import load

if TYPE_CHECKING:
    from bittorch.models import GenerationConfig, LanguageModel

ROW_ERRORS = (CommandError, ValueError, ArithmeticError, RuntimeError)  # of one prompt, not of the machine


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "batch",
        help="answer a file of prompts",
        description="Answers every row of INPUT in OUTPUT. Each answer is on disk before the next begins; run again "
        "after a kill, it goes on where it stopped. Bad rows are reported and skipped; then the exit code is 1.",
        parents=[model_options(), sampling_options(), output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("input", metavar="INPUT", help=".txt, .jsonl or .csv; - is stdin")
    parser.add_argument("output", metavar="OUTPUT", help=".txt, .jsonl or .csv; - is stdout")
    parser.add_argument("--input-format", choices=FORMATS, help="default by the ending")
    parser.add_argument("--output-format", choices=FORMATS, help="default by the ending")
    column = "key or column of the prompt; default prompt"
    parser.add_argument("--column", type=utf8_text, default="prompt", help=column)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="prompts at once; default 1")
    parser.add_argument("--system", type=utf8_text, metavar="TEXT", help="what the model should be")
    parser.add_argument("--raw", action="store_true", help="continue the prompts as they are, without a chat template")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where OUTPUT is there")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    if args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {args.batch_size}")
    config = generation_config(args)
    input_format = format_of(args.input, args.input_format, "--input-format")
    output_format = format_of(args.output, args.output_format, "--output-format")
    both_files = STANDARD_STREAM not in (args.input, args.output)
    if both_files and os.path.exists(args.output) and os.path.samefile(args.input, args.output):
        raise UsageError(f"INPUT and OUTPUT are one file, {args.input}")
    if args.json and args.output == STANDARD_STREAM and output_format != "jsonl":
        raise UsageError(
            f"--json with rows as {output_format} on stdout would mix two formats; take --output-format jsonl"
        )
    rows = read_rows(args.input, input_format, args.column)
    with Output(args.output, output_format, args.overwrite) as output:
        batch = Batch(args, config, console, output)
        batch.run(rows)
    return batch.report(len(rows))


class Batch:
    """One run over the rows of a file.

    Args:
        args: of the command.
        config: how to generate; without a seed, 0 is taken, so that a resumed run gives what one run gives.
        console: for bad rows and the progress.
        output: where answers go.
    """

    def __init__(self, args: argparse.Namespace, config: GenerationConfig, console: Console, output: Output) -> None:
        self.args, self.console, self.output = args, console, output
        self.config = config.changed(seed=config.seed or 0)
        self.before = self.written = self.blank = 0
        self.bad: list[tuple[Row, str]] = []

    def run(self, rows: Sequence[Row]) -> None:
        """Answers what has no answer yet."""
        for row in rows:
            if row.problem:
                self._report(row, row.problem)
        good = [row for row in rows if not row.problem and not row.blank]
        todo = [row for row in good if not self.output.has(row)]
        self.before, self.blank = len(good) - len(todo), len(rows) - len(good) - len(self.bad)
        if self.blank:
            self.console.note(f"{self.blank} rows have an empty prompt and get no answer")
        if self.before:
            self.console.note(
                f"{self.before} of {len(good)} rows are in {self.args.output} already: going on from there"
            )
        if not todo:
            return
        model = load(self.args, self.console)
        failed = len(self.bad)  # before the first answer, so not part of the work
        with self.console.progress("rows") as progress:
            progress(self.before, len(good))
            for chunk in _chunks(todo, self.args.batch_size):
                self._answer(model, chunk)
                progress(self.before + self.written + len(self.bad) - failed, len(good))

    def report(self, total: int) -> int:
        """The last words. Returns the exit code."""
        summary = {
            "rows": total,
            "written": self.written,
            "already_there": self.before,
            "blank": self.blank,
            "skipped": [{"row": row.number, "id": row.id, "error": problem} for row, problem in self.bad],
        }
        self.console.object(summary)
        blank = f", {self.blank} without a prompt" if self.blank else ""
        self.console.note(
            f"{total} rows: {self.written} answered, {self.before} were there, {len(self.bad)} skipped{blank}"
        )
        return FAILURE if self.bad else OK

    def _report(self, row: Row, problem: str) -> None:
        self.bad.append((row, problem))
        self.console.error(f"row {row.number} is skipped: {problem}")

    def _answer(self, model: LanguageModel, chunk: Sequence[Row]) -> None:
        """The rows together; where that fails one by one, so that one bad row costs no other its answer."""
        tokens: dict[Row, list[int]] = {}
        for row in chunk:
            try:
                tokens[row] = self._tokens(model, row)
            except ROW_ERRORS as error:
                self._report(row, one_line(error))
        for part in _chunks(list(tokens), len(chunk)):
            self._generate(model, {row: tokens[row] for row in part})

    def _generate(self, model: LanguageModel, tokens: dict[Row, list[int]]) -> None:
        rows = list(tokens)
        try:
            records = _records(model, rows, list(tokens.values()), self.config)
        except ROW_ERRORS as error:
            if len(rows) == 1:
                self._report(rows[0], one_line(error))
                return
            for row in rows:
                self._generate(model, {row: tokens[row]})
            return
        for row, record in zip(rows, records, strict=True):
            self.output.write(row, record)
            self.written += 1

    def _tokens(self, model: LanguageModel, row: Row) -> list[int]:
        if isinstance(row.prompt, str):
            return prompt_tokens(model, row.prompt, system=self.args.system, raw=self.args.raw)
        return chat_tokens(model, row.prompt)


def _records(
    model: LanguageModel, rows: Sequence[Row], tokens: list[list[int]], config: GenerationConfig
) -> list[Record]:
    """Answers with the seeds that the rows have in any run: that of prompt i is ``seed + i``."""
    assert config.seed is not None
    generation = model.stream(tokens, config.changed(seed=config.seed + rows[0].number)).run()
    answers = zip(generation.texts, generation.finish_reasons, tokens, generation.tokens, strict=True)
    return [
        {"text": text, "finish_reason": reason, "prompt_tokens": len(prompt), "new_tokens": len(new)}
        for text, reason, prompt, new in answers
    ]


def _chunks(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Up to ``size`` rows whose numbers follow each other, for the sake of their seeds."""
    chunk: list[Row] = []
    for row in rows:
        if chunk and (len(chunk) == size or row.number != chunk[-1].number + 1):
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk
