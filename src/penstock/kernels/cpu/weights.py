"""Weights in panels of 16 output features (native/core/types.h).

`precision` says how matrices are held:

    file     as the file has them: GGUF blocks and checkpoint integers keep their exact values in a form
             of the same width; float matrices become bfloat16
    float32  every weight dequantized, nothing rounded
    bf16     every weight a bfloat16
    int8     rounded to 8 bits, symmetric, one scale per output feature
    int4     rounded to 4 bits, groups of 32 with scale and minimum; the vocabulary's matrices to int8

Invariants: a type without a form of its own is kept as float32, exactly, and the log says so once a
type; a router's weights are never rounded further than the file has them, since its results decide.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.backend import Role, WeightsForm
from penstock.kernels.codes import QuantizedCodes
from penstock.kernels.cpu import _native
from penstock.kernels.cpu.memory import Regions
from penstock.kernels.ops import WeightTensor

F32, BF16, Q4, Q8, Q5, Q4_SUPER, Q5_SUPER, Q6, Q4_GROUP, Q8_GROUP, IQ4, FP4 = range(12)
# GGUF type -> (Stored of native/core/pack.h, form)
STORED = {
    "Q4_0": (0, Q4),
    "Q4_1": (1, Q4),
    "Q8_0": (2, Q8),
    "Q5_0": (3, Q5),
    "Q5_1": (4, Q5),
    "Q3_K": (5, Q6),
    "Q4_K": (6, Q4_SUPER),
    "Q5_K": (7, Q5_SUPER),
    "Q6_K": (8, Q6),
    "IQ4_NL": (9, IQ4),
    "IQ4_XS": (10, IQ4),
    "MXFP4": (11, FP4),
}
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGER_FORMS = {4: Q4_GROUP, 8: Q8_GROUP}
GROUP = 32  # inputs that share an activation scale

log = logging.getLogger("penstock.kernels")


class Form(NamedTuple):
    """A format of native/core/types.h; `group` is 0 for those with groups of their own.

    rounded: made from floats, whatever the file holds; else stored rows and codes keep their values."""

    format: int
    group: int = 0
    rounded: bool = True


class JoinedWeight(NamedTuple):
    """A matrix whose rows are held in several forms: the parts in order, each a PackedWeight."""

    parts: tuple[Any, ...]


class CpuWeights:
    """The weights' side of `penstock.kernels.backend.Backend`. Thread-safe."""

    def __init__(self, precision: WeightsForm = "file") -> None:
        self.precision = precision
        self.regions = Regions()
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def weight_bytes(self, shape: tuple[int, ...], dtype: str, role: Role = "layer") -> int:
        """Bytes in memory of a tensor of `shape` stored as `dtype`."""
        if len(shape) == 1:
            return 4 * shape[0]
        *outer, n, k = shape
        return _packed_bytes(self._form(dtype, k, role), n, k, prod(outer), False)

    def vector(self, parts: Sequence[WeightTensor]) -> np.ndarray:
        """float32, joined along the last axis."""
        return np.concatenate([part.float32() for part in parts], axis=-1, dtype=np.float32)

    def prepare(self, parts: Sequence[WeightTensor], role: Role = "layer") -> Any:
        """PackedWeight, or JoinedWeight where the parts (N, K) are of different forms."""
        forms = [self._form(part.dtype, part.shape[-1], role) for part in parts]
        runs = [
            (form, [part for part, _ in run])
            for form, run in groupby(zip(parts, forms, strict=True), key=lambda pair: pair[1])
        ]
        if len(runs) > 1 and len(parts[0].shape) > 2:
            return self._pack(parts, self._common(parts), gated=False)
        packed = tuple(self._pack(run, form, gated=False) for form, run in runs)
        return packed[0] if len(packed) == 1 else JoinedWeight(packed)

    def prepare_gated(self, parts: Sequence[WeightTensor]) -> Any:
        """PackedWeight of gate and up, whose panels alternate: both are of one form."""
        forms = {self._form(part.dtype, part.shape[-1], "layer") for part in parts}
        return self._pack(parts, forms.pop() if len(forms) == 1 else self._common(parts), gated=True)

    def _form(self, dtype: str, k: int, role: Role) -> Form:
        if self.precision == "float32":
            return Form(F32)
        if role == "router":
            return Form(F32) if dtype in ("F64", "F32", "F16") else self._file_form(dtype, k)
        if self.precision == "bf16":
            return Form(BF16)
        if self.precision == "int8" or (self.precision == "int4" and role == "vocabulary"):
            return Form(Q8_GROUP, k)
        return Form(Q4) if self.precision == "int4" else self._file_form(dtype, k)

    def _file_form(self, dtype: str, k: int) -> Form:
        if dtype in STORED:
            return Form(STORED[dtype][1], rounded=False)
        if dtype in FLOATS:
            if dtype != "BF16":
                self._say(logging.INFO, dtype, "is rounded to bfloat16; --weights float32 keeps it")
            return Form(BF16)
        if dtype.startswith("INT"):
            bits, group = (int(number) for number in dtype.removeprefix("INT").split("/"))
            if held := _held_group(group, k):
                return Form(INTEGER_FORMS[bits], held, rounded=False)
        self._say(logging.WARNING, dtype, "has no native form: kept as float32, exactly")
        return Form(F32)

    def _common(self, parts: Sequence[WeightTensor]) -> Form:
        """One form for parts that can't be held apart."""
        kinds = sorted({part.dtype for part in parts})
        if set(kinds) <= set(FLOATS):
            return Form(BF16)
        self._say(logging.WARNING, " and ".join(kinds), "in one matrix: it is kept as float32, exactly")
        return Form(F32)

    def _say(self, level: int, kind: str, what: str) -> None:
        with self._lock:
            if kind in self._said:
                return
            self._said.add(kind)
        log.log(level, "%s %s", kind, what)

    def _pack(self, parts: Sequence[WeightTensor], form: Form, gated: bool) -> Any:
        contents: list[Any] = [None] * len(parts)
        if not form.rounded:
            contents = [part.raw() if part.dtype in STORED else part.codes() for part in parts]
            missing = [part.dtype for part, content in zip(parts, contents, strict=True) if content is None]
            if missing:
                self._say(logging.WARNING, missing[0], "in another order: kept as float32, exactly")
                form, contents = Form(F32), [None] * len(parts)
        *outer, _, k = parts[0].shape
        experts, n = prod(outer), sum(part.shape[-2] for part in parts)
        memory = self.regions.take(_packed_bytes(form, n, k, experts, gated))
        packed = _native.PackedWeight(form.format, n, k, experts, gated, memory, True, form.group)
        packed.per_token = any(getattr(content, "activation", None) == "token" for content in contents)
        first = 0
        for part, content in zip(parts, contents, strict=True):
            try:
                _fill(packed, part, content, form, first, experts)
            except OverflowError as error:
                raise ModelRefused(f"a {part.dtype} matrix {part.shape}: {error}") from None
            first += part.shape[-2]
        return packed


