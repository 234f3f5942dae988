"""GPT-OSS: attention sinks, every other layer slides, YaRN, experts with biases and a clamped SwiGLU.

Checkpoints keep gate and up rows alternating, as bf16 (in, out) or as MXFP4 blocks (out, in).
"""

from __future__ import annotations

from typing import Any

from penstock.kernels.ops import Activation
from penstock.models.arch import names
from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config, attention, decoder, rope
from penstock.models.spec import DecoderSpec, Experts, LayerSpec
from penstock.models.tensors import with_names
from penstock.models.weights.source import WeightSource

_GATE_UP, _DOWN, _BIAS = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.experts.gate_up_proj_bias"
_LAYER = {
    "router": ("mlp.router.weight",),
    "router_bias": ("mlp.router.bias",),
    "experts_gate_up": (
        f"{_GATE_UP}:transpose:even {_GATE_UP}:transpose:odd",
        f"{_GATE_UP}:mxfp4:even {_GATE_UP}:mxfp4:odd",
    ),
    "experts_gate_up_bias": (f"{_BIAS}:even_last {_BIAS}:odd_last",),
    "experts_down": (f"{_DOWN}:transpose", f"{_DOWN}:mxfp4"),
    "experts_down_bias": ("mlp.experts.down_proj_bias",),
}


def _spec(c: Config) -> DecoderSpec:
    act = Activation("clamped_swiglu", float(c.get("swiglu_alpha", 1.702)), float(c.get("swiglu_limit", 7.0)))
    size, num = int(c.need("intermediate_size")), int(c.need("num_local_experts"))
    feed = Experts(num, int(c.need("num_experts_per_tok")), size, act, softmax="after", bias=True)
    bias, window = bool(c.get("attention_bias", True)), c.get("sliding_window", 128)
    layers = []
    for slides in c.sliding(lambda i: i % 2 == 0):
        attend = attention(
            c, window if slides else None, rope(c, theta=150_000.0), qkv_bias=bias, out_bias=bias, sinks=True
        )
        layers.append(LayerSpec(attend, feed))
    return decoder(c, layers)


def _gguf(source: WeightSource, config: dict[str, Any]) -> dict[str, Any]:
    extra = {"intermediate_size": config.get("moe_intermediate_size", config.get("intermediate_size"))}
    return extra | {"rope_parameters": config["rope_parameters"] | {"truncate": False}}


ARCHITECTURE = Architecture(
    name="gpt_oss", model_types=("gpt_oss",), spec=_spec, gguf_arch="gpt-oss", gguf_extra=_gguf,
    hf_names=with_names(names.HF, layer=_LAYER),
    gguf_names=with_names(names.GGUF, layer={"ffn_norm": ("post_attention_norm.weight",)}),
)  # fmt: skip
