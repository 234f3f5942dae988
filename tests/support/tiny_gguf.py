"""Turn a folder made by `make_tiny` into a GGUF file, as converters do, with the `gguf` package.

Tensor names come from the package's own name map, so the tables of `models/arch` meet an
independent oracle; row orders, the + 1 of Gemma's norms and the split of fused tensors follow what
llama.cpp's converter is documented to write.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

# model_type -> general.architecture; those whose Q and K rows are stored for interleaved rope.
ARCHES = {
    "llama": "llama",
    "mixtral": "llama",
    "smollm3": "smollm3",
    "granite": "granite",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt_oss": "gpt-oss",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
INTERLEAVED = {"llama", "mixtral", "smollm3", "granite"}


def write_gguf(folder: Path, path: Path, extra: dict[str, Any] | None = None) -> Path:
    """Write `path` from the model in `folder`; `extra` adds float32 tensors by GGUF name."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHES[config["model_type"]]
    writer = gguf.GGUFWriter(path, arch)
    _metadata(writer, config)
    for name, tensor in _tensors(folder, config, arch).items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(writer: gguf.GGUFWriter, c: dict[str, Any]) -> None:
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if c.get("head_dim"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = c.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if c.get("sliding_window") and c["model_type"] in ("gemma2", "gemma3_text", "gpt_oss", "phi3"):
        writer.add_sliding_window(c["sliding_window"])
    optional = {
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
        "moe_intermediate_size": writer.add_expert_feed_forward_length,
        "shared_expert_intermediate_size": writer.add_expert_shared_feed_forward_length,
        "num_experts_per_tok": writer.add_expert_used_count,
    }
    for key, add in optional.items():
        if c.get(key) is not None:
            add(c[key])
    if experts := c.get("num_local_experts") or c.get("num_experts"):
        writer.add_expert_count(experts)


def _tensors(folder: Path, c: dict[str, Any], arch: str) -> dict[str, np.ndarray]:
    wanted = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(wanted, c["num_hidden_layers"])
    out: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if c["tie_word_embeddings"] and name == "lm_head.weight":
            continue
        if c["model_type"].startswith("gemma") and "norm" in name:
            tensor = tensor + 1
        if c["model_type"] in INTERLEAVED and (match := re.search(r"\.([qk])_proj", name)):
            tensor = _interleave(tensor, c, match[1])
        if match := re.search(r"experts\.(\d+)\.", name):
            stacks.setdefault(name.replace(match[0], "experts."), {})[int(match[1])] = tensor
            continue
        for part, values in _split(name, tensor, c["model_type"]).items():
            out[_gguf_name(table, part)] = values
    for name, experts in stacks.items():
        out[_gguf_name(table, name)] = np.stack([experts[e] for e in range(len(experts))])
    return out


def _gguf_name(table: Any, name: str) -> str:
    found = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, f"the gguf package knows no name for {name}"
    return found if found.endswith((".weight", ".bias")) else found + ".weight"


def _interleave(tensor: np.ndarray, c: dict[str, Any], which: str) -> np.ndarray:
    """Rows of each head from (i, i + D/2) to neighbours (2i, 2i + 1)."""
    heads = c["num_attention_heads"] if which == "q" else c["num_key_value_heads"]
    rows = np.arange(len(tensor)).reshape(heads, 2, -1)
    return tensor[rows.transpose(0, 2, 1).reshape(-1)]


def _split(name: str, tensor: np.ndarray, model_type: str) -> dict[str, np.ndarray]:
    """GPT-OSS keeps gate and up alternating and (in, out); GGUF has them apart and (out, in)."""
    if model_type == "qwen2_moe" and name.endswith("shared_expert_gate.weight"):
        return {name: tensor.reshape(-1)}
    if model_type != "gpt_oss" or ".experts." not in name:
        return {name: tensor}
    stem, bias = name.removesuffix("_bias"), name.endswith("_bias")
    suffix = ".bias" if bias else ".weight"
    tensor = tensor if bias else tensor.swapaxes(-1, -2)
    if stem.endswith("down_proj"):
        return {stem + suffix: tensor}
    halves = (tensor[:, 0::2], tensor[:, 1::2])
    return {
        stem.replace("gate_up_proj", part) + suffix: half
        for part, half in zip(("gate_proj", "up_proj"), halves, strict=True)
    }
