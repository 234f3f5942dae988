"""compressed-tensors checkpoints, as llm-compressor and `penstock quantize` write them.

pack-quantized   X.weight_packed int32[N, K·bits/32] along K, lowest bits first, values + 2^(bits-1);
                 X.weight_shape int64[2]; X.weight_zero_point int32[N·bits/32, G], packed along N
int-quantized    X.weight int8[N, K]; X.weight_zero_point int8
float-quantized  X.weight F8_E4M3[N, K]                     (naive-quantized: as the element type says)
mxfp8-quantized  X.weight F8_E4M3[N, K], weight_scale uint8[N, K/32] powers of two with bias 127
mxfp4-, nvfp4-pack-quantized  X.weight_packed uint8[N, K/2], two E2M1 a byte, the low nibble first;
                 nvfp4: the scale F8_E4M3[N, K/16] is divided by X.weight_global_scale

X.weight_scale is [1] (tensor), [N, 1] (channel), [N, G] (group) or one a block of rows and columns.
w = scale · (value − zero). Each config group says which modules it targets; float formats are served as
floats, exactly. Source: the compressed-tensors package's documentation of its formats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.ops import WeightTensor
from penstock.models.weights.dequantize import FP4_E2M1
from penstock.models.weights.integers import (
    Activation,
    Integers,
    IntegerTensor,
    check_bits,
    expect,
    group_of_columns,
    low_first,
    read_float32,
)
from penstock.models.weights.quantization import FLOAT_SCALES, note_once
from penstock.models.weights.source import WeightSource

_INTEGER = ("pack-quantized", "int-quantized")
_FLOAT = ("float-quantized", "mxfp8-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized")
_FORMATS = (*_INTEGER, *_FLOAT, "naive-quantized")
_F8 = ("F8_E4M3", "F8_E5M2")
# Scales of activations and of the KV cache: what they belong to is kept in higher precision.
_CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point", ".q_zero_point")


class FloatCodes:
    """A `WeightTensor` of low-precision floats with scales; `read` gives it as float32."""

    def __init__(self, name: str, shape: tuple[int, int], dtype: str, read: Callable[[], np.ndarray]) -> None:
        self.name, self.dtype, self._read = name, dtype, read
        self.shape: tuple[int, ...] = shape

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        values = self._read()
        if out is None:
            return values
        np.copyto(out, values)
        return out

    def raw(self) -> None:
        return None

    def codes(self) -> None:
        return None


class CompressedTensors:
    """`Quantization` of a compressed-tensors checkpoint."""

    def __init__(self, source: WeightSource, config: dict[str, Any]) -> None:
        self.source = source
        self.notes: list[str] = []
        self._names = set(source.names())
        self._format = config.get("format", "dense")
        self._groups: list[dict[str, Any]] = list((config.get("config_groups") or {}).values())
        sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparsity != "dense":
            raise ModelRefused(f"compressed-tensors sparsity {sparsity!r} is not supported, only dense is")
        if (config.get("transform_config") or {}).get("config_groups"):
            raise ModelRefused(
                "compressed-tensors transforms (transform_config: rotations applied while serving) are not "
                "supported; take a checkpoint without them"
            )
        kinds = []
        for group in self._groups:
            _check_format(group.get("format") or self._format)
            if weights := group.get("weights"):
                kinds.append(f"{weights.get('type', 'int')}{weights.get('num_bits', 8)}")
        self.summary = f"compressed-tensors {self._format} {' '.join(dict.fromkeys(kinds))}".rstrip()

    def find(self, name: str) -> tuple[WeightTensor, list[str]] | None:
        stem = name.removesuffix(".weight")
        if stem == name:
            return None
        packed = f"{stem}.weight_packed" in self._names
        if not packed and (name not in self._names or self.source.dtype(name) in (*FLOAT_SCALES, "F64")):
            return None
        scheme = self._scheme(stem)
        weights, form = scheme["weights"], scheme.get("format") or self._format
        _check_format(form)
        used = [f"{stem}.weight_packed" if packed else name, f"{stem}.weight_scale"]
        if used[1] not in self._names:
            raise ModelRefused(f"tensor {used[1]!r} is missing beside its weight; fetch the model again")
        if weights.get("type", "int") == "float":
            tensor: WeightTensor = self._float(name, stem, form, packed, used)
        else:
            tensor = self._integers(name, stem, scheme, packed, used)
        return tensor, used + self._activation_scales(stem)

    def spare(self, name: str) -> bool:
        if not name.endswith(_CACHE_SCALES):
            return False
        note_once(self.notes, "the checkpoint's scales for a quantized KV cache are not used")
        return True

    def _scheme(self, stem: str) -> dict[str, Any]:
        """The config group of module `stem`: by name, else by pattern, else by class."""
        kind = "Embedding" if stem.endswith("embed_tokens") else "Linear"
        for fits in (
            lambda target: target == stem,
            lambda target: target.startswith("re:") and re.match(target[3:], stem),
            lambda target: target == kind,
        ):
            for group in self._groups:
                if group.get("weights") and any(fits(target) for target in group["targets"]):
                    return group
        raise ModelRefused(
            f"{stem}: stored quantized, but no config group of quantization_config targets it; "
            "the configuration belongs to another model"
        )

    def _activation(self, scheme: dict[str, Any]) -> Activation | None:
        """What the scheme prescribes, None where it is less precise than what backends do anyway."""
        inputs = scheme.get("input_activations")
        if not inputs:
            return None
        strategy = inputs.get("strategy")
        integer = inputs.get("type", "int") == "int" and inputs.get("num_bits", 8) == 8
        if integer and inputs.get("dynamic") is True and strategy in ("token", "group"):
            return "token" if strategy == "token" else "group"
        note_once(
            self.notes,
            f"activations are prescribed as {inputs.get('type', 'int')}{inputs.get('num_bits', 8)}, "
            f"{'dynamic' if inputs.get('dynamic') else 'static'} per {strategy}; they keep the backend's "
            "own, finer precision",
        )
        return None

    def _activation_scales(self, stem: str) -> list[str]:
        parts = (f"{side}_{what}" for side in ("input", "output") for what in ("scale", "zero_point"))
        return [name for part in (*parts, "input_global_scale") if (name := f"{stem}.{part}") in self._names]

    # ------------------------------------------------------------------ integers

    def _integers(
        self, name: str, stem: str, scheme: dict[str, Any], packed: bool, used: list[str]
    ) -> IntegerTensor:
        weights = scheme["weights"]
        bits = int(weights.get("num_bits", 8))
        check_bits(bits, f"{stem}: compressed-tensors")
        shape = self._packed_shape(stem, bits, used) if packed else _matrix(self.source, name, ("I8",))
        groups, group, repeat = self._grouping(stem, shape, weights)
        zero_name = f"{stem}.weight_zero_point"
        if zero_name in self._names:
            used.append(zero_name)
        elif not weights.get("symmetric", True):
            raise ModelRefused(
                f"tensor {zero_name!r} is missing, the weight is asymmetric; fetch the model again"
            )
        has_zero, offset, packed_name = len(used) > 2 and zero_name in used, 2 ** (bits - 1), used[0]
        order = None
        if (index := f"{stem}.weight_g_idx") in self._names:
            used.append(index)
            stored = self.source.raw(index).view("<i4")
            order = None if (stored == -1).all() else group_of_columns(stored, group, index, groups)
        if order is not None:
            note_once(
                self.notes,
                "columns are quantized in the order of their activations (actorder): "
                "these weights are served as floats",
            )

        def read() -> Integers:
            raw = self.source.raw(packed_name).reshape(shape[0], -1)
            values = low_first(raw, bits)[:, : shape[1]] if packed else raw + np.uint8(offset)
            scale = repeat(read_float32(self.source, f"{stem}.weight_scale"))
            zero = np.full_like(scale, offset)
            if has_zero:
                zero += repeat(self._zero_points(zero_name, bits, shape[0]))
            return Integers(np.ascontiguousarray(values), scale, zero)

        return IntegerTensor(name, shape, bits, group, read, self._activation(scheme), order)

    def _packed_shape(self, stem: str, bits: int, used: list[str]) -> tuple[int, int]:
        shape_name = f"{stem}.weight_shape"
        if shape_name not in self._names:
            raise ModelRefused(f"tensor {shape_name!r} is missing beside its weight; fetch the model again")
        used.append(shape_name)
        kind = {"I64": "<i8", "I32": "<i4"}[self.source.dtype(shape_name)]
        stated = [int(n) for n in self.source.raw(shape_name).view(kind)]
        if len(stated) != 2:
            raise ModelRefused(f"{stem}: packed with {len(stated)} dimensions; only matrices are supported")
        rows, columns = stated
        expect(self.source, used[0], (rows, -(-columns * bits // 32)), ("I32",))
        return rows, columns

    def _grouping(
        self, stem: str, shape: tuple[int, int], weights: dict[str, Any]
    ) -> tuple[int, int, Callable[[np.ndarray], np.ndarray]]:
        """(groups in a row, columns of one, what brings stored scales to [N, groups])."""
        rows, columns = shape
        strategy = weights.get("strategy") or ("group" if (weights.get("group_size") or 0) > 0 else "tensor")
        found = self.source.shape(f"{stem}.weight_scale")
        if strategy == "tensor":
            wanted: Sequence[tuple[int, ...]] = ((), (1,), (1, 1))
            groups, group, tall = 1, columns, rows
        elif strategy == "channel":
            wanted, groups, group, tall = ((rows, 1), (rows,)), 1, columns, 1
        elif strategy in ("group", "tensor_group"):
            group = int(weights["group_size"])
            groups, tall = -(-columns // group), 1
            wanted = ((rows, groups),)
        elif strategy == "block":
            tall, group = (int(n) for n in weights["block_structure"])
            groups = -(-columns // group)
            wanted = ((-(-rows // tall), groups),)
        else:
            raise ModelRefused(f"{stem}: weight strategy {strategy!r} is not supported")
        if found not in wanted:
            raise ModelRefused(
                f"{stem}.weight_scale is {found}, a {strategy} scale of a weight {shape} is "
                f"{' or '.join(map(str, wanted))}; the file is damaged or of another format"
            )
        if columns % group:
            raise ModelRefused(f"{stem}: {columns} columns are no multiple of the group of {group}")

        def repeat(stored: np.ndarray) -> np.ndarray:
            lines = stored.reshape(-1, groups)
            return lines if len(lines) == rows else np.repeat(lines, tall, axis=0)[:rows].copy()

        return groups, group, repeat

    def _zero_points(self, name: str, bits: int, rows: int) -> np.ndarray:
        """float32 of the signed zero points: int8 as they are, or packed along the rows."""
        if self.source.dtype(name) == "I8":
            return self.source.raw(name).view("i1").reshape(self.source.shape(name)).astype(np.float32)
        words, groups = self.source.shape(name)
        raw = self.source.raw(name).reshape(words, groups, 4).transpose(1, 0, 2).reshape(groups, -1)
        unsigned = low_first(np.ascontiguousarray(raw), bits)[:, :rows]
        return unsigned.T.astype(np.float32, order="C") - np.float32(2 ** (bits - 1))

    # ------------------------------------------------------------------ floats

    def _float(self, name: str, stem: str, form: str, packed: bool, used: list[str]) -> FloatCodes:
        note_once(self.notes, f"{form} weights are served as floats")
        weights = self._scheme(stem)["weights"]
        if not packed:
            shape = _matrix(self.source, name, _F8)
            _, group, repeat = self._grouping(stem, shape, weights)
            return FloatCodes(
                name, shape, self.source.dtype(name), lambda: self._scaled(name, stem, shape, group, repeat)
            )
        if form not in ("mxfp4-pack-quantized", "nvfp4-pack-quantized"):
            raise ModelRefused(f"{stem}: floats packed as {form!r} are not supported")
        rows, half = _matrix(self.source, used[0], ("U8",))
        shape = (rows, 2 * half)
        if form.startswith("nvfp4"):
            used.append(f"{stem}.weight_global_scale")
            expect(self.source, used[-1], (1,), FLOAT_SCALES)
        _, group, repeat = self._grouping(stem, shape, weights)
        dtype = "NVFP4" if form.startswith("nvfp4") else "MXFP4"
        return FloatCodes(name, shape, dtype, lambda: self._scaled(used[0], stem, shape, group, repeat))

    def _scaled(
        self,
        stored: str,
        stem: str,
        shape: tuple[int, int],
        group: int,
        repeat: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        scale_name = f"{stem}.weight_scale"
        scale = read_float32(self.source, scale_name)
        if self.source.dtype(scale_name) == "U8":  # E8M0
            scale = np.ldexp(np.float32(1), scale.astype(np.int32) - 127)
        if (whole := f"{stem}.weight_global_scale") in self._names:
            scale = scale / read_float32(self.source, whole)
        if self.source.dtype(stored) == "U8":
            codes = low_first(self.source.raw(stored).reshape(shape[0], -1), 4)
            values = FP4_E2M1[codes]
        else:
            values = np.array(read_float32(self.source, stored))
        grouped = values.reshape(shape[0], -1, group)
        grouped *= repeat(scale)[..., None]
        return values


def _check_format(form: str) -> None:
    if form not in _FORMATS and form not in ("dense", "mixed-precision"):
        raise ModelRefused(
            f"compressed-tensors format {form!r} is not supported; supported are {', '.join(_FORMATS)}"
        )


def _matrix(source: WeightSource, name: str, dtypes: tuple[str, ...]) -> tuple[int, int]:
    """The shape of a stored matrix of one of `dtypes` (ModelRefused otherwise)."""
    shape, dtype = source.shape(name), source.dtype(name)
    if len(shape) != 2 or dtype not in dtypes:
        raise ModelRefused(
            f"tensor {name!r} is {dtype} {shape}; its scheme wants a matrix of {' or '.join(dtypes)}"
        )
    return shape[0], shape[1]
