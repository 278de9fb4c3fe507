"""The site of docs/: `make docs` builds it into build/docs. The reference comes from the docstrings of the package."""

import importlib
import pydoc
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from bittorch import __version__ as release

project = "bittorch"
author = "bittorch contributors"
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"bittorch {release}"
html_show_copyright = False
html_static_path = []
myst_heading_anchors = 4  # headings are link targets, as on GitHub

autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # a method that says nothing of its own is that of torch, NumPy or PEFT
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Source"]
nitpick_ignore_regex = [("py:class", r"(dict|tuple)\[.*")]  # types of attributes, which napoleon cuts at their commas
ANNOTATIONS = (
    "ChatTemplate",
    "torch.optim.optimizer.Optimizer",
    "NDArray",
    "np.int64",
    "np.float32",
    "bittorch.utils.lens._Scale",
)
nitpick_ignore = [("py:class", name) for name in ANNOTATIONS]  # names that stand in annotations alone
default_role = "py:obj"  # a name in single backticks is a link; `link_or_code` has what leads nowhere

log = logging.getLogger(__name__)


def link_or_code(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> object:
    """A short name leads to the one page that has it; a name that exists but has no page is code; others are errors."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].removesuffix("()")
    domain = env.domains.python_domain
    found = {entry.node_id: entry for full, entry in domain.objects.items() if full.endswith(f".{name}")}
    if len(found) == 1:
        (entry,) = found.values()
        target = app.builder.get_relative_uri(node["refdoc"], entry.docname) + "#" + entry.node_id
        return nodes.reference("", "", content, internal=True, refuri=target, reftitle=entry.node_id)
    if found or _exists(name, node.get("py:module")):
        return content
    return None


def _exists(name: str, module: str | None) -> bool:
    inside = [f"{module}.{name}", f"{sys.modules[module].__name__}.{name}"] if module in sys.modules else []
    return any(pydoc.locate(path) is not None for path in (name, *inside)) or name in ("None", "True", "False")


def public_names(app: Sphinx, error: Exception | None) -> None:
    """Every name of an ``__all__`` is documented: the build says how many there are, and warns of one that is not."""
    if error:
        return
    documented = set(app.env.domains.python_domain.objects)
    pages = sorted(path.stem for path in (Path(app.srcdir) / "reference" / "api").glob("*.md"))
    top, count, missing = importlib.import_module("bittorch"), 0, 0
    for module in map(importlib.import_module, pages):
        for name in getattr(module, "__all__", ()):
            count += 1
            same = getattr(top, name, None) is getattr(module, name) and f"bittorch.{name}" in documented
            if not same and f"{module.__name__}.{name}" not in documented:
                log.warning("%s.%s is not documented", module.__name__, name)
                missing += 1
    log.info("%d of %d public names in %d modules are documented", count - missing, count, len(pages))


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", link_or_code)
    app.connect("build-finished", public_names)
