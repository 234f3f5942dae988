"""What becomes of every tensor of a model when it is quantized: names, which are rounded, which copied.

Tensors get the names of config.json's architecture. A safetensors source keeps its own names, and what
is not rounded or smoothed keeps its bytes; from GGUF, names, row order and configuration are translated
back, for the architectures where that is only a change of names and of the order of Q and K rows.

Invariants: a plan reads headers only; every output name occurs once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.kernels.ops import WeightTensor
from penstock.models.arch import identify
from penstock.models.arch.base import Architecture
from penstock.models.spec import DecoderSpec, LayerSpec, part_rows
from penstock.models.tensors import Stacked, Stored, TensorNames, Tensors, Viewed, resolve
from penstock.models.weights.dequantize import dequantize
from penstock.models.weights.source import WeightSource

ROUNDED = (
    "qkv", "out", "gate_up", "down", "experts_gate_up", "experts_down", "shared_gate_up", "shared_down",
)  # fmt: skip
FROM_GGUF = ("llama", "qwen2", "qwen3")
# Matrices that read what a norm gain scales: all of them can take over a column's scale from it.
READERS = {
    "attn_norm": ("qkv",),
    "ffn_norm": ("gate_up", "router", "experts_gate_up", "shared_gate_up", "shared_gate"),
}


class Item(Struct, frozen=True):
    """One tensor of the output.

    layer, canonical: what it is in the spec (layer -1: outside the layers); rounded: a weight that
    becomes integers; dtype: of what is stored otherwise; offset: stored norm gain + offset = gain.
    """

    name: str
    tensor: WeightTensor
    layer: int
    canonical: str
    rounded: bool
    dtype: str
    offset: float = 0.0


class QuantizePlan(Struct, frozen=True):
    """copied: tensors of the file that the model does not read (stored bytes are taken over);
    config: config.json of the output, without quantization_config."""

    spec: DecoderSpec
    tensors: Tensors
    items: list[Item]
    copied: list[str]
    config: dict[str, Any]


class Slice:
    """One matrix of a stack (E, N, K), rows [first, last) of it."""

    def __init__(self, base: WeightTensor, index: int, first: int, last: int) -> None:
        self._base, self._index, self._rows = base, index, slice(first, last)
        self.shape: tuple[int, ...] = (last - first, base.shape[-1])
        self.dtype = base.dtype

    def raw(self) -> np.ndarray | None:
        stored = self._base.raw()
        return None if stored is None else stored[self._index, self._rows]

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        raw = self.raw()
        if raw is None:
            raise ModelRefused(f"experts stored as {self.dtype} can't be quantized; take plain float weights")
        return dequantize(np.ascontiguousarray(raw).reshape(-1), self.dtype, self.shape, out)

    def codes(self) -> None:
        return None


class HalfRope:
    """Q or K with the rows of each head back from interleaved pairs (2i, 2i + 1) to halves (i, i + D/2)."""

    def __init__(self, base: WeightTensor, heads: int) -> None:
        self._base, self._heads = base, heads
        self.shape, self.dtype = base.shape, base.dtype

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        stored = self._base.float32()
        pairs = stored.reshape(self._heads, -1, 2, *stored.shape[1:])
        rows = np.ascontiguousarray(np.moveaxis(pairs, 2, 1)).reshape(stored.shape)
        if out is None:
            return rows
        np.copyto(out, rows)
        return out

    def raw(self) -> None:
        return None

    def codes(self) -> None:
        return None


def make_plan(source: WeightSource) -> QuantizePlan:
    """The plan for an opened source. ModelRefused for what can't be quantized, or not be written."""
    architecture, config, names = identify(source)
    spec = architecture.spec(config)
    tensors = resolve(source, names, spec)
    if tensors.quantization:
        raise ModelRefused(
            f"already quantized ({tensors.quantization}); quantize the float model it came from"
        )
    if source.kind == "gguf":
        _check_gguf(architecture, config.values)
        items = list(
            _renamed(spec, tensors, architecture.hf_names, config.get("rope_style") == "interleaved")
        )
        return QuantizePlan(spec, tensors, items, [], _config_of_gguf(architecture, spec, config.values))
    items = list(_as_stored(spec, tensors, names))
    written = {item.name for item in items}
    taken = {leaf.name for leaf in _leaves(tensors)}
    copied = [name for name in source.names() if name not in taken and name not in written]
    return QuantizePlan(spec, tensors, items, copied, dict(source.config))


def _places(spec: DecoderSpec, tensors: Tensors) -> Iterator[tuple[int, str, list[WeightTensor]]]:
    for layer, group in ((-1, tensors.model), *enumerate(tensors.layers)):
        for canonical, parts in group.items():
            yield layer, canonical, parts


