"""Qwen3-MoE: Qwen3 with experts, no shared one. A sliding window, if used, is on every layer."""

from __future__ import annotations

from typing import Any

from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, attention, decoder, rope
from penstock.models.arch.qwen2 import qwen_window
from penstock.models.arch.qwen2_moe import qwen_feeds
from penstock.models.spec import DecoderSpec, LayerSpec
from penstock.models.weights.source import WeightSource


def _spec(c: Config) -> DecoderSpec:
    bias = bool(c.get("attention_bias", False))
    attend = attention(c, window=qwen_window(c), rope=rope(c), qk_norm=True, qkv_bias=bias, out_bias=bias)
    return decoder(c, [LayerSpec(attend, feed) for feed in qwen_feeds(c, shared_size=0)])


def _gguf(source: WeightSource, config: dict[str, Any]) -> dict[str, Any]:
    # True of every released model; files rarely have a key for it.
    return {"norm_topk_prob": config.get("norm_topk_prob", True)}


ARCHITECTURE = Architecture(
    name="qwen3_moe", model_types=("qwen3_moe",), spec=_spec, gguf_arch="qwen3moe", gguf_extra=_gguf
)
