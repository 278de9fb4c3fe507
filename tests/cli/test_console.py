"""What commands print, with rich and without."""

import io
import json
import sys
import time

import pytest

from bittorch.cli.console import Console, _bar_progress, size_text, to_json


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_tables_are_columns() -> None:
    out = io.StringIO()
    Console(stdout=out).table(("name", "bytes"), [("a", "12345"), ("longer", "1")])
    assert out.getvalue() == "name    bytes\na       12345\nlonger  1\n"


def test_a_terminal_gets_a_drawn_table_where_rich_is_there() -> None:
    pytest.importorskip("rich", reason="drawn tables need rich, of bittorch[demo]")
    drawn, plain, without = Screen(), Screen(), Screen()
    rows = [("a[bold]", "1")]
    Console(stdout=drawn).table(("name", "bytes"), rows)
    Console(stdout=plain, plain=True).table(("name", "bytes"), rows)
    assert "a[bold]" in drawn.getvalue()
    assert "─" in drawn.getvalue()
    assert plain.getvalue() == "name     bytes\na[bold]  1\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rich", None)
        Console(stdout=without).table(("name", "bytes"), rows)
    assert without.getvalue() == plain.getvalue()


@pytest.mark.parametrize("plain", [False, True])
def test_progress_on_a_terminal_ends_with_the_sum(plain: bool) -> None:
    if not plain:
        pytest.importorskip("rich", reason="bars need rich, of bittorch[demo]")
    screen = Screen()
    console = Console(plain=plain, stderr=screen)
    with console.progress("rows") as progress:
        progress(1, 2)
        console.error("row 1 [is] skipped")
        progress(2, 2)
    assert "2/2" in screen.getvalue()
    assert "bittorch: error: row 1 [is] skipped\n" in screen.getvalue()
    console.note("after")
    assert screen.getvalue().endswith("bittorch: after\n")


def test_a_bar_starts_where_the_work_does() -> None:  # FIELD N15
    pytest.importorskip("rich", reason="bars need rich, of bittorch[demo]")
    from rich.progress import Progress

    with Progress(console=None, disable=True) as bar:
        task = bar.add_task("rows", total=None)
        progress = _bar_progress(bar, task)
        progress(5, 12)
        assert (bar.tasks[0].completed, bar.tasks[0].total, bar.tasks[0].speed) == (5, 12, None)
        progress(6, 12)
        assert bar.tasks[0].completed == 6


def test_waiting_shows_life_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:  # FIELD N15
    monkeypatch.setattr("bittorch.cli.console.SECONDS_BETWEEN_SIGNS", 0.001)
    screen = Screen()
    with Console(stderr=screen).waiting("reading 512 tokens"):
        while "\r" not in screen.getvalue():
            time.sleep(0.001)
    line = "reading 512 tokens, 0 s"
    assert screen.getvalue().startswith(f"\r{line}")
    assert screen.getvalue().endswith("\r" + " " * len(line) + "\r")


@pytest.mark.parametrize("quiet", [False, True])
def test_waiting_shows_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:  # FIELD N15
    monkeypatch.setattr("bittorch.cli.console.SECONDS_BETWEEN_SIGNS", 0.001)
    stream = Screen() if quiet else io.StringIO()
    with Console(stderr=stream, quiet=quiet).waiting("reading 512 tokens"):
        time.sleep(0.02)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(5.0, ""), (0.0, "".join(f"bittorch: rows {done}/3\n" for done in (1, 2, 3)))],
)
def test_progress_elsewhere_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: str
) -> None:
    monkeypatch.setattr("bittorch.cli.console.SECONDS_BETWEEN_LINES", seconds)
    err = io.StringIO()
    with Console(stderr=err).progress("rows") as progress:
        for done in range(3):
            progress(done + 1, 3)
    assert err.getvalue() == expected


def test_quiet_says_nothing_but_errors() -> None:
    err = io.StringIO()
    console = Console(quiet=True, stderr=err)
    console.note("a")
    with console.progress("rows") as progress:
        progress(1, 1)
    console.error("b")
    assert err.getvalue() == "bittorch: error: b\n"


HOSTILE = "a\x1b[2J\x1b]0;title\x07b\r\x08\x7f\x9b31m\tc\nd é🌍"
HARMLESS = "a\\x1b[2J\\x1b]0;title\\x07b\\x0d\\x08\\x7f\\x9b31m\tc\nd é🌍"


@pytest.mark.parametrize("rich", [False, True])
def test_a_terminal_gets_no_control_characters(rich: bool) -> None:  # FIELD R18
    out, err = Screen(), Screen()
    console = Console(stdout=out, stderr=err, plain=not rich)
    console.write(HOSTILE)
    console.line(HOSTILE)
    console.note(HOSTILE)
    console.error(HOSTILE)
    assert out.getvalue() == HARMLESS * 2 + "\n"
    assert err.getvalue() == f"bittorch: {HARMLESS}\nbittorch: error: {HARMLESS}\n"
    if rich:
        pytest.importorskip("rich", reason="drawn tables and bars need rich, of bittorch[demo]")
    with console.progress("rows") as progress:
        progress(1, 2)
        console.error("\x1b]0;title\x07")
    console.table(("name",), [("\x1b]0;title\x07",)])
    assert "\x1b]0;" not in out.getvalue() + err.getvalue()
    assert "\\x1b]0;title\\x07" in out.getvalue()
    assert "\\x1b]0;title\\x07" in err.getvalue()


def test_json_on_a_terminal_has_the_same_value() -> None:  # FIELD R18
    screen = Screen()
    Console(json=True, stdout=screen).object({"text": HOSTILE})
    assert json.loads(screen.getvalue()) == {"text": HOSTILE}
    assert not set(screen.getvalue()) & {"\x1b", "\x07", "\x7f", "\x9b", "\r"}


def test_files_and_pipes_get_the_text_itself() -> None:  # FIELD R18
    out = io.StringIO()
    Console(stdout=out).write(HOSTILE)
    assert out.getvalue() == HOSTILE


def test_json_is_standard() -> None:
    text = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "\ud800 ü", 3: (1, None)})
    assert "\n" not in text
    text.encode()
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": "\ud800 ü", "3": [1, None]}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "UTF8"])
def test_json_is_standard_in_any_encoding(encoding: str) -> None:
    screen, value = io.BytesIO(), {"text": "é 世 🌍 \ud800"}
    stream = io.TextIOWrapper(screen, encoding=encoding, errors="backslashreplace")
    Console(json=True, stdout=stream).object(value)
    assert json.loads(screen.getvalue().decode(encoding)) == value
    assert ("世".encode() in screen.getvalue()) == (encoding.lower() in ("utf-8", "utf8"))


def test_sizes() -> None:
    texts = [size_text(n) for n in (0, 999, 1000, 96_600_000, 1_230_000_000, 5_000_000_000_000)]
    assert texts == ["0 B", "999 B", "1 kB", "96.6 MB", "1.23 GB", "5000 GB"]