def _leaves(tensors: Tensors) -> Iterator[Stored]:
    """Every stored tensor that the model reads."""
    waiting: list[Any] = list(tensors.parts())
    while waiting:
        tensor = waiting.pop()
        match tensor:
            case Stored():
                yield tensor
            case Stacked():
                waiting += tensor.parts
            case Viewed():
                waiting.append(tensor.base)


def _as_stored(spec: DecoderSpec, tensors: Tensors, names: TensorNames) -> Iterator[Item]:
    """Items under the names of the safetensors source; stacked experts get names of their own each."""
    for layer, canonical, parts in _places(spec, tensors):
        rounded = layer >= 0 and canonical in ROUNDED
        for part in parts:
            if isinstance(part, Stacked):
                for leaf in part.parts:
                    assert isinstance(leaf, Stored)
                    yield Item(leaf.name, leaf, layer, canonical, rounded, leaf.dtype)
            elif isinstance(part, Stored) and not (rounded and len(part.shape) == 3):
                yield Item(part.name, part, layer, canonical, rounded, part.dtype)
            elif isinstance(part, Stored):
                yield from _experts(names, spec.layers[layer], layer, canonical, part)
            elif isinstance(part, Viewed) and isinstance(part.base, Stored) and len(part.shape) == 1:
                # The one view of a vector: Gemma's 1 + w.
                yield Item(part.base.name, part, layer, canonical, False, part.dtype, offset=1.0)
            else:
                raise ModelRefused(
                    f"{canonical} of layer {layer} is stored as {part.dtype} in an order that "
                    "compressed-tensors has no form for; this architecture can't be quantized"
                )


def _experts(
    names: TensorNames, layer: LayerSpec, index: int, canonical: str, part: Stored
) -> Iterator[Item]:
    """One matrix per expert, under the alternative of the name table that has `{e}`."""
    each = next((choice.split() for choice in names.layer[canonical] if "{e}" in choice), None)
    if each is None:
        raise ModelRefused(f"{part.name}: stacked experts have no names of their own in this architecture")
    prefix = part.name[: part.name.index("experts.")]
    ends = np.cumsum(part_rows(layer, canonical)) if len(each) > 1 else np.array([part.shape[1]])
    for expert in range(part.shape[0]):
        for text, first, last in zip(each, [0, *ends[:-1]], ends, strict=True):
            name = prefix + text[text.index("experts.") :].replace("{e}", str(expert))
            yield Item(name, Slice(part, expert, int(first), int(last)), index, canonical, True, part.dtype)


def _renamed(spec: DecoderSpec, tensors: Tensors, names: TensorNames, interleaved: bool) -> Iterator[Item]:
    """Items of a GGUF source under the architecture's names: matrices as BF16, vectors as F32."""
    for layer, canonical, parts in _places(spec, tensors):
        table = names.model if layer < 0 else names.layer
        texts = next(c.split() for c in table[canonical] if len(c.split()) == len(parts))
        prefix = "" if layer < 0 else names.layer_prefix.replace("{i}", str(layer))
        for number, (text, part) in enumerate(zip(texts, parts, strict=True)):
            tensor = part
            if interleaved and canonical in ("qkv", "qkv_bias") and number < 2:
                shape = spec.layers[layer].attention.shape
                tensor = HalfRope(part, shape.heads if number == 0 else shape.kv_heads)
            dtype = "BF16" if len(part.shape) == 2 else "F32"
            yield Item(prefix + text, tensor, layer, canonical, layer >= 0 and canonical in ROUNDED, dtype)


def _check_gguf(architecture: Architecture, config: dict[str, Any]) -> None:
    if architecture.name not in FROM_GGUF:
        raise ModelRefused(
            f"quantizing {architecture.name!r} from GGUF is not supported, only {', '.join(FROM_GGUF)} are; "
            "give the safetensors folder of this model"
        )
    kind = config["rope_parameters"].get("rope_type")
    if kind not in ("default", "linear", "yarn"):
        raise ModelRefused(
            f"rope scaling {kind!r} of a GGUF file can't be written to config.json; "
            "give the safetensors folder of this model"
        )


def _config_of_gguf(architecture: Architecture, spec: DecoderSpec, config: dict[str, Any]) -> dict[str, Any]:
    """config.json for a GGUF source: the translated metadata, what it leaves to defaults written out."""
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "vocab_size",
        "tie_word_embeddings", "attention_bias", "mlp_bias", "sliding_window",
    )  # fmt: skip
    kept = {key: config[key] for key in keys if config.get(key) is not None}
    rope = {key: value for key, value in config["rope_parameters"].items() if value is not None}
    classes = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    return {
        "architectures": [classes[architecture.name]],
        "model_type": architecture.model_types[0],
        **kept,
        "head_dim": spec.layers[0].attention.shape.head_dim,
        "hidden_act": "silu",
        "rope_parameters": rope,
        "dtype": "bfloat16",
    }
