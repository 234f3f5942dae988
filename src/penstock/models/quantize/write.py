"""From a plan to a compressed-tensors folder: weights, config.json, tokenizer files.

int8: int8 weights with a scale per row and dynamic int8 activations (W8A8), format "int-quantized".
int4: 4-bit weights in groups of columns, activations as they are (W4A16), format "pack-quantized".
Embedding, head, router and gate of a shared expert stay as they are. Source of the formats and of the
configuration's keys: the compressed-tensors package's documentation.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.formats.safetensors import ITEM_BYTES, SINGLE_NAME, SafetensorsWriter
from penstock.models.quantize.plan import Item, QuantizePlan
from penstock.models.quantize.round import bfloat16_bits, pack_rows, round_groups, round_rows
from penstock.models.quantize.smooth import Place, smoothed
from penstock.models.weights.source import WeightSource

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip

Layout = dict[str, tuple[str, tuple[int, ...]]]


class Recipe(Struct, frozen=True, kw_only=True):
    """weights: int8 or int4; group: columns that share an int4 scale; symmetric: int4 without zero points;
    activations: how int8 activations are scaled, per token or per group of 32 columns."""

    weights: Literal["int8", "int4"]
    group: int = 32
    symmetric: bool = False
    activations: Literal["group", "token"] = "group"


def write_weights(
    plan: QuantizePlan,
    source: WeightSource,
    recipe: Recipe,
    scales: Mapping[Place, np.ndarray],
    folder: Path,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """model.safetensors and config.json into `folder`. `scales` are those of smoothing ({}: none);
    `on_done(done, total)`, in bytes of
    the file, is called as tensors are written.

    ModelRefused, before anything is written, if a weight's columns are no multiple of the group.
    """
    layout: Layout = {name: (source.dtype(name), source.shape(name)) for name in plan.copied}
    for item in plan.items:
        layout |= _layout(item, recipe)
    unrounded = sorted(
        item.name.removesuffix(".weight")
        for item in plan.items
        if not item.rounded and len(item.tensor.shape) == 2 and item.canonical != "embed"
    )
    config = plan.config | {"quantization_config": quantization_config(recipe, unrounded)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    done, total = 0, sum(ITEM_BYTES[dtype] * prod(shape) for dtype, shape in layout.values())
    with SafetensorsWriter(folder / SINGLE_NAME, layout, {"format": "pt"}) as writer:
        for name in plan.copied:
            writer.write(name, source.raw(name))
            done += source.nbytes(name)
        for item in plan.items:
            for name, data in _data(item, recipe, scales):
                writer.write(name, data)
                done += data.nbytes
            on_done(done, total)


def _layout(item: Item, recipe: Recipe) -> Layout:
    if not item.rounded:
        return {item.name: (item.dtype, _stored_shape(item))}
    rows, columns = item.tensor.shape
    stem = item.name.removesuffix(".weight")
    if recipe.weights == "int8":
        return {item.name: ("I8", (rows, columns)), f"{stem}.weight_scale": ("F32", (rows, 1))}
    if columns % recipe.group:
        fitting = [str(group) for group in (32, 64, 128) if columns % group == 0]
        raise ModelRefused(
            f"{item.name}: {columns} columns are no multiple of the group of {recipe.group}; "
            f"use --group {' or '.join(fitting)}" if fitting else
            f"{item.name}: {columns} columns are no multiple of 32; int4 needs groups; use --weights int8"
        )  # fmt: skip
    groups = columns // recipe.group
    layout: Layout = {
        f"{stem}.weight_packed": ("I32", (rows, -(-columns // 8))),
        f"{stem}.weight_scale": ("BF16", (rows, groups)),
        f"{stem}.weight_shape": ("I64", (2,)),
    }
    if not recipe.symmetric:
        layout[f"{stem}.weight_zero_point"] = ("I32", (-(-rows // 8), groups))
    return layout


def _stored_shape(item: Item) -> tuple[int, ...]:
    """A view of one row may show a stored vector; it is written as the file has it."""
    stored = getattr(item.tensor, "base", item.tensor)
    return tuple(stored.shape)


def _data(item: Item, recipe: Recipe, scales: Mapping[Place, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    changed = smoothed(item, scales)
    if not item.rounded:
        yield item.name, _stored(item, changed)
        return
    weight = item.tensor.float32() if changed is None else changed
    if not np.isfinite(weight).all():
        raise ModelRefused(f"{item.name}: holds infinite values or NaN; the model is damaged")
    stem = item.name.removesuffix(".weight")
    if recipe.weights == "int8":
        values, scale = round_rows(weight)
        yield item.name, values
        yield f"{stem}.weight_scale", scale
        return
    groups = round_groups(weight, recipe.group, symmetric=recipe.symmetric)
    yield f"{stem}.weight_packed", pack_rows(groups.values, 4)
    yield f"{stem}.weight_scale", bfloat16_bits(groups.scale)
    yield f"{stem}.weight_shape", np.array(weight.shape, np.int64)
    if not recipe.symmetric:
        # A zero point is stored as a value is: signed, plus 8, packed, here along the rows.
        yield f"{stem}.weight_zero_point", pack_rows(np.ascontiguousarray(groups.zero.T), 4).T.copy()


def _stored(item: Item, changed: np.ndarray | None) -> np.ndarray:
    """What is not rounded, in `item.dtype`: stored bytes where nothing changed."""
    raw = None if changed is not None else getattr(item.tensor, "base", item.tensor).raw()
    if raw is not None and item.tensor.dtype == item.dtype:
        return raw
    values = item.tensor.float32() if changed is None else changed
    if item.dtype == "BF16":
        return bfloat16_bits(values)
    return values.astype({"F32": np.float32, "F16": np.float16, "F64": np.float64}[item.dtype])


def quantization_config(recipe: Recipe, unrounded: list[str]) -> dict[str, Any]:
    """The compressed-tensors description; `unrounded`: linear modules that stay as they are."""
    if recipe.weights == "int8":
        weights: dict[str, Any] = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
        form = "int-quantized"
        inputs: dict[str, Any] | None = _ints(
            {"num_bits": 8, "symmetric": True, "strategy": recipe.activations, "dynamic": True}
        )
        if inputs is not None and recipe.activations == "group":
            inputs["group_size"] = 32
    else:
        weights = {
            "num_bits": 4, "symmetric": recipe.symmetric, "strategy": "group", "group_size": recipe.group,
        }  # fmt: skip
        form, inputs = "pack-quantized", None
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": unrounded,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _ints(weights),
                "input_activations": inputs,
                "output_activations": None,
            }
        },
    }


def _ints(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "int", "group_size": None, "dynamic": False} | fields


def write_tokenizer(model: Path, folder: Path) -> None:
    """Tokenizer, template and generation files of `model` (a folder, a file in one, or GGUF)."""
    if model.suffix == ".gguf":
        _tokenizer_of_gguf(model, folder)
        return
    origin = model if model.is_dir() else model.parent
    for name in TOKENIZER_FILES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


def _tokenizer_of_gguf(model: Path, folder: Path) -> None:
    from penstock.text import gguf_vocabulary

    vocabulary = gguf_vocabulary.load(model)
    vocabulary.backend.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **vocabulary.special_tokens}
    templates = dict(vocabulary.templates)
    if set(templates) == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    ends = {"bos_token_id": vocabulary.bos_id, "eos_token_id": list(vocabulary.eos_ids)}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
