"""GPTQ checkpoints (arXiv:2210.17323), as AutoGPTQ and GPTQModel write them.

X.qweight  int32[K·bits/32, N]  values along K, lowest bits first
X.qzeros   int32[G, N·bits/32]  zero points along N, lowest bits first; format "gptq" stores them minus 1
X.scales   float[G, N]
X.g_idx    int32[K]             the group of each column (absent: k // group)

w[n, k] = scales[g, n] · (value − zero). `desc_act` quantizes columns in the order of their activations:
where that leaves g_idx other than k // group, the weight has no blocks and is served as floats, exactly.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.ops import WeightTensor
from penstock.models.weights.integers import (
    Integers,
    IntegerTensor,
    check_bits,
    expect,
    group_of_columns,
    low_first,
    read_float32,
)
from penstock.models.weights.quantization import FLOAT_SCALES, is_zero_bias, note_once
from penstock.models.weights.source import WeightSource

_FORMATS = ("gptq", "gptq_v2")


class GPTQ:
    """`Quantization` of a GPTQ checkpoint."""

    def __init__(self, source: WeightSource, config: dict[str, Any]) -> None:
        self.source, self.config = source, config
        self.notes: list[str] = []
        self._names = set(source.names())
        stated = config.get("checkpoint_format") or config.get("format") or "gptq"
        if config.get("is_marlin_format"):
            stated = "marlin"
        if stated not in _FORMATS:
            raise ModelRefused(
                f"GPTQ checkpoint format {stated!r} is not supported, only {' and '.join(_FORMATS)} are; "
                "take a checkpoint in one of them"
            )
        self._stored_minus_one = stated == "gptq"
        check_bits(int(config["bits"]), "gptq")
        self.summary = f"gptq {config['bits']}-bit, group {config.get('group_size', -1)}"

    def find(self, name: str) -> tuple[WeightTensor, list[str]] | None:
        stem = name.removesuffix(".weight")
        if stem == name or f"{stem}.qweight" not in self._names:
            return None
        config = self._module_config(stem)
        bits = int(config["bits"])
        check_bits(bits, f"{stem}: gptq")
        packed_rows, rows = self.source.shape(f"{stem}.qweight")
        columns = packed_rows * 32 // bits
        group = int(config.get("group_size", -1))
        group = columns if group <= 0 else group
        groups = -(-columns // group)
        used = [f"{stem}.{part}" for part in ("qweight", "qzeros", "scales")]
        expect(self.source, used[0], (columns * bits // 32, rows), ("I32",))
        expect(self.source, used[1], (groups, rows * bits // 32), ("I32",))
        expect(self.source, used[2], (groups, rows), FLOAT_SCALES)
        order = np.arange(columns) // group if columns % group else None
        if f"{stem}.g_idx" in self._names:
            used.append(f"{stem}.g_idx")
            expect(self.source, used[3], (columns,), ("I32",))
            order = group_of_columns(self.source.raw(used[3]).view("<i4"), group, used[3], groups)
        if order is not None:
            note_once(
                self.notes,
                "columns are quantized in the order of their activations (desc_act): "
                "these weights are served as floats",
            )

        def read() -> Integers:
            return self._read(stem, bits, rows)

        return IntegerTensor(name, (rows, columns), bits, group, read, columns=order), used

    def spare(self, name: str) -> bool:
        return is_zero_bias(self.source, name, ".qweight")

    def _module_config(self, stem: str) -> dict[str, Any]:
        """GPTQModel's `dynamic`: patterns of modules with settings of their own, the first match counts."""
        for pattern, settings in (self.config.get("dynamic") or {}).items():
            if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), stem):
                return self.config | settings
        return self.config

    def _read(self, stem: str, bits: int, rows: int) -> Integers:
        words = self.source.raw(f"{stem}.qweight").reshape(-1, rows, 4)
        values = low_first(words.transpose(1, 0, 2).reshape(rows, -1), bits)
        scale = read_float32(self.source, f"{stem}.scales")
        zero = low_first(self.source.raw(f"{stem}.qzeros").reshape(len(scale), -1), bits)
        if self._stored_minus_one:
            zero = (zero + np.uint8(1)) & np.uint8(2**bits - 1)
        return Integers(values, np.ascontiguousarray(scale.T), zero.T.astype(np.float32, order="C"))
