"""Mixtral: Mistral with experts instead of the MLP. In GGUF it is architecture "llama" with experts."""

from __future__ import annotations

from penstock.models.arch import names
from penstock.models.arch.base import Architecture, interleaved
from penstock.models.arch.config import Config, activation, attention, decoder, rope
from penstock.models.spec import DecoderSpec, Experts, LayerSpec
from penstock.models.tensors import with_names

_EXPERT = "block_sparse_moe.experts.{e}."


def _spec(c: Config) -> DecoderSpec:
    feed = Experts(
        num=int(c.need("num_local_experts")),
        top_k=int(c.get("num_experts_per_tok", 2)),
        size=int(c.need("intermediate_size")),
        activation=activation(c),
    )
    layer = LayerSpec(attention(c, window=c.get("sliding_window"), rope=rope(c, theta=1_000_000.0)), feed)
    return decoder(c, [layer] * c.num_layers)


ARCHITECTURE = Architecture(
    name="mixtral",
    model_types=("mixtral",),
    spec=_spec,
    gguf_arch="llama",
    gguf_experts=True,
    gguf_extra=interleaved,
    hf_names=with_names(
        names.HF,
        layer={
            "router": ("block_sparse_moe.gate.weight", "mlp.gate.weight"),
            "experts_gate_up": (f"{_EXPERT}w1.weight {_EXPERT}w3.weight", *names.HF.layer["experts_gate_up"]),
            "experts_down": (f"{_EXPERT}w2.weight", *names.HF.layer["experts_down"]),
        },
    ),
)
