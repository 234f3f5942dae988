"""Gemma 3 (text): Gemma 2 with QK-norm, no soft caps, five sliding layers to a full one, and its own
rope for each kind. The text half of Gemma3ForConditionalGeneration is served, its vision tower not.
"""

from __future__ import annotations

from typing import Any

from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, activation, attention, decoder, rope
from penstock.models.arch.gemma2 import HF_NAMES, gguf_query_scale
from penstock.models.spec import MLP, DecoderSpec, LayerSpec, Rope
from penstock.models.tensors import with_names
from penstock.models.weights.source import WeightSource


def _spec(c: Config) -> DecoderSpec:
    c.refuse_if("use_bidirectional_attention")
    feed = MLP(int(c.need("intermediate_size")), activation(c, "hidden_activation", "gelu_pytorch_tanh"))
    bias, window = bool(c.get("attention_bias", False)), c.get("sliding_window", 4096)
    scale, cap = float(c.get("query_pre_attn_scalar", 256)) ** -0.5, c.get("attn_logit_softcapping")
    pattern = c.get("sliding_window_pattern", 6)
    if c.get("rope_parameters"):
        local, wide = rope(c, "sliding_attention", 10_000.0), rope(c, "full_attention", 1_000_000.0)
    else:
        wide = rope(c, theta=1_000_000.0)
        local = Rope(float(c.get("rope_local_base_freq", 10_000.0)), wide.dim)
    layers = []
    for slides in c.sliding(lambda i: (i + 1) % pattern != 0):
        attend = attention(
            c, window if slides else None, local if slides else wide, scale=scale, softcap=cap, qk_norm=True,
            qkv_bias=bias, out_bias=bias,
        )  # fmt: skip
        layers.append(LayerSpec(attend, feed, post_norms=True))
    cap, tied = c.get("final_logit_softcapping"), c.get("tie_word_embeddings", True)
    return decoder(c, layers, embedding_scale=c.need("hidden_size") ** 0.5, logit_softcap=cap, tied_head=tied)


def _gguf(source: WeightSource, config: dict[str, Any]) -> dict[str, Any]:
    wide = config["rope_parameters"]
    local = {"rope_theta": source.metadata.get("gemma3.rope.freq_base_swa", 10_000.0)}
    extra = {"rope_parameters": {"full_attention": wide, "sliding_attention": local}}
    return extra | gguf_query_scale(source, config)


ARCHITECTURE = Architecture(
    name="gemma3", model_types=("gemma3_text", "gemma3"), spec=_spec, gguf_arch="gemma3", gguf_extra=_gguf,
    hf_names=with_names(
        HF_NAMES,
        roots=("model.", "model.language_model.", "language_model.model."),
        ignored=(*HF_NAMES.ignored, "*vision_tower.*", "*multi_modal_projector.*", "*.lm_head.weight"),
    ),
)  # fmt: skip
