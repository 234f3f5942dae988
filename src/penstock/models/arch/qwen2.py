"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V; layers from `max_window_layers` on may slide."""

from __future__ import annotations

from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, attention, decoder, mlp, rope
from penstock.models.spec import DecoderSpec, LayerSpec


def qwen_window(c: Config) -> int | None:
    return c.get("sliding_window") if c.get("use_sliding_window", False) else None


def _spec(c: Config) -> DecoderSpec:
    window, first = qwen_window(c), c.get("max_window_layers", 28)
    layers = [
        LayerSpec(attention(c, window=window if slides else None, rope=rope(c), qkv_bias=True), mlp(c))
        for slides in c.sliding(lambda i: i >= first)
    ]
    return decoder(c, layers)


ARCHITECTURE = Architecture(name="qwen2", model_types=("qwen2",), spec=_spec, gguf_arch="qwen2")
