"""Granite 3: Llama with multipliers on embeddings, attention scores, residuals and logits."""

from __future__ import annotations

from penstock.models.arch.base import Architecture, interleaved
from penstock.models.arch.config import Config, attention, decoder, mlp, rope
from penstock.models.spec import DecoderSpec, LayerSpec


def _spec(c: Config) -> DecoderSpec:
    bias = bool(c.get("attention_bias", False))
    scale = float(c.get("attention_multiplier", 1.0))
    attend = attention(
        c, rope=rope(c), scale=scale, qkv_bias=bias, out_bias=c.get("attention_out_bias", bias)
    )
    layer = LayerSpec(
        attend,
        mlp(c, bias=bool(c.get("mlp_bias", False))),
        residual_scale=float(c.get("residual_multiplier", 1.0)),
    )
    return decoder(
        c,
        [layer] * c.num_layers,
        embedding_scale=float(c.get("embedding_multiplier", 1.0)),
        logit_scale=1.0 / float(c.get("logits_scaling", 1.0)),
    )


ARCHITECTURE = Architecture(
    name="granite", model_types=("granite",), spec=_spec, gguf_arch="granite", gguf_extra=interleaved
)
