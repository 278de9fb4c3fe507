"""`bittorch batch`: every format, bad rows, kills, resumption."""

import csv
import fcntl
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command, command, file_size_limit
from tests.helpers import take_ctrl_c

FEW = ("--max-new-tokens", 6, "--ignore-eos")


def _jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_batch_answers_each_row_as_run_does(bittorch: Command, model: Path, tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", {"prompt": "one"}, {"id": "b", "prompt": "two\nlines"})
    result = bittorch("batch", rows, tmp_path / "out.jsonl", "--model", model, *FEW)
    assert result.code == 0
    written = _rows(tmp_path / "out.jsonl")
    assert [row["id"] for row in written] == ["1", "b"]
    for row, prompt in zip(written, ("one", "two\nlines"), strict=True):
        assert row["text"] + "\n" == bittorch("run", prompt, "--model", model, *FEW).out
        assert row["finish_reason"] == "length"
        assert row["new_tokens"] == 6


def test_batch_answers_conversations(bittorch: Command, model: Path, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    rows = _jsonl(tmp_path / "in.jsonl", {"messages": messages})
    assert bittorch("batch", rows, tmp_path / "out.jsonl", "--model", model, *FEW).code == 0
    expected = bittorch("run", "hello", "--system", "be brief", "--model", model, *FEW).out
    assert _rows(tmp_path / "out.jsonl")[0]["text"] + "\n" == expected


def test_batch_txt_answers_line_by_line(bittorch: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n\nthree\n")
    assert bittorch("batch", tmp_path / "in.txt", tmp_path / "out.txt", "--model", model, *FEW).code == 0
    lines = (tmp_path / "out.txt").read_text().split("\n")
    assert lines[1] == ""
    assert lines[3:] == [""]
    for line, prompt in ((lines[0], "one"), (lines[2], "three")):
        text = bittorch("run", prompt, "--model", model, *FEW).out.removesuffix("\n")
        assert line == text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def test_batch_csv_in_and_out(bittorch: Command, model: Path, tmp_path: Path) -> None:
    with open(tmp_path / "in.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "question"], ["a", 'with "quotes",\nand lines'], ["b", "two"]])
    arguments = tmp_path / "in.csv", tmp_path / "out.csv", "--column", "question", "--model", model
    assert bittorch("batch", *arguments, *FEW).code == 0
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["a", "b"]
    expected = bittorch("run", 'with "quotes",\nand lines', "--model", model, *FEW).out
    assert rows[0]["text"] + "\n" == expected.replace("\0", "\ufffd")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batch_size_changes_no_answer_of_packed_layers(
    bittorch: Command, model: Path, tmp_path: Path, size: int
) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", *({"prompt": "abc" * n} for n in range(1, 6)))
    options = "--model", model, "--depth", 3, "--temperature", 0.8, "--seed", 5, *FEW
    bittorch("batch", rows, tmp_path / "one.jsonl", *options)
    bittorch("batch", rows, tmp_path / "more.jsonl", "--batch-size", size, *options)
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "more.jsonl").read_text()


BAD_ROWS = [
    (b'{"prompt": "', "not JSON"),
    (b'["prompt"]', "must be a JSON object"),
    (b'{"question": "x"}', "has neither 'prompt' nor 'messages', but 'question'"),
    (b'{"prompt": 3}', "must be a text or a list of messages, got int"),
    (b'{"prompt": "a\xffb"}', "not UTF-8 at character 1"),
    (b'{"prompt": "\\ud800"}', "not UTF-8 at character 0"),
    (b'{"messages": [{"content": "hi"}]}', "must have a role, and text as its content"),
    (b'{"messages": []}', "must be a text or a list of messages"),
    (b'{"id": 2.5, "prompt": "x"}', "its id must be a text or an integer, got 2.5"),
    (b'{"id": "1", "prompt": "x"}', "its id '1' is that of row 1 too"),
    (b'{"prompt": "%s"}' % (b"x" * 300), "303 tokens"),
]


@pytest.mark.parametrize("size", [1, 3])
def test_batch_reports_bad_rows_and_skips_them(bittorch: Command, model: Path, tmp_path: Path, size: int) -> None:
    lines = [b'{"prompt": "first"}', *(line for line, _ in BAD_ROWS), b'{"prompt": "last"}']
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    arguments = "batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--model", model, "--batch-size", size, *FEW
    result = bittorch(*arguments, "--json")
    assert result.code == 1
    assert [row["id"] for row in _rows(tmp_path / "out.jsonl")] == ["1", str(len(lines))]
    assert result.json["written"] == 2
    assert result.json["rows"] == len(lines)
    for number, (_, problem) in enumerate(BAD_ROWS, 2):
        assert any(f"row {number} is skipped" in line and problem in line for line in result.err.splitlines())
    assert sorted(skipped["row"] for skipped in result.json["skipped"]) == list(range(2, len(lines)))
    before = (tmp_path / "out.jsonl").read_bytes()
    again = bittorch(*arguments, "--json")
    assert (again.code, again.json["written"], again.json["already_there"]) == (1, 0, 2)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_batch_reports_bad_rows_of_csv(bittorch: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'prompt,id\nok,a\ntoo,many,fields\n"x"y,c\na\xff,d\n,e\nfine,f\n')
    result = bittorch("batch", tmp_path / "in.csv", tmp_path / "out.jsonl", "--model", model, "--json", *FEW)
    assert [row["id"] for row in _rows(tmp_path / "out.jsonl")] == ["a", "f"]
    problems = {skipped["row"]: skipped["error"] for skipped in result.json["skipped"]}
    assert "has 3 fields, the header 2" in problems[2]
    assert "not CSV" in problems[3]
    assert "not UTF-8" in problems[4]
    assert 5 not in problems  # an empty prompt is no mistake
    assert result.json["blank"] == 1


def test_batch_names_a_missing_column(bittorch: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("question\nx\n")
    result = bittorch("batch", tmp_path / "in.csv", tmp_path / "out.jsonl", "--model", model)
    assert result.code == 1
    assert "'prompt'" in result.err
    assert "question" in result.err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt"])
def test_an_empty_prompt_has_no_answer_in_any_format(
    bittorch: Command, model: Path, tmp_path: Path, ending: str
) -> None:  # FIELD N15
    prompts = ["one", "", " ", "two"]
    path, out = tmp_path / f"in.{ending}", tmp_path / "out.txt"
    lines = {
        "txt": prompts,
        "jsonl": [json.dumps({"prompt": prompt}) for prompt in prompts],
        "csv": ["prompt,id", *(f"{prompt},{number}" for number, prompt in enumerate(prompts))],
    }[ending]
    path.write_text("\n".join(lines) + "\n")
    arguments = "batch", path, out, "--model", model, "--json", *FEW
    result = bittorch(*arguments)
    assert result.code == 0
    assert "2 rows have an empty prompt and get no answer" in result.err
    assert [bool(line) for line in out.read_text().split("\n")] == [True, False, False, True, False]
    counts = {"rows": 4, "written": 2, "already_there": 0, "blank": 2, "skipped": []}
    assert result.json == counts
    again = bittorch(*arguments)
    assert again.json == {**counts, "written": 0, "already_there": 2}


def test_progress_counts_answers_alone(
    bittorch: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # FIELD N15
    monkeypatch.setattr("bittorch.cli.console.SECONDS_BETWEEN_LINES", -1.0)
    bad = [{"other": 1}] * 5
    rows = _jsonl(tmp_path / "in.jsonl", *bad, *({"prompt": f"row {n}"} for n in range(3)))
    out = tmp_path / "out.jsonl"
    arguments = "batch", rows, out, "--model", model, *FEW
    shown = [line for line in bittorch(*arguments).err.splitlines() if line.startswith("bittorch: rows ")]
    assert shown == [f"bittorch: rows {done}/3" for done in range(4)]
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:2]))
    resumed = bittorch(*arguments).err.splitlines()
    assert f"bittorch: 2 of 3 rows are in {out} already: going on from there" in resumed
    assert [line for line in resumed if line.startswith("bittorch: rows ")] == [f"bittorch: rows {n}/3" for n in (2, 3)]


@pytest.mark.parametrize("header", ['"prompt', '"prompt"x\nhello\n'])
def test_batch_names_a_damaged_header(bittorch: Command, tmp_path: Path, header: str) -> None:  # FIELD R14
    (tmp_path / "in.csv").write_text(header)
    result = bittorch("batch", tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("bittorch: error: the header of the CSV file is damaged: ")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt"])
def test_a_torn_row_is_written_anew_at_any_byte(bittorch: Command, model: Path, tmp_path: Path, ending: str) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", *({"prompt": f'row "{n}"\n'} for n in range(3)))
    out = tmp_path / f"out.{ending}"
    arguments = "batch", rows, out, "--model", model, "--temperature", 1.5, *FEW
    assert bittorch(*arguments).code == 0
    whole = out.read_bytes()
    last_row = whole.rfind(b"\n", 0, -1) if ending != "csv" else whole.rfind(b'"3"') - 1
    for cut in {0, 1, last_row, last_row + 1, last_row + 3, len(whole) - 3, len(whole) - 1, len(whole)}:
        out.write_bytes(whole[:cut])
        assert bittorch(*arguments).code == 0
        assert out.read_bytes() == whole, cut


@pytest.mark.slow
def test_a_killed_batch_goes_on_where_it_was(bittorch: Command, model: Path, tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", *({"prompt": f"row {n}"} for n in range(12)))
    out = tmp_path / "out.jsonl"
    options = "--model", model, "--max-new-tokens", 60, "--ignore-eos", "--temperature", 0.7, "--seed", 3
    process = subprocess.Popen(command("batch", rows, out, *options), stderr=subprocess.PIPE)
    limit = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n") >= 4) and time.monotonic() < limit:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    begun = out.read_bytes()
    result = bittorch("batch", rows, out, *options, "--json")
    assert result.code == 0
    assert 0 < result.json["already_there"] < 12
    assert result.json["already_there"] + result.json["written"] == 12
    assert out.read_bytes().startswith(begun[: begun.rfind(b"\n") + 1])
    bittorch("batch", rows, tmp_path / "at_once.jsonl", *options)
    assert out.read_bytes() == (tmp_path / "at_once.jsonl").read_bytes()


def test_an_interrupted_batch_keeps_its_rows(bittorch: Command, model: Path, tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", {"prompt": "a"}, {"prompt": "b"})
    out = tmp_path / "out.jsonl"
    assert bittorch("batch", _jsonl(tmp_path / "first.jsonl", {"prompt": "a"}), out, "--model", model, *FEW).code == 0
    endless = "--max-new-tokens", 10**6, "--ignore-eos", "--model", model
    started = command("batch", rows, out, *endless)
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True, preexec_fn=take_ctrl_c) as process:
        try:
            assert process.stderr is not None
            assert "1 of 2 rows are in" in process.stderr.readline()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()  # endless where the signal did not end it
    # 130 to a shell either way: Python dies of the signal itself where that came inside some imports.
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err
    assert [row["id"] for row in _rows(out)] == ["1"]


def test_batch_refuses_a_file_of_something_else(bittorch: Command, model: Path, tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", {"prompt": "a"})
    for name, content in (("notes.jsonl", "dear diary\n"), ("table.csv", "a,b\n1,2\n")):
        (tmp_path / name).write_text(content)
        result = bittorch("batch", rows, tmp_path / name, "--model", model, *FEW)
        assert result.code == 1
        assert "--overwrite" in result.err
        assert (tmp_path / name).read_text() == content
    assert bittorch("batch", rows, tmp_path / "notes.jsonl", "--overwrite", "--model", model, *FEW).code == 0
    assert len(_rows(tmp_path / "notes.jsonl")) == 1


def test_batch_refuses_one_file_for_both(bittorch: Command, model: Path, tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", {"prompt": "a"})
    assert bittorch("batch", rows, rows, "--model", model).code == 2
    assert _rows(rows) == [{"prompt": "a"}]


def test_batch_refuses_a_file_that_another_process_writes(bittorch: Command, model: Path, tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", {"prompt": "a"})
    with open(tmp_path / "out.jsonl", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = bittorch("batch", rows, tmp_path / "out.jsonl", "--model", model)
    assert result.code == 1
    assert "another process" in result.err


def test_batch_on_a_full_disk_leaves_whole_rows(bittorch: Command, model: Path, tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", *({"prompt": f"{n}"} for n in range(20)))
    arguments = "batch", rows, tmp_path / "out.jsonl", "--model", model, *FEW
    with file_size_limit(500):
        result = bittorch(*arguments)
    assert result.code == 1
    assert "File too large" in result.err
    assert 0 < len(_rows(tmp_path / "out.jsonl")) < 20
    assert (tmp_path / "out.jsonl").read_text().endswith("\n")
    assert bittorch(*arguments).code == 0
    assert [row["id"] for row in _rows(tmp_path / "out.jsonl")] == [str(n) for n in range(1, 21)]


def test_batch_through_pipes(bittorch: Command, model: Path) -> None:
    formats = "--input-format", "txt", "--output-format", "jsonl"
    result = bittorch("batch", "-", "-", *formats, "--model", model, *FEW, stdin="one\ntwo\n")
    assert (result.code, [row["id"] for row in result.lines]) == (0, ["1", "2"])
    with_sums = bittorch("batch", "-", "-", *formats, "--model", model, "--json", *FEW, stdin="one\ntwo\n")
    assert with_sums.lines[:2] == result.lines
    assert with_sums.lines[2]["written"] == 2


def test_batch_wants_to_know_the_format(bittorch: Command, model: Path, tmp_path: Path) -> None:
    result = bittorch("batch", "-", tmp_path / "out.jsonl", "--model", model)
    assert result.code == 2
    assert "--input-format" in result.err
    mixed = bittorch("batch", "-", "-", "--input-format", "txt", "--output-format", "csv", "--json", "--model", model)
    assert mixed.code == 2


def test_batch_names_a_missing_file(bittorch: Command, model: Path, tmp_path: Path) -> None:
    result = bittorch("batch", tmp_path / "none.txt", tmp_path / "out.txt", "--model", model)
    assert (result.code, result.err) == (1, f"bittorch: error: {tmp_path}/none.txt: No such file or directory\n")
