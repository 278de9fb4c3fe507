"""What `copy.deepcopy` cannot follow: functions on a model that hold parts of the model they were made for.

The copy shares functions with its original. A bound method and a `functools.partial` are copied with what they hold; a
function that wraps ``model.forward`` (torch.compile, no_grad, functools.wraps) still calls the modules of the original.
"""

from __future__ import annotations

import copy
import functools
import itertools
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from bittorch.utils.wrappers import inner_of

_DEPTH = 6  # of objects inside objects; decorators nest less deeply
_ITEMS = 1000  # of a container; longer ones are data
_HOOKS = {"_forward_hooks", "_forward_pre_hooks"}
_TORCH_KEEPS = (frozenset(vars(nn.Module())) - _HOOKS) | {"_compiled_call_impl"}  # the last one is never copied


def _closure(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _inside(value: Any) -> Iterable[Any]:
    """What an object that is shared with a copy holds."""
    if isinstance(value, types.MethodType):
        return value.__self__, value.__func__
    if isinstance(value, functools.partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, types.FunctionType):
        return (
            *_closure(value),
            *(value.__defaults__ or ()),
            *(value.__kwdefaults__ or {}).values(),
            *vars(value).values(),
        )
    if isinstance(value, dict):
        return itertools.islice(value.values(), _ITEMS)
    if isinstance(value, list | tuple | set | frozenset):
        return itertools.islice(value, _ITEMS)
    if isinstance(value, type | types.ModuleType):
        return ()
    return list(getattr(value, "__dict__", {}).values())


def _globals(function: types.FunctionType) -> Iterator[Any]:
    """The global objects that a function names, and what its bound methods belong to."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        yield getattr(value, "__self__", value)


def _reaches(value: Any, parts: set[int], depth: int, seen: set[int]) -> bool:
    """Whether an object that the copy shares with its original holds a part of the original."""
    if id(value) in parts:
        return True
    if depth == 0 or id(value) in seen or isinstance(value, str | bytes | int | float | None):
        return False
    seen.add(id(value))
    if isinstance(value, types.FunctionType) and any(id(part) in parts for part in _globals(value)):
        return True
    return any(_reaches(part, parts, depth - 1, seen) for part in _inside(value))


def _keeps_original(value: Any, parts: set[int], depth: int = 3) -> bool:
    """Whether the deep copy of an attribute still holds parts of the original."""
    if isinstance(value, types.MethodType):
        return _reaches(value.__func__, parts, _DEPTH, set())
    if isinstance(value, types.FunctionType):
        return _reaches(value, parts, _DEPTH, set())
    holder = isinstance(value, functools.partial | dict | list | tuple)
    if depth and (holder or (callable(value) and not isinstance(value, nn.Module | type))):
        return any(_keeps_original(part, parts, depth - 1) for part in _inside(value))
    return False


def check_copy(model: nn.Module, verb: str) -> None:
    """Raises where a copy of the model would run the original, and warns where it could.

    Raises:
        ValueError: the ``forward`` of a module holds modules or parameters of the model.

    Warns:
        UserWarning: another attribute, or a hook, does.
    """
    modules = dict(model.named_modules())
    parts = {id(part) for module in modules.values() for part in (module, *module._parameters.values())}
    parts -= {id(None)}
    for name, module in modules.items():
        if inner_of(module) is not None:  # not copied: what it wraps is
            continue
        where = name or "the model"
        forward = vars(module).get("forward")
        if forward is not None and (_unknown(forward) or _keeps_original(forward, parts)):
            path = f"model.get_submodule({name!r})" if name else "model"
            raise ValueError(
                f"cannot {verb} {where}: its forward was replaced by a {type(forward).__name__} that calls the model "
                f"given, not its copy; remove it first (`del {path}.forward`), and set it on the result instead"
            )
        others = (key for key in vars(module) if key not in _TORCH_KEEPS and key != "forward")
        for key in others:
            if _keeps_original(vars(module)[key], parts):
                warnings.warn(
                    f"{key} of {where} is or holds a function that refers to modules of the model given; "
                    "the copy has the same function, so what it calls is not converted",
                    stacklevel=3,
                )


def _unknown(forward: Callable[..., Any]) -> bool:
    """Whether nothing is known about what a callable holds: it is written in C, or a class."""
    known = types.MethodType | types.FunctionType | functools.partial
    return not isinstance(forward, known) and not hasattr(forward, "__dict__")


def copied(model: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    """A deep copy of a model, with twins in the places of their originals and without the wrappers inside it."""
    # deepcopy's memo maps what it has met to its copy: seeded with twins, it puts them where their originals stand.
    memo: dict[int, Any] = dict(twins)
    for module in reversed(list(model.modules())):  # the innermost wrappers first
        if (inner := inner_of(module)) is not None:
            memo[id(module)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(model, memo)
