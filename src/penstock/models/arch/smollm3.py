"""SmolLM3: Llama with layers that have no positions (NoPE), every fourth unless listed."""

from __future__ import annotations

from penstock.models.arch.base import Architecture, interleaved
from penstock.models.arch.config import Config, attention, decoder, mlp, rope
from penstock.models.spec import DecoderSpec, LayerSpec


def _spec(c: Config) -> DecoderSpec:
    interval = c.get("no_rope_layer_interval", 4)
    turned = c.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(c.num_layers)]
    window = c.get("sliding_window") if c.get("use_sliding_window", False) else None
    bias, position = bool(c.get("attention_bias", False)), rope(c, theta=2_000_000.0)
    layers = []
    for i, slides in enumerate(c.sliding(lambda i: not turned[i])):
        attend = attention(
            c,
            window=window if slides else None,
            rope=position if turned[i] else None,
            qkv_bias=bias,
            out_bias=bias,
        )
        layers.append(LayerSpec(attend, mlp(c, bias=bool(c.get("mlp_bias", False)))))
    return decoder(c, layers, tied_head=c.get("tie_word_embeddings", True))


ARCHITECTURE = Architecture(
    name="smollm3", model_types=("smollm3",), spec=_spec, gguf_arch="smollm3", gguf_extra=interleaved
)
