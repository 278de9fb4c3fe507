"""The pages of docs: links lead somewhere, tasks are near the start, messages and files are those of the source."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
API = sorted((DOCS / "reference" / "api").glob("*.md"))
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
TASKS = {  # what a reader looks for, the page, and a heading or words that are on it
    "install it": ("guide/install.md", "pip install --no-build-isolation -e ."),
    "train a first ternary model": ("guide/quickstart.md", "TernaryLinear"),
    "choose a learning rate": ("guide/train.md", "find_lr"),
    "convert a trained model": ("guide/convert.md", "quantize_"),
    "save a packed model and load it": ("guide/export.md", "load_ternary_inference_checkpoint"),
    "chat with a language model": ("guide/command_line.md", "bittorch chat"),
    "write a GGUF file": ("reference/model_formats.md", "gguf-tq2_0"),
    "install on a Jetson": ("guide/jetson.md", "MAX_JOBS=2"),
    "understand an error": ("guide/troubleshooting.md", "is running"),
    "look up a class": ("reference/api/bittorch.md", "automodule:: bittorch"),
}


def _prose(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and myst-parser make anchors of them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def _links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)) if not re.match(r"\w+:", link)]


def _pages_linked(page: Path) -> set[Path]:
    """Pages behind the links of the text; those of the list at the side are not counted."""
    return {(page.parent / link.partition("#")[0]).resolve() for link in _links(page)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in _anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_at_most_two_links_from_the_start(task: str) -> None:
    name, words = TASKS[task]
    first = _pages_linked(DOCS / "index.md")
    second = set().union(*(_pages_linked(page) for page in first if page.suffix == ".md"))
    assert DOCS / name in first | second
    assert words in (DOCS / name).read_text()


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.M | re.S):
            listed |= {page.parent / f"{line}.md" for line in block.splitlines() if re.match(r"[\w/.]+$", line)}
    assert listed == set(DOCS.rglob("*.md")) - {DOCS / "index.md"}


def test_guides_are_short() -> None:
    assert {
        page.name: n for page in (DOCS / "guide").glob("*.md") if (n := len(page.read_text().splitlines())) > 200
    } == {}


def test_messages_of_troubleshooting_are_those_of_the_source() -> None:
    sources = [ROOT / "setup.py", *(ROOT / "bittorch").rglob("*.py"), *(ROOT / "csrc" / "dispatch").glob("*.c*")]
    text = re.sub(r"[\"']\s*\n\s*f?[\"']", "", "\n".join(path.read_text() for path in sources))
    messages = re.findall(r"^\| `(.+?)`", (DOCS / "guide" / "troubleshooting.md").read_text(), re.M)
    parts = [part.strip(" ,") for message in messages for part in message.split("…")]
    assert len(messages) > 20
    assert [part for part in parts if part not in text] == []


def _public() -> list[str]:
    """The modules with an ``__all__``, besides the program."""
    found = []
    for path in (ROOT / "bittorch").rglob("*.py"):
        if "\n__all__ = " in path.read_text() and path.parent.name != "cli":
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return sorted(found)


def test_every_public_module_has_a_page() -> None:
    assert set(_public()) <= {page.stem for page in API}
    for page in API:
        assert f".. automodule:: {page.stem}\n" in page.read_text()


def _silent_parts(value: object) -> list[str]:
    """Public methods and properties of a class that neither they nor the class say anything about."""
    if not inspect.isclass(value):
        return []
    named = inspect.getdoc(value) or ""
    kinds = (property, classmethod, staticmethod)
    parts = [name for name, part in vars(value).items() if inspect.isfunction(part) or isinstance(part, kinds)]
    shown = [name for name in parts if not name.startswith("_") and f"``{name}``" not in named]
    return [name for name in shown if not inspect.getdoc(getattr(value, name))]


@pytest.mark.parametrize("name", [name for name in _public() if ".hf" not in name])
def test_every_public_name_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    page = (DOCS / "reference" / "api" / f"{name}.md").read_text()
    for member in module.__all__:
        value = getattr(module, member)
        if inspect.isclass(value) or inspect.isroutine(value):  # sphinx takes ``__all__``, but what has no docstring
            assert inspect.getdoc(value) or ":undoc-members:" in page, member
            assert _silent_parts(value) == [], member
        else:
            assert inspect.ismodule(value) or f".. py:data:: {name}.{member}\n" in page, member


def test_the_tree_of_the_architecture_is_that_of_the_files() -> None:
    tree = (DOCS / "architecture.md").read_text().split("## Tree")[1].split("```")[1]
    folders = ("bittorch", "csrc", "tests", "docs", "packaging")
    files = {"setup.py", *(path.name for folder in folders for path in (ROOT / folder).rglob("*.*"))}
    named = set(re.findall(r"(?<![\w<>{}/*])\w[\w/]*\.(?:h|c|cpp|cu|cuh|py)\b", tree))
    assert len(named) > 40
    assert {name for name in named if name.split("/")[-1] not in files} == set()
    packages = {p.name for p in (ROOT / "bittorch").iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert {folder for folder in packages if f"{folder}/" not in tree} == set()


def test_recipes_show_lines_of_the_source() -> None:
    kinds = [(ROOT / "csrc", "*.[ch]"), (ROOT / "bittorch", "*.py")]
    text = "\n".join(path.read_text() for folder, kind in kinds for path in folder.rglob(kind))
    source = {line.strip().split("  #")[0] for line in text.splitlines()}
    blocks = re.findall(r"^ *```(?:c|python)\n(.*?)^ *```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    shown = [line.strip().split("  #")[0] for block in blocks for line in block.splitlines()]
    assert len(shown) > 25
    assert [line for line in shown if line not in source] == []
