"""Single native kernels in numpy's terms: weights of every form, rows as the kernels want them, and exact
references in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np

from penstock.kernels.cpu import _native

F32, BF16, Q4, Q8 = range(4)
STORED = {"Q4_0": (0, Q4), "Q4_1": (1, Q4), "Q8_0": (2, Q8)}
FLOATS = {"F32": F32, "BF16": BF16}
FORMS = (*STORED, *FLOATS)
ISAS = [name for name, present, _ in _native.instruction_sets() if present]
# What rounds a * b + c once gives the same bits; plain x86-64 has no such instruction.
EXACT_FMA = [name for name in ISAS if name != "portable"]


@dataclass
class Panels:
    """A packed weight, its values [n, k] in float64 and the memory it lies in."""

    form: str
    n: int
    k: int
    gated: bool
    values: np.ndarray
    view: Any
    data: np.ndarray = field(repr=False)

    @property
    def quantized(self) -> bool:
        return self.form in STORED


def panels(rng: np.random.Generator, form: str, n: int, k: int, gated: bool = False) -> Panels:
    """A random weight; stored forms use every nibble and byte, and scales of both signs."""
    if form in FLOATS:
        kind = FLOATS[form]
        values = rng.standard_normal((n, k)).astype(np.float32)
        data = np.zeros(_native.packed_bytes(kind, n, k, 1, gated), np.uint8)
        _native.PackedWeight(kind, n, k, 1, gated, data, True).floats(values, 0, 0)
        exact = values if form == "F32" else bf16(values)
        return Panels(form, n, k, gated, exact.astype(np.float64), _view(kind, n, k, gated, data), data)
    return packed(form, stored_rows(rng, form, n, k), n, k, gated)


def packed(form: str, raw: np.ndarray, n: int, k: int, gated: bool = False) -> Panels:
    """A weight of the rows of a file, uint8 [n, bytes]; the values are the gguf package's."""
    stored, kind = STORED[form]
    data = np.zeros(_native.packed_bytes(kind, n, k, 1, gated), np.uint8)
    _native.PackedWeight(kind, n, k, 1, gated, data, True).stored(stored, raw, 0, 0)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[form]).reshape(n, k)
    return Panels(form, n, k, gated, values.astype(np.float64), _view(kind, n, k, gated, data), data)


def _view(kind: int, n: int, k: int, gated: bool, data: np.ndarray) -> Any:
    return _native.PanelView(kind, n, k, gated, data)


def stored_rows(rng: np.random.Generator, form: str, n: int, k: int) -> np.ndarray:
    """uint8 [n, bytes]: blocks as a GGUF file has them."""
    blocks = n * (k // 32)

    def halves(low: float, high: float) -> np.ndarray:
        value = rng.uniform(low, high, blocks) * rng.choice([-1, 1], blocks)
        return value.astype(np.float16).view(np.uint8).reshape(blocks, 2)

    if form == "Q8_0":
        parts = [halves(1e-3, 0.05), rng.integers(0, 256, (blocks, 32), np.uint8)]
    else:
        parts = [halves(1e-3, 0.1)]
        if form == "Q4_1":
            parts.append(halves(0.0, 1.0))
        parts.append(rng.integers(0, 256, (blocks, 16), np.uint8))
    return np.ascontiguousarray(np.concatenate(parts, axis=1).reshape(n, -1))


def bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, ties to even, as float32."""
    bits = values.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


Quantized = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def quantized_rows(rows: int, n: int) -> Quantized:
    """Room for q, scale, sum and start, filled with what must be overwritten."""
    groups = -(-n // 64) * 2
    return (
        np.full((rows, groups * 32), 99, np.int8),
        np.full((rows, groups), 99, np.float32),
        np.full((rows, groups), 99, np.float32),
        np.full((rows, groups), 99, np.int32),
    )


def quantize(isa: str, x: np.ndarray) -> Quantized:
    out = quantized_rows(*x.shape)
    _native.Kernels(isa).quantize(x, out)
    return out


def reference_quantize(x: np.ndarray) -> Quantized:
    """Groups of 32 by max|x| / 127, ties to even, in float32 as the kernels do."""
    rows, n = x.shape
    groups = -(-n // 64) * 2
    padded = np.zeros((rows, groups * 32), np.float32)
    padded[:, :n] = x
    padded = padded.reshape(rows, groups, 32)
    peak = np.abs(padded).max(axis=2)
    scale = peak * np.float32(1 / 127)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    q = np.rint(padded * inverse[..., None]).astype(np.int8)
    total = q.sum(axis=2, dtype=np.int32)
    start = (0x4B400000 - 128 * total.astype(np.int64)).astype(np.int32)
    return q.reshape(rows, groups * 32), scale, scale * total.astype(np.float32), start


def seen(weight: Panels, x: np.ndarray) -> np.ndarray:
    """float64: the activations that a product with `weight` sees of x [rows, k]."""
    if not weight.quantized:
        return x.astype(np.float64)
    q, scale, _, _ = reference_quantize(x)
    values = q.reshape(*scale.shape, 32) * scale[..., None].astype(np.float64)
    return values.reshape(q.shape)[:, : x.shape[1]]


def rows_for(isa: str, weight: Panels, x: np.ndarray) -> dict[str, Any]:
    if weight.quantized:
        return {"f": None, "quantized": quantize(isa, x)}
    return {"f": x.copy(), "quantized": None}


def linear(
    isa: str, weight: Panels, x: np.ndarray, out: np.ndarray | None = None, **settings: Any
) -> np.ndarray:
    """float32 [rows, n]; settings as in `Kernels.linear`."""
    result = np.full((len(x), weight.n), 99, np.float32) if out is None else out.copy()
    settings.setdefault("bias", None)
    _native.Kernels(isa).linear(weight.view, **rows_for(isa, weight, x), out=result, **settings)
    return result


def bound(weight: Panels, x: np.ndarray) -> np.ndarray:
    """float64 [rows, n]: the sum of magnitudes that rounding errors are relative to."""
    return np.abs(seen(weight, x)) @ np.abs(weight.values).T + 1e-30
