"""Quantized checkpoints written from their formats' descriptions, word by word, and what they mean.

`pack_gptq`, `pack_awq` return the stored tensors of one linear layer for given integers; the float
weight they stand for is `scale · (value − zero)`. `requantize` turns a folder of `make_tiny` into
a packed one and a plain twin with those float weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def is_linear(name: str, tensor: np.ndarray) -> bool:
    """A matrix of attention or MLP: no embedding, head, router or gate of a shared expert."""
    spared = ("embed_tokens", "lm_head", "mlp.gate.weight", "block_sparse_moe.gate", "shared_expert_gate")
    return tensor.ndim == 2 and name.endswith(".weight") and not any(part in name for part in spared)


def words_along_rows(values: np.ndarray, bits: int) -> np.ndarray:
    """[K, N] -> int32[K·bits/32, N]: value k at bit k·bits of its column."""
    words = np.zeros((values.shape[0] * bits // 32, values.shape[1]), np.uint32)
    for k, line in enumerate(values):
        word, shift = divmod(k * bits, 32)
        words[word] |= line.astype(np.uint32) << np.uint32(shift)
    return words.view(np.int32)


def pack_gptq(
    stem: str, values: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int, minus: int
) -> Tensors:
    """values [N, K], zeros and scales [N, G]; `minus` is 1 for format "gptq", 0 for "gptq_v2"."""
    stored = (zeros.astype(np.int64) - minus) % 2**bits
    return {
        f"{stem}.qweight": words_along_rows(values.T, bits),
        f"{stem}.qzeros": np.ascontiguousarray(words_along_rows(stored, bits).T),
        f"{stem}.scales": np.ascontiguousarray(scales.T.astype(np.float16)),
    }


def awq_words(lines: np.ndarray) -> np.ndarray:
    """[L, N] -> int32[L, N/8]: nibble j of a word holds column AWQ_ORDER[j] of its eight."""
    words = np.zeros((lines.shape[0], lines.shape[1] // 8), np.uint32)
    for word in range(words.shape[1]):
        for nibble, column in enumerate(AWQ_ORDER):
            words[:, word] |= lines[:, 8 * word + column].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def pack_awq(stem: str, values: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    return {
        f"{stem}.qweight": awq_words(values.T),
        f"{stem}.qzeros": awq_words(zeros.T),
        f"{stem}.scales": np.ascontiguousarray(scales.T.astype(np.float16)),
    }


def requantize(
    folder: Path, config: dict[str, Any], pack: Callable[[str, np.ndarray], tuple[Tensors, np.ndarray]]
) -> tuple[Path, dict[str, np.ndarray]]:
    """Rewrite the linear layers of `folder` with `pack(stem, weight) -> (stored, float32 meaning)` and put
    `config` under quantization_config. Returns a plain twin of the result and its float weights."""
    plain = folder.with_name(folder.name + "-plain")
    shutil.copytree(folder, plain)
    stored: Tensors = {}
    meaning: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not is_linear(name, tensor):
            stored[name] = tensor
            continue
        packed, meaning[name] = pack(name.removesuffix(".weight"), tensor)
        stored |= packed
    others = {name: tensor for name, tensor in stored.items() if is_plain(name)}
    save_file(stored, folder / "model.safetensors")
    save_file(others | meaning, plain / "model.safetensors")
    described = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    return plain, meaning


def is_plain(name: str) -> bool:
    packed = (".qweight", ".qzeros", ".scales", ".g_idx", "_packed", "_scale", "_zero_point", "_shape")
    return not name.endswith((*packed, "_g_idx", "_global_scale"))


def random_integers(
    weight: np.ndarray, bits: int, group: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values [N, K], zeros [N, G], scales float16 [N, G]) of about the size of `weight`; no zero point is
    0, which AutoGPTQ can't store."""
    rows, columns = weight.shape
    groups = -(-columns // group)
    values = rng.integers(0, 2**bits, (rows, columns))
    zeros = rng.integers(1, 2**bits, (rows, groups))
    scales = rng.uniform(0.5, 1.5, (rows, groups)) * weight.std() * 4 / 2**bits
    return values, zeros, scales.astype(np.float16)
