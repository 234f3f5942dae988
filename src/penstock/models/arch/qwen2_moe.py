"""Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2 with experts and a gated shared expert."""

from __future__ import annotations

from typing import Any

from penstock.models.arch import names
from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, activation, attention, decoder, mlp, rope
from penstock.models.arch.qwen2 import qwen_window
from penstock.models.spec import MLP, DecoderSpec, Experts, LayerSpec
from penstock.models.tensors import with_names
from penstock.models.weights.source import WeightSource

_SHARED = "mlp.shared_expert."
_LAYER = {
    "shared_gate_up": (f"{_SHARED}gate_proj.weight {_SHARED}up_proj.weight",),
    "shared_down": (f"{_SHARED}down_proj.weight",),
    "shared_gate": ("mlp.shared_expert_gate.weight",),
}


def qwen_feeds(c: Config, shared_size: int) -> list[MLP | Experts]:
    """Experts on every `decoder_sparse_step`-th layer that is not listed in `mlp_only_layers`."""
    experts = Experts(
        num=int(c.get("num_local_experts") or c.need("num_experts")),
        top_k=int(c.need("num_experts_per_tok")),
        size=int(c.need("moe_intermediate_size")), activation=activation(c),
        normalize=bool(c.get("norm_topk_prob", False)), shared_size=shared_size,
    )  # fmt: skip
    step, dense = c.get("decoder_sparse_step", 1), c.get("mlp_only_layers", [])
    return [mlp(c) if i in dense or (i + 1) % step else experts for i in range(c.num_layers)]


def _spec(c: Config) -> DecoderSpec:
    window, most, bias = qwen_window(c), c.get("max_window_layers", 28), bool(c.get("qkv_bias", True))
    feeds = qwen_feeds(c, int(c.need("shared_expert_intermediate_size")))
    layers = [
        LayerSpec(attention(c, window=window if slides else None, rope=rope(c), qkv_bias=bias), feed)
        for slides, feed in zip(c.sliding(lambda i: i % 2 == 0 and i < most), feeds, strict=True)
    ]
    return decoder(c, layers)


def _gguf(source: WeightSource, config: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if "blk.0.ffn_up_shexp.weight" in source.names():
        extra["shared_expert_intermediate_size"] = source.shape("blk.0.ffn_up_shexp.weight")[0]
    if "moe_intermediate_size" not in config and "blk.0.ffn_up_exps.weight" in source.names():
        extra["moe_intermediate_size"] = source.shape("blk.0.ffn_up_exps.weight")[1]
    return extra


ARCHITECTURE = Architecture(
    name="qwen2_moe", model_types=("qwen2_moe",), spec=_spec, gguf_arch="qwen2moe", gguf_extra=_gguf,
    hf_names=with_names(names.HF, layer=_LAYER),
    gguf_names=with_names(names.GGUF, layer={"shared_gate": ("ffn_gate_inp_shexp.weight:row",)}),
)  # fmt: skip
