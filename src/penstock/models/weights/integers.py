"""IntegerTensor: a matrix that a checkpoint keeps as packed integers with scales and zero points.

Every format of quantized checkpoint ends here: it says how to unpack, this says what the numbers
mean: w[n, k] = scale[n, g] · (value[n, k] − zero[n, g]), g the group of column k.

Invariants: making one reads headers only (and `columns`, where the format stores them); nothing is
kept between calls; with 16-bit scales `float32` is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.codes import QuantizedCodes
from penstock.models.weights.dequantize import dequantize
from penstock.models.weights.source import WeightSource

BITS = (4, 8)
_CHUNK_ELEMENTS = 1 << 18  # rows dequantized at once: 1 MiB of float32 stays in a second-level cache

Activation = Literal["group", "token"]


class Integers(NamedTuple):
    """values uint8[N, K]; scale, zero float32[N, G]."""

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray


class IntegerTensor:
    """A `WeightTensor` over unpacked integers.

    name: of the weight, as it would be called unquantized; group: columns of a group, K for one scale a
    row; read: unpacks; columns: int[K], the group of each column, where that is not k // group
    (activation order): then there is no `codes`, and backends take `float32`, which is exact.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        bits: int,
        group: int,
        read: Callable[[], Integers],
        activation: Activation | None = None,
        columns: np.ndarray | None = None,
    ) -> None:
        self.name, self.bits, self.group = name, bits, group
        self.shape: tuple[int, ...] = shape
        self.dtype = f"INT{bits}/{group}" if columns is None else "F32"
        self._read, self._activation, self._columns = read, activation, columns

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        values, scale, zero = self._read()
        out = np.empty(self.shape, np.float32) if out is None else out
        step = max(1, _CHUNK_ELEMENTS // max(1, self.shape[1]))
        for at in range(0, self.shape[0], step):
            rows = slice(at, at + step)
            if self._columns is not None:
                np.subtract(values[rows], zero[rows][:, self._columns], out=out[rows])
                out[rows] *= scale[rows][:, self._columns]
                continue
            target = out[rows].reshape(-1, scale.shape[1], self.group)
            np.subtract(values[rows].reshape(target.shape), zero[rows, :, None], out=target)
            target *= scale[rows, :, None]
        return out

    def raw(self) -> None:
        return None

    def codes(self) -> QuantizedCodes | None:
        if self._columns is not None:
            return None
        values, scale, zero = self._read()
        return QuantizedCodes(values, self.bits, self.group, scale, -scale * zero, self._activation)


def check_bits(bits: int, method: str) -> None:
    """ModelRefused for widths other than 4 and 8."""
    if bits not in BITS:
        raise ModelRefused(
            f"{method} with {bits} bits is not supported, only 4 and 8 are; "
            "take another quantization of the model"
        )


def low_first(raw: np.ndarray, bits: int) -> np.ndarray:
    """uint8[R, B] -> uint8[R, B·8/bits]: values of 4 or 8 bits from little-endian words, the lowest bits
    first."""
    if bits == 8:
        return raw
    out = np.empty((*raw.shape, 2), np.uint8)
    np.bitwise_and(raw, 15, out=out[..., 0])
    np.right_shift(raw, 4, out=out[..., 1])
    return out.reshape(raw.shape[0], -1)


def group_of_columns(stored: np.ndarray, group: int, name: str, groups: int) -> np.ndarray | None:
    """int32[K] group numbers as a file stores them -> None if they are k // group, else themselves.

    ModelRefused if one names a group that has no scale.
    """
    if len(stored) and (stored.min() < 0 or stored.max() >= groups):
        raise ModelRefused(
            f"{name}: columns in groups {stored.min()} to {stored.max()}, scales for {groups}; "
            "the file is damaged"
        )
    return None if np.array_equal(stored, np.arange(len(stored)) // group) else stored.astype(np.intp)


def read_float32(source: WeightSource, name: str) -> np.ndarray:
    """float32 of a small stored tensor (scales)."""
    return np.asarray(dequantize(source.raw(name), source.dtype(name), source.shape(name)), np.float32)


def expect(source: WeightSource, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """ModelRefused unless the tensor is there with that shape and one of those element types."""
    try:
        found = (source.shape(name), source.dtype(name))
    except KeyError:
        raise ModelRefused(
            f"tensor {name!r} is missing beside its packed weight; fetch the model again"
        ) from None
    if found[0] != shape or found[1] not in dtypes:
        raise ModelRefused(
            f"tensor {name!r} is {found[1]} {found[0]}, its packed weight needs {' or '.join(dtypes)} "
            f"{shape}; the file is damaged or of another format"
        )
