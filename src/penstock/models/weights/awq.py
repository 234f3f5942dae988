"""AWQ checkpoints (arXiv:2306.00978) in the GEMM packing of AutoAWQ.

X.qweight  int32[K, N/8]  eight output columns a word; nibble j holds column (0, 2, 4, 6, 1, 3, 5, 7)[j]
X.qzeros   int32[G, N/8]  zero points, packed alike
X.scales   float16[G, N]

w[n, k] = scales[g, n] · (value − zero). Only 4 bits exist. `modules_to_not_convert` are stored plainly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.ops import WeightTensor
from penstock.models.weights.integers import (
    Integers,
    IntegerTensor,
    expect,
    low_first,
    read_float32,
)
from penstock.models.weights.quantization import FLOAT_SCALES, is_zero_bias
from penstock.models.weights.source import WeightSource

_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble that holds column i: the inverse of the packing order


class AWQ:
    """`Quantization` of an AWQ checkpoint."""

    def __init__(self, source: WeightSource, config: dict[str, Any]) -> None:
        self.source = source
        self.notes: list[str] = []
        self._names = set(source.names())
        version = str(config.get("version") or config.get("format") or "gemm").lower()
        if version != "gemm":
            raise ModelRefused(
                f"AWQ version {version!r} is not supported, only 'gemm' is; take a checkpoint packed for it"
            )
        bits = int(config.get("bits", config.get("w_bit", 4)))
        if bits != 4:
            raise ModelRefused(
                f"AWQ with {bits} bits is not supported, only 4 is; take another quantization of the model"
            )
        self._group = int(config.get("group_size", config.get("q_group_size", 128)))
        self.summary = f"awq 4-bit, group {self._group}"

    def find(self, name: str) -> tuple[WeightTensor, list[str]] | None:
        stem = name.removesuffix(".weight")
        if stem == name or f"{stem}.qweight" not in self._names:
            return None
        columns, words = self.source.shape(f"{stem}.qweight")
        rows = words * 8
        group = columns if self._group <= 0 else self._group
        if columns % group:
            raise ModelRefused(f"{stem}: {columns} columns are no multiple of the AWQ group of {group}")
        used = [f"{stem}.{part}" for part in ("qweight", "qzeros", "scales")]
        expect(self.source, used[0], (columns, words), ("I32",))
        expect(self.source, used[1], (columns // group, words), ("I32",))
        expect(self.source, used[2], (columns // group, rows), FLOAT_SCALES)

        def read() -> Integers:
            scale = read_float32(self.source, used[2])
            zero = self._unpack(used[1], len(scale))
            return Integers(
                np.ascontiguousarray(self._unpack(used[0], columns).T),
                np.ascontiguousarray(scale.T),
                zero.T.astype(np.float32, order="C"),
            )

        return IntegerTensor(name, (rows, columns), 4, group, read), used

    def spare(self, name: str) -> bool:
        return is_zero_bias(self.source, name, ".qweight")

    def _unpack(self, name: str, lines: int) -> np.ndarray:
        """uint8[lines, N] in the order of the output columns."""
        nibbles = low_first(self.source.raw(name).reshape(lines, -1), 4)
        return nibbles.reshape(lines, -1, 8)[..., _PLACE].reshape(lines, -1)
