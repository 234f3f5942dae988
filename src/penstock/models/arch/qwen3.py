"""Qwen3: Qwen2 without biases, with an RMSNorm on each head of Q and K before rope."""

from __future__ import annotations

from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, attention, decoder, mlp, rope
from penstock.models.arch.qwen2 import qwen_window
from penstock.models.spec import DecoderSpec, LayerSpec


def _spec(c: Config) -> DecoderSpec:
    window, first = qwen_window(c), c.get("max_window_layers", 28)
    bias = bool(c.get("attention_bias", False))
    layers = []
    for slides in c.sliding(lambda i: i >= first):
        attend = attention(
            c, window=window if slides else None, rope=rope(c), qk_norm=True, qkv_bias=bias, out_bias=bias
        )
        layers.append(LayerSpec(attend, mlp(c)))
    return decoder(c, layers)


ARCHITECTURE = Architecture(name="qwen3", model_types=("qwen3",), spec=_spec, gguf_arch="qwen3")
