"""DecoderSpec: everything that the forward pass must know about a decoder, as data.

An architecture is a mapping file (`models/arch/`) that turns its configuration into a DecoderSpec
and names its tensors; `models/forward.py` runs any of them. What tensor files do differently from
one another (1 + w norms, row orders, fused or stacked tensors) is not here but in the name tables.

Invariants: a spec is frozen and hashable; the tensor names below are the only ones that the
forward pass knows.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from msgspec import Struct

from penstock.kernels.ops import Activation, AttentionParams, HeadShape, RopeStyle

Shape = tuple[int, ...]


class LinearScaling(Struct, frozen=True, tag="linear"):
    """Positions divided by `factor`."""

    factor: float


class Llama3Scaling(Struct, frozen=True, tag="llama3"):
    """Llama 3.1: wavelengths over original/low are slowed by `factor`, under original/high kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


class YarnScaling(Struct, frozen=True, tag="yarn"):
    """YaRN (arXiv:2309.00071). `truncate` rounds the corrected range to whole dimensions."""

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


class LongRopeScaling(Struct, frozen=True, tag="longrope"):
    """LongRoPE (arXiv:2402.13753): one divisor per frequency, a short and a long set.

    The set belongs to the served context, not to the length that a request happens to have: keys
    in the prefix cache must mean the same to everybody."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    attention_factor: float


class FrequencyDivisors(Struct, frozen=True, tag="divisors"):
    """One divisor per frequency, as `rope_freqs.weight` of a GGUF file."""

    divisors: tuple[float, ...]


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | FrequencyDivisors


class Rope(Struct, frozen=True):
    """Rotary positions over the first `dim` dimensions of a head."""

    theta: float
    dim: int
    style: RopeStyle = "half"
    scaling: RopeScaling | None = None


class Attention(Struct, frozen=True):
    """One attention layer. rope None is NoPE; see kernels.ops for scale, window and softcap."""

    shape: HeadShape
    params: AttentionParams
    rope: Rope | None
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False


class MLP(Struct, frozen=True, tag="mlp"):
    """Gated MLP of `size` hidden features."""

    size: int
    activation: Activation = Activation()
    bias: bool = False


class Experts(Struct, frozen=True, tag="experts"):
    """`num` gated MLPs of `size` features, `top_k` per token; see Ops.route for softmax, normalize.

    shared_size: an MLP that every token takes, weighed by a sigmoid gate (Qwen2-MoE); 0 for none.
    """

    num: int
    top_k: int
    size: int
    activation: Activation = Activation()
    softmax: Literal["before", "after"] = "before"
    normalize: bool = True
    bias: bool = False
    shared_size: int = 0


class LayerSpec(Struct, frozen=True):
    """Norm, attention, residual, norm, MLP or experts, residual.

    post_norms: attention's and the MLP's results are normed too (Gemma 2 and 3).
    residual_scale: they are multiplied by it before they join the residual (Granite).
    """

    attention: Attention
    ffn: MLP | Experts
    post_norms: bool = False
    residual_scale: float = 1.0


class DecoderSpec(Struct, frozen=True):
    """A decoder-only language model. logits = head(h) · logit_scale, soft-capped if `logit_softcap`."""

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    max_context: int
    norm_eps: float
    tied_head: bool
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None


def kv_layers(spec: DecoderSpec) -> list[tuple[int, int, int | None]]:
    """(kv_heads, head_dim, window) of every layer: what `kv.groups.LayerKV` is made of."""
    return [
        (a.shape.kv_heads, a.shape.head_dim, a.params.window)
        for a in (layer.attention for layer in spec.layers)
    ]


def model_tensors(spec: DecoderSpec) -> dict[str, Shape]:
    """Canonical names and shapes of what is outside the layers."""
    tensors: dict[str, Shape] = {
        "embed": (spec.vocab_size, spec.hidden_size),
        "final_norm": (spec.hidden_size,),
    }
    if not spec.tied_head:
        tensors["head"] = (spec.vocab_size, spec.hidden_size)
    return tensors


def layer_tensors(spec: DecoderSpec, layer: LayerSpec) -> dict[str, Shape]:
    """Canonical names and shapes of one layer: linear weights (out, in), experts (E, out, in).

    qkv holds the rows of Q, K and V in this order, gate_up those of gate and up.
    """
    hidden = spec.hidden_size
    tensors: dict[str, Shape] = {"attn_norm": (hidden,), "ffn_norm": (hidden,)}
    tensors |= _attention_tensors(hidden, layer.attention)
    if layer.post_norms:
        tensors |= {"attn_post_norm": (hidden,), "ffn_post_norm": (hidden,)}
    ffn = layer.ffn
    if isinstance(ffn, MLP):
        tensors |= {"gate_up": (2 * ffn.size, hidden), "down": (hidden, ffn.size)}
        if ffn.bias:
            tensors |= {"gate_up_bias": (2 * ffn.size,), "down_bias": (hidden,)}
        return tensors
    tensors["router"] = (ffn.num, hidden)
    tensors |= {
        "experts_gate_up": (ffn.num, 2 * ffn.size, hidden),
        "experts_down": (ffn.num, hidden, ffn.size),
    }
    if ffn.bias:
        tensors["router_bias"] = (ffn.num,)
        tensors |= {"experts_gate_up_bias": (ffn.num, 2 * ffn.size), "experts_down_bias": (ffn.num, hidden)}
    if ffn.shared_size:
        tensors |= {"shared_gate_up": (2 * ffn.shared_size, hidden), "shared_down": (hidden, ffn.shared_size)}
        tensors["shared_gate"] = (1, hidden)
    return tensors


def _attention_tensors(hidden: int, attention: Attention) -> dict[str, Shape]:
    heads, kv_heads, head_dim = attention.shape.heads, attention.shape.kv_heads, attention.shape.head_dim
    rows = (heads + 2 * kv_heads) * head_dim
    tensors: dict[str, Shape] = {"qkv": (rows, hidden), "out": (hidden, heads * head_dim)}
    if attention.qkv_bias:
        tensors["qkv_bias"] = (rows,)
    if attention.out_bias:
        tensors["out_bias"] = (hidden,)
    if attention.qk_norm:
        tensors |= {"q_norm": (head_dim,), "k_norm": (head_dim,)}
    if attention.sinks:
        tensors["sinks"] = (heads,)
    return tensors


def part_rows(layer: LayerSpec, name: str) -> tuple[int, ...]:
    """Rows of the parts of a joined tensor when a file stores them apart; () for one that never is."""
    shape = layer.attention.shape
    if name in ("qkv", "qkv_bias"):
        return (shape.heads * shape.head_dim, *(2 * (shape.kv_heads * shape.head_dim,)))
    if name in ("gate_up", "gate_up_bias", "experts_gate_up", "experts_gate_up_bias"):
        return (layer.ffn.size, layer.ffn.size)
    if name == "shared_gate_up" and isinstance(layer.ffn, Experts):
        return (layer.ffn.shared_size, layer.ffn.shared_size)
    return ()


def parameter_count(spec: DecoderSpec) -> int:
    """Parameters held, a tied head counted once."""
    outside = sum(prod(shape) for shape in model_tensors(spec).values())
    kinds: dict[LayerSpec, int] = {}
    for layer in spec.layers:
        if layer not in kinds:
            kinds[layer] = sum(prod(shape) for shape in layer_tensors(spec, layer).values())
        outside += kinds[layer]
    return outside


def weight_bytes(spec: DecoderSpec, itemsize: int = 4) -> int:
    """Bytes of the weights at `itemsize` each; 4 is what the reference backend holds (float32)."""
    return itemsize * parameter_count(spec)


def workspace_bytes(spec: DecoderSpec, token_budget: int, logit_rows: int, attention_bytes: int) -> int:
    """Upper estimate of the float32 buffers alive at once in a step of `token_budget` tokens.

    `logit_rows` rows of logits; `attention_bytes` is the backend's `attention_workspace_bytes`.
    Attention and MLP are never alive together, so the larger of the two counts.
    """
    widest = 0
    for layer in set(spec.layers):
        shape, ffn = layer.attention.shape, layer.ffn
        # QKV, its normed and turned copies, scaled queries and the mixed values
        mixed = (5 * shape.heads + 6 * shape.kv_heads) * shape.head_dim
        # gate and up, and the temporaries of the activation
        if isinstance(ffn, MLP):
            fed = 7 * ffn.size
        else:
            fed = 7 * max(ffn.size, ffn.shared_size) + 2 * (ffn.top_k + 1) * spec.hidden_size + 6 * ffn.num
        widest = max(widest, 4 * token_budget * mixed + attention_bytes, 4 * token_budget * fed)
    return 4 * token_budget * 5 * spec.hidden_size + widest + 2 * 4 * logit_rows * spec.vocab_size
