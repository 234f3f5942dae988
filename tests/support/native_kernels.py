"""Single native kernels in numpy's terms: weights of every form, rows as the kernels want them, and exact
references in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np

from penstock.kernels.cpu import _native

F32, BF16, Q4, Q8, Q5, Q4_SUPER, Q5_SUPER, Q6, Q4_GROUP, Q8_GROUP, IQ4, FP4 = range(12)
# GGUF type -> (native/core/pack.h Stored, Format)
STORED = {
    "Q4_0": (0, Q4), "Q4_1": (1, Q4), "Q8_0": (2, Q8), "Q5_0": (3, Q5), "Q5_1": (4, Q5), "Q3_K": (5, Q6),
    "Q4_K": (6, Q4_SUPER), "Q5_K": (7, Q5_SUPER), "Q6_K": (8, Q6), "IQ4_NL": (9, IQ4), "IQ4_XS": (10, IQ4),
    "MXFP4": (11, FP4),
}  # fmt: skip
# Integers of a checkpoint, as dtype names them: format, group (0: all inputs)
INTEGERS = {
    "INT4/32": (Q4_GROUP, 32), "INT4/128": (Q4_GROUP, 128), "INT4/K": (Q4_GROUP, 0),
    "INT8/32": (Q8_GROUP, 32), "INT8/64": (Q8_GROUP, 64), "INT8/K": (Q8_GROUP, 0),
}  # fmt: skip
FLOATS = {"F32": F32, "BF16": BF16}
FORMS = (*STORED, *INTEGERS, *FLOATS)
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
        return self.form not in FLOATS


def inputs_step(form: str) -> int:
    """What the number of inputs is a multiple of."""
    if form in STORED:
        return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]][0]
    return INTEGERS[form][1] or 1 if form in INTEGERS else 1


def panels(rng: np.random.Generator, form: str, n: int, k: int, gated: bool = False) -> Panels:
    """A random weight; stored forms use every nibble and byte, and scales of both signs."""
    if form in FLOATS:
        kind = FLOATS[form]
        values = rng.standard_normal((n, k)).astype(np.float32)
        data = np.zeros(_native.packed_bytes(kind, n, k, 1, gated), np.uint8)
        _native.PackedWeight(kind, n, k, 1, gated, data, True).floats(values, 0, 0)
        exact = values if form == "F32" else bf16(values)
        return Panels(form, n, k, gated, exact.astype(np.float64), _view(kind, n, k, gated, data), data)
    if form in INTEGERS:
        return integers(rng, form, n, k, gated)
    return packed(form, stored_rows(rng, form, n, k), n, k, gated)


def integers(rng: np.random.Generator, form: str, n: int, k: int, gated: bool = False) -> Panels:
    """A weight of integers with scales and zero points, as kernels.codes has them."""
    kind, group = INTEGERS[form]
    group = group or k
    rows = rng.integers(0, 16 if kind == Q4_GROUP else 256, (n, k), np.uint8)
    scale = rng.uniform(1e-3, 0.1, (n, k // group)).astype(np.float16).astype(np.float32)
    zero = rng.integers(0, 16 if kind == Q4_GROUP else 256, scale.shape).astype(np.float32)
    data = np.zeros(_native.packed_bytes(kind, n, k, 1, gated, group), np.uint8)
    _native.PackedWeight(kind, n, k, 1, gated, data, True, group).integers(rows, scale, -scale * zero, 0, 0)
    spread = np.repeat(scale, group, axis=1).astype(np.float64)
    values = spread * (rows.astype(np.float64) - np.repeat(zero, group, axis=1))
    return Panels(form, n, k, gated, values, _native.PanelView(kind, n, k, gated, data, group), data)


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
    """uint8 [n, bytes]: blocks as a GGUF file has them, random but for their scales."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]]
    blocks = rng.integers(0, 256, (n * (k // block), size), np.uint8)

    def put_halves(at: int, low: float, high: float) -> None:
        value = rng.uniform(low, high, len(blocks)) * rng.choice([-1, 1], len(blocks))
        blocks[:, at : at + 2] = value.astype(np.float16).view(np.uint8).reshape(-1, 2)

    if form == "MXFP4":
        blocks[:, 0] = rng.integers(118, 126, len(blocks))
    elif form in ("Q3_K", "Q6_K"):
        put_halves(size - 2, 1e-4, 1e-3)
    elif form in ("Q4_K", "Q5_K", "IQ4_XS"):
        put_halves(0, 1e-4, 1e-3)
    else:
        put_halves(0, 1e-3, 0.05)
    if form in ("Q4_1", "Q5_1"):
        put_halves(2, 0.0, 1.0)
    elif form in ("Q4_K", "Q5_K"):
        put_halves(2, 0.0, 0.01)
    return blocks.reshape(n, -1)


def bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, ties to even, as float32."""
    bits = values.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


Quantized = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def quantized_rows(rows: int, n: int, fine: int = 0) -> Quantized:
    """Room for q, scale, sum, start and half, filled with what must be overwritten."""
    groups = (-(-n // 64) + fine) * 2
    return (
        np.full((rows, groups * 32), 99, np.int8),
        np.full((rows, groups), 99, np.float32),
        np.full((rows, groups), 99, np.float32),
        np.full((rows, groups), 99, np.int32),
        np.full((rows, 2 * groups), 99, np.int32),
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
    half = 0x4B400000 - 32 * q.reshape(rows, 2 * groups, 16).sum(axis=2, dtype=np.int32)
    return q.reshape(rows, groups * 32), scale, scale * total.astype(np.float32), start, half


def reference_rest(x: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """float64 [rows, n]: what is held of the error of reference_quantize, in 128th steps, of `fine` pairs."""
    q, scale, *_ = reference_quantize(x)
    groups = np.zeros((len(x), scale.shape[1] * 32), np.float32)
    groups[:, : x.shape[1]] = x
    wide = scale.astype(np.float64)[..., None]
    error = groups.reshape(*scale.shape, 32) - q.reshape(*scale.shape, 32) * wide
    rest = np.rint(np.divide(error * 128, wide, out=np.zeros_like(error), where=wide > 0)) * wide / 128
    pairs = rest.reshape(len(x), scale.shape[1] // 2, 64)
    kept = np.zeros_like(pairs)
    kept[:, fine] = pairs[:, fine]
    return kept.reshape(groups.shape)[:, : x.shape[1]]


def seen(weight: Panels, x: np.ndarray) -> np.ndarray:
    """float64: the activations that a product with `weight` sees of x [rows, k]."""
    if not weight.quantized:
        return x.astype(np.float64)
    q, scale, *_ = reference_quantize(x)
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
