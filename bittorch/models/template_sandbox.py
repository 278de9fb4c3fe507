"""Where chat templates run: Jinja's sandbox with a limit on the work that a template does.

Everything that takes time or memory is charged before it happens: a step for each iteration, call, filter and test, a
unit for each character or element that an operation reads or makes. Expressions that Jinja compiles to plain Python
(``~``, slices, comparisons, static text in loops) are charged through filters that `_Meter` puts around them. A render
that has used up its units ends with `TooMuchWork`. The count depends on template and messages alone, not on the clock:
what renders once renders always.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Undefined, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

STEP = 16  # units of an operation that takes about as long as copying many characters
LEAST = 1 << 24  # units of a render: a million steps, about a second
FOR_EACH = 128  # units more for each character of the messages
MOST_BITS = 4096  # of an integer

# Filters that no chat template has, whose results may be much larger than their input.
_WITHOUT = ("batch", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
# Filters that hand on references and look at no characters.
_LAZY = frozenset(("map", "reject", "rejectattr", "reverse", "select", "selectattr"))
_SHALLOW = _LAZY | {"attr", "count", "d", "default", "first", "items", "last", "length", "list"}
_CHARGE, _SEEN, _SLICE, _CONCAT = " charge", " seen", " slice", " concat"  # names that no template can write
_WIDENING = frozenset(("center", "ljust", "rjust", "zfill"))
_REFUSED = frozenset(("expandtabs", "to_bytes", "translate"))

_left: contextvars.ContextVar[list[int]] = contextvars.ContextVar("_left")


class TooMuchWork(SecurityError):
    """A template that repeats or multiplies beyond its limit."""


@contextlib.contextmanager
def limited(units: int) -> Iterator[None]:
    """Gives what is rendered inside so many units of work."""
    token = _left.set([units, units])
    try:
        yield
    finally:
        _left.reset(token)


def units_for(values: Any) -> int:
    """The work that a template may do for some messages."""
    return LEAST + FOR_EACH * size(values)


def charge(units: int) -> bool:
    """Takes units off. Raises TooMuchWork where there are none left."""
    left = _left.get()
    left[0] -= units
    if left[0] < 0:
        raise TooMuchWork(f"it takes more than the {left[1]} units of work that these messages allow")
    return True


def size(value: Any, seen: dict[int, int] | None = None) -> int:
    """Characters of a value's text, roughly; what it holds several times counts several times."""
    if isinstance(value, str | bytes | range):
        return len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // 3
    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return STEP
    seen = {} if seen is None else seen
    if id(value) not in seen:
        seen[id(value)] = 0
        parts: Any = [part for pair in value.items() for part in pair] if isinstance(value, Mapping) else value
        seen[id(value)] = 2 + sum(2 + size(part, seen) for part in parts)
    return seen[id(value)]


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox of all chat templates."""

    intercepted_binops = frozenset(("+", "*", "**", "%", "/", "//", "-"))

    def __init__(self) -> None:
        # Nothing is computed at compile time, which no limit would hold.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, Generation],
            optimized=False,
            finalize=_output,
        )
        self.filters = {name: _metered(name, f) for name, f in self.filters.items() if name not in _WITHOUT}
        self.filters.update({"tojson": _tojson, _CHARGE: _charge, _SEEN: _seen, _SLICE: _slice, _CONCAT: _concat})
        tests: dict[str, Any] = self.tests
        self.tests = {name: _metered_test(function) for name, function in tests.items()}
        del self.globals["lipsum"]

    def template(self, source: str) -> Any:
        """A template that charges for what it does. Raises jinja2.TemplateError."""
        code = self.compile(_Meter().visit(self.parse(source)))
        return self.template_class.from_code(self, code, self.make_globals(None))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, whose result is charged before it is computed."""
        charge(STEP + _cost_of_binop(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls, of methods of texts above all."""
        charge(STEP)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if name in _REFUSED and isinstance(owner, str | bytes | int):
            raise TooMuchWork(f"it calls {name}(), which chat templates may not")
        if isinstance(owner, str | bytes):
            if name == "join" and args:
                args = (_listed(args[0]), *args[1:])
            charge(_cost_of_method(owner, name, args, kwargs))
        else:
            charge(_length(owner) + sum(map(_length, args)))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, whose widths and repetitions are charged."""
        function = super().wrap_str_format(value)
        if function is None:
            return None

        def wrapper(*args: Any, **kwargs: Any) -> str:
            text = value.__self__
            if re.search(r"\{[^{}]*\{", text.replace("{{", "")):
                raise TooMuchWork("it formats with a width that is computed, which chat templates may not")
            charge(text.count("{") * (size(args) + size(kwargs)) + _numbers(text))
            return function(*args, **kwargs)

        return functools.update_wrapper(wrapper, value)


class Generation(Extension):
    """The tag ``generation``, which marks what training is to learn and renders its body."""

    tags = {"generation"}  # noqa: RUF012, as the library has it

    def parse(self, parser: Any) -> Any:
        """Takes the tag away."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Meter(NodeTransformer):
    """Puts charges into a template where Jinja's sandbox has no hook."""

    _bodies = {  # noqa: RUF012, statements that run once, often or never
        nodes.For: ("body", "else_"),
        nodes.If: ("body", "else_"),
        nodes.Macro: ("body",),
        nodes.CallBlock: ("body",),
        nodes.Block: ("body",),
    }

    def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Charges the bodies of a statement for themselves and for their static text."""
        costs = {name: sum(map(self._text, getattr(node, name))) for name in self._bodies.get(type(node), ())}
        super().generic_visit(node, *args, **kwargs)
        for name, text in costs.items():
            cost = text + (STEP if name == "body" and not isinstance(node, nodes.If) else 0)
            if cost:
                charged = _filter(node, _CHARGE, nodes.Const(cost))
                getattr(node, name).insert(0, nodes.ExprStmt(charged, lineno=node.lineno))
        return node

    def _text(self, node: Any) -> int:
        """Characters of static text, without that in bodies that are charged for themselves."""
        if isinstance(node, nodes.TemplateData):
            return len(node.data)
        return sum(map(self._text, node.iter_child_nodes(exclude=self._bodies.get(type(node), ()))))

    def visit_For(self, node: Any) -> Any:
        """Elements that a condition leaves out are steps, too."""
        if node.test is not None:
            node.test = nodes.And(_filter(node, _CHARGE, nodes.Const(STEP)), node.test)
        return self.generic_visit(node)

    def visit_Operand(self, node: Any) -> Any:
        """What a value is compared with."""
        self.generic_visit(node)
        if not isinstance(node.expr, nodes.Const):
            node.expr = _filter(node, _SEEN, node.expr)
        return node

    def visit_Concat(self, node: Any) -> Any:
        """``a ~ b``."""
        self.generic_visit(node)
        return _filter(node, _CONCAT, nodes.List(node.nodes))

    def visit_Getitem(self, node: Any) -> Any:
        """``a[i:j]``."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        cuts = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter(node, _SLICE, node.node, *(nodes.Const(None) if cut is None else cut for cut in cuts))


def _filter(place: Any, name: str, value: Any, *args: Any) -> Any:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=place.lineno, environment=place.environment)


def _charge(units: int) -> bool:
    return charge(units)


def _seen(value: Any) -> Any:
    charge(size(value))
    return value


def _slice(value: Any, *cuts: int | None) -> Any:
    charge(STEP + _length(value))
    return value[slice(*cuts)]


@pass_context
def _concat(context: Any, values: list[Any]) -> str:
    charge(STEP + size(values))
    return (markup_join if context.eval_ctx.autoescape else str_join)(values)


@pass_context
def _output(context: Any, value: Any) -> Any:
    """Every expression that becomes text."""
    charge(STEP + size(value))
    return value


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """With the options that transformers has, of which none is code, and no escapes for HTML, unlike Jinja's own."""
    charge(STEP + size(value) * (2 + size(separators) if separators else 2))
    encoder = json.JSONEncoder(
        ensure_ascii=bool(ensure_ascii),
        indent=indent if indent is None or isinstance(indent, str) else min(int(indent), LEAST),
        separators=separators and tuple(map(str, separators)),
        sort_keys=bool(sort_keys),
    )
    parts = []
    for part in encoder.iterencode(value):  # in pieces where there is an indent, which is not in the size
        charge(len(part))
        parts.append(part)
    return "".join(parts)


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that charges for its input, and for what it makes of that."""
    first = int(hasattr(function, "jinja_pass_arg"))  # a context comes before the value

    @functools.wraps(function)
    def filter(*args: Any, **kwargs: Any) -> Any:
        value, *more = args[first:]
        if name == "join":
            value = _listed(value)
        given = [*more, *kwargs.values()]
        charge(STEP + _length(value) + sum(map(size, given)))
        if name not in _SHALLOW:
            charge(_cost_of_filter(name, value, given))
        result = function(*args[:first], value, *more, **kwargs)
        if name == "list":
            charge(8 * len(result))
        return _counted(result) if name in _LAZY and isinstance(result, Iterator) else result

    return filter


def _cost_of_filter(name: str, value: Any, given: list[Any]) -> int:
    cost = size(value)
    if name in ("sort", "unique", "groupby", "dictsort", "min", "max"):
        return 8 * cost  # elements are compared several times
    if name in ("center", "round"):
        return cost + _integers(given)
    if name == "indent":
        width = _integers(given) + sum(map(size, given)) + 4
        return cost + width * (str(value).count("\n") + 1 if isinstance(value, str) else cost)
    if name == "format":
        return cost + _cost_of_percent(str(value), tuple(given))
    if name == "join":
        return cost + _length(value) * sum(map(size, given))
    if name == "replace" and len(given) > 1:
        old, new = str(given[0]), str(given[1])
        return cost + (_occurrences(value, old) if isinstance(value, str) else cost) * len(new)
    if name == "int":
        return cost * cost // STEP
    if name == "sum" and any(not isinstance(part, str | int | float) for part in given):
        raise TooMuchWork("it adds up with a start that is no number, which chat templates may not")
    return cost


def _metered_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def test(*args: Any, **kwargs: Any) -> Any:
        charge(STEP + sum(map(size, args[1:])))
        return function(*args, **kwargs)

    return test


def _cost_of_binop(operator: str, left: Any, right: Any) -> int:
    if operator == "+":
        return _length(left) + _length(right)
    if operator == "%" and isinstance(left, str | bytes):
        return _cost_of_percent(str(left), right)
    if operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(many, int | float):
                return _length(many) * max(times, 0)
    if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * max(right, 0)
        if bits > MOST_BITS:
            raise TooMuchWork(f"it computes a number of {bits} bits, at most {MOST_BITS} are supported")
    return 0


def _cost_of_percent(text: str, values: Any) -> int:
    if "*" in text:
        raise TooMuchWork("it formats with a width that is computed, which chat templates may not")
    return len(text) + text.count("%") * size(values) + _numbers(text)


def _cost_of_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    given = [*args, *kwargs.values()]
    cost = len(owner) + sum(map(size, given))
    if name in _WIDENING:
        return cost + _integers(given)
    if name == "join" and given:
        return cost + _length(given[0]) * len(owner)
    if name == "replace" and len(given) > 1:
        return cost + _occurrences(owner, given[0]) * _length(given[1])
    if name in ("split", "rsplit", "splitlines"):  # each piece is an object
        separator = next((part for part in given if isinstance(part, str | bytes)), None)
        return cost + STEP * (len(owner) // 2 if separator is None else _occurrences(owner, separator))
    return cost


def _occurrences(text: Any, part: Any) -> int:
    return text.count(part) if part else len(text) + 1


def _integers(values: list[Any]) -> int:
    return sum(abs(value) for value in values if isinstance(value, int))


def _numbers(text: str) -> int:
    """The sum of the numbers that a text has, among them the widths of a format."""
    return sum(map(int, re.findall(r"[0-9]+", text)))


def _length(value: Any) -> int:
    """Elements or characters, of what has them."""
    if isinstance(value, Undefined):
        return 0
    return len(value) if hasattr(type(value), "__len__") else 0


def _listed(values: Any) -> Any:
    """The elements of a generator, charged one by one, so that they can be counted."""
    return list(_counted(values)) if isinstance(values, Iterator) else values


def _counted(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        charge(STEP)
        yield value
