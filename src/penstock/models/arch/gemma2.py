"""Gemma 2: sandwich norms with gains stored as distance from 1, soft caps, every other layer slides."""

from __future__ import annotations

from typing import Any

from penstock.models.arch import names
from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, activation, attention, decoder, rope
from penstock.models.spec import MLP, DecoderSpec, LayerSpec
from penstock.models.tensors import with_names
from penstock.models.weights.source import WeightSource

HF_NAMES = with_names(
    names.HF,
    model={"final_norm": ("model.norm.weight:plus_one",)},
    layer={
        "attn_norm": ("input_layernorm.weight:plus_one",),
        "attn_post_norm": ("post_attention_layernorm.weight:plus_one",),
        "ffn_norm": ("pre_feedforward_layernorm.weight:plus_one",),
        "ffn_post_norm": ("post_feedforward_layernorm.weight:plus_one",),
        "q_norm": ("self_attn.q_norm.weight:plus_one",),
        "k_norm": ("self_attn.k_norm.weight:plus_one",),
    },
)


def _spec(c: Config) -> DecoderSpec:
    c.refuse_if("use_bidirectional_attention")
    feed = MLP(int(c.need("intermediate_size")), activation(c, "hidden_activation", "gelu_pytorch_tanh"))
    bias, window = bool(c.get("attention_bias", False)), c.get("sliding_window", 4096)
    scale, cap = float(c.get("query_pre_attn_scalar", 256)) ** -0.5, c.get("attn_logit_softcapping")
    layers = []
    for slides in c.sliding(lambda i: i % 2 == 0):
        attend = attention(
            c, window if slides else None, rope(c), scale=scale, softcap=cap, qkv_bias=bias, out_bias=bias
        )
        layers.append(LayerSpec(attend, feed, post_norms=True))
    cap = c.get("final_logit_softcapping")
    tied = c.get("tie_word_embeddings", True)
    return decoder(c, layers, embedding_scale=c.need("hidden_size") ** 0.5, logit_softcap=cap, tied_head=tied)


def gguf_query_scale(source: WeightSource, config: dict[str, Any]) -> dict[str, Any]:
    """Metadata has no query_pre_attn_scalar: it is the head size, in the 27B models (46 and 62
    layers) the hidden size per head."""
    if config["num_hidden_layers"] in (46, 62):
        return {"query_pre_attn_scalar": config["hidden_size"] / config["num_attention_heads"]}
    return {"query_pre_attn_scalar": Config(config).heads.head_dim}


ARCHITECTURE = Architecture(
    name="gemma2", model_types=("gemma2",), spec=_spec, gguf_arch="gemma2", gguf_extra=gguf_query_scale,
    hf_names=HF_NAMES,
)  # fmt: skip
