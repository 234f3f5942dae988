"""Llama 1 to 3, SmolLM and SmolLM2, and the many models that share this layout."""

from __future__ import annotations

from penstock.models.arch.base import Architecture, interleaved
from penstock.models.arch.config import Config, attention, decoder, mlp, rope
from penstock.models.spec import DecoderSpec, LayerSpec


def _spec(c: Config) -> DecoderSpec:
    bias = bool(c.get("attention_bias", False))
    attend = attention(c, rope=rope(c), qkv_bias=bias, out_bias=c.get("attention_out_bias", bias))
    return decoder(c, [LayerSpec(attend, mlp(c, bias=bool(c.get("mlp_bias", False))))] * c.num_layers)


ARCHITECTURE = Architecture(
    name="llama",
    model_types=("llama",),
    spec=_spec,
    gguf_arch="llama",
    gguf_extra=interleaved,
)