def _fill(packed: Any, part: WeightTensor, content: Any, form: Form, first: int, experts: int) -> None:
    """`part` as rows first … of `packed`: from its stored rows or codes (`content`), else from its floats."""
    rows, k = part.shape[-2:]
    if content is None:
        floats = part.float32().reshape(experts, rows, k)
        put = packed.floats if form.format in (F32, BF16) else packed.quantize
        for expert in range(experts):
            put(np.ascontiguousarray(floats[expert]), first, expert)
    elif isinstance(content, QuantizedCodes):
        values, scale, offset = (array.reshape(experts, rows, -1) for array in _grouped(content, form.group))
        for expert in range(experts):
            packed.integers(values[expert], scale[expert], offset[expert], first, expert)
    else:
        raw = np.asarray(content).reshape(experts, rows, -1)
        for expert in range(experts):
            packed.stored(STORED[part.dtype][0], np.ascontiguousarray(raw[expert]), first, expert)


def _packed_bytes(form: Form, n: int, k: int, experts: int, gated: bool) -> int:
    return int(_native.packed_bytes(form.format, n, k, experts, gated, form.group))


def _held_group(group: int, k: int) -> int:
    """The group in which integers with scales per `group` of k inputs are held; 0: none fits."""
    if group in (k, GROUP) or group % 64 == 0:
        return group
    return GROUP if group % GROUP == 0 else 0


def _grouped(codes: QuantizedCodes, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, scales and offsets for groups of `group`, which divides the codes' own."""
    scale, offset = np.asarray(codes.scale, np.float32), np.asarray(codes.offset, np.float32)
    if codes.group != group:
        repeats = codes.group // group
        scale, offset = np.repeat(scale, repeats, axis=-1), np.repeat(offset, repeats, axis=-1)
    return tuple(np.ascontiguousarray(array) for array in (codes.values, scale, offset))  # type: ignore[return-value]
