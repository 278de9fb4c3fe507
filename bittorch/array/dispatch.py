"""What NumPy's functions and ufuncs do with a TernaryArray: own functions where there are some, else those of NumPy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The files beside this one fill them.
UFUNCS: dict[np.ufunc, Callable[..., Any]] = {}
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {}
# Sums that int8 would wrap: they run on int32 where all operands are trits and no dtype is given.
_SUMS = {getattr(np, name) for name in ("matmul", "vecdot", "matvec", "vecmat") if hasattr(np, name)}


def implements(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what takes the place of NumPy's functions where an argument is a TernaryArray."""

    def register(own: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            (UFUNCS if isinstance(function, np.ufunc) else FUNCTIONS)[function] = own  # type: ignore[index]
        return own

    return register


class Dispatched(np.lib.mixins.NDArrayOperatorsMixin):
    """The base of TernaryArray, which is all that this file knows of it."""

    __slots__ = ("__weakref__",)

    def to_numpy(self) -> NDArray[np.int8]:
        raise NotImplementedError

    def __setitem__(self, key: Any, value: Any) -> None:
        raise NotImplementedError

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        return _call_ufunc(ufunc, method, inputs, out, kwargs)

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        own = FUNCTIONS.get(function)
        return call_dense(function, args, kwargs) if own is None else own(*args, **kwargs)


def dense(value: Any, dtype: Any = np.int8) -> Any:
    """A TernaryArray as int8, also inside lists, tuples and dictionaries; everything else as it is.

    The copy is read-only: what a function writes to it would be lost without a word.
    """
    if isinstance(value, Dispatched):
        copy = value.to_numpy().astype(dtype, copy=False)
        copy.flags.writeable = False
        return copy
    if isinstance(value, (list, tuple)):
        return type(value)(dense(v, dtype) for v in value)
    return {k: dense(v, dtype) for k, v in value.items()} if isinstance(value, dict) else value


def store(result: Any, out: Any) -> Any:
    """``out``, which holds the result; ValueError for another shape, TypeError for a type that loses values."""
    if np.shape(result) != out.shape:
        raise ValueError(f"out must have the shape {np.shape(result)} of the result, got {out.shape}")
    _assign(out, result, True)
    return out


def call_dense(function: Callable[..., Any], args: Any, kwargs: dict[str, Any], dtype: Any = np.int8) -> Any:
    """NumPy's function, of dense copies; a TernaryArray as ``out=`` gets the result, whose values are checked."""
    out = kwargs.get("out")
    if not isinstance(out, Dispatched):
        return function(*dense(args, dtype), **dense(kwargs, dtype))
    kwargs = {name: value for name, value in kwargs.items() if name != "out"}
    return store(function(*dense(args, dtype), **dense(kwargs, dtype)), out)


def _assign(out: Any, value: Any, where: Any) -> None:
    if np.broadcast_shapes(np.shape(value), out.shape) != out.shape:
        raise ValueError(f"a result of shape {np.shape(value)} does not go to out of shape {out.shape}")
    if not isinstance(out, Dispatched):
        np.copyto(out, dense(value), where=where)
    else:
        out[...] = value if where is True else np.where(where, dense(value), out.to_numpy())


def _call_ufunc(ufunc: np.ufunc, method: str, inputs: Any, out: Any, kwargs: dict[str, Any]) -> Any:
    trits = all(isinstance(x, Dispatched) for x in inputs)
    where = kwargs.get("where", True) if method == "__call__" else True
    own = UFUNCS.get(ufunc) if trits and method == "__call__" and not kwargs.keys() - {"where"} else None
    if method == "at" and isinstance(inputs[0], Dispatched):
        raise TypeError(f"{ufunc.__name__}.at does not write to a TernaryArray; index it and assign")
    if own is not None:
        result, given = own(*inputs), out or ()
    else:
        given = tuple(to if isinstance(to, Dispatched) else None for to in out or ())
        plain = tuple(None if isinstance(to, Dispatched) else to for to in out or ())
        named = {"out": plain} if plain and (method == "__call__" or plain[0] is not None) else {}
        wide = np.int32 if trits and ufunc in _SUMS and "dtype" not in kwargs else np.int8
        result = getattr(ufunc, method)(*dense(inputs, wide), **named, **dense(kwargs))
    if out is None:
        return result
    results = result if isinstance(result, tuple) else (result,)
    for to, value in zip(given, results, strict=True):
        if to is not None:
            _assign(to, value, where)
    written = tuple(value if to is None else to for to, value in zip(out, results, strict=True))
    return written[0] if len(written) == 1 else written


def first_argument(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The first argument of a call of NumPy's function, also where it is given by name, and the others."""
    if args:
        return args[0], args[1:], kwargs
    name = next(iter(inspect.signature(function).parameters))
    return kwargs[name], (), {key: value for key, value in kwargs.items() if key != name}
