"""GGUF metadata under the keys of config.json.

Source: the GGUF specification's key list, and what converters write for the architectures served here.
"""

from __future__ import annotations

import math
from typing import Any

from penstock.errors import ModelRefused
from penstock.models.weights.source import WeightSource

_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "norm_topk_prob": "expert_weights_norm",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}

_SOFTMAX = 1


def gguf_config(source: WeightSource, arch: str) -> dict[str, Any]:
    """config.json's keys from the metadata `arch.*`, and from which tensors there are."""
    meta, names = source.metadata, set(source.names())
    config = {key: meta[f"{arch}.{name}"] for key, name in _KEYS.items() if f"{arch}.{name}" in meta}
    for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if isinstance(config.get(key), (list, tuple)):  # one number per layer; equal in what is served here
            config[key] = _equal(list(config[key]), key)
    pattern = meta.get(f"{arch}.attention.sliding_window_pattern")
    if isinstance(pattern, int):
        config["sliding_window_pattern"] = pattern
    elif pattern is not None:
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    if meta.get(f"{arch}.expert_gating_func", _SOFTMAX) != _SOFTMAX:
        raise ModelRefused(f"{arch}.expert_gating_func other than {_SOFTMAX} (softmax) is not supported")
    if "token_embd.weight" in names:
        config["vocab_size"] = source.shape("token_embd.weight")[0]
    config["tie_word_embeddings"] = "output.weight" not in names
    config["attention_bias"] = "blk.0.attn_q.bias" in names
    config["mlp_bias"] = "blk.0.ffn_down.bias" in names
    config["rope_parameters"] = _rope(source, arch, config)
    return config


def _equal(values: list[Any], key: str) -> Any:
    if len(set(values)) != 1:
        raise ModelRefused(
            f"{key} differs between layers ({sorted(set(values))}); one number for all is supported"
        )
    return values[0]


def _rope(source: WeightSource, arch: str, config: dict[str, Any]) -> dict[str, Any]:
    meta, names = source.metadata, set(source.names())

    def get(key: str, default: Any = None) -> Any:
        return meta.get(f"{arch}.rope.{key}", default)

    params: dict[str, Any] = {
        "rope_theta": get("freq_base", 10000.0),
        "rope_type": get("scaling.type", "default"),
        "factor": get("scaling.factor"),
        "original_max_position_embeddings": get("scaling.original_context_length"),
        "beta_fast": get("scaling.yarn_beta_fast"),
        "beta_slow": get("scaling.yarn_beta_slow"),
    }
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim") or (hidden // heads if heads and hidden else None)
    if head_dim and get("dimension_count"):
        params["partial_rotary_factor"] = get("dimension_count") / head_dim
    if params["rope_type"] == "yarn" and get("scaling.attn_factor") is not None:
        # There the stored number multiplies YaRN's own.
        params["attention_factor"] = get("scaling.attn_factor") * (1 + 0.1 * math.log(params["factor"]))
    if "rope_freqs.weight" in names:
        params |= {"rope_type": "divisors", "divisors": source.float32("rope_freqs.weight").tolist()}
    if "rope_factors_long.weight" in names:
        params |= {
            "rope_type": "longrope",
            "long_factor": source.float32("rope_factors_long.weight").tolist(),
            "short_factor": source.float32("rope_factors_short.weight").tolist(),
            "attention_factor": get("scaling.attn_factor"),
        }
    return params
