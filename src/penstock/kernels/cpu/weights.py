"""Weights in panels of 16 output features (native/core/types.h), in the precision of the file.

Quantized GGUF blocks are repacked as they are; float tensors become bfloat16, or stay float32 when
`precision` says so (then quantized tensors are dequantized: the exact path).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import numpy as np

from penstock.kernels.cpu import _native
from penstock.kernels.cpu.memory import Regions
from penstock.kernels.ops import WeightTensor

Precision = Literal["file", "float32"]

F32, BF16, Q4, Q8 = range(4)
# GGUF type -> (native/core/pack.h Stored, format)
STORED = {"Q4_0": (0, Q4), "Q4_1": (1, Q4), "Q8_0": (2, Q8)}


class CpuWeights:
    """`penstock.kernels.ops.Weights` for the native backend."""

    def __init__(self, precision: Precision = "file") -> None:
        self.precision = precision
        self._regions = Regions()

    def weight_bytes(self, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes in memory of a tensor of `shape` stored as `dtype`."""
        if len(shape) == 1:
            return 4 * shape[0]
        *outer, n, k = shape
        return int(_native.packed_bytes(self._format(dtype), n, k, prod(outer), False))

    def vector(self, parts: Sequence[WeightTensor]) -> np.ndarray:
        """float32, joined along the last axis."""
        return np.concatenate([part.float32() for part in parts], axis=-1, dtype=np.float32)

    def prepare(self, parts: Sequence[WeightTensor]) -> Any:
        return self._pack(parts, gated=False)

    def prepare_gated(self, parts: Sequence[WeightTensor]) -> Any:
        return self._pack(parts, gated=True)

    def _format(self, dtype: str) -> int:
        if self.precision == "float32":
            return F32
        return STORED[dtype][1] if dtype in STORED else BF16

    def _pack(self, parts: Sequence[WeightTensor], gated: bool) -> Any:
        formats = {self._format(part.dtype) for part in parts}
        # Parts that a file stores in different types share one form: the float one.
        form = formats.pop() if len(formats) == 1 else BF16
        *outer, _, k = parts[0].shape
        experts = prod(outer)
        n = sum(part.shape[-2] for part in parts)
        memory = self._regions.take(_native.packed_bytes(form, n, k, experts, gated))
        packed = _native.PackedWeight(form, n, k, experts, gated, memory, True)
        first = 0
        for part in parts:
            rows = part.shape[-2]
            raw = part.raw() if form in (Q4, Q8) else None
            if form in (Q4, Q8) and raw is None:
                raise NotImplementedError
            if raw is not None:
                raw = raw.reshape(experts, rows, -1)
                for expert in range(experts):
                    packed.stored(STORED[part.dtype][0], np.ascontiguousarray(raw[expert]), first, expert)
            else:
                floats = part.float32().reshape(experts, rows, k)
                for expert in range(experts):
                    packed.floats(np.ascontiguousarray(floats[expert]), first, expert)
            first += rows
        return packed
