"""From the tensors of a file to the canonical tensors of a spec: views and name tables.

A table maps a canonical name (`spec.layer_tensors`) to alternatives, of which a file has one; an
alternative is a blank-separated list of parts that are joined along the rows; a part is a tensor
name with `{e}` for an expert, followed by `:view`s:

    plus_one   w + 1: Gemma keeps the distance of its norm gains from 1
    transpose  (…, in, out) -> (…, out, in)
    even, odd  every other row; even_last, odd_last: every other element of the last axis
    row        (n,) -> (1, n)
    mxfp4      NAME_blocks and NAME_scales of a GPT-OSS checkpoint

A weight of a quantized checkpoint goes by its plain name here ("….weight"); `weights.quantization`
finds what it is stored as.

Invariants: resolving reads headers only; every tensor of the file is used, ignorable by pattern, or
named in a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.kernels.codes import QuantizedCodes
from penstock.kernels.ops import WeightTensor
from penstock.models.spec import DecoderSpec, Shape, layer_tensors, model_tensors, part_rows
from penstock.models.weights.dequantize import FP4_E2M1
from penstock.models.weights.quantization import Quantization, quantization_of
from penstock.models.weights.source import WeightSource

Table = Mapping[str, tuple[str, ...]]


class TensorNames(Struct, frozen=True):
    """The tables of one file format. `{i}` in `layer_prefix` is the layer.

    roots: what may stand where the names say "model.", the first that fits; ignored: patterns of
    tensors that may be left over (buffers, other modalities).
    """

    model: dict[str, tuple[str, ...]]
    layer: dict[str, tuple[str, ...]]
    layer_prefix: str
    roots: tuple[str, ...] = ("model.",)
    ignored: tuple[str, ...] = ()


class Stored:
    """A tensor as the file has it."""

    def __init__(self, source: WeightSource, name: str) -> None:
        self.source, self.name = source, name
        self.shape, self.dtype = source.shape(name), source.dtype(name)

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        return self.source.float32(self.name, out)

    def raw(self) -> np.ndarray | None:
        return self.source.raw(self.name).reshape(*self.shape[:-1], -1)

    def codes(self) -> None:
        return None


class Viewed:
    """A tensor seen through `change`, a numpy function; `raw_change` does the same to stored rows."""

    def __init__(
        self,
        base: WeightTensor,
        shape: Shape,
        change: Callable[[np.ndarray], np.ndarray],
        raw_change: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.base, self.shape, self.dtype = base, shape, base.dtype
        self._change, self._raw_change = change, raw_change

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        changed = self._change(self.base.float32())
        if out is None:
            return changed
        out[...] = changed
        return out

    def raw(self) -> np.ndarray | None:
        stored = self.base.raw() if self._raw_change else None
        return None if stored is None or self._raw_change is None else self._raw_change(stored)

    def codes(self) -> None:
        return None


class Stacked:
    """E tensors of one shape as (E, …)."""

    def __init__(self, parts: list[WeightTensor]) -> None:
        self.parts = parts
        self.shape, self.dtype = (len(parts), *parts[0].shape), parts[0].dtype

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty(self.shape, np.float32) if out is None else out
        for part, target in zip(self.parts, out, strict=True):
            part.float32(out=target)
        return out

    def raw(self) -> np.ndarray | None:
        rows = [part.raw() for part in self.parts]
        return None if any(row is None for row in rows) else np.stack(rows)  # type: ignore[arg-type]

    def codes(self) -> QuantizedCodes | None:
        """Of all parts, if they are quantized alike."""
        found = [codes for part in self.parts if (codes := part.codes()) is not None]
        kinds = {(codes.bits, codes.group, codes.activation) for codes in found}
        if len(found) != len(self.parts) or len(kinds) != 1:
            return None
        arrays = (np.stack([getattr(c, name) for c in found]) for name in ("values", "scale", "offset"))
        values, scale, offset = arrays
        return QuantizedCodes(values, found[0].bits, found[0].group, scale, offset, found[0].activation)


class Mxfp4:
    """MXFP4 as GPT-OSS checkpoints keep it (OCP Microscaling Formats 1.0).

    blocks uint8[…, K/32, 16], two values a byte, the low nibble first; scales uint8[…, K/32], powers of
    two with bias 127.
    """

    dtype = "MXFP4"

    def __init__(self, source: WeightSource, name: str) -> None:
        self.source, self.names = source, (name + "_blocks", name + "_scales")
        *self._outer, groups, width = source.shape(self.names[0])
        self.shape = (*self._outer, groups * width * 2)

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty(self.shape, np.float32) if out is None else out
        blocks = self.source.raw(self.names[0]).reshape(*self._outer, -1, 16)
        scales = self.source.raw(self.names[1]).reshape(*self._outer, -1, 1)
        for block, scale, target in zip(blocks, scales, out, strict=True):
            grouped = target.reshape(*block.shape[:-1], 32)
            exponent = scale.astype(np.int32) - 127
            grouped[..., 0::2] = np.ldexp(FP4_E2M1[block & 15], exponent)
            grouped[..., 1::2] = np.ldexp(FP4_E2M1[block >> 4], exponent)
        return out

    def raw(self) -> np.ndarray | None:
        """Blocks as GGUF has them: the scale, then value i in the low half of byte i, i + 16 in the high."""
        blocks = self.source.raw(self.names[0]).reshape(*self._outer, -1, 16)
        first, second = blocks[..., :8], blocks[..., 8:]
        out = np.empty((*blocks.shape[:-1], 17), np.uint8)
        out[..., 0] = self.source.raw(self.names[1]).reshape(blocks.shape[:-1])
        out[..., 1::2] = (first & 15) | (second << 4)
        out[..., 2::2] = (first >> 4) | (second & 0xF0)
        return out.reshape(*self._outer, -1)

    def codes(self) -> None:
        return None


def apply_view(tensor: WeightTensor, view: str) -> WeightTensor:
    shape = tensor.shape
    if view == "plus_one":
        return Viewed(tensor, shape, lambda a: a + np.float32(1))
    if view == "transpose":
        return Viewed(tensor, (*shape[:-2], shape[-1], shape[-2]), lambda a: a.swapaxes(-1, -2))
    if view == "row":
        return Viewed(tensor, (1, shape[-1]), lambda a: a.reshape(1, -1), lambda a: a.reshape(1, -1))
    first = slice(view.startswith("odd"), None, 2)
    if view in ("even", "odd"):
        halved = (*shape[:-2], shape[-2] // 2, shape[-1])
        return Viewed(tensor, halved, lambda a: a[..., first, :], lambda a: a[..., first, :])
    if view in ("even_last", "odd_last"):
        return Viewed(tensor, (*shape[:-1], shape[-1] // 2), lambda a: a[..., first])
    raise ValueError(f"no view named {view!r}")


class Tensors(Struct, frozen=True):
    """Canonical name -> parts, for the model and for each layer.

    quantization: "" or what the checkpoint is quantized as; notes: what is done otherwise than it
    prescribes."""

    model: dict[str, list[WeightTensor]]
    layers: list[dict[str, list[WeightTensor]]]
    quantization: str = ""
    notes: tuple[str, ...] = ()

    def parts(self) -> Iterator[WeightTensor]:
        for group in (self.model, *self.layers):
            for parts in group.values():
                yield from parts


class _Resolver:
    def __init__(self, source: WeightSource, names: TensorNames) -> None:
        self.source, self.names = source, names
        self.present = set(source.names())
        self.quantization: Quantization | None = quantization_of(source)
        self.used: set[str] = set()
        embed = names.model["embed"][0]
        self.root = next(
            (r for r in names.roots if embed.replace("model.", r, 1) in self.present), names.roots[0]
        )

    def full(self, prefix: str, part: str) -> str:
        name = prefix + part
        return self.root + name.removeprefix("model.") if name.startswith("model.") else name

    def part(self, prefix: str, text: str, experts: int) -> WeightTensor:
        name, *views = self.full(prefix, text).split(":")
        tensor: WeightTensor
        if "{e}" in name:
            each = [name.replace("{e}", str(e)) for e in range(experts)]
            tensor = Stacked([self.stored(n) for n in each])
        elif views[:1] == ["mxfp4"]:
            for suffix in ("_blocks", "_scales"):
                self.stored(name + suffix)
            tensor, views = Mxfp4(self.source, name), views[1:]
        else:
            tensor = self.stored(name)
        for view in views:
            tensor = apply_view(tensor, view)
        return tensor

    def stored(self, name: str) -> WeightTensor:
        if self.quantization is not None and (found := self.quantization.find(name)) is not None:
            self.used.update(found[1])
            return found[0]
        if name not in self.present:
            raise ModelRefused(
                f"tensor {name!r} is missing; the model is incomplete or of another architecture"
            )
        self.used.add(name)
        return Stored(self.source, name)

    def resolve(
        self, table: Table, prefix: str, canonical: str, shape: Shape, rows: tuple[int, ...], experts: int
    ) -> list[WeightTensor]:
        choices = [choice.split() for choice in table[canonical]]
        # A part of MXFP4 exists as _blocks; a plain name must not be mistaken for it.
        chosen = next((c for c in choices if self._fits(prefix, c[0])), choices[0])
        parts = [self.part(prefix, text, experts) for text in chosen]
        axis = len(shape) - 1 if canonical.endswith("_bias") or len(shape) == 1 else len(shape) - 2
        for number, (part, text) in enumerate(zip(parts, chosen, strict=True)):
            wanted = list(shape)
            if len(parts) > 1:
                wanted[axis] = rows[number]
            if part.shape != tuple(wanted):
                name = self.full(prefix, text).split(":")[0]
                raise ModelRefused(
                    f"tensor {name!r} gives shape {part.shape}, the configuration says {tuple(wanted)}"
                )
        return parts

    def _fits(self, prefix: str, text: str) -> bool:
        name, *views = self.full(prefix, text).replace("{e}", "0").split(":")
        if (name + "_blocks" if views[:1] == ["mxfp4"] else name) in self.present:
            return True
        return self.quantization is not None and self.quantization.find(name) is not None

    def leftover(self) -> list[str]:
        spare = sorted(self.present - self.used)
        return [
            name
            for name in spare
            if not any(fnmatchcase(name, pattern) for pattern in self.names.ignored)
            and not (self.quantization is not None and self.quantization.spare(name))
        ]


class LayerShapes(Struct, frozen=True):
    """Canonical names and shapes of one layer. rows: of parts of joined tensors; experts: their number."""

    shapes: dict[str, Shape]
    rows: dict[str, tuple[int, ...]]
    experts: int = 0


def resolve(source: WeightSource, names: TensorNames, spec: DecoderSpec) -> Tensors:
    """`resolve_shapes` of every canonical tensor of `spec`."""
    layers = []
    for layer in spec.layers:
        shapes = layer_tensors(spec, layer)
        rows = {name: part_rows(layer, name) for name in shapes}
        layers.append(LayerShapes(shapes, rows, getattr(layer.ffn, "num", 0)))
    return resolve_shapes(source, names, model_tensors(spec), layers)


def resolve_shapes(
    source: WeightSource, names: TensorNames, outside: Mapping[str, Shape], layers: Sequence[LayerShapes]
) -> Tensors:
    """Find every canonical tensor in `source`. ModelRefused names a tensor that is missing, has another
    shape than the configuration says, or has no place in this architecture."""
    resolver = _Resolver(source, names)
    model = {name: resolver.resolve(names.model, "", name, shape, (), 0) for name, shape in outside.items()}
    found = []
    for index, layer in enumerate(layers):
        prefix = names.layer_prefix.replace("{i}", str(index))
        found.append(
            {
                name: resolver.resolve(
                    names.layer, prefix, name, shape, layer.rows.get(name, ()), layer.experts
                )
                for name, shape in layer.shapes.items()
            }
        )
    if spare := resolver.leftover():
        raise ModelRefused(
            f"tensor {spare[0]!r} has no place in this architecture ({len(spare)} such tensors); "
            "it is a feature that Penstock does not serve, or a file of another model"
        )
    quantization = resolver.quantization
    if quantization is None:
        return Tensors(model, found)
    return Tensors(model, found, quantization.summary, tuple(quantization.notes))


def with_names(base: TensorNames, **changes: Any) -> TensorNames:
    """`base` with entries of its `model` and `layer` tables replaced and other fields set."""
    model = base.model | changes.pop("model", {})
    layer = base.layer | changes.pop("layer", {})
    fields = {"layer_prefix": base.layer_prefix, "roots": base.roots, "ignored": base.ignored} | changes
    return TensorNames(model=model, layer=layer, **fields)
