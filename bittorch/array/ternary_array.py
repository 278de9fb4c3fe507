"""TernaryArray: an N-dimensional array of -1, 0 and 1 that holds four trits in a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bittorch import ops
from bittorch.array import storage
from bittorch.array.dispatch import Dispatched, dense

Shape = storage.Shape


class TernaryArray(Dispatched):
    """An array of trits with NumPy's indexing, broadcasting and functions, at two bits per trit.

    Trits lie in one stream of bytes in C order. The shape, the strides and the offset of a view count trits, so every
    basic index, transpose or flip is a view, also one that begins inside a byte. Arithmetic of two TernaryArrays
    saturates, ``1 + 1 == 1``, and is exact with ``dtype=``. Reductions and products are exact integers. With other
    numbers and arrays the result is dense, as NumPy promotes int8. Comparisons by operators give arrays of bool.

    As in `numpy.ndarray`: ``shape``, ``size``, ``ndim``, ``itemsize``, ``T``, ``mT``, ``ravel``, ``flatten``,
    ``transpose``, ``swapaxes``, ``squeeze``, ``copy``, ``mean``, ``prod``, ``min``, ``max``, ``any``, ``all``, ``dot``,
    ``fill``, ``item``, ``tolist``.

    Args:
        values: numbers that are -1, 0 or 1, nested as for `numpy.array`.

    Raises:
        ValueError: another value, with its index.
        TypeError: no numbers.
    """

    # NumPy's masked arrays would take an attribute "_data" for trits one per byte.
    __slots__ = ("_contiguous", "_ends", "_offset", "_packed", "_shape", "_size", "_strides", "_writeable")
    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 100

    def __init__(self, values: Any) -> None:
        trits = values.to_numpy() if isinstance(values, TernaryArray) else storage.to_trits(values)
        self._packed, self._ends = storage.pack(trits), trits.size
        self._set(0, trits.shape, storage.c_strides(trits.shape), True)

    def _set(self, offset: int, shape: Shape, strides: Shape, writeable: bool) -> None:
        self._offset, self._shape, self._strides, self._writeable = offset, shape, strides, writeable
        self._size = math.prod(shape)
        self._contiguous = strides == (own := storage.c_strides(shape)) or (
            all(size == 1 or step == expected for size, step, expected in zip(shape, strides, own, strict=True))
            or self._size == 0
        )

    def _view(self, offset: int, shape: Shape, strides: Shape, writeable: bool) -> TernaryArray:
        array = TernaryArray.__new__(TernaryArray)
        array._packed, array._ends = self._packed, self._ends
        array._set(offset, shape, strides, writeable)
        return array

    @classmethod
    def _of(cls, data: storage.Bytes, shape: Shape) -> TernaryArray:
        array = cls.__new__(cls)
        array._packed, array._ends = data, math.prod(shape)  # bytes, and how many trits of them are in use
        array._set(0, shape, storage.c_strides(shape), True)
        return array

    @classmethod
    def full(cls, shape: Any, value: int) -> TernaryArray:
        """An array of one trit."""
        trit, sizes = int(storage.to_trits(value)), storage.as_shape(shape)
        count = math.prod(sizes)
        data = np.zeros(storage.byte_count(count), np.uint8)
        if trit and count:
            data[:] = 0x55 if trit == 1 else 0xAA
            data[-1] &= 0xFF >> 2 * (-count % 4)
        return cls._of(data, sizes)

    @classmethod
    def zeros(cls, shape: Any) -> TernaryArray:
        """An array of zeros."""
        return cls.full(shape, 0)

    @classmethod
    def from_numpy(cls, values: Any) -> TernaryArray:
        """The same as ``TernaryArray(values)``."""
        return cls(values)

    @classmethod
    def from_torch(cls, values: Tensor) -> TernaryArray:
        """The trits of a dense tensor of any number type and device."""
        if values.dtype == torch.bfloat16:  # NumPy has no such type
            values = values.float()
        return cls(values.numpy(force=True))

    @classmethod
    def from_packed(cls, packed: Tensor | storage.Bytes, shape: Any) -> TernaryArray:
        """An array on packed bytes, which it shares where they may be written.

        Args:
            packed: uint8, contiguous, ``ceil(size / 4)`` bytes of a stream of codes in C order, a tensor of the CPU or
                an array; rows of a packed weight are one where in_features is a multiple of 4.
            shape: of the array.

        Raises:
            TypeError: not uint8.
            ValueError: another number of bytes, memory that is not contiguous, code 11, or
                padding that is not 00, with its index.
        """
        data, sizes = packed.numpy() if isinstance(packed, Tensor) else np.asarray(packed), storage.as_shape(shape)
        count = math.prod(sizes)
        if data.dtype != np.uint8:
            raise TypeError(f"packed must be uint8, got {data.dtype}")
        if data.size != storage.byte_count(count) or not data.flags.c_contiguous:
            kind = "contiguous" if data.flags.c_contiguous else "not contiguous"
            raise ValueError(
                f"packed must be {storage.byte_count(count)} contiguous bytes for shape {sizes}, "
                f"got {data.size}, {kind}"
            )
        flat = data.reshape(-1)
        writeable = bool(flat.flags.writeable)
        flat = flat if writeable else flat.copy()
        column = int(ops.ternary_check(storage.rows_of(flat), count)) if count else -1
        if column >= count:
            raise ValueError(f"packed must be padded with code 00 behind its {count} trits, got another at {column}")
        if column >= 0:
            raise ValueError(f"packed holds the reserved code 11 at index {storage.index_of(column, sizes)}")
        return cls._of(flat, sizes)

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_contiguous(self) -> bool:
        """Whether the trits lie one behind the other in C order."""
        return self._contiguous

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def strides(self) -> Shape:
        """Trits, not bytes, from an element to the next of each axis."""
        return self._strides

    @property
    def dtype(self) -> np.dtype[np.int8]:
        """The dtype that NumPy sees, int8."""
        return np.dtype(np.int8)

    @property
    def itemsize(self) -> float:
        return 0.25

    @property
    def nbytes(self) -> int:
        """Bytes that hold these trits, packed."""
        return storage.byte_count(self.size)

    @property
    def _fills_bytes(self) -> bool:
        """Whether no other trit lies in its bytes."""
        return self.is_contiguous and self._offset % 4 == 0 and self.size % 4 == 0

    def _stream(self) -> storage.Bytes:
        """`nbytes` with the trits in C order; others of the memory that it shares may fill up the last byte."""
        if self.is_contiguous:
            return storage.moved(self._packed, self._offset, self.size)
        return storage.pack(self.to_numpy())

    def _memory(self) -> storage.Bytes:
        begin, end = storage.span(self._offset, self.shape, self._strides) if self.size else (0, 0)
        return self._packed[begin // 4 : storage.byte_count(end)]

    def to_packed(self) -> Tensor:
        """``(ceil(size / 4),)`` uint8 of codes in C order: the memory of the array where it begins at a byte and fills
        whole bytes or all of its memory, else a copy."""
        data = self._stream()
        if self.size % 4 and self.is_contiguous and self._offset + self.size < self._ends:  # another's trits follow
            data = data.copy()
            data[-1] &= 0xFF >> 2 * (-self.size % 4)
        return torch.from_numpy(data)

    def to_numpy(self) -> storage.Trits:
        """A dense int8 array, always a copy."""
        if self.is_contiguous:
            return storage.unpack(self._packed, self._offset, self.size).reshape(self.shape)
        return storage.gather(self._packed, self._offset, self.shape, self._strides)

    def to_torch(self, dtype: torch.dtype = torch.int8) -> Tensor:
        """A dense tensor on the CPU."""
        return torch.from_numpy(self.to_numpy()).to(dtype)

    def astype(self, dtype: Any) -> NDArray[Any]:
        """A dense array of another type."""
        return self.to_numpy().astype(dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a TernaryArray is packed: a dense array of it is always a copy; use copy=None or True")
        return self.to_numpy() if dtype is None else self.astype(dtype)

    def __dlpack__(self, **kwargs: Any) -> Any:
        """Of a dense int8 copy: DLPack has no type of two bits."""
        return self.to_numpy().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def _views(self, change: Callable[[NDArray[np.int8]], Sequence[NDArray[np.int8]]]) -> list[TernaryArray]:
        """Views as ``change`` makes them of a NumPy array of this shape, by changing shape, strides and offset alone.

        The array has no memory: what ``change`` reads or writes there is out of bounds.
        """
        memory = np.empty(1, np.int8)
        proxy = np.lib.stride_tricks.as_strided(memory, self.shape, self._strides, writeable=self._writeable)
        begin = self._offset - proxy.__array_interface__["data"][0]
        seen = [p if isinstance(p, np.ndarray) else proxy for p in change(proxy)]  # of 0-d NumPy makes scalars
        return [
            self._view(begin + p.__array_interface__["data"][0], p.shape, p.strides, bool(p.flags.writeable))
            for p in seen
        ]

    def _viewed(self, change: Callable[[NDArray[np.int8]], NDArray[np.int8]]) -> TernaryArray:
        return self._views(lambda p: (change(p),))[0]

    def reshape(self, *shape: Any) -> TernaryArray:
        """A view where the array `is_contiguous`, else a copy; one size may be -1."""
        wanted = storage.sizes(shape[0] if len(shape) == 1 else shape)
        sizes = list(wanted)
        if sizes.count(-1) == 1:
            known = math.prod(n for n in sizes if n != -1)
            sizes[sizes.index(-1)] = self.size // known if known else -1
        if math.prod(sizes) != self.size or min(sizes, default=0) < 0:
            raise ValueError(f"cannot reshape {self.size} trits of shape {self.shape} into {wanted}")
        if not self.is_contiguous:
            return TernaryArray._of(self._stream(), tuple(sizes))
        return self._view(self._offset, tuple(sizes), storage.c_strides(tuple(sizes)), self._writeable)

    def ravel(self) -> TernaryArray:
        return self.reshape(-1)

    def flatten(self) -> TernaryArray:
        return self.ravel().copy()

    def transpose(self, *axes: Any) -> TernaryArray:
        return self._viewed(lambda p: p.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> TernaryArray:
        return self._viewed(lambda p: p.swapaxes(a, b))

    def squeeze(self, axis: Any = None) -> TernaryArray:
        return self._viewed(lambda p: p.squeeze(axis))

    @property
    def T(self) -> TernaryArray:
        return self.transpose()

    @property
    def mT(self) -> TernaryArray:
        return self.swapaxes(-1, -2)

    def copy(self) -> TernaryArray:
        return TernaryArray._of(self.to_packed().numpy().copy(), self.shape)

    def _part(self, keys: tuple[Any, ...]) -> TernaryArray:
        """The view of basic indices, 0-d where NumPy has a scalar."""
        return self._viewed(lambda p: p[keys if any(k is Ellipsis for k in keys) else (*keys, ...)])

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        if not all(_is_basic(k) for k in keys):
            result = self.to_numpy()[dense(key)]
            return TernaryArray._of(storage.pack(result), result.shape) if isinstance(result, np.ndarray) else result
        found = self._part(keys)
        scalar = found.ndim == 0 and not any(k is Ellipsis for k in keys)
        return found.to_numpy()[()] if scalar else found

    def __setitem__(self, key: Any, value: Any) -> None:
        if not self._writeable:
            raise ValueError("assignment destination is read-only: a broadcast shares its trits")
        if key is Ellipsis and isinstance(value, TernaryArray) and value.shape == self.shape and self._fills_bytes:
            self._packed[self._offset // 4 :][: self.nbytes] = value._stream()
            return
        trits = value.to_numpy() if isinstance(value, TernaryArray) else storage.to_trits(value)
        keys = key if isinstance(key, tuple) else (key,)
        if all(_is_basic(k) for k in keys):
            to = self._part(keys)
            trits = trits.reshape(storage.without_leading_ones(trits.shape, trits.ndim - to.ndim))
            storage.scatter(self._packed, to._offset, to.shape, to._strides, np.broadcast_to(trits, to.shape))
            return
        values = self.to_numpy()
        values[dense(key)] = trits
        storage.scatter(self._packed, self._offset, self.shape, self._strides, values)

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        """Exact sums, int64: `numpy.sum`."""
        return np.sum(self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return np.mean(self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return np.prod(self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return np.min(self, axis=axis, out=out, keepdims=keepdims)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return np.max(self, axis=axis, out=out, keepdims=keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return np.any(self, axis=axis, out=out, keepdims=keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return np.all(self, axis=axis, out=out, keepdims=keepdims)

    def dot(self, other: Any) -> Any:
        return np.dot(self, other)

    def fill(self, value: int) -> None:
        self[...] = value

    def item(self, *index: int) -> int:
        return int(self.to_numpy().item(*index))

    def tolist(self) -> Any:
        return self.to_numpy().tolist()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d array")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return bool(np.any(self.to_numpy() == dense(value)))

    def __bool__(self) -> bool:
        return bool(self.to_numpy())

    def __int__(self) -> int:
        return self.item()

    def __index__(self) -> int:
        if self.ndim:
            raise TypeError("only 0-d arrays can be an index")
        return self.item()

    def __float__(self) -> float:
        return float(self.item())

    def __reduce__(self) -> Any:
        return TernaryArray.from_packed, (self.to_packed().numpy(), self.shape)

    def __copy__(self) -> TernaryArray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> TernaryArray:
        return self.copy()

    def __repr__(self) -> str:
        if self.size > np.get_printoptions()["threshold"]:
            return f"TernaryArray(shape={self.shape}, {self.nbytes} bytes)"
        text = np.array2string(self.to_numpy(), separator=", ", prefix="TernaryArray(")
        return f"TernaryArray({text})" if self.size else f"TernaryArray({text}, shape={self.shape})"


def _is_basic(key: Any) -> bool:
    if isinstance(key, (int, np.integer)):
        return not isinstance(key, bool)
    # arrays, also those of other libraries, may have __index__ and are fancy indices
    integer = hasattr(key, "__index__") and not hasattr(key, "__array__") and not isinstance(key, np.bool_)
    return key is None or key is Ellipsis or isinstance(key, slice) or integer
