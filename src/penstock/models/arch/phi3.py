"""Phi-3 and Phi-4-mini: fused QKV and gate-up, LongRoPE, partial rotary positions, sliding window."""

from __future__ import annotations

from penstock.models.arch import names
from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, attention, decoder, mlp, rope
from penstock.models.spec import DecoderSpec, LayerSpec
from penstock.models.tensors import with_names


def _spec(c: Config) -> DecoderSpec:
    attend = attention(c, window=c.get("sliding_window") or None, rope=rope(c))
    return decoder(c, [LayerSpec(attend, mlp(c))] * c.num_layers)


ARCHITECTURE = Architecture(
    name="phi3",
    model_types=("phi3",),
    spec=_spec,
    gguf_arch="phi3",
    hf_names=with_names(
        names.HF,
        layer={"qkv": ("self_attn.qkv_proj.weight",), "gate_up": ("mlp.gate_up_proj.weight",)},
    ),
    gguf_names=with_names(
        names.GGUF,
        layer={"qkv": ("attn_qkv.weight", *names.GGUF.layer["qkv"]), "gate_up": ("ffn_up.weight",)},
    ),
)
