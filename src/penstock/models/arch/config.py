"""A model's configuration under the keys of config.json, and the parts of a spec built from it.

GGUF metadata is translated to the same keys (arch/gguf.py), so that one mapping serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from penstock.errors import ModelRefused
from penstock.kernels.ops import Activation, AttentionParams, HeadShape
from penstock.models.spec import (
    MLP,
    Attention,
    DecoderSpec,
    FrequencyDivisors,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)

_ACTIVATIONS = {
    "silu": Activation("silu"),
    "swish": Activation("silu"),
    "gelu_pytorch_tanh": Activation("gelu_tanh"),
    "gelu_new": Activation("gelu_tanh"),
}


class Config:
    """Read access that knows defaults and refuses by name."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def get(self, key: str, default: Any = None) -> Any:
        """The value, `default` where it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ModelRefused(
                f"the configuration has no {key!r}; the file is incomplete or of another architecture"
            )
        return value

    def refuse_if(self, key: str) -> None:
        """Refuse a feature that the forward pass does not have."""
        if self.get(key):
            raise ModelRefused(f"{key} = {self.get(key)!r} in the configuration is not supported")

    @property
    def num_layers(self) -> int:
        return int(self.need("num_hidden_layers"))

    @property
    def heads(self) -> HeadShape:
        heads = int(self.need("num_attention_heads"))
        kv_heads = int(self.get("num_key_value_heads", heads))
        head_dim = int(self.get("head_dim", int(self.need("hidden_size")) // heads))
        if heads % kv_heads:
            raise ModelRefused(f"{heads} attention heads can't share {kv_heads} KV heads: not a multiple")
        return HeadShape(heads, kv_heads, head_dim)

    def sliding(self, default: Callable[[int], bool]) -> list[bool]:
        """Which layers slide: `layer_types` if present, else `default(layer)`."""
        kinds = self.get("layer_types")
        if kinds is None:
            return [default(i) for i in range(self.num_layers)]
        strange = set(kinds) - {"sliding_attention", "full_attention"}
        if strange or len(kinds) != self.num_layers:
            raise ModelRefused(
                f"layer_types has {len(kinds)} entries for {self.num_layers} layers and the unknown kinds "
                f"{sorted(strange)}; sliding_attention and full_attention are supported"
            )
        return [kind == "sliding_attention" for kind in kinds]


def activation(c: Config, key: str = "hidden_act", default: str = "silu") -> Activation:
    name = c.get(key, default)
    if name not in _ACTIVATIONS:
        raise ModelRefused(f"{key} = {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def attention(c: Config, window: int | None = None, rope: Rope | None = None, **fields: Any) -> Attention:
    """`scale` and `softcap` go to the params (1/sqrt(head_dim) and none by default), the rest to
    Attention."""
    shape = c.heads
    params = AttentionParams(fields.pop("scale", shape.head_dim**-0.5), window, fields.pop("softcap", None))
    return Attention(shape=shape, params=params, rope=rope, **fields)


def mlp(c: Config, **fields: Any) -> MLP:
    return MLP(size=int(c.need("intermediate_size")), activation=activation(c), **fields)


def decoder(c: Config, layers: list[LayerSpec], **fields: Any) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=int(c.need("vocab_size")),
        hidden_size=int(c.need("hidden_size")),
        layers=tuple(layers),
        max_context=int(c.need("max_position_embeddings")),
        norm_eps=float(c.get("rms_norm_eps", 1e-6)),
        tied_head=bool(fields.pop("tied_head", c.get("tie_word_embeddings", False))),
        **fields,
    )


def rope(c: Config, kind: str | None = None, theta: float = 10000.0) -> Rope:
    """Rope of the layers of `kind` ("sliding_attention", "full_attention"; None where all share one).

    Reads `rope_parameters` (flat, or nested by kind) or the older rope_theta and rope_scaling."""
    params = c.get("rope_parameters")
    if params is None:
        params = {"rope_theta": c.get("rope_theta", theta), **c.get("rope_scaling", {})}
    elif kind in params:
        params = params[kind] or {}
    partial = params.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    return Rope(
        theta=float(params.get("rope_theta") or theta),
        dim=int(c.heads.head_dim * partial + 1e-6),
        style=c.get("rope_style", "half"),
        scaling=_scaling(c, params),
    )


def _scaling(c: Config, p: dict[str, Any]) -> RopeScaling | None:
    name = p.get("rope_type") or p.get("type") or "default"
    original = c.get("original_max_position_embeddings") or p.get("original_max_position_embeddings")
    original = int(original or c.need("max_position_embeddings"))
    match name:
        case "default" | "none":
            return None
        case "linear":
            return LinearScaling(float(p["factor"]))
        case "llama3":
            return Llama3Scaling(
                float(p["factor"]), float(p["low_freq_factor"]), float(p["high_freq_factor"]), original
            )
        case "yarn":
            return _yarn(c, p, original)
        case "longrope" | "su":
            return _longrope(c, p, original)
        case "divisors":
            return FrequencyDivisors(tuple(p["divisors"]))
    raise ModelRefused(
        f"rope scaling {name!r} is not supported; supported are default, linear, llama3, yarn, longrope"
    )


def _yarn(c: Config, p: dict[str, Any], original: int) -> YarnScaling:
    factor = float(p.get("factor") or c.need("max_position_embeddings") / original)

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention_factor = p.get("attention_factor")
    if attention_factor is None:
        mscale, all_dims = p.get("mscale"), p.get("mscale_all_dim")
        attention_factor = growth(mscale) / growth(all_dims) if mscale and all_dims else growth(1.0)
    return YarnScaling(
        factor=factor,
        original_context=original,
        attention_factor=float(attention_factor),
        beta_fast=float(p.get("beta_fast") or 32),
        beta_slow=float(p.get("beta_slow") or 1),
        truncate=bool(p.get("truncate", True)),
    )


def _longrope(c: Config, p: dict[str, Any], original: int) -> LongRopeScaling:
    attention_factor = p.get("attention_factor")
    if attention_factor is None:
        factor = float(p.get("factor") or c.need("max_position_embeddings") / original)
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        tuple(p["short_factor"]), tuple(p["long_factor"]), original, float(attention_factor)
    )
