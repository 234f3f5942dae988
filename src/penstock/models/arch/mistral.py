"""Mistral: Llama with a sliding window on every layer (none since version 0.2).

Converted to GGUF it is architecture "llama", without its window.
"""

from __future__ import annotations

from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, attention, decoder, mlp, rope
from penstock.models.spec import DecoderSpec, LayerSpec


def _spec(c: Config) -> DecoderSpec:
    window = c.values.get("sliding_window", 4096)  # null means none; files without the key are version 0.1
    return decoder(c, [LayerSpec(attention(c, window=window, rope=rope(c)), mlp(c))] * c.num_layers)


ARCHITECTURE = Architecture(name="mistral", model_types=("mistral",), spec=_spec)
