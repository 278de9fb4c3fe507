"""NumPy's functions that write to their first argument, for TernaryArrays: values are checked as in an assignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bittorch.array.dispatch import dense, first_argument, implements
from bittorch.array.ternary_array import TernaryArray


def _writing(function: Callable[..., Any]) -> None:
    def own(*args: Any, **kwargs: Any) -> None:
        to, args, kwargs = first_argument(function, args, kwargs)
        if isinstance(to, TernaryArray):
            values = to.to_numpy().astype(np.float64)  # in int8 255 would be -1, and 1.5 would be 1
            function(values, *dense(args), **dense(kwargs))
            to[...] = values
        else:
            function(to, *dense(args), **dense(kwargs))

    implements(function)(own)


for _function in (np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal):
    _writing(_function)
